"""The files whose digests make Triton's own key, which is a part of the key of each kernel: looked at, and not read.

`triton_key` (`compiler/compiler.py` of Triton 3.2.0 and 3.4.0, `runtime/cache.py` of 3.6.0 and 3.9.0) is the version
of Triton, followed by SHA-256 digests joined with ``-``: of the module that has this function, of every module that
`pkgutil.walk_packages` finds in ``compiler``, ``backends`` and ``language``, and of ``_C/libtriton.so``, 500 MB, for
which all the time goes. `look` finds these files anew at each call, so that a module more or less is seen as well.

Nothing here is a list of one Triton's files: `check` compares the digests in a key with the files that were looked at,
and a Triton that hashes anything else is refused.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES, all_suffixes
from typing import NamedTuple

from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_WALKED = ("compiler", "backends", "language")
_PACKAGE = "__init__"
_MOST_FILES = 1000
_DIGEST = 64
"""Characters of a SHA-256 in hexadecimal."""


class File(NamedTuple):
    """A file as it was when somebody looked at it; a link was followed."""

    path: str
    """From the directory of the installation."""
    size: int
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int


class Installation(Value):
    """An installed Triton, as far as its key depends on it."""

    directory: str
    """The absolute path of the package ``triton``."""
    triton: str
    """The version that the running Triton gives itself."""
    suffix: str
    """How the names of this Python's extension modules end."""
    files: tuple[File, ...]

    def packages(self) -> Iterator[str]:
        """The directories of packages, from the directory of the installation: ``backends/nvidia``."""
        for file in self.files:
            directory, name = os.path.split(file.path)
            if name.startswith(f"{_PACKAGE}."):
                yield directory


def look(module: str, triton: str) -> Installation:
    """Look at the files of a Triton of this version, whose ``module`` is the file that has `triton_key`.

    Raises:
        OSError: one cannot be seen, or is no plain file: Triton is in an archive, or its library is missing.
        ValueError: a package is behind a link, as in an editable installation, or there are too many files.
    """
    directory = os.path.dirname(os.path.dirname(os.path.abspath(module)))
    suffix = EXTENSION_SUFFIXES[0]
    own = os.path.relpath(os.path.abspath(module), directory)
    names = {own, _library(suffix)}
    for package in _WALKED:
        names.update(_modules(directory, package))
    files = tuple(_seen(directory, name) for name in sorted(names))
    return Installation(directory, triton, suffix, files)


def _library(suffix: str) -> str:
    """The library's path, as `triton_key` makes it."""
    ending = suffix.rpartition(".")[2]
    return f"_C/libtriton.{ending}"


def _modules(directory: str, package: str) -> Iterator[str]:
    """All modules of a package and of the packages in it, its own ``__init__`` too, which no key has."""
    suffixes = tuple(all_suffixes())
    waiting = [package]
    for name in waiting:
        with os.scandir(f"{directory}/{name}") as items:
            for item in items:
                path = f"{name}/{item.name}"
                if item.name.endswith(suffixes):
                    yield path
                elif _is_package(item, suffixes):
                    waiting.append(path)
        if len(waiting) > _MOST_FILES:
            raise ValueError(f"{directory} has more than {_MOST_FILES} packages")


def _is_package(item: os.DirEntry[str], suffixes: tuple[str, ...]) -> bool:
    """Whether something in a package is another one, as `pkgutil.iter_modules` decides."""
    if not item.is_dir():
        return False
    names = os.listdir(item.path)
    if not any(f"{_PACKAGE}{suffix}" in names for suffix in suffixes):
        return False
    if item.is_symlink():
        raise ValueError(f"{item.path} is a link: Triton is installed for its own development")
    return True


def _seen(directory: str, name: str) -> File:
    found = os.stat(f"{directory}/{name}")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{directory}/{name} is no plain file")
    times = (found.st_mtime_ns, found.st_ctime_ns)
    return File(name, found.st_size, *times, found.st_dev, found.st_ino)


# ---- keys


def is_key(key: object, triton: str) -> bool:
    """Whether something has the form of a key that this version of Triton makes."""
    if not isinstance(key, str) or not key.startswith(triton):
        return False
    digests = key.removeprefix(triton).split("-")
    return all(map(_is_digest, digests))


def _is_digest(text: str) -> bool:
    return len(text) == _DIGEST and set(text) <= set("0123456789abcdef")


def check(key: str, module: str, installation: Installation) -> None:
    """See whether a key that Triton has made is one of all the files in ``installation``; ``module`` as in `look`.

    All are read and hashed but for the library, for which one digest must be left. `pkgutil` passes in silence over a
    directory that it cannot list, or a package that cannot be imported, and so a key may lack modules: such a one is
    this process's, and nobody else's.

    Raises:
        OSError: a file cannot be read.
        ValueError: this Triton hashes other files than those, or they have changed meanwhile.
    """
    if not is_key(key, installation.triton):
        raise ValueError("this Triton makes its key in another way")
    first, *others = key.removeprefix(installation.triton).split("-")
    unknown = Counter(others)
    for files in _by_module(installation).values():
        digests = [_digest(file) for file in files]
        found = [digest for digest in digests if unknown[digest]]
        if not found:
            raise ValueError(f"the key of this Triton lacks {files[0]}")
        unknown[found[0]] -= 1
    if first != _digest(module) or unknown.total() != 1:
        raise ValueError("the key of this Triton is of other files too")


def _by_module(installation: Installation) -> dict[str, list[str]]:
    """The paths of the files that may stand for each module that `pkgutil.walk_packages` finds: mostly one."""
    suffixes = sorted(all_suffixes(), key=len, reverse=True)
    found: dict[str, list[str]] = {}
    for file in installation.files:
        suffix = next(suffix for suffix in suffixes if file.path.endswith(suffix))
        package, name = os.path.split(file.path.removesuffix(suffix))
        module = package if name == _PACKAGE else f"{package}/{name}"
        is_walked = package.partition("/")[0] in _WALKED and module not in _WALKED
        if is_walked and "." not in name:
            found.setdefault(module, []).append(f"{installation.directory}/{file.path}")
    return found


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return sha256(file.read()).hexdigest()
