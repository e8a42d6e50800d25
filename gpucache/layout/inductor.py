"""Which files in a root are caches of TorchInductor, told by their names alone: nothing here looks at the disk.

Read in torch 2.13.0: `_inductor/codecache.py` (`get_path`, `write_atomic`, `FxGraphCache`, `CacheBase`), `_inductor/
triton_bundler.py`, `_functorch/_aot_autograd/autograd_cache.py`, and seen in what it leaves.
"""

from __future__ import annotations

import re

_HASH = "[a-z2-7]{51,52}"
_KEPT = re.compile(
    rf"""
      ([a-z2-7]{{2}})/[a-z2-7]\1[a-z2-7]{{40,}}(?:\.[A-Za-z0-9_.]+)?   # code: <two letters>/<hash>.py, .cpp, .so, …
    | fxgraph/[a-z2-7]{{2}}/{_HASH}/{_HASH}
    | aotautograd/{_HASH}/{_HASH}
    | (?:precompiled_headers/)?locks/{_HASH}\.lock
    | cache/[0-9a-f]{{64}}
    | precompiled_headers/{_HASH}\.h(?:\.gch|\.pch)?
    """,
    re.VERBOSE,
)
_WRITING = re.compile(
    rf"(?:[a-z2-7]{{2}}|fxgraph/[a-z2-7]{{2}}/{_HASH}|aotautograd/{_HASH}|cache)/\.[0-9]+\.[0-9]+\.tmp"
)
_GRAPH = re.compile(rf"(?:fxgraph/[a-z2-7]{{2}}|aotautograd)/{_HASH}")
_CODE = re.compile(r"[a-z2-7]{2}")
BUNDLE = re.compile(r"tmp\.[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""What a directory is called, beside Triton's keys, while the files of a bundle are unpacked into it."""


def is_cache(path: str) -> bool:
    """Whether a file, by its path below the root, is surely one of Inductor's caches."""
    if is_temporary(path):
        return True
    return _KEPT.fullmatch(path) is not None


_CODE_UNIT = re.compile(r"(?:[a-z2-7]{2}|locks)/([a-z2-7]{43,})(?:\.[A-Za-z0-9_.]+)?")
_LEVELS = {"code": 1, "locks": 1, "aotautograd": 2, "fxgraph": 3}


def unit(path: str) -> str | None:
    """Which unit a file belongs to that may be removed alone, by its path below the root; None for what is to stay.

    Files with one hash among the code, and the lock of that hash, are one unit, named by the hash. A file of a graph is
    one by itself, named by its path. Headers stay, and so does what is no cache for sure.
    """
    if path.endswith(".h") or _KEPT.fullmatch(path) is None:
        return None
    if path.startswith(("fxgraph/", "aotautograd/")):
        return path
    match = _CODE_UNIT.fullmatch(path)
    return None if match is None else match[1]


_GRAPHS = "fxgraph/", "aotautograd/"
_NO_CODE = ".h", ".lock", ".gch", ".pch"
_LONGEST_NAME = 100
"""Bytes: a name in a tar is no longer (ustar)."""


def carried_unit(path: str) -> str | None:
    """Which unit a file is of, if archives may carry it by this path below the root; else None.

    The rule by which names in an archive are judged: ``fxgraph/<xx>/<hash>/<hash>``, ``aotautograd/<hash>/<hash>``,
    ``<xx>/<hash>.<ending>``, of letters, digits, ``_`` and single dots, so that no part of a path is ``..``. Locks are
    of one node, headers are found by paths, ``cache`` is rewritten in place: these stay.
    """
    name = path.rpartition("/")[2]
    if len(name) > _LONGEST_NAME or ".." in name or name.endswith((".", *_NO_CODE)):
        return None
    if not path.startswith(_GRAPHS) and _CODE_UNIT.fullmatch(path) is None:
        return None
    return unit(path)


def is_graph(path: str) -> bool:
    """Whether a file, by its path below the root, is a graph's, which torch unpickles: whoever wrote it runs code."""
    return path.startswith(_GRAPHS)


def levels(name: str) -> int:
    """How many levels below a directory in the root its files are, some of which may go; 0 where none may."""
    return _LEVELS.get(bucket(name), 0)


def is_of_one_graph(path: str) -> bool:
    """Whether a directory, by its path below the root, has the files of one graph."""
    return _GRAPH.fullmatch(path) is not None


def is_temporary(path: str) -> bool:
    """Whether a file, by its path below the root, is one that Inductor has not finished."""
    return _WRITING.fullmatch(path) is not None


def bucket(name: str) -> str:
    """The bucket that a name directly below the root belongs to: ``code`` for each directory of two letters."""
    return "code" if _CODE.fullmatch(name) else name


def private_directories(root: str) -> tuple[str, ...]:
    """Those of TorchInductor's below a root that hold locks (torch 2.13.0 `_inductor/codecache.py` `get_lock_dir`)."""
    return f"{root}/locks", f"{root}/precompiled_headers"
