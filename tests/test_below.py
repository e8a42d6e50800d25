"""What lies below a directory is told however deep, closed or linked it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.processes import PATIENCE_S

from gpucache.directories.registry import DeviceCacheRegistry
from gpucache.disk.below import below

Deep = Callable[[Path, str], None]


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Deep]:
    """What puts a file below 1,200 directories in one another; all goes again, which pytest could not do."""

    def put(base: Path, name: str) -> None:
        base.mkdir(parents=True, exist_ok=True)
        steps = f"{'d/' * 1200}"
        subprocess.run(["mkdir", "-p", steps], cwd=base, check=True)
        os.close(os.open(f"{base}/{steps}{name}", os.O_CREAT))

    yield put
    subprocess.run(["rm", "-rf", tmp_path], check=True)


def test_files_and_directories_are_told_and_no_link_below_is_followed(tmp_path):
    (tmp_path / "tree/one/two").mkdir(parents=True)
    (tmp_path / "tree/one/two/file").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/other").write_text("x")
    (tmp_path / "tree/link").symlink_to("../elsewhere")
    (tmp_path / "to").symlink_to("tree")
    told = sorted(os.path.relpath(item.path, tmp_path / "to") for item in below(f"{tmp_path}/to"))
    assert told == ["link", "one", "one/two", "one/two/file"]


def test_of_a_directory_that_is_not_there_nothing_is_told(tmp_path):
    assert list(below(f"{tmp_path}/none")) == []


def test_a_very_deep_tree_ends_after_a_hundred_directories(tmp_path, deep):
    deep(tmp_path, "file")
    assert len(list(below(str(tmp_path)))) == 100


@pytest.mark.parametrize(
    "words",
    [
        ["caches"],
        ["du"],
        ["verify", "--cache", "all", "--repair"],
        ["prune", "--cache", "all", "-n"],
        ["doctor"],
        ["run", "--caches", "all", "--", "true"],
    ],
    ids=" ".join,
)
def test_no_command_ends_at_a_cache_whose_directories_lie_a_thousand_deep(tmp_path, deep, words):
    root, home = tmp_path / "root", tmp_path / "home"
    environ = {"GPUCACHE_DIR": str(root), "HOME": str(home), "GPUCACHE_FAKE_DEVICES": "1"}
    DeviceCacheRegistry(environ=environ).provision()
    deep(root / "jit/warp/1.19.0/wp_deep", "wp.o")
    deep(root / "jit/tvm-ffi/deep", "deep.so")
    deep(home / ".cache/tvm-ffi", "deep.so")
    deep(home / ".tilelang/cache", "deep.so")
    command = [sys.executable, "-m", "gpucache", *words]
    environ = {**os.environ, **environ}
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert "environment unchanged" not in done.stderr
