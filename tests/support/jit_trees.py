"""What JIT compilers leave in a root, as seen of real ones: files of their names, of any age, 1,000 bytes a unit."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

HOUR = 3600.0
DAY = 24 * HOUR
LEVEL = "cp311-torch2.13.0+cpu"

HASH = "0123456789abcdef" * 4
UNITS: dict[str, dict[str, dict[str, int]]] = {
    "flashinfer": {
        ".cache/flashinfer/0.7.2/90a/cached_ops/page": {"page.so": 900, "build.ninja": 100},
    },
    "deepgemm": {"cache/kernel.gemm.0123": {"kernel.cubin": 900, "kernel.cu": 100}},
    "tilelang": {
        f"0.1.15/linux-x86_64/kernels/{HASH}": {
            "kernel_lib.so": 800,
            "params.json": 100,
            "host.cu": 100,
        },
    },
    "cute-dsl": {f"cute_dsl_{HASH}.mlir": {"": 1000}},
    "quack": {f"fingerprint/{HASH}.o": {"": 1000}},
    "tvm-ffi": {"add_3acd30086a5fd9b7": {"add.so": 800, "main.cpp": 100, "build.ninja": 100}},
    "torch-extensions": {f"{LEVEL}/one": {"one.so": 800, "one.o": 100, "build.ninja": 100}},
    "aiter": {"sm_90/module_one.so": {"": 900, "../build/module_one/one.o": 100}},
    "cupy": {"0123456789abcdef0123456789abcdef01234567.cubin": {"": 1000}},
    "warp": {
        "1.19.0/wp___main___09f3766": {
            "wp___main___09f3766.cpu0eee9287.o": 700,
            "wp___main___09f3766.cpp": 200,
            "wp___main___09f3766.meta": 100,
        },
    },
    "numba": {"g_8878c793/nb.f-2.py311.nbi": {"": 100, "../nb.f-2.py311.1.nbc": 900}},
    "cuda-core": {"entries/aa/" + HASH[:62]: {"": 1000}},
    "jax": {f"jit_f-{HASH}-cache": {"": 992, f"../jit_f-{HASH}-atime": 8}},
    "vllm": {"sm_90/torch_compile_cache/abc123": {"rank_0/graph.py": 1000}},
}
"""By cache the name of one unit, and the sizes of its files, below it; ``""`` is the unit itself."""


def wrote(path: Path, size: int, age_s: float) -> Path:
    """A file of so many bytes, last changed and read so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return aged(path, age_s)


def aged(path: Path, age_s: float) -> Path:
    """Make a file as old as that."""
    used = time.time() - age_s
    os.utime(path, (used, used), follow_symlinks=False)
    return path


def unit(root: Path, cache: str, age_s: float = HOUR, name: str | None = None) -> Path:
    """One unit of a cache, of 1,000 bytes; ``name`` stands in the place of its own last letters."""
    ((own, files),) = UNITS[cache].items()
    base = root / "jit" / cache
    called = own if name is None else named(own, name)
    for below, size in files.items():
        where = os.path.normpath(f"{called}/{below}") if below else called
        if name is not None and ".." in below:
            where = named(where, name)
        wrote(base / where, size, age_s)
    return base / called


def named(own: str, name: str) -> str:
    """Another name of the same kind: the first word that is a unit's own becomes ``name``."""
    for word in ("page", "gemm", "module_one", "one", "add_", "nb.f", "__main__", HASH[:62]):
        if word in own.rpartition("/")[2]:
            above, slash, last = own.rpartition("/")
            return f"{above}{slash}{last.replace(word, name)}"
    raise ValueError(own)


def all_files(root: Path) -> list[str]:
    """The paths of all files of JIT caches, below ``jit``."""
    base = root / "jit"
    return sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())


def wrote_bytes(path: Path, data: bytes) -> Path:
    """A file with this content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def whole_library() -> bytes:
    """The smallest 64-bit ELF object that is as long as its header says: the header, and one empty section."""
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, 64, 0, 64, 56, 0, 64, 1, 0)
    return ident + header + bytes(64)
