"""What lies below a root may be anything: nobody hangs on it or reads it without end, and kernels are still found."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tree
from support.every_call import warm
from support.processes import BARE, PATIENCE_S
from support.users import ADA, BOB
from support.warm import WarmPython

from gpucache.disk import door
from gpucache.disk.node import node_id
from gpucache.layout import paths
from gpucache.store.manifest import entry_path

KERNELS = 3


# ---- what is planted: each is given a path where nothing is, and what was there


def fifo(path: Path, _: bytes) -> None:
    os.mkfifo(path)


def endless(path: Path, _: bytes) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path, _: bytes) -> None:
    """A gibibyte, of which the disk keeps nothing."""
    path.touch()
    os.truncate(path, 2**30)


def directory(path: Path, _: bytes) -> None:
    path.mkdir()


def deep(path: Path, _: bytes) -> None:
    path.write_text("[" * 100_000)


def undecodable(path: Path, _: bytes) -> None:
    path.write_bytes(b"\xff\xfe\x00{")


def digits(path: Path, content: bytes) -> None:
    """The same with a number of 5,000 digits in the place of each: what Python refuses to read."""
    path.write_bytes(numbers_replaced(content, b"9" * 5000))


def astronomic(path: Path, content: bytes) -> None:
    """The same with numbers that Python reads, and that no float holds."""
    path.write_bytes(numbers_replaced(content, b"9" * 400))


def not_a_number(path: Path, content: bytes) -> None:
    path.write_bytes(numbers_replaced(content, b"NaN"))


def infinite(path: Path, content: bytes) -> None:
    path.write_bytes(numbers_replaced(content, b"-Infinity"))


def closed(path: Path, content: bytes) -> None:
    """Another user's file, which only that user may read."""
    path.write_bytes(content)
    path.chmod(0o600)
    os.chown(path, BOB, BOB)


def numbers_replaced(content: bytes, number: bytes) -> bytes:
    """JSON with another number in the place of each one; just the number where there was none."""
    replaced = re.sub(rb"(?<=[:\[ ,])-?[0-9][0-9.e+-]*(?=[,}\] ])", number, content)
    return number if replaced == content else replaced


Plant = Callable[[Path, bytes], None]
PLANTS: list[Plant] = [
    fifo,
    endless,
    huge,
    directory,
    deep,
    undecodable,
    digits,
    astronomic,
    not_a_number,
    infinite,
    closed,
]


# ---- where


def entry_of(root: Path) -> Path:
    return Path(entry_path(str(root), keys(root)[0]))


def view_of(root: Path) -> Path:
    return root / "triton/0" / keys(root)[0]


def keys(root: Path) -> list[str]:
    return sorted(os.listdir(root / "triton/0"))


def ours(*below: str) -> Callable[[Path], Path]:
    return lambda root: Path(paths.ours(str(root))).joinpath(*below)


PLACES: dict[str, Callable[[Path], Path]] = {
    "binary": lambda root: next(entry_of(root).glob("*.cubin")),
    "metadata": lambda root: next(view_of(root).glob("*[!_].json")),
    "manifest": lambda root: entry_of(root) / "__entry__.json",
    "manifest-of-a-view": lambda root: view_of(root) / "__entry__.json",
    "group": lambda root: next(view_of(root).glob("__grp__*")),
    "tag": lambda root: root / "CACHEDIR.TAG",
    "record": lambda root: Path(paths.record_path(str(root), paths.host_name())),
    "counters": ours("stats", f"{node_id()}.node.1.1.counts"),
    "folded": ours("stats", f"{node_id()}.folded.1.1.folded"),
    "old-counters": ours("stats", f"{node_id()}.node.1.1.json"),
    "old-folded": ours("stats", "folded.json"),
    "old-lock-of-counters": ours("stats", "lock"),
    "size": ours("stats", "size"),
    "lock": lambda root: ours("locks", f"{keys(root)[0]}.lock")(root),
    "lock-of-provisioning": ours("locks", "provision.lock"),
    "holder-of-provisioning": ours("locks", "provision.lock.holder"),
    "place-of-locks": ours("locks", f"{node_id()}.0.place"),
    "answers-of-a-mount": ours("mounts", f"{node_id()}.json"),
    "foreign-note": ours("foreign", f"{node_id()}.0.{'0' * 32}.json"),
    "kept-key": ours("tritons", f"{'0' * 32}.json"),
    "numbers-of-packs": ours("packs", "numbers.json"),
    "staged": ours("tmp", "publish-1"),
    "quarantined": ours("quarantine", f"{'A' * 52}.17f0000000000000.1"),
}
CONTENT = {
    "counters": b'00000000 {"device": "0", "turn": 1, "values": {"hits": 1}}',
    "folded": b'{"absorbed": [], "sums": {"h": {"0": {"1": {"hits": 1}}}}}',
    "old-counters": b'{"device": "0", "values": {"hits": 1}}',
    "old-folded": b'[{"device": "0", "values": {"hits": 1}}]',
    "size": b"[4096, false, 1.0]",
    "lock": b'{"pid": 1, "host": "node", "since": "then"}',
    "holder-of-provisioning": b'{"pid": 1, "host": "node", "since": "then"}',
    "answers-of-a-mount": b'{"version": 1, "tried": 1, "hard_links": true}',
    "foreign-note": b'{"version": 1, "path": "/nowhere"}',
    "kept-key": b'{"version": 1, "triton": "3.9.0", "files": [], "key": "3.9.0"}',
    "numbers-of-packs": b'{"version": 1, "numbers": {"llama": 7}}',
}
"""What is in a file that a new root does not have."""

LOOK = """
import os, resource, sys, threading
import filelock
import gpucache.cli.caches, gpucache.cli.diagnosis, gpucache.cli.removals, gpucache.cli.stats, gpucache.cli.devices
import gpucache.cli.path_and_env, gpucache.upkeep.verify, gpucache.upkeep.prune, gpucache.upkeep.clean
import gpucache.diagnosis.doctor, gpucache.diagnosis.config, gpucache.diagnosis.why_missed, gpucache.report.find
from gpucache.cli.main import main
from gpucache.triton import DeviceCacheManager
def look(root):
    os.environ |= {"GPUCACHE_DIR": root, "TRITON_CACHE_DIR": root + "/triton/0"}
    keys = sorted(os.listdir(root + "/triton/0"))
    found = 0
    for key in keys:
        for name in os.listdir(root + "/triton/0/" + key):
            if name.startswith("__grp__"):
                filename = name.removeprefix("__grp__")
                found += DeviceCacheManager(key).get_group(filename) is not None
    print(found, "found", file=sys.stderr)
    manager = DeviceCacheManager("B" * 52)
    manager.get_group("add.json")
    group = {name: manager.put(b"{}", name) for name in ("add.json", "add.cubin")}
    manager.put_group("add.json", group)
    print(all(map(os.path.exists, group.values())), "compiled", file=sys.stderr)
    for words in (
        "ls", "ls " + keys[0], "du", "stats", "verify", "doctor", "config", "devices", "explain " + keys[0],
        "explain " + " ".join(keys[:2]), "why *", "compare " + " ".join(keys[:2]),
        "cat " + keys[0] + " ptx", "prune --max-age 1s --dry-run", "clean --dry-run", "path 0", "env 0",
        "provision", "verify --repair", "prune --max-entries 2 --yes", "clean --force --yes",
    ):
        as_root = [] if words.startswith(("path", "env", "devices", "config")) else ["--root", root]
        print(main([*words.split(), *as_root]), "from", words, file=sys.stderr)
user, *roots = sys.argv[1:]
for root in roots[:-1]:
    look(root)  # everything is imported: another user may not reach the modules
for thread in set(threading.enumerate()) - {threading.main_thread()}:
    thread.join()  # a turn of eviction imports late
if int(user):
    os.setgroups([])
    os.setegid(int(user))
    os.seteuid(int(user))
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
print("planted", file=sys.stderr)
look(roots[-1])
"""


@pytest.fixture(scope="module")
def warm_python() -> Iterator[WarmPython]:
    with warm(LOOK) as python:
        yield python


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users, which only root can")
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("place", PLACES)
def test_whatever_is_planted_no_command_hangs_or_breaks_and_the_other_kernels_are_found(
    everyones, warm_python, place, plant
):
    root = everyones / "root"
    tree.make(str(root), KERNELS, 2)
    path = PLACES[place](root)
    content = path.read_bytes() if path.exists() else CONTENT.get(place, b"")
    path.unlink(missing_ok=True)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    user = ADA if plant is closed else 0
    for one in [root, *root.rglob("*")]:
        os.chown(one, user, user, follow_symlinks=False)
    plant(path, content)
    roots = [root]
    if user:
        tree.make(str(everyones / "another"), KERNELS, 2)
        roots.insert(0, everyones / "another")
    assert looked(warm_python, user, *roots) >= KERNELS - 1


def looked(python: WarmPython, user: int, *roots: Path) -> int:
    """Find the kernels of the last root and run the commands there as this user; the number of kernels found.

    Ends in time, with the codes of what is expected.
    """
    env = {**BARE, "GPUCACHE_FAKE_DEVICES": "2", "GPUCACHE_LOCK_TIMEOUT_S": "0.2"}
    done = python.run(LOOK, user, *roots, env=env, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    said = done.stderr.partition("planted\n")[2]
    assert "Traceback" not in said, said
    ends = re.findall(r"^(\S+) from (.*)$", said, re.MULTILINE)
    assert len(ends) == 21
    assert [(code, words) for code, words in ends if code not in ("0", "1")] == [], said
    assert "True compiled" in said
    (found,) = re.findall(r"^(\d) found$", said, re.MULTILINE)
    return int(found)


HELD = [
    "lock",
    "lock-of-provisioning",
    "size",
    "counters",
    "folded",
    "old-counters",
    "old-lock-of-counters",
    "place-of-locks",
]
DIRECTORIES = [
    "devices",
    "store",
    "locks",
    "tmp",
    "quarantine",
    "stats",
    "mounts",
    "foreign",
    "tritons",
    "packs",
]


@pytest.mark.parametrize("plant", [fifo, endless, undecodable], ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("part", DIRECTORIES)
def test_whatever_is_in_the_place_of_a_directory_no_command_hangs_or_breaks(
    tmp_path, warm_python, part, plant
):
    """Nor does a launch, which finds the kernels or compiles them."""
    root = tmp_path / "root"
    tree.make(str(root), KERNELS, 2)
    path = ours(part)(root)
    shutil.rmtree(path, ignore_errors=True)
    plant(path, b"")
    looked(warm_python, 0, root)


LOCKS: dict[str, Callable[[Path], Path]] = {
    **{name: PLACES[name] for name in HELD},
    "all-locks": ours("locks"),
    "counters-directory": ours("stats"),
    "staging": ours("tmp", "gpucache-staging-1"),
    "inductor": lambda root: root / "locks" / "a.lock",
}
"""Every lock of the table in `docs/on-disk.md`."""


@pytest.mark.parametrize("lock", LOCKS)
def test_whatever_lock_is_held_for_ever_no_command_waits_for_it(tmp_path, warm_python, lock):
    """Nor does a launch, which finds all kernels."""
    root = tmp_path / "root"
    tree.make(str(root), KERNELS, 2)
    old = ours("stats", f"{node_id()}.node.2.1.json")(root)
    old.parent.mkdir(mode=0o700)
    old.write_bytes(CONTENT["old-counters"])
    path = LOCKS[lock](root)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(CONTENT.get(lock, b""))
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert looked(warm_python, 0, root) == KERNELS
    finally:
        os.close(fd)


def test_only_a_regular_file_is_read_and_no_more_than_was_asked_for(tmp_path):
    (tmp_path / "file").write_bytes(b"1234")
    assert door.read_limited(str(tmp_path / "file"), 4) == b"1234"
    with pytest.raises(OSError, match="too large") as raised:
        door.read_limited(str(tmp_path / "file"), 3)
    assert raised.value.errno == errno.EFBIG
    for number, plant in enumerate((fifo, endless, directory)):
        plant(tmp_path / str(number), b"")
        before = os.listdir("/proc/self/fd")
        with pytest.raises(OSError):
            door.read_limited(str(tmp_path / str(number)), 100)
        assert os.listdir("/proc/self/fd") == before


def test_a_file_that_cannot_be_read_now_is_an_error_of_the_disk(tmp_path, monkeypatch):
    """Python gives None for what a descriptor opened with ``O_NONBLOCK`` has not got yet."""

    class NotNow(io.BytesIO):
        def read(self, *_: object) -> None:
            return None

    with pytest.raises(BlockingIOError):
        door.read_some(NotNow())


def test_whatever_is_opened_without_waiting_is_read_by_it():
    """Such a file's own `read` may give None, which a caller takes for bytes."""
    package = Path(door.__file__).parent.parent
    found = []
    for path in package.rglob("*.py"):
        text = path.read_text()
        opens = "open_regular(" in text or "opener=opener" in text or "O_NONBLOCK" in text
        if opens and path.name != "door.py":
            reads = re.findall(r"\b(?:file|opened)\.read\(", text)
            found += [f"{path.relative_to(package)}: {read}" for read in reads]
    assert found == []
