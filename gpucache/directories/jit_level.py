"""What is put between a JIT cache's directory and the software's files: an architecture, or an extension's whole ABI.

The Python and the torch of a level are those of the program, as far as `jit_python` knows them. Where they are not the
program's, its flags are others than those of what it finds there, and it builds that again, in the same place.
"""

from __future__ import annotations

import os

from gpucache.disk.door import read_limited
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Literal

    from gpucache.directories.jit_python import Python
    from gpucache.layout.jit_cache import Level

    Unknown = Literal["no-arch", "several-archs", "no-torch"]

_MOST_BYTES = 4096
_TORCH_VERSION = "torch/version.py"


class LevelOrWhy(Value):
    """The name of a level, or why there can be none: one of the two is set, or neither where none is needed."""

    name: str | None = None
    unknown: Unknown | None = None


def level_of(wanted: Level, archs: Sequence[str], python: Callable[[], Python]) -> LevelOrWhy:
    """The level that a cache needs in a process that may use devices of these architectures (``sm_90``).

    ``python`` tells which Python the process is of; it is only asked where the level depends on that.
    """
    if wanted == "none":
        return LevelOrWhy()
    if wanted == "arch":
        return _only(archs)
    found = python()
    torch = torch_version(found.path)
    if torch is None:
        return LevelOrWhy(unknown="no-torch")
    if torch.endswith("+cpu"):
        return LevelOrWhy(f"{found.tag}-torch{torch}")
    arch = _only(archs)
    if arch.name is None:
        return arch
    return LevelOrWhy(f"{found.tag}-torch{torch}-{arch.name}")


def _only(archs: Sequence[str]) -> LevelOrWhy:
    if not archs:
        return LevelOrWhy(unknown="no-arch")
    if len(archs) > 1:
        return LevelOrWhy(unknown="several-archs")
    return LevelOrWhy(archs[0])


def torch_version(path: Sequence[str]) -> str | None:
    """The version of the torch that a Python with this ``sys.path`` imports, with its CUDA (``2.13.0+cu130``).

    None where there is no torch, or its version cannot be the name of a directory. Nothing is imported, since
    torch takes seconds.
    """
    for directory in path:
        try:
            data = read_limited(os.path.join(directory or ".", _TORCH_VERSION), _MOST_BYTES)
        except OSError:
            continue
        return _version_in(data.decode("utf-8", "replace"))
    return None


def _version_in(text: str) -> str | None:
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if name.strip() == "__version__" and equals:
            version = value.strip().strip("'\"")
            letters = version.replace(".", "").replace("+", "").replace("-", "").replace("_", "")
            return version if letters.isalnum() and letters.isascii() else None
    return None
