"""Hostile objects of a remote: a node that asks for an entry gets an answer with the reason, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.hostile_packs import cases
from support.hostile_parts import Parts, zst
from support.hostile_sizes import GIB, SHA
from support.packs import Source, key
from support.read_through import Entries

from gpucache.archive.signature import make_key
from gpucache.disk.vetting import Trust
from gpucache.remote.fetch import opened_fetch
from gpucache.remote.question import Answer, Question
from gpucache.store.preparing import prepare


@pytest.fixture
def entries(tmp_path) -> Entries:
    return Entries.signed(tmp_path)


@pytest.fixture
def root(tmp_path) -> str:
    where = str(tmp_path / "root")
    prepare(where, Trust())
    return where


def asked(root: str, entries: Entries, data: bytes) -> Answer:
    """What a node is answered whose remote has these bytes where the entry should be."""
    entries.put(key(0), data)
    fetch = opened_fetch(root, entries.url, entries.signing.public_text, 60.0)
    return fetch(Question(key(0), "3.9.0", 60.0), lambda: True)


def stored(root: str) -> list[Path]:
    return list(Path(root, "gpucache/v1/store").glob("*/*"))


def test_each_hostile_object_is_refused_with_its_reason_and_nothing_is_published(
    tmp_path, root, entries
):
    stranger = make_key("mallory", str(tmp_path / "m.key"))
    for case in cases(entries.signing, stranger):
        answer = asked(root, entries, case.make())
        # Where the flaw is behind the statement, that is refused: it has two entries.
        assert answer.did == "bad", case.name
        assert answer.code in (case.code, "another-name"), case.name
        assert answer.said.isprintable(), case.name
        assert stored(root) == [], case.name


def test_an_object_that_says_more_than_an_entry_can_have_is_refused_before_it_is_written(
    root, entries
):
    parts = Parts(entries.signing, Source(name="").add())
    huge = [[f"{number}.ptx", GIB, SHA] for number in range(3)]
    parts.edit(lambda _, said: said[0]["files"].extend(huge))
    answer = asked(root, entries, zst(parts.tar()))
    assert (answer.did, answer.code) == ("bad", "too-large")
    long = Parts(entries.signing, Source(name="").add())
    long.edit(lambda _, said: said.extend({**said[0], "key": key(n)} for n in range(1, 6000)))
    answer = asked(root, entries, zst(long.tar()))
    assert (answer.did, answer.code) == ("bad", "too-long")
    assert stored(root) == []


def test_the_entry_itself_is_a_hit(root, entries):
    answer = asked(root, entries, Source(name="").add().packed(entries.signing))
    assert answer.did == "hit"
    assert [path.name for path in stored(root)] == [key(0)]
