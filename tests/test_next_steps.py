"""What is said to a person after a beginning and where there is nothing yet, and to nobody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.processes import python_path
from support.terminals import at_width

RUN = "gpucache run -- python train.py"


@pytest.fixture
def one_device(root, monkeypatch):
    """A root with one fake device."""
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("GPUCACHE_FAKE_DEVICES", "1")


def said(*words: str, **env: str) -> list[str]:
    lines = at_width(words, 200, env=env).splitlines()
    return [line for line in lines if line.startswith(("next: ", "nothing"))]


@pytest.mark.usefixtures("one_device")
def test_after_provision_a_program_is_started(root):
    assert said("provision") == [f"next: `{RUN}`"]
    ranks = "torchrun --no-python --nproc-per-node 8 gpucache run -- python train.py"
    assert said("provision", GPUCACHE_FAKE_DEVICES="8") == [f"next: `{ranks}`"]
    named = f"gpucache run --root '{root} 2' -- python train.py"
    assert said("provision", "--root", f"{root} 2") == [f"next: `{named}`"]


@pytest.mark.usefixtures("one_device")
def test_without_a_gpu_the_demo_is_named(monkeypatch):
    monkeypatch.delenv("GPUCACHE_FAKE_DEVICES")
    assert said("provision") == [
        f"next: `{RUN}`",
        "next: `gpucache demo` shows what that saves, without a GPU",
    ]


@pytest.mark.usefixtures("one_device")
def test_where_there_is_nothing_it_says_what_makes_something(gpucache):
    assert gpucache("provision").returncode == 0
    assert said("ls") == ["nothing is cached here yet", f"next: `{RUN}` caches what it compiles"]


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("command", ["provision", "ls"])
def test_a_script_is_not_told(gpucache, command):
    assert gpucache("provision").returncode == 0
    assert gpucache(command).stderr == ""
    assert said(command, "--json") == []


@pytest.mark.usefixtures("one_device")
def test_where_something_is_cached_nothing_comes_next(python, root):
    launch = "from support.launches import kernel, launched; launched(*kernel('a'))"
    environ = {
        "PYTHONPATH": python_path(Path(__file__).parent),
        "TRITON_CACHE_DIR": f"{root}/triton/0",
    }
    python("-c", launch, env={**os.environ, **environ})
    assert said("ls") == []
