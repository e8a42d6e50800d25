"""Make the directories of JIT caches in a root, and find the warm caches that a first run leaves behind."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from gpucache.disk.below import below
from gpucache.disk.default_acl import has_default_acl
from gpucache.disk.files import inside, make_below_root
from gpucache.disk.fitness import statvfs
from gpucache.disk.refusal import may, refusal
from gpucache.disk.vetting import Trust, vet_child
from gpucache.errors import ProvisionError, UnsafeDirectoryError
from gpucache.layout.paths import jit_directory, user_name
from gpucache.values import Value, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpucache.directories.jit_environ import JitPlace
    from gpucache.layout.jit_cache import JitCache


class LeftBehind(Value):
    """A warm cache in the place that a software has used until now, and does not use from now on."""

    cache: JitCache
    path: str
    logical_bytes: int
    """Of all files, as far as was counted."""
    is_all: bool
    """Whether all was counted; a cache of very many files is not."""
    to: str
    """Where the same files would be found from now on, if the cache can be moved."""


def make_directories(
    base: str, places: Sequence[JitPlace], trust: Trust
) -> tuple[list[JitPlace], list[JitPlace]]:
    """Make what is missing for caches that are placed.

    ``<base>/jit`` and the directories of caches get mode 0700; what a software makes below follows its umask. They are
    made whether or not a software would make its own, since some do not. Any number of processes may do so at once: of
    each cache, one process is the one that made its directory.

    Returns:
        The places as they now are: ``not-writable`` where the operating system refused, ``unsafe`` where somebody else
        could plant code. And those whose directory this call made, which were never used before.
    """
    made: list[JitPlace] = []
    now: list[JitPlace] = []
    for place in places:
        if place.outcome != "placed":
            now.append(place)
            continue
        try:
            is_new = _make(base, place, trust)
        except (ProvisionError, UnsafeDirectoryError) as error:
            outcome = "not-writable" if isinstance(error, ProvisionError) else "unsafe"
            now.append(replace(place, outcome=outcome, why=error.problem, variables=()))
            continue
        now.append(place)
        if is_new:
            made.append(place)
    return now, made


def _make(base: str, place: JitPlace, trust: Trust) -> bool:
    """Make the directory of one cache; returns whether this call made it.

    Raises:
        UnsafeDirectoryError: somebody else could plant code in one of the directories.
        ProvisionError: the operating system refused, or nothing can be written there.
    """
    directory = jit_directory(base, place.cache.name)
    _made(jit_directory(base), trust)
    is_new = _made(directory, trust)
    if place.directory is not None:
        _made(place.directory, trust)
    for _, value in place.variables:  # DeepGEMM's, by SGLang's variable
        if os.path.dirname(value) == jit_directory(base):
            _made(value, trust)
    return is_new


def _made(directory: str, trust: Trust) -> bool:
    if not vet_child(directory, trust):
        is_new = _make_for_all(directory)
        vet_child(directory, trust)  # another process may have made it first
        return is_new
    if not may(directory, os.W_OK | os.X_OK):
        raise refusal(directory, _unwritable(directory), "write")
    return False


def _make_for_all(directory: str) -> bool:
    """Make a directory with the mode that a default ACL gives, in a group's root; else for this user alone.

    Returns whether this call made it.
    """
    if not has_default_acl(os.path.dirname(directory)):
        return make_below_root(directory)
    try:
        os.mkdir(directory, 0o777)  # less what the ACL takes
    except FileExistsError:
        return False
    except OSError as error:
        raise refusal(directory, error) from error
    return True


def _unwritable(directory: str) -> OSError:
    found = statvfs(directory)
    is_read_only = found is not None and bool(found.f_flag & os.ST_RDONLY)
    number = errno.EROFS if is_read_only else errno.EACCES
    return OSError(number, os.strerror(number))


# ---- what is left behind

_MOST_NAMES = 20_000


def left_behind(root: str, place: JitPlace, environ: Mapping[str, str]) -> LeftBehind | None:
    """What a software has cached until now, in the place that it uses when no variable is set; None where nothing.

    Called for a cache that is used in the root for the first time. Looks at names and sizes, at 20,000 of them at most.
    """
    if place.directory is None or place.cache.default.startswith("("):
        return None
    to = place.directory
    if place.cache.appended:
        to = f"{to}/{place.cache.appended}"
    for path in _default_paths(place.cache.default, root, environ):
        if inside(to, path):
            continue  # a link of the user's has led there all along
        files, size, is_all = counted(path)
        if files:
            return LeftBehind(place.cache, path, size, is_all, to)
    return None


def _default_paths(pattern: str, root: str, environ: Mapping[str, str]) -> list[str]:
    """The directories that a default of the table stands for in this environment, as far as they exist."""
    import glob
    import tempfile

    home = environ.get("HOME") or os.path.expanduser("~")
    values = {
        "{home}": home,
        "{cache}": environ.get("XDG_CACHE_HOME") or f"{home}/.cache",
        "{tmp}": tempfile.gettempdir(),
        "{user}": user_name(environ),
        "{root}": root,
    }
    for word, value in values.items():
        pattern = pattern.replace(word, glob.escape(value))
    return sorted(path for path in glob.glob(pattern) if os.path.isdir(path))


def counted(directory: str) -> tuple[int, int, bool]:
    """How many files are below a directory, their bytes, and whether these are all: 20,000 names are looked at at most.

    A directory that is not there has none. No link is followed.
    """
    files = size = 0
    for number, item in enumerate(below(directory)):
        if number == _MOST_NAMES:
            return files, size, False
        with suppress(OSError):
            if not item.is_dir(follow_symlinks=False):
                size += item.stat(follow_symlinks=False).st_size
                files += 1
    return files, size, True
