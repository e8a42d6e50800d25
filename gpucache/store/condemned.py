"""What the file `CONDEMNED` in the directory of an entry says: who removes the entry, or who makes the directory.

A removal renames the manifest so (`store.removal`). A maker who brings files one by one (`store.placing`) writes the
file first, with his node and whether he holds the key's lock, and removes it last.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from gpucache.disk.door import HOLDER_BYTES, read_limited
from gpucache.disk.lock_token import device_of_places
from gpucache.disk.node import mark_of, node_id
from gpucache.layout.keys import ASIDE
from gpucache.store.manifest import CONDEMNED


def signature(locked: bool) -> bytes:
    """What a maker writes of himself: his node, and whose locks he sees there, as `device_of_places` tells."""
    said = {"maker": f"{node_id()}{mark_of(device_of_places())}", "locked": locked}
    return json.dumps(said).encode()


def maker(directory: str) -> bytes | None:
    """What the maker of a directory has written, nothing if he was killed before; None if no maker has condemned it."""
    try:
        said = read_limited(f"{directory}/{CONDEMNED}", HOLDER_BYTES)
    except OSError:
        return None  # nobody has, or a removal: a manifest is longer
    is_signature = said.startswith(b'{"maker"') or not said
    return said if is_signature else None


def is_going(directory: str) -> bool:
    """Whether a removal has condemned a directory."""
    return os.path.lexists(f"{directory}/{CONDEMNED}") and maker(directory) is None


def reprieve(directory: str) -> None:
    """Remove what a maker has written; where nothing may be deleted, it gets a name that says nothing.

    If neither can be, the entry is still found by its manifest.
    """
    path = f"{directory}/{CONDEMNED}"
    with suppress(OSError):
        try:
            os.unlink(path)
        except PermissionError:
            os.rename(path, f"{directory}/{ASIDE}made")
