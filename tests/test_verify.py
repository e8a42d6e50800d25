"""What `verify` finds and mends, on caches that the real Triton filled: through the plug-in, and by itself.

`GPUCACHE_TEST_TRITON` names another Python, with another Triton, as for test_triton.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.every_call import SCRIPT
from support.gpus import record_device
from support.ranks import PLUGIN, python_with_triton
from support.templates import Template
from support.trees import OLD, Tree, set_used, used
from support.users import ADA, BOB, acting_as

from gpucache.disk.within import Straight
from gpucache.layout.keys import ASIDE
from gpucache.report import judge
from gpucache.store.key_lock import holding
from gpucache.store.lookup import sound
from gpucache.store.manifest import (
    CONDEMNED,
    MANIFEST,
    RECIPE,
    digest_of,
    entry_path,
    intact,
    read_manifest,
)
from gpucache.store.recipe_file import read_recipe
from gpucache.store.stock import stock_group
from gpucache.triton.manager import DeviceCacheManager
from gpucache.upkeep import repair
from gpucache.upkeep import verify as verify_module
from gpucache.upkeep.verify import CODES, Verification, verify

AUTOTUNE_KEY = "A" * 52
AUTOTUNE = "scaled.autotune.json"
LIBRARY_KEY = "L" * 52
LIBRARY = f"cuda_utils{sysconfig.get_config_var('EXT_SUFFIX')}"
MODULE = min(Path(sysconfig.get_config_var("DESTSHARED")).glob("*.so"))
"""A real shared library, to stand for Triton's."""
TIMINGS = json.dumps({"key": [1], "configs_timings": []})
GROUP = "__grp__scaled.json"
LONG_AGO = 1.5e9  # before any boot of this machine, and long since not busy

COMPILING = """if True:
    import hashlib, json, os, sys
    import kernels, triton
    from triton.backends.compiler import GPUTarget
    compiled = kernels.count_compiles()
    said = []
    for root, directory, manager in json.loads(sys.stdin.read()):
        os.environ.update(GPUCACHE_DIR=root, TRITON_CACHE_DIR=directory, TRITON_CACHE_MANAGER=manager)
        if not manager:
            del os.environ["TRITON_CACHE_MANAGER"]
        before = len(compiled)
        try:
            kernel = triton.compile(kernels.source(0), target=GPUTarget("cuda", 90, 32))
        except Exception as error:
            said.append([type(error).__name__, "", []])
            continue
        binary = hashlib.sha256(kernel.asm["cubin"]).hexdigest()
        said.append([len(compiled) - before, binary, list(getattr(kernel, "metadata_group", {}).values())])
    print(json.dumps(said))
"""


def compiled(*places: tuple[Path, str, bool]) -> list[tuple[Any, str, list[str]]]:
    """In one new process, for each root, directory and whether with the plug-in: compiles, digest, paths."""
    asked = [
        [str(root), str(root / name), PLUGIN["TRITON_CACHE_MANAGER"] if ours else ""]
        for root, name, ours in places
    ]
    said = python_with_triton(COMPILING, text=json.dumps(asked))
    return [tuple(one) for one in json.loads(said.splitlines()[-1])]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, triton: None) -> Template:
    """A kernel in two views, a library in two, an autotune result, all shared; a record."""
    root = tmp_path_factory.mktemp("ours") / "root"
    record_device(root, (9, 0), 16896)
    (_, digest, _), (again, _, _) = compiled((root, "triton/0", True), (root, "triton/1", True))
    assert again == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpucache.triton.manager._locations", {})
        patch.setenv("GPUCACHE_DIR", str(root))
        patch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
        DeviceCacheManager(AUTOTUNE_KEY).put(TIMINGS, AUTOTUNE, binary=False)
        DeviceCacheManager(LIBRARY_KEY).put(MODULE.read_bytes(), LIBRARY)
        patch.setenv("TRITON_CACHE_DIR", str(root / "triton/1"))
        assert DeviceCacheManager(LIBRARY_KEY).get_file(LIBRARY) == str(
            root / "triton/1" / LIBRARY_KEY / LIBRARY
        )
    return Template(root, {"0-90": digest})


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, triton: None) -> Template:
    """The same of stock Triton's, old enough that nobody can be at it."""
    root = tmp_path_factory.mktemp("stock") / "root"
    ((_, digest, _),) = compiled((root, "triton/0", False))
    for key, name, content in (
        (AUTOTUNE_KEY, AUTOTUNE, TIMINGS.encode()),
        (LIBRARY_KEY, LIBRARY, MODULE.read_bytes()),
    ):
        (root / "triton/0" / key).mkdir()
        (root / "triton/0" / key / name).write_bytes(content)
    for path in root.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return Template(root, {"0-90": digest})


def only(root: Path, pattern: str) -> Path:
    (path,) = root.glob(pattern)
    return path


def kernel_key(root: Path) -> str:
    return only(root, "triton/0/*/scaled.cubin").parent.name


def codes(found: Verification) -> set[str]:
    return {one.finding.code for one in found.findings}


def snapshot(root: Path) -> dict[str, tuple[int, ...]]:
    """Everything that could tell of a write, and of each file when it was read last."""
    found = {}
    for path in (root, *root.rglob("*")):
        s = path.lstat()
        read = s.st_atime_ns if stat.S_ISREG(s.st_mode) else 0
        found[str(path)] = (
            s.st_ino,
            s.st_mode,
            s.st_nlink,
            s.st_size,
            s.st_mtime_ns,
            s.st_ctime_ns,
            read,
        )
    return found


def never_read(root: Path) -> None:
    """So that any reader would renew the access time, whatever the mount says but noatime."""
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(10**9, path.stat().st_mtime_ns))


# ---- a cache in order


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("kind", ["ours", "stock"])
@pytest.mark.parametrize("repair", [False, True])
def test_a_healthy_cache_gives_no_finding_and_is_only_looked_at(kind, repair, request, tmp_path):
    """No stamp of a use, no access time, no lock."""
    root = request.getfixturevalue(kind).at(tmp_path / "root")
    never_read(root)
    before = snapshot(root)
    found = verify(str(root), repair)
    assert found.findings == ()
    assert found.entries == len({path.name for path in root.glob("triton/0/*")} | {AUTOTUNE_KEY})
    assert found.files >= 8
    assert snapshot(root) == before


def test_what_the_plug_in_adopted_from_stock_triton_is_in_order(stock, tmp_path):
    root = stock.at(tmp_path / "root")
    assert compiled((root, "triton/0", True), (root, "triton/1", True))[1][0] == 0
    assert len(list(root.glob(f"triton/*/*/{MANIFEST}"))) == 2
    assert verify(str(root)).findings == ()


def test_a_root_that_is_not_there_is_empty(tmp_path):
    assert verify(str(tmp_path / "none")).as_json() == {
        "root": str(tmp_path / "none"), "entries": 0, "files": 0, "findings": []
    }  # fmt: skip


def test_a_root_by_another_name_is_in_order(ours, tmp_path):
    """The groups name what the processes were told; a link above the root leads there."""
    (tmp_path / "real").mkdir()
    (tmp_path / "name").symlink_to("real")
    root = ours.at(tmp_path / "name" / "root")
    assert f"{tmp_path}/name/root/" in only(root, f"triton/0/*/{GROUP}").read_text()
    assert verify(str(root)).findings == ()
    assert verify(str(tmp_path / "real" / "root")).findings == ()


@pytest.mark.parametrize("path", ["cache", "./cache", "../elsewhere/cache"])
def test_a_group_with_relative_paths_is_in_order(path, stock, tmp_path):
    """`TRITON_CACHE_DIR` was relative; to what, nobody knows."""
    root = stock.at(tmp_path / "root")
    os.rename(root / "triton/0", root / "triton/cache")
    group = only(root, f"triton/cache/*/{GROUP}")
    group.write_text(group.read_text().replace(f"{root}/triton/0", path))
    assert codes(verify(str(root))) == (
        set() if path != "../elsewhere/cache" else {"group-elsewhere"}
    )


def test_what_a_killed_removal_left_is_no_finding(ours, tmp_path):
    root = ours.at(tmp_path / "root")
    for manifest in root.rglob(MANIFEST):
        manifest.rename(manifest.with_name(CONDEMNED))
    assert verify(str(root)).findings == ()


def test_a_removal_beside_it_is_no_finding(ours, tmp_path, monkeypatch):
    """The directory goes after it was listed and before its files are read."""
    root = ours.at(tmp_path / "root")
    real, gone = judge.listing, []

    def listed(path: str) -> Any:
        found = real(path)
        if path.endswith(f"store/{kernel[:2]}/{kernel}") and not gone:
            gone.append(path)
            os.rename(path, f"{path}.gone")
        return found

    kernel = kernel_key(root)
    monkeypatch.setattr(judge, "listing", listed)
    assert verify(str(root)).findings == ()
    assert gone


def test_an_entry_that_is_being_condemned_is_no_finding(ours, tmp_path, monkeypatch):
    root = ours.at(tmp_path / "root")
    real, gone = judge.read_stated, []

    def read(path: str) -> Any:
        if not gone:
            gone.append(path)
            os.rename(path, os.path.join(os.path.dirname(path), CONDEMNED))
        return real(path)

    monkeypatch.setattr(judge, "read_stated", read)
    assert verify(str(root), repair=True).findings == ()
    assert gone


def test_progress_reaches_the_total(ours):
    seen: list[tuple[int, int]] = []
    verify(str(ours.root), progress=lambda done, total: seen.append((done, total)))
    assert (
        seen[-1][0]
        == seen[-1][1]
        == len(list(ours.root.glob("triton/*/*")))
        + len(list(ours.root.glob("gpucache/v1/store/*/*")))
    )
    assert seen == sorted(seen)


# ---- every file, damaged in every way

Damage = Callable[[Path], object]


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - min(100, path.stat().st_size // 2))


def flipped(path: Path) -> None:
    """One bit, in place, as bad memory does it: size and time stay."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def removed(path: Path) -> None:
    path.unlink()


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link(path: Path) -> None:
    """To the file itself, so that whoever follows it finds nothing wrong."""
    outside = path.parents[3] / f"outside-{path.name}"
    shutil.copy2(path, outside)
    path.unlink()
    path.symlink_to(outside)


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


IN_PLACE = (emptied, cut, flipped)
REPLACED = (removed, a_directory, a_link, a_fifo)


@dataclass(frozen=True)
class Case:
    """A judge, what is found of it, and how often the next process compiles the kernel after the repair."""

    kind: str
    pattern: str
    damage: Callable[[Path], None]
    codes: frozenset[str]
    compiles: int

    @property
    def id(self) -> str:
        return f"{self.kind}-{self.pattern.rpartition('/')[2]}-{self.pattern.partition('/')[0]}-{self.damage.__name__}"


def ours_cases() -> Iterator[Case]:
    contents = ("scaled.cubin", "scaled.json", "scaled.ptx")
    for name in (*contents, LIBRARY, AUTOTUNE):
        place = "gpucache/v1/store/*/*" if name == AUTOTUNE else "triton/0/*"
        for how in IN_PLACE:
            yield Case(
                "ours", f"{place}/{name}", how, frozenset({"digest-mismatch"}), name in contents
            )
        for how in REPLACED:
            yield Case("ours", f"{place}/{name}", how, frozenset({"file-missing"}), 0)
    for name in (*contents, MANIFEST):
        missing = "manifest-missing" if name == MANIFEST else "file-missing"
        for how in REPLACED:
            yield Case(
                "ours", f"gpucache/v1/store/*/{{kernel}}/{name}", how, frozenset({missing}), 0
            )
    for how in (emptied, cut):
        yield Case("ours", f"triton/0/{{kernel}}/{MANIFEST}", how, frozenset({"manifest-torn"}), 1)
    for how in REPLACED:
        yield Case(
            "ours", f"triton/0/{{kernel}}/{MANIFEST}", how, frozenset({"manifest-missing"}), 0
        )
    for how in (emptied, cut, *REPLACED):
        yield Case("ours", f"triton/0/*/{GROUP}", how, frozenset({"group-torn"}), 0)


def stock_cases() -> Iterator[Case]:
    for how in (emptied, cut):
        yield Case("stock", "triton/0/*/scaled.cubin", how, frozenset({"binary-cut"}), 1)
        yield Case("stock", "triton/0/*/scaled.json", how, frozenset({"metadata-torn"}), 1)
        yield Case("stock", f"triton/0/*/{GROUP}", how, frozenset({"group-torn"}), 1)
        yield Case("stock", f"triton/0/*/{AUTOTUNE}", how, frozenset({"autotune-torn"}), 0)
        yield Case("stock", f"triton/0/*/{LIBRARY}", how, frozenset({"binary-cut"}), 0)
    yield Case("stock", "triton/0/*/scaled.ptx", emptied, frozenset({"binary-cut"}), 1)
    for how in (removed, a_directory, a_fifo):
        for name in ("scaled.cubin", "scaled.json", "scaled.ptx"):
            yield Case("stock", f"triton/0/*/{name}", how, frozenset({"group-dangling"}), 1)
    for how in (a_directory, a_fifo):
        yield Case("stock", f"triton/0/*/{GROUP}", how, frozenset({"group-torn"}), 1)
        yield Case("stock", f"triton/0/*/{LIBRARY}", how, frozenset({"file-missing"}), 0)
        yield Case("stock", f"triton/0/*/{AUTOTUNE}", how, frozenset({"file-missing"}), 0)


CASES = [*ours_cases(), *stock_cases()]


@dataclass(frozen=True)
class Mended:
    seen: Verification
    repaired: Verification
    again: Verification
    compiles: object
    digest: str
    paths: list[str]
    root: Path
    changed: bool
    """Whether looking changed anything."""


@pytest.fixture(scope="module")
def mended(
    ours: Template, stock: Template, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Mended]]:
    """Each damage on a cache of its own, looked at, repaired, and then used by one new process."""
    base = tmp_path_factory.mktemp("cases")
    found, roots = {}, []
    for number, case in enumerate(CASES):
        root = (ours if case.kind == "ours" else stock).at(base / str(number))
        case.damage(only(root, case.pattern.format(kernel=kernel_key(root))))
        for path in root.glob("triton/0/*"):
            if case.kind == "stock":  # long ago, or it may be being written
                [
                    os.utime(one, (LONG_AGO, LONG_AGO), follow_symlinks=False)
                    for one in (path, *path.iterdir())
                ]
        before = snapshot(root)
        seen = verify(str(root))
        found[case.id] = (
            seen,
            snapshot(root) != before,
            verify(str(root), repair=True),
            verify(str(root)),
        )
        roots.append(root)
    said = compiled(
        *((root, "triton/0", case.kind == "ours") for root, case in zip(roots, CASES, strict=True))
    )
    yield {
        case.id: Mended(seen, repaired, again, *one, root, changed)
        for case, one, root, (seen, changed, repaired, again) in zip(
            CASES, said, roots, found.values(), strict=True
        )
    }
    shutil.rmtree(base)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_damage_is_found_and_repaired_and_costs_a_compile_of_what_was_damaged_at_most(
    case, mended, ours
):
    one = mended[case.id]
    assert codes(one.seen) == case.codes
    assert not one.changed, "without repair nothing is written"
    assert not any(found.repaired or found.note for found in one.seen.findings)
    assert [found.finding for found in one.repaired.findings] == [
        found.finding for found in one.seen.findings
    ]
    assert one.repaired.unrepaired == ()
    assert all(found.note for found in one.repaired.findings)
    assert one.again.findings == ()
    assert one.compiles == int(case.compiles)
    assert one.digest == ours.digest, "the bytes are right"
    assert not list(one.root.rglob(f"{ASIDE}*")), "nothing half made is left"
    assert all(path.startswith(str(one.root)) for path in one.paths)


def test_the_quarantine_has_what_was_damaged(mended):
    one = mended["stock-scaled.cubin-triton-cut"]
    (kept,) = (one.root / "gpucache/v1/quarantine").iterdir()
    assert (kept / "scaled.cubin").stat().st_size > 0


# ---- moved and copied


def moved(source: Path, target: Path) -> None:
    os.rename(source, target)


def copied(*options: str) -> Callable[[Path, Path], None]:
    def copy(source: Path, target: Path) -> None:
        subprocess.run(["cp", *options, source, target], check=True)

    return copy


RELOCATIONS = {"mv": moved, "cp -a": copied("-a"), "cp -r": copied("-r"), "cp -al": copied("-al")}


@pytest.mark.parametrize("how", RELOCATIONS.values(), ids=RELOCATIONS)
def test_a_stock_directory_that_was_moved_or_copied_is_hit_again_and_leaves_the_original_alone(
    how, stock, tmp_path
):
    root = stock.at(tmp_path / "root")
    how(root / "triton/0", root / "triton/7")
    others = contents(root / "triton/0")
    seen = verify(str(root))
    assert [(one.finding.code, one.finding.subject) for one in seen.findings] == [
        ("group-elsewhere", str(only(root, f"triton/7/*/{GROUP}")))
    ]
    assert f"it names files in {root}/triton/0/" in seen.findings[0].finding.fact
    assert verify(str(root), repair=True).unrepaired == ()
    assert contents(root / "triton/0") == others
    shutil.rmtree(root / "triton/0", ignore_errors=True)
    ((compiles, digest, used),) = compiled((root, "triton/7", False))
    assert (compiles, digest) == (0, stock.digest)
    assert {os.path.dirname(path) for path in used} <= {
        str(root / "triton/7" / kernel_key_of(root, 7))
    }
    assert verify(str(root)).findings == ()


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def kernel_key_of(root: Path, name: object) -> str:
    return only(root, f"triton/{name}/*/scaled.cubin").parent.name


def test_a_moved_default_directory_of_tritons_is_mended(stock, tmp_path):
    """Keys directly below the root, as in ``~/.triton/cache``, of which nothing is ours."""
    os.rename(stock.at(tmp_path / "made") / "triton/0", tmp_path / "cache")
    assert codes(verify(str(tmp_path / "cache"))) == {"group-elsewhere"}
    before = set(os.listdir(tmp_path / "cache"))
    assert verify(str(tmp_path / "cache"), repair=True).unrepaired == ()
    assert set(os.listdir(tmp_path / "cache")) == before
    assert compiled((tmp_path / "cache", ".", False))[0][:2] == (0, stock.digest)


@pytest.mark.parametrize("how", RELOCATIONS.values(), ids=RELOCATIONS)
def test_a_root_of_ours_that_was_moved_or_copied_is_whole_again(how, ours, tmp_path):
    """With the hard links, where they were lost; no key is compiled, not even by stock Triton."""
    how(ours.at(tmp_path / "root"), tmp_path / "there")
    shutil.rmtree(tmp_path / "root", ignore_errors=True)
    root = tmp_path / "there"
    used = {path.name: entry_used(path) for path in root.glob("gpucache/v1/store/*/*")}
    expected = {"group-elsewhere"} | (
        {"view-apart", "times-changed"} if how is RELOCATIONS["cp -r"] else set()
    )
    assert codes(verify(str(root))) == expected
    assert verify(str(root), repair=True).unrepaired == ()
    assert verify(str(root)).findings == ()
    assert {path.name: entry_used(path) for path in root.glob("gpucache/v1/store/*/*")} == used, (
        "no use was stamped"
    )
    assert len({path.stat().st_ino for path in root.rglob("scaled.cubin")}) == 1
    said = compiled((root, "triton/0", False), (root, "triton/1", True), (root, "triton/2", True))
    assert [one[:2] for one in said] == [(0, ours.digest)] * 3
    assert all(path.startswith(f"{root}/") for one in said for path in one[2])


def entry_used(entry: Path) -> int:
    return (entry / MANIFEST).stat().st_mtime_ns


def test_a_view_that_was_copied_by_itself_is_linked_again_and_no_reader_misses_a_file(
    ours, tmp_path, monkeypatch
):
    """File by file under the same names, so that a reader with the paths finds each at any time."""
    root = ours.at(tmp_path / "root")
    view = root / "triton/1" / kernel_key(root)
    apart(view)
    rename, names = os.rename, set(os.listdir(view))

    def looking(source: str, target: str) -> None:
        rename(source, target)
        assert set(os.listdir(view)) == names

    seen = verify(str(root))
    assert [
        (one.finding.code, one.finding.level, one.finding.subject) for one in seen.findings
    ] == [("view-apart", "warning", str(view))]
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", looking)
        assert verify(str(root), repair=True).unrepaired == ()
    entry = Path(entry_path(str(root), view.name))
    stored = {path.name: path.stat().st_ino for path in entry.iterdir()}
    del stored[RECIPE]  # the store's alone
    assert stored.items() <= {path.name: path.stat().st_ino for path in view.iterdir()}.items()
    assert not (root / "gpucache/v1/quarantine").exists()


def apart(view: Path) -> None:
    """Copies instead of hard links."""
    subprocess.run(["cp", "-a", view, f"{view}.copy"], check=True)
    shutil.rmtree(view)
    os.rename(f"{view}.copy", view)


def test_a_view_with_files_of_another_compile_is_its_own(ours, tmp_path):
    """The same key does not mean the same bytes, and a reader must not get half of each."""
    root = ours.at(tmp_path / "root")
    view = root / "triton/1" / kernel_key(root)
    apart(view)
    changed(view / "scaled.ptx")
    assert verify(str(root)).findings == ()


def changed(path: Path) -> None:
    """Another content, properly published."""
    path.write_bytes(b"// of another compile\n" + path.read_bytes())
    said = json.loads((path.parent / MANIFEST).read_bytes())
    found = path.stat()
    said["files"][path.name] = [
        found.st_size,
        found.st_mtime_ns,
        hashlib.sha256(path.read_bytes()).hexdigest(),
    ]
    (path.parent / MANIFEST).write_text(json.dumps(said))


@pytest.mark.root
def test_a_view_on_another_file_system_is_in_order_and_is_mended_there(ours, tmp_path, mount):
    root = ours.at(tmp_path / "root")
    shutil.rmtree(root / "triton/1")
    mount(root / "triton/1", "-t", "tmpfs", "-o", "mode=0700", "none")
    assert compiled((root, "triton/1", True))[0][0] == 0
    assert verify(str(root)).findings == ()
    key = kernel_key(root)
    os.utime(root / "triton/1" / key / "scaled.ptx", (LONG_AGO, LONG_AGO))
    assert [(one.finding.code, one.repaired) for one in verify(str(root), True).findings] == [
        ("times-changed", True)
    ]
    cut(root / "triton/1" / key / "scaled.cubin")
    assert [(one.finding.code, one.repaired) for one in verify(str(root), True).findings] == [
        ("digest-mismatch", True)
    ]
    assert compiled((root, "triton/1", True))[0][:2] == (0, ours.digest)
    assert verify(str(root)).findings == ()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK])
def test_copies_where_no_hard_link_can_be_made_are_a_flaw_until_a_repair_has_tried(
    number, ours, tmp_path, monkeypatch
):
    """Although the type of the file system promises links; what was found is kept for the next process."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    root = ours.at(tmp_path / "root")
    apart(root / "triton/1" / kernel_key(root))
    assert codes(verify(str(root))) == {"view-apart"}
    monkeypatch.setattr(os, "link", refused)
    assert verify(str(root), repair=True).findings == ()
    assert verify(str(root)).findings == ()


def test_where_no_hard_link_can_be_made_an_entry_is_made_again_of_a_copy(
    ours, tmp_path, monkeypatch
):
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    root = ours.at(tmp_path / "root")
    apart(root / "triton/1" / kernel_key(root))
    cut(Path(entry_path(str(root), kernel_key(root))) / "scaled.cubin")
    monkeypatch.setattr(os, "link", refused)
    assert verify(str(root), repair=True).unrepaired == ()
    assert verify(str(root)).findings == ()
    monkeypatch.undo()
    assert compiled((root, "triton/1", True))[0][:2] == (0, ours.digest)


@pytest.mark.root
def test_copies_in_a_directory_that_is_mounted_for_itself_are_in_order(ours, tmp_path, mount):
    """Although the device is the store's: between two mounts nothing can be linked."""
    root = ours.at(tmp_path / "root")
    view = root / "triton/1" / kernel_key(root)
    apart(view)
    mount(view.parent, "--bind", str(view.parent))
    assert view.stat().st_dev == root.stat().st_dev
    assert verify(str(root)).findings == ()


def test_a_view_that_the_store_does_not_have_is_mended_by_itself(ours, tmp_path):
    """As torch's bundler emits one."""
    root = ours.at(tmp_path / "root")
    shutil.rmtree(root / "gpucache")
    view = root / "triton/0" / kernel_key(root)
    os.utime(view / "scaled.ptx", (LONG_AGO, LONG_AGO))
    assert codes(verify(str(root))) == {"times-changed"}
    assert verify(str(root), repair=True).unrepaired == ()
    assert codes(verify(str(root))) == set()
    cut(view / "scaled.cubin")
    assert verify(str(root), repair=True).unrepaired == ()
    assert not view.exists()
    assert verify(str(root)).findings == ()


def test_a_damaged_entry_is_quarantined_with_its_views(ours, tmp_path):
    root = ours.at(tmp_path / "root")
    key = kernel_key(root)
    flipped(root / "triton/0" / key / "scaled.cubin")
    seen = verify(str(root), repair=True)
    assert {one.finding.subject for one in seen.findings} == {
        f"{where}/{key}/scaled.cubin"
        for where in (f"{root}/gpucache/v1/store/{key[:2]}", f"{root}/triton/0", f"{root}/triton/1")
    }
    assert {one.note for one in seen.findings} == {"moved to the quarantine"}
    kept = [path.name.partition(".")[0] for path in (root / "gpucache/v1/quarantine").iterdir()]
    assert kept == [key] * 3
    assert not list(root.glob("triton/*/*/scaled.cubin"))


def test_what_one_view_still_has_is_stored_again(ours, tmp_path):
    root = ours.at(tmp_path / "root")
    key = kernel_key(root)
    apart(root / "triton/1" / key)
    flipped(root / "triton/0" / key / "scaled.cubin")
    assert verify(str(root), repair=True).unrepaired == ()
    assert len({path.stat().st_ino for path in root.glob("triton/*/*/scaled.cubin")}) == 1
    assert [one[:2] for one in compiled((root, "triton/0", True), (root, "triton/2", True))] == [
        (0, ours.digest)
    ] * 2
    assert verify(str(root)).findings == ()


# ---- everything else that has a code


def test_a_torn_record_is_left_to_provision(ours, tmp_path, gpucache):
    root = ours.at(tmp_path / "root")
    record = only(root, "gpucache/v1/devices/*.json")
    cut(record)
    (one,) = verify(str(root), repair=True).findings
    assert (one.finding.code, one.finding.subject, one.repaired) == (
        "record-torn",
        str(record),
        False,
    )
    assert one.finding.fix == "gpucache provision"
    record.write_text(
        json.dumps(
            {**json.loads(only(ours.root, "gpucache/v1/devices/*.json").read_text()), "host": "b"}
        )
    )
    assert verify(str(root)).findings[0].finding.fact == "it is the record of host b"
    record.unlink()
    assert verify(str(root)).findings == ()


@pytest.mark.parametrize("place", ["gpucache/v1/store/{shard}", "triton/0"])
def test_a_file_in_the_place_of_a_directory_is_quarantined(place, ours, tmp_path):
    root = ours.at(tmp_path / "root")
    key = kernel_key(root)
    path = root / place.format(shard=key[:2]) / key
    shutil.rmtree(path)
    path.write_text("mine")
    (one,) = verify(str(root), repair=True).findings
    assert (one.finding.code, one.repaired) == ("not-a-directory", True)
    assert only(root, f"gpucache/v1/quarantine/{key}.*").read_text() == "mine"
    assert compiled((root, "triton/0", True))[0][:2] == (0, ours.digest)


HOSTILE = {
    "a path": {"../../outside": [4, 5, "6"]},
    "an absolute path": {"/etc/passwd": [4, 5, "6"]},
    "no list": {"scaled.ptx": 7},
    "no numbers": {"scaled.ptx": ["a", None, 7]},
    "a null byte": {"\0": [4, 5, "6"]},
    "half a character": {"\ud800": [4, 5, "6"]},
}


@pytest.mark.parametrize("files", HOSTILE.values(), ids=HOSTILE)
def test_a_manifest_that_leads_elsewhere_leads_nowhere(files, ours, tmp_path):
    root = ours.at(tmp_path / "root")
    manifest = root / "triton/0" / kernel_key(root) / MANIFEST
    manifest.write_text(
        json.dumps({**json.loads(manifest.read_bytes()), "group": None, "files": files})
    )
    assert codes(verify(str(root))) <= {"manifest-torn", "file-missing"}
    assert verify(str(root), repair=True).unrepaired == ()
    assert compiled((root, "triton/0", True))[0][1] == ours.digest


@pytest.mark.parametrize(
    "text", [b"null", b"[]", b"7", b"\xff\xfe", b"{}", b"[" * 100_000, b"{}}", b'{"files":{}}']
)
def test_json_that_is_none_of_ours_is_torn(text, ours, stock, tmp_path):
    root, other = ours.at(tmp_path / "ours"), stock.at(tmp_path / "stock")
    (root / "triton/0" / kernel_key(root) / MANIFEST).write_bytes(text)
    assert codes(verify(str(root))) == {"manifest-torn"}
    for pattern, code in (
        (GROUP, "group-torn"),
        (AUTOTUNE, "autotune-torn"),
        ("scaled.json", "metadata-torn"),
    ):
        path = only(other, f"triton/0/*/{pattern}")
        before = path.read_bytes()
        path.write_bytes(text)
        assert codes(verify(str(other))) == {code}
        path.write_bytes(before)


@pytest.mark.parametrize("child", ["/nowhere/scaled.cubin", "/\0", "", "\ud800", "/etc/passwd"])
def test_a_path_in_a_group_is_asked_only_where_it_leads(child, stock, tmp_path):
    root = stock.at(tmp_path / "root")
    group = only(root, f"triton/0/*/{GROUP}")
    said = json.loads(group.read_bytes())
    said["child_paths"]["scaled.cubin"] = child
    group.write_text(json.dumps(said))
    assert codes(verify(str(root), repair=True)) == {"group-elsewhere"}
    assert compiled((root, "triton/0", False))[0][:2] == (0, stock.digest)


def plant_links(root: Path, outside: Path) -> list[str]:
    """Links to outside, everywhere a link can be; the paths of those inside."""
    key = kernel_key(root)
    shutil.copytree(root / "triton/0" / key, outside / key)
    (outside / key / "scaled.cubin").write_bytes(b"")
    links = {
        root / "triton/8": outside,
        root / "triton/0" / ("B" * 52): outside / key,
        root / "triton/0" / key / "planted": outside / key / "scaled.cubin",
        root / "gpucache/v1/store" / "BB": outside,
        root / "gpucache/v1/store" / key[:2] / ("B" * 52): outside / key,
        root / "gpucache/v1/store" / key[:2] / key / "planted": outside / key,
        root / "gpucache/v1/devices" / "elsewhere.json": outside / key / "scaled.json",
    }
    for path, target in links.items():
        path.symlink_to(target)
    return sorted(map(str, links))


def test_links_are_told_and_neither_followed_nor_removed(ours, tmp_path):
    root, outside = ours.at(tmp_path / "root"), tmp_path / "outside"
    links = plant_links(root, outside)
    never_read(outside)
    before = snapshot(outside)
    for repaired in (False, True):
        found = verify(str(root), repaired)
        assert codes(found) == {"link"}
        assert sorted(one.finding.subject for one in found.findings) == links
        assert len(found.unrepaired) == len(links)
    assert snapshot(outside) == before


@pytest.mark.parametrize(
    "part", ["triton", "gpucache", "gpucache/v1", "gpucache/v1/store", "gpucache/v1/devices"]
)
def test_a_part_of_the_root_that_is_a_link_is_told_and_not_entered(part, ours, tmp_path):
    root, outside = ours.at(tmp_path / "root"), tmp_path / "outside"
    os.rename(root / part, outside)
    (root / part).symlink_to(outside)
    [cut(path) for path in outside.rglob("scaled.ptx")]
    never_read(outside)
    before = snapshot(outside)
    told = verify(str(root), repair=True).findings
    assert ("link", str(root / part)) in [(one.finding.code, one.finding.subject) for one in told]
    assert not any(one.finding.subject.startswith(str(outside)) for one in told)
    assert snapshot(outside) == before


@pytest.mark.parametrize("part", ["gpucache/v1/quarantine", "gpucache/v1/locks", "the key's lock"])
def test_nothing_is_repaired_by_way_of_a_link(part, ours, tmp_path):
    root, outside = ours.at(tmp_path / "root"), tmp_path / "outside"
    key = kernel_key(root)
    outside.mkdir()
    (outside / "file").write_text("not ours")
    if part == "the key's lock":
        (root / f"gpucache/v1/locks/{key}.lock").symlink_to(outside / "file")
    else:
        shutil.rmtree(root / part, ignore_errors=True)
        (root / part).symlink_to(outside)
    cut(root / "triton/0" / key / "scaled.cubin")
    before = snapshot(outside)
    found = verify(str(root), repair=True)
    assert codes(found) - {"link"} == {"digest-mismatch"}
    assert found.unrepaired == found.findings
    assert snapshot(outside) == before
    assert (outside / "file").read_text() == "not ours"


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def replaced(path: Path) -> Path:
    """The file as one of its own, with the same content, owner and time, and no other name."""
    before = path.lstat()
    shutil.copy2(path, f"{path}.new")
    os.chown(f"{path}.new", before.st_uid, before.st_gid)
    os.replace(f"{path}.new", path)
    return path


def test_a_sparse_file_of_terabytes_is_not_hashed(ours, tmp_path):
    root = ours.at(tmp_path / "root")
    entry = Path(entry_path(str(root), kernel_key(root)))
    read = read_manifest(str(entry))
    assert read is not None
    with (entry / "scaled.cubin").open("r+b") as file:
        file.truncate(8 << 40)
    found = (entry / "scaled.cubin").stat()
    published = [found.st_size, found.st_mtime_ns, read[0].digests["scaled.cubin"]]
    forged = read[0]._replace(listed={**read[0].listed, "scaled.cubin": published})
    (entry / MANIFEST).write_bytes(forged.encoded())
    assert not intact(str(entry), forged)
    with pytest.raises(OSError, match="too large"):
        digest_of(str(entry / "scaled.cubin"))
    assert "unreadable" in codes(verify(str(root), repair=True))


class TestAnotherUser:
    @pytest.fixture
    def root(self, ours: Template, everyones: Path) -> Path:
        root = ours.at(everyones / "root")
        for path in (root, *root.rglob("*")):
            os.chown(path, ADA, ADA, follow_symlinks=False)
        return root

    def test_what_may_not_be_read_is_told_and_left_alone(self, root):
        key = kernel_key(root)
        entry = Path(entry_path(str(root), key))
        os.chown(entry / "scaled.cubin", BOB, BOB)
        (entry / "scaled.cubin").chmod(0o600)
        os.chown(root / "triton/1", BOB, BOB)
        before = snapshot(entry)
        with acting_as(ADA):
            found = verify(str(root), repair=True)
        assert {(one.finding.code, one.finding.subject) for one in found.findings} == {
            ("unreadable", f"{entry}/scaled.cubin"),
            ("unreadable", f"{root}/triton/0/{key}/scaled.cubin"),
            ("unreadable", f"{root}/triton/1"),
        }
        assert found.unrepaired == found.findings
        assert snapshot(entry) == before

    @pytest.mark.parametrize("damaged", ["view", "entry", "group", "times", "copy"])
    def test_what_root_repairs_stays_its_owners(self, damaged, root):
        key = kernel_key(root)
        entry, view = Path(entry_path(str(root), key)), root / "triton/0" / key
        if damaged == "view":
            cut(replaced(view / "scaled.cubin"))
        elif damaged == "entry":
            cut(replaced(entry / "scaled.cubin"))
        elif damaged == "group":
            (view / GROUP).write_text((view / GROUP).read_text().replace(str(root), "/else"))
        elif damaged == "times":
            os.utime(entry / "scaled.cubin", (LONG_AGO, LONG_AGO))
        else:
            for name in os.listdir(view):
                replaced(view / name)
        found = verify(str(root), repair=True)
        assert found.findings
        assert all(one.repaired for one in found.findings)
        others = [path for path in root.rglob("*") if path.lstat().st_uid != ADA]
        assert [path for path in others if "gpucache/v1/store" in str(path)] == []
        assert [path for path in others if "/triton/" in str(path)] == []
        with acting_as(ADA):
            assert verify(str(root)).findings == ()

    def test_a_view_is_made_again_where_it_was_whatever_is_put_on_the_way(
        self, root, tmp_path, monkeypatch
    ):
        view = root / "triton/0" / kernel_key(root)
        cut(replaced(view / "scaled.cubin"))
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        link_view = repair.link_view

        def swapped(*arguments, **named):
            view.parent.rename(root / "triton/moved")
            view.parent.symlink_to(elsewhere)
            return link_view(*arguments, **named)

        monkeypatch.setattr(repair, "link_view", swapped)
        verify(str(root), repair=True)
        assert os.listdir(elsewhere) == []
        assert (root / "triton/moved" / view.name / "scaled.cubin").exists()

    def test_what_may_only_be_read_is_judged_and_why_it_stays_is_told(self, root):
        key = kernel_key(root)
        cut(root / "triton/0" / key / "scaled.cubin")
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        before = [(path, path.lstat().st_ino, path.lstat().st_mtime_ns) for path in root.rglob("*")]
        with acting_as(BOB):
            found = verify(str(root), repair=True)
        assert codes(found) == {"digest-mismatch"}
        assert all("Permission denied" in one.note for one in found.unrepaired)
        assert found.unrepaired == found.findings
        assert [
            (path, path.lstat().st_ino, path.lstat().st_mtime_ns) for path in root.rglob("*")
        ] == before

    @pytest.mark.parametrize("part", ["", "gpucache/v1", "gpucache/v1/store", "triton", "triton/0"])
    def test_a_directory_that_may_not_be_listed_is_told(self, part, root):
        os.chown(root / part, 0, 0)
        (root / part).chmod(0o700)
        with acting_as(ADA):
            assert ("unreadable", str(root / part)) in [
                (one.finding.code, one.finding.subject) for one in verify(str(root)).findings
            ]

    def test_what_another_user_owns_is_read_though_its_access_time_cannot_be_spared(self, root):
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        with acting_as(BOB):
            assert verify(str(root)).findings == ()


@pytest.mark.root
def test_on_a_read_only_disk_everything_is_found_and_nothing_repaired(ours, stock, tmp_path, mount):
    point = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "mode=0700", "none")
    root, other = ours.at(point / "ours"), stock.at(point / "stock")
    cut(root / "triton/0" / kernel_key(root) / "scaled.cubin")
    cut(only(other, "triton/0/*/scaled.cubin"))
    os.utime(only(other, "triton/0/*/scaled.cubin"), (LONG_AGO, LONG_AGO))
    subprocess.run(["mount", "-o", "remount,ro", point], check=True)
    for one, code in ((root, "digest-mismatch"), (other, "binary-cut")):
        found = verify(str(one), repair=True)
        assert codes(found) == {code}
        assert found.unrepaired == found.findings
        assert all("Read-only file system" in finding.note for finding in found.findings)


def test_json_has_all_of_it(ours, tmp_path):
    root = ours.at(tmp_path / "root")
    (root / "triton/0" / kernel_key(root) / GROUP).unlink()
    (finding,) = json.loads(json.dumps(verify(str(root), repair=True).as_json()))["findings"]
    assert finding == {
        "code": "group-torn",
        "level": "error",
        "subject": f"{root}/triton/0/{kernel_key(root)}/{GROUP}",
        "fact": "it is not there",
        "fix": f"gpucache verify --repair --root {root}",
        "repaired": True,
        "note": "the group file was written anew",
    }


def test_every_code_has_a_test_that_names_it():
    files = (Path(__file__), Path(__file__).with_name("test_sharing_checks.py"))
    text = "".join(file.read_text() for file in files)
    named = set(re.findall(r'"([a-z]+(?:-[a-z]+)*)"', text))
    assert set(CODES) <= named


# ---- beside others


def test_what_a_running_compile_has_locked_is_told_and_left_to_it(ranks, ours, tmp_path):
    """The damage is why it compiles."""
    root = ours.at(tmp_path / "root")
    cut(root / "triton/0" / kernel_key(root) / "scaled.cubin")
    rank = ranks(env={"KERNELS_AT": "make_ptx:block"})
    rank.go()
    rank.expect("at make_ptx")
    found = verify(str(root), repair=True)
    assert codes(found) == {"digest-mismatch"}
    assert {one.note.partition(" on ")[0] for one in found.unrepaired} == {
        f"it is locked by process {rank.process.pid}"
    }
    assert all("for scaled" in one.note for one in found.findings)
    assert rank.said()["compiled"] == 1
    assert verify(str(root), repair=True).unrepaired == ()
    assert [one[:2] for one in compiled((root, "triton/0", True), (root, "triton/1", True))] == [
        (0, ours.digest)
    ] * 2


class Before:
    """The lock of a key, in front of which something happens once: a race, placed by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
        def lock(path: str, what: str, disk: Straight) -> AbstractContextManager[bool]:
            monkeypatch.setattr(verify_module, "holding", holding)
            happens()
            return holding(path, what, disk)

        monkeypatch.setattr(verify_module, "holding", lock)


def test_an_entry_that_was_replaced_between_the_judgement_and_the_lock_is_left_alone(
    ours, tmp_path, monkeypatch
):
    root = ours.at(tmp_path / "root")
    cut(root / "triton/0" / kernel_key(root) / "scaled.cubin")
    said = []
    Before(
        monkeypatch,
        lambda: said.extend(compiled((root, "triton/0", True), (root, "triton/1", True))),
    )
    found = verify(str(root), repair=True)
    assert [one[:2] for one in said] == [(1, ours.digest), (0, ours.digest)]
    assert found.findings == ()
    assert verify(str(root)).findings == ()


def test_an_entry_that_was_replaced_by_another_bad_one_is_told_and_left_to_the_next_run(
    ours, tmp_path, monkeypatch
):
    root = ours.at(tmp_path / "root")
    view = root / "triton/0" / kernel_key(root)
    removed(view / "scaled.ptx")

    def replaced() -> None:
        shutil.copytree(view, f"{view}.new")
        shutil.rmtree(view)
        os.rename(f"{view}.new", view)

    Before(monkeypatch, replaced)
    found = verify(str(root), repair=True)
    assert [(one.finding.code, one.note) for one in found.findings] == [
        ("file-missing", "it changed meanwhile")
    ]
    assert found.unrepaired == found.findings
    assert verify(str(root), repair=True).unrepaired == ()


def test_a_file_that_is_replaced_while_it_is_read_does_not_condemn_its_hard_links(
    ours, tmp_path, monkeypatch
):
    """What was read of an inode is believed of all its names."""
    root = ours.at(tmp_path / "root")
    cubin = Path(entry_path(str(root), kernel_key(root))) / "scaled.cubin"
    real = judge.examine

    def examine(path: str, is_metadata: bool) -> Any:
        if path == str(cubin):
            monkeypatch.setattr(judge, "examine", real)
            cubin.unlink()
            cubin.write_bytes(b"another")
        return real(path, is_metadata)

    monkeypatch.setattr(judge, "examine", examine)
    assert verify(str(root), repair=True).findings == ()
    (one,) = verify(str(root), repair=True).findings
    assert (one.finding.code, one.finding.subject, one.repaired) == (
        "digest-mismatch",
        str(cubin),
        True,
    )
    assert one.note.startswith(f"made again from {root}/triton/")


def test_an_entry_that_another_process_publishes_during_the_repair_is_not_quarantined(
    ours, tmp_path, monkeypatch
):
    """Its place is free for an instant, and whoever publishes then has no lock."""
    root = ours.at(tmp_path / "root")
    entry = Path(entry_path(str(root), kernel_key(root)))
    shutil.copytree(entry, tmp_path / "another's", copy_function=shutil.copy2)
    removed(entry / "scaled.ptx")
    real = repair.quarantine

    def quarantine(where: str, path: str, disk: Straight) -> None:
        real(where, path, disk)
        os.rename(tmp_path / "another's", entry)

    monkeypatch.setattr(repair, "quarantine", quarantine)
    assert verify(str(root), repair=True).unrepaired == ()
    monkeypatch.undo()
    assert codes(verify(str(root), repair=True)) == {"view-apart"}
    assert len(list((root / "gpucache/v1/quarantine").iterdir())) == 1


def test_what_vanished_before_the_lock_is_no_finding(ours, tmp_path, monkeypatch):
    root = ours.at(tmp_path / "root")
    cut(root / "triton/0" / kernel_key(root) / "scaled.cubin")
    Before(
        monkeypatch,
        lambda: [shutil.rmtree(path.parent) for path in list(root.rglob("scaled.cubin"))],
    )
    assert verify(str(root), repair=True).findings == ()


def test_what_stock_triton_may_be_writing_is_told_and_left_to_it(stock, tmp_path):
    """It locks nothing, and dies when its directory goes away under it."""
    root = stock.at(tmp_path / "root")
    cubin = only(root, "triton/0/*/scaled.cubin")
    cut(cubin)
    (one,) = verify(str(root), repair=True).findings
    assert (one.finding.code, one.repaired) == ("binary-cut", False)
    assert "younger than two minutes" in one.note
    assert cubin.exists()


def test_two_repairs_at_once_mend_everything_once(ours, stock, tmp_path, python):
    root = ours.at(tmp_path / "root")
    cut(root / "triton/0" / kernel_key(root) / "scaled.cubin")
    apart(only(root, f"triton/1/*/{LIBRARY}").parent)
    code = "import sys; from gpucache.upkeep.verify import verify; verify(sys.argv[1], True)"
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: python(code, root), range(4)))
    assert [one.stderr for one in done] == [""] * 4
    assert verify(str(root), repair=True).unrepaired == ()
    assert len(list((root / "gpucache/v1/quarantine").iterdir())) == 3
    assert os.listdir(root / "gpucache/v1/locks") == os.listdir(ours.root / "gpucache/v1/locks")


# ---- every system call

VERIFY = (
    SCRIPT
    + """
from gpucache.upkeep.verify import verify
mark("begin")
found = verify(sys.argv[1] + "/root", True)
mark("end")
assert {one.finding.code for one in found.unrepaired} == {"link"}, found.unrepaired
"""
)


@pytest.fixture(scope="module")
def made(ours: Template, stock: Template, tmp_path_factory: pytest.TempPathFactory) -> Template:
    """A view without a file, one apart, a library and an autotune result gone bad; stock Triton's moved, and torn."""
    root = ours.at(tmp_path_factory.mktemp("damaged") / "root")
    removed(root / "triton/0" / kernel_key(root) / "scaled.ptx")
    apart(root / "triton/1" / kernel_key(root))
    library = only(root, f"triton/0/*/{LIBRARY}")
    os.utime(library, (LONG_AGO, LONG_AGO))
    flipped(only(root, f"gpucache/v1/store/*/*/{AUTOTUNE}"))
    os.rename(stock.at(root.parent / "stock") / "triton/0", root / "triton/2")
    os.truncate(root / "triton/2" / AUTOTUNE_KEY / AUTOTUNE, 3)
    for path in (root / "triton/2" / AUTOTUNE_KEY).iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    return Template(root, ours.digests)


class TestEverySystemCall:
    """SIGKILL before each call that changes the disk or a lock, during a repair of everything that can be repaired."""

    def test_killed_at_any_of_them_the_cache_is_whole_and_the_next_repair_completes(
        self, every_call, made
    ):
        outsides, roots = {}, []

        def start(home: Path) -> list[object]:
            root = made.at(home / "root")
            plant_links(root, home / "outside")
            outsides[home] = snapshot(home / "outside")
            return []

        def after_kill(home: Path, line: str) -> None:
            assert all(map(as_it_was_or_whole, entries(home / "root"))), line
            assert snapshot(home / "outside") == outsides[home], line
            roots.append(home / "root")

        # A lock is signed alike for each key.
        names = every_call.killed_everywhere(
            VERIFY, start, after_kill, least=60, once={"ftruncate", "pwrite64"}
        )
        assert {"rename", "unlinkat", "mkdir", "flock"} <= names
        # as it was left
        check(compiled(*((one, "triton/1", True) for one in roots[::2])), made.digest)
        for one in roots:
            assert codes_left(verify(str(one), repair=True)) == {"link"}, one
            assert codes(verify(str(one))) == {"link"}, one
        check(
            compiled(*((one, f"triton/{name}", name < 2) for one in roots for name in (0, 2))),
            made.digest,
        )
        for one in roots:
            shutil.rmtree(one.parent)


def check(said: list[tuple[Any, str, list[str]]], digest: str) -> None:
    assert {one[:2] for one in said} == {(0, digest)}


def codes_left(found: Verification) -> set[str]:
    return {one.finding.code for one in found.unrepaired}


def entries(root: Path) -> list[Path]:
    """Of the store; neither by way of a link, nor what a killed repair had begun."""
    found = [
        path
        for shard in root.glob("gpucache/v1/store/*")
        if not shard.is_symlink()
        for path in shard.iterdir()
    ]
    return [path for path in found if not path.is_symlink() and not path.name.startswith(ASIDE)]


def as_it_was_or_whole(entry: Path) -> bool:
    """Only the autotune result was damaged."""
    found = read_manifest(str(entry))
    return found is not None and (intact(str(entry), found[0]) or AUTOTUNE in found[0].files)


def test_a_kernel_under_another_ones_key_is_found_and_compiled_again(ours, stock, tmp_path):
    """Its files are whole and its digests right, and the wrong binary would be launched."""
    other = "B" * 52
    for template, directory in ((ours, "gpucache/v1/store"), (stock, "triton/0")):
        root = template.at(tmp_path / directory.replace("/", "-"))
        key = kernel_key(root)
        for path in list(root.rglob(key)):
            path.rename(path.with_name(other))
        if template is ours:
            (root / directory / "BB").mkdir()
            (root / directory / key[:2] / other).rename(root / directory / "BB" / other)
        assert "key-mismatch" in codes(verify(str(root)))
        repaired = verify(str(root), repair=True)
        assert not repaired.unrepaired
        assert not list(root.glob(f"{directory}/**/{other}"))


def test_zeros_of_the_right_size_are_no_binary(stock, tmp_path):
    """What a power cut may leave. Triton would take it, and the plug-in share it."""
    root = stock.at(tmp_path / "root")
    cubin = only(root, "triton/0/*/scaled.cubin")
    cubin.write_bytes(bytes(cubin.stat().st_size))
    assert "binary-cut" in codes(verify(str(root)))
    assert stock_group(str(cubin.parent), "scaled.json") is None


def test_a_cache_seen_under_two_paths_is_in_order_under_both(stock, tmp_path, mount):
    root = stock.at(tmp_path / "root")
    there = mount(tmp_path / "there", "--bind", str(root))
    assert verify(str(there), repair=True).findings == verify(str(root)).findings == ()


def test_a_file_that_grew_beyond_memory_is_told_and_not_read(ours, stock, tmp_path):
    for template, name in ((ours, "scaled.cubin"), (stock, "scaled.json"), (stock, GROUP)):
        root = template.at(tmp_path / name.replace("scaled", template.digest[:4]))
        for path in root.rglob(name):
            os.truncate(path, 2**40)
        assert codes(verify(str(root))) & {"digest-mismatch", "unreadable"}


# ---- recipes


def recipe_planted(tree: Tree, damage: str) -> None:
    path = tree.entry / RECIPE
    path.unlink()
    if damage == "torn":
        path.write_bytes(b"ho")
    elif damage == "changed":
        path.write_bytes(b"HOW")
    elif damage == "fifo":
        os.mkfifo(path)
    elif damage == "directory":
        path.mkdir()
        (path / "more").touch()
    elif damage == "link":
        path.symlink_to("/etc/passwd")
    elif damage == "100 MB":
        path.touch()
        os.truncate(path, 10**8)


@pytest.mark.parametrize(
    "damage", ["missing", "torn", "changed", "fifo", "directory", "link", "100 MB"]
)
def test_a_damaged_recipe_costs_no_entry_and_a_repair_removes_it(damage, tmp_path):
    """The manifest tells of none then, in the views too, and no use is lost."""
    tree = Tree(tmp_path, recipe=b"how")
    recipe_planted(tree, damage)
    set_used(tree.entry, OLD)
    found = verify(str(tree.root))
    assert [
        (one.finding.code, one.finding.level, one.finding.subject) for one in found.findings
    ] == [("recipe-damaged", "warning", str(tree.entry / RECIPE))]
    assert not verify(str(tree.root), repair=True).unrepaired
    assert not verify(str(tree.root)).findings
    assert not os.path.lexists(tree.entry / RECIPE)
    assert {used(directory) for directory in tree.directories} == {OLD}
    assert len({(directory / MANIFEST).stat().st_ino for directory in tree.directories}) == 1
    assert tree.all_there()
    assert not tree.quarantined()
    assert Path("/etc/passwd").exists()


def test_a_recipe_that_no_manifest_tells_of_is_no_flaw(tmp_path):
    """Of a process that was killed before it had told, or of a manifest that an older gpucache has written anew."""
    tree = Tree(tmp_path)
    (tree.entry / RECIPE).write_bytes(b"how")
    assert not verify(str(tree.root)).findings


@pytest.mark.parametrize("lost", [False, True], ids=["whole", "damaged"])
def test_an_entry_that_is_made_again_of_a_view_keeps_its_recipe_if_that_is_whole(lost, tmp_path):
    tree = Tree(tmp_path, recipe=b"how")
    (tree.entry / "add.cubin").unlink()
    if lost:
        (tree.entry / RECIPE).write_bytes(b"torn")
    assert not verify(str(tree.root), repair=True).unrepaired
    assert not verify(str(tree.root)).findings
    found = read_manifest(str(tree.entry))
    assert found is not None
    assert read_recipe(str(tree.entry), found[0]) == (None if lost else b"how")
    assert tree.all_there()
    assert len({(directory / MANIFEST).stat().st_ino for directory in tree.directories}) == 1


def test_a_reader_beside_the_removal_of_a_recipe_misses_nothing_and_is_not_forgotten(
    tmp_path, monkeypatch
):
    """It stamps its use on the former manifest, right before that goes."""
    tree = Tree(tmp_path, recipe=b"how")
    recipe_planted(tree, "torn")
    set_used(tree.entry, OLD)
    link = Straight.link

    def read_then_link(self: Straight, source: str, target: str) -> None:
        if source.endswith(MANIFEST) and "/triton/1/" in target:
            assert sound(str(tree.other_view), False, 0.0) is not None
        link(self, source, target)

    before = time.time() - 1
    monkeypatch.setattr(Straight, "link", read_then_link)
    assert not verify(str(tree.root), repair=True).unrepaired
    assert used(tree.entry) >= before
    assert used(tree.other_view) == used(tree.entry)
