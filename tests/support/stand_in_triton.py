"""A package ``triton`` of a few small files, whose own key is made by Triton's function, word for word."""

from __future__ import annotations

from pathlib import Path

TRITON_KEY = """
import functools, hashlib, os, sysconfig
from .. import __version__

@functools.lru_cache()
def triton_key():
    import pkgutil
    TRITON_PATH = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    contents = []
    # frontend
    with open(__file__, "rb") as f:
        contents += [hashlib.sha256(f.read()).hexdigest()]
    # compiler
    path_prefixes = [
        (os.path.join(TRITON_PATH, "compiler"), "triton.compiler."),
        (os.path.join(TRITON_PATH, "backends"), "triton.backends."),
    ]
    for path, prefix in path_prefixes:
        for lib in pkgutil.walk_packages([path], prefix=prefix):
            with open(lib.module_finder.find_spec(lib.name).origin, "rb") as f:
                contents += [hashlib.sha256(f.read()).hexdigest()]

    # backend
    libtriton_hash = hashlib.sha256()
    ext = sysconfig.get_config_var("EXT_SUFFIX").split(".")[-1]
    with open(os.path.join(TRITON_PATH, "_C", f"libtriton.{ext}"), "rb") as f:
        while True:
            chunk = f.read(1024**2)
            if not chunk:
                break
            libtriton_hash.update(chunk)
    contents.append(libtriton_hash.hexdigest())
    # language
    language_path = os.path.join(TRITON_PATH, 'language')
    for lib in pkgutil.walk_packages([language_path], prefix="triton.language."):
        with open(lib.module_finder.find_spec(lib.name).origin, "rb") as f:
            contents += [hashlib.sha256(f.read()).hexdigest()]
    return f'{__version__}' + '-'.join(contents)
"""
"""After Triton 3.9.0 `runtime/cache.py`; before 3.6 the same is in `compiler/compiler.py`."""

_PACKAGES = ("", "runtime", "compiler", "backends", "backends/nvidia", "language", "language/extra")
_MODULES = (
    *("compiler/errors", "backends/driver", "backends/nvidia/driver", "language/core"),
    *("language/extra/libdevice", "testing", "tools"),
)
LIBRARY = "_C/libtriton.so"


def make(library: Path, home: str = "runtime/cache", triton_key: str = TRITON_KEY) -> Path:
    """Make the package in a directory, and return its own. ``home`` is the module that has `triton_key`."""
    made = library / "triton"
    for name in _PACKAGES:
        (made / name).mkdir(parents=True)
        (made / name / "__init__.py").write_text(f"# {name}\n")
    for name in _MODULES:
        (made / f"{name}.py").write_text(f"# {name}\n")
    module = home.replace("/", ".")
    (made / "__init__.py").write_text(
        f"__version__ = '3.9.0'\nimport triton.{module}\nimport triton.testing\n"
    )
    (made / f"{home}.py").write_text(triton_key)
    (made / "_C").mkdir()
    (made / LIBRARY).write_bytes(bytes(range(256)) * 4096)
    return made
