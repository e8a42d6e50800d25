"""Which directories are fresh on purpose: made for one measurement or test, which is to compile everything anew."""

from __future__ import annotations

import os

from gpucache.disk.files import inside

_RANDOM = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")
_RANDOM_LENGTH = 8
"""How many of these letters `tempfile` adds to a prefix (CPython 3.10 to 3.14, `Lib/tempfile.py`)."""

_PREFIXES = (
    # `tempfile`'s own default; so torch's `fresh_cache` calls its directory, wherever that is
    # (`torch/_inductor/utils.py` of 2.13.0).
    "tmp",
    # Helion's autotuner (`helion/_compiler/triton/backend.py` and `cute/backend.py` of 1.5.1).
    "helion_autotune_",
    "helion_cute_autotune_",
)


def fresh_part(directory: str, root: str) -> str | None:
    """The part of a path that says that the directory is fresh on purpose; None for a cache that is to be kept.

    Only a name tells: an age does not, and that a directory is in the temporary directory does not either, since
    published recipes keep caches there. What lies below ``root`` is never fresh. A name of the user's that happens to
    look so, such as ``tmp_kernels``, is taken for a fresh one: `GPUCACHE_SHARE=1` decides otherwise.
    """
    if inside(directory, root):
        return None
    for path in (os.path.abspath(directory), os.path.realpath(directory)):
        for part in path.split("/"):
            if _is_made_by_tempfile(part):
                return part
    return None


def _is_made_by_tempfile(name: str) -> bool:
    for prefix in _PREFIXES:
        random = name.removeprefix(prefix)
        if random != name and len(random) == _RANDOM_LENGTH and _RANDOM.issuperset(random):
            return True
    return False
