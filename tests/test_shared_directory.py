"""A shared directory as a remote: what another user has put there, and mounts that can do less."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.every_call import SCRIPT
from support.users import ADA, BOB, acting_as, directory

from gpucache.errors import UnsafeDirectoryError
from gpucache.remote.errors import NotThere, RemoteError
from gpucache.remote.opening import open_remote
from gpucache.remote.shared_directory import UNFINISHED
from gpucache.remote.url import RemoteUrl

NAME = "v1/packs/nightly"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    made = tmp_path / "shared"
    made.mkdir(mode=0o755)
    return made


@pytest.fixture
def content(tmp_path: Path) -> str:
    path = tmp_path / "content"
    path.write_bytes(b"12345")
    return str(path)


def opened(shared: Path, mode: str = "write", **environ: str):
    return open_remote(RemoteUrl.parse(f"file://{shared}?mode={mode}"), environ)


def by_owner(shared: Path, **environ: str):
    return open_remote(RemoteUrl.parse(f"file://{shared}?trust=owner&mode=write"), environ)


def get(remote, name: str = NAME) -> bytes:
    with remote.get(name, 2**20) as file:
        return file.read()


def plant(shared: Path, name: str = NAME) -> Path:
    path = shared / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"planted")
    return path


class TestWhatLiesThere:
    def test_no_link_is_followed_at_any_step(self, shared, tmp_path):
        secret = tmp_path / "secret"
        secret.write_bytes(b"secret")
        plant(shared, "v1/packs/other")
        (shared / NAME).symlink_to(secret)
        (shared / "v1/linked").symlink_to(tmp_path)
        remote = opened(shared)
        for name in (NAME, "v1/linked/secret"):
            with pytest.raises(RemoteError):
                get(remote, name)
        assert [listed.name for listed in remote.list("v1/packs/")] == ["v1/packs/other"]
        assert [listed.name for listed in remote.list("v1/")] == ["v1/packs/other"]

    def test_nothing_is_written_through_a_link(self, shared, tmp_path, content):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (shared / "v1").symlink_to(elsewhere)
        with pytest.raises(RemoteError):
            opened(shared).put_new(NAME, content)
        assert list(elsewhere.iterdir()) == []

    def test_nobody_waits_for_the_writer_of_a_fifo(self, shared):
        plant(shared, "v1/packs/other")
        os.mkfifo(shared / NAME)
        with pytest.raises(RemoteError) as refused:
            get(opened(shared))
        assert refused.value.kind == "bad-answer"
        assert "plain file" in refused.value.hint

    def test_a_file_that_grows_while_it_is_read_is_not_read_for_ever(self, shared):
        path = plant(shared)
        with opened(shared).get(NAME, 10) as file:
            path.write_bytes(b"x" * 1000)
            with pytest.raises(RemoteError) as refused:
                file.read()
        assert refused.value.kind == "too-large"

    def test_a_directory_that_is_not_there_is_an_error_and_no_miss(self, tmp_path):
        with pytest.raises(RemoteError) as refused:
            get(opened(tmp_path / "nowhere"))
        assert refused.value.kind == "unreachable"
        assert "mounted" in refused.value.hint

    def test_an_empty_directory_has_nothing(self, shared):
        with pytest.raises(NotThere):
            get(opened(shared))
        assert list(opened(shared).list("v1/packs/")) == []


class TestHowItIsWritten:
    def test_files_and_directories_are_for_those_for_whom_the_directory_is(self, shared, content):
        for mode, files in ((0o2775, 0o644), (0o700, 0o600), (0o750, 0o640)):
            shared.chmod(mode)
            name = f"v1/{mode:o}/AA/x"
            assert opened(shared).put_new(name, content) is True
            made = (shared / name).parent
            assert stat.S_IMODE(made.stat().st_mode) == mode
            assert stat.S_IMODE((shared / name).stat().st_mode) == files

    def test_what_a_killed_writer_left_goes_after_an_hour(self, shared, content):
        plant(shared, "v1/packs/other")
        left = shared / "v1/packs" / f"{UNFINISHED}0123"
        young = shared / "v1/packs" / f"{UNFINISHED}4567"
        for path in (left, young):
            path.write_bytes(b"half")
        os.utime(left, (0, 0))
        assert opened(shared).put_new(NAME, content) is True
        assert not left.exists()
        assert young.exists()
        names = {listed.name for listed in opened(shared).list("v1/packs/")}
        assert names == {NAME, "v1/packs/other"}

    @pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
    def test_where_no_file_can_be_linked_what_is_there_stays(
        self, number, shared, content, monkeypatch
    ):
        def refuse(*_args, **_named):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "link", refuse)
        remote = opened(shared)
        assert remote.put_new(NAME, content) is True
        assert get(remote) == b"12345"
        (shared / NAME).write_bytes(b"first")
        assert remote.put_new(NAME, content) is False
        assert get(remote) == b"first"
        assert remote.put_new(NAME, content, replace=True) is True
        assert remote.check().works

    def test_who_loses_the_race_leaves_what_is_there(self, shared, content, monkeypatch):
        """The other writer comes between the look and the link."""
        link = os.link

        def late(*args, **named):
            (shared / NAME).write_bytes(b"first")
            link(*args, **named)

        monkeypatch.setattr(os, "link", late)
        assert opened(shared).put_new(NAME, content) is False
        assert (shared / NAME).read_bytes() == b"first"
        assert [path.name for path in (shared / "v1/packs").iterdir()] == ["nightly"]

    def test_a_link_and_a_fifo_are_not_put(self, shared, tmp_path, content):
        link, fifo = tmp_path / "link", tmp_path / "fifo"
        link.symlink_to(content)
        os.mkfifo(fifo)
        for path in (link, fifo):
            with pytest.raises(OSError):
                opened(shared).put_new(NAME, str(path))


PUT = (
    SCRIPT
    + """
from gpucache.remote.opening import open_remote
from gpucache.remote.url import RemoteUrl
home = sys.argv[1]
remote = open_remote(RemoteUrl.parse(f"file://{home}/shared?mode=write"), {})
mark("begin")
assert remote.put_new("v1/packs/nightly", f"{home}/content")
mark("end")
"""
)


def test_a_put_that_is_killed_leaves_the_whole_object_or_none(every_call):
    def start(home: Path) -> list[object]:
        (home / "shared").mkdir()
        (home / "content").write_bytes(b"12345")
        return []

    def check(home: Path, line: str) -> None:
        remote = opened(home / "shared")
        listed = [listed.name for listed in remote.list("v1/")]
        assert listed in ([], [NAME]), line
        if listed:
            assert get(remote) == b"12345", line
        else:
            assert remote.put_new(NAME, f"{home}/content") is True, line

    every_call.killed_everywhere(PUT, start, check, least=8)


@pytest.mark.root
class TestTrustOfOwners:
    @pytest.fixture
    def theirs(self, as_root, everyones) -> Path:
        """A directory of Ada's."""
        return directory(everyones / "ada", 0o755, ADA)

    def test_what_this_user_or_root_has_put_is_taken(self, as_root, everyones):
        plant(everyones)
        assert get(by_owner(everyones)) == b"planted"
        with acting_as(ADA):
            assert get(by_owner(everyones)) == b"planted"

    def test_a_directory_of_another_user_is_refused(self, theirs):
        plant(theirs)
        with acting_as(BOB), pytest.raises(UnsafeDirectoryError) as refused:
            get(by_owner(theirs))
        assert "trust=NAME:KEY" in refused.value.hint

    def test_and_taken_where_that_user_is_trusted(self, theirs):
        path = plant(theirs)
        for step in (path, path.parent, path.parent.parent):
            os.chown(step, ADA, ADA)
        with acting_as(BOB):
            assert get(by_owner(theirs, GPUCACHE_TRUST_UIDS=str(ADA))) == b"planted"

    @pytest.mark.parametrize("step", [NAME, "v1/packs", "v1"])
    def test_what_another_user_has_put_is_refused_at_each_step(self, step, everyones, as_root):
        plant(everyones)
        os.chown(everyones / step, BOB, BOB)
        with pytest.raises(UnsafeDirectoryError) as refused:
            get(by_owner(everyones))
        assert str(everyones / step) in refused.value.problem

    @pytest.mark.parametrize("step", [NAME, "v1/packs", "v1", ""])
    def test_what_everybody_may_write_is_refused_at_each_step(self, step, everyones, as_root):
        plant(everyones)
        path = everyones / step
        path.chmod(path.stat().st_mode | stat.S_IWOTH)
        with pytest.raises(UnsafeDirectoryError):
            get(by_owner(everyones))

    def test_signatures_ask_for_no_owner(self, everyones, as_root):
        plant(everyones)
        os.chown(everyones / NAME, BOB, BOB)
        assert get(opened(everyones)) == b"planted"

    def test_nothing_is_put_where_another_user_could_change_it(self, theirs, content):
        with pytest.raises(UnsafeDirectoryError):
            by_owner(theirs).put_new(NAME, content)
        assert list(theirs.iterdir()) == []


def test_it_needs_no_package_of_the_extra(shared, content):
    code = f"""
import sys
from gpucache.remote.opening import open_remote
from gpucache.remote.url import RemoteUrl
remote = open_remote(RemoteUrl.parse("file://{shared}?mode=write"), {{}})
remote.put_new("{NAME}", "{content}")
assert remote.check().works
assert not {{"opendal", "redis", "zstandard", "cryptography"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
