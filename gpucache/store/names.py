"""`stored_name`: the name under which an entry has a file of Triton's, which is nearly always the file's own."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache

from gpucache.kernels.group import AUTOTUNE, GROUP, are_plain
from gpucache.store.manifest import CONDEMNED, MANIFEST, RECIPE

OTHER = "="
"""How a name begins that is not the file's own: no name of a kernel in Python does."""
OURS = frozenset((MANIFEST, CONDEMNED, RECIPE))
"""What gpucache has in an entry beside the files of Triton's."""
MOST_NAME_BYTES = 255 - len(GROUP)  # NAME_MAX of Linux's file systems
"""A file of an entry has no longer name, since the group file's is longer."""
_MOST_LETTERS = 10


@lru_cache(maxsize=4096)
def stored_name(name: str) -> str:
    """The name of a file in an entry, by which Triton may call it anything.

    Another one than Triton's has a file that would have the name of one of ours (a kernel may be called ``__entry__``),
    or that can have no such name: it leads elsewhere, is too long, or has what no terminal shows. The end, by which
    Triton knows what a file is, stays. Pure.

    >>> stored_name("add.json"), stored_name("__entry__.json")
    ('add.json', '=__entry__.json')
    """
    if name in OURS:
        return f"{OTHER}{name}"
    if are_plain([name]) and name.isprintable() and not name.startswith(OTHER) and _fits(name):
        return name
    end = _end(name)
    stem = name.removesuffix(end)
    digest = hashlib.sha256(stem.encode(errors="surrogatepass"))
    return f"{OTHER}{digest.hexdigest()[:32]}{end}"


def tritons_names(found: dict[str, str], filename: str) -> dict[str, str]:
    """The paths of a kernel's files by the names that Triton has for them.

    ``found`` has the paths by `stored_name`; ``filename`` is what Triton calls the metadata file.
    """
    named = stored_name(filename)
    if named == filename:
        return found
    ours, theirs = named.removesuffix(_end(named)), filename.removesuffix(_end(filename))
    paths = {}
    for name, path in found.items():
        is_other = name.startswith(f"{ours}.")
        paths[f"{theirs}{name.removeprefix(ours)}" if is_other else name] = path
    return paths


def can_be_named(name: str) -> bool:
    """Whether this process's locale has the letters of a file's name: a kernel's may be any that Python allows."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _fits(name: str) -> bool:
    return can_be_named(name) and len(os.fsencode(name)) <= MOST_NAME_BYTES


def _end(name: str) -> str:
    """How a name ends: ``.json``, ``.cubin``; nothing where that is not plain."""
    if name.endswith(AUTOTUNE):
        return AUTOTUNE
    stem, dot, end = name.rpartition(".")
    is_plain = end.isascii() and end.isalnum() and len(end) <= _MOST_LETTERS
    return f".{end}" if stem and dot and is_plain else ""
