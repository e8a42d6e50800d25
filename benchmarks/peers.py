"""The caches that `bench_peers` compares, each behind the same three or four methods.

Each peer is imported where it is used: it may not be installed.
"""

from __future__ import annotations

import importlib
import json
import os
import random
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol

import tree

from gpucache.triton.manager import DeviceCacheManager

OURS = "gpucache"
DRAW = random.Random("peers")


class Kernel(NamedTuple):
    """What is stored under one key."""

    key: str
    files: dict[str, bytes]

    @property
    def group(self) -> str:
        return next(name for name in self.files if name.endswith(".json"))

    @property
    def blob(self) -> bytes:
        return b"".join(self.files.values())

    def again(self) -> Kernel:
        """The same under another key."""
        return Kernel(tree.new_key(DRAW), self.files)


class Cache(Protocol):
    """What is measured of each."""

    def read(self, kernel: Kernel) -> int:
        """Bytes of all that is stored."""

    def put(self, kernel: Kernel) -> None: ...

    def count(self) -> int: ...


class Managed:
    """A cache manager of Triton's contract over one directory."""

    def __init__(
        self,
        manager: Callable[[str], Any],
        directory: str,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.manager = manager
        self.environ = {"TRITON_CACHE_DIR": directory, **(environ or {})}

    def get(self, kernel: Kernel) -> int:
        found = self.manager(kernel.key).get_group(kernel.group)
        return len(found)

    def read(self, kernel: Kernel) -> int:
        size = 0
        for path in self.manager(kernel.key).get_group(kernel.group).values():
            with open(path, "rb") as file:
                size += len(file.read())
        return size

    def put(self, kernel: Kernel) -> None:
        manager = self.manager(kernel.key)
        assert manager.get_group(kernel.group) is None
        group = {name: manager.put(data, name) for name, data in kernel.files.items()}
        manager.put_group(kernel.group, group)

    def count(self) -> int:
        return len(os.listdir(self.environ["TRITON_CACHE_DIR"]))


class Tracked(Managed):
    """MCM's, with the field that it wants."""

    def put(self, kernel: Kernel) -> None:
        described = {**json.loads(kernel.files[kernel.group]), "cluster_dims": [1, 1, 1]}
        super().put(
            Kernel(kernel.key, {**kernel.files, kernel.group: json.dumps(described).encode()})
        )


class CudaCore:
    """The program cache of cuda.core."""

    def __init__(self, directory: str, limit_bytes: int | None = None) -> None:
        from cuda.core.utils import FileStreamProgramCache

        self.cache = FileStreamProgramCache(directory, max_size_bytes=limit_bytes)

    def read(self, kernel: Kernel) -> int:
        return len(self.cache[kernel.key])

    def put(self, kernel: Kernel) -> None:
        assert self.cache.get(kernel.key) is None
        self.cache[kernel.key] = kernel.blob

    def count(self) -> int:
        return len(self.cache)


class Jax:
    """JAX's compilation cache."""

    def __init__(self, directory: str, limit_bytes: int | None = None) -> None:
        from jax._src.lru_cache import LRUCache

        self.directory = directory
        self.cache = LRUCache(directory, max_size=-1 if limit_bytes is None else limit_bytes)

    def read(self, kernel: Kernel) -> int:
        return len(self.cache.get(kernel.key))

    def put(self, kernel: Kernel) -> None:
        assert self.cache.get(kernel.key) is None
        self.cache.put(kernel.key, kernel.blob)

    def count(self) -> int:
        return sum(name.endswith("-cache") for name in os.listdir(self.directory))


class DiskCache:
    """diskcache; with a limit it keeps what was used last, as the others do."""

    def __init__(self, directory: str, limit_bytes: int | None = None) -> None:
        import diskcache

        limits = (
            {"size_limit": limit_bytes, "eviction_policy": "least-recently-used"}
            if limit_bytes
            else {}
        )
        self.cache = diskcache.Cache(directory, **limits)

    def read(self, kernel: Kernel) -> int:
        return len(self.cache[kernel.key])

    def put(self, kernel: Kernel) -> None:
        assert self.cache.get(kernel.key) is None
        self.cache[kernel.key] = kernel.blob

    def count(self) -> int:
        return len(self.cache)


class Peer(NamedTuple):
    """Where a peer is found."""

    module: str
    package: str
    listing: str | None = None
    """A program that lists what is in the directory ``sys.argv[1]``."""


TRITON, MCM, CUDA, JAX, DISK = "Triton", "MCM", "cuda.core", "JAX", "diskcache"
PEERS = {
    TRITON: Peer("triton.runtime.cache", "triton"),
    MCM: Peer("model_cache_manager.runtime.tracker", "model-cache-manager"),
    CUDA: Peer(
        "cuda.core.utils",
        "cuda-core",
        "import sys; from cuda.core.utils import FileStreamProgramCache; len(FileStreamProgramCache(sys.argv[1]))",
    ),
    JAX: Peer("jax._src.lru_cache", "jax"),
    DISK: Peer(
        "diskcache", "diskcache", "import sys, diskcache; list(diskcache.Cache(sys.argv[1]))"
    ),
}
SCANNING = (CUDA, JAX)
"""At the limit these look at all that they have for each put."""


def installed() -> dict[str, Peer]:
    """The peers that can be imported; the others are named."""
    found = {}
    for name, peer in PEERS.items():
        try:
            importlib.import_module(peer.module)
        except ImportError as error:
            print(f"skipped: {name} ({error})")
        else:
            found[name] = peer
            print(f"{name}: {peer.package} {version(peer.package)}")
    return found


def ours(root: str, limit: str) -> Managed:
    """The cache of the one device of a tree; the limit is told when it is used first."""
    environ = {"GPUCACHE_DIR": root, "GPUCACHE_SHARE": "1", "GPUCACHE_MAX_SIZE": limit}
    return Managed(DeviceCacheManager, f"{root}/triton/0", environ)


def cache_of(name: str, directory: str, limit_bytes: int | None = None) -> Cache:
    """A peer's cache in a directory, which need not be there."""
    if name == TRITON:
        return Managed(importlib.import_module(PEERS[name].module).FileCacheManager, directory)
    if name == MCM:
        return Tracked(
            importlib.import_module(PEERS[name].module).MCMTrackingCacheManager, directory
        )
    return {CUDA: CudaCore, JAX: Jax, DISK: DiskCache}[name](directory, limit_bytes)


def use(cache: Cache) -> None:
    """Set what the cache is told by the environment."""
    if isinstance(cache, Managed):
        os.environ.update(cache.environ)
