"""All processes of a node and user take the locks of a root in one directory, which nobody else can plant."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support.processes import PATIENCE_S
from support.users import ADA, BOB, acting_as, directory, link

from gpucache.disk import capabilities, lock_place, lock_token
from gpucache.disk.capabilities import Capabilities
from gpucache.disk.lock_place import LockPlace, open_lock_directory
from gpucache.disk.node import node_id
from gpucache.disk.within import Straight
from gpucache.errors import UnsafeDirectoryError
from gpucache.layout import paths
from gpucache.values import replace

pytestmark = pytest.mark.usefixtures("shared_memory")
ALL = Capabilities(renames_directories=True, hard_links=True, sets_times=True, flocks=True)


@pytest.fixture
def root(tmp_path: Path) -> str:
    root = tmp_path / "root"
    (root / "gpucache/v1/locks").mkdir(parents=True)
    (root / "gpucache/v1/tmp").mkdir()
    return str(root)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root is on NFS, as far as we are told."""
    monkeypatch.setattr(lock_place, "is_local", lambda _: False)


def token(root: str) -> Path:
    return Path(paths.ours(root, "locks", f"{node_id()}.{os.geteuid()}.place"))


class TestInTheRoot:
    def test_on_a_local_disk_it_is_the_roots_own_and_nothing_is_made(self, root, shared_memory):
        place = LockPlace(root)
        assert place.directory() == place.found() == paths.ours(root, "locks")
        assert os.listdir(paths.ours(root, "locks")) == os.listdir(shared_memory) == []

    def test_where_nothing_can_be_written_it_is_the_roots_own(self, root, network, monkeypatch):
        """No lock can be had there, and nobody can publish what locks are for."""

        def refuse(*_: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(lock_token, "_write_new", refuse)
        assert LockPlace(root).directory() == paths.ours(root, "locks")


@pytest.mark.usefixtures("network")
class TestElsewhere:
    def test_on_a_network_it_is_this_users_own_on_this_node(self, root, shared_memory):
        path = Path(LockPlace(root).directory())
        assert path.parent == shared_memory
        assert re.fullmatch(rf"gpucache-{os.geteuid()}-[0-9a-f]{{16}}", path.name)
        assert path.stat().st_mode & 0o777 == 0o700

    def test_nobody_can_tell_its_name_before_it_is_there(self, root, tmp_path, shared_memory):
        """The path of the root tells nothing; the token does, which only this user can read."""
        path = Path(LockPlace(root).directory())
        assert token(root).stat().st_mode & 0o777 == 0o600
        path.rmdir()
        token(root).unlink()
        assert LockPlace(root).directory() != str(path)

    def test_every_spelling_of_the_root_has_the_same(self, root, tmp_path, monkeypatch):
        (tmp_path / "link").symlink_to("root")
        monkeypatch.chdir(tmp_path)
        spellings = (root, f"{tmp_path}/link", f"{tmp_path}/link/../root/", "root", "./link")
        assert len({LockPlace(spelling).directory() for spelling in spellings}) == 1

    def test_another_root_has_another(self, root, tmp_path):
        other = shutil.copytree(root, tmp_path / "other")
        assert LockPlace(root).directory() != LockPlace(str(other)).directory()

    def test_another_node_has_another(self, root, monkeypatch):
        here = LockPlace(root).directory()
        monkeypatch.setattr(lock_token, "node_id", lambda: "00000000")
        assert LockPlace(root).directory() != here

    def test_of_two_that_are_the_first_both_go_where_one_has_said(self, root, monkeypatch):
        """The loser has read that there is no token before the winner writes his."""
        others = []
        new = lock_token.new_token

        def late() -> bytes:
            monkeypatch.setattr(lock_token, "new_token", new)
            others.append(LockPlace(root).directory())
            return new()

        monkeypatch.setattr(lock_token, "new_token", late)
        assert [LockPlace(root).directory()] == others
        assert len(os.listdir(paths.ours(root, "locks"))) == 1

    def test_without_hard_links_both_go_there_as_well(self, root, monkeypatch):
        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
        assert LockPlace(root).directory() == LockPlace(root).directory()
        assert len(os.listdir(paths.ours(root, "locks"))) == 1

    @pytest.mark.parametrize("left", [b"", b"0123", b"\xff" * 32, b"0" * 33])
    def test_what_is_no_whole_token_names_nothing_and_is_replaced(self, root, left, shared_memory):
        """A killed writer or a full disk left it where no link can be made; everybody could guess the name."""
        token(root).write_bytes(left)
        place = LockPlace(root)
        assert place.directory() == paths.ours(root, "locks")  # another process may be writing it
        os.utime(token(root), (0, 0))
        path = place.directory()
        assert os.path.dirname(path) == str(shared_memory)
        assert LockPlace(root).directory() == LockPlace(root).found() == path
        assert re.fullmatch("[0-9a-f]{32}", token(root).read_text())

    def test_who_only_looks_makes_nothing(self, root, shared_memory):
        assert LockPlace(root).found() == paths.ours(root, "locks")
        path = LockPlace(root).directory()
        os.rmdir(path)
        assert LockPlace(root).found() == path
        assert os.listdir(shared_memory) == []

    def test_swept_it_is_made_again_under_its_name(self, root):
        place = LockPlace(root)
        path = place.directory()
        os.rmdir(path)
        assert place.directory() == LockPlace(root).directory() == path
        assert os.path.isdir(path)

    @pytest.mark.parametrize("swept", ["the token", "all of locks/"])
    def test_a_token_that_was_swept_is_put_back_by_who_knows_it(self, root, swept):
        place = LockPlace(root)
        path = place.directory()
        if swept == "the token":
            token(root).unlink()
        else:
            shutil.rmtree(paths.ours(root, "locks"))
        assert place.directory() == path
        assert LockPlace(root).directory() == path

    def test_who_finds_another_token_than_his_goes_where_the_others_are(self, root):
        place = LockPlace(root)
        before = place.directory()
        token(root).unlink()
        others = LockPlace(root).directory()
        assert others != before
        assert place.directory() == others

    def test_tokens_of_nodes_that_are_gone_go_after_a_month(self, root):
        old, young = (paths.ours(root, "locks", f"{name}.0.place") for name in ("aa", "bb"))
        for path in (old, young):
            Path(path).write_bytes(b"0" * 32)
        os.utime(old, (0, 0))
        LockPlace(root).directory()
        assert not os.path.exists(old)
        assert os.path.exists(young)

    def test_directories_of_roots_that_are_gone_go_after_a_day(self, root, shared_memory):
        made = {}
        for name in ("empty", "provisioned", "asked", "locked", "in use", "young", "other"):
            uid = 4711 if name == "other" else os.geteuid()
            made[name] = directory(shared_memory / f"gpucache-{uid}-{len(made):016x}", 0o700)
        for name in ("provisioned", "locked"):
            (made[name] / "provision.lock").touch()
            (made[name] / "provision.lock.holder").touch()
        (made["in use"] / "KEY.lock").touch()
        for name in ("remote-0.state", "remote-0.courier"):
            (made["asked"] / name).touch()
        os.mknod(made["asked"] / "remote-0.socket", stat.S_IFSOCK | 0o600)
        for name, path in made.items():
            if name != "young":
                os.utime(path, (0, 0))
        with open(made["locked"] / "provision.lock") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            LockPlace(root).directory()
        left = {name for name, path in made.items() if path.exists()}
        assert left == {"locked", "in use", "young", "other"}

    def test_through_a_straight_no_link_is_followed_to_the_token(self, root, tmp_path, disk):
        locks = Path(paths.ours(root, "locks"))
        locks.rename(tmp_path / "outside")
        locks.symlink_to(tmp_path / "outside")
        LockPlace(root, disk).directory()
        assert os.listdir(tmp_path / "outside") == []


PLANTS: dict[str, Callable[[Path, Path], object]] = {
    "directory": lambda path, _: directory(path, 0o777, BOB),
    "link": lambda path, mine: link(path, mine, BOB),
    "file": lambda path, _: os.chown(str(path.touch() or path), BOB, BOB),
}


@pytest.mark.root
@pytest.mark.usefixtures("as_root", "network")
class TestPlanted:
    """What another user has put where the directory was, after it was swept."""

    @pytest.fixture
    def mine(self, tmp_path: Path) -> Path:
        """A directory of this user's, elsewhere."""
        made = tmp_path / "mine"
        made.mkdir()
        (made / "KEY.lock").write_text("not a lock")
        return made

    @pytest.mark.parametrize("what", sorted(PLANTS))
    def test_all_processes_go_on_to_the_same_next_name(self, root, mine, what):
        place = LockPlace(root)
        planted = Path(place.directory())
        planted.rmdir()
        PLANTS[what](planted, mine)
        following = place.directory()
        assert following != str(planted)
        assert LockPlace(root).directory() == LockPlace(root).found() == following
        assert os.listdir(mine) == ["KEY.lock"]

    @pytest.mark.parametrize("what", sorted(PLANTS))
    def test_put_there_before_the_directory_is_made_likewise(self, root, mine, what, monkeypatch):
        mkdir, planted = os.mkdir, []

        def late(path: str, mode: int) -> None:
            if not planted:
                planted.append(path)
                PLANTS[what](Path(path), mine)
            mkdir(path, mode)

        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", late)
            LockPlace(root).directory()
        following = LockPlace(root).directory()
        assert following not in planted
        os.close(open_lock_directory(following))

    @pytest.mark.parametrize("what", sorted(PLANTS))
    @pytest.mark.parametrize("straight", [False, True])
    def test_put_there_before_the_directory_is_opened_it_is_not_opened(
        self, root, mine, what, straight
    ):
        path = LockPlace(root).directory()
        os.rmdir(path)
        PLANTS[what](Path(path), mine)
        with Straight() as disk, pytest.raises(OSError):
            open_lock_directory(path, disk if straight else None)

    def test_in_the_place_of_every_name_it_is_refused_with_the_fact(self, root, monkeypatch):
        monkeypatch.setattr(lock_token, "_NAMES", 2)
        for _ in range(2):
            os.chown(LockPlace(root).directory(), BOB, BOB)
            with suppress(UnsafeDirectoryError):
                LockPlace(root).directory()
        with pytest.raises(UnsafeDirectoryError, match="another user has put something there"):
            LockPlace(root).directory()

    def test_another_user_cannot_swap_it(self, root, everyones, monkeypatch):
        everyones.chmod(0o1777)
        monkeypatch.setattr(lock_token, "_parent", lambda: str(everyones))
        path = LockPlace(root).directory()
        with acting_as(ADA):
            os.mkdir(f"{everyones}/theirs")
            with pytest.raises(PermissionError):
                os.rename(path, f"{path}.moved")


def refuse_locks(root: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def refusing(fd: int, operation: int) -> None:
        where = os.readlink(f"/proc/self/fd/{fd}")
        if where.startswith(f"{root}/"):
            raise OSError(code, os.strerror(code))
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", refusing)


class TestWithoutFlock:
    """``flock`` does not work on the mount, whatever its type is called."""

    @pytest.fixture(params=[errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
    def refused(self, request, root, monkeypatch) -> None:
        refuse_locks(root, request.param, monkeypatch)

    @pytest.mark.usefixtures("refused")
    def test_the_locks_move_to_this_node(self, root, shared_memory):
        path = LockPlace(root).directory()
        assert Path(path).parent == shared_memory

    def test_they_move_when_it_ceases_to_work_and_all_processes_follow(
        self, root, shared_memory, monkeypatch
    ):
        """As where a lock daemon goes: the answer that was kept for the node is older."""
        early, later = LockPlace(root), LockPlace(root)
        assert early.directory() == later.directory() == early.inside
        refuse_locks(root, errno.ENOLCK, monkeypatch)
        path = later.directory()
        assert Path(path).parent == shared_memory
        assert early.directory() == LockPlace(root).directory() == path
        assert capabilities.known(root) == replace(ALL, flocks=False)

    def test_they_stay_where_only_directories_cannot_be_locked(self, root, monkeypatch):
        place, flock = LockPlace(root), fcntl.flock
        tried = []

        def refusing(fd: int, operation: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{fd}"):
                tried.append(fd)
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            flock(fd, operation)

        monkeypatch.setattr(fcntl, "flock", refusing)
        assert [place.directory(), place.directory()] == [place.inside] * 2
        assert len(tried) == 1

    def test_they_stay_there_for_processes_in_which_it_works(self, root, monkeypatch):
        """It answered ENOLCK for a moment; two processes in two places would both compile."""
        with monkeypatch.context() as patch:
            patch.setattr(capabilities, "learn", lambda _: replace(ALL, flocks=False))
            path = LockPlace(root).directory()
        assert LockPlace(root).directory() == path

    def test_processes_that_hold_locks_in_the_root_move_with_the_next(self, root, monkeypatch):
        place = LockPlace(root)
        assert place.directory() == place.inside
        with monkeypatch.context() as patch:
            patch.setattr(capabilities, "learn", lambda _: replace(ALL, flocks=False))
            path = LockPlace(root).directory()
        assert place.directory() == path


MANY = """
import sys
from gpucache.disk import lock_place, lock_token
lock_place.is_local = lambda _: False
lock_token._parent = lambda: sys.argv[2]
print(lock_place.LockPlace(sys.argv[1]).directory())
"""


def test_eight_processes_that_start_at_once_agree(root, shared_memory):
    command = [sys.executable, "-c", MANY, root, str(shared_memory)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    said = {process.communicate(timeout=PATIENCE_S)[0] for process in started}
    assert [process.returncode for process in started] == [0] * 8
    assert len(said) == len(os.listdir(shared_memory)) == 1


@pytest.mark.fuse
@pytest.mark.parametrize("code", ["ENOSYS", "ENOTSUP", "ENOLCK"])
def test_commands_and_launches_do_all_they_do_where_flock_is_refused(
    tmp_path, object_store, python, code
):
    """Under ``-W error`` too: filelock warns when it falls back to marker files."""
    root = object_store(tmp_path / "mounted", flock=code) / "root"
    environ = {
        **os.environ,
        "GPUCACHE_DIR": str(root),
        "TRITON_CACHE_DIR": f"{root}/triton/0",
        "GPUCACHE_FAKE_DEVICES": "1xH100:9.0",
        "PYTHONWARNINGS": "error",
        "GPUCACHE_MAX_SIZE": "1G",
    }

    def run(*words: str) -> str:
        command = [sys.executable, "-W", "error", "-m", "gpucache", *words]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    run("provision")
    done = python(LAUNCH, env=environ)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert not list(root.glob("gpucache/v1/locks/*.lock"))
    assert sum(int(word) for word in run("stats").split("\t")[1:4]) > 0
    assert json.loads((root / "gpucache/v1/stats/size").read_bytes())[0] > 0
    run("verify", "--repair")
    run("prune", "--max-entries", "0", "--yes")
    run("clean", "--force", "--yes")
    assert not list(root.glob("gpucache/v1/store/*/*"))


LAUNCH = """
from gpucache.triton import DeviceCacheManager
for key in ("A" * 52, "B" * 52):
    manager = DeviceCacheManager(key)
    assert manager.get_group("add.json") is None
    assert manager._staged.lock.held, "and so nobody else compiles the kernel"
    metadata = b'{"name": "add", "target": {"backend": "cuda", "arch": 90}}'
    group = {"add.json": manager.put(metadata, "add.json"), "add.cubin": manager.put(b"x", "add.cubin")}
    manager.put_group("add.json", group)
    assert DeviceCacheManager(key).get_group("add.json") is not None
"""
