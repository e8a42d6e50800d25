"""What a miss has of another root, the fallback: launches as Triton makes them, beside whatever may lie there."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sysconfig
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.launches import another_process, kernel, launched
from support.users import ADA

from gpucache.disk import vetted
from gpucache.disk.staging import Staging
from gpucache.disk.vetting import Trust
from gpucache.errors import CacheMissError
from gpucache.store import fallback as copying
from gpucache.store.fallback import Answer, copy_entry
from gpucache.store.fallback_entry import Fallback
from gpucache.store.manifest import MANIFEST, entry_path, read_manifest
from gpucache.store.stats import totals
from gpucache.triton import location, pulled, shared_kernel
from gpucache.triton.manager import DeviceCacheManager, current_location

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
        def sleep(pause_s: float) -> None:
            raise AssertionError("it waits")

        monkeypatch.setattr(pulled.Awaited, "is_coming", lambda _: True)
        monkeypatch.setattr(pulled, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
        assert launched(KEY, FILES)[0]

    def test_the_remote_is_not_asked(self, reader, monkeypatch):
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


def is_refused(shared: Path, reader: Path, did: str, says: str, key: str = KEY) -> None:
    """The entry is not had, for this reason; and nothing of it is left in the own root."""
    answer = asked(shared, reader, key)
    assert answer.did == did, answer
    assert says in answer.said
    assert not entry(reader, key).exists()
    assert not list((reader / "gpucache/v1/tmp").glob("*/*/*"))


def manifest_of(place: Path) -> dict[str, object]:
    said: dict[str, object] = json.loads((place / MANIFEST).read_text())
    return said


def rewritten(place: Path, **changes: object) -> None:
    """Have the manifest say something else."""
    (place / MANIFEST).write_text(json.dumps({**manifest_of(place), **changes}))


def replaced(path: Path) -> Path:
    """Take something away, for something else in its place."""
    if path.is_dir():
        path.rename(path.with_name("moved-away"))
    else:
        path.unlink()
    return path


PLANTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a FIFO for a file": (lambda at: os.mkfifo(replaced(at / "add.ptx")), "no regular file"),
    "a FIFO for the manifest": (lambda at: os.mkfifo(replaced(at / MANIFEST)), "no regular file"),
    "a FIFO for the entry": (lambda at: os.mkfifo(replaced(at)), "no regular file"),
    "a device for a file": (
        lambda at: os.mknod(replaced(at / "add.ptx"), 0o20644, os.makedev(1, 5)),
        "no regular file",
    ),
    "a directory for a file": (lambda at: replaced(at / "add.ptx").mkdir(), "no regular file"),
    "a link for a file": (
        lambda at: replaced(at / "add.ptx").symlink_to("add.json"),
        "no regular file",
    ),
    "a link for the entry": (
        lambda at: replaced(at).symlink_to(at.with_name("moved-away")),
        "no regular file",
    ),
    "a link for the store": (
        lambda at: replaced(at.parents[1]).symlink_to(at.parents[1].with_name("moved-away")),
        "no regular file",
    ),
    "a sparse manifest": (lambda at: os.truncate(at / MANIFEST, 2**40), "another size"),
    "a sparse file": (lambda at: os.truncate(at / "add.ptx", 2**40), "another size"),
    "a sparse file that the manifest tells of": (
        lambda at: (
            os.truncate(at / "add.ptx", 2**40),
            rewritten(at, files={"add.json": [1, 1, ""], "add.ptx": [2**40, 1, ""]}),
        ),
        "longer than any kernel",
    ),
    "an empty manifest": (lambda at: os.truncate(at / MANIFEST, 0), "cannot be understood"),
    "other bytes of the same size": (
        lambda at: (at / "add.ptx").write_bytes(b"x" * len(FILES["add.ptx"])),
        "another content",
    ),
    "a name that leads out": (
        lambda at: rewritten(at, files={"../add.ptx": [1, 1, ""]}, group=None),
        "cannot be understood",
    ),
    "a name of a file of gpucache's": (
        lambda at: rewritten(at, files={**manifest_of(at)["files"], MANIFEST: [1, 1, ""]}),  # type: ignore[dict-item]
        "a name that no entry has",
    ),
    "a file that everybody may write": (lambda at: (at / "add.ptx").chmod(0o666), "everybody"),
    "a directory that everybody may write": (lambda at: at.chmod(0o777), "everybody"),
    "a manifest that everybody may write": (lambda at: (at / MANIFEST).chmod(0o666), "everybody"),
}


class TestWhatMayLieThere:
    """Each is a miss, with the path and what is wrong, at once; what follows a link, or reads for ever, would fail."""

    @pytest.mark.parametrize("name", PLANTED)
    def test_it_is_refused(self, shared, reader, name):
        launched(OTHER, OTHER_FILES)
        plant, says = PLANTED[name]
        plant(entry(shared))
        is_refused(shared, reader, "unsafe" if says == "everybody" else "damaged", says)

    def test_it_is_compiled_and_told_once_whatever_else_is_damaged(
        self, shared, reader, monkeypatch, caplog
    ):
        use(monkeypatch, shared)
        monkeypatch.delenv("GPUCACHE_FALLBACK")
        launched(OTHER, OTHER_FILES)
        for key in (KEY, OTHER):
            os.truncate(entry(shared, key) / MANIFEST, 0)
        use(monkeypatch, reader)
        monkeypatch.setenv("GPUCACHE_FALLBACK", str(shared))
        assert launched(KEY, FILES) == (False, FILES)
        assert launched(OTHER, OTHER_FILES) == (False, OTHER_FILES)
        (said,) = warnings(caplog)
        assert said.startswith(f"the fallback has an entry that is refused: {entry(shared)}: ")
        assert counted(reader) == {"misses": 2, "fallback_errors": 2}

    def test_an_entry_under_the_name_of_another_is_refused(self, shared, reader):
        launched("X" * 51 + "A", OTHER_FILES)  # so that the own root is there
        shutil.copytree(entry(shared), entry(shared, OTHER))
        is_refused(shared, reader, "damaged", "that of another key", OTHER)

    def test_the_files_of_another_kernel_are_refused_whatever_the_manifest_says(
        self, shared, reader
    ):
        launched("X" * 51 + "A", OTHER_FILES)
        shutil.copytree(entry(shared), entry(shared, OTHER))
        rewritten(entry(shared, OTHER), key=OTHER)
        is_refused(shared, reader, "damaged", "metadata are those of another key", OTHER)

    @pytest.mark.parametrize("key", ["../../../../etc", "a/b", "..", "", "\udcff", "X" * 300])
    def test_what_is_no_key_is_asked_for_nowhere(self, shared, reader, key):
        assert asked(shared, reader, key).did == "miss"


class TestWhoseItIs:
    @pytest.fixture(autouse=True)
    def own_root(self, reader: Path) -> None:
        launched(OTHER, OTHER_FILES)

    @pytest.mark.usefixtures("as_root")
    def test_a_root_of_another_user_is_refused_and_one_of_a_trusted_one_is_not(
        self, shared, reader, monkeypatch
    ):
        for path in [shared, *shared.rglob("*")]:
            os.chown(path, ADA, ADA)
        is_refused(shared, reader, "unsafe", f"belongs to uid {ADA}")
        monkeypatch.setenv("GPUCACHE_TRUST_UIDS", str(ADA))
        another_process(monkeypatch)
        assert launched(KEY, FILES) == (True, FILES)

    @pytest.mark.usefixtures("as_root")
    @pytest.mark.parametrize("below", ["gpucache/v1/store", "entry", "add.ptx", MANIFEST])
    def test_so_is_each_directory_and_file_in_it(self, shared, reader, below):
        found = {"entry": entry(shared), "gpucache/v1/store": shared / below}
        path = found.get(below, entry(shared) / below)
        os.chown(path, ADA, ADA)
        is_refused(shared, reader, "unsafe", f"{path}: belongs to uid {ADA}")

    @pytest.mark.usefixtures("as_root")
    def test_a_link_on_the_way_is_followed_if_it_is_this_users(self, shared, reader):
        link = shared.with_name("link")
        link.symlink_to(shared)
        os.chown(link, ADA, ADA, follow_symlinks=False)
        is_refused(link, reader, "unsafe", "is a symbolic link")
        os.chown(link, 0, 0, follow_symlinks=False)
        assert asked(link, reader).did == "hit"

    def test_what_everybody_may_write_above_is_refused(self, shared, reader):
        above = shared.parent / "open"
        above.mkdir()
        above.chmod(0o777)
        shared.rename(above / "shared")
        is_refused(above / "shared", reader, "unsafe", "everybody may write this ancestor")
        above.chmod(0o1777)
        assert asked(above / "shared", reader).did == "hit"

    def test_a_root_that_is_not_there_is_told_once(self, reader, monkeypatch, caplog):
        monkeypatch.setenv("GPUCACHE_FALLBACK", "/not/there")
        another_process(monkeypatch)
        for seed in ("third", "fourth"):
            assert launched(*kernel(seed))[0] is False
        assert warnings(caplog) == [
            "the fallback cannot be used: there is no /not/there; "
            "going on without it; `gpucache doctor` tells more"
        ]


class TestRaces:
    """Each is placed by hand between a look and the act that follows."""

    @pytest.fixture(autouse=True)
    def own_root(self, reader: Path) -> None:
        launched(OTHER, OTHER_FILES)

    @pytest.fixture
    def between(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[str, Callable[[], object]], None]:
        """Do something right after a file or directory of this name was opened there."""

        def placed(name: str, act: Callable[[], object]) -> None:
            due = [True]
            for how in ("open_child", "open_file"):
                really = getattr(vetted, how)

                def opened(fd, at, path, trust, really=really):
                    found = really(fd, at, path, trust)
                    if at == name and due:
                        due.clear()
                        act()
                    return found

                monkeypatch.setattr(vetted, how, opened)

        return placed

    def test_the_entry_is_evicted_once_its_directory_is_open(self, shared, reader, between):
        between(KEY, lambda: shutil.rmtree(entry(shared)))
        is_refused(shared, reader, "miss", "")

    def test_the_entry_is_evicted_once_its_manifest_was_read(self, shared, reader, between):
        between(MANIFEST, lambda: shutil.rmtree(entry(shared)))
        is_refused(shared, reader, "miss", "")

    def test_the_entry_is_evicted_once_a_file_is_open(self, shared, reader, between):
        between("add.json", lambda: shutil.rmtree(entry(shared)))
        is_refused(shared, reader, "miss", "")

    def test_the_entry_is_evicted_once_the_last_file_is_open(self, shared, reader, between):
        """What is open is whole, and is taken."""
        between("add.ptx", lambda: shutil.rmtree(entry(shared)))
        assert asked(shared, reader).did == "hit"
        assert launched(KEY, FILES) == (True, FILES)

    def test_a_file_is_cut_once_it_is_open(self, shared, reader, between):
        between("add.ptx", lambda: os.truncate(entry(shared) / "add.ptx", 3))
        is_refused(shared, reader, "damaged", "was cut")

    def test_a_file_is_written_anew_once_the_manifest_was_read(self, shared, reader, between):
        size = len(FILES["add.ptx"])
        between(MANIFEST, lambda: (entry(shared) / "add.ptx").write_bytes(b"x" * size))
        is_refused(shared, reader, "damaged", "another content")

    def test_a_link_takes_the_place_of_what_was_vetted(self, shared, reader, between):
        """What was vetted is what is read; the link is not followed."""
        evil = shared.with_name("evil")
        shutil.copytree(shared, evil)
        for path in evil.rglob("add.ptx"):
            path.write_bytes(b"evil")

        def swap() -> None:
            shared.rename(shared.with_name("before"))
            shared.symlink_to(evil)

        between("gpucache", swap)
        assert asked(shared, reader).did == "hit"
        assert launched(KEY, FILES) == (True, FILES)

    def test_the_own_store_gets_the_entry_meanwhile(self, shared, reader, between):
        """The loser of the race does no harm, and the entry is there."""
        between("add.ptx", lambda: launched(KEY, FILES))
        assert asked(shared, reader).did == "hit"
        assert launched(KEY, FILES) == (True, FILES)


def filled(mount: Path) -> None:
    """Fill a file system to the last page."""
    with suppress(OSError), (mount / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 1024)


class TestTheOwnDisk:
    def test_what_is_copied_counts_to_the_limit(self, reader):
        from gpucache.store.counting import counted as bytes_in

        launched(KEY, FILES)
        total = current_location().limit._add(0)
        assert total is not None
        # A view counts a KiB, and is there once.
        assert total.size_bytes == bytes_in(str(reader))


class TestWithoutRoomInTheOwnStore:
    """What the fallback has is read for this process alone, whatever keeps it out of the own store."""

    def test_on_a_full_disk_it_is_no_compile(self, shared, mount, monkeypatch, caplog):
        own = mount(shared.with_name("small"), "-t", "tmpfs", "-o", "size=64k,mode=0700", "none")
        use(monkeypatch, own)
        monkeypatch.setenv("GPUCACHE_FALLBACK", str(shared))
        launched(OTHER, OTHER_FILES)
        filled(own)
        assert launched(KEY, FILES) == (True, FILES)
        assert any("cannot be kept" in said for said in warnings(caplog))
        assert not entry(own).exists()

    def test_nor_once_the_root_is_known_to_be_full(self, reader, monkeypatch):
        launched(OTHER, OTHER_FILES)
        monkeypatch.setattr(shared_kernel, "_full", {str(reader)})
        assert launched(KEY, FILES) == (True, FILES)
        found = counted(reader)
        assert (found["shared_hits"], found["fallback_hits"], found["misses"]) == (1, 1, 1)

    def test_nor_where_the_own_root_is_not_safe(self, shared, reader, monkeypatch):
        reader.mkdir(mode=0o700)
        reader.chmod(0o777)
        assert current_location().mode == "private"
        assert launched(KEY, FILES) == (True, FILES)
        assert list(reader.iterdir()) == []

    def test_what_is_damaged_there_is_looked_at_once(self, shared, reader, monkeypatch):
        launched(OTHER, OTHER_FILES)
        os.truncate(entry(shared) / MANIFEST, 0)
        assert launched(KEY, FILES) == (False, FILES)
        assert counted(reader)["fallback_errors"] == 1

    def test_always_compile_compiles(self, reader, monkeypatch):
        reader.mkdir(mode=0o700)
        reader.chmod(0o777)
        monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")
        assert launched(KEY, FILES) == (False, FILES)

    def test_the_file_stays_for_as_long_as_the_process(self, reader, monkeypatch):
        """Triton reads a kernel's files when it first needs them, long after its manager object has gone."""
        launched(OTHER, OTHER_FILES)
        monkeypatch.setattr(shared_kernel, "_full", {str(reader)})
        manager = DeviceCacheManager(KEY)
        found = manager.get_group("add.json")
        assert found is not None
        assert manager.is_hit
        del manager
        assert {name: Path(path).read_bytes() for name, path in found.items()} == FILES


class TestFilesThatStandForThemselves:
    """Shared libraries and autotune results: each is an entry of its own, of the Python or the device that is asked."""

    @pytest.fixture(params=[LIBRARY, "scaled.autotune.json"])
    def put(
        self,
        request: pytest.FixtureRequest,
        shared: Path,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> tuple[str, bytes]:
        """A file that was put into the other root, and is not in the own one."""
        name = request.param
        data = b"no ELF" if name == LIBRARY else b'{"configs_timings": []}'
        use(monkeypatch, shared)
        monkeypatch.setattr(location, "nobody_elses", lambda *_: "a device")
        DeviceCacheManager(KEY).put(data, name)
        use(monkeypatch, root)
        monkeypatch.setenv("GPUCACHE_FALLBACK", str(shared))
        return name, data

    def test_they_are_copied_into_the_own_store(self, put, root):
        name, data = put
        path = DeviceCacheManager(KEY).get_file(name)
        assert path is not None
        assert Path(path).is_relative_to(root)
        assert Path(path).read_bytes() == data
        assert counted(root)["fallback_hits"] == 1
        assert DeviceCacheManager(KEY).get_file(name) == path
        assert counted(root)["fallback_hits"] == 1

    def test_they_are_read_privately_where_there_is_no_store(self, put, root):
        name, data = put
        root.mkdir(mode=0o700)
        root.chmod(0o777)
        path = DeviceCacheManager(KEY).get_file(name)
        assert path is not None
        assert not Path(path).is_relative_to(root)
        assert Path(path).read_bytes() == data

    def test_one_that_is_no_good_is_put_again(self, put, root):
        """Triton puts a library that it cannot load, and an autotuner's result that it cannot read."""
        name, _ = put
        manager = DeviceCacheManager(KEY)
        assert manager.get_file(name) is not None
        better = b"another" if name == LIBRARY else b'{"configs_timings": [1]}'
        assert Path(manager.put(better, name)).read_bytes() == better
        path = DeviceCacheManager(KEY).get_file(name)
        assert path is not None
        assert Path(path).read_bytes() == better

    def test_those_of_another_device_or_python_are_not_taken(self, put, monkeypatch):
        name, _ = put
        monkeypatch.setattr(location, "nobody_elses", lambda *_: "another device")
        monkeypatch.setattr(sysconfig, "get_config_var", lambda _: "another-abi")
        assert DeviceCacheManager(KEY).get_file(name) is None


def test_a_miss_names_the_fallback(shared, reader, monkeypatch, caplog):
    with caplog.at_level(logging.INFO, "gpucache"):
        launched(OTHER, OTHER_FILES)
    (miss,) = [said for said in caplog.messages if said.startswith("miss: ")]
    assert miss.endswith(f", and not had of the fallback {shared}")
    monkeypatch.setenv("GPUCACHE_REQUIRE_HIT", "1")
    another_process(monkeypatch)
    key, files = kernel("third")
    with pytest.raises(CacheMissError) as missed:
        launched(key, files)
    assert str(entry(shared, key)) in str(missed.value)
