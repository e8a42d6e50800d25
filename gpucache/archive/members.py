"""What the members of a pack are called."""

from __future__ import annotations

import hashlib

from gpucache.archive import ustar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.archive.statement import ArchivedEntry, ArchivedFile

STATEMENT = "gpucache-pack.json"
"""The first member."""
SIGNATURES = "gpucache-pack.sig"
"""The second member, absent from a pack that nobody has signed."""
INDUCTOR = "inductor"
"""The directory of the members that are no entry of the store."""


def member_name(entry: ArchivedEntry, file: ArchivedFile) -> str:
    """The name of a file of an entry: ``<key in the store>/<file>``, or a digest where no header can hold that.

    The statement alone says what the file is called.
    """
    directory = INDUCTOR if entry.kind == "inductor" else entry.store_key
    name = f"{directory}/{file.name}"
    if ustar.fits(name):
        return name
    digest = hashlib.sha256(file.name.encode())
    return f"{directory}/={digest.hexdigest()[:32]}"
