from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from support.processes import PATIENCE_S, SPAWN
from support.strays import OLD, UUID, YOUNG
from support.users import ADA, acting_as

from gpucache.disk.lock_place import LockPlace
from gpucache.disk.locks import is_free
from gpucache.disk.node import node_id
from gpucache.disk.staging import Staging
from gpucache.layout import paths
from gpucache.report import strays
from gpucache.report.strays import kind_of, of_root, stray
from gpucache.store.key_lock import KeyLock, remove_if_free
from gpucache.store.quarantine import quarantine


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    for name in ("tmp", "locks", "quarantine"):
        Path(paths.ours(str(path), name)).mkdir(parents=True)
    return path


def own(root: Path, *parts: str) -> Path:
    return Path(paths.ours(str(root), *parts))


def found(root: Path) -> dict[str, tuple[str, bool]]:
    """Kind and death of each stray, by its name."""
    return {os.path.basename(one.path): (one.kind, one.dead) for one in of_root(str(root))}


def snapshot(base: Path) -> dict[str, tuple[int, ...]]:
    """Everything below, with what would tell of a change."""
    facts = {str(path): path.lstat() for path in [base, *base.rglob("*")]}
    return {
        path: (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        for path, s in facts.items()
    }


def _stage(root: str, staged: Event, over: Event) -> None:
    directory = Staging(paths.ours(root, "tmp")).directory()
    with open(f"{directory}/add.ttir", "w") as file:
        file.write("module {}")
    staged.set()
    assert over.wait(PATIENCE_S)


def _lock(path: str, how: int, locked: Event, over: Event) -> None:
    with open(path, "a") as file:
        fcntl.flock(file, how)
        locked.set()
        assert over.wait(PATIENCE_S)


Meanwhile = Callable[..., Callable[[], None]]


@pytest.fixture
def meanwhile() -> Iterator[Meanwhile]:
    """Another process that is at a point until it is killed."""
    started = []

    def start(target: Callable[..., None], *arguments: object) -> Callable[[], None]:
        there, over = SPAWN.Event(), SPAWN.Event()
        process = SPAWN.Process(target=target, args=(*arguments, there, over))
        process.start()
        started.append(process)
        assert there.wait(PATIENCE_S)

        def kill() -> None:
            process.kill()
            process.join(PATIENCE_S)

        return kill

    yield start
    for process in started:
        process.kill()
        process.join(PATIENCE_S)


class TestStaging:
    def test_is_dead_once_its_process_is_and_not_before_whatever_its_age(self, root, meanwhile):
        kill = meanwhile(_stage, str(root))
        (name,) = os.listdir(own(root, "tmp"))
        os.utime(own(root, "tmp", name), (OLD, OLD))
        assert found(root) == {name: ("staging", False)}
        kill()
        (one,) = of_root(str(root))
        assert (one.kind, one.dead, one.size_bytes) == ("staging", True, len("module {}"))

    def test_which_is_not_locked_yet_is_dead_after_an_hour(self, root):
        young, old = (f"gpucache-new-{node_id()}.{age}" for age in ("young", "old"))
        for name, when in ((young, YOUNG), (old, OLD)):
            own(root, "tmp", name).mkdir()
            os.utime(own(root, "tmp", name), (when, when))
        assert found(root) == {
            young: ("staging", False),
            old: ("staging", True),
        }

    def test_what_has_no_lock_is_dead_after_an_hour(self, root):
        for name, when in (("publish-young", YOUNG), ("publish-old", OLD)):
            own(root, "tmp", name).write_text("half")
            os.utime(own(root, "tmp", name), (when, when))
        assert found(root) == {
            "publish-young": ("staging", False),
            "publish-old": ("staging", True),
        }

    def test_of_another_user_is_not_told_dead(self, root, as_root):
        own(root, "tmp", "gpucache-staging-x").mkdir()
        os.chown(own(root, "tmp", "gpucache-staging-x"), ADA, ADA)
        assert found(root) == {"gpucache-staging-x": ("staging", False)}


class TestLocks:
    @pytest.mark.parametrize("how", [fcntl.LOCK_EX, fcntl.LOCK_SH], ids=["holds", "waits"])
    def test_of_a_process_is_alive_as_long_as_that_holds_it_or_is_dead(self, root, meanwhile, how):
        path = own(root, "locks", "KEY.lock")
        kill = meanwhile(_lock, str(path), how)
        assert is_free(str(path)) is (how == fcntl.LOCK_SH)
        kill()
        assert found(root) == {"KEY.lock": ("lock", True)}

    def test_held_is_neither_free_nor_removed(self, root, meanwhile):
        path = own(root, "locks", "KEY.lock")
        kill = meanwhile(_lock, str(path), fcntl.LOCK_EX)
        assert found(root) == {"KEY.lock": ("lock", False)}
        assert remove_if_free(str(path)) is False
        assert path.exists()
        kill()
        assert remove_if_free(str(path)) is True
        assert not path.exists()

    def test_of_a_live_compile_is_held(self, root):
        lock = KeyLock(str(own(root, "locks", "KEY.lock")))
        assert lock.try_acquire(sys._getframe(), "add")
        try:
            assert found(root) == {"KEY.lock": ("lock", False)}
        finally:
            lock.release()
        assert found(root) == {}

    def test_asking_leaves_the_file_and_the_lock_as_they_were(self, root):
        path = own(root, "locks", "KEY.lock")
        path.write_text("said")
        before = snapshot(root)
        assert is_free(str(path))
        assert snapshot(root) == before
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_of_provisioning_stays_and_other_files_are_none(self, root):
        for name in ("provision.lock", "provision.lock.holder", "notes"):
            own(root, "locks", name).write_text("")
        assert found(root) == {}

    def test_what_is_no_lock_is_not_free_and_hangs_nobody(self, root):
        os.mkfifo(own(root, "locks", "fifo.lock"))
        own(root, "locks", "link.lock").symlink_to(root)
        for name in ("gone.lock", "link.lock"):
            assert not is_free(str(own(root, "locks", name)))
        assert found(root).keys() == {"fifo.lock", "link.lock"}
        assert remove_if_free(str(own(root, "locks", "link.lock"))) is False

    def test_of_another_user_cannot_be_asked_and_counts_as_held(self, everyones, as_root):
        lock = everyones / "KEY.lock"
        lock.write_text("")
        lock.chmod(0o600)
        with acting_as(ADA):
            assert is_free(str(lock)) is False
            assert remove_if_free(str(lock)) is False

    def test_elsewhere_than_in_the_root_are_found_there(self, root, tmp_path, monkeypatch):
        """On a network file system they lie in a directory of this node."""
        own(root, "locks", "KEY.lock").write_text("")
        beside = tmp_path / "beside"
        beside.mkdir()
        (beside / "OTHER.lock").write_text("")
        monkeypatch.setattr(LockPlace, "found", lambda _: str(beside))
        assert found(root) == {"OTHER.lock": ("lock", True)}

    def test_where_there_are_none_nothing_is_made(self, tmp_path):
        assert list(of_root(str(tmp_path))) == []
        assert os.listdir(tmp_path) == []


class TestQuarantine:
    def test_is_dead_and_as_old_as_its_stay_there(self, root):
        bad = root / "bad"
        bad.mkdir()
        (bad / "add.cubin").write_bytes(b"12345")
        os.utime(bad, (1, 1))
        before = time.time()
        quarantine(str(root), str(bad))
        (one,) = of_root(str(root))
        assert (one.kind, one.dead, one.size_bytes) == ("quarantine", True, 5)
        assert before <= one.modified <= time.time()

    def test_with_a_name_that_says_no_time_is_as_old_as_it_is(self, tmp_path):
        root = tmp_path / "kernels-3.13.0"  # whose name must not be taken for a part of theirs
        (root / "gpucache/v1/quarantine").mkdir(parents=True)
        for name in ("KEY", "KEY.x.1", "KEY..1"):
            own(root, "quarantine", name).write_text("")
            os.utime(own(root, "quarantine", name), (OLD, OLD))
        assert [one.modified for one in of_root(str(root))] == [OLD] * 3


class TestLinks:
    """Nothing out of the root is told as a stray: it would be deleted as one."""

    @pytest.fixture
    def elsewhere(self, tmp_path: Path) -> Path:
        directory = tmp_path / "home"
        for name in ("tmp", "locks", "quarantine", "v1/tmp"):
            (directory / name).mkdir(parents=True)
        for path in (
            directory / "thesis.lock",
            directory / "tmp" / "thesis",
            directory / "v1" / "tmp" / "thesis",
        ):
            path.write_text("years")
            os.utime(path, (OLD, OLD))
        return directory

    @pytest.mark.parametrize(
        "linked",
        [
            *(f"gpucache/v1/{name}" for name in ("tmp", "locks", "quarantine")),
            "gpucache/v1",
            "gpucache",
        ],
    )
    def test_a_linked_directory_of_ours_has_none(self, root, elsewhere, linked):
        os.rename(root / linked, root.parent / "before")
        (root / linked).symlink_to(elsewhere)
        assert list(of_root(str(root))) == []

    def test_a_link_has_its_own_size(self, root, elsewhere):
        own(root, "tmp", "publish-link").symlink_to(elsewhere)
        (one,) = of_root(str(root))
        assert one.size_bytes == len(str(elsewhere))


class TestStray:
    @pytest.mark.parametrize(("when", "dead"), [(YOUNG, False), (OLD, True)], ids=["young", "old"])
    def test_is_dead_after_an_hour_where_nothing_else_tells(self, tmp_path, when, dead):
        (tmp_path / "empty").mkdir()
        os.utime(tmp_path / "empty", (when, when))
        one = stray("empty", f"{tmp_path}/empty")
        assert one is not None
        assert (one.dead, one.modified, one.size_bytes) == (dead, when, 0)

    def test_which_is_gone_is_none(self, tmp_path):
        assert stray("empty", f"{tmp_path}/gone") is None

    def test_which_goes_while_it_is_looked_at_counts_nothing(self, tmp_path, monkeypatch):
        (tmp_path / "lock").write_text("12345")
        look = os.lstat

        def seen_once(path):
            try:
                return look(path)
            finally:
                os.unlink(path)

        monkeypatch.setattr(strays.os, "lstat", seen_once)
        assert strays.stray("lock", f"{tmp_path}/lock") is not None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tmp.gpucache-x4j2k", "aside"),
        ("tmp.gpucache-removed-18a.12.0", "aside"),
        (f"tmp.pid_12_{UUID}", "triton-temporary"),
        (f"add.cubin.tmp.pid_12_{UUID}", "triton-temporary"),
        ("add.cubin.tmp.pid_12_734465", "triton-temporary"),
        (f"tmp.{UUID}", "torch-temporary"),
    ],
)
def test_kinds_by_name(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "add.cubin",
            "tmp",
            "tmp.",
            "tmp.old",
            "tmp.pid_",
            "tmp.pid_x_1",
            "notes.tmp.pid_1",
            "my-tmp.pid_1_ab.txt",
        ),
        *(
            "tmp.deadbeef-cafe-my-holiday",
            "tmpx.gpucache-1",
            ".1.2.tmp",
            "x.tmp.gpucache-1",
            "__entry__.json",
            "K" * 52,
        ),
    ],
)
def test_other_names_are_no_strays(name):
    assert kind_of(name) is None
