from __future__ import annotations

from pathlib import Path

import pytest
from support.compiling import lock_of

from gpucache.disk.lock_place import LockPlace
from gpucache.remote import outbox
from gpucache.remote.breaker import Breaker
from gpucache.remote.meeting import Meeting
from gpucache.remote.pusher_lock import push_breaker
from gpucache.watch.remote_now import RemoteNow, remote_now

URL = "redis://cache:6379/0"
KEYS = "alice:" + "A" * 43 + "="
ENVIRON = {"GPUCACHE_REMOTE": URL, "GPUCACHE_TRUST_KEYS": KEYS}


def now(root: Path, environ: dict[str, str], **gained: float) -> RemoteNow:
    seen = remote_now(str(root), environ, gained)
    assert seen is not None
    return seen


def breaker(root: Path, url: str = URL) -> Breaker:
    lock_of(root)
    return Breaker(Meeting.of(LockPlace(str(root)).found(), str(root), url, KEYS).state)


def test_without_a_remote_there_is_none(root: Path) -> None:
    assert remote_now(str(root), {}, {}) is None


def test_a_remote_that_answers_is_told_with_what_it_gives(root: Path) -> None:
    seen = now(root, ENVIRON, remote_hits=2, remote_errors=1, remote_bad=0.5, remote_bytes=9)
    assert (seen.shown, seen.state, seen.said) == (URL, "asked", "")
    assert (seen.hits, seen.errors, seen.bytes, seen.to_push) == (2, 1.5, 9, 0)


def test_a_remote_that_has_failed_is_told_with_why_and_until_when(root: Path) -> None:
    breaker(root).closed("timeout", "it did not answer in 2 s")
    seen = now(root, ENVIRON)
    assert (seen.state, seen.said) == ("paused", "it did not answer in 2 s")
    assert 0 < seen.again_in_s <= 30


def test_a_remote_that_had_nothing_is_told_apart_from_one_that_failed(root: Path) -> None:
    for _ in range(16):
        breaker(root).missed()
    seen = now(root, ENVIRON)
    assert (seen.state, seen.said) == ("empty", "misses")


def test_what_cannot_be_pushed_is_told(root: Path) -> None:
    url = f"{URL}?mode=write"
    lock_of(root)
    push_breaker(LockPlace(str(root)).found(), url).closed("errors", "it refuses to be written")
    outbox.leave(str(root), "A" * 51 + "Q")
    seen = now(root, {**ENVIRON, "GPUCACHE_REMOTE": url})
    assert (seen.state, seen.said) == ("not-pushed", "it refuses to be written")
    assert seen.to_push == 1


def test_a_remote_of_which_nobody_is_trusted_is_told(root: Path) -> None:
    assert now(root, {"GPUCACHE_REMOTE": URL}).state == "untrusted"


def test_a_url_that_makes_no_sense_is_told_without_its_secrets(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = now(root, {"GPUCACHE_REMOTE": "redis://me:secret@host/0"})
    assert seen.state == "refused"
    assert "secret" not in f"{seen.shown} {seen.said}"
    assert not caplog.records
