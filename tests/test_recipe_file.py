"""`gpucache.store.recipe_file`: an entry has its recipe whole, or is an entry without one."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from support.every_call import SCRIPT, EveryCall
from support.trees import FACTS, GROUP, KERNEL, KEY, OLD, Tree, set_used, used
from support.users import ADA

from gpucache.disk.lock_place import LockPlace
from gpucache.disk.within import Straight
from gpucache.kernels.recipe import MOST_BYTES
from gpucache.layout.keys import ASIDE
from gpucache.report.cache_report import scan
from gpucache.store import recipe_file
from gpucache.store.counting import counted
from gpucache.store.foreign import foreign_directories, remember, view_at
from gpucache.store.limit import Limit
from gpucache.store.lookup import sound
from gpucache.store.manifest import MANIFEST, RECIPE, Manifest, parse_manifest, read_manifest
from gpucache.store.publish import link_view
from gpucache.store.recipe_file import (
    NoRecipe,
    add_recipe,
    lacks_recipe,
    read_recipe,
    recipe_digest,
    recipe_in,
)
from gpucache.store.size import total_bytes, updated
from gpucache.store.stock import describe
from gpucache.upkeep.slim import slim
from gpucache.upkeep.verify import verify

SAID = b'{"key": "' + KEY.encode() + b'", "kernel": "add"}'
OTHER = SAID.replace(b"add", b"mul")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def manifest_of(directory: Path) -> Manifest:
    read = read_manifest(str(directory))
    assert read is not None
    return read[0]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """An entry without a recipe, and two views, as an earlier gpucache has left them."""
    return Tree(tmp_path)


@pytest.fixture
def cooked(tmp_path: Path) -> Tree:
    """An entry that was published with its recipe, and two views."""
    return Tree(tmp_path, recipe=SAID)


def add(tree: Tree, recipe: bytes = SAID, view: Path | None = None) -> bool:
    lock = f"{tree.locks}/{tree.key}.lock"
    return add_recipe(str(tree.entry), str(view or tree.view), tree.key, recipe, lambda: lock)


def recipe_of(tree: Tree) -> bytes | None:
    return read_recipe(str(tree.entry), manifest_of(tree.entry))


def inode(directory: Path) -> int:
    return (directory / MANIFEST).stat().st_ino


# ---- published with one


def test_an_entry_is_published_with_its_recipe(cooked):
    """In the store alone, told by the manifest, and none of the published files."""
    assert recipe_of(cooked) == SAID
    assert manifest_of(cooked.entry).recipe == sha256(SAID)
    assert [path.name for path in cooked.root.rglob(RECIPE)] == [RECIPE]
    assert cooked.all_there()
    assert not verify(str(cooked.root)).findings


def test_a_manifest_says_the_recipe_last(cooked):
    said = json.loads((cooked.entry / MANIFEST).read_bytes())
    assert list(said)[-1] == "recipe"
    assert list(said)[:2] == ["version", "files"]


@pytest.mark.parametrize(
    "value",
    ["", "no digest", "A" * 64, "f" * 63, "\x1b[31m" * 9, "\ud800", 7, None, [], {"a": [1]}, True],
    ids=repr,
)
def test_what_is_no_digest_costs_no_hit(tree, value):
    """A text is kept when the manifest is written again, for a newer gpucache, and is no recipe to this one."""
    said = json.loads((tree.entry / MANIFEST).read_bytes())
    found = parse_manifest(json.dumps({**said, "recipe": value}).encode())
    assert found is not None
    assert found._replace(recipe=None) == manifest_of(tree.entry)
    assert recipe_digest(found) is None
    assert parse_manifest(found.encoded()) == found
    assert found.recipe == (value if isinstance(value, str) else None)


def test_what_a_newer_gpucache_says_of_a_recipe_is_left_alone(tree):
    said = json.loads((tree.entry / MANIFEST).read_bytes())
    newer = json.dumps({**said, "recipe": "sha512:00"}).encode()
    (tree.entry / MANIFEST).write_bytes(newer)
    (tree.entry / RECIPE).write_bytes(b"theirs")
    assert not add(tree)
    assert (tree.entry / RECIPE).read_bytes() == b"theirs"
    assert (tree.entry / MANIFEST).read_bytes() == newer


def test_a_recipe_that_nobody_would_read_is_not_published(cooked):
    too_long = b"x" * (MOST_BYTES + 1)
    assert not add(cooked, too_long) or recipe_of(cooked) == SAID
    tree = Tree(cooked.base / "other", recipe=too_long)
    assert manifest_of(tree.entry).recipe is None
    assert not (tree.entry / RECIPE).exists()
    assert not add(tree, too_long)


def test_a_put_counts_the_recipe(cooked):
    """So that the limit of the store is told what is there."""
    root = str(cooked.root)
    updated(root, 0, anew=True)
    Limit(root, LockPlace(root), 10**9).published(manifest_of(cooked.entry))
    cooked.other_view.rename(cooked.base / "elsewhere")
    with_one_view = sum(path.stat().st_size for path in cooked.entry.iterdir())
    assert total_bytes(root) == with_one_view + 1024


def test_a_copied_root_keeps_its_recipes(cooked):
    """Whose files have other times, so that the manifest is written anew at the first use."""
    for name in KERNEL:
        os.utime(cooked.entry / name, (OLD, OLD))
    assert sound(str(cooked.entry), False, 0.0) is not None
    assert recipe_of(cooked) == SAID
    assert sound(str(cooked.view), False, 0.0) is not None
    assert manifest_of(cooked.view).recipe == sha256(SAID)


# ---- added later


def test_an_entry_without_a_recipe_gets_one(tree):
    before = manifest_of(tree.entry)
    assert add(tree)
    assert recipe_of(tree) == SAID
    assert manifest_of(tree.entry) == before._replace(recipe=sha256(SAID))
    assert tree.all_there()
    assert not verify(str(tree.root)).findings


def test_views_share_the_new_manifest(tree):
    """A use of one is a use of all, as before."""
    assert add(tree)
    assert {inode(directory) for directory in tree.directories} == {inode(tree.entry)}
    set_used(tree.other_view, OLD)
    assert used(tree.entry) == used(tree.view) == used(tree.other_view)


def test_to_add_a_recipe_is_a_use(tree):
    before = time.time() - 1
    assert add(tree)
    assert used(tree.entry) >= before


def test_a_recipe_that_is_there_stays(cooked):
    manifest = inode(cooked.entry)
    assert add(cooked, OTHER)
    assert recipe_of(cooked) == SAID
    assert inode(cooked.entry) == manifest


def test_a_damaged_recipe_is_replaced(cooked):
    (cooked.entry / RECIPE).write_bytes(b"torn")
    assert add(cooked, OTHER)
    assert recipe_of(cooked) == OTHER
    assert cooked.all_there()


def test_an_entry_lacks_a_recipe_that_is_not_there(cooked):
    """An older gpucache makes an entry again of a view, whose manifest tells of a recipe, and brings none."""
    assert not lacks_recipe(str(cooked.entry), manifest_of(cooked.entry))
    newer = manifest_of(cooked.entry)._replace(recipe="sha512:00")
    (cooked.entry / RECIPE).unlink()
    assert lacks_recipe(str(cooked.entry), manifest_of(cooked.entry))
    assert not lacks_recipe(str(cooked.entry), newer)
    assert lacks_recipe(str(cooked.entry), newer._replace(recipe=None))
    assert add(cooked)
    assert recipe_of(cooked) == SAID


def test_an_entry_of_another_key_gets_no_recipe(tree):
    lock = f"{tree.locks}/x.lock"
    assert not add_recipe(str(tree.entry), str(tree.view), "B" * 52, SAID, lambda: lock)
    assert recipe_of(tree) is None


def test_an_entry_that_has_a_file_of_that_name_gets_no_recipe(tree):
    """An earlier gpucache has published a kernel called ``__recipe__`` so."""
    manifest = manifest_of(tree.entry)
    listed = {**manifest.listed, RECIPE: manifest.listed["add.ptx"]}
    os.link(tree.entry / "add.ptx", tree.entry / RECIPE)
    (tree.entry / MANIFEST).write_bytes(manifest._replace(listed=listed).encoded())
    assert not add(tree)
    assert (tree.entry / RECIPE).read_bytes() == KERNEL["add.ptx"]


def test_while_another_process_holds_the_key_nothing_is_added(tree):
    with open(f"{tree.locks}/{tree.key}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not add(tree)
    assert recipe_of(tree) is None
    assert not (tree.entry / RECIPE).exists()


@pytest.mark.parametrize("which", ["the entry", "a view", "a device directory"])
def test_where_one_directory_cannot_be_written_nothing_is_added(tree, which, monkeypatch):
    """Else the uses of that view would be stamped where nobody looks for them."""
    closed = {
        "the entry": tree.entry,
        "a view": tree.other_view,
        "a device directory": tree.other_view.parent,
    }[which]
    monkeypatch.setattr(recipe_file, "may", lambda path, mode: path != str(closed))
    assert not add(tree)
    assert manifest_of(tree.entry).recipe is None
    assert {inode(directory) for directory in tree.directories} == {inode(tree.entry)}
    assert not tree.left()


def test_a_view_that_had_a_manifest_of_its_own_gets_the_stores(tree):
    """As of what stock Triton had left; its later use is not lost."""
    manifest = manifest_of(tree.entry)
    describe(str(tree.view), manifest.digests, FACTS, manifest.origin, manifest.key)
    assert inode(tree.view) != inode(tree.entry)
    assert add(tree)
    assert {inode(directory) for directory in tree.directories} == {inode(tree.entry)}


def test_a_view_that_missed_the_new_manifest_gets_it_with_the_next_call(tree):
    """Another process has made the view at that very moment; or the one that added was killed."""
    former = (tree.view / MANIFEST).read_bytes()
    assert add(tree)
    (tree.view / MANIFEST).unlink()
    (tree.view / MANIFEST).write_bytes(former)
    set_used(tree.entry, OLD)
    now = time.time() - 1
    assert add(tree, OTHER)
    assert recipe_of(tree) == SAID
    assert {inode(directory) for directory in tree.directories} == {inode(tree.entry)}
    assert used(tree.entry) >= now


def test_a_view_that_is_a_copy_keeps_its_own(tree):
    manifest = manifest_of(tree.entry)
    copy = manifest._replace(root=os.path.realpath(tree.root))
    (tree.view / MANIFEST).unlink()
    (tree.view / MANIFEST).write_bytes(copy.encoded())
    assert add(tree)
    assert manifest_of(tree.view) == copy


def test_views_outside_the_root_share_the_new_manifest(tree, tmp_path):
    outside = tmp_path / "outside" / tree.key
    manifest = manifest_of(tree.entry)
    assert link_view(str(tree.root), str(tree.entry), str(outside), manifest, False)
    remember(str(tree.root), str(outside.parent))
    assert add(tree)
    assert inode(outside) == inode(tree.entry)


def test_the_size_of_the_store_is_told_what_was_added(tree):
    root = str(tree.root)
    updated(root, counted(root), anew=True)
    assert add(tree)
    assert total_bytes(root) == counted(root)


# ---- on other mounts, for other users


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
def test_where_nothing_can_be_linked_or_renamed_whole_an_entry_has_its_recipe(
    code, tmp_path, monkeypatch
):
    """As on the mount of an object store: files come one by one, and views are copies."""
    rename = os.rename

    def rename_files(source: str, target: str, **where: int) -> None:
        if "src_dir_fd" not in where and os.path.isdir(source) and os.listdir(source):
            raise OSError(code, os.strerror(code), source)
        rename(source, target, **where)

    def link(source: str, *_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), source)

    monkeypatch.setattr(os, "rename", rename_files)
    monkeypatch.setattr(os, "link", link)
    published = Tree(tmp_path / "published", recipe=SAID)
    later = Tree(tmp_path / "later")
    assert add(later)
    for tree in (published, later):
        assert recipe_of(tree) == SAID
        assert tree.all_there()
        assert [path.parent for path in tree.root.rglob(RECIPE)] == [tree.entry]
        codes = {one.finding.code for one in verify(str(tree.root)).findings}
        assert codes <= {"view-apart"}, "verify has not tried this mount"


@pytest.mark.parametrize(
    "how", ["published", "added", "slimmed", "made again", "made again without", "dropped"]
)
def test_what_root_makes_in_a_users_root_is_the_users(how, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    tree = Tree(tmp_path, recipe=None if how == "added" else SAID)
    if how == "published":
        (tree.entry.parent).rename(tmp_path / "before")
    for path in (tree.root, *tree.root.rglob("*")):
        os.chown(path, ADA, ADA, follow_symlinks=False)
    if how == "published":
        assert tree.publish()
    elif how == "added":
        assert add(tree)
    elif how == "slimmed":
        with Straight() as disk:
            slim(str(tree.root), KEY, "add.json", tree.places, tree.locks, disk)
    else:
        if how != "dropped":
            (tree.entry / "add.cubin").unlink()
        if how != "made again":
            (tree.entry / RECIPE).unlink()
        assert not verify(str(tree.root), repair=True).unrepaired
    made = [tree.entry.parent, tree.entry, tree.entry / MANIFEST]
    is_lost = how in ("made again without", "dropped")
    if not is_lost:
        made.append(tree.entry / RECIPE)
    assert {path.stat().st_uid for path in made} == {ADA}
    assert (recipe_of(tree) is None) == is_lost
    assert (tree.view / MANIFEST).stat().st_uid == ADA


# ---- a use of a view with another manifest


def apart(tree: Tree) -> None:
    """As a kill between the views leaves it: one view has another manifest than the store."""
    manifest = manifest_of(tree.view)._replace(recipe=sha256(SAID))
    (tree.view / MANIFEST).unlink()
    (tree.view / MANIFEST).write_bytes(manifest.encoded())
    set_used(tree.view, OLD)


def turn(root: Path, limit_bytes: int) -> None:
    kept = Limit(str(root), LockPlace(str(root)), limit_bytes, 600.0)
    updated(str(root), counted(str(root)), anew=True)
    kept.refused()
    kept.turn()


def test_an_eviction_sees_the_use_of_a_view_with_another_manifest(tree):
    """Whose entry looks unused since before: another one goes first."""
    apart(tree)
    other = Tree(tree.base, "B" * 52)
    set_used(tree.entry, OLD - 500)
    set_used(other.entry, OLD - 200)
    turn(tree.root, counted(str(tree.root)) * 2 // 3)
    assert not other.entry.exists()
    assert tree.whole(tree.entry)
    assert tree.whole(tree.view)


def test_an_eviction_takes_a_view_with_another_manifest_along(tree):
    apart(tree)
    set_used(tree.entry, OLD - 500)
    turn(tree.root, 1)  # the use is written down
    turn(tree.root, 1)
    assert not any(map(os.path.lexists, tree.directories))


def test_a_report_sees_the_use_of_a_view_with_another_manifest(tree):
    apart(tree)
    set_used(tree.entry, OLD - 500)
    (entry,) = scan(str(tree.root)).entries
    assert entry.used == used(tree.view)
    assert len(entry.copies) == 3


def test_a_view_outside_the_root_with_another_manifest_is_still_known(tree, tmp_path):
    outside = tmp_path / "outside" / tree.key
    manifest = manifest_of(tree.entry)
    assert link_view(str(tree.root), str(tree.entry), str(outside), manifest, False)
    remember(str(tree.root), str(outside.parent))
    (outside / MANIFEST).unlink()
    (outside / MANIFEST).write_bytes(manifest._replace(recipe=sha256(SAID)).encoded())
    root = os.path.realpath(tree.root)
    (foreign,) = foreign_directories(root)
    seen = view_at(foreign, root, tree.key)
    assert seen is not None
    assert not seen.is_copy
    (entry,) = scan(root).entries
    assert str(outside) in [copy.path for copy in entry.copies]


# ---- damage


def test_damage_to_a_recipe_is_no_damage_to_the_entry(cooked):
    for damage in (b"", b"torn", SAID[:-1] + b" "):
        (cooked.entry / RECIPE).write_bytes(damage)
        assert recipe_of(cooked) is None
        assert cooked.all_there()


PLANTED = {
    "fifo": os.mkfifo,
    "link": lambda path: os.symlink("/etc/passwd", path),
    "dangling link": lambda path: os.symlink("nowhere", path),
    "directory": os.mkdir,
    "100 MB": lambda path: (Path(path).touch(), os.truncate(path, 10**8)),
    "device": lambda path: os.symlink("/dev/zero", path),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_no_recipe_is_told_and_hangs_nobody(cooked, planted):
    (cooked.entry / RECIPE).unlink()
    PLANTED[planted](str(cooked.entry / RECIPE))
    found = recipe_in(str(cooked.entry), manifest_of(cooked.entry))
    assert isinstance(found, NoRecipe)
    assert found.why == "changed"
    assert cooked.all_there()
    if planted != "directory":
        assert add(cooked)
        assert recipe_of(cooked) == SAID


def test_why_there_is_no_recipe_is_told(cooked):
    entry = str(cooked.entry)
    manifest = manifest_of(cooked.entry)
    assert recipe_in(entry, manifest._replace(recipe=None)) == NoRecipe(
        "none", "its manifest tells of none"
    )
    assert recipe_in(entry, manifest._replace(recipe="0" * 64)).why == "changed"
    (cooked.entry / RECIPE).unlink()
    assert recipe_in(entry, manifest).why == "missing"


# ---- killed

ADDING = (
    SCRIPT
    + """
from gpucache.store import identity, limit, recipe_file, removal, size
from gpucache.disk import locks
home, key, recipe = sys.argv[1:4]
root = home + "/root"
entry = f"{root}/gpucache/v1/store/{key[:2]}/{key}"
mark("begin")
done = recipe_file.add_recipe(
    entry, f"{root}/triton/0/{key}", key, recipe.encode(), lambda: f"{root}/gpucache/v1/locks/{key}.lock"
)
mark("end")
assert done
"""
)


def test_a_process_that_is_killed_while_it_adds_leaves_every_directory_whole(
    every_call: EveryCall, stock
):
    """To each reader at each moment; the next call completes it, and views and entry have one manifest again."""

    def start(home: Path) -> list[object]:
        tree = Tree(home)
        updated(str(tree.root), counted(str(tree.root)), anew=True)
        return [tree.key, SAID.decode()]

    def check(home: Path, line: str) -> None:
        tree = Tree.__new__(Tree)
        tree.base, tree.root, tree.key = home, home / "root", KEY
        tree.locks = str(tree.root / "gpucache/v1/locks")
        store = tree.root / "gpucache/v1/store" / KEY[:2]
        tree.entry = store / KEY
        tree.view, tree.other_view = tree.root / "triton/0" / KEY, tree.root / "triton/1" / KEY
        for directory in tree.directories:
            assert tree.whole(directory), line
        for view in tree.views:
            assert stock(view.parent).get_group("add.json") is not None, line
        assert not [one.finding for one in verify(str(tree.root)).findings], line
        if lacks_recipe(str(tree.entry), manifest_of(tree.entry)):  # a launch asks no further
            assert add(tree), line
        assert recipe_of(tree) == SAID, line
        assert {inode(directory) for directory in tree.directories} == {inode(tree.entry)}, line
        for path in (*store.glob(f"{ASIDE}*"), *tree.root.glob(f"triton/*/{ASIDE}*")):
            os.utime(path, (OLD - 7200, OLD - 7200), follow_symlinks=False)
        assert (tree.view / GROUP).exists()

    every_call.killed_everywhere(ADDING, start, check, least=12)
