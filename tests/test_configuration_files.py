"""Which files of settings are believed, and what is read in the place of their TOML."""

from __future__ import annotations

import errno
import json
import os
import pwd
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest
from support.settings_files import forms, user_file, written
from support.users import ADA, BOB, acting_as, open_the_way_to

from gpucache import DeviceCacheRegistry, configuration, environment, log, once
from gpucache.configuration import form, places, reading, toml
from gpucache.configuration.beginning import write_for_user
from gpucache.configuration.merged import InForce
from gpucache.disk import door
from gpucache.disk.door import SETTINGS_BYTES
from gpucache.errors import ConfigurationError

GOOD = "stamp_s = 7\n"
as_another_user = pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The home of a user; nothing that this process has read before is known."""
    made = tmp_path / "home"
    made.mkdir(mode=0o700)
    monkeypatch.setattr(places, "SYSTEM_FILE", str(tmp_path / "etc" / "gpucache.toml"))
    monkeypatch.setattr(reading, "_known", {})
    monkeypatch.setattr(log, "_warned", set())
    return made


@pytest.fixture
def anew(home: Path, monkeypatch) -> Callable[..., InForce]:
    """The settings as a process finds them that has just started."""

    def ask(root: Path | None = None, **more: str) -> InForce:
        monkeypatch.setattr(reading, "_known", {})
        named = str(root or home.parent / "root")
        return configuration.in_force({"HOME": str(home), "GPUCACHE_DIR": named, **more})

    return ask


def stamp(found: InForce) -> str | None:
    return found.environ.get("GPUCACHE_STAMP_S")


# ---- where


def test_the_files_are_where_platformdirs_says(monkeypatch, tmp_path):
    for environ in (
        {"HOME": "/home/ada"},
        {"HOME": "/home/ada", "XDG_CONFIG_HOME": "/x/config", "XDG_CACHE_HOME": "/x/cache"},
        {"HOME": "/home/ada", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": " "},
    ):
        for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        place = places.user_place(environ)
        assert place.path == f"{platformdirs.user_config_dir('gpucache')}/gpucache.toml"
        assert place.form == f"{platformdirs.user_cache_dir('gpucache')}/user.json"


def test_without_home_it_is_that_of_the_list_of_users(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    at_home = pwd.getpwuid(os.getuid()).pw_dir
    monkeypatch.setattr(places, "home_of_user", lambda: at_home)
    place = places.user_place({})
    assert place.path == f"{platformdirs.user_config_dir('gpucache')}/gpucache.toml"


def test_a_relative_path_in_a_variable_means_nobodys_files(home):
    """Else whoever owns the current directory would decide; the specification says to pass it over."""
    place = places.user_place({"HOME": str(home), "XDG_CONFIG_HOME": "config"})
    assert place.path == str(user_file(home))
    assert places.user_place({"HOME": "home"}) is None


@pytest.mark.parametrize("variables", [{}, {"HOME": ""}, {"HOME": "home"}], ids=str)
def test_a_path_below_a_home_is_unset_for_who_has_none(home, variables, monkeypatch):
    """Else whoever owns the current directory would decide whose keys are trusted."""
    monkeypatch.setattr(places, "home_of_user", lambda: "")
    file = Path(places.SYSTEM_FILE)
    file.parent.mkdir()
    file.write_text('dir = "~/kernels"\ntrust_keys = "~/trusted.keys"\nstamp_s = 7\n')
    found = configuration.in_force(variables)
    assert environment.ROOT.read(found.environ) is None
    assert environment.TRUST_KEYS.read(found.environ) is None
    assert stamp(found) == "7"
    assert [one.number for one in found.problems] == [1, 2]
    assert all("has none" in one.fact for one in found.problems)
    monkeypatch.setattr(places, "home_of_user", lambda: str(home))
    later = configuration.in_force({})
    assert later.environ["GPUCACHE_DIR"] == f"{home}/kernels"
    assert not later.problems


def test_who_has_no_home_is_told_where_settings_can_be(home, monkeypatch):
    monkeypatch.setattr(places, "home_of_user", lambda: "")
    with pytest.raises(ConfigurationError) as caught:
        write_for_user({})
    assert caught.value.hint.startswith("set HOME")
    assert Path(write_for_user({"HOME": str(home)})).is_file()


# ---- files that are being written


@pytest.fixture
def being_written(home) -> Path:
    """The user's file, to which somebody has begun to write just now."""
    path = written(user_file(home), "")
    os.utime(path)
    return path


@pytest.mark.parametrize("half", ["", 'stamp_s = 7\ndir = "/scr'], ids=["truncated", "half"])
def test_a_file_that_is_being_written_in_place_is_read_again(
    half, being_written, anew, monkeypatch
):
    being_written.write_text(half)
    monkeypatch.setattr(reading.time, "sleep", lambda _: being_written.write_text(GOOD))
    found = anew()
    assert stamp(found) == "7"
    assert not found.problems


def test_so_is_one_that_an_editor_has_moved_away(home, anew, monkeypatch):
    path = written(user_file(home), GOOD)
    open_regular = door.open_regular

    def moved_away(at: str):
        if Path(at) == path:
            path.unlink(missing_ok=True)
        return open_regular(at)

    monkeypatch.setattr(door, "open_regular", moved_away)

    def new_one(_: float) -> None:
        monkeypatch.setattr(door, "open_regular", open_regular)
        path.write_text("stamp_s = 8\n")

    monkeypatch.setattr(reading.time, "sleep", new_one)
    assert stamp(anew()) == "8"


def test_of_one_that_changes_while_it_is_read_nothing_old_is_kept(home, anew, monkeypatch):
    """As `cp -p` onto it: the size and the time of the file are those of the old one."""
    path = written(user_file(home), GOOD)
    read_some, later = door.read_some, ["stamp_s = 8\n", "stamp_s = 9\n"]

    def read_then_changed(file, most: int) -> bytes:
        content = read_some(file, most)
        if later:
            before = path.stat()
            path.write_text(later.pop(0))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return content

    monkeypatch.setattr(door, "read_some", read_then_changed)
    assert stamp(anew()) == "9"
    assert stamp(anew()) == "9"


def test_that_ends_after_a_moment_where_nobody_goes_on(being_written, anew, monkeypatch):
    being_written.write_text("dir = ")
    slept: list[float] = []
    monkeypatch.setattr(reading.time, "sleep", slept.append)
    assert len(anew().problems) == 1
    assert 0 < sum(slept) < 0.2
    written(being_written, "dir = ")
    slept.clear()
    assert len(anew().problems) == 1
    assert slept == []


# ---- files that are no settings


def _make(home: Path, what: str) -> Path:
    """Put something in the place of the user's file."""
    path = user_file(home)
    path.parent.mkdir(parents=True)
    if what == "FIFO":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    elif what == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif what == "everybody's":
        written(path, GOOD, 0o666)
    elif what == "unreadable":
        written(path, GOOD)
    elif what == "link in a circle":
        path.symlink_to(path)
    elif what == "link of everybody's":
        written(home / "other.toml", GOOD, 0o602)
        path.symlink_to(home / "other.toml")
    else:
        written(path, CONTENTS[what])
    return path


CONTENTS = {
    "binary": bytes(range(256)),
    "no UTF-8": b'log = "\xff"\n',
    "UTF-16": GOOD.encode("utf-16"),
    "no TOML": "stamp_s: 7\n",
    "twice": GOOD + GOOD,
    "half": 'stamp_s = 7\nlog = "in',
    "deep": "x = " + "[\n" * 10_000 + "]" * 10,
    "dotted": "a." * 30_000 + "a = 1",
    "dotted within": "x = {" + "a." * 30_000 + "a = 1}",
    "five thousand digits": "max_size = " + "9" * 5000,
    "huge": "#" * (SETTINGS_BYTES + 1),
    "NUL": "stamp_s = 7\n\0",
}
FACTS = {
    "FIFO": "it is no plain file",
    "directory": "it is no plain file",
    "socket": "it is no plain file",
    "everybody's": "everybody may write it (mode 0666)",
    "link of everybody's": "everybody may write it (mode 0602)",
    "link in a circle": "it cannot be read: Too many levels",
    "binary": "it is no UTF-8 text",
    "no UTF-8": "it is no UTF-8 text (byte 7)",
    "UTF-16": "it is no UTF-8 text",
    "no TOML": "it is no TOML",
    "twice": "it is no TOML",
    "half": "it is no TOML",
    "deep": "it is nested too deep",
    "five thousand digits": "it has a line of 5011 letters",
    "dotted": "it has a line of 60005 letters",
    "dotted within": "it has a line of 60011 letters",
    "huge": "it has 65537 bytes",
    "NUL": "it is no TOML",
}


@pytest.mark.parametrize("what", FACTS)
def test_what_is_no_file_of_settings_is_told_with_path_and_way_out_and_passed_over(
    what, home, anew, caplog
):
    path = _make(home, what)
    for _ in range(2):  # the second time perhaps from the form
        found = anew()
        assert found.origins == {}
        (problem,) = found.problems
        assert problem.path == str(path)
        assert problem.fact.startswith(FACTS[what])
        assert problem.fix
    for _ in range(3):
        configuration.environ({"HOME": str(home), "GPUCACHE_DIR": str(home.parent / "root")})
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{path}: ")


def test_a_huge_sparse_file_is_not_read(home, anew):
    path = written(user_file(home), "")
    os.truncate(path, 2**40)
    (problem,) = anew().problems
    assert "1099511627776 bytes" in problem.fact


def test_a_file_with_a_mark_of_byte_order_is_read(home, anew):
    written(user_file(home), b"\xef\xbb\xbf" + GOOD.encode())
    assert stamp(anew()) == "7"


@pytest.mark.parametrize("where", ["home", "config", "file"])
def test_own_links_are_followed(where, home, anew, tmp_path):
    """As those who keep their settings under version control have them, and volumes of Kubernetes."""
    kept = tmp_path / "kept"
    if where == "file":
        written(kept / "it.toml", GOOD)
        user_file(home).parent.mkdir(parents=True)
        user_file(home).symlink_to("../../../kept/it.toml")
    elif where == "config":
        written(kept / "gpucache" / "gpucache.toml", GOOD)
        (home / ".config").symlink_to(kept)
    else:
        written(user_file(kept), GOOD)
        home.rmdir()
        home.symlink_to(kept)
    assert stamp(anew()) == "7"
    assert anew().problems == ()


def test_a_roots_file_may_be_no_link(home, anew, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    written(tmp_path / "other.toml", GOOD)
    (root / "gpucache.toml").symlink_to(tmp_path / "other.toml")
    found = anew(root)
    assert stamp(found) is None
    assert [problem.path for problem in found.problems] == [str(root / "gpucache.toml")]


@pytest.mark.root
@as_another_user
class TestOfAnotherUser:
    def test_his_file_in_this_users_home_is_passed_over(self, home, anew):
        path = written(user_file(home), GOOD)
        os.chown(path, BOB, BOB)
        (problem,) = anew().problems
        assert problem.fact.startswith(f"it belongs to uid {BOB}, not to uid 0 (mode 0600)")
        assert "sudo -H" in problem.fix
        assert not forms(home).exists()

    def test_under_sudo_nothing_of_the_users_is_read_made_or_written(self, home, anew):
        path = written(user_file(home), GOOD)
        for one in (home, *home.rglob("*")):
            os.chown(one, ADA, ADA)
        found = anew()
        assert stamp(found) is None
        assert str(ADA) in found.problems[0].fact
        written(Path(places.SYSTEM_FILE), GOOD, 0o644)
        assert stamp(anew()) == "7"
        assert sorted(home.rglob("*")) == [home / ".config", path.parent, path]

    def test_a_link_of_his_is_not_followed(self, home, anew, tmp_path):
        written(tmp_path / "other.toml", GOOD)
        user_file(home).parent.mkdir(parents=True)
        user_file(home).symlink_to(tmp_path / "other.toml")
        os.chown(user_file(home), BOB, BOB, follow_symlinks=False)
        found = anew()
        assert stamp(found) is None
        assert f"link of uid {BOB}" in found.problems[0].fact
        assert found.problems[0].fix == f"`rm {user_file(home)}`"

    def test_what_root_has_put_into_a_home_is_the_users(self, home, anew):
        """As a file that came with an image."""
        written(user_file(home), GOOD, 0o644)
        open_the_way_to(home)
        for one in (home, user_file(home).parent.parent, user_file(home).parent):
            one.chmod(0o755)
        with acting_as(ADA):
            assert stamp(anew()) == "7"

    def test_a_users_system_file_is_passed_over(self, home, anew):
        path = written(Path(places.SYSTEM_FILE), GOOD, 0o644)
        os.chown(path, BOB, BOB)
        (problem,) = anew().problems
        assert problem.fix == f"have {path} belong to root"

    def test_a_file_where_everybody_may_put_another_is_passed_over(self, home, anew):
        path = written(user_file(home), GOOD)
        path.parent.chmod(0o777)
        found = anew()
        assert stamp(found) is None
        assert "0777" in found.problems[0].fact
        assert found.problems[0].fix == f"`chmod o-w {path.parent}`"
        path.parent.chmod(0o1777)  # where nobody may take away what is another's
        assert stamp(anew()) == "7"

    def test_a_roots_file_is_believed_of_whom_the_user_trusts(self, home, anew, tmp_path):
        root = tmp_path / "root"
        path = written(root / "gpucache.toml", GOOD, 0o644)
        os.chown(path, BOB, BOB)
        found = anew(root)
        assert stamp(found) is None
        assert f"uid {BOB}" in found.problems[0].fact
        assert stamp(anew(root, GPUCACHE_TRUST_UIDS=str(BOB))) == "7"
        written(user_file(home), f"trust_uids = [{BOB}]\n")
        assert stamp(anew(root)) == "7"

    def test_a_file_of_a_groups_root_is_believed_of_its_members_by_who_names_the_group(
        self, home, anew, everyones, monkeypatch
    ):
        team = 4321
        root = everyones / "root"
        environ = {"GPUCACHE_FAKE_DEVICES": "1", "GPUCACHE_TRUST_GROUPS": str(team)}
        root.mkdir()
        os.chown(root, BOB, team)
        root.chmod(0o2770)
        with acting_as(BOB, team):
            DeviceCacheRegistry(str(root), environ=environ).provision(sharing="group")
            path = written(root / "gpucache.toml", GOOD, 0o660)
        os.chown(path, BOB, team)
        home.chmod(0o755)
        named = {"GPUCACHE_TRUST_GROUPS": str(team)}
        with acting_as(ADA, team):
            assert stamp(anew(root, **named)) == "7"
            form = root / "gpucache" / "v1" / "gpucache.toml.json"
            assert (form.stat().st_uid, form.stat().st_gid) == (ADA, team)
            assert stat.S_IMODE(form.stat().st_mode) == 0o660
            found = anew(root)
            assert stamp(found) is None
            assert f"uid {BOB}" in found.problems[0].fact
        with acting_as(BOB, team), monkeypatch.context() as patch:
            patch.setattr(toml, "parse", None)
            assert stamp(anew(root, **named)) == "7"  # by the form that the other member wrote
        path.chmod(0o664)
        with acting_as(ADA, team):
            (problem,) = anew(root, **named).problems
            assert "mode 0660" in problem.fix


# ---- the parsed form


def test_who_comes_later_parses_nothing(home, anew, monkeypatch):
    written(user_file(home), "stamp_s = 7\nmax_sise = 1\n")
    written(Path(places.SYSTEM_FILE), "lock_timeout_s = 3\n")
    first = anew()
    monkeypatch.setattr(toml, "parse", None)
    again = anew()
    assert (again.environ, again.origins, again.problems) == (
        first.environ,
        first.origins,
        first.problems,
    )
    assert [path.name for path in forms(home).iterdir()] == ["user.json"]
    of_system = Path(once.path_of_markers())
    assert [path.name for path in of_system.iterdir()] == ["system.json"]
    assert stat.S_IMODE(forms(home).stat().st_mode) == 0o700
    assert stat.S_IMODE(of_system.stat().st_mode) == 0o700


def test_the_form_of_a_root_lies_in_the_root(home, anew, monkeypatch, tmp_path):
    root = tmp_path / "root"
    (root / "gpucache" / "v1" / "tmp").mkdir(parents=True, mode=0o700)
    written(root / "gpucache.toml", GOOD)
    assert stamp(anew(root)) == "7"
    assert (root / "gpucache" / "v1" / "gpucache.toml.json").exists()
    assert not forms(home).exists()
    monkeypatch.setattr(toml, "parse", None)
    assert stamp(anew(root)) == "7"


def test_a_roots_form_decides_nothing_that_a_root_may_not(home, anew, tmp_path):
    root = tmp_path / "root"
    (root / "gpucache" / "v1" / "tmp").mkdir(parents=True, mode=0o700)
    written(root / "gpucache.toml", GOOD)
    anew(root)
    path = root / "gpucache" / "v1" / "gpucache.toml.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "lines": [["GPUCACHE_TRUST_UIDS", "1000", 1]]}))
    found = anew(root)
    assert "GPUCACHE_TRUST_UIDS" not in found.environ
    assert stamp(found) == "7"


def test_a_roots_form_holds_under_another_path_of_the_root(home, anew, monkeypatch, tmp_path):
    """As in a container, where the root is mounted elsewhere."""
    root = tmp_path / "root"
    (root / "gpucache" / "v1" / "tmp").mkdir(parents=True, mode=0o700)
    written(root / "gpucache.toml", GOOD)
    anew(root)
    root.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(toml, "parse", None)
    found = anew(tmp_path / "elsewhere")
    assert found.origins["GPUCACHE_STAMP_S"].path == f"{tmp_path}/elsewhere/gpucache.toml"


@pytest.mark.parametrize("how", ["size", "time", "inode", "path", "change time"])
def test_a_form_is_of_one_file_only(how, home, anew):
    path = written(user_file(home), GOOD)
    anew()
    before = path.stat()
    if how == "size":
        written(path, "stamp_s = 10\n")
    elif how == "time":
        path.write_text("stamp_s = 8\n")
    elif how == "inode":
        other = written(path.with_name("other"), "stamp_s = 8\n")
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.rename(path)
    elif how == "change time":
        path.write_text("stamp_s = 8\n")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        known = json.loads((forms(home) / "user.json").read_text())
        known["of"][2] += "x"
        (forms(home) / "user.json").write_text(json.dumps(known))
        written(path, "stamp_s = 8\n")
    assert stamp(anew()) in ("8", "10")


def test_a_file_that_has_just_changed_gets_no_form(home, anew):
    """A second change within the same tick of the clock, of the same size, could not be told from the first."""
    path = user_file(home)
    path.parent.mkdir(parents=True)
    path.write_text(GOOD)
    assert stamp(anew()) == "7"
    assert not forms(home).exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"of": []}',
        "\0" * 100,
        "[" * 100_000,
        "x" * (SETTINGS_BYTES + 1),
        "9" * 5000,
    ],
    ids=["empty", "object", "list", "null", "no file", "NULs", "deep", "huge", "digits"],
)
def test_a_damaged_form_is_parsed_over(text, home, anew):
    written(user_file(home), GOOD)
    anew()
    (forms(home) / "user.json").write_text(text)
    assert stamp(anew()) == "7"
    assert json.loads((forms(home) / "user.json").read_text())["lines"]


@pytest.mark.parametrize("damage", ["lines", "problems"])
def test_a_form_that_names_this_file_and_is_damaged_says_nothing(damage, home, anew):
    written(user_file(home), GOOD)
    anew()
    path = forms(home) / "user.json"
    known = json.loads(path.read_text())
    for wrong in (7, [7], [["a"]], [[{}, {}, {}]], None, {"a": 1}, [[1, 2, 3]]):
        path.write_text(json.dumps({**known, damage: wrong}))
        assert stamp(anew()) == "7"


@pytest.mark.parametrize(
    "how", ["0666", "0620", "FIFO", "link", "directory 0777", "directory 0770"]
)
def test_a_form_that_others_could_have_written_is_not_believed(how, home, anew):
    written(user_file(home), GOOD)
    anew()
    path = forms(home) / "user.json"
    known = json.loads(path.read_text())
    known["lines"] = [["GPUCACHE_STAMP_S", "666", 1]]
    path.write_text(json.dumps(known))
    assert stamp(anew()) == "666"  # it is read
    if how == "FIFO":
        path.unlink()
        os.mkfifo(path)
    elif how == "link":
        path.rename(home / "planted.json")
        path.symlink_to(home / "planted.json")
    elif how.startswith("directory"):
        forms(home).chmod(int(how[-4:], 8))
    else:
        path.chmod(int(how, 8))
    assert stamp(anew()) == "7"


@pytest.mark.root
@as_another_user
def test_what_another_user_puts_where_the_systems_form_will_be_is_not_believed(home, anew):
    written(Path(places.SYSTEM_FILE), GOOD, 0o644)
    anew()
    form_of_system = Path(once.path_of_markers()) / "system.json"
    lies = form_of_system.read_text().replace('"7"', '"666"')
    form_of_system.write_text(lies)
    assert stamp(anew()) == "666"  # it is read
    os.chown(form_of_system.parent, BOB, BOB)
    assert stamp(anew()) == "7"
    form_of_system.unlink()
    assert stamp(anew()) == "7"
    assert not form_of_system.exists()


@pytest.mark.root
@as_another_user
def test_a_form_of_another_user_is_not_believed(home, anew):
    written(user_file(home), GOOD)
    anew()
    path = forms(home) / "user.json"
    path.write_text(path.read_text().replace('"7"', '"666"'))
    assert stamp(anew()) == "666"
    os.chown(path, BOB, BOB)
    assert stamp(anew()) == "7"
    os.chown(forms(home), BOB, BOB)
    assert stamp(anew()) == "7"


def test_where_no_form_can_be_written_all_is_as_slow_and_as_right(home, anew, monkeypatch):
    written(user_file(home), GOOD)
    (home / ".cache").write_text("no directory")
    for _ in range(2):
        assert stamp(anew()) == "7"
        assert anew().problems == ()


@pytest.mark.parametrize("kept", [False, True], ids=["without forms", "with forms"])
@pytest.mark.parametrize(
    "call", ["stat", "lstat", "open", "fstat", "read", "mkdir", "rename", "fsync", "readlink"]
)
def test_no_error_of_the_disk_is_an_exception(call, kept, home, anew, monkeypatch, tmp_path):
    """What could not be read says so, and the rest holds."""
    root = tmp_path / "root"
    (root / "gpucache" / "v1" / "tmp").mkdir(parents=True, mode=0o700)
    written(root / "gpucache.toml", 'max_size = "1GiB"\n')
    written(user_file(home), GOOD)
    if kept:
        anew(root)

    for number in (errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EMFILE, errno.EROFS):

        def fail(*_: object, number: int = number, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            found = anew(root)
        holds = stamp(found) == "7" and found.environ.get("GPUCACHE_MAX_SIZE") == "1GiB"
        assert holds or found.problems
    found = anew(root)
    assert (stamp(found), found.problems) == ("7", ())


def test_what_could_not_be_read_is_read_by_the_same_process_once_it_can_be(home, anew, monkeypatch):
    path = written(user_file(home), GOOD)
    path.parent.chmod(0o777)
    assert anew().problems
    path.parent.chmod(0o700)
    assert stamp(configuration.in_force({"HOME": str(home), "GPUCACHE_DIR": "/nowhere"})) == "7"


@pytest.mark.mounts
def test_a_config_map_of_kubernetes_is_read(home, anew, mount, monkeypatch, tmp_path):
    """Its directory has mode 0777, and is mounted read-only; the file is a link to a link."""
    volume = mount(tmp_path / "volume", "-t", "tmpfs", "-o", "mode=777", "none")
    written(volume / "..2026_11_26" / "gpucache.toml", GOOD, 0o644)
    (volume / "..2026_11_26").chmod(0o755)
    (volume / "..data").symlink_to("..2026_11_26")
    (volume / "gpucache.toml").symlink_to("..data/gpucache.toml")
    monkeypatch.setattr(places, "SYSTEM_FILE", str(volume / "gpucache.toml"))
    (problem,) = anew().problems
    assert "mode 0777" in problem.fact
    subprocess.run(["mount", "-o", "remount,ro", volume], check=True)
    assert (stamp(anew()), anew().problems) == ("7", ())
    subprocess.run(["mount", "-o", "remount,rw", volume], check=True)
    (volume / "gpucache.toml").unlink()
    written(tmp_path / "open" / "gpucache.toml", GOOD)
    (tmp_path / "open").chmod(0o777)
    (volume / "gpucache.toml").symlink_to(tmp_path / "open" / "gpucache.toml")
    subprocess.run(["mount", "-o", "remount,ro", volume], check=True)
    (problem,) = anew().problems  # it leads to where everybody may write
    assert "mode 0777" in problem.fact


@pytest.mark.mounts
def test_in_a_read_only_home_and_root_all_is_as_right(home, anew, mount, tmp_path):
    kept = mount(tmp_path / "kept", "-t", "tmpfs", "-o", "mode=700", "none")
    written(user_file(kept), GOOD)
    (kept / "gpucache" / "v1").mkdir(parents=True)
    written(kept / "gpucache.toml", 'max_size = "1GiB"\n')
    subprocess.run(["mount", "-o", "remount,ro", kept], check=True)
    for _ in range(2):
        found = anew(kept, HOME=str(kept))
        assert (stamp(found), found.environ["GPUCACHE_MAX_SIZE"]) == ("7", "1GiB")
        assert found.problems == ()


def test_another_table_of_settings_parses_anew(home, anew, monkeypatch):
    written(user_file(home), GOOD)
    anew()
    written_first = (forms(home) / "user.json").read_text()
    monkeypatch.setattr(form, "VARIABLES", form.VARIABLES[1:])
    assert stamp(anew()) == "7"
    assert (forms(home) / "user.json").read_text() != written_first
