"""Launches as Triton makes them, through the plug-in, of kernels whose bytes follow from their keys.

No real compile: what a "compile" gives is known, so that every byte that a launch reads can be checked.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import json
import os
import random
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

from gpucache.triton.manager import DeviceCacheManager

GROUP = "add.json"
STAGES = ("add.ttir", "add.ptx", "add.cubin", GROUP)
"""The files of a kernel, in the order in which Triton puts them."""

Launched = Literal["hit", "compiled"]
Aside = Callable[[], AbstractContextManager[None]]


class WrongBytesError(AssertionError):
    """A launch was given a file that is not what was compiled."""


def key_of(seed: str) -> str:
    """A key as Triton makes them."""
    return base64.b32encode(hashlib.sha256(seed.encode()).digest()).decode().rstrip("=")


def content(key: str, name: str) -> bytes:
    """What a compile of this key gives as the file of this name; an ELF file for a library."""
    if name.endswith(".autotune.json"):
        return json.dumps(
            {"key": key, "configs_timings": [[{"num_warps": 4}, [1.0, 1.1, 1.2]]]}
        ).encode()
    if name.endswith(".json"):
        target = {"backend": "cuda", "arch": 90, "warp_size": 32}
        digest = base64.b32decode(key + "====").hex()  # Triton's key is made of it
        said = {"name": "add", "hash": digest, "target": target, "triton_version": "3.9.0"}
        return json.dumps(said).encode()
    if name.endswith(".so"):
        return Path(os.environ["FAULTS_LIBRARY"]).read_bytes()
    draw = random.Random(f"{key} {name}")
    return draw.randbytes(draw.randrange(100, 3000))


def digest(key: str, name: str) -> str:
    return hashlib.sha256(content(key, name)).hexdigest()


def launch(key: str, aside: Aside = nullcontext) -> Launched:
    """Launch the kernel of a key as Triton does: look, else compile; read all files. `aside` is around Triton's reads.

    Raises:
        WrongBytesError: a file is not what was compiled.
    """
    manager = DeviceCacheManager(key)
    group = manager.get_group(GROUP)
    if group is not None:
        _read(key, group, aside)
        return "hit"
    group = {}
    for name in STAGES:
        group[name] = manager.put(content(key, name), name)
    manager.put_group(GROUP, group)
    _read(key, group, aside)
    del manager
    gc.collect()  # what the manager staged goes; the group says where its files are now
    _read(key, group, aside)
    return "compiled"


def load_single(key: str, name: str, aside: Aside = nullcontext) -> Launched:
    """Load a file that stands for itself, as Triton does: ask for it, else make it and put it."""
    manager = DeviceCacheManager(key)
    path = manager.get_file(name)
    if path is not None:
        _read(key, {name: path}, aside)
        return "hit"
    path = manager.put(content(key, name), name)
    _read(key, {name: path}, aside)
    return "compiled"


def _read(key: str, group: dict[str, str], aside: Aside) -> None:
    with aside():
        missing = {GROUP, "add.cubin"} - group.keys()
        if missing and GROUP in STAGES and len(group) > 1:
            raise WrongBytesError(f"{key}: the group lacks {missing}")
        for name, path in group.items():
            if Path(path).read_bytes() != content(key, name):
                raise WrongBytesError(f"{key}: {path}")


def innermost(error: BaseException) -> str:
    """The file in which an exception was raised."""
    return traceback.extract_tb(error.__traceback__)[-1].filename
