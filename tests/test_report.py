from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import tree
from support.processes import SPAWN
from support.ranks import PLUGIN, compile_kernels, python_with_triton
from support.strays import OLD, UUID, YOUNG
from support.trees import randomly, walked
from support.users import ADA

from gpucache.disk.staging import Staging
from gpucache.findings import Finding
from gpucache.layout import paths
from gpucache.report import cache_report, entry_builder, key_directories
from gpucache.report.cache_report import CacheReport, scan
from gpucache.report.entries import Entry
from gpucache.report.inodes import Contents, Inode, Inodes
from gpucache.store.manifest import (
    CONDEMNED,
    MANIFEST,
    Facts,
    entry_path,
    read_manifest,
    single_key,
)
from gpucache.store.publish import link_view, publish_entry
from gpucache.store.removal import InUse, Target, remove
from gpucache.store.stats import Stats

PATIENCE_S = 120.0
PYTHONS = list(
    dict.fromkeys((sys.executable, os.environ.get("GPUCACHE_TEST_TRITON", sys.executable)))
)


def key(name: object) -> str:
    """A key as Triton 3.3 and later make them."""
    return base64.b32encode(hashlib.sha256(str(name).encode()).digest()).decode().rstrip("=")


def told(name: str, arch: object = 90, backend: str = "cuda", **more: object) -> bytes:
    """A kernel's metadata file."""
    return json.dumps({"name": name, "target": {"backend": backend, "arch": arch}, **more}).encode()


def stock(
    directory: Path,
    key: str,
    name: str = "add",
    metadata: bytes = told("add", triton_version="3.9.0"),
) -> Path:
    """An entry as Triton's own manager leaves it."""
    path = directory / key
    path.mkdir(parents=True)
    files = {
        f"{name}.json": metadata,
        f"{name}.ptx": b".version 8.7",
        f"{name}.cubin": b"\0" * 4096,
    }
    for file, data in files.items():
        (path / file).write_bytes(data)
    (path / f"__grp__{name}.json").write_text(
        json.dumps({"child_paths": {file: f"{path}/{file}" for file in files}})
    )
    return path


class Root:
    """A root of ours that is filled by the functions of the store."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.staging = Staging(paths.ours(str(path), "tmp"))

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def kernel(self, key: str, *directories: str, name: str = "add") -> Path:
        """A stored kernel with views in these device directories; its place in the store."""
        files = {
            f"{name}.json": told(name),
            f"{name}.ptx": b".version 8.7",
            f"{name}.cubin": key.encode() * 64,
        }
        return self.entry(
            key, files, Facts(name, f"{name}.json", "cuda:90", "3.9.0", 1.5), *directories
        )

    def single(self, key: str, name: str, tag: str, *directories: str) -> Path:
        """A stored file that stands for itself, as `gpucache.triton.single_file` puts it."""
        return self.entry(key, {name: b"\x7fELF"}, Facts(name, None, tag=tag), *directories)

    def entry(self, key: str, files: Mapping[str, bytes], facts: Facts, *directories: str) -> Path:
        home = Path(self.staging.directory())
        for name, data in files.items():
            (home / name).write_bytes(data)
        staged = {
            name: (f"{home}/{name}", hashlib.sha256(data).hexdigest())
            for name, data in files.items()
        }
        stored = single_key(key, facts.kernel, facts.tag) if facts.group is None else key
        assert publish_entry(str(self), stored, staged, facts, self.staging, repair=False)
        shutil.rmtree(home)
        path = entry_path(str(self), stored)
        manifest = read_manifest(path)
        assert manifest is not None
        for directory in directories:
            assert link_view(
                str(self), path, f"{self}/{directory}/{key}", manifest[0], repair=False
            )
        return Path(path)

    def own(self, *parts: str) -> Path:
        return Path(paths.ours(str(self), *parts))

    def scan(self) -> CacheReport:
        return scan(str(self))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


def by_key(found: CacheReport) -> dict[str, Entry]:
    assert len({entry.key for entry in found.entries}) == len(found.entries)
    return {entry.key: entry for entry in found.entries}


def only(found: CacheReport) -> Entry:
    (entry,) = found.entries
    return entry


def codes(found: CacheReport) -> list[tuple[str, str]]:
    """What was found to be wrong, by the path below the root."""
    return sorted((one.code, os.path.relpath(one.subject, found.root)) for one in found.findings)


def strays(found: CacheReport) -> dict[str, tuple[str, bool]]:
    names = [os.path.relpath(one.path, found.root) for one in found.strays]
    assert len(set(names)) == len(names)
    return {name: (one.kind, one.dead) for name, one in zip(names, found.strays, strict=True)}


def kinds(entry: Entry) -> list[tuple[str, str | None]]:
    return [(copy.kind, copy.directory) for copy in entry.copies]


def part_of(path: str) -> str:
    """Which part of a root a file counts to, by its path below it: what `scan` should say of a root of ours."""
    first, *rest = path.split("/")
    if not rest:
        return "other"
    if first == "triton":
        return f"triton/{rest[0]}" if len(rest) > 1 else "triton"
    if first == "gpucache":
        return (
            rest[1] if len(rest) > 2 and rest[1] in ("store", "tmp", "quarantine") else "gpucache"
        )
    return "code" if len(first) == 2 else first


def parts(found: CacheReport) -> dict[str, list[os.stat_result]]:
    """The files of each part, by an independent walk."""
    files: dict[str, list[os.stat_result]] = {one.name: [] for one in found.usage}
    for directory, inner, names in os.walk(found.root):
        links = [name for name in inner if os.path.islink(f"{directory}/{name}")]
        for name in (*names, *links):
            path = f"{directory}/{name}"
            files[part_of(os.path.relpath(path, found.root))].append(os.lstat(path))
    return files


def adds_up(found: CacheReport) -> bool:
    """Whether all sums of a report are those of independent walks."""
    files, logical, physical = walked(Path(found.root))
    assert sum(one.files for one in found.usage) == files
    assert sum(one.logical_bytes for one in found.usage) == logical
    assert sum(one.physical_bytes for one in found.usage) == physical
    seen: set[int] = set()
    there = parts(found)
    for one in found.usage:
        sizes = {stat.st_ino: stat.st_size for stat in there[one.name]}
        others = {
            stat.st_ino for name, stats in there.items() if name != one.name for stat in stats
        }
        alone = sum(size for inode, size in sizes.items() if inode not in others)
        assert (one.files, one.logical_bytes) == (
            len(there[one.name]),
            sum(s.st_size for s in there[one.name]),
        )
        assert alone <= one.physical_bytes <= sum(sizes.values())
        if one.name == "store" or one.name.startswith("triton/"):
            new = sum(size for inode, size in sizes.items() if inode not in seen)
            assert one.physical_bytes == new or found.findings  # linked by hand, all over the root
        seen |= sizes.keys()
    for entry in found.entries:
        assert entry.logical_bytes == sum(copy.logical_bytes for copy in entry.copies)
        assert entry.physical_bytes == sum(copy.physical_bytes for copy in entry.copies)
        assert 0 <= entry.held_bytes <= entry.physical_bytes <= entry.logical_bytes
    return True


# ---- what Triton makes


@pytest.fixture(scope="module", params=PYTHONS, ids=lambda python: Path(python).parts[-3])
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, triton: None
) -> tuple[Path, str]:
    """A root that a real Triton has filled, and what that says of its version; do not change it.

    Through the plug-in, two kernels with views for two devices; by its own manager, for a third, one of these and one
    for another architecture.
    """
    python = request.param
    path = tmp_path_factory.mktemp("compiled") / "root"

    def at(directory: str) -> dict[str, str]:
        return {"GPUCACHE_DIR": str(path), "TRITON_CACHE_DIR": str(path / directory)}

    for directory in ("triton/0", "triton/1"):
        compile_kernels({**at(directory), **PLUGIN}, 2, 90, python=python)
    compile_kernels(at("triton/2"), 1, 90, 80, python=python)
    version = python_with_triton("import triton; print(triton.__version__)", python=python).strip()
    return path, version


class TestWhatTritonMade:
    def test_every_kernel_is_one_entry_in_all_its_directories(self, compiled):
        path, version = compiled
        found = scan(str(path))
        assert found.findings == ()
        assert {one.kind for one in found.strays} <= {"staging"}
        assert [device.name for device in found.devices] == ["0", "1", "2"]
        shared = [("store", None), ("view", "0"), ("view", "1")]
        everywhere, ours, others = sorted(found.entries, key=lambda entry: -len(entry.copies))
        assert (kinds(everywhere), kinds(ours), kinds(others)) == (
            [*shared, ("stock", "2")],
            shared,
            [("stock", "2")],
        )
        for entry in found.entries:
            assert (entry.kernel, entry.kind, entry.triton_version) == ("scaled", "kernel", version)
            assert entry.files == tuple(
                sorted(entry.files, key=lambda file: names(entry).index(file.name))
            )
            assert {"scaled.ptx", "scaled.cubin", "scaled.json"} < {
                file.name for file in entry.files
            }
        assert (everywhere.target, everywhere.arch, everywhere.stored) == ("cuda:90", "sm_90", True)
        assert (others.target, others.arch, others.stored) == ("cuda:80", "sm_80", False)
        assert (everywhere.directories, others.directories) == (("0", "1", "2"), ("2",))

    def test_what_is_told_of_an_entry_is_what_its_files_say(self, compiled):
        for entry in scan(str(compiled[0])).entries:
            for copy in entry.copies:
                there = {file.name: file.stat() for file in Path(copy.path).iterdir()}
                assert sum(found.st_size for found in there.values()) == copy.logical_bytes
            first = {file.name: file.stat() for file in Path(entry.copies[0].path).iterdir()}
            assert {file.name: file.size_bytes for file in entry.files} == {
                n: s.st_size for n, s in first.items()
            }
            compiled_at = [
                found.st_mtime for name, found in first.items() if not name.startswith("__")
            ]
            assert entry.created == pytest.approx(max(compiled_at), abs=1e-6)
            everything = [
                file.stat() for copy in entry.copies for file in Path(copy.path).iterdir()
            ]
            assert entry.physical_bytes == sum(
                {one.st_ino: one.st_size for one in everything}.values()
            )
            assert entry.held_bytes == 0

    def test_its_sums_are_those_of_an_independent_walk(self, compiled):
        assert adds_up(scan(str(compiled[0])))

    def test_its_hits_are_known_by_device(self, compiled):
        first, second, third = scan(str(compiled[0])).devices
        assert (first.counters["misses"], second.counters["shared_hits"]) == (2, 2)
        assert third.counters == {}

    def test_looking_changes_nothing(self, compiled):
        """Not even when a kernel of stock Triton was used last: its access times are older than its changes."""
        path, _ = compiled
        for directory, _, files in os.walk(path):
            for name in files:
                os.utime(
                    f"{directory}/{name}", ns=(10**18, os.lstat(f"{directory}/{name}").st_mtime_ns)
                )
        before = snapshot(path)
        first = scan(str(path))
        assert snapshot(path) == before
        second = scan(str(path))
        assert second == dataclasses.replace(first, strays=second.strays)


def names(entry: Entry) -> list[str]:
    return [file.name for file in entry.files]


def snapshot(base: Path) -> dict[str, tuple[int, ...]]:
    """Everything below, with all that would tell of a change, and when each file was read that a scan need not read."""
    found = {str(path): path.lstat() for path in [base, *base.rglob("*")]}
    return {
        path: (s.st_ino, s.st_mode, s.st_nlink, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        + ((s.st_atime_ns,) if path.endswith((".cubin", ".ptx", ".ttir", ".so")) else ())
        for path, s in found.items()
    }


# ---- what every Triton leaves


class TestStockTriton:
    def test_keys_of_every_version_are_read(self, root):
        digest = hashlib.sha256(b"kernel").digest()
        base64_key = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        stock(root / "triton/0", digest.hex(), metadata=told("add", 80))
        stock(root / "triton/0", base64_key, metadata=told("add", 86))
        stock(root / "triton/0", key("kernel"), metadata=told("add", 90, triton_version="3.6.0"))
        found = by_key(root.scan())
        assert found.keys() == {digest.hex(), base64_key, key("kernel")}
        said = [
            (found[one].target, found[one].triton_version)
            for one in (digest.hex(), base64_key, key("kernel"))
        ]
        assert said == [("cuda:80", None), ("cuda:86", "3.2.0"), ("cuda:90", "3.6.0")]
        assert {(entry.kernel, entry.kind) for entry in found.values()} == {("add", "kernel")}

    @pytest.mark.parametrize("place", [".", "triton"])
    def test_a_root_may_be_its_directory_itself(self, root, place):
        """Triton's default directory, and that of torch's `fresh_cache`."""
        path = stock(root.path / place, key(1))
        stock(root / "triton" / "0", key(1))
        found = root.scan()
        assert [(one.name, one.path) for one in found.devices] == [
            (place, os.path.normpath(root.path / place)),
            ("0", f"{root}/triton/0"),
        ]
        assert kinds(only(found)) == [("stock", place), ("stock", "0")]
        assert only(found).copies[0].path == str(path)
        assert [one.name for one in found.usage] == ["triton", "triton/0"]
        assert sum(one.physical_bytes for one in found.usage) == walked(root.path)[2]

    def test_beside_its_keys_there_may_be_more(self, root):
        """Strays of Triton's directory count where they are, and only once; what is not its own is no stray."""
        stock(root.path, key(1))
        for name in (f"tmp.{UUID}", "tmp.gpucache-x", "experiments"):
            (root / name).mkdir()
            (root / name / f"add.ttir.tmp.pid_1_{UUID}").write_bytes(b"12345")
        (root / "notes").write_bytes(b"123")
        found = root.scan()
        assert strays(found) == {
            f"tmp.{UUID}": ("torch-temporary", False),
            "tmp.gpucache-x": ("aside", False),
        }
        assert sum(one.logical_bytes for one in found.usage) == walked(root.path)[1]
        assert {one.name for one in found.usage} >= {"triton", "experiments", "other"}

    def test_what_killed_writers_left_is_no_part_of_an_entry(self, root):
        """Triton 3.0 and 3.1 write beside the file, 3.2 and later in a directory of its own."""
        first, second = stock(root / "triton/0", key(1)), root / "triton/0" / key(2)
        whole = only(root.scan())
        (first / f"add.cubin.tmp.pid_1_{UUID}").write_bytes(b"12345")
        (first / f"tmp.pid_1_{UUID}").mkdir()
        (first / f"tmp.pid_1_{UUID}" / "add.ttir").write_bytes(b"123")
        second.mkdir()
        (second / f"add.ttir.tmp.pid_1_{UUID}").write_bytes(b"12345")
        os.utime(second / f"add.ttir.tmp.pid_1_{UUID}", (OLD, OLD))
        found = root.scan()
        assert only(found).files == whole.files
        assert (only(found).logical_bytes, only(found).physical_bytes) == (
            whole.logical_bytes,
            whole.physical_bytes,
        )
        assert strays(found) == {
            f"triton/0/{key(1)}/add.cubin.tmp.pid_1_{UUID}": ("triton-temporary", False),
            f"triton/0/{key(1)}/tmp.pid_1_{UUID}": ("triton-temporary", False),
            f"triton/0/{key(2)}/add.ttir.tmp.pid_1_{UUID}": ("triton-temporary", True),
        }
        assert adds_up(found)

    @pytest.mark.parametrize(("when", "dead"), [(YOUNG, False), (OLD, True)], ids=["young", "old"])
    def test_an_empty_key_directory_is_a_stray_after_an_hour(self, root, when, dead):
        """A lookup makes it, and so does the compile that is going on."""
        (root / "triton/0" / key(1)).mkdir(parents=True)
        os.utime(root / "triton/0" / key(1), (when, when))
        found = root.scan()
        assert found.entries == ()
        assert strays(found) == {f"triton/0/{key(1)}": ("empty", dead)}

    @pytest.mark.parametrize(
        ("name", "kind", "kernel"),
        [
            ("cuda_utils.so", "library", "cuda_utils.so"),
            (
                "cuda_utils.cpython-311-x86_64-linux-gnu.so",
                "library",
                "cuda_utils.cpython-311-x86_64-linux-gnu.so",
            ),
            ("matmul.autotune.json", "autotune", "matmul"),
            ("add.ttir", "file", "add.ttir"),
        ],
    )
    def test_a_file_without_a_group_stands_for_itself(self, root, name, kind, kernel):
        (root / "triton/0" / key(1)).mkdir(parents=True)
        (root / "triton/0" / key(1) / name).write_text("{}")
        found = only(root.scan())
        assert (found.kind, found.kernel, found.target, found.arch, found.key) == (
            kind,
            kernel,
            None,
            None,
            key(1),
        )

    @pytest.mark.parametrize(
        "metadata",
        [
            b"",
            b"{",
            b"[]",
            b"\xff",
            b"[" * 100_000,
            b'{"target": 3, "triton_version": []}',
            b"0" * (entry_builder.READ_BYTES + 1),
        ],
        ids=["empty", "torn", "no-object", "binary", "deep", "other-types", "huge"],
    )
    def test_metadata_that_says_nothing_leaves_the_target_unknown(self, root, metadata):
        stock(root / "triton/0", key(1), metadata=metadata)
        found = only(root.scan())
        assert (found.kernel, found.kind, found.target, found.triton_version) == (
            "add",
            "kernel",
            None,
            None,
        )

    def test_metadata_that_is_a_fifo_hangs_nobody(self, root):
        path = stock(root / "triton/0", key(1)) / "add.json"
        path.unlink()
        os.mkfifo(path)
        assert only(root.scan()).target is None

    def test_another_maker_has_other_targets(self, root):
        stock(root / "triton/0", key(1), metadata=told("add", "gfx942", "hip"))
        assert (only(root.scan()).target, only(root.scan()).arch) == ("hip:gfx942", "gfx942")

    def test_its_last_use_is_the_newest_access_or_change_in_any_directory(self, root):
        when = {}
        for directory, newest in (("0", OLD - 500.0), ("1", OLD)):
            path = stock(root / "triton" / directory, key(1))
            for file in path.iterdir():
                os.utime(file, (OLD - 2000.0, OLD - 1000.0))
            os.utime(path / "add.cubin", (newest, OLD - 1000.0))
            when[directory] = newest
        assert only(root.scan()).used == pytest.approx(max(when.values()), abs=1e-6)

    def test_that_a_scan_reads_its_metadata_is_no_use(self, root):
        path = stock(root / "triton/0", key(1))
        for file in path.iterdir():
            os.utime(file, (OLD - 2000.0, OLD - 1000.0))
        first = only(root.scan()).used
        os.utime(path / "add.json", (time.time(), OLD - 1000.0))
        assert only(root.scan()).used == first == pytest.approx(OLD - 1000.0, abs=1e-6)

    def test_its_mark_is_that_of_the_directory(self, root):
        path = stock(root / "triton/0", key(1))
        found = path.stat()
        assert only(root.scan()).copies[0].mark == (found.st_ino, found.st_mtime_ns)


# ---- ours


class TestOurs:
    def test_a_use_stamps_all_of_an_entry(self, root):
        entry = root.kernel(key(1), "triton/0", "triton/1")
        os.utime(entry / MANIFEST, (OLD, OLD))
        found = only(root.scan())
        assert found.used == pytest.approx(OLD, abs=1e-6)
        manifest = (entry / MANIFEST).stat()
        assert {copy.mark for copy in found.copies} == {(manifest.st_ino, manifest.st_mtime_ns)}

    def test_a_library_of_its_own_has_views_only_where_it_fits_every_python(self, root):
        tagged = root.single(key(1), "cuda_utils.so", "cpython-311-glibc-2.36")
        plain = root.single(
            key(2), "cuda_utils.cpython-311-x86_64-linux-gnu.so", "", "triton/0", "triton/1"
        )
        found = by_key(root.scan())
        assert found.keys() == {tagged.name, plain.name}
        assert kinds(found[tagged.name]) == [("store", None)]
        assert kinds(found[plain.name]) == [("store", None), ("view", "0"), ("view", "1")]
        assert {entry.kind for entry in found.values()} == {"library"}

    def test_an_autotune_result_is_named_by_its_kernel(self, root):
        root.single(key(1), "matmul.autotune.json", "sm_90-132")
        root.single(key(1), "matmul.autotune.json", "sm_90-114")
        found = root.scan().entries
        assert [(entry.kernel, entry.kind, entry.target) for entry in found] == [
            ("matmul", "autotune", None)
        ] * 2

    def test_a_view_that_lost_its_entry_is_one_still(self, root):
        stored = (
            root.kernel(key(1), "triton/0", "triton/1"),
            root.single(key(2), "lib.so", "", "triton/0"),
        )
        before = by_key(root.scan())
        for path in stored:
            shutil.rmtree(path)
        found = by_key(root.scan())
        assert found.keys() == before.keys() == {path.name for path in stored}
        assert kinds(found[key(1)]) == [("view", "0"), ("view", "1")]
        assert found[key(1)].kernel == "add"
        assert not found[key(1)].stored

    @pytest.mark.parametrize("copy", ["-a", "-al"])
    def test_a_copied_device_directory_belongs_to_the_same_entries(self, root, copy):
        """With `cp -a` its files are its own, and with `cp -al` they are links."""
        root.kernel(key(1), "triton/0")
        root.single(key(2), "lib.so", "", "triton/0")
        before = by_key(root.scan())
        subprocess.run(["cp", copy, root / "triton/0", root / "triton/copied"], check=True)
        found = by_key(root.scan())
        assert found.keys() == before.keys()
        for entry in found.values():
            assert kinds(entry) == [("store", None), ("view", "0"), ("view", "copied")]
            linked = copy == "-al"
            assert (entry.physical_bytes == before[entry.key].physical_bytes) is linked
            assert entry.copies[2].physical_bytes == (
                0 if linked else entry.copies[2].logical_bytes
            )
            assert entry.held_bytes == 0

    def test_links_out_of_the_root_hold_bytes(self, root):
        path = root.kernel(key(1), "triton/0")
        os.link(path / "add.cubin", root.path.parent / "kept.cubin")
        size = (path / "add.cubin").stat().st_size
        assert only(root.scan()).held_bytes == size
        shutil.rmtree(root / "triton/0" / key(1))
        assert only(root.scan()).held_bytes == size

    def test_so_do_links_that_are_no_entrys(self, root):
        """What a rank has staged, and what lies in quarantine, is not freed with the entry."""
        path = root.kernel(key(1), "triton/0")
        home = Path(root.staging.directory())
        os.link(path / "add.ptx", home / "add.ptx")
        found = root.scan()
        assert only(found).held_bytes == (path / "add.ptx").stat().st_size
        assert adds_up(found)

    def test_two_names_in_one_directory_are_one_file(self, root):
        path = stock(root / "triton/0", key(1))
        before = only(root.scan())
        os.link(path / "add.cubin", path / "again.cubin")
        found = only(root.scan())
        assert found.physical_bytes == before.physical_bytes
        assert found.logical_bytes == before.logical_bytes + 4096
        assert found.held_bytes == 0

    def test_counters_belong_to_the_directory_of_that_name(self, root):
        for name in ("0", ".", "/elsewhere/0"):
            counters = Stats(paths.ours(str(root), "stats"), name)
            counters.add("hits", 3, now=True)
            counters.forget()
        root.kernel(key(1), "triton/0", "triton/1")
        stock(root.path, key(2))
        assert [(one.name, one.counters) for one in root.scan().devices] == [
            (".", {"hits": 3}),
            ("0", {"hits": 3}),
            ("1", {}),
        ]

    @pytest.mark.parametrize(("when", "dead"), [(YOUNG, False), (OLD, True)], ids=["young", "old"])
    def test_what_is_to_go_is_no_entry(self, root, when, dead):
        path = root.kernel(key(1), "triton/0")
        for directory in (path, root / "triton/0" / key(1)):
            os.rename(directory / MANIFEST, directory / CONDEMNED)
            os.utime(directory, (when, when))
        found = root.scan()
        assert found.entries == ()
        assert found.findings == ()
        expected = {f"triton/0/{key(1)}", f"gpucache/v1/store/{key(1)[:2]}/{key(1)}"}
        assert {
            name: one for name, one in strays(found).items() if one[0] != "staging"
        } == dict.fromkeys(expected, ("half-removed", dead))

    def test_every_stray_is_told_with_its_bytes(self, root):
        root.kernel(key(1), "triton/0")
        shutil.rmtree(root.own("tmp"))
        made = [
            root / "triton/0/tmp.gpucache-x",
            root / f"triton/0/tmp.{UUID}",
            root.own("tmp", "publish-x"),
        ]
        for path in (
            *made,
            root.own("quarantine", "KEY.1.2"),
            root.own("store", key(1)[:2], "tmp.gpucache-y"),
        ):
            path.mkdir(parents=True)
            (path / "file").write_bytes(b"12345")
        root.own("locks").mkdir()
        root.own("locks", "KEY.lock").write_bytes(b"12345")
        for name in ("3a", "cache"):
            (root / name).mkdir()
            (root / name / ".12.140022.tmp").write_bytes(b"12345")
        found = root.scan()
        assert strays(found) == {
            "triton/0/tmp.gpucache-x": ("aside", False),
            f"gpucache/v1/store/{key(1)[:2]}/tmp.gpucache-y": ("aside", False),
            f"triton/0/tmp.{UUID}": ("torch-temporary", False),
            "3a/.12.140022.tmp": ("torch-temporary", False),
            "cache/.12.140022.tmp": ("torch-temporary", False),
            "gpucache/v1/tmp/publish-x": ("staging", False),
            "gpucache/v1/locks/KEY.lock": ("lock", True),
            "gpucache/v1/quarantine/KEY.1.2": ("quarantine", True),
        }
        assert {one.size_bytes for one in found.strays} == {5}
        assert adds_up(found)

    def test_nothing_of_a_users_is_a_stray_or_an_entry(self, root):
        """Whatever its name: a stray goes with the next prune."""
        (root / "models" / "deep").mkdir(parents=True)
        for name in (f"run.tmp.pid_1_{UUID}", f"tmp.{UUID}", "tmp.gpucache-x", ".1.2.tmp"):
            for directory in (root.path, root / "models", root / "models/deep"):
                (directory / name).write_text("")
        (root / "models" / key(1)).mkdir()
        (root / "models" / key(1) / "thesis").write_text("")
        found = root.scan()
        assert (found.strays, found.entries, found.devices) == ((), (), ())


class TestSums:
    @pytest.mark.parametrize("seed", range(4))
    def test_parts_add_up_whatever_is_there(self, tmp_path, seed):
        draw = random.Random(seed)
        keys = tree.make(str(tmp_path / "root"), 12, 1 + seed % 3, seed)
        root = Root(tmp_path / "root")
        places = [
            root.path,
            root / "triton",
            root / "gpucache",
            root.own(),
            root.own("store"),
            root.own("tmp"),
        ]
        places += [root / "triton/0", root / "triton/0" / keys[0], root.own("store", keys[1][:2])]
        for number, name in enumerate(("fxgraph", "ab", "cd", "stats", "quarantine")):
            place = root.own(name) if name in ("stats", "quarantine") else root / name
            place.mkdir(parents=True, exist_ok=True)
            randomly(place, random.Random(seed + number))
            places.append(place)
        for number, path in enumerate(places):
            (path / f"loose-{number}").write_bytes(draw.randbytes(100))
            os.link(path / f"loose-{number}", draw.choice(places) / f"linked-{number}")
            (path / f"link-{number}").symlink_to(draw.choice(places))
        entry = entry_path(str(root), keys[2])
        os.link(f"{entry}/{MANIFEST}", root / "ab" / "linked-manifest")
        found = root.scan()
        assert len(found.entries) == 12
        assert adds_up(found)

    def test_parts_of_a_users_and_of_ours_are_not_one(self, root):
        for name in ("store", "tmp", "quarantine"):
            (root / name).mkdir(parents=True)
            (root / name / "file").write_bytes(b"12345")
        root.kernel(key(1))
        found = {one.name: one.logical_bytes for one in root.scan().usage}
        assert {
            name: found[f"./{name}"] for name in ("store", "tmp", "quarantine")
        } == dict.fromkeys(("store", "tmp", "quarantine"), 5)
        assert found["store"] == walked(root.own("store"))[1]

    def test_a_file_is_asked_for_once_however_many_views_it_has(self, tmp_path, monkeypatch):
        tree.make(str(tmp_path / "root"), 10, 4)
        asked = []
        made = Inode.__init__
        monkeypatch.setattr(
            Inode,
            "__init__",
            lambda self, found: (asked.append(found.st_ino), made(self, found))[1],
        )
        scan(str(tmp_path / "root"))
        assert len(asked) == len(set(asked))
        assert len(asked) == len(
            {path.lstat().st_ino for path in tmp_path.rglob("*") if path.is_file()}
        )


class TestProgress:
    def test_is_told_now_and_then_up_to_the_number_of_directories(self, tmp_path):
        tree.make(str(tmp_path / "root"), 100, 2)
        told = []
        scan(str(tmp_path / "root"), lambda done, total: told.append((done, total)))
        assert told == [(done, 300) for done in range(64, 301, 64)]


# ---- what cannot be read


class TestNothingThere:
    @pytest.mark.parametrize("what", ["missing", "empty"])
    def test_what_was_not_made_yet_is_an_empty_report(self, tmp_path, what):
        path = tmp_path / "root"
        if what == "empty":
            path.mkdir()
        assert scan(str(path), may_be_missing=True) == CacheReport(
            root=str(path), devices=(), entries=(), strays=(), usage=(), findings=()
        )

    def test_the_root_itself_may_be_a_link(self, root):
        root.kernel(key(1))
        (root.path.parent / "link").symlink_to(root.path)
        found = scan(f"{root.path.parent}/link")
        assert found.root == str(root)
        assert len(found.entries) == 1


class TestLinks:
    """None is followed, wherever it is, and each is told: removal would otherwise reach what is not the cache's."""

    @pytest.mark.parametrize(
        "linked",
        [
            *(
                "triton",
                "triton/0",
                "gpucache",
                "gpucache/v1",
                "gpucache/v1/store",
                f"gpucache/v1/store/{key(1)[:2]}",
            ),
            *(f"triton/0/{key(1)}", f"gpucache/v1/store/{key(1)[:2]}/{key(1)}"),
        ],
    )
    def test_a_directory(self, root, linked):
        root.kernel(key(1), "triton/0")
        shutil.rmtree(root.own("tmp"))
        os.rename(root / linked, root.path.parent / "elsewhere")
        (root / linked).symlink_to(root.path.parent / "elsewhere")
        found = root.scan()
        assert found.findings == (
            Finding(
                "link",
                "warning",
                f"{root}/{linked}",
                "a symbolic link in a cache is not followed",
                "remove it",
            ),
        )
        assert [
            copy.path
            for entry in found.entries
            for copy in entry.copies
            if copy.path.startswith(f"{root}/{linked}")
        ] == []
        assert sum(one.physical_bytes for one in found.usage) == walked(root.path)[2]

    @pytest.mark.parametrize("place", [".", "triton"])
    def test_a_key_directly_below(self, root, place):
        stock(root.path / place, key(1))
        stock(root.path.parent / "elsewhere", key(2))
        (root.path / place / key(2)).symlink_to(root.path.parent / "elsewhere" / key(2))
        found = root.scan()
        assert only(found).key == key(1)
        assert codes(found) == [("link", os.path.normpath(f"{place}/{key(2)}"))]

    @pytest.mark.parametrize("name", ["add.cubin", "add.json", "__grp__add.json"])
    def test_a_file_of_a_stock_entry(self, root, name):
        path = stock(root / "triton/0", key(1)) / name
        os.rename(path, root.path.parent / "elsewhere")
        path.symlink_to(root.path.parent / "elsewhere")
        os.utime(root.path.parent / "elsewhere", (OLD, OLD))
        found = root.scan()
        assert codes(found) == [("link", f"triton/0/{key(1)}")]
        assert dict(only(found).files)[name] == len(str(root.path.parent / "elsewhere"))
        assert only(found).target == (None if name == "add.json" else "cuda:90")

    def test_a_manifest(self, root):
        path = root.kernel(key(1)) / MANIFEST
        os.rename(path, root.path.parent / "elsewhere")
        path.symlink_to(root.path.parent / "elsewhere")
        found = root.scan()
        stored = os.path.relpath(path.parent, root.path)
        assert codes(found) == [("link", stored), ("manifest-torn", stored)]
        assert only(found).triton_version is None

    @pytest.mark.parametrize("place", ["", "fxgraph", "gpucache/v1/tmp"])
    def test_to_where_there_is_much_else_counts_as_what_it_is(self, root, place):
        root.kernel(key(1))
        (root / "fxgraph").mkdir()
        before = walked(root.path)
        (root / place / "link").symlink_to("/usr")
        assert sum(one.logical_bytes for one in root.scan().usage) == before[1] + len("/usr")

    def test_counters_behind_a_link_are_not_read(self, root):
        root.kernel(key(1), "triton/0")
        Stats(f"{root.path.parent}/elsewhere", "0").add("hits", now=True)
        root.own("stats").symlink_to(root.path.parent / "elsewhere")
        found = root.scan()
        assert found.devices[0].counters == {}
        assert codes(found) == [("link", "gpucache/v1/stats")]


class TestDamage:
    @pytest.mark.parametrize("said", [b"", b"{", b"null", b"\xff", b'{"version": 1, "files": {}}'])
    def test_a_torn_manifest_is_told_and_the_rest_is_read_from_tritons_files(self, root, said):
        path = root.kernel(key(1), "triton/0")
        (path / MANIFEST).write_bytes(said)
        found = root.scan()
        assert codes(found) == [("manifest-torn", os.path.relpath(path, root.path))]
        assert kinds(only(found)) == [("store", None), ("view", "0")]

    @pytest.mark.parametrize(
        "wrong",
        [
            *({"kernel": value} for value in (5, None, ["add"], "\ud800", "\x1b[31madd")),
            *(
                {name: value}
                for name in ("target", "triton_version", "group")
                for value in (0, 9.5, ["x"], "a\nb")
            ),
            *({"tag": value} for value in (None, 3, "\ud800")),
        ],
        ids=str,
    )
    def test_so_is_one_that_says_what_cannot_be(self, root, wrong):
        root.single(key(1), "lib.so", "", "triton/0")
        path = root.kernel(key(2), "triton/0")
        for manifest in root.path.rglob(MANIFEST):
            said = json.loads(manifest.read_bytes())
            manifest.write_bytes(json.dumps({**said, **wrong}).encode())
        found = root.scan()
        assert {code for code, _ in codes(found)} == {"manifest-torn"}
        assert key(2) in by_key(found)
        assert path.name in by_key(found)

    def test_one_that_is_longer_than_memory_is_not_read(self, root):
        path = root.kernel(key(1))
        os.truncate(path / MANIFEST, 2**42)
        assert codes(root.scan()) == [("manifest-torn", os.path.relpath(path, root.path))]

    @pytest.mark.parametrize("kind", ["fifo", "directory", "nothing"])
    def test_one_that_is_no_file(self, root, kind):
        path = root.kernel(key(1))
        (path / MANIFEST).unlink()
        if kind == "fifo":
            os.mkfifo(path / MANIFEST)
        elif kind == "directory":
            (path / MANIFEST).mkdir()
        expected = "manifest-torn" if kind == "fifo" else "manifest-missing"
        assert codes(root.scan()) == [(expected, os.path.relpath(path, root.path))]

    def test_counters_that_nobody_understands_count_nothing(self, root):
        root.kernel(key(1), "triton/0")
        root.own("stats").mkdir()
        root.own("stats", "x.json").write_text('{"device": 3}')
        assert root.scan().devices[0].counters == {}


def _scan_as(uid: int, root: str, answers: multiprocessing.Queue[CacheReport]) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    answers.put(scan(root))


class TestAnotherUser:
    """Scans of a root that is another user's, by a process that is that user for the kernel."""

    @pytest.fixture
    def theirs(self, everyones: Path, as_root: None) -> Root:
        root = Root(everyones / "root")
        root.kernel(key(1), "triton/0", "triton/1")
        root.kernel(key(2), "triton/0")
        stock(root / "triton/0", key(3))
        for path in [root.path, *root.path.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(root.own("tmp"))
        return root

    def scan(self, root: Root) -> CacheReport:
        answers = SPAWN.Queue()
        process = SPAWN.Process(target=_scan_as, args=(ADA, str(root), answers))
        process.start()
        found = answers.get(timeout=PATIENCE_S)
        process.join(PATIENCE_S)
        assert process.exitcode == 0
        return found

    def test_sees_what_may_be_read(self, theirs):
        assert self.scan(theirs) == theirs.scan()

    @pytest.mark.parametrize("mode", [0o000, 0o744], ids=["closed", "not-to-be-entered"])
    @pytest.mark.parametrize(
        ("closed", "left"),
        [
            (".", {}),
            ("triton", {key(1): 1, key(2): 1}),
            ("triton/0", {key(1): 2, key(2): 1}),
            (f"triton/0/{key(3)}", {key(1): 3, key(2): 2}),
            ("gpucache", {key(1): 2, key(2): 1, key(3): 1}),
            ("gpucache/v1/store", {key(1): 2, key(2): 1, key(3): 1}),
            (f"gpucache/v1/store/{key(1)[:2]}", {key(1): 2, key(2): 2, key(3): 1}),
        ],
        ids=["root", "triton", "device", "key", "gpucache", "store", "shard"],
    )
    def test_is_told_what_may_not(self, theirs, closed, left, mode):
        (theirs.path / closed).chmod(mode)
        found = self.scan(theirs)
        assert {code for code, _ in codes(found)} == {"unreadable"}
        assert all(Path(one.subject).is_relative_to(theirs.path / closed) for one in found.findings)
        assert {one.fact for one in found.findings} == {"Permission denied"}
        assert found.strays == ()
        assert {entry.key: len(entry.copies) for entry in found.entries} == left

    @pytest.mark.parametrize("closed", [".", "triton", "gpucache", "gpucache/v1/store"])
    def test_is_told_what_may_be_entered_and_not_listed(self, theirs, closed):
        """What is known to be in it is seen all the same."""
        (theirs.path / closed).chmod(0o711)
        found = self.scan(theirs)
        assert codes(found) == [("unreadable", closed)]
        assert found.strays == ()
        assert found.entries

    def test_is_told_of_a_manifest_that_may_not_be_read(self, theirs):
        (theirs / "triton/0" / key(2) / MANIFEST).chmod(0o600)
        found = self.scan(theirs)
        stored = f"gpucache/v1/store/{key(2)[:2]}/{key(2)}"
        assert codes(found) == [("unreadable", stored), ("unreadable", f"triton/0/{key(2)}")]
        assert by_key(found).keys() == {key(1), key(3)}


# ---- beside others


class TestRaces:
    """What vanishes while it is looked at is left out, and nothing is told of it."""

    @pytest.fixture
    def before_reading(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[Callable[[str], object]], None]:
        """Do something to a directory whose manifest is about to be read."""

        def put(act: Callable[[str], object]) -> None:
            def acted(directory: str, *more: str) -> object:
                act(directory)
                return read_manifest(directory, *more)

            monkeypatch.setattr(key_directories, "read_manifest", acted)

        return put

    @pytest.fixture
    def after_listing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[str, Callable[[str, Contents], object]], None]:
        """Do something to a directory of this name that was listed just now."""

        def put(name: str, act: Callable[[str, Contents], object]) -> None:
            def acted(self: Inodes, path: str, *more: object) -> Contents:
                found = contents(self, path, *more)
                if os.path.basename(path) == name:
                    act(path, found)
                return found

            contents = Inodes.contents
            monkeypatch.setattr(Inodes, "contents", acted)

        return put

    @pytest.mark.parametrize(
        "act",
        [shutil.rmtree, lambda path: os.rename(f"{path}/{MANIFEST}", f"{path}/{CONDEMNED}")],
        ids=["removed", "condemned"],
    )
    def test_an_entry_whose_manifest_goes_before_it_is_read(self, root, before_reading, act):
        root.kernel(key(1))
        before_reading(act)
        found = root.scan()
        assert (found.entries, found.findings) == ((), ())

    def test_an_entry_whose_manifest_is_renamed_while_it_is_listed(self, root, after_listing):
        """The listing may then have neither name."""
        root.kernel(key(1))

        def rename(path: str, found: Contents) -> None:
            os.rename(f"{path}/{MANIFEST}", f"{path}/{CONDEMNED}")
            del found.files[MANIFEST]

        after_listing(key(1), rename)
        found = root.scan()
        assert (found.entries, found.findings) == ((), ())

    def test_a_stock_entry_that_goes_after_it_was_listed(self, root, after_listing):
        stock(root / "triton/0", key(1))
        kept = stock(root / "triton/0", key(2))
        after_listing(key(1), lambda path, found: shutil.rmtree(path))
        found = root.scan()
        assert [copy.path for copy in only(found).copies] == [str(kept)]
        assert (found.strays, found.findings) == ((), ())

    def test_directories_that_go_once_they_are_known(self, root, monkeypatch):
        root.kernel(key(1), "triton/0")
        devices = cache_report.device_directories(str(root))
        monkeypatch.setattr(
            cache_report, "device_directories", lambda root: (shutil.rmtree(root), devices)[1]
        )
        found = root.scan()
        assert (found.entries, found.findings) == ((), ())
        assert [one.name for one in found.devices] == ["0"]


def _write(root: str, number: int, over: Event) -> None:
    """Publish entries, and let go of them by every way that there is."""
    draw, here = random.Random(number), Root(Path(root))
    locks = paths.ours(root, "locks")
    os.makedirs(locks, exist_ok=True)
    while not over.is_set():
        name = key(f"{number}-{draw.randrange(30)}")
        try:
            if draw.random() < 0.5:
                here.kernel(name, "triton/0", "triton/1")
            else:
                found = os.lstat(f"{entry_path(root, name)}/{MANIFEST}")
                mark = found.st_ino, found.st_mtime_ns
                places = (
                    entry_path(root, name),
                    f"{root}/triton/0/{name}",
                    f"{root}/triton/1/{name}",
                )
                remove(name, [Target(path, mark, ours=True) for path in places], locks)
        except (FileNotFoundError, InUse):
            continue


def test_a_scan_beside_writers_and_removers_never_raises_and_has_nothing_to_tell(tmp_path):
    root = Root(tmp_path / "root")
    root.kernel(key("kept"), "triton/0", "triton/1")
    over = SPAWN.Event()
    writers = [SPAWN.Process(target=_write, args=(str(root), number, over)) for number in range(3)]
    for writer in writers:
        writer.start()
    sizes = set()
    try:
        until = time.monotonic() + PATIENCE_S
        while len(sizes) < 20 and time.monotonic() < until:
            found = root.scan()
            assert found.findings == ()
            assert len(by_key(found)[key("kept")].copies) == 3
            sizes.add((len(found.entries), found.usage[0].physical_bytes))
    finally:
        over.set()
        for writer in writers:
            writer.join(PATIENCE_S)
    assert [writer.exitcode for writer in writers] == [0] * 3
    assert len(sizes) == 20, "nobody wrote"
    assert adds_up(root.scan())


def test_a_directory_that_is_only_named_like_a_key_is_no_entry(tmp_path):
    """A user's own files below such a name belong to nobody's prune."""
    for name, files in (
        ("A" * 52, ("notes.txt",)),
        ("b" * 64, ("main.py", "data.json")),
        ("C" * 52, ("k.cubin",)),
    ):
        (tmp_path / "triton/0" / name).mkdir(parents=True)
        for file in files:
            (tmp_path / "triton/0" / name / file).write_text("x")
    (tmp_path / "triton/0" / ("D" * 52) / "src").mkdir(parents=True)
    (tmp_path / "triton/0" / ("D" * 52) / "k.json").write_text("{}")
    report = scan(str(tmp_path))
    assert [entry.key for entry in report.entries] == ["C" * 52]
    assert sum(part.files for part in report.usage) == 5


@pytest.mark.parametrize("name", ["experiment-2024-11-05_adamw_lr3e-4_seed1234", "a" * 64])
def test_a_directory_of_json_alone_is_no_entry(tmp_path, name):
    """A user's results may be named so."""
    (tmp_path / name).mkdir()
    for file in ("metrics.json", "config.json"):
        (tmp_path / name / file).write_text("{}")
    assert scan(str(tmp_path)).entries == ()
