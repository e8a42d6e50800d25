"""Where a limit forbids every further thread and process, commands do their work or say so, and kernels launch."""

from __future__ import annotations

import importlib
import os
import pkgutil
import resource
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import rich.progress  # noqa: F401  # loaded while any user may read it
from support.trees import KEY, Tree
from tree import make

import gpucache
from gpucache.cli import main
from gpucache.threads import start

UID = 61234
"""Of whom nothing runs; the limit counts all that does."""


def all_modules() -> None:
    """Load all that a user who cannot read the checkout would be unable to load."""
    for found in pkgutil.walk_packages(gpucache.__path__, "gpucache."):
        if not found.name.endswith(("__main__", "sitecustomize")):
            importlib.import_module(found.name)
    for name in ("pynvml", "click", "filelock", "packaging.specifiers", "rich.table", "rich.live"):
        importlib.import_module(name)


def limited(act: Callable[[], int], out: Path) -> tuple[int, str]:
    """Do something as a user who may have one process of one thread; its result, and what was written."""
    all_modules()
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status), out.read_text()
    code = 99
    try:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT, 0o666)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.setgroups([])
        os.setresgid(UID, UID, UID)
        os.setresuid(UID, UID, UID)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        try:
            threading.Thread(target=print).start()
        except RuntimeError:
            code = act()
        else:
            print("there was a thread to be had")
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@pytest.fixture
def home(as_root: None, everyones: Path) -> Path:
    """A directory of that user's."""
    return everyones


def given(path: Path) -> None:
    for found in (path, *path.rglob("*")):
        os.chown(found, UID, UID, follow_symlinks=False)


COMMANDS = (
    ["ls"],
    ["du", "--json"],
    ["stats"],
    ["doctor"],
    ["config"],
    ["explain", KEY],
    ["why", KEY],
    ["compare", KEY, KEY],
    ["verify"],
    ["verify", "--repair"],
    ["prune", "--max-entries", "0", "--yes"],
    ["prune", "--keep-binaries", "--yes"],
    ["clean", "--force", "--yes"],
    ["provision"],
    ["devices"],
    ["path", "0"],
    ["env", "0"],
    ["run", "--", "/bin/true"],
)


@pytest.mark.root
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_takes_a_limit_on_processes_for_a_defect(home, monkeypatch, capfd, command):
    Tree(home / "base")
    root = home / "base/root"
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TMPDIR", str(home))
    given(home)
    with capfd.disabled():
        code, said = limited(lambda: main.main(command), home / "said")
    assert code in (0, 1), said
    assert "Traceback" not in said
    if command[0] in ("prune", "clean"):
        assert code == 0
        assert "kept" not in said
        assert command[1] == "--keep-binaries" or not list(root.glob("triton/0/*"))


@pytest.mark.root
def test_a_node_whose_nvml_cannot_be_asked_says_which_limit(home, monkeypatch, capfd, on_machine):
    given(home)
    on_machine("a100x2")
    with capfd.disabled():
        code, said = limited(lambda: main.main(["devices"]), home / "said")
    assert code == 1
    assert (
        "error: GPUs cannot be enumerated (error): NVML was not asked: can't start new thread"
        in said
    )
    assert "hint: raise the limit of processes, or end some" in said


@pytest.mark.root
def test_a_kernel_is_compiled_and_kept(home, monkeypatch, capfd):
    make(str(home / "root"), 1, 1)
    monkeypatch.setenv("GPUCACHE_DIR", str(home / "root"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(home / "root/triton/0"))
    monkeypatch.setattr("gpucache.triton.manager._locations", {})
    given(home)

    def launch() -> int:
        from gpucache.triton import DeviceCacheManager

        manager = DeviceCacheManager(KEY)
        assert manager.get_group("add.json") is None
        staged = {name: manager.put(b"{}", name) for name in ("add.json", "add.cubin")}
        manager.put_group("add.json", staged)
        assert DeviceCacheManager(KEY).get_group("add.json") is not None
        return 0

    with capfd.disabled():
        code, said = limited(launch, home / "said")
    assert code == 0, said
    assert list((home / "root/gpucache/v1/store").glob(f"*/{KEY}/add.cubin"))


def test_a_refused_thread_is_an_error_of_the_operating_system(monkeypatch):
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(BlockingIOError, match=r"can't start new thread .*ulimit -u.*pids\.max"):
        start(threading.Thread())
