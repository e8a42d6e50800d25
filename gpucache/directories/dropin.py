"""Drop-ins for the four functions of torch's `torch/_inductor/runtime/cache_dir_utils.py` (2.13.0, same in 2.15.0).

They have the same names, results and effects, so that torch and gpucache always name the same directory. They differ
only where torch's behaviour is a defect:

- a variable set to ``""`` counts as unset (torch caches in the current directory, or names ``""``);
- `temporary_cache_dir` takes `TRITON_CACHE_DIR` away while it lasts (torch leaves Triton in the old directory);
- the root is made with mode 0700, and vetted (`gpucache.disk.vetting`), when its value changes and not at every call.

They read and write ``os.environ``, because that is their contract in torch; nothing else in gpucache writes it but
`gpucache.use`.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager

from gpucache import environment
from gpucache.layout import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


_get = os.environ.get
_INDUCTOR_ROOT = environment.INDUCTOR_ROOT.name
_TRITON_DIRECTORY = environment.TRITON_DIRECTORY.name
_REDIRECTED = (_INDUCTOR_ROOT, _TRITON_DIRECTORY)
# The value of TORCHINDUCTOR_CACHE_DIR that was last made and vetted, and the prefix of its device directories. One
# tuple, so that threads see both or neither.
_settled: tuple[str | None, str] = (None, "")


def cache_dir() -> str:
    """The root, `TORCHINDUCTOR_CACHE_DIR` or else the default: an absolute path, which is made and written back.

    A change of the variable is honoured at the next call. A directory that is deleted later is not made again.

    Raises:
        UnsafeDirectoryError: somebody else could plant code in the root; the environment is left as it was.
        ProvisionError: the root cannot be made.
    """
    value = _get(_INDUCTOR_ROOT)
    if value and value == _settled[0]:
        return value
    return _settle(value)


def default_cache_dir() -> str:
    """``<temporary directory>/torchinductor_<user>``; nothing is made."""
    return paths.default_root(os.environ)


def triton_cache_dir(device: int) -> str:
    """`TRITON_CACHE_DIR` as it is, whatever the device; else ``<cache_dir()>/triton/<device>``, which is not made.

    ``device`` is the CUDA ordinal as torch passes it, joined unmapped: under a mask that is not the directory of
    `DeviceCacheRegistry`, unless `TRITON_CACHE_DIR` is set, as `gpucache run` does.

    Raises:
        UnsafeDirectoryError, ProvisionError: as `cache_dir`.
    """
    directory = _get(_TRITON_DIRECTORY)
    if directory:
        return directory
    value = _get(_INDUCTOR_ROOT)
    settled = _settled
    if not value or value != settled[0]:
        _settle(value)
        settled = _settled
    return settled[1] + str(device)


@contextmanager
def temporary_cache_dir(directory: str) -> Iterator[None]:
    """Put both caches under ``directory`` for a while; the directory is neither made nor deleted.

    Both variables are restored, absence included, and Inductor's in-memory caches are cleared on both ways when
    Inductor is loaded. Process-wide, as in torch: not for threads that compile at the same time.
    """
    saved = {name: _get(name) for name in _REDIRECTED}
    os.environ[_INDUCTOR_ROOT] = directory
    os.environ.pop(_TRITON_DIRECTORY, None)
    try:
        _clear_inductor()
        yield
    finally:
        _clear_inductor()
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _settle(value: str | None) -> str:
    """Make and vet the root that ``value`` stands for, write it back, and remember it."""
    global _settled
    directory = os.path.abspath(value or default_cache_dir())
    _make(directory)
    os.environ[_INDUCTOR_ROOT] = directory
    prefix = os.path.join(directory, "triton", "")
    _settled = (directory, prefix)
    return directory


def _make(directory: str) -> None:
    """Make a root where it is missing, and vet it unless `GPUCACHE_DISABLE=1`."""
    from gpucache import configuration
    from gpucache.disk.files import OPEN_ABOVE, make_directory
    from gpucache.disk.vetting import Trust, vet

    environ = configuration.environ(root=directory)
    if environment.DISABLE.read(environ):
        os.makedirs(directory, exist_ok=True)
        return
    trust = Trust.parse(environ).in_root(directory)
    if not vet(directory, trust):
        make_directory(directory, OPEN_ABOVE)
        vet(directory, trust)  # another user may have made it first


def _clear_inductor() -> None:
    inductor = sys.modules.get("torch._inductor.utils")
    if inductor is not None:
        inductor.clear_caches()
