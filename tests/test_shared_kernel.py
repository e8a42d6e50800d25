"""What a fault of a view, of what Triton left, or of a lock costs: a view, and never the store or a launch."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.launches import another_process, kernel, launched
from support.trees import left_by_stock
from support.users import ADA, acting_as, directory

from gpucache import once
from gpucache.disk.node import node_id
from gpucache.store import publish
from gpucache.store.condemned import signature
from gpucache.store.key_lock import KeyLock
from gpucache.store.manifest import CONDEMNED, entry_path
from gpucache.triton import shared_kernel
from gpucache.triton.manager import current_location

KEY, FILES = kernel("first")
ERRNOS = [
    errno.EACCES,
    errno.EPERM,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EIO,
    errno.ESTALE,
    errno.ENOSYS,
    errno.EMFILE,
]


@pytest.fixture
def device(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process caches in a device directory outside the root."""
    device = tmp_path / "device"
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(device))
    another_process(monkeypatch)
    return device


Refuse = Callable[[pytest.MonkeyPatch, Path, int], None]


def refusing(where: Any, name: str) -> Refuse:
    """Have a function refuse whatever names something in the device directory."""

    def refuse(patch: pytest.MonkeyPatch, device: Path, number: int) -> None:
        real = getattr(where, name)

        def refused(*words: Any, **named: Any) -> Any:
            said = [str(word) for word in (*words, *named.values())]
            if any(word.startswith(str(device)) for word in said):
                raise OSError(number, os.strerror(number), str(device))
            return real(*words, **named)

        patch.setattr(where, name, refused)

    return refuse


STEPS = {
    "look": refusing(os, "open"),
    "mkdir": refusing(os, "mkdir"),
    "mkdtemp": refusing(tempfile, "mkdtemp"),
    "link": refusing(os, "link"),
    "rename": refusing(os, "rename"),
    "group": refusing(publish, "write_group"),
    "lstat": refusing(os, "lstat"),
    "listing": refusing(os, "scandir"),
}


@pytest.mark.parametrize("number", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_fault_of_the_view_loses_the_view_alone(step, number, device, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        step(patch, device, number)
        hits = []
        for _ in range(3):
            another_process(patch)
            hits.append(launched(KEY, FILES))
    assert hits == [(False, FILES), (True, FILES), (True, FILES)]
    assert "compiling without the shared cache" not in caplog.text
    assert "choose a root" not in caplog.text
    another_process(monkeypatch)
    assert launched(KEY, FILES) == (True, FILES)


def test_a_view_that_can_be_made_again_is_made_again(device, monkeypatch):
    with monkeypatch.context() as patch:
        STEPS["link"](patch, device, errno.ENOSPC)
        launched(KEY, FILES)
    assert not (device / KEY).exists()
    assert launched(KEY, FILES) == (True, FILES)
    assert (device / KEY / "add.ptx").exists()


@pytest.mark.root
@pytest.mark.parametrize("there", [True, False], ids=["there", "not there"])
def test_a_home_of_another_user_costs_no_compile(there, everyones, as_root, monkeypatch, caplog):
    """The default device directory of a process that has root's home, as in many containers."""
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setenv("GPUCACHE_DIR", str(everyones / "roots"))
    another_process(monkeypatch)
    launched(KEY, FILES)  # all that is imported late may lie where the other user cannot read it
    home, root = everyones / "home", directory(everyones / "root", 0o700, ADA)
    (home / ".triton").mkdir(parents=True)
    if there:
        (home / ".triton/cache").mkdir()
    (home / ".triton").chmod(0o700)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setattr(once, "first_in_job", lambda *_: True)
    hits = []
    with acting_as(ADA):
        for _ in range(3):
            another_process(monkeypatch)
            hits.append(launched(KEY, FILES))
    assert hits == [(False, FILES), (True, FILES), (True, FILES)]
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    told = [line for line in said if line.startswith(f"no views in {home}/.triton/cache: ")]
    assert len(told) == 3, "once a process"
    assert "Permission denied" in told[0]
    assert "chmod it" in told[0]
    assert "choose a root" not in caplog.text
    assert "compiling without" not in caplog.text


def test_a_miss_leaves_alone_what_another_node_is_making_at_that_moment(root, device):
    """On a mount where no directory can be renamed: its files come one by one, and its lock is not ours to see."""
    entry = Path(entry_path(str(root), KEY))
    entry.mkdir(parents=True)
    (entry / "add.ptx").write_text("of the other")
    (entry / CONDEMNED).write_bytes(signature(True).replace(node_id().encode(), b"0badcafe"))
    assert launched(KEY, FILES) == (False, FILES)
    assert {path.name for path in entry.iterdir()} == {"add.ptx", CONDEMNED}
    assert not list((root / "gpucache/v1/quarantine").glob("*"))


# ---- what Triton left


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
@pytest.mark.parametrize("reader", ["digest_of", "read_limited"])
def test_what_triton_left_and_cannot_be_read_is_compiled_again(reader, number, device, monkeypatch):
    left_by_stock(device, KEY)

    def refused(path: str, *_: object) -> Any:
        raise OSError(number, os.strerror(number), path)

    with monkeypatch.context() as patch:
        patch.setattr(shared_kernel, reader, refused)
        assert launched(KEY, FILES) == (False, FILES)
    another_process(monkeypatch)
    assert launched(KEY, FILES) == (True, FILES)


@pytest.mark.parametrize("number", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("step", ["link", "rename", "mkdtemp"])
def test_what_triton_left_and_cannot_be_adopted_is_a_hit(step, number, device, monkeypatch):
    left = left_by_stock(device, KEY)
    files = {name: (left / name).read_bytes() for name in ("add.json", "add.ptx", "add.cubin")}
    with monkeypatch.context() as patch:
        STEPS[step](patch, device, number)
        assert launched(KEY, files) == (True, files)


# ---- waits


def test_a_first_try_of_the_lock_is_no_wait_however_slow(device, monkeypatch):
    now = [0.0]
    try_acquire = KeyLock.try_acquire

    def slow(lock: KeyLock, *words: Any) -> bool:
        now[0] += 60.0
        return try_acquire(lock, *words)

    monkeypatch.setattr(shared_kernel.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(KeyLock, "try_acquire", slow)
    launched(KEY, FILES)
    assert "waits" not in current_location().stats._values


def test_a_lock_that_another_holds_is_a_wait_however_short(device, monkeypatch):
    refused: list[str] = []
    try_acquire = KeyLock.try_acquire

    def second_time(lock: KeyLock, *words: Any) -> bool:
        if KEY in lock.path and not refused:
            refused.append(lock.path)
            return False
        return try_acquire(lock, *words)

    monkeypatch.setattr(KeyLock, "try_acquire", second_time)
    monkeypatch.setattr(KeyLock, "wait", lambda *_: True)
    monkeypatch.setattr(shared_kernel.key_lock, "locks_of_this_thread", list)
    launched(KEY, FILES)
    assert current_location().stats._values["waits"] == 1
