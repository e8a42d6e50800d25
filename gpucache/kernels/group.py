"""Triton's group file ``__grp__<name>``, by which its own manager knows a whole kernel; read and written only here."""

from __future__ import annotations

import json

from gpucache.disk.files import write_new
from gpucache.disk.reading import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def read_group(path: str) -> dict[str, str] | None:
    """The names and paths in a group file; None where it is none.

    Raises:
        OSError: it cannot be read.
    """
    text = read(path)
    try:
        children = json.loads(text)["child_paths"]
        whole = all(is_plain(name) and isinstance(where, str) for name, where in children.items())
        return children if whole and children else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def is_plain(name: object) -> bool:
    """Whether it is a file's name, and no way out of the directory."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\0"} & set(name)


GROUP = "__grp__"
"""How the name begins of the file by which Triton's own manager knows that a kernel is whole."""


def write_group(directory: str, final: str, group: str | None, names: Iterable[str]) -> None:
    """What Triton's own manager reads: the group's files, by the paths they have once the directory is ``final``."""
    if group is not None:
        children = {name: f"{final}/{name}" for name in names}
        write_new(f"{directory}/{GROUP}{group}", json.dumps({"child_paths": children}).encode())


STANDALONE = (".so", ".autotune.json")
"""How the names of files end that are no stage of a kernel."""
