"""The one parser of `__entry__.json`: what is sound to a hit is so to verify, the report and the explanation too."""

from __future__ import annotations

import errno
import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.trees import Cache

from gpucache import environment
from gpucache.diagnosis.why_missed import why_missed
from gpucache.report import scan
from gpucache.store.lookup import sound
from gpucache.store.manifest import (
    MANIFEST,
    Facts,
    Manifest,
    Published,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from gpucache.upkeep.verify import verify

FACTS = Facts("add", "add.json", "cuda:90", "3.9.0", 0.25, "cpython-311")
FILES = {"add.json": Published(7, 10**18 + 1, "a" * 64), "add.cubin": Published(9, 5, "b" * 64)}
WHOLE = Manifest(FACTS, FILES, "node1")
SAID = json.loads(WHOLE.encoded())

UNSOUND = {
    "another version": {"version": 2},
    "no file": {"files": {}},
    "a list of files": {"files": [["add.json", 7, 5, "a"]]},
    "a file of two facts": {"files": {"add.json": [7, 5]}},
    "a file of four facts": {"files": {"add.json": [7, 5, "a", 0]}},
    "a size that is a text": {"files": {"add.json": ["7", 5, "a"]}},
    "a size that is a truth": {"files": {"add.json": [True, 5, "a"]}},
    "a time in seconds": {"files": {"add.json": [7, 5.5, "a"]}},
    "a digest that is none": {"files": {"add.json": [7, 5, None]}},
    "three letters for a file": {"files": {"add.json": "abc"}},
    "a name that leads out": {"files": {"add.json": [7, 5, "a"], "../b": [7, 5, "a"]}},
    "an absolute name": {"files": {"add.json": [7, 5, "a"], "/b": [7, 5, "a"]}},
    "the directory itself": {"files": {"add.json": [7, 5, "a"], ".": [7, 5, "a"]}},
    "the directory above": {"files": {"add.json": [7, 5, "a"], "..": [7, 5, "a"]}},
    "an empty name": {"files": {"add.json": [7, 5, "a"], "": [7, 5, "a"]}},
    "a null byte": {"files": {"add.json": [7, 5, "a"], "b\0": [7, 5, "a"]}},
    "a lone surrogate": {"files": {"add.json": [7, 5, "a"], "\ud800": [7, 5, "a"]}},
    "a group that is no file": {"group": "sub.json"},
    "a group that is a number": {"group": 0},
    "no kernel": {"kernel": None},
    "an escape sequence": {"kernel": "\x1b[31madd"},
    "a target that is a number": {"target": 0},
    "a version that is a number": {"triton_version": 3.9},
    "a tag that is none": {"tag": None},
    "a time that is a text": {"compile_s": "0.25"},
    "a time that is a truth": {"compile_s": True},
    "a time below zero": {"compile_s": -1},
    "a time without end": {"compile_s": float("inf")},
    "a time that is no number": {"compile_s": float("nan")},
    "an origin that is a number": {"origin": 7},
}


def read(data: bytes) -> Manifest | None:
    """What is read, with the files as the values that they are when they are written."""
    manifest = parse_manifest(data)
    return None if manifest is None else manifest._replace(listed=manifest.files)


def test_what_is_written_is_read_again():
    assert read(WHOLE.encoded()) == WHOLE


@pytest.mark.parametrize("compile_s", [None, 0, 3, 0.25])
def test_a_single_file_has_no_group_and_may_have_no_more_facts(compile_s):
    manifest = Manifest(Facts("lib.so", None, compile_s=compile_s), FILES, None)
    assert read(manifest.encoded()) == manifest


def test_without_an_origin_it_is_sound():
    said = {name: value for name, value in SAID.items() if name != "origin"}
    assert read(json.dumps(said).encode()) == WHOLE._replace(origin=None)


@pytest.mark.parametrize("wrong", UNSOUND.values(), ids=UNSOUND)
def test_what_cannot_be_makes_it_unsound(wrong):
    assert parse_manifest(json.dumps({**SAID, **wrong}).encode()) is None


@pytest.mark.parametrize("name", [name for name in SAID if name != "origin"])
def test_what_is_missing_makes_it_unsound(name):
    said = {key: value for key, value in SAID.items() if key != name}
    assert parse_manifest(json.dumps(said).encode()) is None


def test_what_follows_it_makes_it_unsound_unless_it_is_blank():
    assert read(WHOLE.encoded() + b" \n") == WHOLE
    assert parse_manifest(WHOLE.encoded() + b"\n{}") is None


@given(st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*SAID, "a"]), inner),
).map(lambda said: json.dumps(said).encode()))  # fmt: skip
def test_no_content_of_a_file_raises(data: bytes):
    assert parse_manifest(data) is None


@given(st.sampled_from(list(SAID)), st.none() | st.integers() | st.text() | st.lists(st.text()))
def test_no_value_raises(name: str, value: Any):
    parse_manifest(json.dumps({**SAID, name: value}).encode())


@pytest.mark.parametrize("wrong", UNSOUND.values(), ids=UNSOUND)
def test_all_four_readers_agree(tmp_path, wrong):
    """A hit, verify, the report and the explanation."""
    cache = Cache(tmp_path)
    assert cache.publish()
    path = cache.entry / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **wrong}))
    root = str(cache.root)
    assert sound(str(cache.entry), False, 0.0) is None
    assert [one.finding.code for one in verify(root).findings] == ["manifest-torn"]
    assert [finding.code for finding in scan(root).findings] == ["manifest-torn"]
    plugin = {environment.MANAGER.name: environment.OUR_MANAGER, environment.SHARE.name: "1"}
    codes = {finding.code for finding in why_missed(str(cache.entry), root, plugin)}
    assert "manifest-torn" in codes


ODD = st.text() | st.sampled_from(
    ["\x1b[31m", "\0", "", "n" * 300, "a/b", "..", "\ud800", "x" * 2**20]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.builds(
        Facts,
        kernel=ODD,
        group=st.none() | st.just("add.json") | ODD,
        target=st.none() | ODD,
        triton_version=st.none() | ODD,
        compile_s=st.none() | st.floats(),
        tag=ODD,
    ),
    st.none() | ODD,
    ODD,
)
def test_a_manifest_that_no_reader_would_take_is_not_written(tmp_path_factory, facts, origin, name):
    """Its entry would be no hit for anybody, and compiled again for ever."""
    directory = tmp_path_factory.mktemp("entry")
    manifest = WHOLE._replace(
        facts=facts, listed={**FILES, name: FILES["add.cubin"]}, origin=origin
    )
    try:
        write_manifest(str(directory), manifest)
    except OSError:
        assert list(directory.iterdir()) == []
    else:
        assert read((directory / MANIFEST).read_bytes()) == manifest


def test_an_entry_that_would_be_no_hit_is_not_published(tmp_path):
    cache = Cache(tmp_path)
    with pytest.raises(OSError, match="could not be read again"):
        cache.publish(facts=FACTS._replace(kernel="\x1b[31madd", group=None))
    assert not cache.entry.exists()
    assert not cache.left()


def test_a_refusal_names_the_whole_path(tmp_path, monkeypatch):
    def refuse(path: str, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    here = os.open(tmp_path, os.O_RDONLY)
    try:
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(PermissionError) as raised:
            read_manifest(str(tmp_path), here=here)
    finally:
        os.close(here)
    assert raised.value.filename == f"{tmp_path}/{MANIFEST}"
