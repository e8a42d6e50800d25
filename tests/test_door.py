"""What lies below a root may be anything: nobody hangs on it or reads it without end, and kernels are still found."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tree

from gpucache.disk import door
from gpucache.layout import paths
from gpucache.store.manifest import entry_path

KERNELS = 6


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    """A gibibyte, of which the disk keeps nothing."""
    path.touch()
    os.truncate(path, 2**30)


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def directory(path: Path) -> None:
    path.mkdir()


PLANTS = [fifo, endless, huge, deep, directory]
Plant = Callable[[Path], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with six kernels in the store and in two device directories."""
    root = tmp_path / "root"
    tree.make(str(root), KERNELS, 2)
    return root


def places(root: Path) -> dict[str, Path]:
    """Everything below a root that gpucache or Triton reads, by name."""
    key = sorted(os.listdir(root / "triton/0"))[0]
    entry = Path(entry_path(str(root), key))
    view = root / "triton/0" / key
    ours = Path(paths.ours(str(root)))
    (group,) = view.glob("__grp__*")
    return {
        "a kernel's binary in the store": next(entry.glob("*.cubin")),
        "a kernel's metadata in the view": next(view.glob("*[!_].json")),
        "a manifest in the store": entry / "__entry__.json",
        "a manifest in the view": view / "__entry__.json",
        "a group": group,
        "the record": Path(paths.record_path(str(root), paths.host_name())),
        "counters": ours / "stats" / "node.1.1.json",
        "folded counters": ours / "stats" / "folded.json",
        "the file of a fold": ours / "stats" / "folding",
        "the lock of counters": ours / "stats" / "lock",
        "the size": ours / "stats" / "size",
        "a lock": ours / "locks" / f"{key}.lock",
        "who holds the lock of provisioning": ours / "locks" / "provision.lock.holder",
    }


NAMES = [
    "a kernel's binary in the store",
    "a kernel's metadata in the view",
    "a manifest in the store",
    "a manifest in the view",
    "a group",
    "the record",
    "counters",
    "folded counters",
    "the file of a fold",
    "the lock of counters",
    "the size",
    "a lock",
    "who holds the lock of provisioning",
]

LOOK = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
root = sys.argv[1]
os.environ |= {"GPUCACHE_DIR": root, "TRITON_CACHE_DIR": root + "/triton/0"}
from gpucache.cli.main import main
from gpucache.triton import DeviceCacheManager
sys.stdin = None
codes = []
for words in (["ls"], ["du"], ["stats"], ["verify"], ["doctor"], ["prune", "--dry-run"],
              ["path", "0"], ["explain", sorted(os.listdir(root + "/triton/0"))[0]]):
    codes.append(main(words if words[0] == "path" else [*words, "--root", root]))
found = 0
for key in sorted(os.listdir(root + "/triton/0")):
    for name in os.listdir(root + "/triton/0/" + key):
        if name.startswith("__grp__"):
            filename = name.removeprefix("__grp__")
            found += DeviceCacheManager(key).get_group(filename) is not None
print(codes, found, file=sys.stderr)
"""


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_planted_no_command_hangs_or_breaks_and_the_other_kernels_are_found(
    root, python, name, plant
):
    assert sorted(places(root)) == sorted(NAMES)
    path = places(root)[name]
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    plant(path)
    env = {**os.environ, "GPUCACHE_FAKE_DEVICES": "2", "GPUCACHE_LOCK_TIMEOUT_S": "0.2"}
    done = python(LOOK, root, env=env)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    codes, _, found = done.stderr.splitlines()[-1].rpartition(" ")
    assert set(json.loads(codes)) <= {0, 1}
    assert int(found) >= KERNELS - 1


def test_only_a_regular_file_is_read_and_no_more_than_was_asked_for(tmp_path):
    (tmp_path / "file").write_bytes(b"1234")
    assert door.read_limited(str(tmp_path / "file"), 4) == b"1234"
    with pytest.raises(OSError, match="too large") as raised:
        door.read_limited(str(tmp_path / "file"), 3)
    assert raised.value.errno == errno.EFBIG
    for number, plant in enumerate((fifo, endless, directory)):
        plant(tmp_path / str(number))
        before = os.listdir("/proc/self/fd")
        with pytest.raises(OSError):
            door.read_limited(str(tmp_path / str(number)), 100)
        assert os.listdir("/proc/self/fd") == before


def test_a_number_that_is_none_of_a_counter_spoils_no_sum(root):
    from gpucache.store.stats import totals

    stats = Path(paths.ours(str(root), "stats"))
    stats.mkdir(exist_ok=True)
    said = {"hits": 3, "misses": 10**400, "waits": -1, "waited_s": 1e308, "saved_s": float("nan")}
    (stats / "node.1.1.json").write_text(json.dumps({"device": "0", "values": said}))
    assert totals(str(root))["0"] == {"hits": 3}
