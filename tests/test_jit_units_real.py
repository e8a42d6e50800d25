"""Real JIT compilers fail on damaged files until a repair, and then work (`test_jit_clients` prunes)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.jit_clients import Client, Desk, desk

REAL = {
    client.cache: client
    for client in (
        Client("tvm-ffi", counted=True),
        Client("warp"),
        Client("numba"),
        Client("jax"),
        Client("cuda-core", argument="{jit}/cuda-core"),
        Client("torch-extensions", counted=True, argument="{work}"),
    )
}
MARKED = [
    pytest.param(name, marks=[pytest.mark.torch] if name == "torch-extensions" else [])
    for name in REAL
]
DAMAGED = {
    "tvm-ffi": "*.so",
    "warp": "*.o",
    "numba": "*.nbi",
    "jax": "*-cache",
    "cuda-core": "entries/*/*",
    "torch-extensions": "*.so",
}
"""By cache the files that are cut."""

pytestmark = pytest.mark.jit


def cases() -> list[object]:
    """What is cut to how many bytes; one size is enough where compilers take their time."""
    found = []
    for one in MARKED:
        (name,) = one.values
        if name in DAMAGED:
            for size in (10,) if REAL[name].counted else (0, 10):
                found.append(pytest.param(name, size, marks=one.marks))
    return found


@pytest.fixture
def at(tmp_path: Path) -> Desk:
    return desk(tmp_path)


def raw(at: Desk, client: Client) -> subprocess.CompletedProcess[str]:
    """Run a client, which may fail."""
    words = ["run", "--caches", client.cache, "--", sys.executable, str(client.program)]
    if client.argument is not None:
        words.append(client.argument.format(jit=at.root / "jit", work=at.work))
    return at.gpucache(*words)


@pytest.mark.parametrize(("name", "size"), cases())
def test_what_was_cut_fails_until_a_repair_and_then_works(at, name, size):
    client = REAL[name]
    at.run(client)
    whole = at.gpucache("verify", "--cache", name)
    assert (whole.returncode, whole.stdout) == (0, ""), "what was written is whole"
    cut = [path for path in (at.root / "jit" / name).rglob(DAMAGED[name]) if path.is_file()]
    for path in cut:
        stated = path.stat()
        os.truncate(path, size)
        os.utime(path, ns=(stated.st_atime_ns, stated.st_mtime_ns))  # as a power cut leaves it
    before = raw(at, client)
    said = [json.loads(line) for line in before.stdout.splitlines() if line[:1] == "{"]
    recompiled = before.returncode == 0 and said[-1].get("compiled", 0) > 0
    handed_on = name == "cuda-core" and before.returncode == 0
    assert before.returncode != 0 or recompiled or handed_on
    assert [path.stat().st_size for path in cut if path.exists()] == [size] * len(cut)
    found = at.gpucache("verify", "--cache", name)
    assert found.returncode == 1
    assert len(found.stdout.splitlines()) == len(cut)
    assert at.gpucache("verify", "--cache", name, "--repair").returncode == 0
    assert at.run(client).compiled > 0
    assert at.run(client).compiled == 0
    assert at.gpucache("verify", "--cache", name).returncode == 0
