"""`remember_key`: Triton's own key, for which each process hashes 500 MB, kept in the root (`GPUCACHE_REMEMBER_KEY`).

**What is promised.** A key that is kept is used for files that have the paths, sizes, times of change (mtime and
ctime), devices and inodes that they had while Triton hashed them, and for no others; a module more or less makes
another set of files (`kernels.triton_files`). A key is kept only if this process has looked at the files before and
after Triton's own function, with one result, and if none had changed in the last `SETTLED_S` seconds, since two changes
in quick succession may have one time. Only a root that passes `disk.vetting` is asked.

**Where that ends.** A file that changes between the look and the launch is not seen; nor does Triton see one, which
hashes once in a process. Not seen at all is a change that keeps size, mtime, ctime and inode: a write to the disk past
the file system, a clock that was set back to the nanosecond, a mount that keeps no ctime. Where Triton lies in the
image of a container, its device may have another number at each start, so that each container hashes once.

**How.** Triton's function stays what it is, and whoever has imported its name has it: `functools.lru_cache` keeps its
result, and is filled by one call, for which the code of the function returns the key that was kept.
``triton_key.cache_clear()`` then makes Triton hash again, and `inspect` shows Triton's source. A function that is not
Triton's (`_compile_warmup_pool.py` of Triton 3.9.0 puts a lambda in its place) is left alone.

**When.** With a GPU the plug-in is asked before the key is: `CudaDriver` makes `CudaUtils`, whose library is looked for
by a cache manager (`backends/nvidia/driver.py` of Triton 3.2.0 to 3.9.0). Without one, as in a compile for a target
that is named, the key comes first. There `gpucache run` helps (`site/sitecustomize`), or the program calls
`remember_key` after it has imported Triton, and before it compiles.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from types import FunctionType

from gpucache import configuration
from gpucache.directories.logging_as_set import log_as_set
from gpucache.disk.files import OPEN_ABOVE, make_below_root, make_directory
from gpucache.disk.refusal import may
from gpucache.disk.vetting import Trust, vet, vet_child, vet_file
from gpucache.environment import DISABLE, REMEMBER_KEY
from gpucache.forks import after_fork
from gpucache.kernels import kept_key
from gpucache.kernels.triton_files import Installation, check, look
from gpucache.layout import paths
from gpucache.log import DEBUG, INFO, tell, warn_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Literal

    Outcome = Literal[
        "used",
        "kept",
        "computed before",
        "none kept",
        "too new",
        "refused",
        "off",
        "no Triton",
        "not Triton's",
        "busy",
    ]
    """What came of it.

    ``used``: Triton has the key that was kept, and will not hash. ``kept``: Triton has hashed, and its key is kept now.
    ``computed before``: Triton had hashed already; there is a key that is kept. ``none kept``: there is none, and none
    was to be computed. ``too new``: nor will there be one while a file has changed just now. ``refused``: by
    `disk.vetting`, by the disk, or because this key cannot be remembered. ``off``: it is not asked for. ``no Triton``:
    none is imported. ``not Triton's``: another function is in the place of its own. ``busy``: another thread is at it.
    """

SETTLED_S = 10.0
"""A file that has changed in the last so many seconds may change again without another time."""
_HOMES = ("triton.runtime.cache", "triton.compiler.compiler")
"""The modules that have `triton_key`: since 3.6, and before."""
_OUTCOME = f"each process hashes Triton's library (unset {REMEMBER_KEY} if that is to stay so)"
_MARK = "the key that was kept"
_acting = threading.Lock()
_outcome: Outcome | None = None
"""How it ended in this process, or in the one that this was forked of."""


def remember_key(environ: Mapping[str, str] | None = None, *, compute: bool = True) -> Outcome:
    """Have this process's Triton use the key that is kept in the root, or keep its key there. Never raises.

    Beside any number of processes and threads; once in a process, and not again in those that it forks.
    `GPUCACHE_REMEMBER_KEY` must be ``1``. Where that ends in ``refused``, the log says why, once in a job.

    Args:
        environ: the variables to follow, before what files say; by default ``os.environ``.
        compute: whether to let Triton hash its files now, where no key is kept. That is once for an installation.
    """
    environ = configuration.environ(environ)
    if not REMEMBER_KEY.read_or_default(environ) or DISABLE.read_or_default(environ):
        return "off"
    if not _acting.acquire(blocking=False):
        return "busy"
    try:
        log_as_set(environ)
        return _once(environ, compute)
    except Exception as error:
        # What fails here must fail no launch.
        warn_once("Triton's key is not remembered", error, _OUTCOME)
        return "refused"
    finally:
        _acting.release()


def _once(environ: Mapping[str, str], compute: bool) -> Outcome:
    global _outcome
    if _outcome is not None:
        return _outcome
    function = _tritons_function()
    if function is None:
        return "no Triton"
    _outcome = "refused"  # until it has ended otherwise
    ended = _ended(function, environ, compute)
    _outcome = None if ended in ("none kept", "too new") else ended
    tell(DEBUG, "Triton's key: %s", ended)
    return ended


def _tritons_function() -> Any:
    """The function `triton_key`, or None where Triton has not been imported so far."""
    for name in _HOMES:
        found = getattr(sys.modules.get(name), "triton_key", None)
        if found is not None:
            return found
    return None


def _ended(function: Any, environ: Mapping[str, str], compute: bool) -> Outcome:
    """Use the key that is kept for this process's Triton; else keep one."""
    own = _own_function(function)
    if own is None:
        return "not Triton's"
    installation = _looked(own)
    root = paths.root_for_launch(environ)
    trust = Trust.for_launch(environ).in_root(root)
    _vet(root, installation, trust)
    key = kept_key.kept(root, installation)
    if key is None:
        if not compute:
            return "none kept"
        if _is_recent(installation):
            return "too new"
        _make_place(root, trust)
        kept_key.keep(root, installation, _hashed(function, own, installation))
        return "kept"
    if _is_filled(function):
        return "computed before"
    _fill(function, own, key)
    return "used"


def _is_filled(function: Any) -> bool:
    """Whether Triton has hashed its files in this process."""
    return bool(function.cache_info().currsize)


def _hashed(function: Any, own: FunctionType, installation: Installation) -> str:
    """The key that Triton makes of the files of an installation as they were looked at.

    Raises:
        ValueError: they have changed meanwhile, or are not the files that this Triton hashes.
    """
    module = own.__globals__["__file__"]
    if _is_filled(function):
        # Nobody looked before, and so those may have been other files: hash again, unless that would be for nothing.
        check(function(), module, installation)
        key = own()
    else:
        key = function()
    check(key, module, installation)
    if _looked(own) != installation:
        raise ValueError("Triton's files have changed meanwhile")
    text: str = key
    return text


def _own_function(function: Any) -> FunctionType | None:
    """What Triton has written, without the cache around it; None where another function is in its place."""
    own = getattr(function, "__wrapped__", None)
    if not isinstance(own, FunctionType) or type(function) is not type(_cached):
        return None
    is_tritons = own.__module__ in _HOMES and own.__name__ == "triton_key"
    return own if is_tritons else None


@functools.lru_cache
def _cached() -> None:
    """Be an example of what `functools.lru_cache` makes."""


def _looked(own: FunctionType) -> Installation:
    """The installation of Triton that a function is of.

    Raises:
        OSError: as `triton_files.look`.
        ValueError: as `triton_files.look`; or a package has its modules elsewhere too.
    """
    module = own.__globals__
    installation = look(module["__file__"], str(module["__version__"]))
    for package in installation.packages():
        name = package.replace("/", ".")
        loaded = sys.modules.get(f"triton.{name}")
        if loaded is None:
            continue
        places = [os.path.abspath(place) for place in loaded.__path__]
        if places != [f"{installation.directory}/{package}"]:
            raise ValueError(f"triton.{name} has modules in {places}")
    return installation


def _make_place(root: str, trust: Trust) -> None:
    """Make the directory of the keys, before Triton hashes for it.

    Raises:
        UnsafeDirectoryError: another user was faster.
        OSError: it cannot be made, or not be written.
    """
    make_directory(root, OPEN_ABOVE)
    vet(root, trust)
    for part in ("tritons", "tmp"):
        place = paths.ours(root, part)
        make_below_root(place)
        vet_child(place, trust)
        if not may(place, os.W_OK):
            raise OSError(f"{place} cannot be written")


def _vet(root: str, installation: Installation, trust: Trust) -> None:
    """Refuse what others could have written.

    Raises:
        UnsafeDirectoryError: as `disk.vetting`.
        ProvisionError: as `disk.vetting`.
    """
    vet(root, trust)
    place = paths.ours(root, "tritons")
    for directory in (f"{root}/gpucache", paths.ours(root), place):
        vet_child(directory, trust)
    vet_file(kept_key.path_of(root, installation), trust)


def _is_recent(installation: Installation) -> bool:
    """Whether a file has changed just now, and may change again without another time."""
    latest = (time.time() - SETTLED_S) * 1e9
    for file in installation.files:
        if file.ctime_ns > latest:
            tell(INFO, "Triton's key is not kept yet: %s has changed just now", file.path)
            return True
    return False


def _fill(function: Any, own: FunctionType, key: str) -> None:
    """Have the cache around a function hold a key: by one call, which returns just that.

    Another thread that calls at this moment gets the same key, or hashes.
    """
    tritons = own.__code__
    code = _return_key.__code__
    constants = tuple(key if one == _MARK else one for one in code.co_consts)
    own.__code__ = code.replace(co_consts=constants)
    try:
        function()
    finally:
        own.__code__ = tritons


def _return_key() -> str:
    return "the key that was kept"


@after_fork
def _after_fork_in_child() -> None:
    global _acting
    _acting = threading.Lock()
