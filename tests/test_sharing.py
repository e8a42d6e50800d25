"""With whom a root is shared, and the modes of what is made in it."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.users import ADA, BOB, acting_as

from gpucache.disk import sharing
from gpucache.disk.files import sweep_old
from gpucache.disk.sharing import (
    GROUP,
    PRIVATE,
    READ,
    mark_text,
    modes_for,
    modes_in,
    modes_like,
    new_directory,
    new_file,
    open_or_new,
    sharing_of,
)
from gpucache.disk.vetting import Trust, vet, vet_child, vet_file
from gpucache.errors import UnsafeDirectoryError
from gpucache.layout import paths
from gpucache.store.placing import link_or_copy, set_use

TEAM, COMMON = 54400, 54401
UMASKS = pytest.mark.parametrize("umask", [0, 0o022, 0o077], ids=oct)


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.fixture
def umask(request) -> int:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def shared_root(root: Path, uid: int, gid: int = TEAM, sharing: str = "group") -> Path:
    """A root as ``uid`` has it, with a mark; nothing else is in it."""
    os.makedirs(paths.ours(str(root)))
    mark = Path(paths.mark_path(str(root)))
    mark.write_bytes(mark_text(sharing))
    for path in (mark, mark.parent, mark.parent.parent, root):
        os.chown(path, uid, gid)
        os.chmod(path, 0o660 if path == mark else 0o2770)
    return root


@pytest.mark.parametrize("umask", [0, 0o022, 0o077], ids=oct, indirect=True)
class TestModes:
    def test_what_is_made_has_the_mode_of_where_it_is_made_whatever_the_umask(
        self, tmp_path, umask
    ):
        for there, modes in ((0o2770, GROUP), (0o755, READ), (0o700, PRIVATE), (0o770, PRIVATE)):
            above = tmp_path / f"{there:o}"
            above.mkdir()
            above.chmod(there)
            assert modes_in(str(above)) == modes
            new_directory(f"{above}/below", modes_in(str(above)))
            here = os.open(above, os.O_RDONLY)
            os.close(open_or_new("file", os.O_RDWR, here))
            os.close(here)
            assert mode(above / "below") == modes.directory & ~(umask if modes == PRIVATE else 0)
            assert mode(above / "file") == (GROUP if modes == GROUP else PRIVATE).file
            assert sorted(os.listdir(above)) == ["below", "file"]

    @pytest.mark.parametrize("sharing", ["private", "read", "group"])
    def test_provisioning_makes_each_directory_and_file_with_its_mode(
        self, tmp_path, umask, sharing, gpucache
    ):
        environ = {**os.environ, "GPUCACHE_FAKE_DEVICES": "1"}
        root = tmp_path / "root"
        done = gpucache("provision", "--root", root, "--shared", sharing, "--json", env=environ)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["sharing"] == sharing
        expected = {"private": (0o700, 0o600), "read": (0o755, 0o644), "group": (0o2770, 0o660)}
        directory, file = expected[sharing]
        published = ("", "/triton", "/triton/0", "/gpucache", "/gpucache/v1")
        published += ("/gpucache/v1/devices", "/gpucache/v1/store")
        for path, _, files in os.walk(root):
            below = path.removeprefix(str(root))
            is_hidden = sharing == "read" and below not in published
            assert mode(path) == (0o700 if is_hidden else directory), path
            for name in files:
                assert mode(f"{path}/{name}") == (0o600 if is_hidden else file), f"{path}/{name}"


class TestFromTheFirstMoment:
    """Nobody may find what has not its mode yet: he would be refused, and compile alone."""

    @pytest.fixture
    def here(self, tmp_path) -> Iterator[int]:
        tmp_path.chmod(0o2770)
        before = os.umask(0o077)
        fd = os.open(tmp_path, os.O_RDONLY)
        yield fd
        os.close(fd)
        os.umask(before)

    def test_a_file_has_its_mode_before_its_name(self, here, monkeypatch):
        monkeypatch.setattr(sharing, "set_mode", nameless(here, sharing.set_mode))
        os.close(new_file("file", os.O_RDWR, here))
        assert stat.S_IMODE(os.stat("file", dir_fd=here).st_mode) == 0o660

    def test_a_directory_has_its_mode_before_its_name(self, here, monkeypatch):
        monkeypatch.setattr(sharing, "set_mode", nameless(here, sharing.set_mode))
        new_directory("file", GROUP, here)
        assert stat.S_IMODE(os.stat("file", dir_fd=here).st_mode) == 0o2770

    def test_the_loser_of_a_race_opens_what_the_winner_has_made(self, here, monkeypatch):
        def first_the_winner(name, flags, here, modes):
            os.close(real(name, flags, here, modes))
            os.truncate(f"/proc/self/fd/{here}/{name}", 7)
            return real(name, flags, here, modes)

        real = sharing.new_file
        monkeypatch.setattr(sharing, "new_file", first_the_winner)
        fd = open_or_new("file", os.O_RDWR, here)
        assert os.fstat(fd).st_size == 7
        os.close(fd)

    def test_the_loser_of_a_race_for_a_directory_leaves_what_is_in_the_winners(
        self, here, tmp_path, monkeypatch
    ):
        def then_the_winner_comes(path, modes, fd=None):
            real(path, modes, fd)
            (tmp_path / "made" / "in it").mkdir(parents=True)

        real = sharing.set_directory_mode
        monkeypatch.setattr(sharing, "set_directory_mode", then_the_winner_comes)
        with pytest.raises(FileExistsError):
            new_directory("made", GROUP, here)
        assert os.listdir(tmp_path) == ["made"]

    @pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR])
    def test_a_mount_without_unnamed_files_makes_them_all_the_same(self, here, monkeypatch, number):
        def no_unnamed(path, flags, mode=0o777, *, dir_fd=None):
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(number, os.strerror(number))
            return real(path, flags, mode, dir_fd=dir_fd)

        real = os.open
        monkeypatch.setattr(os, "open", no_unnamed)
        os.close(new_file("file", os.O_RDWR, here))
        assert stat.S_IMODE(os.stat("file", dir_fd=here).st_mode) == 0o660


def nameless(here: int, set_mode: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """What sets a mode, if nothing has the name ``file`` yet."""

    def checked(fd: int, mode: int) -> None:
        assert "file" not in os.listdir(here)
        set_mode(fd, mode)

    return checked


def test_what_lies_in_a_root_of_an_open_mode_that_nobody_has_shared_is_private(tmp_path):
    for there in (0o2770, 0o755):
        root = tmp_path / f"{there:o}"
        root.mkdir()
        root.chmod(there)
        assert modes_for(f"{root}/triton") == PRIVATE
        assert modes_for(f"{root}/gpucache") == PRIVATE
        (root / "triton").mkdir()
        (root / "triton").chmod(there)
        assert modes_for(f"{root}/triton/0") == PRIVATE


@pytest.mark.root
class TestWhomToBelieve:
    """Ada looks at a root of Bob's."""

    def believed(self, root: Path, trust: Trust) -> bool:
        with acting_as(ADA, TEAM, COMMON):
            shared = trust.in_root(str(root))
            assert (sharing_of(str(root), trust) == "group") is (shared.shared_gid is not None)
            try:
                vet(str(root), shared)
                vet_child(paths.ours(str(root)), shared)
                vet_file(paths.mark_path(str(root)), shared)
            except UnsafeDirectoryError:
                return False
            return True

    def test_a_group_that_she_named(self, everyones):
        root = shared_root(everyones / "root", BOB)
        assert self.believed(root, Trust(groups=frozenset({TEAM})))
        assert not self.believed(root, Trust())
        assert not self.believed(root, Trust(groups=frozenset({COMMON})))

    def test_an_owner_whom_she_trusts(self, everyones):
        root = shared_root(everyones / "root", BOB)
        assert self.believed(root, Trust(frozenset({BOB})))

    @pytest.mark.parametrize("uid", [0, ADA])
    def test_root_and_herself(self, everyones, uid):
        root = shared_root(everyones / "root", uid)
        of_bob = Path(paths.ours(str(root)))
        os.chown(of_bob, BOB, TEAM)
        assert self.believed(root, Trust())

    def test_no_mark_no_trust(self, everyones):
        root = shared_root(everyones / "root", BOB)
        os.unlink(paths.mark_path(str(root)))
        assert not self.believed(root, Trust(groups=frozenset({TEAM})))

    @pytest.mark.parametrize(
        "change",
        [
            lambda root, mark: os.chmod(root, 0o2775),
            lambda root, mark: os.chmod(root, 0o770),
            lambda root, mark: os.chmod(mark, 0o664),
            lambda root, mark: os.chown(mark, BOB, COMMON),
            lambda root, mark: os.link(mark, f"{root}/other"),
            lambda root, mark: Path(mark).write_text("{}"),
            lambda root, mark: Path(mark).write_text('{"format": 1, "sharing": ["group"]}'),
            lambda root, mark: Path(mark).write_bytes(mark_text("read")),
            lambda root, mark: (os.unlink(mark), os.mkfifo(mark, 0o660)),
            lambda root, mark: (os.rename(mark, f"{root}/m"), os.symlink(f"{root}/m", mark)),
        ],
    )
    def test_a_mark_or_root_that_is_open_to_others_or_no_mark_is_not_believed(
        self, everyones, change
    ):
        root = shared_root(everyones / "root", BOB)
        change(root, paths.mark_path(str(root)))
        assert not self.believed(root, Trust(groups=frozenset({TEAM})))

    def test_a_strangers_mark_in_her_own_root_counts_for_nothing(self, everyones):
        """Whose group may write the root, where she has never shared it."""
        root = shared_root(everyones / "root", ADA, COMMON)
        os.chown(paths.mark_path(str(root)), BOB, COMMON)
        with acting_as(ADA):
            assert Trust().in_root(str(root)).shared_gid is None
            assert sharing_of(str(root), Trust()) == "private"

    def test_where_everybody_may_make_directories_of_the_group_that_proves_nothing(self, everyones):
        above = everyones / "above"
        above.mkdir()
        os.chown(above, 0, TEAM)
        above.chmod(0o3777)
        root = shared_root(above / "root", BOB)
        assert not self.believed(root, Trust(groups=frozenset({TEAM})))
        assert self.believed(root, Trust(frozenset({BOB}), groups=frozenset({TEAM})))

    def test_of_a_member_nothing_is_accepted_that_others_may_reach_or_another_group_owns(
        self, everyones
    ):
        root = shared_root(everyones / "root", BOB)
        inside = Path(paths.ours(str(root)))
        trust = Trust(groups=frozenset({TEAM}))
        for owner, group, permissions in ((BOB, COMMON, 0o2770), (BOB, TEAM, 0o2775)):
            os.chown(inside, owner, group)
            inside.chmod(permissions)
            assert not self.believed(root, trust)


class TestReadRoots:
    def test_a_read_root_is_one_whose_owner_is_trusted(self, everyones):
        root = shared_root(everyones / "root", BOB, sharing="read")
        root.chmod(0o755)
        for path in (root / "gpucache", root / "gpucache" / "v1"):
            path.chmod(0o755)
        os.chmod(paths.mark_path(str(root)), 0o644)
        with acting_as(ADA):
            assert sharing_of(str(root), Trust(frozenset({BOB}))) == "read"
            assert sharing_of(str(root), Trust()) == "private"


@pytest.mark.root
class TestOnAnothersFile:
    """Ada and Bob are in the team, and the file is Bob's."""

    @pytest.fixture
    def file(self, everyones) -> Path:
        directory = everyones / "shared"
        directory.mkdir()
        file = directory / "file"
        file.write_bytes(b"content")
        for path, permissions in ((directory, 0o2770), (file, 0o660)):
            os.chown(path, BOB, TEAM)
            path.chmod(permissions)
        return file

    def test_the_time_of_now_is_set_where_another_cannot_be(self, file):
        os.utime(file, (0, 0))
        with acting_as(ADA, TEAM):
            set_use(str(file), 10**18)
        assert abs(file.stat().st_mtime - time.time()) < 3600

    @pytest.mark.parametrize(
        ("permissions", "gid", "is_linked"),
        [(0o660, TEAM, True), (0o640, TEAM, False), (0o660, COMMON, False), (0o664, TEAM, False)],
    )
    def test_what_has_not_the_roots_modes_and_group_is_copied_with_them(
        self, file, permissions, gid, is_linked
    ):
        os.chown(file, BOB, gid)
        file.chmod(permissions)
        target = file.parent / "target"
        with acting_as(ADA, TEAM, COMMON):
            assert link_or_copy(str(file), str(target), GROUP) is is_linked
        found = target.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, TEAM)
        assert found.st_uid == (BOB if is_linked else ADA)
        assert target.read_bytes() == b"content"
        assert stat.S_IMODE(file.stat().st_mode) == permissions

    def test_no_mode_is_changed_also_by_root(self, file):
        fd = os.open(file, os.O_RDWR)
        sharing.set_mode(fd, 0o600)
        os.close(fd)
        assert mode(file) == 0o660


@pytest.mark.root
def test_of_another_member_an_empty_directory_is_swept_that_had_not_its_mode_yet(everyones):
    above = everyones / "shared"
    for path in (above, above / "publish-empty", above / "publish-full"):
        path.mkdir()
        os.chown(path, BOB, TEAM)
        path.chmod(0o2770 if path == above else 0o2700)
    (above / "publish-full" / "file").write_bytes(b"")
    for path in above.iterdir():
        os.utime(path, (0, 0))
    with acting_as(ADA, TEAM):
        sweep_old(str(above), "publish-")
    assert os.listdir(above) == ["publish-full"]


def test_what_joins_a_directory_of_stock_tritons_is_as_open_as_that(tmp_path):
    expected = {0o700: (0o700, 0o600), 0o755: (0o755, 0o644), 0o775: (0o775, 0o664)}
    expected[0o777] = expected[0o775]  # nothing is made that everybody may write
    for there, (directory, file) in expected.items():
        tmp_path.chmod(there)
        assert modes_like(str(tmp_path)) == sharing.Modes(directory, file)
    tmp_path.chmod(0o2770)
    assert modes_like(str(tmp_path)) == GROUP
