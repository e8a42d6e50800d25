"""Small trees on real disk: stores and entries of ours, entries of stock Triton's, and any files at all."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gpucache.disk.files import make_directory
from gpucache.disk.staging import Staging
from gpucache.layout import paths
from gpucache.layout.keys import ASIDE
from gpucache.report.cache_report import scan
from gpucache.store.deletion import Freed
from gpucache.store.lookup import sound
from gpucache.store.manifest import CONDEMNED, MANIFEST, Facts, entry_path
from gpucache.store.publish import link_view, publish_entry
from gpucache.store.removal import Target, remove
from gpucache.store.stock import stock_group
from gpucache.upkeep.execution import Outcome
from gpucache.upkeep.plan import Plan, plan
from gpucache.upkeep.prune import PrunePolicy

KEY = "A" * 52
METADATA = json.dumps({"name": "add", "target": {"backend": "cuda", "arch": 90}}).encode()
KERNEL = {"add.json": METADATA, "add.ptx": b".version 8.7", "add.cubin": bytes(range(256)) * 16}
GROUP = "__grp__add.json"
FACTS = Facts(
    kernel="add", group="add.json", target="cuda:90", triton_version="3.9.0", compile_s=1.5
)
OLD = time.time() - 3600

Stock = Callable[[Path], Any]


def everything_below(root: Path) -> dict[str, tuple[int, ...]]:
    """Everything below, with what would tell of a change."""
    found = [root, *root.rglob("*")]
    facts = {str(path): path.lstat() for path in found}
    return {
        path: (s.st_ino, s.st_mode, s.st_uid, s.st_mtime_ns, s.st_ctime_ns)
        for path, s in facts.items()
    }


def randomly(base: Path, draw: random.Random) -> None:
    """Directories, files, hard links between them, and symbolic links to anything."""
    directories, files = [base], []
    for number in range(60):
        path = draw.choice(directories) / str(number)
        what = draw.choice(("directory", "file", "file", "hard link", "link"))
        if what == "directory":
            path.mkdir()
            directories.append(path)
        elif what == "link":
            path.symlink_to(draw.choice((*directories, *files, "/etc", "nowhere")))
        elif what == "hard link" and files:
            os.link(draw.choice(files), path)
            files.append(path)
        else:
            path.write_bytes(draw.randbytes(draw.choice((0, 1, 4096, 5000))))
            files.append(path)


def walked(base: Path) -> tuple[int, int, int]:
    """Files, the sum of their sizes, and that of distinct inodes: by `os.walk` and one `lstat` each."""
    found = []
    for directory, inner, names in os.walk(base):
        links = [name for name in inner if os.path.islink(f"{directory}/{name}")]
        found += [os.lstat(f"{directory}/{name}") for name in (*names, *links)]
    return (
        len(found),
        sum(one.st_size for one in found),
        sum({one.st_ino: one.st_size for one in found}.values()),
    )


def used(directory: Path) -> float:
    return (directory / MANIFEST).stat().st_mtime


def set_used(directory: Path, when: float) -> float:
    os.utime(directory / MANIFEST, (when, when))
    return used(directory)


class Cache:
    """A store and two device directories, on real disk."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base / "root"
        (self.root / "triton").mkdir(parents=True)
        self.staging = Staging(paths.ours(str(self.root), "tmp"))
        self.entry = Path(entry_path(str(self.root), KEY))
        self.view = self.root / "triton" / "0" / KEY
        self.other_view = self.root / "triton" / "1" / KEY

    def staged(self, files: Mapping[str, bytes] = KERNEL) -> dict[str, tuple[str, str]]:
        """As a compile leaves its files."""
        home = Path(self.staging.directory())
        for name, data in files.items():
            (home / name).write_bytes(data)
        return {
            name: (str(home / name), hashlib.sha256(data).hexdigest())
            for name, data in files.items()
        }

    def publish(
        self, files: Mapping[str, bytes] = KERNEL, facts: Facts = FACTS, repair: bool = False
    ) -> bool:
        return publish_entry(str(self.root), KEY, self.staged(files), facts, self.staging, repair)

    def link(self, view: Path | None = None, repair: bool = False) -> bool:
        manifest = sound(str(self.entry), False, 0.0)
        assert manifest is not None
        return link_view(str(self.root), str(self.entry), str(view or self.view), manifest, repair)

    def whole(self, directory: Path, files: Mapping[str, bytes] = KERNEL) -> bool:
        """Whether an entry or a view has all files, each with its content, and a manifest that agrees."""
        manifest = sound(str(directory), True, 0.0)
        assert manifest is not None
        assert manifest.files.keys() == files.keys()
        assert {name: (directory / name).read_bytes() for name in files} == files
        return True

    def quarantined(self) -> list[Path]:
        return sorted((self.root / "gpucache" / "v1" / "quarantine").glob("*"))

    def left(self) -> list[Path]:
        """Half-made directories that nobody will finish."""
        return list(self.base.rglob("tmp.gpucache-*"))


def place(directory: Path, ours: bool = True) -> Target:
    """A directory of an entry as a plan sees it now."""
    seen = (directory / MANIFEST if ours else directory).lstat()
    return Target(str(directory), (seen.st_ino, seen.st_mtime_ns), ours)


class Tree(Cache):
    """An entry with two views that nobody has used for an hour."""

    recipe: bytes | None = None  # of one that a test makes without the constructor

    def __init__(self, base: Path, key: str = KEY, recipe: bytes | None = None) -> None:
        (base / "root").mkdir(parents=True, exist_ok=True)
        self.base, self.root, self.key, self.recipe = base, base / "root", key, recipe
        self.staging = Staging(paths.ours(str(self.root), "tmp"))
        self.entry = Path(entry_path(str(self.root), key))
        self.view = self.root / "triton" / "0" / key
        self.other_view = self.root / "triton" / "1" / key
        self.locks = str(self.root / "gpucache/v1/locks")
        make_directory(self.locks)
        self.view.parent.mkdir(parents=True, exist_ok=True)
        assert self.publish()
        for view in self.views:
            assert self.link(view)
        set_used(self.entry, OLD)
        self.unstage()

    def publish(
        self, files: Mapping[str, bytes] = KERNEL, facts: Facts = FACTS, repair: bool = False
    ) -> bool:
        return publish_entry(
            str(self.root),
            self.key,
            self.staged(files),
            facts,
            self.staging,
            repair,
            recipe=self.recipe,
        )

    def unstage(self) -> None:
        """As when the compile's object is gone."""
        for home in self.root.glob("gpucache/v1/tmp/*/*"):
            shutil.rmtree(home)

    @property
    def views(self) -> list[Path]:
        return [self.view, self.other_view]

    @property
    def directories(self) -> list[Path]:
        return [self.entry, *self.views]

    @property
    def places(self) -> list[Target]:
        return [place(directory) for directory in self.directories]

    def remove(self) -> list[Freed]:
        return remove(KEY, self.places, self.locks)

    def all_there(self) -> bool:
        """Whether it is as it was, and can be removed by the next."""
        assert all(map(self.whole, self.directories))
        assert not list(self.base.rglob(CONDEMNED))
        assert not self.left()
        assert os.listdir(self.locks) == []
        return True

    def all_gone(self) -> bool:
        assert not any(map(os.path.lexists, self.directories))
        assert not self.left()
        assert os.listdir(self.locks) == []
        return True


def left_by_stock(device: Path, key: str) -> Path:
    """As Triton's own manager leaves a kernel; used an hour ago."""
    home = device / key
    home.mkdir(parents=True)
    for name, data in KERNEL.items():
        (home / name).write_bytes(data)
    children = {name: str(home / name) for name in KERNEL}
    (home / "__grp__add.json").write_text(json.dumps({"child_paths": children}))
    for path in home.iterdir():
        os.utime(path, (OLD, OLD))
    return home


def stock_entry(directory, key, *, options=None, arch=90, triton_version="3.9.0", environment=None):
    """An entry as Triton's own manager leaves it, small; its directory."""
    path = Path(directory) / key
    path.mkdir(parents=True)
    target = {"backend": "cuda", "arch": arch, "warp_size": 32}
    said = {
        "hash": "00",
        "target": target,
        **(options or {}),
        **(environment or {}),
        "triton_version": triton_version,
    }
    (path / "k.json").write_text(json.dumps({**said, "shared": 0, "name": "k"}))
    (path / "k.cubin").write_bytes(b"binary")
    (path / "k.source").write_text("tt.func public @k() {")
    children = {name: f"{path}/{name}" for name in ("k.json", "k.cubin")}
    (path / "__grp__k.json").write_text(json.dumps({"child_paths": children}))
    return str(path)


def aged(root: Path) -> None:
    """As if what a kill left had been lying there for hours."""
    halves = [found.parent for found in root.rglob(CONDEMNED)]
    for path in [*root.rglob(MANIFEST), *root.rglob(f"{ASIDE}*"), *halves]:
        os.utime(path, (OLD - 7200, OLD - 7200), follow_symlinks=False)


def whole_or_no_hit(directory: Path, stock: Stock, files: Mapping[str, bytes], line: str) -> None:
    """What a directory is to the plug-in and to Triton's own manager: an entry with every file, or none."""
    if not directory.is_dir():
        return
    manifest = sound(str(directory), True, 0.0)
    if manifest is not None:
        assert manifest.files.keys() <= files.keys(), line
    stocks = (
        stock(directory.parent).get_group("add.json")
        if directory.parents[1].name == "triton"
        else None
    )
    for group in (stocks, stock_group(str(directory), "add.json")):
        assert group is None or {"add.json", "add.cubin"} <= group.keys(), line
        for name, path in (group or {}).items():
            assert Path(path).read_bytes() == files[name], line


def planned(root: Path, **policy: Any) -> Plan:
    return plan(scan(str(root)), PrunePolicy(**policy), {})


def pruned(root: Path, **policy: Any) -> Outcome:
    return planned(root, **policy).execute()


def physical(root: Path) -> int:
    return sum(usage.physical_bytes for usage in scan(str(root)).usage)


def at_rename(
    monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object], *, after: bool = False
) -> None:
    """Do something right before (or after) the renaming of this number, once."""
    rename, seen = os.rename, [0]

    def renaming(source: str, target: str, **where: int) -> None:
        seen[0] += 1
        mine = seen[0] == number
        if mine and not after:
            act()
        rename(source, target, **where)
        if mine and after:
            act()

    monkeypatch.setattr(os, "rename", renaming)
