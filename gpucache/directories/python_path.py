"""The directory that `gpucache run` puts on `PYTHONPATH`, by which each Python of a command turns the plug-in on.

What happens there is in that directory's one file, `gpucache/site/sitecustomize.py`.
"""

from __future__ import annotations

import os

from gpucache import environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_TAIL = os.path.join("gpucache", "site")
SITE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "site")
"""The directory. It is named in `PYTHONPATH` only, and never imported from by gpucache itself."""


def unnamable() -> str | None:
    """Why the directory cannot be put on `PYTHONPATH`, in words; None where it can."""
    if os.pathsep in SITE:
        return f"{SITE} has a {os.pathsep!r} in it, by which {environment.PYTHON_PATH} parts its directories"
    return None


def with_site(python_path: str | None) -> str:
    """A value of `PYTHONPATH` with the directory in front, where no other `sitecustomize` can hide that one.

    The user's part is kept letter for letter: an empty part of it means the current directory.
    """
    if not python_path:
        return SITE
    rest = without_site(python_path)
    if rest is None:
        return SITE
    return f"{SITE}{os.pathsep}{rest}"


def without_site(python_path: str) -> str | None:
    """A value of `PYTHONPATH` without the directory, also that of another installation; None where nothing is left."""
    parts = python_path.split(os.pathsep)
    kept = [part for part in parts if not _is_site(part)]
    if not kept:
        return None
    return os.pathsep.join(kept)


def is_on_path(environ: Mapping[str, str]) -> bool:
    """Whether Pythons of this environment find the directory; not whether they can import gpucache."""
    python_path = environment.PYTHON_PATH.text(environ) or ""
    return any(_is_site(part) for part in python_path.split(os.pathsep))


def manager(environ: Mapping[str, str]) -> str | None:
    """The cache manager that Triton will use in a Python that can import gpucache; None for Triton's own."""
    chosen = environment.MANAGER.text(environ)
    if chosen is None and is_on_path(environ) and hidden_by(environ) is None:
        return environment.OUR_MANAGER
    return chosen


def hidden_by(environ: Mapping[str, str]) -> str | None:
    """The `sitecustomize` that Python imports in the place of the directory's, since a script has put it before that.

    None where there is none. Whether that one imports the next in its turn, as some do, cannot be told.
    """
    python_path = environment.PYTHON_PATH.text(environ) or ""
    for part in python_path.split(os.pathsep):
        if _is_site(part):
            return None
        found = _sitecustomize(part)
        if found is not None:
            return found
    return None


def _sitecustomize(part: str) -> str | None:
    """The `sitecustomize` that Python finds in a part of the path: a module, compiled, a package, or in a zip file."""
    import importlib
    from importlib.machinery import PathFinder

    importlib.invalidate_caches()
    try:
        spec = PathFinder.find_spec("sitecustomize", [part])
    except Exception:
        return None  # a zip file that cannot be read
    if spec is None or spec.loader is None:  # a mere directory of the name hides nothing
        return None
    return spec.origin


def _is_site(part: str) -> bool:
    """Whether a part of the path is this directory, or that of another gpucache, and not one of the user's."""
    path = os.path.normpath(part)
    if path == SITE:
        return True
    if not path.endswith(os.sep + _TAIL):
        return False
    return os.path.isfile(os.path.join(os.path.dirname(path), "once.py"))
