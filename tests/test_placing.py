"""`gpucache.store.placing`: an entry comes to its place whole, also where a directory cannot be renamed."""

import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.cli import Command
from support.every_call import SCRIPT, EveryCall
from support.trees import GROUP, KERNEL, KEY, OLD, Cache, Tree
from support.users import ADA

from gpucache.disk import lock_token
from gpucache.disk.node import node_id
from gpucache.report.cache_report import scan
from gpucache.store import condemned, placing
from gpucache.store.condemned import signature
from gpucache.store.lookup import sound
from gpucache.store.manifest import CONDEMNED, MANIFEST
from gpucache.store.placing import hand_over, link_or_copy
from gpucache.store.stock import stock_group

BARE = {"rename": "EPERM", "link": "ENOTSUP", "utime": "EPERM", "flock": "ENOSYS"}
CODES = [errno.EXDEV, errno.ENOTSUP, errno.EPERM, errno.ENOSYS, errno.EMFILE, errno.EINVAL]


class Refusing:
    """An operating system on which no directory with anything in it can be renamed, and nothing linked or timed."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.refused = 0
        self.rename = os.rename

    def at_rename(self, source: Any, target: Any, **where: Any) -> None:
        at = where.get("src_dir_fd")
        path = source if at is None else f"/proc/self/fd/{at}/{source}"
        if os.path.isdir(path) and os.listdir(path):
            self.at_all(source)
        self.rename(source, target, **where)

    def at_all(self, path: Any, *_: Any, **__: Any) -> None:
        self.refused += 1
        raise OSError(self.code, os.strerror(self.code), path)


@pytest.fixture(params=CODES, ids=errno.errorcode.get)
def refusing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Refusing:
    system = Refusing(request.param)
    monkeypatch.setattr(os, "rename", system.at_rename)
    monkeypatch.setattr(os, "link", system.at_all)
    monkeypatch.setattr(os, "utime", system.at_all)
    return system


@pytest.fixture
def refused_renames(monkeypatch: pytest.MonkeyPatch) -> Refusing:
    system = Refusing(errno.EPERM)
    monkeypatch.setattr(os, "rename", system.at_rename)
    return system


def half_made(directory: Path, locked: bool, node: str | None = None) -> None:
    """What a maker leaves that is killed before the manifest has come."""
    directory.mkdir(parents=True)
    for name in list(KERNEL)[:2]:
        (directory / name).write_bytes(KERNEL[name])
    said = signature(locked)
    if node is not None:
        said = said.replace(node_id().encode(), node.encode())
    (directory / CONDEMNED).write_bytes(said)


def grow_old(directory: Path) -> None:
    for path in directory.iterdir():
        os.utime(path, (OLD, OLD))


def test_what_another_node_makes_is_waited_for_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    cache.publish()
    finished = cache.entry.rename(tmp_path / "finished")
    half_made(cache.entry, locked=True, node="another")
    waits = []

    def pass_by(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            shutil.rmtree(cache.entry)
            finished.rename(cache.entry)

    monkeypatch.setattr(time, "sleep", pass_by)
    placing.wait_until_made(str(cache.entry))
    assert len(waits) == 3
    assert cache.whole(cache.entry)
    placing.wait_until_made(str(cache.entry))
    assert len(waits) == 3


def test_a_maker_that_is_not_heard_of_is_waited_for_no_longer_than_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_made(tmp_path / "entry", locked=True, node="another")
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    placing.wait_until_made(str(tmp_path / "entry"))
    assert 110 <= now[0] < 111


def test_where_nothing_can_be_renamed_or_linked_entries_and_views_are_whole(
    tmp_path: Path, refusing: Refusing
) -> None:
    cache = Cache(tmp_path)
    assert cache.publish()
    assert cache.link()
    assert cache.whole(cache.entry)
    assert cache.whole(cache.view)
    assert {path.name for path in cache.view.iterdir()} == {*KERNEL, GROUP, MANIFEST}
    assert refusing.refused
    assert not cache.left()
    assert not [stray for stray in scan(str(cache.root)).strays if stray.dead]


def test_what_is_damaged_there_is_quarantined_and_made_again(
    tmp_path: Path, refusing: Refusing
) -> None:
    cache = Cache(tmp_path)
    cache.publish()
    cache.link()
    for directory in (cache.entry, cache.view):
        (directory / "add.cubin").write_bytes(b"")
    assert not cache.publish()
    assert cache.publish(repair=True)
    assert cache.link(repair=True)
    assert cache.whole(cache.entry)
    assert cache.whole(cache.view)
    assert len(cache.quarantined()) == 2
    assert {path.name for path in cache.quarantined()[0].iterdir()} >= {*KERNEL, MANIFEST}


def test_an_entry_is_removed_there_whole(tmp_path: Path, refused_renames: Refusing) -> None:
    tree = Tree(tmp_path)
    tree.remove()
    assert not any(directory.exists() for directory in tree.directories)
    assert not tree.left()


@pytest.mark.parametrize("number", range(1, 12))
def test_stopped_at_any_file_of_a_removal_there_all_is_put_back(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_renames: Refusing
) -> None:
    tree, real, seen = Tree(tmp_path), os.rename, []

    def stop(*words: Any, **where: Any) -> None:
        seen.append(words)
        if len(seen) == number:
            raise KeyboardInterrupt
        real(*words, **where)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            tree.remove()
    assert tree.all_there()
    assert tree.whole(tree.entry)


# ---- who else is at it


def test_readers_find_nothing_until_the_manifest_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_renames: Refusing
) -> None:
    cache, replace, looked = Cache(tmp_path), os.replace, []
    cache.publish()

    def look(source: str, target: str) -> None:
        looked.append(
            sound(str(cache.view), False, 0.0) or stock_group(str(cache.view), "add.json")
        )
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    assert cache.link()
    assert looked == [None] * 5
    assert cache.whole(cache.view)


@pytest.mark.parametrize("locked", [True, False])
def test_of_two_makers_at_once_the_first_one_wins_and_nothing_is_mixed(
    locked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_renames: Refusing
) -> None:
    """The second one, of another node, comes between two files of the first one."""
    cache, replace, answers = Cache(tmp_path), os.replace, []
    other = {name: data[::-1] for name, data in KERNEL.items()}

    def overtaken(source: str, target: str) -> None:
        if target.endswith("add.json") and not answers:
            answers.append(None)
            with monkeypatch.context() as patch:
                patch.setattr(condemned, "node_id", lambda: "0badcafe")
                answers[0] = cache.publish(other, repair=locked)
        replace(source, target)

    monkeypatch.setattr(os, "replace", overtaken)
    assert cache.publish()
    assert answers == [False]
    assert cache.whole(cache.entry)


def test_what_a_killed_maker_left_is_replaced_at_once_by_the_next_holder_of_the_lock(
    tmp_path: Path, refused_renames: Refusing
) -> None:
    cache = Cache(tmp_path)
    half_made(cache.entry, locked=True)
    half_made(cache.view, locked=True)
    assert sound(str(cache.entry), False, 0.0) is None
    assert not cache.publish()
    assert cache.publish(repair=True)
    assert cache.link(repair=True)
    assert cache.whole(cache.entry)
    assert cache.whole(cache.view)
    assert not cache.quarantined()


@pytest.mark.parametrize(
    ("locked", "node"),
    [(False, None), (True, "0badcafe"), (True, "another pod")],
    ids=["without the lock", "of another node", "of a pod with a /dev/shm of its own"],
)
def test_a_maker_whose_life_no_lock_tells_has_two_minutes(
    locked: bool,
    node: str | None,
    tmp_path: Path,
    refused_renames: Refusing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = Cache(tmp_path)
    if node == "another pod":
        with monkeypatch.context() as patch:
            patch.setattr(lock_token, "_parent", lambda: "/proc")
            half_made(cache.entry, locked)
    else:
        half_made(cache.entry, locked, node)
    assert not cache.publish(repair=True)
    assert (cache.entry / CONDEMNED).exists()
    grow_old(cache.entry)
    assert cache.publish(repair=True)
    assert cache.whole(cache.entry)


def test_what_a_maker_of_another_node_finishes_while_it_is_looked_at_stays(
    tmp_path: Path, refused_renames: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, cache = Cache(tmp_path / "finished"), Cache(tmp_path)
    finished.publish()
    half_made(cache.entry, True, "0badcafe")
    looked = placing.is_being_made

    def finish(target: str, locked: bool) -> bool:
        shutil.rmtree(target)
        shutil.copytree(finished.entry, target)
        return looked(target, locked)

    monkeypatch.setattr(placing, "is_being_made", finish)
    assert cache.publish(repair=True)
    assert cache.whole(cache.entry)
    assert not cache.quarantined()


def test_a_directory_whose_maker_was_killed_before_he_said_who_he_was_is_had_under_the_lock(
    tmp_path: Path, refused_renames: Refusing
) -> None:
    cache = Cache(tmp_path)
    cache.entry.mkdir(parents=True)
    assert not cache.publish()
    assert cache.publish(repair=True)
    assert cache.whole(cache.entry)


def test_a_file_in_the_place_of_an_entry_goes_to_the_quarantine(
    tmp_path: Path, refused_renames: Refusing
) -> None:
    cache = Cache(tmp_path)
    cache.entry.parent.mkdir(parents=True)
    cache.entry.write_text("mine")
    assert not cache.publish()
    assert cache.entry.read_text() == "mine"
    assert cache.publish(repair=True)
    assert cache.whole(cache.entry)
    assert cache.quarantined()[0].read_text() == "mine"


def test_of_two_makers_in_one_empty_directory_the_first_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_renames: Refusing
) -> None:
    """Both hold what they take for the key's lock, on two nodes, and find what a third one has left."""
    cache, listdir, others = Cache(tmp_path), os.listdir, []
    cache.entry.mkdir(parents=True)

    def overtaken(path: Any) -> list[str]:
        found = listdir(path)
        if path == str(cache.entry) and not others:
            others.append(True)
            (cache.entry / CONDEMNED).write_bytes(
                signature(True).replace(node_id().encode(), b"0badcafe")
            )
        return found

    monkeypatch.setattr(os, "listdir", overtaken)
    assert not cache.publish(repair=True)
    assert others
    assert {path.name for path in cache.entry.iterdir()} == {CONDEMNED}


def test_a_half_made_directory_is_a_stray_and_no_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    half_made(cache.entry, locked=True)
    half_made(cache.view, locked=False)
    report = scan(str(cache.root))
    assert not report.entries
    assert not report.findings
    assert {stray.kind for stray in report.strays} == {"half-removed"}


def test_a_half_made_directory_goes_with_prune_once_it_is_an_hour_old(
    tmp_path: Path, here: Command
) -> None:
    cache = Cache(tmp_path)
    half_made(cache.entry, locked=True)
    half_made(cache.view, locked=False)
    words = ("prune", "--max-age", "30d", "--yes", "--root", cache.root)
    assert here(*words).code == 0
    assert cache.entry.exists()
    for directory in (cache.entry, cache.view):
        os.utime(directory, (OLD - 60, OLD - 60))
    assert here(*words).code == 0
    assert not cache.entry.exists()
    assert not cache.view.exists()


def test_a_full_disk_leaves_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_renames: Refusing
) -> None:
    cache, replace = Cache(tmp_path), os.replace

    def full(source: str, target: str) -> None:
        if target.endswith("add.ptx"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        cache.publish()
    assert not cache.entry.exists()


def test_a_mount_that_gives_files_other_times_on_their_way_gets_a_manifest_of_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_renames: Refusing
) -> None:
    cache, replace = Cache(tmp_path), os.replace

    def later(source: str, target: str) -> None:
        replace(source, target)
        os.utime(target, (OLD, OLD))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", later)
        assert cache.publish()
    found = sound(str(cache.entry), False, 0.0)
    assert found is not None
    assert {file.mtime_ns // 10**9 for file in found.files.values()} == {int(OLD)}


def test_a_full_disk_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    system = Refusing(errno.ENOSPC)
    monkeypatch.setattr(os, "rename", system.at_rename)
    with pytest.raises(OSError, match="No space"):
        cache.publish()
    assert not cache.entry.exists()


# ---- on a real mount


PUBLISH = (
    SCRIPT
    + """
import hashlib
from gpucache.disk.staging import Staging
from gpucache.store.manifest import Facts, entry_path
from gpucache.store.publish import link_view, publish_entry
from gpucache.store.lookup import sound
root, view, key = sys.argv[2:5]
staging = Staging(root + "/gpucache/v1/tmp")
home = staging.directory()
staged = {}
for name, data in json.loads(sys.argv[5]).items():
    with open(home + "/" + name, "wb") as file:
        file.write(bytes.fromhex(data))
    staged[name] = (home + "/" + name, hashlib.sha256(bytes.fromhex(data)).hexdigest())
entry = entry_path(root, key)
mark("begin")
facts = Facts(kernel="add", group="add.json")
assert publish_entry(root, key, staged, facts, staging, True, recipe=b"how")
assert link_view(root, entry, view, sound(entry, False, 0.0), True)
mark("end")
"""
)


@pytest.mark.kills
class TestKilled:
    def test_at_any_call_readers_find_all_or_nothing_and_the_next_holder_of_the_lock_goes_on(
        self, object_store: Callable[..., Path], strace: str, tmp_path: Path
    ) -> None:
        """SIGKILL before each call that changes the disk, on a real mount that refuses all it may."""
        every_call = EveryCall(strace, object_store(tmp_path / "store", **BARE))
        files = json.dumps({name: data.hex() for name, data in KERNEL.items()})
        caches = {}

        def start(home: Path) -> list[object]:
            cache = caches[home] = Cache(home)
            return [cache.root, cache.view, KEY, files]

        def check(home: Path, line: str) -> None:
            cache = caches[home]
            for directory in (cache.entry, cache.view):
                found = sound(str(directory), False, 0.0)
                assert found is None or cache.whole(directory), line
            group = stock_group(str(cache.view), "add.json")
            assert group is None or len(group) == len(KERNEL), line
            assert cache.publish(repair=True), line
            assert cache.link(repair=True), line
            assert cache.whole(cache.entry), line
            assert cache.whole(cache.view), line

        names = every_call.killed_everywhere(PUBLISH, start, check, least=30)
        assert names & {"rename", "renameat", "renameat2"}


class TestRealMount:
    @pytest.fixture
    def cache(self, object_store: Callable[..., Path], tmp_path: Path) -> Cache:
        return Cache(object_store(tmp_path / "store", **BARE))

    def test_entries_and_views_are_whole_and_are_made_again(self, cache: Cache) -> None:
        assert cache.publish()
        assert cache.link()
        assert cache.whole(cache.entry)
        assert cache.whole(cache.view)
        (cache.entry / "add.cubin").write_bytes(b"")
        assert cache.publish(repair=True)
        assert cache.whole(cache.entry)
        assert len(cache.quarantined()) == 1
        assert not scan(str(cache.root)).findings


class TestCopies:
    """What may be copied where nothing can be linked: root does so for other users."""

    @pytest.fixture(autouse=True)
    def unlinkable(self, monkeypatch):
        def refusing(*_: Any, **__: Any) -> None:
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

        monkeypatch.setattr(os, "link", refusing)

    def test_a_copy_has_time_and_permissions_and_never_its_makers_rights(self, tmp_path):
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(b"a program of another user's")
        source.chmod(0o6755)
        os.utime(source, ns=(10**18, 10**18 + 7))
        assert link_or_copy(str(source), str(target)) is False
        assert target.read_bytes() == source.read_bytes()
        found = target.stat()
        assert stat.S_IMODE(found.st_mode) == 0o755
        assert found.st_mtime_ns == 10**18 + 7

    def test_what_is_swapped_for_a_link_before_the_copy_is_not_followed(self, tmp_path):
        secret, source, target = tmp_path / "shadow", tmp_path / "source", tmp_path / "target"
        secret.write_text("what only root may read")
        source.symlink_to(secret)
        with pytest.raises(OSError):
            link_or_copy(str(source), str(target))
        assert not os.path.lexists(target)

    def test_nothing_is_written_through_a_link_in_the_place_of_the_copy(self, tmp_path):
        victim, source, target = tmp_path / "passwd", tmp_path / "source", tmp_path / "target"
        victim.write_text("precious")
        source.write_text("planted")
        target.symlink_to(victim)
        with pytest.raises(FileExistsError):
            link_or_copy(str(source), str(target))
        assert victim.read_text() == "precious"


@pytest.mark.root
def test_root_hands_over_what_it_has_made_and_nothing_else(tmp_path):
    new, owners = tmp_path / "new", tmp_path / "owners"
    for directory in (new, owners):
        directory.mkdir()
    os.chown(owners, ADA, ADA)
    (new / "made").write_text("by root")
    (tmp_path / "roots").write_text("linked here by its name")
    os.link(tmp_path / "roots", new / "linked")
    (new / "link").symlink_to(tmp_path / "roots")
    here = os.open(new, os.O_RDONLY)
    hand_over(here, ["made", "linked", "link", "gone"], owners.stat())
    os.close(here)
    assert (new.stat().st_uid, (new / "made").stat().st_uid) == (ADA, ADA)
    assert (tmp_path / "roots").stat().st_uid == 0
    assert (new / "link").lstat().st_uid == 0
