"""Changing with whom an existing root is shared, and mending one whose modes do not fit."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.trees import KEY, Cache
from support.users import acting_as

from gpucache.disk.default_acl import has_default_acl
from gpucache.disk.sharing import mark_of, mark_text
from gpucache.disk.vetting import Trust
from gpucache.disk.within import Straight
from gpucache.errors import SharingError
from gpucache.layout import paths
from gpucache.store.foreign import foreign_directories, remember, view_at
from gpucache.store.lookup import sound
from gpucache.upkeep import reshare_act
from gpucache.upkeep.reshare import plan
from gpucache.upkeep.reshare_act import Reshared, apply

# loaded while root: the interpreter may lie where no other user can read it
assert grp
assert pwd
assert view_at

TEAM, OTHER_TEAM = 54400, 54401
ADA, BOB = 54501, 54502  # whom this machine does not know by name
GRAPH = f"fxgraph/{'a' * 2}/{'a' * 51}/{'b' * 51}"
CODE = f"ab/cab{'c' * 40}.py"

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("as_root")]


@contextmanager
def as_bob() -> Iterator[None]:
    """Be Bob, who is in the team, where the test is Ada."""
    os.seteuid(0)
    try:
        with acting_as(BOB, TEAM):
            yield
    finally:
        os.setgroups([TEAM, OTHER_TEAM])
        os.setegid(ADA)
        os.seteuid(ADA)


def given(path: Path, uid: int) -> None:
    """Let something be of another user, where the test is Ada."""
    os.seteuid(0)
    os.chown(path, uid, -1)
    os.seteuid(ADA)


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def everything(root: Path) -> list[Path]:
    return [root, *root.rglob("*")]


def share(root: Path, sharing: str, group: int | None = None) -> Reshared:
    return apply(plan(str(root), sharing, None if group is None else str(group)))


def make(root: Path) -> Cache:
    """A root with an entry, two views, and files of torch's, as this user has made it."""
    before = os.umask(0o022)
    cache = Cache(root.parent)
    Path(paths.ours(str(root), "locks")).mkdir(parents=True)
    root.chmod(0o700)
    cache.publish()
    cache.link()
    cache.link(cache.other_view)
    for name in (GRAPH, CODE):
        path = root / name
        path.parent.mkdir(parents=True)
        path.write_text(name)
    os.umask(before)
    return cache


@pytest.fixture
def adas(everyones: Path) -> Iterator[Cache]:
    """A private root of Ada's, who is in the team, and in whose shoes the test is."""
    home = everyones / "ada"
    home.mkdir()
    os.chown(home, ADA, ADA)
    with acting_as(ADA, TEAM, OTHER_TEAM):
        yield make(home / "root")


class TestModes:
    def test_all_that_is_adas_becomes_the_groups_and_is_believed_last(self, adas):
        before = sound(str(adas.entry), True, 0.0)
        planned = plan(str(adas.root), "group", str(TEAM))
        done = apply(planned)
        made = len(paths.our_directories(str(adas.root)))
        assert planned.directories < done.directories <= planned.directories + made
        assert done.files == planned.files + 2  # the lock of the change, and who holds it
        assert done.failures == ()
        for path in everything(adas.root):
            assert path.lstat().st_gid == TEAM, path
            assert mode(path) == (0o2770 if path.is_dir() else 0o660), path
        assert mark_of(str(adas.root)).sharing == "group"
        assert sound(str(adas.entry), True, 0.0) == before
        assert adas.whole(adas.view)
        assert not plan(str(adas.root), "group").changes_anything

    def test_a_plan_changes_nothing_and_tells_how_much_it_would(self, adas):
        modes = {path: path.lstat() for path in everything(adas.root)}
        planned = plan(str(adas.root), "group", str(TEAM))
        directories = [path for path in modes if path.is_dir()]
        inodes = {found.st_ino: found for path, found in modes.items() if path.is_file()}
        assert planned.directories == len(directories)
        assert planned.files == len(inodes)
        assert planned.bytes == sum(found.st_size for found in inodes.values())
        assert planned.before == "private"
        assert planned.changes_anything
        for path, found in modes.items():
            assert path.lstat().st_mode == found.st_mode

    def test_torchs_directories_get_a_default_acl_and_gpucaches_need_none(self, adas):
        share(adas.root, "group", TEAM)
        for path in everything(adas.root):
            if path.is_dir():
                below = path.relative_to(adas.root).parts
                is_ours = below[:1] == ("gpucache",) or (len(below) > 2 and below[0] == "triton")
                assert has_default_acl(path) is not is_ours, path

    def test_back_to_private_nobody_else_may_do_anything_and_no_umask_is_passed_over(self, adas):
        share(adas.root, "group", TEAM)
        done = share(adas.root, "private")
        assert done.failures == ()
        for path in everything(adas.root):
            assert mode(path) == (0o700 if path.is_dir() else 0o600), path
            assert not has_default_acl(path)
        assert mark_of(str(adas.root)) is None
        assert adas.whole(adas.view)
        assert not plan(str(adas.root), "private").changes_anything

    def test_others_may_read_what_is_published_and_lock_nothing(self, adas):
        (adas.root / "gpucache.toml").write_text("max_size = '1GiB'")
        share(adas.root, "read")
        root = adas.root
        assert mark_of(str(root)).sharing == "read"
        for name in ("locks", "tmp"):
            assert mode(paths.ours(str(root), name)) == 0o700
        assert mode(root / GRAPH) == 0o600
        for path in (root, adas.entry, adas.view, root / "triton" / "0", adas.entry.parent):
            assert mode(path) == 0o755, path
        for path in (*adas.entry.iterdir(), *adas.view.iterdir(), root / "gpucache.toml"):
            assert mode(path) == 0o644, path
        share(root, "private")
        assert {mode(path) for path in everything(root)} == {0o700, 0o600}

    def test_who_may_read_a_program_may_run_it(self, adas):
        program = adas.root / CODE.replace(".py", ".so")
        program.write_bytes(b"\x7fELF")
        program.chmod(0o755)
        share(adas.root, "group", TEAM)
        assert mode(program) == 0o770
        share(adas.root, "private")
        assert mode(program) == 0o700

    def test_another_group_takes_the_place_of_the_first(self, adas):
        share(adas.root, "group", TEAM)
        share(adas.root, "group", OTHER_TEAM)
        assert {path.lstat().st_gid for path in everything(adas.root)} == {OTHER_TEAM}
        assert mark_of(str(adas.root)).gid == OTHER_TEAM

    def test_the_group_is_by_default_that_of_the_roots_directory(self, adas):
        os.chown(adas.root, -1, OTHER_TEAM)
        share(adas.root, "group")
        assert {path.lstat().st_gid for path in everything(adas.root)} == {OTHER_TEAM}

    def test_what_its_owner_cannot_open_is_mended_too(self, adas):
        share(adas.root, "group", TEAM)
        (adas.entry / "add.ptx").chmod(0o000)
        planned = plan(str(adas.root), "group")
        assert (planned.directories, planned.files) == (0, 1)
        (adas.root / "triton" / "1").chmod(0o000)
        assert plan(str(adas.root), "group").directories == 1
        assert share(adas.root, "group").failures == ()
        assert mode(adas.root / "triton" / "1") == 0o2770
        assert mode(adas.entry / "add.ptx") == 0o660


class TestOthers:
    def test_what_is_another_users_stays_and_is_named(self, adas):
        share(adas.root, "group", TEAM)
        directory = adas.root / "triton" / "2"
        with as_bob():
            directory.mkdir()
            directory.chmod(0o2755)
            (directory / "file").write_text("")
        planned = plan(str(adas.root), "group")
        (bobs,) = planned.others
        assert (bobs.uid, bobs.count, bobs.example) == (BOB, 1, str(directory))
        assert not planned.changes_anything
        apply(planned)
        assert mode(directory) == 0o2755

    def test_each_member_mends_what_is_his_own(self, adas):
        share(adas.root, "group", TEAM)
        directory = adas.root / "triton" / "2"
        with as_bob():
            directory.mkdir()
            directory.chmod(0o2700)
            planned = plan(str(adas.root), "group", trust=Trust(groups=frozenset([TEAM])))
            done = apply(planned)
            assert (done.directories, done.failures) == (1, ())
        assert mode(directory) == 0o2770

    @pytest.mark.parametrize("sharing", ["private", "read"])
    def test_only_the_owner_says_with_whom(self, adas, sharing):
        share(adas.root, "group", TEAM)
        with as_bob(), pytest.raises(SharingError) as refused:
            plan(str(adas.root), sharing)
        assert refused.value.reason == "not-the-owner"
        assert f"--shared {sharing}" in refused.value.hint
        assert mark_of(str(adas.root)).sharing == "group"

    def test_what_is_no_cache_stays_as_private_as_it_is(self, adas):
        letters = adas.root / "letters"
        letters.mkdir(mode=0o700)
        (letters / "letter").write_text("dear")
        (adas.root / "go").mkdir(mode=0o700)
        (adas.root / "go" / "file").write_text("")
        before = {path: mode(path) for path in everything(letters)}
        planned = plan(str(adas.root), "group", str(TEAM))
        assert planned.left == ("go", "letters")
        apply(planned)
        assert {path: mode(path) for path in everything(letters)} == before
        assert mode(adas.root / "go") == 0o700

    @pytest.mark.parametrize("mode_of_bobs", [0o2770, 0o700], ids=oct)
    def test_what_another_member_has_made_for_all_is_put_aside_on_the_way_back(
        self, adas, mode_of_bobs
    ):
        """A private root with another user's directory of devices is one that its owner's processes refuse."""
        share(adas.root, "group", TEAM)
        bobs = [adas.root / "triton" / "2", Path(paths.ours(str(adas.root), "outbox"))]
        bobs[1].rmdir()
        with as_bob():
            for path in bobs:
                path.mkdir()
                (path / "file").write_text("Bob's")
                path.chmod(mode_of_bobs)
        planned = plan(str(adas.root), "private")
        assert sorted(planned.taken) == sorted(map(str, bobs))
        assert apply(planned).failures == ()
        for path in bobs:
            assert (path.lstat().st_uid, mode(path), list(path.iterdir())) == (ADA, 0o700, [])
        assert plan(str(adas.root), "private").taken == ()
        os.seteuid(0)
        assert len(list(adas.root.rglob("*/file"))) == 2, "it is aside, and whole"
        os.seteuid(ADA)

    @pytest.mark.parametrize("part", ["shard", "entry", "file", "view", "graphs"])
    def test_nothing_that_others_read_stays_another_members_to_write(self, adas, part):
        """Its owner, and all readers, would execute what that member writes there later."""
        share(adas.root, "group", TEAM)
        place = {
            "shard": adas.entry.parent,
            "entry": adas.entry,
            "file": adas.entry / "add.ptx",
            "view": adas.view,
            "graphs": adas.root / "fxgraph",
        }[part]
        given(place, BOB)
        planned = plan(str(adas.root), "read")
        assert planned.taken
        assert apply(planned).failures == ()
        with as_bob():
            for path in everything(adas.root):
                assert not os.access(path, os.W_OK, effective_ids=True), path
        assert adas.entry.parent.is_dir()
        assert adas.entry.is_dir() is (part in ("shard", "view", "graphs")), (
            "Ada's own entry is not lost"
        )
        assert plan(str(adas.root), "read").taken == ()
        assert not plan(str(adas.root), "read").changes_anything

    @pytest.mark.parametrize("sharing", ["private", "read"])
    @pytest.mark.parametrize("part", ["shard", "entry", "view"])
    def test_what_is_closed_to_an_owner_who_left_the_group_is_put_aside(self, adas, part, sharing):
        """Else nothing could be kept under these keys, and each launch would tell so."""
        share(adas.root, "group", TEAM)
        place = {"shard": adas.entry.parent, "entry": adas.entry, "view": adas.view}[part]
        given(place, BOB)
        with as_bob():
            place.chmod(0o700)
        planned = plan(str(adas.root), sharing)
        assert planned.taken == (str(place),)
        assert apply(planned).failures == ()
        assert not place.exists() or place.lstat().st_uid == ADA
        assert plan(str(adas.root), sharing).taken == ()

    @pytest.mark.parametrize("sharing", ["private", "read"])
    def test_records_and_settings_of_another_member_become_the_owners(self, adas, sharing):
        """A record of another user is one that the owner's processes refuse."""
        share(adas.root, "group", TEAM)
        record = Path(paths.record_path(str(adas.root), "host"))
        settings = adas.root / paths.SETTINGS
        for path in (record, settings):
            path.write_text("Bob's")
            path.chmod(0o660)
            given(path, BOB)
        assert sorted(plan(str(adas.root), sharing).taken) == sorted(map(str, (record, settings)))
        share(adas.root, sharing)
        for path in (record, settings):
            assert (path.lstat().st_uid, path.read_text()) == (ADA, "Bob's")
            assert mode(path) == (0o600 if sharing == "private" else 0o644)
        assert plan(str(adas.root), sharing).taken == ()

    def test_a_group_comes_to_a_root_with_all_directories_of_its_owners(self, adas):
        share(adas.root, "group", TEAM)
        for path in paths.our_directories(str(adas.root)):
            assert os.lstat(path).st_uid == ADA

    def test_a_members_own_directory_stays_that_members(self, adas):
        own = adas.root / "members" / str(ADA)
        own.mkdir(parents=True)
        own.chmod(0o700)
        share(adas.root, "group", TEAM)
        assert (mode(own.parent), mode(own)) == (0o2770, 0o700)


class TestRefusals:
    def test_a_group_that_is_not_there(self, adas):
        with pytest.raises(SharingError) as refused:
            plan(str(adas.root), "group", "nosuchgroup")
        assert refused.value.reason == "no-such-group"
        assert "sudo groupadd nosuchgroup" in refused.value.hint

    @pytest.mark.parametrize("number", ["4294967295", "4294967296", "9" * 5000])
    def test_a_number_that_is_no_groups(self, adas, number):
        """The first of these tells the kernel to leave the group as it is: root would share with another one."""
        for uid in (ADA, 0):
            os.seteuid(0)
            os.seteuid(uid)
            with pytest.raises(SharingError) as refused:
                plan(str(adas.root), "group", number)
            assert refused.value.reason == "no-such-group"
        os.seteuid(ADA)

    def test_a_user_who_is_no_member(self, adas):
        before = [mode(path) for path in everything(adas.root)]
        with pytest.raises(SharingError) as refused:
            plan(str(adas.root), "group", "4")
        assert refused.value.reason == "not-a-member"
        assert "sudo usermod -aG" in refused.value.hint
        assert [mode(path) for path in everything(adas.root)] == before


class TestLinks:
    """Files that have names outside the root as well: a mode belongs to the file, not to the name."""

    def test_a_view_elsewhere_keeps_its_modes_and_is_found_again(self, adas, everyones):
        elsewhere = everyones / "ada" / "elsewhere"
        adas.link(elsewhere / KEY)
        remember(str(adas.root), str(elsewhere))
        before = {path: (mode(path), path.lstat().st_gid) for path in everything(elsewhere)}
        planned = plan(str(adas.root), "group", str(TEAM))
        assert planned.copied_files == 4  # three files and the manifest
        done = apply(planned)
        assert (done.copied_files, done.failures) == (4, ())
        assert {path: (mode(path), path.lstat().st_gid) for path in before} == before
        assert adas.whole(adas.view)
        assert adas.whole(elsewhere / KEY)
        assert {mode(path) for path in adas.entry.iterdir()} == {0o660}
        for name in ("add.cubin", "__entry__.json"):
            inodes = {(there / name).lstat().st_ino for there in (adas.entry, adas.view)}
            assert inodes == {(adas.other_view / name).lstat().st_ino}, "one copy for all names"
        root = os.path.realpath(adas.root)
        (foreign,) = foreign_directories(root)
        assert view_at(foreign, root, KEY).is_copy

    def test_a_use_that_was_stamped_before_the_copy_is_kept(self, adas, everyones):
        os.link(adas.entry / "__entry__.json", everyones / "ada" / "outside")
        os.utime(adas.entry / "__entry__.json", (1e9, 1e9))
        share(adas.root, "group", TEAM)
        assert (adas.view / "__entry__.json").lstat().st_mtime == 1e9

    def test_a_backup_of_hard_links_stays_as_it_was(self, adas, everyones):
        backup = everyones / "ada" / "backup"
        os.link(adas.root / GRAPH, backup)
        before = backup.lstat()
        assert share(adas.root, "group", TEAM).copied_files == 1
        assert mode(adas.root / GRAPH) == 0o660
        assert backup.lstat().st_mode == before.st_mode
        assert backup.read_bytes() == (adas.root / GRAPH).read_bytes()

    def test_an_entry_whose_key_is_locked_is_told_and_left_for_the_next_time(
        self, adas, everyones, monkeypatch
    ):
        from gpucache.store import key_lock

        os.link(adas.entry / "add.ptx", everyones / "ada" / "outside")
        lock = paths.ours(str(adas.root), "locks", f"{KEY}.lock")
        monkeypatch.setattr(reshare_act, "_PATIENCE_S", 0.0)
        with key_lock.holding(lock, "a test") as held:
            assert held
            assert share(adas.root, "group", TEAM).uncopied == 1
        assert mark_of(str(adas.root)) is None, "nobody is to believe that all can be used"
        done = share(adas.root, "group", TEAM)
        assert (done.copied_files, done.uncopied) == (1, 0)
        assert mark_of(str(adas.root)).sharing == "group"

    def test_where_the_disk_is_full_the_root_is_not_marked_and_nothing_is_left_half(
        self, adas, everyones, monkeypatch
    ):
        os.link(adas.entry / "add.ptx", everyones / "ada" / "outside")

        def full(old, new):
            new.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr(shutil, "copyfileobj", full)
            done = share(adas.root, "group", TEAM)
        assert done.uncopied == 1
        assert [failure.why for failure in done.failures] == ["No space left on device"]
        assert mark_of(str(adas.root)) is None
        assert list(Path(paths.ours(str(adas.root), "tmp")).glob("publish-*")) == []
        assert adas.whole(adas.view)
        assert share(adas.root, "group", TEAM).copied_files == 1
        assert mark_of(str(adas.root)).sharing == "group"

    def test_nothing_is_copied_for_a_group_that_a_member_may_have_linked_there(
        self, adas, everyones
    ):
        """Where the kernel lets a member link what that member cannot read, a copy would let all members read it."""
        share(adas.root, "group", TEAM)
        secret = everyones / "ada" / "secret"
        secret.write_text("secret")
        secret.chmod(0o600)
        os.link(secret, adas.root / "triton" / "0" / "planted")
        planned = plan(str(adas.root), "group")
        assert (planned.shared_links, planned.copied_files, planned.files) == (1, 0, 0)
        apply(planned)
        assert mode(secret) == 0o600
        assert (adas.root / "triton" / "0" / "planted").lstat().st_ino == secret.lstat().st_ino


class TestHostile:
    """What lies below is changed by root for its owner, who may have put anything there."""

    @pytest.fixture
    def victim(self, tmp_path: Path) -> Path:
        """A file that only root may read."""
        path = tmp_path / "shadow"
        path.write_text("root:secret")
        path.chmod(0o600)
        return path

    @pytest.fixture
    def theirs(self, everyones: Path) -> Cache:
        home = everyones / "ada"
        home.mkdir()
        os.chown(home, ADA, ADA)
        with acting_as(ADA, TEAM):
            cache = make(home / "root")
        os.chown(cache.root, ADA, TEAM)
        return cache

    def test_root_changes_what_is_its_owners_with_that_users_rights(self, theirs):
        done = share(theirs.root, "group")
        assert done.failures == ()
        assert {path.lstat().st_uid for path in everything(theirs.root)} == {ADA}
        assert {mode(path) for path in everything(theirs.root)} == {0o2770, 0o660}
        assert os.geteuid() == os.getegid() == 0

    def test_a_link_is_not_followed_wherever_it_is(self, theirs, victim, everyones):
        outside = everyones / "outside"
        outside.mkdir(mode=0o700)
        (outside / "file").touch(0o600)
        for where in ("triton/link", "gpucache/v1/store/link", f"{GRAPH}.link", "fxgraph/link"):
            (theirs.root / where).symlink_to(victim)
        for where in ("triton/5", "aotautograd", "gpucache/v1/outbox"):
            (theirs.root / where).symlink_to(outside)
        share(theirs.root, "group")
        assert (mode(victim), mode(outside), mode(outside / "file")) == (0o600, 0o700, 0o600)
        assert (victim.lstat().st_gid, outside.lstat().st_gid) == (0, 0)

    @pytest.mark.parametrize("where", ["gpucache", "gpucache/v1", "gpucache/v1/tmp"])
    def test_a_link_in_the_place_of_gpucaches_directories_leads_nowhere(
        self, theirs, everyones, where
    ):
        outside = everyones / "outside"
        (outside / "v1" / "tmp").mkdir(parents=True)
        before = {path: path.lstat().st_mode for path in everything(outside)}
        place = theirs.root / where
        place.rename(everyones / "ada" / "away")
        place.symlink_to(outside)
        with pytest.raises(OSError) as refused:
            apply(plan(str(theirs.root), "group"))
        assert refused.value.errno in (errno.ELOOP, errno.ENOTDIR)
        assert {path: path.lstat().st_mode for path in everything(outside)} == before

    def test_a_hard_link_to_anothers_file_is_not_touched(self, theirs, everyones):
        file = everyones / "roots"
        file.write_text("secret")
        file.chmod(0o600)
        os.link(file, theirs.root / "triton" / "0" / "planted")
        planned = plan(str(theirs.root), "group")
        assert [(other.uid, other.count) for other in planned.others] == [(0, 1)]
        apply(planned)
        assert mode(file) == 0o600
        assert file.lstat().st_nlink == 2

    def test_fifos_sockets_and_devices_are_passed_over(self, theirs):
        os.mkfifo(theirs.root / "triton" / "0" / "fifo")
        os.chown(theirs.root / "triton" / "0" / "fifo", ADA, ADA)
        assert share(theirs.root, "group").failures == ()
        assert mode(theirs.root / "triton" / "0" / "fifo") & 0o077 == 0o044

    def test_what_is_swapped_for_a_link_between_look_and_act_is_not_followed(
        self, theirs, victim, monkeypatch
    ):
        """The swap is placed after a file was seen, and before it is opened."""
        real = reshare_act.change
        target = theirs.root / GRAPH

        def swapped(seen, *rest):
            if seen.path == GRAPH and not target.is_symlink():
                target.unlink()
                target.symlink_to(victim)
            return real(seen, *rest)

        monkeypatch.setattr(reshare_act, "change", swapped)
        share(theirs.root, "group")
        assert target.is_symlink()
        assert mode(victim) == 0o600

    def test_what_is_swapped_for_a_hard_link_to_the_owners_own_file_is_not_changed(
        self, theirs, everyones, monkeypatch
    ):
        real = reshare_act.change
        target = theirs.root / GRAPH
        own = everyones / "ada" / "key"
        own.write_text("secret")
        own.chmod(0o600)
        os.chown(own, ADA, ADA)

        def swapped(seen, *rest):
            if seen.path == GRAPH and own.lstat().st_nlink == 1:
                target.unlink()
                os.link(own, target)
            return real(seen, *rest)

        monkeypatch.setattr(reshare_act, "change", swapped)
        share(theirs.root, "group")
        assert mode(own) == 0o600


class TestMeanwhile:
    """Ranks go on while a root is changed."""

    def test_what_was_put_where_all_was_changed_is_found_by_the_next_pass(self, adas, monkeypatch):
        """A rank has looked at a directory's mode before the change, and puts a file there after the listing."""
        late = adas.root / "triton" / "0" / "late"
        real = reshare_act._Pass.run
        passes = []

        def run(one):
            real(one)
            if not passes:
                late.mkdir(mode=0o700)
                (late / "file").touch(0o600)
            passes.append(one)

        monkeypatch.setattr(reshare_act._Pass, "run", run)
        share(adas.root, "group", TEAM)
        assert (mode(late), mode(late / "file")) == (0o2770, 0o660)
        assert len(passes) == 3

    def test_what_is_made_in_a_directory_after_its_listing_inherits_from_it(
        self, adas, monkeypatch
    ):
        real = os.listdir
        made: list[Path] = []

        def listed(fd):
            names = real(fd)
            in_triton = os.readlink(f"/proc/self/fd/{fd}").endswith("/triton")
            if not made and in_triton and stat.S_IMODE(os.fstat(fd).st_mode) == 0o2770:
                from gpucache.disk.sharing import modes_in, new_directory

                made.append(adas.root / "triton" / "9")
                new_directory("9", modes_in(fd), fd)
                assert mode(made[0]) == 0o2770
                assert made[0].lstat().st_gid == TEAM
            return names

        monkeypatch.setattr(os, "listdir", listed)
        share(adas.root, "group", TEAM)
        assert made

    def test_two_at_once_do_not_undo_each_others_work(self, adas, monkeypatch):
        monkeypatch.setattr(reshare_act, "_WAIT_S", 0.0)
        planned = plan(str(adas.root), "group", str(TEAM))
        with reshare_act._alone(str(adas.root), Straight()):
            with pytest.raises(SharingError) as refused:
                apply(planned)
        assert refused.value.reason == "at-work"
        assert apply(planned).files

    def test_the_mark_is_there_only_while_all_is_as_it_says(self, adas, monkeypatch):
        """It comes last where more are to use the root, and goes first where fewer are."""
        seen: list[str | None] = []
        real = reshare_act._Pass.run

        def run(one):
            mark = mark_of(str(adas.root))
            seen.append(None if mark is None else mark.sharing)
            real(one)

        monkeypatch.setattr(reshare_act._Pass, "run", run)
        for sharing in ("group", "private", "read", "private"):
            share(adas.root, sharing, TEAM if sharing == "group" else None)
        share(adas.root, "group", TEAM)
        share(adas.root, "group", OTHER_TEAM)
        assert set(seen) == {None}


def test_mending_a_groups_root_leaves_its_mark(adas):
    share(adas.root, "group", TEAM)
    path = Path(paths.mark_path(str(adas.root)))
    before = path.lstat().st_ino
    (adas.entry).chmod(0o700)
    share(adas.root, "group")
    assert path.lstat().st_ino == before
    assert path.read_bytes() == mark_text("group")
