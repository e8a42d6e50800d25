"""Turns the plug-in on where a Python that can import gpucache imports Triton; on `PYTHONPATH` under `gpucache run`.

Python imports the first `sitecustomize` on its path at every start (`site.execsitecustomize`, CPython 3.6 to 3.14).
So this one sees in the very interpreter that will launch kernels whether gpucache is there: a shell script between
`gpucache run` and that interpreter may have activated any environment. Where another one on the path would have been
imported without this one, it is imported now: with the path that it would have had, its errors told by Python as ever,
and the name `sitecustomize` is its own. `usercustomize` is not touched.

`TRITON_CACHE_MANAGER` is set once Triton is imported, and not before: a process hands its environment on, perhaps to a
Python that lacks gpucache, in which Triton would fail inside a kernel launch. A value of the user's holds. Where
gpucache cannot be imported, its manager is taken out of the environment, so that Triton compiles as without gpucache.

With `GPUCACHE_REMEMBER_KEY=1` Triton has the key that was kept for it (`gpucache.triton.remember`) before anything asks
for that, which on a machine without a GPU is before the plug-in is loaded.

Every Python of a job reads this file, whatever its version and packages: it is also Python 2, and imports nothing of
gpucache but for that. Not reached are `python -S`, `-E` and `-I`, and a process whose `PYTHONPATH` was replaced.
"""

import os
import sys

_OURS = "gpucache.triton:DeviceCacheManager"
_NAME = "sitecustomize"
_OLDEST = (3, 10)  # Python for gpucache, as `pyproject.toml` says
_LAST = "triton.testing"
"""What Triton imports once all that makes its key is there (`triton/__init__.py` of 3.2.0 to 3.9.0)."""


class _BeforeTriton:
    """A finder that finds nothing: it is asked first, and so learns that Triton is about to be imported.

    It stays among the finders when that has happened, since Python goes through their list at this moment. Where Triton
    is not found, it is asked again: a program may put the place of Triton on its path later.
    """

    is_asking = False

    def find_spec(self, name, path=None, target=None):
        # type: (str, object, object) -> None
        """Set the manager before the search for Triton goes on. Never raises, and finds nothing."""
        if name == _LAST:
            _remember_key()
        if name != "triton" or self.is_asking or "triton" in sys.modules:
            return
        self.is_asking = True
        try:
            _set_manager()
        finally:
            self.is_asking = False


def _set_manager():
    # type: () -> None
    """Have Triton use the plug-in, if gpucache is there and the user has chosen no other manager."""
    environ = os.environ
    chosen = environ.get("TRITON_CACHE_MANAGER")
    if chosen and chosen != _OURS:
        return
    is_disabled = environ.get("GPUCACHE_DISABLE") == "1"
    if _has_plugin():
        if not is_disabled:
            environ["TRITON_CACHE_MANAGER"] = _OURS
        return
    environ.pop("TRITON_CACHE_MANAGER", None)
    if not is_disabled and _is_there("triton"):
        _tell()


def _remember_key():
    # type: () -> None
    """Have Triton use the key that was kept for it; where none was, the plug-in keeps one, once it is asked."""
    try:
        if _keeps_key():
            __import__("gpucache.triton.remember")
            sys.modules["gpucache.triton.remember"].remember_key(compute=False)
    except Exception:
        pass  # then Triton makes its key


def _keeps_key():
    # type: () -> bool
    """Whether the environment, or a file of settings, asks for that, in a Python with the plug-in."""
    said = os.environ.get("GPUCACHE_REMEMBER_KEY")
    if said and said != "1":
        return False
    if os.environ.get("TRITON_CACHE_MANAGER") != _OURS or not _has_plugin():
        return False
    if said:
        return True
    __import__("gpucache.configuration")
    settings = sys.modules["gpucache.configuration"].environ()
    return bool(settings.get("GPUCACHE_REMEMBER_KEY") == "1")


def _has_plugin():
    # type: () -> bool
    """Whether this Python could import gpucache, and not another package of that name; nothing is imported."""
    return sys.version_info >= _OLDEST and _is_there("gpucache.triton.manager")


def _is_there(module):
    # type: (str) -> bool
    """Whether a module would be found, asking as ``import`` does, but for each package's own code.

    A mere directory of that name, which Python takes for a namespace, is no such module.
    """
    return getattr(_found(module), "loader", None) is not None


def _found(module):
    # type: (str) -> object
    """The spec of a module that the finders find; None where they find none."""
    path = None
    package, _, _ = module.rpartition(".")
    if package:
        path = getattr(_found(package), "submodule_search_locations", None)
        if path is None:
            return None
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(module, path, None)
        except Exception:
            continue  # a finder of the program's, which is too old or broken
        if spec is not None:
            return spec
    return None


def _tell():
    # type: () -> None
    """Say that Triton is on its own here: once for all ranks of a job on this node, by `gpucache/once.py`."""
    way_out = "install gpucache-devices there"
    if sys.version_info < _OLDEST:
        way_out = "use Python %d.%d or a later one there" % _OLDEST
    text = (
        "gpucache: %s cannot import gpucache, so that each rank compiles each kernel: "
        "%s, or start with `gpucache run --no-plugin`" % (sys.executable or "this Python", way_out)
    )
    try:
        import runpy

        once = runpy.run_path(os.path.join(os.path.dirname(_HERE), "once.py"))
        if not once["first_in_job"](text, os.environ):
            return
    except Exception:
        pass  # then each process says it
    try:
        sys.stderr.write(text + "\n")
    except Exception:
        return  # closed or full


def _import_shadowed():
    # type: () -> None
    """Import the `sitecustomize` that Python would have imported, if there is one, under the path without this one."""
    sys.path[:] = [place for place in sys.path if not _is_here(place)]
    this = sys.modules.pop(_NAME, None)
    try:
        __import__(_NAME)
    except BaseException as error:
        if this is not None:
            sys.modules[_NAME] = this  # for whoever is importing this one
        if not isinstance(error, ImportError) or getattr(error, "name", _NAME) != _NAME:
            raise


def _is_here(place):
    # type: (str) -> bool
    """Whether a place on the path is the directory of this file."""
    try:
        return os.path.abspath(place) == _HERE
    except Exception:
        return False  # relative, and the current directory is gone


_HERE = os.path.dirname(os.path.abspath(__file__))
if sys.version_info >= (3, 4):
    sys.meta_path.insert(0, _BeforeTriton())
    if "triton" in sys.modules:  # imported by a `.pth` file
        _set_manager()
_import_shadowed()
