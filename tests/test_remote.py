"""What every remote does alike, whatever lies behind its URL: a directory, S3, WebDAV, Redis, all of them real."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from support.remotes import EVERY_KIND, KINDS, Place

from gpucache.remote.errors import NotThere, RemoteError
from gpucache.remote.object_names import PACKS, entry_object, pack_object

KEY = "A" * 52
ENTRY = entry_object("3.9.0", KEY)
PACK = pack_object("nightly")
MIB = 2**20


@pytest.fixture(params=EVERY_KIND)
def place(request) -> Place:
    return KINDS[request.param](request)


@pytest.fixture
def remote(place):
    return place.open()


@pytest.fixture
def a_file(tmp_path):
    """Make a file with this content."""

    def write(content: bytes, name: str = "content") -> str:
        path: Path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return write


def content_of(remote, name: str, limit: int = 100 * MIB) -> bytes:
    with remote.get(name, limit) as file:
        return file.read()


@pytest.mark.parametrize("size", [1, 40_000, 3 * MIB, 33 * MIB])
def test_what_was_put_is_got(remote, a_file, size):
    content = b"0123456789abcdef" * (size // 16) + b"x" * (size % 16)
    assert remote.put_new(PACK, a_file(content)) is True
    assert content_of(remote, PACK) == content


def test_an_object_that_is_not_there_is_a_miss(remote):
    with pytest.raises(NotThere) as missing:
        content_of(remote, ENTRY)
    assert missing.value.name == ENTRY


def test_what_is_there_stays_as_it_was(remote, a_file):
    assert remote.put_new(ENTRY, a_file(b"first")) is True
    assert remote.put_new(ENTRY, a_file(b"second")) is False
    assert content_of(remote, ENTRY) == b"first"


@pytest.mark.parametrize("size", [10, 33 * MIB])
def test_what_is_there_is_replaced_where_that_is_asked_for(remote, a_file, size):
    assert remote.put_new(PACK, a_file(b"o" * size)) is True
    assert remote.put_new(PACK, a_file(b"n" * size), replace=True) is True
    assert content_of(remote, PACK) == b"n" * size


def test_a_large_file_replaces_nothing_unasked(remote, a_file):
    assert remote.put_new(PACK, a_file(b"first")) is True
    assert remote.put_new(PACK, a_file(b"x" * 33 * MIB)) is False
    assert content_of(remote, PACK) == b"first"


def test_packs_are_listed_and_nothing_else(remote, a_file):
    remote.put_new(PACK, a_file(b"12345"))
    remote.put_new(pack_object("weekly"), a_file(b"123"))
    remote.put_new(ENTRY, a_file(b"1"))
    found = {listed.name: listed.size_bytes for listed in remote.list(PACKS)}
    assert found == {"v1/packs/nightly": 5, "v1/packs/weekly": 3}


def test_entries_of_one_triton_are_listed_with_their_directories(remote, a_file):
    remote.put_new(PACK, a_file(b"12345"))
    remote.put_new(ENTRY, a_file(b"1"))
    other = entry_object("3.9.0", "B" * 52)
    remote.put_new(other, a_file(b"1"))
    remote.put_new(entry_object("3.6.0", KEY), a_file(b"1"))
    assert sorted(listed.name for listed in remote.list("v1/3.9.0/")) == [ENTRY, other]


def test_many_objects_are_listed_once_each(remote, a_file):
    path = a_file(b"1")
    names = [entry_object("3.9.0", f"{number:064x}") for number in range(300)]
    for name in names:
        remote.put_new(name, path)
    assert sorted(listed.name for listed in remote.list("v1/3.9.0/")) == sorted(names)


def test_nothing_is_listed_where_nothing_is(remote):
    assert list(remote.list(PACKS)) == []


def test_a_remote_that_is_read_is_not_written(place, a_file):
    remote = place.open("read")
    for write in (
        lambda: remote.put_new(PACK, a_file(b"1")),
        lambda: remote.put_new(PACK, a_file(b"1"), replace=True),
        lambda: remote.delete(PACK),
    ):
        with pytest.raises(RemoteError) as refused:
            write()
        assert refused.value.kind == "misconfigured"
        assert "mode=write" in str(refused.value)
    assert remote.can == {"list"}
    assert list(remote.list(PACKS)) == []


def test_more_than_was_agreed_is_not_taken(remote, a_file):
    remote.put_new(PACK, a_file(b"x" * 3 * MIB))
    with pytest.raises(RemoteError) as refused:
        content_of(remote, PACK, limit=3 * MIB - 1)
    assert refused.value.kind == "too-large"
    assert len(content_of(remote, PACK, limit=3 * MIB)) == 3 * MIB


def test_who_reads_a_part_only_leaves_the_remote_as_good_as_before(remote, a_file):
    remote.put_new(PACK, a_file(b"x" * 3 * MIB))
    for _ in range(5):
        with remote.get(PACK, 3 * MIB) as file:
            assert file.read(10) == b"x" * 10
    assert len(content_of(remote, PACK)) == 3 * MIB


def test_what_was_deleted_is_not_there(remote, a_file):
    remote.put_new(PACK, a_file(b"1"))
    remote.delete(PACK)
    remote.delete(PACK)
    with pytest.raises(NotThere):
        content_of(remote, PACK)


def test_of_many_writers_one_is_told_that_its_object_is_there(place, tmp_path):
    """Where the remote can put if absent; everywhere what is there is one of theirs, whole."""
    contents = [bytes([number]) * 100_000 for number in range(8)]
    told: list[bool] = []
    ready = threading.Barrier(len(contents))
    opened = place.open()

    def write(content: bytes) -> None:
        path = tmp_path / f"writer-{content[0]}"
        path.write_bytes(content)
        remote = place.open()
        ready.wait()
        told.append(remote.put_new(ENTRY, str(path)))

    threads = [threading.Thread(target=write, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == len(contents)
    if "put-if-absent" in opened.can:
        assert told.count(True) == 1
    assert content_of(opened, ENTRY) in contents


def test_readers_find_the_old_object_or_the_new_one(remote, a_file):
    """Never a part of one, while it is replaced again and again."""
    old, new = a_file(b"o" * MIB, "old"), a_file(b"n" * MIB, "new")
    remote.put_new(PACK, old)
    done = threading.Event()

    def replace() -> None:
        for path in [new, old] * 10:
            remote.put_new(PACK, path, replace=True)
        done.set()

    writer = threading.Thread(target=replace)
    writer.start()
    while not done.is_set():
        content = content_of(remote, PACK)
        assert len(content) == MIB
    writer.join()


def test_many_threads_may_ask_at_once(remote, a_file):
    names = [entry_object("3.9.0", f"{number:064x}") for number in range(16)]
    for number, name in enumerate(names):
        remote.put_new(name, a_file(f"content {number}".encode()))
    found: dict[str, bytes] = {}

    def read(name: str) -> None:
        found[name] = content_of(remote, name)

    threads = [threading.Thread(target=read, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[name] for name in names] == [f"content {n}".encode() for n in range(16)]


def test_a_check_tries_all_that_is_needed_and_leaves_nothing(remote):
    report = remote.check()
    assert report.works
    assert [(step.step, step.outcome) for step in report.steps] == [
        ("reach", "works"),
        ("put", "works"),
        ("put-if-absent", "works"),
        ("get", "works"),
        ("delete", "works"),
        ("list", "works"),
    ]
    assert list(remote.list("v1/probes/")) == []


def test_a_check_of_a_remote_that_is_read_writes_nothing(place):
    report = place.open("read").check()
    assert [(step.step, step.outcome) for step in report.steps] == [
        ("reach", "works"),
        ("list", "works"),
    ]
