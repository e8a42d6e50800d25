"""Which number of each pack this root has seen, so that an old pack in the place of a newer one is told.

A pack's name and number are signed: whoever can write a remote, and has no key, can still put an older pack there, with
kernels that have been replaced since. So the highest number of each name is kept, in one small file. The file is a
memory and no proof: what cannot be read, or was lost where two pulls ended at once, is not known, and nothing is told.
"""

from __future__ import annotations

import json
import os

from gpucache.disk.door import SEEN_NUMBERS_BYTES, read_limited
from gpucache.disk.files import make_below_root, write_whole
from gpucache.layout.paths import ours

_VERSION = 1
_MOST_PACKS = 1000
"""Of more names, those go that were seen first."""


def seen_number(root: str, name: str) -> int | None:
    """The highest number of a pack of this name that was seen in this root; None where none is known. Never raises."""
    return _read(root).get(name)


def note_number(root: str, name: str, number: int) -> None:
    """Remember that a pack of this name and number was seen, unless a higher one was.

    The caller has believed the pack's signature. Atomic for readers; of two writers at once the last one's file stays.

    Raises:
        OSError: the disk refused; the old file is untouched.
    """
    seen = _read(root)
    if seen.get(name, -1) >= number:
        return
    seen.pop(name, None)
    seen[name] = number  # the last one
    kept = dict(list(seen.items())[-_MOST_PACKS:])
    path = _path(root)
    make_below_root(os.path.dirname(path))
    data = json.dumps({"version": _VERSION, "numbers": kept}).encode()
    write_whole(path, data, ours(root, "tmp"))


def _path(root: str) -> str:
    return ours(root, "packs", "numbers.json")


def _read(root: str) -> dict[str, int]:
    """The numbers by name, in the order in which they were seen; what makes no sense is left out."""
    try:
        said = json.loads(read_limited(_path(root), SEEN_NUMBERS_BYTES))
        items = said["numbers"].items() if said["version"] == _VERSION else ()
        return {name: number for name, number in items if type(number) is int}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
