"""Launch kernels through the plug-in as Triton does, in this process, without Triton and without a compile."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from pathlib import Path

import pytest

from gpucache import log
from gpucache.store import identity, lookup
from gpucache.triton import fetched, left_behind, shared_kernel
from gpucache.triton import manager as plugin
from gpucache.triton.manager import DeviceCacheManager
from support.processes import PATIENCE_S


def kernel(seed: str, name: str = "add") -> tuple[str, dict[str, bytes]]:
    """A key of Triton's, and the files of its kernel, whose metadata has the hash that the key is made of."""
    digest = hashlib.sha256(seed.encode())
    key = base64.b32encode(digest.digest()).decode().rstrip("=")
    target = {"backend": "cuda", "arch": 90}
    said = {"name": name, "target": target, "hash": digest.hexdigest(), "triton_version": "3.9.0"}
    return key, {f"{name}.json": json.dumps(said).encode(), f"{name}.ptx": seed.encode() * 100}


def launched(key: str, files: dict[str, bytes]) -> tuple[bool, dict[str, bytes]]:
    """Launch a kernel; whether that was a hit, and the contents that Triton then reads.

    ``files`` are what a compile would make; the first of them is the metadata. As at the end of a process, a turn of
    eviction that the launch has begun is over then.
    """
    group = next(iter(files))
    manager = DeviceCacheManager(key)
    found = manager.get_group(group)
    hit = found is not None
    if found is None:
        found = {name: manager.put(data, name) for name, data in files.items()}
        manager.put_group(group, found)
    read = {name: Path(path).read_bytes() for name, path in found.items()}
    del manager
    finish_turns()
    return hit, read


def finish_turns() -> None:
    """Wait for the threads in which puts of this process count and evict."""
    for thread in threading.enumerate():
        if thread.name == "gpucache-limit":
            thread.join(PATIENCE_S)


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what this process knows, as a new one would."""
    monkeypatch.setattr(plugin, "_locations", {})
    monkeypatch.setattr(lookup, "_checked", {})
    monkeypatch.setattr(identity, "_identified", {})
    monkeypatch.setattr(shared_kernel, "_full", set())
    monkeypatch.setattr(fetched, "_readings", {})
    monkeypatch.setattr(left_behind, "_writing", {})
    monkeypatch.setattr(log, "_warned", set())
