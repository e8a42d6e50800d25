"""What the holder of a lock says of itself is what those who wait are told."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpucache.disk import locks
from gpucache.disk.door import HOLDER_BYTES
from gpucache.disk.lock_place import LockPlace
from gpucache.layout import paths
from gpucache.store.counter_files import OwnFile
from gpucache.store.counter_fold import fold
from gpucache.store.counts import Where
from gpucache.store.key_lock import holding
from gpucache.store.limit import Limit
from gpucache.store.size import count_anew_later, updated


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(what=st.none() | st.text(max_size=300), host=st.text(max_size=64))
def test_what_a_holder_writes_is_what_a_waiter_reads(what, host, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "host_name", lambda: host)
        said = locks.signature(what)
    assert len(said) <= HOLDER_BYTES
    (tmp_path / "holder").write_bytes(said)
    told = locks.holder(str(tmp_path / "holder"))
    assert told.startswith(f"process {os.getpid()} on {host} since ")
    assert told.endswith("Z" if what is None else f" for {what}")


def test_a_file_that_was_given_the_name_of_a_holder_is_not_written_to(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("another user's")
    os.link(precious, tmp_path / "x.lock.holder")
    with locks.locked(str(tmp_path / "x.lock"), timeout_s=60):
        assert precious.read_text() == "another user's"


# ---- what another thread forks meanwhile


def _turned(root: str) -> None:
    kept = Limit(root, LockPlace(root), 1)
    kept.refused()
    kept.turn()


def _folded(root: str) -> None:
    assert fold(root) == 2


def _held(root: str) -> None:
    with holding(f"{root}/x.lock", "a test") as held:
        assert held


def _asked(root: str) -> None:
    Path(root, "x.lock").touch()
    assert locks.is_free(f"{root}/x.lock")


def _forgotten(root: str) -> None:
    updated(root, 1)
    count_anew_later(root)


@pytest.mark.parametrize(
    "act", [_turned, _folded, _held, _asked, _forgotten, lambda root: updated(root, 1)]
)
def test_a_child_that_has_not_come_to_its_exec_keeps_no_lock(
    act: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`subprocess` forks without telling anybody: the child has a copy of each descriptor that is open just then."""
    root = str(tmp_path)
    os.makedirs(paths.ours(root, "locks"))
    for _ in range(2):
        ended = OwnFile(paths.ours(root, "stats"))
        ended.write(Where("host", "0", 0), {"hits": 1})
        ended.close()
    flock, copies = fcntl.flock, []

    def copied(fd: int, what: int) -> None:
        flock(fd, what)
        if what != fcntl.LOCK_UN:
            copies.append(os.dup(fd))

    monkeypatch.setattr(fcntl, "flock", copied)
    act(root)
    monkeypatch.undo()
    assert copies
    for copy in copies:
        again = os.open(f"/proc/self/fd/{copy}", os.O_RDONLY)
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(again)
        os.close(copy)
