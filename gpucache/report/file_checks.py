"""What is wrong with one file of an entry, by itself. Reads only, and leaves no access time (`gpucache.reading`)."""

from __future__ import annotations

import json
import os
import stat

from gpucache.disk.reading import quietly, read
from gpucache.kernels.elf import is_whole_elf
from gpucache.kernels.metadata import Metadata
from gpucache.layout.keys import is_key_of


def no_file(found: os.stat_result | None) -> str | None:
    """Why something is no file; None for a file."""
    if found is None:
        return "it is not there"
    if stat.S_ISREG(found.st_mode):
        return None
    kind = {stat.S_IFLNK: "symbolic link", stat.S_IFDIR: "directory", stat.S_IFIFO: "FIFO"}
    return f"a {kind.get(stat.S_IFMT(found.st_mode), 'device or socket')} is in its place"


def complaint(path: str, metadata: bool, binary: bool) -> tuple[str, str] | None:
    """What is wrong with a file of a kernel or a file that stands for itself: a code and a fact.

    Raises:
        OSError: it cannot be read.
    """
    if metadata:
        try:
            said = Metadata.parse(read(path))
        except ValueError as error:
            return "metadata-torn", str(error)
        own = is_key_of(os.path.basename(os.path.dirname(path)), said.hash or "")
        return (
            None if own else ("key-mismatch", f"it is of another kernel, whose hash is {said.hash}")
        )
    if path.endswith(".autotune.json"):
        return (
            None
            if _timings(read(path))
            else ("autotune-torn", "it does not parse, or has no timings")
        )
    if binary and not is_whole_elf(path, quietly):
        size = os.lstat(path).st_size
        return (
            "binary-cut",
            f"its {size} bytes are no ELF object, or fewer than its header says"
            if size
            else "it is empty",
        )
    return None


def _timings(text: bytes) -> bool:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and "configs_timings" in said
