"""Triton's group file ``__grp__<name>``, by which its own manager knows a whole kernel; read and written only here."""

from __future__ import annotations

import json
import os

from gpucache.disk.door import GROUP_FILE_BYTES, open_regular, read_some
from gpucache.disk.files import write_new
from gpucache.disk.reading import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def read_group(path: str) -> dict[str, str] | None:
    """Read the names and paths of a kernel's files from a group file; None for what is no group file.

    Raises:
        OSError: the file cannot be read.
    """
    text = read(path, GROUP_FILE_BYTES)
    try:
        children = json.loads(text)["child_paths"]
        paths = {}
        for name, child in children.items():
            if not isinstance(child, str):
                return None
            paths[name] = child
        return paths if paths and are_plain(paths) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


_NO_NAMES = frozenset(("", ".", ".."))


def are_plain(names: Collection[str]) -> bool:
    """Whether each of these names is that of a file directly in a directory, and no way out of the directory.

    >>> are_plain(["add.json"]), are_plain(["../add.json"]), are_plain([".."])
    (True, False, False)

    Raises:
        TypeError: one of them is no text.
    """
    letters = "".join(names)
    return "/" not in letters and "\0" not in letters and _NO_NAMES.isdisjoint(names)


GROUP = "__grp__"
"""How the name begins of the file by which Triton's own manager knows that a kernel is whole."""

_HEAD_BYTES = 64


def grouped_names(names: Iterable[str]) -> list[str]:
    """Name the metadata files, such as ``add.json``, whose group files (``__grp__add.json``) are among these names."""
    return [group.removeprefix(GROUP) for group in group_files(names)]


def group_files(names: Iterable[str]) -> list[str]:
    """Those of the names in a directory that are group files.

    The files of a kernel that is itself called so are none: ``__grp__add.json`` is one beside ``add.json``, and not
    beside ``__grp____grp__add.json``.
    """
    begun = [name for name in names if name.startswith(GROUP)]
    kernels = {_stem(name.removeprefix(GROUP)) for name in begun if name.startswith(GROUP * 2)}
    return [name for name in begun if _stem(name) not in kernels]


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def begins_as_group(name: str, here: int) -> bool:
    """Whether a file is a group file, whole or torn, whatever its name is now: its text begins with ``child_paths``.

    ``here`` is a descriptor of the directory that it is in.

    Raises:
        OSError: the file cannot be read.
    """
    fd, _ = open_regular(name, os.O_RDONLY, here)
    with open(fd, "rb") as file:
        return b'"child_paths"' in read_some(file, _HEAD_BYTES)


def write_group(directory: str, final: str, group: str | None, names: Iterable[str]) -> None:
    """Write the file by which Triton's own manager finds the group's files, unless there is no group.

    The file names the paths that they have once ``directory`` is renamed to ``final``.

    Raises:
        OSError: the disk refused; nothing is left.
    """
    if group is None:
        return
    children = {name: f"{final}/{name}" for name in names}
    said = json.dumps({"child_paths": children})
    write_new(f"{directory}/{GROUP}{group}", said.encode())


GROUP_BYTES = 1024
"""What a group file takes, about: of a view that is linked to the store nothing else is counted."""
AUTOTUNE = ".autotune.json"
"""How the name of an autotuner's result ends."""

STANDALONE = (".so", AUTOTUNE)
"""How the names of files end that are no stage of a kernel."""
