from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys

import pytest
from support.launches import another_process, kernel, launched
from support.recipes import recipe

from gpucache import log
from gpucache.kernels.recipe import to_text
from gpucache.kernels.recipe_lines import read_recipe_file
from gpucache.triton import recorder as module
from gpucache.triton.recorder import Recorder, recorder_of

A, B, C = (letter * 52 for letter in "ABC")


@pytest.fixture(autouse=True)
def compiling(monkeypatch):
    """Every frame compiles the kernel of the key that is asked for."""
    monkeypatch.setattr(module, "recipe_text_of", lambda _, key: to_text(recipe(key=key)))
    monkeypatch.setattr(log, "_warned", set())


@pytest.fixture
def file(tmp_path):
    return tmp_path / "recipes"


def keys(file):
    return [one.key for one in read_recipe_file(str(file))]


def ask(recorder, *keys):
    return [recorder.asked(sys._getframe(), key) for key in keys]


def test_each_key_is_written_once_a_process(file):
    recorder = Recorder(str(file))
    assert ask(recorder, A, B, A) == [to_text(recipe(key=A)), to_text(recipe(key=B)), None]
    assert keys(file) == [A, B]
    assert len(file.read_bytes().splitlines()) == 3


def test_one_path_has_one_recorder_in_a_process(file, monkeypatch):
    """Each value of `TRITON_CACHE_DIR` has a location of its own, and all record to one file."""
    monkeypatch.setattr(module, "_recorders", {})
    monkeypatch.chdir(file.parent)
    assert recorder_of("recipes") is recorder_of(str(file))


def test_a_forked_child_writes_what_its_parent_has_not(file):
    recorder = Recorder(str(file))
    ask(recorder, A)
    child = os.fork()
    if child == 0:
        ask(recorder, A, B)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    ask(recorder, A, C)
    assert keys(file) == [A, B, C]
    assert len(file.read_bytes().splitlines()) == 4


def test_a_file_that_is_refused_is_told_once_and_not_touched_again(file, caplog, monkeypatch):
    file.write_text("import torch\n")
    recorder = Recorder(str(file))
    with caplog.at_level(logging.WARNING):
        assert ask(recorder, A)[0] is not None
        monkeypatch.setattr(module, "append", pytest.fail)
        ask(recorder, B, C)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(file) in caplog.text
    assert file.read_text() == "import torch\n"


def test_a_full_disk_is_told_once_and_tried_again(file, caplog, monkeypatch):
    recorder = Recorder(str(file))

    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    with caplog.at_level(logging.WARNING), monkeypatch.context() as disk:
        disk.setattr(module, "append", full)
        ask(recorder, A, B)
    ask(recorder, C)
    assert len(caplog.records) == 1
    assert keys(file) == [C]


def test_a_kernel_without_a_recipe_leaves_the_file_alone(file, monkeypatch):
    monkeypatch.setattr(module, "recipe_text_of", lambda *_: None)
    assert ask(Recorder(str(file)), A) == [None]
    assert not file.exists()


def test_a_process_that_only_hits_imports_nothing_that_recording_needs(root, monkeypatch):
    key, files = kernel("a")
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    another_process(monkeypatch)
    assert launched(key, files)[0] is False
    code = """
import sys
from gpucache.triton.manager import DeviceCacheManager
assert DeviceCacheManager(sys.argv[1]).get_group("add.json")
print(*(name for name in sys.modules if "reci" in name or "record" in name or "encod" in name))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, key], capture_output=True, text=True, check=True
    )
    ours = [name for name in done.stdout.split() if name.startswith("gpucache")]
    assert set(ours) <= {"gpucache.directories.record", "gpucache.disk.record_use"}
