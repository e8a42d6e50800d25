from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.trees import everything_below
from support.users import ADA, BOB, acting_as, directory, link

from gpucache import DeviceCacheRegistry
from gpucache.disk.vetting import Trust, vet, vet_child
from gpucache.errors import ConfigurationError, ProvisionError, UnsafeDirectoryError
from gpucache.machine.device import Device, Snapshot, Status

NOBODY_ELSE = Trust()
SNAPSHOT = Snapshot(status=Status.OK, source="nvml", devices=(Device(uuid="GPU-0", index=0),))


def provision(root: Path, uid: int = 0, **environ: str) -> object:
    with acting_as(uid):
        return DeviceCacheRegistry(root, SNAPSHOT, environ).provision()


class TestTrust:
    @pytest.mark.parametrize("text", ["", " ", ",", " , "])
    def test_empty_trusts_nobody_else(self, text):
        assert Trust.parse({"GPUCACHE_TRUST_UIDS": text}) == Trust.parse({}) == NOBODY_ELSE

    def test_a_list_of_user_ids(self):
        assert Trust.parse({"GPUCACHE_TRUST_UIDS": " 1000, 1001,,0"}).uids == {1000, 1001, 0}

    @pytest.mark.parametrize(
        "text", ["ada", "-1", "1000;1001", "1000 1001", "0x10", "1.5", "*", "١", "1000,ada"]
    )
    def test_anything_else_is_refused(self, text):
        with pytest.raises(
            ConfigurationError, match="GPUCACHE_TRUST_UIDS=.* is not a comma-separated list"
        ) as caught:
            Trust.parse({"GPUCACHE_TRUST_UIDS": text})
        assert caught.value.value == text

    def test_world_writable_is_a_switch(self):
        name = "GPUCACHE_TRUST_WORLD_WRITABLE"
        assert [Trust.parse({name: value}).world_writable for value in ("1", "0", "")] == [
            True,
            False,
            False,
        ]

    @pytest.mark.parametrize("text", ["yes", "true", "2", " 1", "on"])
    def test_a_switch_is_0_or_1(self, text):
        with pytest.raises(
            ConfigurationError, match="GPUCACHE_TRUST_WORLD_WRITABLE='.*' is not 0 or 1"
        ):
            Trust.parse({"GPUCACHE_TRUST_WORLD_WRITABLE": text})


class TestWithoutAnotherUser:
    @pytest.fixture(autouse=True)
    def below(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)

    def test_what_is_ones_own_is_fine(self, tmp_path):
        assert vet(str(tmp_path), NOBODY_ELSE) is True

    def test_what_is_missing_is_fine_and_is_said_to_be_missing(self, tmp_path):
        assert vet(str(tmp_path / "missing" / "below"), NOBODY_ELSE) is False

    def test_a_directory_that_everybody_may_write_is_refused(self, tmp_path):
        tmp_path.chmod(0o777)
        with pytest.raises(UnsafeDirectoryError) as caught:
            vet(str(tmp_path), NOBODY_ELSE)
        assert caught.value.path == str(tmp_path)
        assert "everybody may write it (mode 0777)" in str(caught.value)
        hint = f"`chmod o-w {caught.value.path}`, or set GPUCACHE_TRUST_WORLD_WRITABLE=1 where"
        assert caught.value.hint.startswith(hint)

    def test_the_sticky_bit_does_not_help_the_directory_itself(self, tmp_path):
        """Files of one's own are safe in it, but what is not there yet can be planted."""
        tmp_path.chmod(0o1777)
        with pytest.raises(UnsafeDirectoryError, match="mode 1777") as caught:
            vet(str(tmp_path), NOBODY_ELSE)
        assert "chmod" not in caught.value.hint, "it is like /tmp, which others need as it is"

    @pytest.mark.parametrize("mode", [0o775, 0o2770, 0o700, 0o750, 0o755])
    def test_a_group_that_may_write_is_trusted(self, tmp_path, mode):
        tmp_path.chmod(mode)
        assert vet(str(tmp_path), NOBODY_ELSE)

    @pytest.mark.parametrize("below", ["below", "missing/further"])
    def test_an_ancestor_that_everybody_may_write_is_refused(self, tmp_path, below):
        (tmp_path / "below").mkdir()
        tmp_path.chmod(0o777)
        with pytest.raises(
            UnsafeDirectoryError,
            match=r"everybody may write this ancestor \(mode 0777, not sticky\)",
        ):
            vet(str(tmp_path / below), NOBODY_ELSE)

    @pytest.mark.parametrize(("below", "there"), [("below", True), ("missing", False)])
    def test_the_sticky_bit_makes_an_ancestor_fine(self, tmp_path, below, there):
        (tmp_path / "below").mkdir()
        tmp_path.chmod(0o1777)
        assert vet(str(tmp_path / below), NOBODY_ELSE) is there

    def test_world_writable_directories_can_be_trusted(self, tmp_path):
        (tmp_path / "below").mkdir()
        (tmp_path / "below").chmod(0o777)
        tmp_path.chmod(0o777)
        assert vet(str(tmp_path / "below"), Trust(world_writable=True))

    @pytest.mark.parametrize(
        "way", ["link/inner", "a/../link/inner", "./link//inner/.", "relative/../other"]
    )
    def test_links_and_dots_are_followed_as_the_kernel_does(self, tmp_path, way):
        """The parent of where a link leads is not the parent of the link."""
        for name in ("a", "far/inner", "far/other"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "link").symlink_to("far/inner/..")
        (tmp_path / "relative").symlink_to("a/../far/inner")
        assert vet(f"{tmp_path}/{way}", NOBODY_ELSE) is True

    def test_where_dots_lead_is_checked(self, tmp_path):
        (tmp_path / "far" / "inner").mkdir(parents=True)
        (tmp_path / "far").chmod(0o777)
        (tmp_path / "link").symlink_to("far/inner")
        with pytest.raises(UnsafeDirectoryError) as caught:
            vet(f"{tmp_path}/link/..", NOBODY_ELSE)
        assert caught.value.path == str(tmp_path / "far")

    def test_the_way_a_link_leads_is_checked_too(self, tmp_path):
        (tmp_path / "open" / "below").mkdir(parents=True)
        (tmp_path / "open").chmod(0o777)
        (tmp_path / "absolute").symlink_to(tmp_path / "open" / "below")
        (tmp_path / "relative").symlink_to("open/below")
        for name in ("absolute", "relative"):
            with pytest.raises(UnsafeDirectoryError) as caught:
                vet(str(tmp_path / name), NOBODY_ELSE)
            assert caught.value.path == str(tmp_path / "open")

    def test_a_link_to_what_is_missing_is_missing(self, tmp_path):
        (tmp_path / "link").symlink_to("missing")
        assert vet(str(tmp_path / "link"), NOBODY_ELSE) is False
        assert vet_child(str(tmp_path / "link"), NOBODY_ELSE) is False

    def test_links_in_a_circle_are_told(self, tmp_path):
        (tmp_path / "one").symlink_to("two")
        (tmp_path / "two").symlink_to(tmp_path / "one")
        for path in (tmp_path / "one", tmp_path / "one" / "below"):
            with pytest.raises(ProvisionError, match="links on the way lead in a circle") as caught:
                vet(str(path), NOBODY_ELSE)
            assert caught.value.errno == errno.ELOOP

    def test_as_many_links_are_followed_as_the_kernel_follows(self, tmp_path):
        (tmp_path / "0").mkdir()
        for number in range(1, 42):
            (tmp_path / str(number)).symlink_to(str(number - 1))
        assert vet(str(tmp_path / "40"), NOBODY_ELSE) is os.path.isdir(tmp_path / "40") is True
        assert not os.path.isdir(tmp_path / "41")
        with pytest.raises(ProvisionError):
            vet(str(tmp_path / "41"), NOBODY_ELSE)

    @pytest.mark.parametrize("below", ["", "/below", "/../file"])
    def test_a_file_where_a_directory_should_be_is_told(self, tmp_path, below):
        (tmp_path / "file").write_text("")
        with pytest.raises(ProvisionError, match="file.*: Not a directory") as caught:
            vet(f"{tmp_path}/file{below}", NOBODY_ELSE)
        assert caught.value.errno == errno.ENOTDIR

    def test_a_child_that_is_a_file_is_told(self, tmp_path):
        (tmp_path / "file").write_text("")
        for child in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(ProvisionError) as caught:
                vet_child(str(child), NOBODY_ELSE)
            assert caught.value.errno == errno.ENOTDIR

    def test_a_child_is_checked_itself_and_where_it_leads(self, tmp_path):
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o777)
        (tmp_path / "link").symlink_to("open")
        assert vet_child(str(tmp_path), NOBODY_ELSE) is True
        assert vet_child(str(tmp_path / "missing"), NOBODY_ELSE) is False
        for name in ("open", "link"):
            with pytest.raises(UnsafeDirectoryError):
                vet_child(str(tmp_path / name), NOBODY_ELSE)

    def test_the_root_of_all_is_fine(self):
        assert vet("/", NOBODY_ELSE) is True


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
class TestAnotherUser:
    """Two real users; the kernel decides what each may do."""

    @pytest.fixture
    def home(self, everyones: Path) -> Path:
        return directory(everyones / "home")

    def test_a_users_own_directory_is_fine(self, home):
        own = directory(home / "ada", 0o700, ADA)
        with acting_as(ADA):
            assert vet(str(own), NOBODY_ELSE)

    def test_roots_directory_is_fine_for_everybody(self, home):
        with acting_as(ADA):
            assert vet(str(home), NOBODY_ELSE)

    def test_another_users_directory_is_refused(self, home):
        theirs = directory(home / "bob", 0o755, BOB)
        with acting_as(ADA), pytest.raises(UnsafeDirectoryError) as caught:
            vet(str(theirs), NOBODY_ELSE)
        assert caught.value.path == str(theirs)
        assert caught.value.fact.startswith(f"belongs to uid {BOB}, not to uid {ADA}")
        assert caught.value.hint == "set GPUCACHE_DIR to a directory of your own"

    def test_one_that_this_user_may_write_can_be_used_by_trusting_its_owner(self, home):
        theirs = directory(home / "bob", 0o2770, BOB)
        with acting_as(ADA, BOB), pytest.raises(UnsafeDirectoryError) as caught:
            vet(str(theirs), NOBODY_ELSE)
        assert f", or GPUCACHE_TRUST_UIDS={BOB} if you trust that user" in caught.value.hint

    def test_root_refuses_a_users_directory(self, home):
        """Root runs what it finds with more power than the user has."""
        theirs = directory(home / "bob", 0o755, BOB)
        with pytest.raises(UnsafeDirectoryError, match=f"belongs to uid {BOB}, not to uid 0"):
            vet(str(theirs), NOBODY_ELSE)

    def test_a_refusal_names_owner_mode_and_the_whole_trust_that_would_accept_it(self, home):
        """Who has trusted one user already must not lose that by following the advice for another."""
        theirs = directory(home / "bob", 0o750, BOB)
        with pytest.raises(UnsafeDirectoryError) as caught:
            vet(str(theirs), Trust(uids=frozenset({7})))
        assert caught.value.fact == (
            f"belongs to uid {BOB}, not to uid 0 (mode 0750), and a cache is executed"
        )
        assert caught.value.hint.endswith(
            f", or GPUCACHE_TRUST_UIDS=7,{BOB} if you trust that user"
        )
        assert vet(str(theirs), Trust.parse({"GPUCACHE_TRUST_UIDS": f"7,{BOB}"}))

    @pytest.mark.parametrize("below", ["", "root"])
    def test_the_command_of_a_refusal_mends_it(self, home, below):
        """Of a directory above, whose other users may need it, the sticky bit is enough."""
        above = directory(home / "it's open", 0o777, ADA)
        path = str(above / below) if below else str(above)
        if below:
            directory(above / below, 0o700, ADA)
        with acting_as(ADA), pytest.raises(UnsafeDirectoryError) as caught:
            vet(path, NOBODY_ELSE)
        command = caught.value.hint.split("`")[1]
        assert command.split()[1] == ("+t" if below else "o-w")
        subprocess.run(command, shell=True, check=True)
        with acting_as(ADA):
            assert vet(path, NOBODY_ELSE)

    def test_who_may_not_give_the_command_is_told_who_may(self, home):
        directory(home / "open", 0o777, 0)
        above = directory(home / "open" / "ada", 0o700, ADA)
        with acting_as(ADA), pytest.raises(UnsafeDirectoryError) as caught:
            vet(str(above), NOBODY_ELSE)
        assert caught.value.hint.startswith(f"have uid 0 say `chmod +t {home / 'open'}`")

    def test_who_could_write_no_more_is_not_told_to_have_it_closed(self, home):
        """A directory of root's that is open to all, as an emptyDir is, would be closed to this user as well."""
        above = directory(home / "open", 0o777, 0)
        with acting_as(ADA), pytest.raises(UnsafeDirectoryError) as caught:
            vet(str(above), NOBODY_ELSE)
        assert "chmod" not in caught.value.hint
        assert caught.value.hint.startswith("set GPUCACHE_TRUST_WORLD_WRITABLE=1 where only your")

    def test_a_trusted_users_directory_is_fine(self, home):
        theirs = directory(home / "bob", 0o755, BOB)
        with acting_as(ADA):
            assert vet(str(theirs), Trust.parse({"GPUCACHE_TRUST_UIDS": f"{BOB}"}))

    def test_a_trusted_users_directory_that_everybody_may_write_is_not(self, home):
        theirs = directory(home / "bob", 0o777, BOB)
        with acting_as(ADA), pytest.raises(UnsafeDirectoryError, match="everybody may write"):
            vet(str(theirs), Trust(uids=frozenset({BOB})))

    @pytest.mark.parametrize(
        "trust", [NOBODY_ELSE, Trust(uids=frozenset({BOB}), world_writable=True)]
    )
    @pytest.mark.parametrize("below", ["", "below", "missing"])
    def test_another_users_link_is_refused_wherever_it_leads(self, home, below, trust):
        own = directory(home / "ada", 0o700, ADA)
        directory(own / "below", 0o700, ADA)
        theirs = link(home / "link", own, BOB)
        with acting_as(ADA), pytest.raises(UnsafeDirectoryError) as caught:
            vet(f"{theirs}/{below}", trust)
        assert caught.value.path == str(theirs)
        assert f"is a symbolic link of uid {BOB}" in str(caught.value)
        assert f"; have uid 0 say `rm {theirs}`, or set GPUCACHE_DIR" in str(caught.value)

    def test_another_users_link_behind_ones_own_is_refused(self, home):
        own = directory(home / "ada", 0o700, ADA)
        theirs = link(home / "theirs", own, BOB)
        mine = link(own / "mine", "../theirs", ADA)
        with acting_as(ADA), pytest.raises(UnsafeDirectoryError) as caught:
            vet(str(mine), NOBODY_ELSE)
        assert caught.value.path == str(theirs)

    def test_another_users_file_or_directory_is_named_by_his_uid(self, home):
        theirs = directory(home / "bob", 0o755, 65534)
        with acting_as(BOB), pytest.raises(UnsafeDirectoryError, match="belongs to uid 65534, not"):
            vet(str(theirs), NOBODY_ELSE)

    @pytest.mark.parametrize("owner", [0, ADA])
    def test_a_link_of_roots_or_ones_own_is_fine(self, home, owner):
        own = directory(home / "ada", 0o700, ADA)
        path = link(home / "link", own, owner)
        with acting_as(ADA):
            assert vet(str(path), NOBODY_ELSE)

    def test_a_way_that_may_not_be_walked_is_told(self, home):
        directory(home / "closed", 0o700, BOB)
        directory(home / "closed" / "below", 0o755, ADA)
        with acting_as(ADA), pytest.raises(ProvisionError) as caught:
            vet(str(home / "closed" / "below"), NOBODY_ELSE)
        assert caught.value.errno == errno.EACCES

    def test_a_child_that_may_not_be_looked_at_is_told(self, home):
        closed = directory(home / "closed", 0o700, BOB)
        with acting_as(ADA), pytest.raises(ProvisionError) as caught:
            vet_child(str(closed / "below"), NOBODY_ELSE)
        assert caught.value.errno == errno.EACCES

    def test_another_users_child_is_refused(self, home):
        own = directory(home / "ada", 0o755, ADA)
        theirs = directory(own / "triton", 0o755, BOB)
        with acting_as(ADA), pytest.raises(UnsafeDirectoryError):
            vet_child(str(theirs), NOBODY_ELSE)

    def test_limit_the_owner_of_an_ancestor_is_trusted(self, home):
        """A project's directory on a cluster belongs to its leader; those below it to its members."""
        project = directory(home / "project", 0o755, BOB)
        own = directory(project / "ada", 0o700, ADA)
        with acting_as(ADA):
            assert vet(str(own), NOBODY_ELSE)


# Where each refusal comes from.


def foreign_root(home: Path) -> Path:
    return directory(home / "root", 0o777, BOB)


def foreign_link_as_root(home: Path) -> Path:
    return link(home / "root", directory(home / "ada", 0o700, ADA), BOB)


def foreign_link_on_the_way(home: Path) -> Path:
    return link(home / "way", directory(home / "ada", 0o700, ADA), BOB) / "root"


def foreign_triton(home: Path) -> Path:
    root = directory(home / "root", 0o700, ADA)
    directory(root / "triton", 0o777, BOB)
    return root


def foreign_gpucache_beside_a_missing_triton(home: Path) -> Path:
    root = directory(home / "root", 0o700, ADA)
    directory(root / "gpucache", 0o777, BOB)
    return root


def foreign_device_directory(home: Path) -> Path:
    root = directory(home / "root", 0o700, ADA)
    directory(root / "triton", 0o700, ADA)
    directory(root / "triton" / "0", 0o777, BOB)
    return root


def foreign_link_as_device_directory(home: Path) -> Path:
    root = directory(home / "root", 0o700, ADA)
    directory(root / "triton", 0o700, ADA)
    link(root / "triton" / "0", directory(home / "ada", 0o700, ADA), BOB)
    return root


def world_writable_root(home: Path) -> Path:
    return directory(home / "root", 0o777, ADA)


def world_writable_ancestor(home: Path) -> Path:
    return directory(home / "open", 0o777, 0) / "root"


def world_writable_locks(home: Path) -> Path:
    path = home / "root"
    for part in (".", "gpucache", "v1"):
        path = directory(path / part, 0o700, ADA)
    directory(path / "locks", 0o777, ADA)
    return home / "root"


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
class TestProvisioning:
    """What vetting is for, end to end and as another user."""

    @pytest.mark.parametrize(
        "prepare",
        [
            foreign_root,
            foreign_link_as_root,
            foreign_link_on_the_way,
            foreign_triton,
            foreign_gpucache_beside_a_missing_triton,
            foreign_device_directory,
            foreign_link_as_device_directory,
            world_writable_root,
            world_writable_ancestor,
            world_writable_locks,
        ],
    )
    def test_where_it_is_refused_nothing_is_made(self, everyones, prepare: Callable[[Path], Path]):
        root = prepare(directory(everyones / "home", 0o1777))
        before = everything_below(everyones)
        with pytest.raises(UnsafeDirectoryError):
            provision(root, ADA)
        assert everything_below(everyones) == before

    def test_a_trusted_users_root_is_used(self, everyones):
        root = directory(everyones / "root", 0o775, BOB)
        os.chown(root, BOB, ADA)
        assert provision(root, ADA, GPUCACHE_TRUST_UIDS=str(BOB)).created == ("0",)
        assert (root / "triton" / "0").stat().st_uid == ADA

    def test_an_empty_dir_of_kubernetes_needs_to_be_trusted(self, everyones):
        """It belongs to root, and everybody may write it."""
        root = directory(everyones / "empty-dir", 0o777)
        with pytest.raises(
            UnsafeDirectoryError, match=r"GPUCACHE_TRUST_WORLD_WRITABLE=1 .*\(an emptyDir\)"
        ):
            provision(root, ADA)
        assert provision(root, ADA, GPUCACHE_TRUST_WORLD_WRITABLE="1").created == ("0",)
        assert stat.S_IMODE(root.stat().st_mode) == 0o777
        assert stat.S_IMODE((root / "triton").stat().st_mode) == 0o700

    def test_a_root_missing_below_a_sticky_directory_is_made(self, everyones):
        directory(everyones / "tmp", 0o1777)
        assert provision(everyones / "tmp" / "torchinductor_ada", ADA).created == ("0",)

    @pytest.mark.parametrize("planted", ["root", "root/triton", "root/triton/0"])
    def test_a_directory_planted_between_look_and_make_is_refused(
        self, everyones, planted, monkeypatch
    ):
        """Bob waits until Ada has looked."""
        shared = directory(everyones / "tmp", 0o1777)
        race(monkeypatch, shared / planted, lambda: directory(shared / planted, 0o777, BOB))
        with pytest.raises(UnsafeDirectoryError) as caught:
            provision(shared / "root", ADA)
        assert caught.value.path == str(shared / planted)

    def test_an_ancestor_planted_between_look_and_make_is_refused(self, everyones, monkeypatch):
        shared = directory(everyones / "tmp", 0o1777)
        race(
            monkeypatch, shared / "above" / "root", lambda: directory(shared / "above", 0o777, BOB)
        )
        with pytest.raises(UnsafeDirectoryError) as caught:
            provision(shared / "above" / "root", ADA)
        assert caught.value.path == str(shared / "above")
        assert not (shared / "above" / "root" / "triton").exists()

    def test_a_link_planted_between_look_and_make_is_refused(self, everyones, monkeypatch):
        shared = directory(everyones / "tmp", 0o1777)
        elsewhere = directory(everyones / "ada", 0o700, ADA)
        race(monkeypatch, shared / "root", lambda: link(shared / "root", elsewhere, BOB))
        with pytest.raises(UnsafeDirectoryError) as caught:
            provision(shared / "root", ADA)
        assert caught.value.path == str(shared / "root")
        assert not list(elsewhere.iterdir())

    def test_what_is_there_keeps_its_mode(self, everyones):
        root = directory(everyones / "root", 0o755, ADA)
        for name in ("triton", "triton/0", "gpucache"):
            directory(root / name, 0o775, ADA)
        provision(root, ADA)
        assert {
            stat.S_IMODE((root / name).stat().st_mode)
            for name in ("triton", "triton/0", "gpucache")
        } == {0o775}
        assert stat.S_IMODE(root.stat().st_mode) == 0o755
        assert stat.S_IMODE((root / "gpucache" / "v1").stat().st_mode) == 0o700


def race(monkeypatch: pytest.MonkeyPatch, path: Path, act: Callable[[], object]) -> None:
    """Let somebody with more luck act just before the directory at ``path`` is made."""
    mkdir = os.mkdir

    def late(made: str, mode: int = 0o777) -> None:
        if made == str(path) and not os.path.lexists(made):
            uid = os.geteuid()
            os.seteuid(0)
            monkeypatch.setattr(os, "mkdir", mkdir)
            act()
            os.seteuid(uid)
        mkdir(made, mode)

    monkeypatch.setattr(os, "mkdir", late)


def test_a_file_in_the_place_of_a_root_is_moved_away_by_the_command_that_is_named_and_not_removed(
    tmp_path,
):
    file = tmp_path / "my data"
    file.write_text("mine")
    with pytest.raises(ProvisionError) as caught:
        vet(str(file), Trust())
    (command,) = re.findall("`(.*?)`", str(caught.value))
    subprocess.run(command, shell=True, check=True)
    assert Path(f"{file}.old").read_text() == "mine"
    assert vet(str(file), Trust()) is False


def test_nobody_is_told_to_move_a_device_away():
    with pytest.raises(ProvisionError) as caught:
        vet("/dev/null", Trust())
    assert "`" not in str(caught.value)
    assert "choose another root" in str(caught.value)
