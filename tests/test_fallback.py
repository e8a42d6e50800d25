"""What a miss has of another root, the fallback: launches as Triton makes them, beside whatever may lie there."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from support.launches import another_process, kernel, launched

from gpucache.disk.staging import Staging
from gpucache.disk.vetting import Trust
from gpucache.store import fallback as copying
from gpucache.store.fallback import Answer, Fallback, copy_entry
from gpucache.store.manifest import MANIFEST, entry_path, read_manifest
from gpucache.store.stats import totals
from gpucache.triton.manager import current_location

KEY, FILES = kernel("first")
OTHER, OTHER_FILES = kernel("second")
LIBRARY = "cuda_utils.so"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "own"


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root in which one kernel was compiled, by a process that has no fallback."""
    made = tmp_path / "shared"
    use(monkeypatch, made)
    assert launched(KEY, FILES) == (False, FILES)
    current_location().stats.leave()
    return made


@pytest.fixture
def reader(shared: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The own root of a process that has that one as its fallback."""
    use(monkeypatch, root)
    monkeypatch.setenv("GPUCACHE_FALLBACK", str(shared))
    return root


def use(monkeypatch: pytest.MonkeyPatch, root: Path, name: str = "0") -> None:
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton" / name))
    another_process(monkeypatch)


def counted(root: Path) -> dict[str, float]:
    """What the launches of this process have counted, without times."""
    current_location().stats.flush()
    (values,) = totals(str(root)).values()
    return {name: value for name, value in values.items() if value and not name.endswith("_s")}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def state(root: Path) -> dict[str, tuple[float, ...]]:
    """Everything below a root, with what a writer would change; access times are left out."""
    found = {}
    for path in [root, *sorted(root.rglob("*"))]:
        seen = path.lstat()
        found[str(path)] = (
            seen.st_ino,
            seen.st_mode,
            seen.st_nlink,
            seen.st_mtime_ns,
            seen.st_size,
        )
    return found


def entry(root: Path, key: str = KEY) -> Path:
    return Path(entry_path(str(root), key))


def asked(shared: Path, root: Path, key: str = KEY) -> Answer:
    """Ask for an entry, by the function that the plug-in calls."""
    fallback = Fallback(str(shared), Trust())
    staging = Staging(str(root / "gpucache/v1/tmp"))
    return copy_entry(fallback, str(root), key, staging, repair=True)


class TestAHit:
    def test_it_is_no_compile_and_as_if_it_had_been_made_here(self, reader):
        assert launched(KEY, FILES) == (True, FILES)
        assert launched(KEY, FILES) == (True, FILES)
        assert sorted(path.name for path in entry(reader).iterdir()) == [MANIFEST, *sorted(FILES)]

    def test_it_is_a_level_of_its_own(self, reader):
        launched(KEY, FILES)
        found = counted(reader)
        size = sum(path.stat().st_size for path in entry(reader).iterdir())
        assert found == {"shared_hits": 1, "fallback_hits": 1, "fallback_bytes": size}

    def test_it_is_a_copy_with_no_link_to_the_other_root(self, shared, reader):
        launched(KEY, FILES)
        theirs = {path.stat().st_ino for path in shared.rglob("*") if path.is_file()}
        mine = {path.stat().st_ino for path in reader.rglob("*") if path.is_file()}
        assert not theirs & mine

    def test_nothing_is_written_there(self, shared, reader):
        before = state(shared)
        launched(KEY, FILES)
        launched(OTHER, OTHER_FILES)
        assert state(shared) == before

    def test_what_was_copied_stays_when_the_other_root_goes(self, shared, reader, monkeypatch):
        launched(KEY, FILES)
        shutil.rmtree(shared)
        another_process(monkeypatch)
        assert launched(KEY, FILES) == (True, FILES)

    def test_the_manifest_says_where_it_was_compiled_and_how_long_that_took(self, shared, reader):
        launched(KEY, FILES)
        theirs, mine = read_manifest(str(entry(shared))), read_manifest(str(entry(reader)))
        assert theirs is not None
        assert mine is not None
        assert (mine[0].facts, mine[0].origin) == (theirs[0].facts, theirs[0].origin)
        assert mine[0].digests == theirs[0].digests

    def test_a_pull_is_not_waited_for_where_the_fallback_has_it(self, reader, monkeypatch):
        from gpucache.triton import shared_kernel

        monkeypatch.setattr(shared_kernel, "wait_for_pull", pytest.fail)
        assert launched(KEY, FILES)[0]

    def test_the_remote_is_not_asked(self, reader, monkeypatch):
        from gpucache.triton import shared_kernel

        monkeypatch.setattr(shared_kernel, "fetched", pytest.fail)
        assert launched(KEY, FILES)[0]

    def test_a_hit_in_the_own_root_asks_for_nothing_there(self, reader, monkeypatch):
        launched(KEY, FILES)
        another_process(monkeypatch)
        monkeypatch.setattr(copying, "copy_entry", pytest.fail)
        assert launched(KEY, FILES)[0]

    def test_a_damaged_entry_of_the_own_store_is_replaced(self, reader, monkeypatch):
        launched(KEY, FILES)
        (entry(reader) / "add.ptx").write_bytes(b"!")
        another_process(monkeypatch)
        use(monkeypatch, reader, "1")
        assert launched(KEY, FILES) == (True, FILES)


class TestAMiss:
    def test_what_the_fallback_has_not_is_compiled_and_counted(self, reader):
        assert launched(OTHER, OTHER_FILES) == (False, OTHER_FILES)
        assert counted(reader) == {"misses": 1, "fallback_misses": 1}

    def test_it_tells_nothing(self, reader, caplog):
        launched(OTHER, OTHER_FILES)
        assert warnings(caplog) == []

    def test_the_own_root_as_its_own_fallback_is_none(self, reader, monkeypatch, caplog):
        monkeypatch.setenv("GPUCACHE_FALLBACK", str(reader))
        another_process(monkeypatch)
        assert launched(KEY, FILES)[0] is False
        assert counted(reader) == {"misses": 1}
        assert warnings(caplog) == []
