"""What a miss has of a remote: launches as Triton makes them, through a real courier, from a directory of objects."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from support.launches import another_process, kernel, launched
from support.processes import PATIENCE_S, python_path
from support.read_through import VERSION, Entries, couriers, end_couriers
from support.remotes import EVERY_KIND, KINDS, Place

from gpucache.archive.signature import make_key
from gpucache.disk import lock_place, spawning
from gpucache.forks import run_at_exit
from gpucache.remote import ask as asking
from gpucache.remote.breaker import Breaker
from gpucache.remote.meeting import Meeting
from gpucache.remote.object_names import entry_object
from gpucache.store.manifest import entry_path, read_manifest
from gpucache.store.stats import totals
from gpucache.triton.manager import DeviceCacheManager, current_location

KEY, FILES = kernel("first")
OTHER, OTHER_FILES = kernel("second")


@pytest.fixture
def remote(tmp_path: Path) -> Entries:
    return Entries.signed(tmp_path)


@pytest.fixture(autouse=True)
def reader(root: Path, remote: Entries, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process reads from the remote, with patience."""
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    monkeypatch.setenv("GPUCACHE_REMOTE_TIMEOUT_S", str(PATIENCE_S))
    for name, value in remote.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__=VERSION))
    another_process(monkeypatch)
    yield
    end_couriers(root)


def counted(root: Path) -> dict[str, float]:
    location = current_location()
    location.stats.flush()
    (values,) = totals(str(root)).values()
    return {name: value for name, value in values.items() if name.startswith("remote") and value}


def in_a_child(holds: Callable[[], bool]) -> bool:
    """Whether something holds in a forked child, which is killed if it hangs."""
    child = os.fork()
    if child == 0:
        try:
            is_held = holds()
            run_at_exit()
            os._exit(0 if is_held else 1)
        finally:
            os._exit(2)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@contextmanager
def a_signal_as_a_courier_starts(
    monkeypatch: pytest.MonkeyPatch, handle: Callable[[], object]
) -> Iterator[None]:
    """Let a handler run once in the middle of a question: a courier was started, and has not come up."""
    start = asking.start_beside
    is_due = [True]

    def start_and_signal(module: str, words: Sequence[str], environ: Mapping[str, str]) -> None:
        start(module, words, environ)
        if is_due:
            is_due.clear()
            signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(asking, "start_beside", start_and_signal)
    before = signal.signal(signal.SIGALRM, lambda *_: handle())
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


class TestAHit:
    def test_it_is_no_compile_and_as_if_it_had_been_made_here(self, remote, root):
        remote.add(KEY, FILES)
        assert launched(KEY, FILES) == (True, FILES)
        manager_sees, contents = launched(KEY, FILES)
        assert manager_sees
        assert contents == FILES
        assert Path(entry_path(str(root), KEY)).is_dir()
        assert (root / "triton/0" / KEY).is_dir()

    def test_the_remote_is_asked_once_for_all_device_directories(self, remote, root, monkeypatch):
        remote.add(KEY, FILES)
        assert launched(KEY, FILES)[0]
        remote.path(KEY).unlink()
        monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/1"))
        assert launched(KEY, FILES)[0]

    def test_it_is_counted(self, remote, root):
        remote.add(KEY, FILES)
        launched(KEY, FILES)
        found = counted(root)
        assert found.pop("remote_s") > 0
        assert found == {
            "remote_hits": 1,
            "remote_bytes": remote.path(KEY).stat().st_size,
        }

    def test_one_courier_serves_them_all(self, remote, root):
        for number in range(4):
            key, files = kernel(str(number))
            remote.add(key, files)
            assert launched(key, files)[0]
        assert len(couriers(root)) == 1

    def test_the_rank_keeps_no_zombie_of_its_start(self, remote, root):
        end = time.monotonic() + PATIENCE_S
        for number in count():
            key, files = kernel(str(number))
            remote.add(key, files)
            assert launched(key, files)[0]
            if not spawning._started:
                break
            assert time.monotonic() < end
            time.sleep(0.1)

    def test_no_library_of_a_remote_is_imported(self, python, remote, root):
        remote.add(KEY, FILES)
        code = "import sys, types; sys.modules['triton'] = types.SimpleNamespace(__version__='3.9.0')\n"
        code += "from gpucache.triton.manager import DeviceCacheManager\n"
        code += "assert DeviceCacheManager(sys.argv[1]).get_group('add.json')\n"
        code += "print(sorted({'opendal', 'redis', 'cryptography', 'zstandard', 'asyncio'} & set(sys.modules)))"
        done = python(code, KEY)
        assert (done.stdout, done.stderr) == ("[]\n", "")

    def test_the_courier_has_nothing_of_the_ranks(self, remote, root):
        """A pipe that it kept open would let whoever reads the program's output wait."""
        remote.add(KEY, FILES)
        launched(KEY, FILES)
        (pid,) = couriers(root)
        stdio = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)]
        assert stdio == ["/dev/null"] * 3
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.getsid(pid) != os.getsid(0)
        held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert not [path for path in held if path.endswith(".lock")]

    def test_where_the_locks_are_not_in_the_root_the_courier_is_met_there(
        self, remote, root, monkeypatch, shared_memory
    ):
        """As where the root is on a network file system, on which another node would find the socket too."""
        monkeypatch.setattr(lock_place, "is_local", lambda _: False)
        remote.add(KEY, FILES)
        assert launched(KEY, FILES)[0]
        assert len(list(shared_memory.glob("gpucache-*/remote-*.socket"))) == 1
        assert not list(root.glob("gpucache/v1/locks/remote-*"))

    def test_only_this_user_reaches_it(self, remote, root):
        remote.add(KEY, FILES)
        launched(KEY, FILES)
        (found,) = root.glob("gpucache/v1/locks/remote-*.socket")
        assert stat.S_IMODE(found.stat().st_mode) & 0o077 == 0


class TestEveryKind:
    @pytest.fixture(params=EVERY_KIND)
    def place(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
        found = KINDS[request.param](request)
        monkeypatch.setenv("GPUCACHE_REMOTE", found.url("read"))
        for name, value in found.environ.items():
            monkeypatch.setenv(name, value)
        return found

    def test_what_it_has_is_a_hit_in_a_forked_child_too(self, place, remote, root, tmp_path):
        kernels = [kernel(str(number)) for number in range(3)]
        store = place.open()
        for key, files in kernels[:2]:
            (tmp_path / "object").write_bytes(remote.packed(key, files))
            store.put_new(entry_object(VERSION, key), str(tmp_path / "object"))
        (first, files), (second, more), (third, rest) = kernels
        assert launched(first, files) == (True, files)
        assert in_a_child(lambda: launched(second, more) == (True, more))
        assert launched(third, rest) == (False, rest)
        found = counted(root)
        assert (found["remote_hits"], found["remote_misses"]) == (2, 1)


class TestRoom:
    def test_what_is_fetched_makes_room_as_what_is_compiled_does(self, remote, root, monkeypatch):
        """A process that finds all its kernels on the remote compiles none, which would begin a turn."""
        kernels = [kernel(f"{number} {'x' * 60}") for number in range(6)]
        for key, files in kernels:
            remote.add(key, files)
        for key, files in kernels[:5]:
            assert launched(key, files)[0]
            os.utime(f"{entry_path(str(root), key)}/__entry__.json", (1, 1))
        monkeypatch.setenv("GPUCACHE_MAX_SIZE", "20KB")
        another_process(monkeypatch)
        assert launched(*kernels[5])[0]
        end = time.monotonic() + PATIENCE_S
        paths = [entry_path(str(root), key) for key, _ in kernels]
        while all(map(os.path.isdir, paths)) and time.monotonic() < end:
            time.sleep(0.01)
        assert not all(map(os.path.isdir, paths))
        assert os.path.isdir(paths[5])


class TestAMiss:
    def test_it_is_compiled_and_published_as_ever(self, remote, root):
        assert launched(KEY, FILES) == (False, FILES)
        assert launched(KEY, FILES)[0]
        found = counted(root)
        assert found.pop("remote_s") > 0
        assert found == {"remote_misses": 1}

    def test_a_kernel_that_does_not_say_its_triton_has_that_of_the_process(self, remote, root):
        """Those of Triton 3.2 do not; by that version others find it on a remote."""
        said = {**json.loads(FILES["add.json"])}
        del said["triton_version"]
        files = {**FILES, "add.json": json.dumps(said).encode()}
        assert launched(KEY, files) == (False, files)
        found = read_manifest(entry_path(str(root), KEY))
        assert found is not None
        assert found[0].facts.triton_version == VERSION

    def test_what_the_store_has_is_not_asked_for(self, remote, root):
        launched(KEY, FILES)
        launched(KEY, FILES)
        assert counted(root)["remote_misses"] == 1


def tampered(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


BAD = {
    "cut off": lambda remote, tmp_path: remote.packed(KEY, FILES)[:-40],
    "a flipped bit": lambda remote, tmp_path: tampered(remote.packed(KEY, FILES)),
    "another key's entry": lambda remote, tmp_path: remote.packed(OTHER, OTHER_FILES),
    "another Triton's entry": lambda remote, tmp_path: remote.packed(KEY, FILES, version="3.8.0"),
    "signed by a stranger": lambda remote, tmp_path: remote.packed(
        KEY, FILES, signing=make_key("mallory", str(tmp_path / "mallory.key"))
    ),
    "signed by a stranger in a trusted name": lambda remote, tmp_path: remote.packed(
        KEY, FILES, signing=make_key("ci", str(tmp_path / "again.key"))
    ),
    "unsigned": lambda remote, tmp_path: Entries(remote.directory, None).packed(KEY, FILES),
    "nothing": lambda remote, tmp_path: b"",
    "a page of HTML": lambda remote, tmp_path: b"<html>\x1b[2J</html>" * 1000,
}


class TestWhatIsRefused:
    @pytest.mark.parametrize("what", BAD)
    def test_it_is_compiled_past_counted_and_left_there(self, remote, root, what, caplog, tmp_path):
        data = BAD[what](remote, tmp_path)
        remote.put(KEY, data)
        assert launched(KEY, FILES) == (False, FILES)
        assert remote.path(KEY).read_bytes() == data
        assert counted(root)["remote_bad"] == 1
        (said,) = warnings(caplog)
        assert f"is refused: {remote.url}: " in said
        assert "\x1b" not in said

    def test_each_kind_is_told_once(self, remote, caplog):
        for number in range(3):
            key, files = kernel(str(number))
            remote.put(key, b"")
            launched(key, files)
        assert len(warnings(caplog)) == 1

    def test_an_object_that_is_too_large_is_not_read(self, remote, root, caplog):
        remote.put(KEY, b"")
        os.truncate(remote.path(KEY), 400 * 2**20)
        assert launched(KEY, FILES) == (False, FILES)
        assert counted(root)["remote_bad"] == 1
        assert "remote_bytes" not in counted(root)


class TestTrust:
    def test_without_a_trusted_key_nothing_is_read_and_the_way_out_is_told(
        self, remote, root, monkeypatch, caplog
    ):
        remote.add(KEY, FILES)
        monkeypatch.delenv("GPUCACHE_TRUST_KEYS")
        assert launched(KEY, FILES)[0] is False
        assert launched(OTHER, OTHER_FILES)[0] is False
        assert couriers(root) == []
        (said,) = warnings(caplog)
        assert "GPUCACHE_TRUST_KEYS" in said

    def test_whoever_only_writes_there_is_not_warned(self, remote, root, monkeypatch, caplog):
        monkeypatch.setenv("GPUCACHE_REMOTE", f"{remote.url}?mode=write")
        monkeypatch.delenv("GPUCACHE_TRUST_KEYS")
        caplog.set_level(logging.INFO, "gpucache")
        remote.add(KEY, FILES)
        assert launched(KEY, FILES)[0] is False
        assert couriers(root) == []
        assert [said for said in caplog.messages if "no key is trusted" in said]
        assert not [said for said in warnings(caplog) if "no key is trusted" in said]

    def test_a_url_may_say_whom_it_is_trusted_by(self, remote, monkeypatch):
        remote.add(KEY, FILES)
        monkeypatch.setenv("GPUCACHE_REMOTE", f"{remote.url}?trust={remote.signing.public_text}")
        monkeypatch.delenv("GPUCACHE_TRUST_KEYS")
        assert launched(KEY, FILES)[0]

    def test_the_owner_of_a_directory_may_be_trusted(self, remote, monkeypatch):
        Entries(remote.directory, None).add(KEY, FILES)
        monkeypatch.setenv("GPUCACHE_REMOTE", f"{remote.url}?trust=owner")
        monkeypatch.delenv("GPUCACHE_TRUST_KEYS")
        for path in (remote.directory, *remote.directory.rglob("*")):
            path.chmod(0o700)
        assert launched(KEY, FILES)[0]

    def test_a_file_of_keys_is_found_from_where_the_program_is(self, remote, monkeypatch, tmp_path):
        remote.add(KEY, FILES)
        (tmp_path / "trusted").write_text(remote.signing.public_text + "\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("GPUCACHE_TRUST_KEYS", "./trusted")
        assert launched(KEY, FILES)[0]

    def test_a_key_that_is_believed_no_more_counts_at_once(self, remote, monkeypatch, tmp_path):
        """The courier runs on; a file of keys is read anew."""
        remote.add(KEY, FILES)
        remote.add(OTHER, OTHER_FILES)
        file = tmp_path / "trusted"
        file.write_text(remote.signing.public_text + "\n")
        monkeypatch.setenv("GPUCACHE_TRUST_KEYS", str(file))
        assert launched(KEY, FILES)[0]
        file.write_text(make_key("new", str(tmp_path / "new.key")).public_text)
        assert not launched(OTHER, OTHER_FILES)[0]

    @pytest.mark.parametrize("trust", ["ci:short", "/nowhere/at/all", "nonsense"])
    def test_keys_that_make_no_sense_are_told_and_nothing_is_read(
        self, remote, monkeypatch, caplog, trust
    ):
        remote.add(KEY, FILES)
        monkeypatch.setenv("GPUCACHE_TRUST_KEYS", trust)
        assert launched(KEY, FILES) == (False, FILES)
        assert len(warnings(caplog)) == 1


class Stock:
    """Triton's own manager, where that finds nothing."""

    def __init__(self, key: str, override: bool, dump: bool) -> None:
        pass

    def get_group(self, filename: str) -> None:
        return None


class TestSettings:
    @pytest.mark.parametrize("url", ["nonsense", "s3://", "s3://me:secret@bucket/x", "ftp://x/y"])
    def test_a_url_that_makes_no_sense_is_told_without_its_secret(
        self, remote, root, monkeypatch, caplog, url
    ):
        monkeypatch.setenv("GPUCACHE_REMOTE", url)
        assert launched(KEY, FILES) == (False, FILES)
        assert launched(OTHER, OTHER_FILES)[0] is False
        (said,) = warnings(caplog)
        assert "secret" not in said
        assert couriers(root) == []

    @pytest.mark.parametrize(
        ("name", "value"),
        [("GPUCACHE_DISABLE", "1"), ("GPUCACHE_SHARE", "0"), ("TRITON_ALWAYS_COMPILE", "1")],
    )
    def test_where_nothing_is_shared_nothing_is_asked(self, remote, root, monkeypatch, name, value):
        remote.add(KEY, FILES)
        monkeypatch.setenv(name, value)
        stock = types.SimpleNamespace(FileCacheManager=Stock)
        monkeypatch.setitem(sys.modules, "triton.runtime.cache", stock)
        assert DeviceCacheManager(KEY).get_group(next(iter(FILES))) is None
        assert couriers(root) == []

    def test_a_required_hit_may_come_from_there(self, remote, monkeypatch):
        remote.add(KEY, FILES)
        monkeypatch.setenv("GPUCACHE_REQUIRE_HIT", "1")
        assert launched(KEY, FILES)[0]

    @pytest.mark.parametrize("kind", ["file", "s3"])
    def test_where_the_library_of_a_remote_is_missing_the_extra_is_named(
        self, remote, root, monkeypatch, caplog, tmp_path, kind
    ):
        """In the Python of a program that has gpucache without the extra."""
        (tmp_path / "without").mkdir()
        for name in ("cryptography", "zstandard", "opendal"):
            (tmp_path / "without" / f"{name}.py").write_text("raise ImportError('none here')")
        monkeypatch.setenv("PYTHONPATH", python_path(tmp_path / "without"))
        remote.add(KEY, FILES)
        if kind == "s3":
            monkeypatch.setenv("GPUCACHE_REMOTE", "s3://bucket/x?endpoint=http://127.0.0.1:9")
        assert launched(KEY, FILES) == (False, FILES)
        (said,) = warnings(caplog)
        assert "pip install opendal redis zstandard cryptography" in said

    def test_a_read_only_root_compiles_as_ever(self, remote, root, monkeypatch):
        remote.add(KEY, FILES)
        launched(OTHER, OTHER_FILES)
        end_couriers(root)
        another_process(monkeypatch)

        def refuse(*words: object, **options: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("gpucache.store.key_lock._open_locked", refuse)
        assert launched(KEY, FILES) == (False, FILES)


class TestTheCourier:
    def test_killed_in_between_another_is_started(self, remote, root):
        remote.add(KEY, FILES)
        remote.add(OTHER, OTHER_FILES)
        assert launched(KEY, FILES)[0]
        end_couriers(root)
        assert launched(OTHER, OTHER_FILES)[0]

    def test_stopped_it_costs_one_limit(self, remote, root, monkeypatch, caplog):
        remote.add(KEY, FILES)
        launched(KEY, FILES)
        (pid,) = couriers(root)
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setenv("GPUCACHE_REMOTE_TIMEOUT_S", "0.5")
        another_process(monkeypatch)
        began = time.monotonic()
        for number in range(12):
            key, files = kernel(f"after {number}")
            assert launched(key, files) == (False, files)
        spent = time.monotonic() - began
        os.kill(pid, signal.SIGCONT)
        assert 0.5 <= spent < PATIENCE_S / 2
        assert counted(root)["remote_errors"] == 1
        (said,) = warnings(caplog)
        assert "no answer within 0.5 s" in said

    def test_a_fork_after_a_hit_asks_again(self, remote, root):
        """A child of a process that had used opendal would hang for ever."""
        remote.add(KEY, FILES)
        remote.add(OTHER, OTHER_FILES)
        assert launched(KEY, FILES)[0]
        assert in_a_child(lambda: launched(OTHER, OTHER_FILES) == (True, OTHER_FILES))

    def test_a_signal_handler_may_ask_in_the_middle_of_a_question(self, remote, root, monkeypatch):
        remote.add(KEY, FILES)
        remote.add(OTHER, OTHER_FILES)
        inner = []
        with a_signal_as_a_courier_starts(
            monkeypatch, lambda: inner.append(launched(OTHER, OTHER_FILES))
        ):
            assert launched(KEY, FILES) == (True, FILES)
        assert inner == [(True, OTHER_FILES)]

    def test_an_interrupt_in_the_middle_frees_the_key(self, remote, root, monkeypatch):
        remote.add(KEY, FILES)

        def interrupt() -> None:
            raise KeyboardInterrupt

        with a_signal_as_a_courier_starts(monkeypatch, interrupt):
            with pytest.raises(KeyboardInterrupt):
                launched(KEY, FILES)
        assert list(root.glob(f"gpucache/v1/locks/{KEY}.lock")) == []
        assert launched(KEY, FILES)[0]

    def test_warnings_as_errors_change_nothing(self, python, remote, root):
        remote.add(KEY, FILES)
        code = "import sys, types; sys.modules['triton'] = types.SimpleNamespace(__version__='3.9.0')\n"
        code += "from gpucache.triton.manager import DeviceCacheManager\n"
        code += "assert DeviceCacheManager(sys.argv[1]).get_group('add.json')\n"
        done = python(code, KEY, env={**os.environ, "PYTHONWARNINGS": "error"})
        assert (done.returncode, done.stderr) == (0, "")


class TestThePlanted:
    def test_another_users_socket_is_not_believed(
        self, remote, root, monkeypatch, as_root, everyones
    ):
        """Who owns the socket says nothing: the kernel says whose process listens."""
        remote.add(KEY, FILES)
        launched(OTHER, OTHER_FILES)  # by the test's own patience, so that a courier has come up
        end_couriers(root)
        monkeypatch.setenv("GPUCACHE_REMOTE_TIMEOUT_S", "1")
        url, trust = remote.environ.values()
        locks = current_location().locks.directory()
        meeting = Meeting.of(locks, str(root), url, trust)
        os.unlink(f"{locks}/{meeting.socket}")
        code = "import os, socket, sys, time\n"
        code += "listener = socket.socket(socket.AF_UNIX)\n"
        code += "os.chdir(sys.argv[1]); listener.bind(sys.argv[2]); os.chmod(sys.argv[2], 0o777)\n"
        code += "os.setuid(4242); listener.listen(); print('up', flush=True)\n"
        code += "connection = listener.accept()[0]\n"
        code += "print(repr(connection.recv(100)), flush=True)\n"
        words = [sys.executable, "-c", code, locks, meeting.socket]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as mallory:
            assert mallory.stdout is not None
            assert mallory.stdout.readline() == "up\n"
            monkeypatch.setattr(
                "gpucache.remote.ask.start_beside", lambda module, words, environ: None
            )
            another_process(monkeypatch)
            assert launched(KEY, FILES) == (False, FILES)
            assert mallory.stdout.readline() == "b''\n", "it was asked nothing"
        assert Breaker(meeting.state).read().why == "no-courier"
