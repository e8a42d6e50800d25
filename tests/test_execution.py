"""Nobody can lead a removal out of the root by a link, at whatever moment he puts it there.

`GPUCACHE_TEST_MOMENTS` is at how many moments each link comes in each operation, by default three.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import users
from support.strays import OLD, UUID
from support.trees import KEY, Tree, aged, left_by_stock
from support.users import BOB, link

from gpucache.disk import lock_place
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.node import node_id
from gpucache.layout.keys import ASIDE
from gpucache.report.cache_report import scan
from gpucache.store.limit import Limit
from gpucache.store.manifest import CONDEMNED, MANIFEST
from gpucache.store.size import updated
from gpucache.upkeep.clean import CleanPolicy
from gpucache.upkeep.grace import NO_GRACE
from gpucache.upkeep.plan import plan
from gpucache.upkeep.prune import PrunePolicy
from gpucache.upkeep.verify import verify

MOMENTS = int(os.environ.get("GPUCACHE_TEST_MOMENTS", "3"))
"""At how many moments of an operation each link comes."""
STOCK = "S" * 52
HALF, COPIED, LOST = "B" * 52, "C" * 52, "D" * 52
CALLS = (
    *("lstat", "stat", "open", "listdir", "scandir", "readlink"),
    *("rename", "unlink", "rmdir", "mkdir", "link", "utime"),
)
"""Every function of `os` before which a link may be put in the place of a directory."""
LINKED = (
    *("gpucache", "gpucache/v1", "gpucache/v1/store", "gpucache/v1/store/AA"),
    *(f"gpucache/v1/store/AA/{KEY}", "gpucache/v1/tmp", "gpucache/v1/quarantine"),
    *("triton", "triton/0", f"triton/0/{KEY}", "fxgraph", "fxgraph/ab"),
)


def filled(base: Path) -> Path:
    """A root with an entry, what stock Triton and TorchInductor keep, and strays of each kind; its path."""
    tree, half, *others = (Tree(base, key) for key in (KEY, HALF, COPIED, LOST))
    for one in (tree, half, *others):
        one.staging.forget()  # each holds a descriptor
    (half.entry / MANIFEST).rename(half.entry / CONDEMNED)
    for view in half.views:
        shutil.rmtree(view)
    root = tree.root
    left_by_stock(root / "triton/0", STOCK)
    own = root / "gpucache/v1"
    long_ago = f"{int((time.time() - 8 * 86400) * 1e9):x}"
    directories = (
        own / f"tmp/gpucache-staging-{node_id()}.dead/1",
        own / f"quarantine/{KEY}.{long_ago}.1",
        root / f"triton/0/{ASIDE}aside",
        root / f"triton/0/tmp.pid_1_{UUID}",
        root / "triton/1" / ("E" * 52),
        root / "fxgraph/ab/cd",
    )
    for directory in directories:
        directory.mkdir(parents=True)
        if directory.name != "E" * 52:
            (directory / "file").write_bytes(b"x" * 100)
    (own / "tmp/publish-dead").touch()
    (root / f"fxgraph/{'ab'}/{HALF.lower()}").mkdir()
    aged(root)
    for path in [*root.rglob("*")]:
        os.utime(path, (OLD - 7200, OLD - 7200), follow_symlinks=False)
    updated(str(root), 12345, anew=True)
    return root


def contents(directory: Path) -> dict[str, object]:
    """Everything below a directory, with what would tell of a change."""
    found = {}
    for path in sorted(directory.rglob("*")):
        seen = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (seen.st_ino, seen.st_mode, seen.st_nlink, content)
    return found


def linked_or_copied(source: str, target: str) -> None:
    """Copy a file: as the same inode, which no look at inode and times tells apart, unless it is rewritten in place."""
    if os.path.basename(source) == "size":
        shutil.copy2(source, target)
    else:
        os.link(source, target)


def prune(root: Path) -> Callable[[], object]:
    return plan(scan(str(root)), PrunePolicy(max_entries=0), {}).execute


def slim(root: Path) -> Callable[[], object]:
    return plan(scan(str(root)), PrunePolicy(max_entries=0, keep_binaries=True), {}).execute


def repair(root: Path) -> Callable[[], object]:
    """Of an entry and a view with a damaged file, a view that was copied, and a half group of Triton's."""
    for key, name in ((KEY, "triton/0"), (COPIED, "triton/1"), (LOST, "gpucache/v1/store/DD")):
        damaged = root / name / key / "add.ptx"
        content = damaged.read_bytes()
        damaged.unlink()
        damaged.write_bytes(content if key == COPIED else b"")
    (root / f"triton/0/{STOCK}/add.cubin").unlink()
    # What the mount can do is tried by path, and what other trials have left is swept.
    (root / "gpucache/v1/tmp/publish-dead").unlink()
    return lambda: verify(str(root), repair=True)


def clean(root: Path) -> Callable[[], object]:
    return plan(scan(str(root)), CleanPolicy(grace_s=NO_GRACE), {}).execute


def evict(root: Path) -> Callable[[], object]:
    locks = LockPlace(str(root))
    locks.directory()  # as for the compile that made the store too large
    return Limit(str(root), locks, 1, grace_s=0).turn


OPERATIONS = {"prune": prune, "slim": slim, "repair": repair, "clean": clean, "evict": evict}


class Hook:
    """Counts the calls of `CALLS`, and does something once, before the call of some number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], None]) -> None:
        self.seen = 0
        self.inside = False
        for name in CALLS:
            monkeypatch.setattr(os, name, self.hooked(getattr(os, name), at, act))

    def hooked(self, call: Callable[..., Any], at: int, act: Callable[[], None]) -> Any:
        def calling(*args: Any, **more: Any) -> Any:
            if not self.inside:
                self.seen += 1
                if self.seen == at:
                    self.inside = True
                    act()
                    self.inside = False
            return call(*args, **more)

        return calling


def calls_of(monkeypatch: pytest.MonkeyPatch, begin: Callable[[], object]) -> int:
    """How many calls of `CALLS` an operation makes."""
    with monkeypatch.context() as patch:
        hook = Hook(patch, 0, lambda: None)
        begin()
    return hook.seen


@pytest.mark.parametrize("linked", LINKED)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_nothing_is_touched_behind_a_link_that_comes_in_the_middle(
    tmp_path, monkeypatch, operation, linked
):
    """A copy of the whole root lies where the link leads: all of that could go."""
    total = calls_of(monkeypatch, OPERATIONS[operation](filled(tmp_path / "counted")))
    assert total > 20
    step = total // MOMENTS
    first = LINKED.index(linked) * step // len(LINKED)  # others for each
    for at in range(first, total, step):
        base = tmp_path / str(at)
        root = filled(base)
        execute = OPERATIONS[operation](root)
        outside = base / "outside"
        shutil.copytree(root, outside, copy_function=linked_or_copied)
        inodes = contents(outside)

        def swap(root: Path = root, outside: Path = outside) -> None:
            if (root / linked).is_dir() and (root / linked).resolve() == root / linked:
                (root / linked).rename(root.parent / "moved")
                (root / linked).symlink_to(outside / linked)

        with monkeypatch.context() as patch:
            Hook(patch, at, swap)
            execute()
        left = contents(outside)
        assert left.keys() >= inodes.keys(), f"after {at} of {total} calls"
        # A view is published by path, which makes what was not there, and changes nothing.
        assert operation == "repair" or left.keys() == inodes.keys()
        for path, (inode, mode, _, content) in inodes.items():
            assert left[path][:2] == (inode, mode), path
            # Whoever evicts keeps his counters in his own root, where he may have put links.
            assert operation == "evict" or left[path][3] == content, path


@pytest.mark.root
@pytest.mark.usefixtures("as_root", "shared_memory")
@pytest.mark.parametrize("policy", [PrunePolicy(max_entries=0), CleanPolicy(grace_s=NO_GRACE)])
def test_locks_that_another_user_plants_while_the_question_stands_lead_nowhere(
    tmp_path, monkeypatch, policy
):
    """They were swept from where they are for a root on a network file system."""
    monkeypatch.setattr(lock_place, "is_local", lambda _: False)
    root = filled(tmp_path / "base")
    locks = Path(LockPlace(str(root)).directory())
    victims = users.directory(tmp_path / "victims")
    for place in (locks, victims):
        (place / f"{KEY}.lock").touch()
    made = plan(scan(str(root)), policy, {})
    assert str(locks / f"{KEY}.lock") in [stray.path for stray in made.strays]
    shutil.rmtree(locks)
    link(locks, victims, BOB)
    before = contents(victims)
    done = made.execute()
    assert contents(victims) == before
    assert done.entries == len(made.removing)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_directory_stays_open(tmp_path, operation):
    OPERATIONS[operation](filled(tmp_path / "first"))()
    before = len(os.listdir("/proc/self/fd"))
    OPERATIONS[operation](filled(tmp_path / "second"))()
    assert len(os.listdir("/proc/self/fd")) == before
