"""What was compiled goes to the remote by another process: markers of launches, and the pusher that takes them away."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.every_call import SCRIPT
from support.launches import another_process, kernel, launched
from support.processes import PATIENCE_S, python_path
from support.pushers import end_pushers, pushers

from gpucache.archive import collect as collecting
from gpucache.archive.errors import BadPack
from gpucache.archive.read import PackReader
from gpucache.archive.signature import SigningKey, anyone, make_key
from gpucache.archive.trusted_keys import TrustedKeys
from gpucache.disk import reading
from gpucache.layout import paths
from gpucache.remote import breaker, outbox, pusher, single_entry, write_behind
from gpucache.remote.errors import RemoteError
from gpucache.remote.object_names import entry_object
from gpucache.remote.pusher import push_waiting
from gpucache.remote.pusher_lock import held, lock_name, push_breaker
from gpucache.remote.shared_directory import SharedDirectory
from gpucache.store.manifest import entry_path
from gpucache.store.stats import REMOTE, totals

KEY, FILES = kernel("first")
OTHER, OTHER_FILES = kernel("second")


class Writer:
    """A root whose new kernels go to a directory of objects, signed."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "root"
        self.remote = tmp_path / "remote"
        self.remote.mkdir(exist_ok=True)
        self.secret = tmp_path / "ci.key"
        self.signing = (
            SigningKey.read(str(self.secret))
            if self.secret.exists()
            else make_key("ci", str(self.secret))
        )
        self.trusted = TrustedKeys.parse(self.signing.public_text)
        self.environ = {
            "GPUCACHE_DIR": str(self.root),
            "TRITON_CACHE_DIR": str(self.root / "triton/0"),
            "GPUCACHE_REMOTE": f"file://{self.remote}?mode=write",
            "GPUCACHE_SIGN_KEY": str(self.secret),
        }

    @property
    def locks(self) -> str:
        return paths.ours(str(self.root), "locks")

    @property
    def waiting(self) -> list[str]:
        return [marker.key for marker in outbox.own(str(self.root))]

    def push(self, **changed: str) -> None:
        push_waiting(str(self.root), {**self.environ, **changed})

    def object_of(self, key: str) -> Path:
        return self.remote / entry_object("3.9.0", key)

    def pushed(self, key: str, judge: Callable[..., str | None] | None = None) -> dict[str, bytes]:
        """The files that the remote has of a key, once signature and digests are found right."""
        with self.object_of(key).open("rb") as file:
            with PackReader(file, judge or self.trusted.judge, source_name=key) as reader:
                (entry,) = reader.statement.entries
                assert entry.key == key
                files = {one.name: b"".join(pieces) for _, one, pieces in reader.files()}
        return {name: data for name, data in files.items() if not name.startswith("__")}

    def counted(self) -> dict[str, float]:
        return totals(str(self.root)).get(REMOTE, {})


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Writer:
    """This process writes to the remote; every compile is long enough, and no pusher stays to wait for more."""
    made = Writer(tmp_path)
    for name, value in made.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(write_behind, "LEAST_COMPILE_S", 0.0)
    monkeypatch.setattr(pusher, "IDLE_S", 0.0)
    another_process(monkeypatch)
    return made


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of each pusher that a launch would start; none is started."""
    words: list[list[str]] = []
    monkeypatch.setattr(
        write_behind, "start_beside", lambda module, given, environ: words.append(given)
    )
    return words


def leave(writer: Writer, *kernels: tuple[str, dict[str, bytes]]) -> None:
    """Compile kernels that are to be pushed."""
    for key, files in kernels or [(KEY, FILES)]:
        assert not launched(key, files)[0]


# ---- what a launch does


class TestALaunch:
    def test_a_compile_leaves_a_marker_and_starts_one_pusher(self, writer, started):
        leave(writer, (KEY, FILES), (OTHER, OTHER_FILES))
        assert sorted(writer.waiting) == sorted([KEY, OTHER])
        assert started == [[str(writer.root)]]

    def test_a_hit_leaves_none(self, writer, started):
        leave(writer)
        writer.push()
        assert launched(KEY, FILES)[0]
        assert writer.waiting == []

    def test_a_short_compile_leaves_none(self, writer, started, monkeypatch):
        monkeypatch.setattr(write_behind, "LEAST_COMPILE_S", PATIENCE_S)
        leave(writer)
        assert not os.path.lexists(paths.ours(str(writer.root), "outbox"))
        assert not started

    @pytest.mark.parametrize(
        "changed",
        [
            {"GPUCACHE_REMOTE": ""},
            {"GPUCACHE_REMOTE": "file:///remote"},
            {"GPUCACHE_REMOTE": "file:///remote?mode=read"},
            {"GPUCACHE_REMOTE": "redis://:secret@host?mode=write"},
            {"GPUCACHE_SIGN_KEY": ""},
        ],
    )
    def test_where_nothing_is_to_be_written_there_is_no_marker(
        self, changed, writer, started, monkeypatch
    ):
        for name, value in changed.items():
            monkeypatch.setenv(name, value)
        leave(writer)
        assert writer.waiting == []
        assert not started

    def test_that_nothing_can_be_signed_is_told_once(self, writer, started, monkeypatch, caplog):
        monkeypatch.delenv("GPUCACHE_SIGN_KEY")
        leave(writer, (KEY, FILES), (OTHER, OTHER_FILES))
        said = [one.getMessage() for one in caplog.records if "pushed" in one.getMessage()]
        assert len(said) == 1
        assert "GPUCACHE_SIGN_KEY is not set" in said[0]

    def test_no_pusher_is_started_beside_one_that_runs(self, writer, started):
        Path(writer.locks).mkdir(parents=True)
        with held(writer.locks):
            leave(writer)
        assert writer.waiting == [KEY]
        assert not started

    def test_none_is_started_while_the_remote_cannot_be_written(self, writer, started):
        Path(writer.locks).mkdir(parents=True)
        push_breaker(writer.locks, writer.environ["GPUCACHE_REMOTE"]).closed("timeout", "it hangs")
        leave(writer)
        assert writer.waiting == [KEY]
        assert not started

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
    def test_a_disk_that_takes_no_marker_costs_no_launch(
        self, number, writer, started, monkeypatch, caplog
    ):
        def refused(*_):
            raise OSError(number, os.strerror(number), "outbox")

        monkeypatch.setattr(write_behind, "leave", refused)
        leave(writer)
        assert launched(KEY, FILES)[0], "it is published all the same"
        assert "a kernel cannot be put down for the remote" in caplog.text

    def test_a_machine_that_starts_no_process_costs_no_launch(self, writer, monkeypatch, caplog):
        def refused(*_):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

        monkeypatch.setattr(write_behind, "start_beside", refused)
        leave(writer)
        assert writer.waiting == [KEY]

    def test_it_opens_no_key_and_loads_no_library_of_the_extra(self, writer, started):
        """What a rank never opens, no defect in the program can give away."""
        code = """
import sys
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
from gpucache.remote import write_behind
write_behind.LEAST_COMPILE_S = 0
write_behind.start_beside = lambda *_: print("started")
from support.launches import kernel, launched
assert not launched(*kernel("first"))[0]
assert any("outbox" in path for path in opened)
print([path for path in opened if path.endswith("ci.key")])
print({"cryptography", "zstandard", "opendal", "redis"} & set(sys.modules))
"""
        environ = {**os.environ, **writer.environ, "PYTHONPATH": python_path("tests")}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines() == ["started", "[]", "set()"]

    def test_a_key_that_is_named_by_a_relative_path_is_found_by_the_pusher(
        self, writer, monkeypatch
    ):
        told: dict[str, str] = {}
        monkeypatch.chdir(writer.secret.parent)
        monkeypatch.setenv("GPUCACHE_SIGN_KEY", "ci.key")
        monkeypatch.setattr(
            write_behind, "start_beside", lambda m, w, environ: told.update(environ)
        )
        leave(writer)
        assert told["GPUCACHE_SIGN_KEY"] == str(writer.secret)


# ---- what a pusher does


class TestAPush:
    def test_the_remote_has_the_entry_as_it_was_compiled_and_signed(self, writer, started):
        leave(writer, (KEY, FILES), (OTHER, OTHER_FILES))
        writer.push()
        assert writer.pushed(KEY) == FILES
        assert writer.pushed(OTHER) == OTHER_FILES
        assert writer.waiting == []
        assert os.listdir(writer.locks) == [] or not held_file(writer).exists()

    def test_it_is_counted(self, writer, started):
        leave(writer, (KEY, FILES), (OTHER, OTHER_FILES))
        writer.push()
        counted = writer.counted()
        sizes = [writer.object_of(key).stat().st_size for key in (KEY, OTHER)]
        assert (counted["pushed"], counted["pushed_bytes"]) == (2, sum(sizes))
        assert counted["push_s"] > 0

    def test_what_the_remote_has_stays_and_the_marker_goes(self, writer, started):
        leave(writer)
        path = writer.object_of(KEY)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"there")
        writer.push()
        assert path.read_bytes() == b"there"
        assert writer.waiting == []
        assert "pushed" not in writer.counted()

    def test_an_entry_that_is_gone_is_not_pushed(self, writer, started):
        leave(writer)
        os.rename(entry_path(str(writer.root), KEY), writer.root / "gone")
        writer.push()
        assert not writer.object_of(KEY).exists()
        assert writer.waiting == []

    def test_an_entry_with_other_bytes_than_were_published_is_not_pushed(self, writer, started):
        """What is signed is what was compiled, whatever has happened on the disk since."""
        leave(writer)
        path = Path(entry_path(str(writer.root), KEY), "add.ptx")
        before = path.stat()
        path.write_bytes(b"x" * before.st_size)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        writer.push()
        assert not writer.object_of(KEY).exists()
        assert writer.waiting == []

    def test_one_that_changes_while_it_is_packed_is_not_pushed(self, writer, started, monkeypatch):
        leave(writer)
        collected = pusher.collect

        def changed(path, pins):
            found = collected(path, pins)
            Path(found.paths["add.ptx"]).write_bytes(b"x")
            return found

        monkeypatch.setattr(pusher, "collect", changed)
        writer.push()
        assert not writer.object_of(KEY).exists()

    def test_one_that_no_reader_would_take_is_not_pushed(self, writer, started, monkeypatch):
        monkeypatch.setattr(single_entry, "ENTRY_BYTES", 10)
        leave(writer)
        writer.push()
        assert not writer.object_of(KEY).exists()
        assert writer.waiting == []

    def test_files_whose_owners_are_trusted_need_no_key(self, writer, started, monkeypatch):
        monkeypatch.setenv("GPUCACHE_REMOTE", f"file://{writer.remote}?mode=write&trust=owner")
        monkeypatch.delenv("GPUCACHE_SIGN_KEY")
        leave(writer)
        push_waiting(str(writer.root), os.environ)
        assert writer.pushed(KEY, anyone) == FILES
        with pytest.raises(BadPack) as refused:
            writer.pushed(KEY)
        assert refused.value.code == "unsigned"

    def test_what_is_left_while_the_last_lock_is_given_up_is_pushed_too(
        self, writer, started, monkeypatch
    ):
        """Whoever left it saw a pusher, and started none."""
        leave(writer)
        pushed_all = pusher._pushed_all

        def one_comes(*given):
            goes_on = pushed_all(*given)
            monkeypatch.setattr(pusher, "_pushed_all", pushed_all)
            leave(writer, (OTHER, OTHER_FILES))
            return goes_on

        monkeypatch.setattr(pusher, "_pushed_all", one_comes)
        writer.push()
        assert writer.pushed(OTHER) == OTHER_FILES

    def test_only_one_process_of_a_node_pushes(self, writer, started):
        leave(writer)
        with held(writer.locks):
            writer.push()
        assert writer.waiting == [KEY]

    def test_nothing_is_pushed_from_a_root_that_others_may_write(self, writer, started):
        leave(writer)
        writer.root.chmod(0o777)
        with pytest.raises(PermissionError):
            writer.push()
        assert not writer.object_of(KEY).exists()


def held_file(writer: Writer) -> Path:
    return Path(writer.locks, lock_name())


# ---- what goes wrong


class TestAFailure:
    @pytest.fixture
    def failing(self, monkeypatch) -> Callable[[str], None]:
        """Have each put fail in one way; ``""`` for none."""
        put_new = SharedDirectory.put_new
        how = [""]

        def put(self, name, path, replace=False):
            if how[0]:
                raise RemoteError(self.shown, how[0], "put", name)
            return put_new(self, name, path, replace)

        monkeypatch.setattr(SharedDirectory, "put_new", put)
        monkeypatch.setattr(pusher, "LONGEST_PAUSE_S", 0.0)
        return lambda kind: how.__setitem__(0, kind)

    @pytest.mark.parametrize(
        "kind",
        ["unreachable", "timeout", "refused", "full", "rate-limited", "server", "bad-answer"],
    )
    def test_the_marker_stays_until_the_remote_works(
        self, kind, failing, writer, started, monkeypatch
    ):
        leave(writer)
        failing(kind)
        writer.push()
        assert writer.waiting == [KEY]
        assert writer.counted()["push_errors"] >= 1
        failing("")
        writer.push()
        assert writer.waiting == [KEY], "the remote is left alone for a while"
        later = time.monotonic() + 1000.0
        for module in (pusher, sys.modules["gpucache.remote.breaker"]):
            monkeypatch.setattr(module.time, "monotonic", lambda: later)
        writer.push()
        assert writer.pushed(KEY) == FILES

    def test_a_remote_that_fails_is_tried_a_few_times_whatever_waits(
        self, failing, writer, started
    ):
        leave(writer, *(kernel(f"kernel {number}") for number in range(12)))
        failing("server")
        writer.push()
        assert len(writer.waiting) == 12
        assert writer.counted()["push_errors"] == 3

    def test_what_the_remote_says_is_too_large_is_not_tried_again(self, failing, writer, started):
        leave(writer)
        failing("too-large")
        writer.push()
        assert writer.waiting == []

    def test_a_short_failure_is_waited_for(self, failing, writer, started, monkeypatch):
        """Else what was compiled last would stay until something is compiled again."""
        leave(writer)
        monkeypatch.setattr(pusher, "LONGEST_PAUSE_S", PATIENCE_S)
        failing("timeout")

        def slept(_):
            failing("")
            (state,) = Path(writer.locks).glob("remote-*.push")
            state.unlink()

        monkeypatch.setattr(pusher.time, "sleep", slept)
        writer.push()
        assert writer.pushed(KEY) == FILES

    def test_a_long_failure_is_left_to_the_next_one(self, failing, writer, started, monkeypatch):
        """Whoever waits for all processes of a job waits for the pusher too."""
        leave(writer)
        monkeypatch.setattr(breaker, "FIRST_S", 2 * breaker.FIRST_S)
        failing("timeout")
        monkeypatch.setattr(pusher.time, "sleep", lambda _: pytest.fail("it waits"))
        writer.push()
        assert writer.waiting == [KEY]

    def test_other_nodes_are_looked_at_once(self, writer, started, monkeypatch):
        """A pusher looks for more five times a second, and a root of a fleet has a directory of each node."""
        leave(writer)
        looks = []
        of_others = outbox.of_others

        def counted(root):
            looks.append(root)
            return of_others(root)

        monkeypatch.setattr(outbox, "of_others", counted)
        monkeypatch.setattr(pusher, "IDLE_S", 3 * pusher._LOOK_S)
        writer.push()
        assert writer.pushed(KEY) == FILES
        assert len(looks) == 1

    @pytest.mark.parametrize("why", ["no key", "another's key", "no url", "no remote"])
    def test_what_cannot_be_used_is_tried_once_in_a_while(self, why, writer, started):
        changed = {
            "no key": {"GPUCACHE_SIGN_KEY": "/nowhere/ci.key"},
            "another's key": {"GPUCACHE_SIGN_KEY": "/etc/hostname"},
            "no url": {"GPUCACHE_REMOTE": "ftp://host/?mode=write"},
            "no remote": {"GPUCACHE_REMOTE": ""},
        }[why]
        leave(writer)
        writer.push(**changed)
        assert writer.waiting == [KEY]

    def test_a_full_disk_costs_nothing_but_time(self, writer, started, monkeypatch):
        leave(writer)

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        write_pack = single_entry.write_pack
        monkeypatch.setattr(single_entry, "write_pack", full)
        writer.push()
        assert writer.waiting == [KEY]
        assert writer.counted()["push_errors"] == 1
        monkeypatch.setattr(single_entry, "write_pack", write_pack)
        writer.push()
        assert writer.pushed(KEY) == FILES

    def test_an_entry_that_cannot_be_read_now_keeps_none_of_the_others(
        self, writer, started, monkeypatch
    ):
        leave(writer, (KEY, FILES), (OTHER, OTHER_FILES))
        read = reading.open_regular

        def failing(path, *given, **named):
            if KEY in str(path):
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            return read(path, *given, **named)

        monkeypatch.setattr(
            collecting,
            "_pinned",
            lambda path, wanted, pins: (None, {name: f"{path}/{name}" for name in wanted}),
        )
        monkeypatch.setattr(reading, "open_regular", failing)
        writer.push()
        assert writer.pushed(OTHER) == OTHER_FILES
        assert writer.waiting == [KEY]
        monkeypatch.setattr(reading, "open_regular", read)
        writer.push()
        assert writer.pushed(KEY) == FILES


# ---- real processes


def until(happens: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def real(writer: Writer, monkeypatch) -> Iterator[Writer]:
    """A writer whose pushers are processes; those that are left are killed."""
    monkeypatch.setenv("PYTHONPATH", python_path())
    yield writer
    end_pushers(writer.root)


class TestProcesses:
    def test_a_pusher_survives_the_launch_that_has_started_it(self, real):
        """It is in a session of its own, and its stdio is nobody's, so that no pipe of a launcher waits for it."""
        code = """
from gpucache.remote import write_behind
write_behind.LEAST_COMPILE_S = 0
write_behind._LEAVES_S = 60  # on a busy machine the start takes longer than a launch would wait
from support.launches import kernel, launched
assert not launched(*kernel("first"))[0]
import os
children = open(f"/proc/self/task/{os.getpid()}/children").read()
assert not children, "a zombie of the start"
"""
        environ = {**os.environ, "PYTHONPATH": python_path("tests")}
        subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, check=True)
        until(lambda: real.object_of(KEY).exists() and not real.waiting)
        assert real.pushed(KEY) == FILES
        until(lambda: not pushers(real.root))
        assert not held_file(real).exists()

    def test_one_pusher_serves_all_ranks(self, real):
        """While it waits for more, what others compile is pushed by it as well."""
        leave(real)
        until(lambda: real.object_of(KEY).exists())
        (first,) = pushers(real.root)
        os.kill(first, signal.SIGSTOP)  # or it may end before this test has looked at it
        status = Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()
        assert int(status[3]) != os.getsid(0)
        assert {os.readlink(f"/proc/{first}/fd/{fd}") for fd in (0, 1, 2)} == {os.devnull}
        assert os.readlink(f"/proc/{first}/cwd") == "/"
        leave(real, (OTHER, OTHER_FILES))
        os.kill(first, signal.SIGCONT)
        until(lambda: real.object_of(OTHER).exists())
        assert pushers(real.root) in ([first], [])

    def test_what_a_killed_pusher_has_left_the_next_one_pushes(self, real, monkeypatch):
        """As the end of its job kills it."""
        monkeypatch.setenv("GPUCACHE_REMOTE", f"file://{real.remote}/later?mode=write")
        leave(real)
        until(lambda: push_breaker(real.locks, os.environ["GPUCACHE_REMOTE"]).read().closed_until)
        end_pushers(real.root)
        assert real.waiting == [KEY]
        real.push()
        assert real.pushed(KEY) == FILES

    def test_the_next_run_pushes_what_the_last_one_has_left(self, real, gpucache, monkeypatch):
        """Its last kernel may have been compiled while the remote could not be written."""
        monkeypatch.setattr(write_behind, "start_beside", lambda *_: None)
        leave(real)
        environ = {**os.environ, "GPUCACHE_FAKE_DEVICES": "1"}
        os.unlink(held_file(real))  # nothing was started, and that is a while ago
        assert gpucache("provision", env=environ).returncode == 0
        off = {**environ, "GPUCACHE_SHARE": "0"}
        assert gpucache("run", "--device", "0", "--", "true", env=off).returncode == 0
        assert not held_file(real).exists()
        done = gpucache("run", "--device", "0", "--", "true", env=environ)
        assert done.returncode == 0
        until(lambda: real.object_of(KEY).exists() and not real.waiting)
        assert real.pushed(KEY) == FILES


PUSHING = (
    SCRIPT
    + """
from gpucache.archive import compression, signature
from gpucache.remote import pusher, shared_directory
import cryptography.hazmat.primitives.asymmetric.ed25519, zstandard
import tempfile
pusher.IDLE_S = 0
tempfile.gettempdir()
home = sys.argv[1]
environ = {"GPUCACHE_REMOTE": f"file://{home}/remote?mode=write", "GPUCACHE_SIGN_KEY": home + "/ci.key"}
mark("begin")
pusher.push_waiting(home + "/root", environ)
mark("end")
"""
)


def test_a_pusher_that_is_killed_at_any_moment_loses_nothing(every_call, writer, started, tmp_path):
    """Readers of the remote find no entry or the whole one, and the next pusher completes what is left."""
    leave(writer)
    template = tmp_path / "template"
    template.mkdir()
    for path in (writer.root, writer.remote, writer.secret):
        os.rename(path, template / path.name)

    def start(home: Path) -> list[object]:
        shutil.copytree(template, home, dirs_exist_ok=True)
        return []

    def check(home: Path, line: str) -> None:
        writer = Writer(home)
        if writer.object_of(KEY).exists():
            assert writer.pushed(KEY) == FILES, line
        else:
            assert writer.waiting == [KEY], line
        writer.push()
        assert writer.pushed(KEY) == FILES, line
        assert writer.waiting == [], line
        objects = [path for path in writer.remote.rglob("[!.]*") if path.is_file()]
        assert objects == [writer.object_of(KEY)], line

    # The sweep of what killed ones have staged asks for their locks in any order.
    every_call.killed_everywhere(PUSHING, start, check, 30, once=("flock",))
