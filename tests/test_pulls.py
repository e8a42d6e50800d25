"""A miss of a key that a pull of this node brings waits for it while the pull lives, and not a moment longer."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.launches import another_process, kernel, launched
from support.processes import PATIENCE_S, running

from gpucache.disk.door import HOLDER_BYTES
from gpucache.disk.files import make_below_root
from gpucache.disk.locks import holder, is_free
from gpucache.layout.paths import ours
from gpucache.remote import pulls
from gpucache.remote.awaited import ASK_S, Awaited
from gpucache.remote.pull_files import PULL, pull_path, remarks
from gpucache.remote.pulls import Pull
from gpucache.triton import pulled

KEY, FILES = kernel("pulled")
OTHER, OTHER_FILES = kernel("another")
WORDS = ("file:///remote", "llama")

PULLER = """
import sys
from gpucache.remote.pulls import Pull
root, phase, *keys = sys.argv[1:]
pull = Pull.begin(root, ["file:///remote", "llama"], "the pack llama")
if phase == "asking":
    pull.ask()
if phase == "bringing":
    pull.bring(keys)
print("held", flush=True)
for line in sys.stdin:
    pull.end() if line == "end\\n" else pull.beat()
    print("done", flush=True)
"""


@pytest.fixture
def made(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root in which this process caches."""
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    another_process(monkeypatch)
    for part in ("locks", "tmp", "store"):
        make_below_root(ours(str(root), part))
    return root


def begun(root: Path) -> Pull:
    pull = Pull.begin(str(root), WORDS, "the pack llama")
    assert pull is not None
    return pull


def awaited(root: Path, key: str, stall_s: float = PATIENCE_S) -> Awaited:
    return Awaited(ours(str(root), "locks"), key, stall_s)


@contextmanager
def aged(path: str, age_s: float) -> Iterator[None]:
    then = time.time() - age_s
    os.utime(path, (then, then))
    yield


def test_a_key_is_awaited_that_a_living_pull_brings_and_no_other(made):
    pull = begun(made)
    pull.bring([KEY, *(kernel(str(number))[0] for number in range(100))])
    assert awaited(made, KEY).is_coming()
    assert awaited(made, kernel("99")[0]).is_coming()
    assert not awaited(made, OTHER).is_coming()
    pull.end()
    assert not awaited(made, KEY).is_coming()
    assert not os.path.lexists(pull.path)


@pytest.mark.parametrize("phase", ["starting", "asking"])
def test_any_key_is_awaited_before_the_keys_are_known(phase, made):
    pull = begun(made)
    if phase == "asking":
        pull.ask()
    assert awaited(made, KEY).is_coming()
    pull.end()


def test_a_remote_that_does_not_answer_is_awaited_for_seconds_however_long_the_stall_limit(made):
    pull = begun(made)
    pull.ask()
    with aged(pull.path, ASK_S + 1):
        assert not awaited(made, KEY).is_coming()
    pull.bring([KEY])
    assert awaited(made, KEY).is_coming()
    pull.end()


def test_a_pull_that_stands_still_is_awaited_for_the_stall_limit(made):
    pull = begun(made)
    pull.bring([KEY])
    with aged(pull.path, 20):
        assert awaited(made, KEY, stall_s=30).is_coming()
        assert not awaited(made, KEY, stall_s=10).is_coming()
    pull.end()


def test_a_pull_from_the_future_that_stands_still_is_awaited_by_the_own_clock(made, monkeypatch):
    """Where the node's clock was set back."""
    pull = begun(made)
    pull.bring([KEY])
    waiting = awaited(made, KEY, stall_s=30)
    with aged(pull.path, -3600):
        assert waiting.is_coming()
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 31)
        assert not waiting.is_coming()
        assert waiting.stalled == pull.path
    pull.end()


def test_a_pull_from_the_future_that_stands_still_is_awaited_once_for_all_keys(made, monkeypatch):
    pull = begun(made)
    pull.bring([KEY, OTHER])
    with aged(pull.path, -3600):
        assert awaited(made, KEY, stall_s=30).is_coming()
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 31)
        assert not awaited(made, OTHER, stall_s=30).is_coming()
    pull.end()


def test_few_bytes_are_no_beat(made, monkeypatch):
    """A server that drips ten bytes at a time would be waited for without end."""
    pull = begun(made)
    pull.bring([KEY])
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 10)
    with aged(pull.path, 20):
        for _ in range(100):
            pull.came(10)
        assert time.time() - os.stat(pull.path).st_mtime > 10
        pull.came(100_000)
        assert time.time() - os.stat(pull.path).st_mtime < 10
    pull.end()


def test_the_same_pull_goes_on_once_in_a_node(made):
    with running(PULLER, str(made), "bringing", KEY) as other:
        assert Pull.begin(str(made), WORDS, "the pack llama") is None
        assert Pull.begin(str(made), ("file:///remote", "another"), "another pack") is not None
        other.send_signal(signal.SIGKILL)
        other.wait(PATIENCE_S)
        begun(made).end()


def test_a_pull_of_a_process_that_was_killed_is_awaited_by_nobody(made):
    with running(PULLER, str(made), "bringing", KEY) as other:
        waiting = awaited(made, KEY)
        assert waiting.is_coming()
        other.send_signal(signal.SIGKILL)
        other.wait(PATIENCE_S)
        assert not waiting.is_coming()
        assert waiting.stalled is None


def test_a_process_that_inherits_the_descriptor_goes_on_with_the_pull(made):
    """`gpucache run` locks the file before the program starts, and the puller has it from the first moment on."""
    pull = begun(made)
    code = """
import os, sys
from gpucache.remote.pulls import Pull
pull = Pull(int(sys.argv[1]), sys.argv[2])
pull.sign()
print("held", flush=True)
sys.stdin.readline()
pull.ask()
pull.end()
"""
    command = [sys.executable, "-c", code, str(pull.fileno()), pull.path]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[pull.fileno()],
    ) as other:
        pull.hand_over()
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert awaited(made, KEY).is_coming()
        assert f"process {other.pid} on " in holder(pull.path), (
            "whoever began it is the program by now"
        )
        assert not is_free(pull.path)
        other.communicate("\n", PATIENCE_S)
    assert not awaited(made, KEY).is_coming()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"null",
        b'{"phase": "bringing", "keys": -1}',
        b'{"phase": "bringing", "keys": 1e9}',
        b'{"phase": "bringing", "keys": 1000000000}',
        b'{"phase": "bringing", "keys": "many"}',
        b'{"phase": ["bringing"], "keys": 1}',
        b'{"phase": "bringing", "keys": 7}'.ljust(HOLDER_BYTES) + b"short",
    ],
)
def test_a_file_without_sense_hangs_nobody(content, made):
    pull = begun(made)
    Path(pull.path).write_bytes(content)
    says_keys = content.startswith(b'{"phase": "bringing"')
    assert awaited(made, KEY).is_coming() is not says_keys, (
        "a torn head is one that is being written"
    )
    with aged(pull.path, 20):
        assert not awaited(made, KEY, stall_s=10).is_coming()
    pull.end()


def test_what_is_no_file_hangs_nobody(made):
    locks = Path(ours(str(made), "locks"))
    os.mkfifo(locks / f"{PULL}fifo.lock")
    (locks / f"{PULL}link.lock").symlink_to(locks / f"{PULL}fifo.lock")
    (locks / f"{PULL}directory.lock").mkdir()
    assert not awaited(made, KEY).is_coming()


def test_the_file_of_a_pull_names_its_process_to_people(made):
    pull = begun(made)
    pull.bring([KEY] * 1000)
    assert f"process {os.getpid()} on " in holder(pull.path)
    assert holder(pull.path).endswith(" for the pack llama")
    pull.end()


def test_a_cleaner_that_removed_the_file_costs_another_pull_nothing(made):
    first = begun(made)
    os.unlink(first.path)
    second = begun(made)
    first.end()
    assert os.path.lexists(second.path)
    second.end()


def test_a_removed_file_is_no_wait(made):
    pull = begun(made)
    os.unlink(pull.path)
    assert not awaited(made, KEY).is_coming()
    pull.end()


def test_a_pull_that_failed_is_over_and_says_why(made):
    pull = begun(made)
    pull.bring([KEY])
    pull.leave("failed", "no connection could be made")
    waiting = awaited(made, KEY)
    assert not waiting.is_coming()
    (remark,) = waiting.over.values()
    assert remark.text == "the pack llama failed: no connection could be made"
    assert remarks(ours(str(made), "locks")) == [remark]
    begun(made).end()
    assert remarks(ours(str(made), "locks")) == []


# ---- launches


class Asked(threading.Thread):
    """A launch of a kernel in a thread, as Triton makes it."""

    def __init__(self, key: str, files: dict[str, bytes]) -> None:
        super().__init__(daemon=True)
        self.key, self.files = key, files
        self.result: Any = None
        self.start()

    def run(self) -> None:
        self.result = launched(self.key, self.files)

    def hit(self) -> bool:
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return self.result[0]


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once a process that misses a key has seen that a pull brings it."""
    seen = threading.Event()
    is_coming = Awaited.is_coming

    def told(self: Awaited) -> bool:
        coming = is_coming(self)
        if coming:
            seen.set()
        return coming

    monkeypatch.setattr(Awaited, "is_coming", told)
    return seen


def publish(root: Path, tmp_path: Path, key: str, files: dict[str, bytes]) -> None:
    """Publish an entry as another process does, which holds no lock of the key."""
    from gpucache.disk.staging import Staging
    from gpucache.store.manifest import Facts, digest_of
    from gpucache.store.publish import publish_entry

    given = {}
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        given[name] = (str(path), digest_of(str(path)))
    facts = Facts("add", "add.json", "cuda:90:32", "3.9.0", 0.3)
    staging = Staging(ours(str(root), "tmp"))
    assert publish_entry(str(root), key, given, facts, staging, repair=False)


def test_a_miss_waits_for_the_pull_and_is_a_hit(made, tmp_path, looked):
    pull = begun(made)
    pull.bring([KEY])
    launch = Asked(KEY, FILES)
    assert looked.wait(PATIENCE_S)
    publish(made, tmp_path, KEY, FILES)
    assert launch.hit()
    pull.end()


def test_a_miss_of_a_pull_that_ends_without_the_key_is_compiled(made, looked):
    pull = begun(made)
    pull.bring([KEY])
    launch = Asked(KEY, FILES)
    assert looked.wait(PATIENCE_S)
    pull.end()
    assert not launch.hit()


def test_a_key_that_is_not_in_the_pull_is_compiled_meanwhile(made):
    pull = begun(made)
    pull.bring([KEY])
    assert launched(OTHER, OTHER_FILES) == (False, OTHER_FILES)
    pull.end()


def test_whoever_waits_for_a_pull_holds_no_lock_of_the_key(made, looked):
    """A pull passes over a key whose lock is held: the two would wait for each other."""
    pull = begun(made)
    pull.bring([KEY])
    launch = Asked(KEY, FILES)
    assert looked.wait(PATIENCE_S)
    assert not os.path.lexists(ours(str(made), "locks", f"{KEY}.lock"))
    pull.end()
    assert not launch.hit()


def test_a_killed_puller_costs_a_compile_and_no_wait(made, looked):
    with running(PULLER, str(made), "bringing", KEY) as other:
        launch = Asked(KEY, FILES)
        assert looked.wait(PATIENCE_S)
        other.send_signal(signal.SIGKILL)
        assert not launch.hit()


@pytest.mark.parametrize("phase", ["starting", "asking", "bringing"])
def test_a_stopped_puller_costs_the_stall_limit_once_and_is_told(phase, made, monkeypatch, caplog):
    monkeypatch.setenv("GPUCACHE_STALL_TIMEOUT_S", "1")
    another_process(monkeypatch)
    with running(PULLER, str(made), phase, KEY, OTHER) as other:
        other.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with caplog.at_level(logging.WARNING, "gpucache"):
            assert launched(KEY, FILES) == (False, FILES)
        assert time.monotonic() - began < PATIENCE_S
        assert "waited in vain for a pull" in caplog.text
        assert f"process {other.pid} on " in caplog.text
        monkeypatch.setattr(pulled.time, "sleep", pytest.fail)  # each kernel would wait anew
        assert launched(OTHER, OTHER_FILES) == (False, OTHER_FILES)


def test_a_wait_is_counted(made, tmp_path, looked, gpucache):
    pull = begun(made)
    pull.bring([KEY])
    launch = Asked(KEY, FILES)
    assert looked.wait(PATIENCE_S)
    publish(made, tmp_path, KEY, FILES)
    assert launch.hit()
    pull.end()
    said = json.loads(gpucache("stats", "--root", made, "--json").stdout)
    assert said["all"]["waits"] == 1
    assert said["all"]["misses"] == 0


def test_a_failed_pull_is_told_once_by_those_who_compile(made, caplog, monkeypatch):
    monkeypatch.setattr(pulled, "_told", set())
    pull = begun(made)
    pull.leave("failed", "no connection could be made")
    with caplog.at_level(logging.WARNING, "gpucache"):
        assert launched(KEY, FILES) == (False, FILES)
        assert launched(OTHER, OTHER_FILES) == (False, OTHER_FILES)
    assert caplog.messages == ["the pack llama failed: no connection could be made"]


def test_a_pull_that_failed_long_ago_is_told_no_more(made, caplog, monkeypatch):
    monkeypatch.setattr(pulled, "_told", set())
    pull = begun(made)
    pull.leave("failed", "no connection could be made")
    with aged(pull.path, 7200), caplog.at_level(logging.WARNING, "gpucache"):
        assert launched(KEY, FILES) == (False, FILES)
    assert caplog.messages == []


def test_a_pull_that_goes_on_for_ever_is_waited_for_once(made, monkeypatch, caplog):
    """As of a remote that gives a little at a time, but enough for a beat: each kernel would wait for minutes."""
    monkeypatch.setenv("GPUCACHE_LOCK_TIMEOUT_S", "0.5")
    monkeypatch.setattr(pulled, "_waited_s", 0.0)
    another_process(monkeypatch)
    pull = begun(made)
    pull.bring([KEY, OTHER])
    with caplog.at_level(logging.WARNING, "gpucache"):
        assert launched(KEY, FILES) == (False, FILES)
        monkeypatch.setattr(pulled.time, "sleep", pytest.fail)
        assert launched(OTHER, OTHER_FILES) == (False, OTHER_FILES)
    assert caplog.text.count("waited in vain for a pull") == 1
    assert "for the pack llama" in caplog.text
    pull.end()


def test_what_the_disk_refuses_to_begin_is_told_with_the_whole_path(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(here: int, name: str, empties: bool) -> int | None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), name)

    monkeypatch.setattr(pulls, "take", read_only)
    with pytest.raises(OSError) as refused:
        Pull.begin(str(made), WORDS, "the pack llama")
    assert refused.value.filename == pull_path(str(made), WORDS)


def test_a_pull_that_the_disk_refuses_to_begin_is_awaited_by_nobody(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pulls.os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        Pull.begin(str(made), WORDS, "the pack llama")
    monkeypatch.undo()
    assert not awaited(made, KEY).is_coming()
