"""Whatever stands in a manifest or a time says, a launch and each command go on, and `verify --repair` mends it."""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.launches import another_process, kernel, launched

from gpucache.store.manifest import MANIFEST, entry_path, single_key
from gpucache.triton.manager import DeviceCacheManager
from gpucache.upkeep.verify import verify

KEY, FILES = kernel("first")
LIBRARY = f"launcher{sysconfig.get_config_var('EXT_SUFFIX')}"
ODD: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "minus one": -1,
    "a half": 0.5,
    "2**63": 2**63,
    "a huge number": 10**400,
    "more digits than Python reads": "RAW" + "9" * 5000,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "no text": "",
    "a number as a text": "7",
    "300 letters": "n" * 300,
    "a way out": "../../up",
    "an absolute path": "/etc/passwd",
    "a null byte": "a\0b",
    "an escape": "\x1b[31m",
    "a surrogate": "\ud800",
    "another file": "add.ptx",
    "another group": "sub.json",
    "another key": "A" * 52,
    "a list": [],
    "a nested list": [[[[[]]]]],
    "a deep list": "RAW" + "[" * 100_000,
    "a mapping": {},
    "a mapping of mappings": {"a": {"b": {"c": 1}}},
}
PLACES = {
    "version": ("version",),
    "files": ("files",),
    "a file": ("files", "add.ptx"),
    "a size": ("files", "add.ptx", 0),
    "a time": ("files", "add.ptx", 1),
    "a digest": ("files", "add.ptx", 2),
    "a name": ("files", None),
    "kernel": ("kernel",),
    "group": ("group",),
    "target": ("target",),
    "Triton": ("triton_version",),
    "seconds": ("compile_s",),
    "tag": ("tag",),
    "origin": ("origin",),
    "key": ("key",),
}


def spoiled(said: Any, place: tuple[Any, ...], value: Any) -> str:
    """A manifest with another value at a place; None as a step is the name of one more file."""
    raw = isinstance(value, str) and value.startswith("RAW")
    put = "@RAW@" if raw else value
    inner = said
    for step in place[:-1]:
        inner = inner[step]
    if place[-1] is None:
        inner[put if isinstance(put, str) else json.dumps(put)] = [7, 5, "a" * 64]
    else:
        inner[place[-1]] = put
    text = json.dumps(said)
    return text.replace('"@RAW@"', value[3:]) if raw else text


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root with a kernel and a library; do not change it."""
    root = tmp_path_factory.mktemp("made") / "root"
    with pytest.MonkeyPatch.context() as patch:
        at(root, patch)
        launched(KEY, FILES)
        DeviceCacheManager(KEY).put(b"library", LIBRARY)
        yield root


def at(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Cache in ``triton/0`` of a root, as a new process."""
    patch.setenv("GPUCACHE_DIR", str(root))
    patch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    another_process(patch)


@pytest.fixture
def spoilt(made: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root of a kernel and a library, for a test to spoil; of the library there is no view."""
    shutil.copytree(made, root, symlinks=True)
    at(root, monkeypatch)
    return root


def manifest_of(root: Path, key: str) -> Path:
    return Path(entry_path(str(root), key)) / MANIFEST


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_no_value_stops_a_launch_and_the_next_process_hits(place, made, root, monkeypatch):
    for name, value in ODD.items():
        shutil.copytree(made, root)
        at(root, monkeypatch)
        path = manifest_of(root, KEY)
        text = spoiled(json.loads(path.read_bytes()), place, value)
        for manifest in (path, root / "triton/0" / KEY / MANIFEST):
            manifest.write_text(text)
        assert launched(KEY, FILES)[1] == FILES, name
        at(root, monkeypatch)
        assert launched(KEY, FILES) == (True, FILES), name
        shutil.rmtree(root)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_no_value_is_left_by_a_repair(place, made, root, monkeypatch):
    for name, value in ODD.items():
        shutil.copytree(made, root)
        at(root, monkeypatch)
        path = manifest_of(root, KEY)
        before = json.loads(path.read_bytes())
        text = spoiled(json.loads(path.read_bytes()), place, value)
        for manifest in (path, root / "triton/0" / KEY / MANIFEST):
            manifest.write_text(text)
        found = verify(str(root)).findings
        # what is only known of a kernel may be anything that can be shown
        harmless = place[0] in (
            "kernel",
            "target",
            "triton_version",
            "compile_s",
            "tag",
            "origin",
            "key",
        )
        assert found or harmless or json.loads(text) == before, name
        assert not verify(str(root), repair=True).unrepaired, name
        assert not verify(str(root)).findings, name
        assert launched(KEY, FILES)[1] == FILES, name
        at(root, monkeypatch)
        assert launched(KEY, FILES) == (True, FILES), name
        assert not verify(str(root)).findings, name
        shutil.rmtree(root)


@pytest.mark.parametrize("place", ["version", "files", "kernel", "group", "tag", "key"])
def test_no_value_stops_a_library(place, made, root, monkeypatch):
    for name, value in ODD.items():
        shutil.copytree(made, root)
        shutil.rmtree(root / "triton")
        at(root, monkeypatch)
        path = manifest_of(root, single_key(KEY, LIBRARY, ""))
        path.write_text(spoiled(json.loads(path.read_bytes()), (place,), value))
        found = DeviceCacheManager(KEY).get_file(LIBRARY)
        if found is None:
            found = DeviceCacheManager(KEY).put(b"library", LIBRARY)
        assert Path(found).read_bytes() == b"library", name
        at(root, monkeypatch)
        assert DeviceCacheManager(KEY).get_file(LIBRARY), name
        shutil.rmtree(root)


COMMANDS = [
    ("ls",),
    ("ls", "--json"),
    ("ls", KEY),
    ("du",),
    ("verify",),
    ("explain", KEY),
    ("why", "*"),
    ("compare", KEY, KEY),
    ("cat", KEY, "ptx"),
    ("prune", "--max-age", "1d", "--dry-run"),
    ("prune", "--max-size", "1kB", "--dry-run"),
    ("clean", "--dry-run"),
    ("stats",),
]


@pytest.mark.parametrize("name", ODD)
def test_no_value_stops_a_command(name, spoilt, here):
    original = json.loads(manifest_of(spoilt, KEY).read_bytes())
    places = list(PLACES.values())
    for number, place in enumerate(places):
        text = spoiled(json.loads(json.dumps(original)), place, ODD[name])
        manifest_of(spoilt, KEY).write_text(text)
        for command in COMMANDS[number % 2 :: 2]:
            done = here(*command, "--root", spoilt)
            assert done.code in (0, 1), (place, command, done.err)
            assert "Traceback" not in done.err


# ---- times that no calendar has

YEAR_2262_NS = 2**63
TIMES = {
    "the year 2262": YEAR_2262_NS + 10**9,
    "the year 2400": 430 * 31_556_952 * 10**9,
    "the year 10000": 8030 * 31_556_952 * 10**9,
    "before 1970": -10 * 31_556_952 * 10**9,
    "1901": -(2**31) * 10**9,
    "the first second": 0,
}


@pytest.mark.parametrize("time_ns", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("what", ["manifests", "files", "directories", "everything"])
def test_no_time_stops_a_launch_or_a_command(what, time_ns, spoilt, here, monkeypatch):
    DeviceCacheManager(KEY).get_file(LIBRARY)
    for path in [*spoilt.rglob("*"), spoilt]:
        is_manifest, is_directory = path.name == MANIFEST, path.is_dir()
        kind = "manifests" if is_manifest else "directories" if is_directory else "files"
        if what in (kind, "everything"):
            os.utime(path, ns=(time_ns, time_ns))
    for command in COMMANDS:
        done = here(*command, "--root", spoilt)
        assert done.code in (0, 1), (command, done.err)
    at(spoilt, monkeypatch)
    assert launched(KEY, FILES) == (True, FILES)
    assert DeviceCacheManager(KEY).get_file(LIBRARY)
    assert not verify(str(spoilt), repair=True).unrepaired
    assert not verify(str(spoilt)).findings
    done = here("prune", "--max-age", "0s", "--grace", "20min", "--yes", "--root", spoilt)
    assert done.code in (0, 1), done.err


@pytest.mark.parametrize("now", [2**63 / 1e9 + 1e9, -1e9, 0.0, 4e11], ids=str)
def test_no_clock_stops_a_launch(now, spoilt, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "time_ns", lambda: int(now * 1e9))
    another_process(monkeypatch)
    assert launched(KEY, FILES) == (True, FILES)
    key, files = kernel("second")
    assert launched(key, files) == (False, files)
    another_process(monkeypatch)
    assert launched(key, files) == (True, files)
