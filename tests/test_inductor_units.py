"""What may go alone of TorchInductor's, how it goes, and that a running torch does not notice."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.inductor import HOUR, NOW, autograd, code, digest, graph, library, wrote
from support.trees import Tree, everything_below, planned, pruned, set_used

from gpucache.disk.within import Straight
from gpucache.errors import ConfigurationError
from gpucache.report.cache_report import scan
from gpucache.store.inductor_units import find, remove_unit
from gpucache.store.removal import InUse
from gpucache.upkeep.plan import plan
from gpucache.upkeep.prune import PrunePolicy


@pytest.fixture
def others(root: Path) -> list[Path]:
    """What stays, however old: headers, timings, what others have, what nobody knows."""
    header = code("header")
    return [
        wrote(root, f"{header[1:3]}/{header}.h", 5000, 90 * HOUR),
        wrote(root, f"precompiled_headers/{header}.h.gch", 5000, 90 * HOUR),
        wrote(root, f"precompiled_headers/locks/{header}.lock", 0, 90 * HOUR),
        wrote(root, f"cache/{'0' * 64}", 5000, 90 * HOUR),
        wrote(root, "ab/notes.py", 5000, 90 * HOUR),
        wrote(root, "dynamo/code_state.pkl", 5000, 90 * HOUR),
        wrote(root, "fxgraph/README", 5000, 90 * HOUR),
    ]


class TestFind:
    def test_the_files_of_one_hash_are_one_unit_and_each_graph_is_one(self, root, others):
        library(root, "one", 3 * HOUR)
        graph(root, "two", 2 * HOUR)
        autograd(root, "three", 1 * HOUR)
        units = sorted(find(str(root)).units, key=lambda unit: unit.used)
        assert [unit.size_bytes for unit in units] == [1000, 1000, 1000]
        assert [len(unit.files) for unit in units] == [3, 1, 1]
        assert [unit.lock is not None for unit in units] == [True, False, False]
        assert [round((time.time() - unit.used) / HOUR) for unit in units] == [3, 2, 1]

    def test_a_use_of_any_file_or_of_the_lock_is_one_of_the_unit(self, root):
        for path in library(root, "one", 9 * HOUR):
            os.utime(path, (NOW - 60, NOW - 9 * HOUR))
            (unit,) = find(str(root)).units
            assert unit.used == pytest.approx(NOW - 60)
            os.utime(path, (NOW - 9 * HOUR, NOW - 9 * HOUR))

    def test_links_are_not_followed(self, root, tmp_path):
        root.mkdir(exist_ok=True)
        outside = tmp_path / "outside"
        graph(outside, "one", HOUR)
        library(outside, "one", HOUR)
        (root / "fxgraph").symlink_to(outside / "fxgraph")
        name = code("one")
        (root / name[1:3]).symlink_to(outside / name[1:3])
        (root / "aotautograd").mkdir()
        (root / "aotautograd" / f"a{digest('one')}").symlink_to(outside)
        assert find(str(root)) == ((), (), ())


class TestRemove:
    def remove(self, root: Path) -> None:
        (unit,) = find(str(root)).units
        with Straight() as disk:
            remove_unit(unit, disk)

    def test_a_unit_goes_whole_with_its_lock(self, root):
        paths = library(root, "one", HOUR)
        self.remove(root)
        assert not any(path.exists() for path in paths)
        assert paths[0].parent.is_dir(), "torch may be about to write there"

    def test_while_torch_holds_the_lock_or_has_made_one_since_it_stays(self, root):
        paths = library(root, "one", HOUR)
        with paths[-1].open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(InUse, match="locked"):
                self.remove(root)
        paths[-1].unlink()
        (unit,) = find(str(root)).units
        paths[-1].touch()
        with Straight() as disk, pytest.raises(InUse, match="locked"):
            remove_unit(unit, disk)
        assert all(path.exists() for path in paths)

    @pytest.mark.parametrize("number", range(4))
    def test_what_was_used_since_it_was_found_stays_whole(self, root, number):
        paths = library(root, "one", HOUR)
        (unit,) = find(str(root)).units
        os.utime(paths[number])
        with Straight() as disk, pytest.raises(InUse):
            remove_unit(unit, disk)
        assert all(path.exists() for path in paths)

    def test_what_lies_behind_a_link_by_now_stays(self, root, tmp_path):
        path = graph(root, "one", HOUR)
        (unit,) = find(str(root)).units
        (root / "fxgraph").rename(tmp_path / "elsewhere")
        (root / "fxgraph").symlink_to(tmp_path / "elsewhere")
        with Straight() as disk, pytest.raises(InUse):
            remove_unit(unit, disk)
        assert path.exists()

    def test_a_fifo_as_a_lock_hangs_nobody(self, root):
        paths = library(root, "one", HOUR)
        (unit,) = find(str(root)).units
        paths[-1].unlink()
        os.mkfifo(paths[-1])
        with Straight() as disk, pytest.raises(InUse):
            remove_unit(unit, disk)


class TestPrune:
    """Entries and Inductor's files by one order of their last uses, when asked."""

    @pytest.fixture
    def entry(self, tmp_path: Path) -> Tree:
        """Some 4,500 bytes, used three hours ago."""
        made = Tree(tmp_path)
        set_used(made.entry, NOW - 3 * HOUR)
        return made

    def test_unasked_nothing_of_inductors_goes_nor_counts(self, entry, root):
        path = graph(root, "one", 90 * HOUR)
        assert pruned(root, max_size_bytes=7000).entries == 0
        assert pruned(root, max_size_bytes=0, max_age_s=HOUR).entries == 1
        assert path.exists()

    def test_the_least_recently_used_go_until_all_is_within_the_size(self, entry, root, others):
        paths = library(root, "one", 4 * HOUR)
        younger = graph(root, "two", 2 * HOUR)
        before = everything_below(root / "dynamo")
        size = planned(root, max_size_bytes=0, inductor=True).physical_bytes
        done = pruned(root, max_size_bytes=size - 1, inductor=True)
        assert done.entries == 0
        assert not any(path.exists() for path in paths)
        assert younger.exists()
        done = pruned(root, max_size_bytes=1500, inductor=True)
        assert done.entries == 1
        assert younger.exists()
        done = pruned(root, max_size_bytes=0, inductor=True)
        assert not younger.exists()
        assert all(path.exists() for path in others)
        assert everything_below(root / "dynamo") == before

    def test_an_age_holds_for_both(self, entry, root):
        older, younger = autograd(root, "one", 5 * HOUR), autograd(root, "two", 2 * HOUR)
        assert pruned(root, max_age_s=4 * HOUR, inductor=True).entries == 0
        assert (older.exists(), younger.exists()) == (False, True)

    def test_a_number_is_of_entries_only(self, entry, root):
        path = autograd(root, "one", 5 * HOUR)
        assert pruned(root, max_entries=0, inductor=True).entries == 1
        assert path.exists()

    def test_what_was_used_in_the_grace_stays_and_is_told(self, root):
        path = graph(root, "one", 60)
        made = planned(root, max_size_bytes=0, inductor=True)
        assert [(one.key, one.why) for one in made.kept] == [(str(path), "used 1 min ago")]
        assert made.units == ()

    def test_the_grace_is_never_shorter_than_torch_may_queue_a_compile(self, root):
        young, old = graph(root, "one", 800), graph(root, "two", 1000)
        policy = PrunePolicy(max_size_bytes=0, inductor=True, grace_s=2.0)
        made = plan(scan(str(root)), policy, {"GPUCACHE_STAMP_S": "1"})
        assert [unit.path for unit in made.units] == [str(old)]
        assert [one.key for one in made.kept] == [str(young)]

    def test_what_killed_writers_left_is_swept_and_empty_directories_a_day_later(self, root):
        place = root / f"fxgraph/ab/f{digest('x')}"
        old, young = wrote(place, ".1.2.tmp", 7, 2 * HOUR), wrote(place, ".1.3.tmp", 7, 60)
        pruned(root, inductor=True)
        assert (old.exists(), young.exists()) == (False, True)
        young.unlink()
        pruned(root, inductor=True)
        assert place.is_dir()
        os.utime(place, (NOW - 25 * HOUR,) * 2)
        pruned(root, inductor=True)
        assert not place.exists()
        assert place.parent.is_dir()

    @pytest.mark.parametrize(
        "policy", [{"arch": "sm_90"}, {"triton_version": "<4"}, {"keep_binaries": True}], ids=str
    )
    def test_it_is_refused_with_what_is_about_entries(self, root, policy):
        root.mkdir()
        with pytest.raises(ConfigurationError, match="about entries"):
            planned(root, inductor=True, **policy)

    @pytest.mark.parametrize("year", [1900, 1969, 2262, 2300, 2400])
    def test_times_of_a_wrong_clock_stop_nothing(self, root, year):
        path = graph(root, "one", 0)
        when = (year - 1970) * 365.25 * 86400
        os.utime(path, (when, when))
        done = pruned(root, max_size_bytes=0, inductor=True)
        assert done.freed.files == 1


WORK = """
import sys, torch
torch.manual_seed(0)

def make(n):
    @torch.compile
    def mixed(x, y):
        return (torch.sin(x * n) + y @ y).relu().sum(0)
    return mixed

for n in map(int, sys.argv[1].split(",")):
    mixed = make(n)
    x = torch.randn(8, 8)
    expected = (torch.sin(x * n) + x @ x).relu().sum(0)
    assert torch.allclose(mixed(x, x), expected, atol=1e-5)
    torch._dynamo.reset()
    print(n, flush=True)
    sys.stdin.readline()
"""


def aged(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (NOW - HOUR, NOW - HOUR))


@pytest.mark.torch
def test_a_running_torch_does_not_notice_and_the_next_one_compiles_again(root, tmp_path):
    """Everything goes after each of its compiles; what comes next hits what is left, or compiles anew."""
    environ = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(root), "TMPDIR": str(tmp_path)}
    words = [sys.executable, "-c", WORK]
    for numbers in ("2,3,2", "3"):
        with subprocess.Popen(
            [*words, numbers],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            assert running.stdin is not None
            assert running.stdout is not None
            assert running.stderr is not None
            seen = []
            for line in running.stdout:
                seen.append(line.strip())
                aged(root)
                done = pruned(root, max_size_bytes=0, inductor=True)
                assert done.freed.files > 0
                running.stdin.write("\n")
                running.stdin.flush()
            failure = running.stderr.read()
        assert running.returncode == 0, failure
        assert ",".join(seen) == numbers
        assert find(str(root)).units == ()
