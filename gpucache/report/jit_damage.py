"""Files of other JIT caches that were emptied or cut, and that their software uses or fails on, and never makes again.

Such are left by a full disk, a killed copy or a power cut. What each software does with one was seen with the versions
in `layout.jit_caches`, or read of FlashInfer and torch's jiterator; of AITER and DeepGEMM it is not known. What mends
itself is not judged, nor are formats that only their software can judge. Nothing is unpickled, loaded or run, and no
access time is renewed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from gpucache.disk.below import below
from gpucache.disk.reading import quietly
from gpucache.kernels.elf import ELF_64, HEAD_BYTES, is_whole
from gpucache.report.whole_files import (
    is_whole_pickles,
    is_whole_ptx,
    is_whole_zlib,
    is_whole_zstd,
)
from gpucache.store.jit_units import JitUnit

DamageCode = Literal["unit-empty", "unit-cut", "unit-incomplete", "unit-unreadable"]

CODES: dict[DamageCode, str] = {
    "unit-empty": "a file is empty or zeros, which its software never makes again",
    "unit-cut": "a file is shorter than its own content says, which its software never makes again",
    "unit-incomplete": "a file is missing that another one leads to",
    "unit-unreadable": "a file could not be read",
}
"""What each code means."""

_HEAD_BYTES = 4096
_MOST_BYTES = 2**30
"""Of a longer file only the beginning is judged."""
_MOST_TEXT_BYTES = 2**26
"""No PTX is longer, which is read whole."""


class Damage(NamedTuple):
    """What is wrong with one file of a unit."""

    code: DamageCode
    path: str
    fact: str
    """What was seen, and what the software does with it."""


class _Kind(NamedTuple):
    """The files of a cache that are judged by one measure."""

    name: re.Pattern[str]
    judge: Callable[[str], str | None]
    """What is wrong with a file that is not empty, in words; None where nothing is."""


def _library(path: str) -> str | None:
    with open(path, "rb", opener=quietly) as file:
        head = file.read(HEAD_BYTES)
        size = file.seek(0, os.SEEK_END)
    if not head.startswith(ELF_64):
        return "is no ELF object"
    return None if is_whole(head, size) else f"has {size} bytes, and fewer than its ELF header says"


def _binary(path: str) -> str | None:
    """What is wrong with a cubin, PTX or LTO-IR, which carry no digest: only ELF and PTX tell where they end."""
    with open(path, "rb", opener=quietly) as file:
        head = file.read(HEAD_BYTES)
        size = file.seek(0, os.SEEK_END)
        if head.startswith(b"\x7fELF"):
            whole = is_whole(head, size)
            return None if whole else f"has {size} bytes, and fewer than its ELF header says"
        if head.isascii() and size <= _MOST_TEXT_BYTES:
            file.seek(0)
            return None if is_whole_ptx(file.read()) else "is text that ends too early for PTX"
    return None


def _json(path: str) -> str | None:
    with open(path, "rb", opener=quietly) as file:
        data = file.read(2**24)
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return "is no JSON"
    return None


def _index(path: str) -> str | None:
    return _pickles(path, 2)


def _pickle(path: str) -> str | None:
    return _pickles(path, 1)


def _pickles(path: str, count: int) -> str | None:
    with open(path, "rb", opener=quietly) as file:
        if os.fstat(file.fileno()).st_size > _MOST_BYTES:
            return None
        return None if is_whole_pickles(file, count) else "is a pickle that ends too early"


def _compressed(path: str) -> str | None:
    with open(path, "rb", opener=quietly) as file:
        head = file.read(4)
        file.seek(0)
        if head == b"\x28\xb5\x2f\xfd":
            whole = is_whole_zstd(file)
        elif head[:1] == b"\x78":
            whole = is_whole_zlib(file)
        else:
            return "is compressed neither by zlib nor by zstd"
    return None if whole else "is compressed data that ends too early"


_LIBRARIES = (_Kind(re.compile(r".+\.so"), _library),)
_ANYTHING = (_Kind(re.compile(r".+", re.DOTALL), _binary),)

_KINDS: dict[str, tuple[_Kind, ...]] = {
    "flashinfer": _LIBRARIES,
    "tvm-ffi": _LIBRARIES,
    "torch-extensions": _LIBRARIES,
    "aiter": _LIBRARIES,
    "deepgemm": (_Kind(re.compile(r".+\.cubin"), _library),),
    "warp": (
        _Kind(re.compile(r".+\.(?:o|cubin)"), _library),
        _Kind(re.compile(r".+\.ptx"), _binary),
        _Kind(re.compile(r"wp_.+\.meta"), _json),
    ),
    "numba": (
        _Kind(re.compile(r".+\.nbi"), _index),
        _Kind(re.compile(r".+\.nbc"), _pickle),
    ),
    "jax": (_Kind(re.compile(r".+-cache"), _compressed),),
    "cuda-core": _ANYTHING,
    "torch-kernels": _ANYTHING,
}

_THEN = {
    "flashinfer": "FlashInfer fails on it at each start, and never builds it again",
    "tvm-ffi": "tvm-ffi fails on it at each start (RuntimeError, or a bus error), and never builds it again",
    "torch-extensions": "torch fails on it at each start (OSError or ImportError), and never builds it again",
    "aiter": "nobody has seen AITER build it again",
    "deepgemm": "nobody has seen DeepGEMM compile it again",
    "warp": "Warp fails on it at each start, and never compiles it again",
    "numba": "Numba raises in each call (EOFError or UnpicklingError), and never compiles it again",
    "jax": "JAX compiles at each start, and never writes it again",
    "cuda-core": "cuda.core hands it to the program as if it were whole",
    "torch-kernels": "torch loads it as if it were whole",
}
"""What each software does with a damaged file."""

JUDGED = tuple(_KINDS)
"""The names of the caches whose files are judged."""


def damages(unit: JitUnit) -> Iterator[Damage]:
    """What is wrong with the files of a unit, as they are now. Beside any process; what vanishes is passed over.

    Unreadable files are told, and nothing raises.
    """
    kinds = _KINDS.get(unit.cache)
    if kinds is None:
        return
    for path in _paths(unit):
        for kind in kinds:
            if kind.name.fullmatch(os.path.basename(path)):
                yield from _judged(unit.cache, path, kind)
                break
    yield from _incomplete(unit)


def _paths(unit: JitUnit) -> Iterator[str]:
    """The paths of the files of a unit; in a directory, those in it and below."""
    for part in unit.parts:
        path = f"{unit.base}/{part}"
        if not os.path.isdir(path):
            yield path
            continue
        files = [item.path for item in below(path) if not item.is_dir(follow_symlinks=False)]
        yield from sorted(files)


def _judged(cache: str, path: str, kind: _Kind) -> Iterator[Damage]:
    then = _THEN[cache]
    try:
        with open(path, "rb", opener=quietly) as file:
            head = file.read(_HEAD_BYTES)
        if not head.strip(b"\0"):
            kind_of_nothing = "zeros" if head else "empty"
            yield Damage("unit-empty", path, f"it is {kind_of_nothing}: {then}")
            return
        wrong = kind.judge(path)
    except FileNotFoundError:
        return
    except OSError as error:
        yield Damage("unit-unreadable", path, error.strerror or str(error))
        return
    if wrong is not None:
        yield Damage("unit-cut", path, f"it {wrong}: {then}")


def _incomplete(unit: JitUnit) -> Iterator[Damage]:
    """Numba's index is written before what it leads to: of a full disk it is what remains."""
    if unit.cache == "numba" and len(unit.parts) == 1 and unit.parts[0].endswith(".nbi"):
        path = f"{unit.base}/{unit.parts[0]}"
        if os.path.lexists(path):
            fact = "it leads to no .nbc: Numba compiles again, and then writes that"
            yield Damage("unit-incomplete", path, fact)
