"""What a policy chooses, and that carrying it out harms no reader, no writer, and nothing outside the root.

`GPUCACHE_TEST_PRUNE_S` is for how many seconds at least the readers and the pruning go on beside each other.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tree as trees
from support.every_call import SCRIPT
from support.processes import PATIENCE_S
from support.ranks import COMPILE, compile_kernels, warm
from support.trees import (
    KERNEL,
    KEY,
    OLD,
    Tree,
    aged,
    left_by_stock,
    physical,
    planned,
    pruned,
    set_used,
    whole_or_no_hit,
)
from support.warm import WarmProcess

from gpucache.cli.plan_rows import part_cells, parts
from gpucache.disk.node import node_id
from gpucache.errors import ConfigurationError
from gpucache.layout.keys import ASIDE
from gpucache.report.cache_report import CacheReport, scan
from gpucache.report.entries import Copy, Entry, File
from gpucache.report.strays import Stray
from gpucache.store.lookup import sound
from gpucache.store.manifest import CONDEMNED, entry_path
from gpucache.store.size import updated
from gpucache.upkeep.execution import Outcome
from gpucache.upkeep.plan import plan
from gpucache.upkeep.prune import PrunePolicy
from gpucache.upkeep.slim import slimmed_bytes

NOW = 1_000_000_000.0


# ---- policies: values in, values out


def entry(key: str, age_s: float, **more: Any) -> Entry:
    """A stored kernel of 100 bytes, 40 of which no launch needs."""
    facts: dict[str, Any] = {
        "kind": "kernel",
        "kernel": "add",
        "target": "cuda:90",
        "triton_version": "3.9.0",
        "files": (File("add.json", 10), File("add.ptx", 40), File("add.cubin", 50)),
        "copies": (Copy(f"/root/{key}", "store", None, 100, 100, (1, 2)),),
        "logical_bytes": 100,
        "physical_bytes": 100,
        "held_bytes": 0,
        "created": 0.0,
        "used": NOW - age_s,
    }
    return Entry(key=key, **{**facts, **more})


HOUR = 3600.0
ENTRIES = (
    entry("old-90", 9 * HOUR),
    entry("new-90", 1 * HOUR),
    entry("in-use-90", 60.0),
    entry("old-80", 8 * HOUR, target="cuda:80", triton_version="3.5.1"),
    entry("new-80", 2 * HOUR, target="cuda:80", triton_version="3.6.0"),
    entry("unknown", 5 * HOUR, target=None, triton_version=None),
    entry("odd", 4 * HOUR, target="hip:gfx942", triton_version="what?"),
    entry(
        "library",
        7 * HOUR,
        kind="library",
        target=None,
        triton_version=None,
        files=(File("a.so", 100),),
    ),
)


def report(entries: tuple[Entry, ...] = ENTRIES, strays: tuple[Stray, ...] = ()) -> CacheReport:
    return CacheReport(
        root="/root", devices=(), entries=entries, strays=strays, usage=(), findings=()
    )


def chosen(environ: Mapping[str, str] | None = None, **policy: Any) -> list[str]:
    made = plan(report(), PrunePolicy(**policy), environ or {}, NOW)
    assert not made.removing or not made.slimming
    return [one.key for one in (*made.removing, *made.slimming)]


OLDEST = ["old-90", "old-80", "library", "unknown", "odd", "new-80", "new-90"]


REMAINS = ("staging", "aside", "half-removed", "lock", "empty", "triton-temporary")


class TestPolicy:
    @pytest.mark.parametrize(
        ("policy", "expected"),
        [
            ({}, []),
            ({"max_size_bytes": 800}, []),
            ({"max_size_bytes": 799}, OLDEST[:1]),
            ({"max_size_bytes": 500}, OLDEST[:3]),
            ({"max_size_bytes": 0}, OLDEST),
            ({"max_entries": 8}, []),
            ({"max_entries": 6}, OLDEST[:2]),
            ({"max_entries": 0}, OLDEST),
            ({"max_age_s": 7.5 * HOUR}, OLDEST[:2]),
            ({"max_age_s": 0.0}, OLDEST),
            ({"max_age_s": 8.5 * HOUR, "max_entries": 5}, OLDEST[:3]),
            ({"max_age_s": 4.5 * HOUR, "max_size_bytes": 700, "max_entries": 7}, OLDEST[:4]),
            ({"arch": "sm_90"}, ["old-90", "new-90"]),
            ({"arch": "sm_80"}, ["old-80", "new-80"]),
            ({"arch": "gfx942"}, ["odd"]),
            ({"arch": "sm_70"}, []),
            ({"triton_version": "<3.6"}, ["old-80"]),
            ({"triton_version": ">=3.6"}, ["old-90", "new-80", "new-90"]),
            ({"triton_version": "==3.6.*"}, ["new-80"]),
            ({"arch": "sm_80", "triton_version": ">=3.6"}, ["new-80"]),
            ({"arch": "sm_90", "triton_version": "<3.6"}, []),
            ({"arch": "sm_80", "max_entries": 7}, ["old-80"]),
            ({"arch": "sm_80", "max_size_bytes": 0}, ["old-80", "new-80"]),
            ({"arch": "sm_80", "max_age_s": 3 * HOUR}, ["old-80"]),
            ({"triton_version": "<4", "max_age_s": 3 * HOUR}, ["old-90", "old-80"]),
            ({"keep_binaries": True}, [key for key in OLDEST if key != "library"]),
            ({"keep_binaries": True, "max_age_s": 4.5 * HOUR}, ["old-90", "old-80", "unknown"]),
            ({"keep_binaries": True, "max_size_bytes": 720}, ["old-90", "old-80"]),
            ({"keep_binaries": True, "arch": "sm_80"}, ["old-80", "new-80"]),
            ({"keep_binaries": True, "triton_version": "<3.6"}, ["old-80"]),
        ],
        ids=str,
    )
    def test_filters_choose_and_limits_say_how_far_least_recently_used_first(
        self, policy, expected
    ):
        assert chosen(**policy) == expected

    @pytest.mark.parametrize(
        "names",
        [names for count in (2, 3, 4, 5) for names in itertools.combinations(
            ("max_size_bytes", "max_age_s", "max_entries", "arch", "triton_version", "keep_binaries"), count
        )],
        ids="+".join,
    )  # fmt: skip
    def test_of_any_combination_each_filter_holds_and_each_limit_reaches_as_far_as_alone(
        self, names
    ):
        said = {
            "max_size_bytes": 450,
            "max_age_s": 3 * HOUR,
            "max_entries": 6,
            "arch": "sm_80",
            "triton_version": ">3",
            "keep_binaries": True,
        }
        policy = {name: said[name] for name in names}
        got = chosen(**policy)
        filters = {
            name: policy[name]
            for name in names
            if name in ("arch", "triton_version", "keep_binaries")
        }
        limits = [{name: policy[name]} for name in names if name.startswith("max_")]
        wanted = [chosen(**filters, **one) for one in limits] or [chosen(**filters)]
        assert got == max(wanted, key=len)
        assert [key for key in OLDEST if key in got] == got

    def test_what_was_used_in_the_grace_stays_and_is_told(self):
        made = plan(report(), PrunePolicy(max_entries=0), {}, NOW)
        assert [(one.key, one.why) for one in made.kept] == [("in-use-90", "used 1 min ago")]
        assert (
            plan(report(), PrunePolicy(max_entries=0, grace_s=4.5 * HOUR), {}, NOW).removing[-1].key
            == "unknown"
        )

    def test_what_was_used_in_the_future_stays(self):
        made = plan(report((entry("ahead", -HOUR),)), PrunePolicy(max_entries=0), {}, NOW)
        assert made.removing == ()

    @pytest.mark.parametrize(
        ("grace_s", "stamp"), [(599.0, None), (19.9, "10"), (0.0, "1"), (1.9, "0"), (599.0, "450")]
    )
    def test_a_grace_below_twice_the_interval_of_stamps_is_refused(self, grace_s, stamp):
        environ = {} if stamp is None else {"GPUCACHE_STAMP_S": stamp}
        with pytest.raises(ConfigurationError, match="twice GPUCACHE_STAMP_S"):
            chosen(environ, grace_s=grace_s)

    @pytest.mark.parametrize(
        ("grace_s", "stamp"), [(600.0, None), (20.0, "10"), (2.0, "0"), (600.0, "450")]
    )
    def test_a_grace_of_twice_the_interval_is_enough(self, grace_s, stamp):
        assert chosen({} if stamp is None else {"GPUCACHE_STAMP_S": stamp}, grace_s=grace_s) == []

    @pytest.mark.parametrize("text", ["3.6 or so", "<", "<three", "latest", "<3.6;rm"])
    def test_what_is_no_specifier_is_refused(self, text):
        with pytest.raises(ConfigurationError, match="specifier"):
            chosen(triton_version=text)

    @pytest.mark.parametrize(
        ("specifier", "version", "matches"),
        [
            ("3.6.0", "3.6.0", True),
            ("3.6.0", "3.6.1", False),
            ("<3.6", "3.6.0", False),
            ("<3.6", "3.6.0.dev1", False),
            ("<3.6", "3.5.1+git1234", True),
            ("~=3.4", "3.9.0", True),
            (">=3.6", "3.7.0rc1", True),
            ("!=3.6.0", "3.6.0+fb", False),
            ("", "3.1.0", True),
            ("<3.6,>=3.4", "3.3.1", False),
        ],
    )
    def test_specifiers_are_those_of_pep_440_prereleases_included(
        self, specifier, version, matches
    ):
        entries = (entry("one", HOUR, triton_version=version),)
        made = plan(report(entries), PrunePolicy(triton_version=specifier), {}, NOW)
        assert bool(made.removing) is matches

    @pytest.mark.parametrize(
        ("key", "specifier", "matches"),
        [
            ("A" * 43, "<3.3", True),
            ("A" * 43, "==3.2.*", True),
            ("A" * 43, "<3.2", False),
            (f"{'A' * 43}-{'0' * 16}", "<3.3", True),
            ("0" * 64, "<3.3", True),
            ("0" * 64, "==3.1.0", False),
            ("A" * 52, "<3.3", False),
        ],
    )
    def test_the_key_tells_the_version_of_what_names_none(self, key, specifier, matches):
        made = plan(
            report((entry(key, HOUR, triton_version=None),)),
            PrunePolicy(triton_version=specifier),
            {},
            NOW,
        )
        assert bool(made.removing) is matches

    def test_what_is_held_elsewhere_is_not_promised(self):
        made = plan(
            report((entry("held", HOUR, held_bytes=70),)), PrunePolicy(max_entries=0), {}, NOW
        )
        assert (made.physical_bytes, made.logical_bytes) == (30, 100)
        slimming = plan(
            report((entry("held", HOUR, held_bytes=70),)), PrunePolicy(keep_binaries=True), {}, NOW
        )
        assert slimming.physical_bytes == 30

    @pytest.mark.parametrize(
        ("kind", "dead", "age_s", "swept"),
        [
            *((kind, True, 0.0, True) for kind in REMAINS),
            *((kind, False, 0.0, False) for kind in REMAINS),
            ("torch-temporary", True, 0.0, False),
            ("quarantine", True, 6 * 86400.0, False),
            ("quarantine", True, 8 * 86400.0, True),
        ],
    )
    def test_strays_of_the_dead_are_swept_under_any_policy(self, kind, dead, age_s, swept):
        stray = Stray(kind, "/root/stray", 7, NOW - age_s, dead)
        made = plan(report(strays=(stray,)), PrunePolicy(), {}, NOW)
        assert bool(made.strays) is swept
        assert made.physical_bytes == 7 * swept

    @pytest.mark.parametrize(
        ("policy", "swept", "removed"),
        [
            ({"max_size_bytes": 850}, [], []),
            ({"max_size_bytes": 849}, ["older"], []),
            ({"max_size_bytes": 819}, ["older", "newer"], []),
            ({"max_size_bytes": 799}, ["older", "newer"], OLDEST[:1]),
            ({"max_age_s": 1.5 * HOUR, "arch": "sm_70"}, ["older"], []),
            ({"max_age_s": 8.5 * HOUR}, [], OLDEST[:1]),
            ({"max_entries": 7}, [], OLDEST[:1]),
            ({"max_size_bytes": 0}, ["older", "newer"], OLDEST),
        ],
        ids=str,
    )
    def test_the_quarantine_counts_and_goes_before_any_entry(self, policy, swept, removed):
        newer = Stray("quarantine", "newer", 20, NOW - HOUR, True)
        older = Stray("quarantine", "older", 30, NOW - 2 * HOUR, True)
        made = plan(report(strays=(newer, older)), PrunePolicy(**policy), {}, NOW)
        assert [stray.path for stray in made.strays] == swept
        assert [one.key for one in made.removing] == removed


# ---- carried out


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


class TestExecute:
    def test_entries_go_whole_least_recently_used_first(self, tmp_path):
        trees = [Tree(tmp_path, letter * 52) for letter in "ABCD"]
        for number, one in zip((2, 0, 3, 1), trees, strict=True):
            set_used(one.entry, OLD + number)
        done = pruned(tmp_path / "root", max_entries=2)
        assert (done.entries, done.skipped) == (2, ())
        assert [one.entry.exists() for one in trees] == [True, False, True, False]
        assert [one.view.exists() for one in trees] == [True, False, True, False]

    def test_what_was_used_since_the_plan_is_skipped_and_told(self, tree):
        made = planned(tree.root, max_entries=0)
        set_used(tree.view, time.time())
        done = made.execute()
        assert [(one.key, one.why) for one in done.skipped] == [
            (KEY, "it was used or replaced meanwhile")
        ]
        assert tree.all_there()

    def test_it_tells_how_far_it_is(self, tmp_path):
        for letter in "ABC":
            Tree(tmp_path, letter * 52)
        seen = []
        planned(tmp_path / "root", max_entries=0).execute(lambda *words: seen.append(words))
        assert seen == [(0, 3)]

    def test_stopped_in_the_middle_the_total_is_counted_anew(self, tmp_path, monkeypatch):
        trees = [Tree(tmp_path, letter * 52) for letter in "AB"]
        root = str(tmp_path / "root")
        updated(root, 12345, anew=True)

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        made = planned(tmp_path / "root", max_entries=0)
        updated(root, 12345, anew=True)
        with pytest.raises(KeyboardInterrupt):
            made.execute(stop)
        assert updated(root, 0) == (0, False, 0.0)
        assert all(one.all_there() for one in trees)

    def test_a_compile_under_way_keeps_its_key(self, tmp_path, triton):
        """A real one: its process holds the lock, and its entry came back meanwhile."""
        root = tmp_path / "root"
        env = {**os.environ, **plugged_in(root), "TRITON_CACHE_DIR": f"{root}/triton/0"}
        compile_kernels(env, 1, 90, python=sys.executable)
        (path,) = (root / "gpucache/v1/store").glob("*/*")
        path.rename(tmp_path / "kept")
        shutil.rmtree(root / "triton/0")
        held = {**env, "KERNELS_AT": "make_ptx:block"}
        compiling = warm(sys.executable).start(COMPILE, 1, 90, env=held)
        try:
            assert compiling.stdout.readline() == "ready\n"
            compiling.stdin.write("\n")
            assert compiling.stdout.readline() == "at make_ptx\n"
            (tmp_path / "kept").rename(path)
            set_used(path, OLD)
            done = pruned(root, max_entries=0)
            assert [one.key for one in done.skipped] == [path.name]
            assert f"locked by process {compiling.pid}" in done.skipped[0].why
            assert "for scaled" in done.skipped[0].why
            assert sound(str(path), True, 0.0)
            compiling.communicate("\n", timeout=PATIENCE_S)
        finally:
            compiling.end()
        assert compiling.returncode == 0
        set_used(path, OLD)
        assert pruned(root, max_entries=0).entries == 1


# ---- what it frees


def littered(root: Path) -> None:
    """One stray of each kind, dead."""
    own, device = root / "gpucache/v1", root / "triton/0"
    device.mkdir(parents=True, exist_ok=True)
    shard = own / "store/ZZ"
    for directory in (
        own / f"tmp/gpucache-staging-{node_id()}.dead/1",
        own / "quarantine" / f"{KEY}.{int((time.time() - 8 * 86400) * 1e9):x}.1",
        device / f"{ASIDE}dead",
        device / "tmp.pid_1_dead",
        device / ("E" * 52),
        shard / ("Z" * 52),
        own / "locks",
    ):
        directory.mkdir(parents=True, exist_ok=True)
    (own / "locks/dead.lock").write_text("{}")
    (left_by_stock(device, "H" * 52) / CONDEMNED).write_text("{}")
    for name in (
        own / f"tmp/gpucache-staging-{node_id()}.dead/1/add.ptx",
        device / f"{ASIDE}dead/add.ptx",
    ):
        name.write_bytes(bytes(1000))
    (device / "tmp.pid_1_dead/add.ptx").write_bytes(bytes(500))
    (shard / ("Z" * 52) / CONDEMNED).write_text("{}")
    next((own / "quarantine").iterdir()).joinpath("add.cubin").write_bytes(bytes(300))
    for path in root.rglob("*"):
        if "dead" in str(path) or path.name in ("E" * 52, "H" * 52, "Z" * 52):
            os.utime(path, (OLD - 7200, OLD - 7200))


class TestFreed:
    @pytest.mark.parametrize("slimming", [False, True], ids=["removed", "slimmed"])
    @pytest.mark.parametrize("views", [0, 1, 8])
    def test_what_it_says_it_freed_is_what_the_sum_falls_by(self, tmp_path, views, slimming):
        root, trees = tmp_path / "root", [Tree(tmp_path, letter * 52) for letter in "ABC"]
        for number, one in itertools.product(range(8), trees):
            view = root / f"triton/{number}" / one.key
            one.link(view) if number < views else shutil.rmtree(view, ignore_errors=True)
        os.link(trees[0].entry / "add.cubin", tmp_path / "held elsewhere")
        os.link(trees[1].entry / "add.ptx", tmp_path / "held elsewhere too")
        held = len(KERNEL["add.ptx"]) + (0 if slimming else len(KERNEL["add.cubin"]))
        for number in range(2):
            left_by_stock(root / f"triton/{number}", "S" * 52)
        littered(root)
        aged(root)
        before = physical(root)
        made = planned(root, max_entries=0, keep_binaries=slimming)
        done = made.execute()
        assert (done.entries, done.slimmed) == ((0, 4) if slimming else (4, 0))
        assert done.strays == 8
        assert not done.skipped
        assert done.freed.physical_bytes == before - physical(root) - held
        assert slimming or done.freed.physical_bytes == made.physical_bytes
        assert not [stray for stray in scan(str(root)).strays if stray.dead]

    def test_an_entry_whose_files_are_all_held_frees_nothing(self, tree, tmp_path):
        shutil.copytree(tree.root, tmp_path / "held", copy_function=os.link)
        done = pruned(tree.root, max_entries=0)
        assert (done.entries, done.freed.files, done.freed.physical_bytes) == (1, 14, 0)
        assert tree.all_gone()


# ---- links out of the root

LINKED = (
    *(
        "gpucache",
        "gpucache/v1",
        "gpucache/v1/locks",
        "gpucache/v1/tmp",
        "gpucache/v1/quarantine",
        "gpucache/v1/stats",
    ),
    *(
        "gpucache/v1/store",
        "gpucache/v1/store/AA",
        f"gpucache/v1/store/AA/{KEY}",
        "triton",
        "triton/0",
    ),
    *(f"triton/0/{KEY}", f"triton/0/{KEY}/add.ptx"),
)


def contents(directory: Path) -> dict[str, object]:
    """All that is in a directory: names, contents, and of files the times too."""
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns)
        if path.is_file()
        else None
        for path in directory.rglob("*")
    }


class TestLinks:
    @pytest.mark.parametrize("slimming", [False, True], ids=["removing", "slimming"])
    @pytest.mark.parametrize("linked", LINKED)
    def test_nothing_behind_a_link_is_touched(self, tree, tmp_path, linked, slimming):
        """The whole of what is there could go, if it were not behind a link."""
        littered(tree.root)
        updated(str(tree.root), 12345, anew=True)
        aged(tree.root)
        (tmp_path / "beside").mkdir()
        (tree.root / linked).rename(tmp_path / "beside/outside")
        (tree.root / linked).symlink_to(tmp_path / "beside/outside")
        before = contents(tmp_path / "beside")
        pruned(tree.root, max_entries=0, keep_binaries=slimming)
        assert contents(tmp_path / "beside") == before

    def test_links_planted_as_strays_go_and_what_they_lead_to_stays(self, tree, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").write_text("mine")
        own = tree.root / "gpucache/v1"
        (own / "quarantine").mkdir()
        long_ago = f"{int((time.time() - 8 * 86400) * 1e9):x}"
        planted = [
            own / "tmp/publish-planted",
            own / f"quarantine/{KEY}.{long_ago}.1",
            own / "locks/planted.lock",
        ]
        planted += [
            tree.view.parent / f"{ASIDE}planted",
            tree.view.parent / ("P" * 52),
            tree.entry.parent / ("P" * 52),
        ]
        for path in planted:
            path.symlink_to(outside)
            os.utime(path, (OLD - 7200, OLD - 7200), follow_symlinks=False)
        before = contents(outside)
        done = pruned(tree.root, max_entries=0)
        assert done.entries == 1
        assert contents(outside) == before
        assert [os.path.lexists(path) for path in planted[:2]] == [False, False]

    def test_a_link_that_comes_after_the_plan_is_not_followed(self, tree, tmp_path):
        made = planned(tree.root, max_entries=0)
        (tree.root / "triton").rename(tmp_path / "outside")
        (tree.root / "triton").symlink_to(tmp_path / "outside")
        before = contents(tmp_path / "outside")
        done = made.execute()
        assert "symbolic link" in done.skipped[0].why
        assert contents(tmp_path / "outside") == before


# ---- every system call

PRUNE = (
    SCRIPT
    + """
from gpucache.upkeep.plan import plan
from gpucache.upkeep.prune import PrunePolicy
from gpucache.report.cache_report import scan
import gpucache.upkeep.slim, tempfile, packaging.specifiers
made = plan(scan(sys.argv[2]), PrunePolicy(max_entries=0, grace_s=600.0, keep_binaries=sys.argv[3] == "slim"), {})
mark("begin")
done = made.execute()
mark("end")
assert done.skipped == () and done.entries + done.slimmed == 2, done
"""
)


@pytest.mark.parametrize("what", ["remove", "slim"])
def test_killed_at_any_system_call_all_is_whole_or_no_hit(every_call, stock, what):
    """An entry with two views, one of stock Triton's, a stray of each kind; links lead out of the root."""

    def start(home: Path) -> list[object]:
        tree = Tree(home)
        tree.staging.forget()
        shutil.rmtree(tree.root / "gpucache/v1/tmp")
        (tree.root / "gpucache/v1/tmp").mkdir()
        left_by_stock(tree.root / "triton/2", KEY)
        os.rename(tree.root / "triton/2" / KEY, tree.root / "triton/2" / ("S" * 52))
        updated(str(tree.root), 12345, anew=True)
        if what == "remove":
            littered(tree.root)
        (home / "outside").mkdir()
        (home / "outside/add.json").write_text("mine")
        for path in (
            tree.root / "gpucache/v1/tmp/link",
            tree.view.parent / ("L" * 52),
            tree.view / "link",
        ):
            path.symlink_to(home / "outside")
            os.utime(path, (OLD - 7200, OLD - 7200), follow_symlinks=False)
        return [tree.root, what]

    def check(home: Path, line: str) -> None:
        root = home / "root"
        assert (home / "outside/add.json").read_text() == "mine", line
        assert os.listdir(home / "outside") == ["add.json"], line
        directories = [
            Path(entry_path(str(root), KEY)),
            *(root / "triton" / name / KEY for name in "01"),
        ]
        for directory in directories:
            whole_or_no_hit(directory, stock, KERNEL, line)
        for group in (root / "triton").glob("*/[A-Z]*/__grp__add.json"):
            names = {"add.json", "add.cubin"} | (
                {"add.ptx"} if "add.ptx" in group.read_text() else set()
            )
            assert names <= set(os.listdir(group.parent)), line
        aged(root)
        for path in [*root.rglob("add.*"), *root.rglob("__grp__*")]:
            if "/triton/2/" in str(path):
                os.utime(path, (OLD - 7200, OLD - 7200))
        for policy in (
            PrunePolicy(keep_binaries=what == "slim", grace_s=600.0),
            PrunePolicy(max_entries=0),
        ):
            done = plan(scan(str(root)), policy, {}).execute()
            assert not done.skipped, line
            assert not [stray for stray in scan(str(root)).strays if stray.dead], line
            aged(root)
        assert not any(map(os.path.lexists, directories)), line
        assert os.listdir(home / "outside") == ["add.json"], line

    every_call.killed_everywhere(PRUNE, start, check, least=50)


# ---- beside readers and writers

SECONDS = float(os.environ.get("GPUCACHE_TEST_PRUNE_S", "4"))
GRACE_S = 5.0 if SECONDS > 30 else 2.0


def plugged_in(root: Path) -> dict[str, str]:
    plugin = {
        "TRITON_CACHE_MANAGER": "gpucache.triton:DeviceCacheManager",
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    return {**plugin, "GPUCACHE_DIR": str(root), "GPUCACHE_STAMP_S": "1"}


@pytest.fixture
def readers(tmp_path: Path, triton: None) -> Iterator[list[WarmProcess]]:
    """Four processes that compile and read, each in its own device directory, until there is a file ``stop``."""
    started = []
    for number in range(4):
        directory = {"TRITON_CACHE_DIR": str(tmp_path / "root/triton" / str(number))}
        env = {**os.environ, **plugged_in(tmp_path / "root"), **directory}
        code = "import prune_worker; prune_worker.main()"
        started.append(
            warm(sys.executable).start(code, number, GRACE_S, tmp_path / "stop", env=env)
        )
    yield started
    for reader in started:
        reader.end()


def over_only_what_is_in_use(root: Path, max_bytes: int, now: float, done: Outcome) -> bool:
    """What is left over a limit was used within the grace before the plan, or since."""
    after = scan(str(root), may_be_missing=True)
    skipped = {one.key for one in done.skipped}
    idle = [one for one in after.entries if now - one.used > GRACE_S and one.key not in skipped]
    return not idle or sum(one.physical_bytes for one in after.entries) <= max_bytes


def test_readers_of_what_is_pruned_never_fail(readers, tmp_path):
    """Not one exception, whatever is pruned under them; and afterwards the limit holds."""
    root, max_bytes = tmp_path / "root", 20_000
    for reader in readers:
        assert reader.stdout.readline() == "ready\n", reader.stderr.read()
    for reader in readers:
        reader.stdin.write("\n")
    deadline = time.monotonic() + SECONDS
    removed = skipped = rounds = 0
    environ = {"GPUCACHE_STAMP_S": "1"}
    while time.monotonic() < deadline or removed < 6:
        now = time.time()
        done = plan(
            scan(str(root), may_be_missing=True),
            PrunePolicy(max_size_bytes=max_bytes, grace_s=GRACE_S),
            environ,
            now,
        ).execute()
        removed, skipped, rounds = removed + done.entries, skipped + len(done.skipped), rounds + 1
        assert over_only_what_is_in_use(root, max_bytes, now, done)
        assert time.monotonic() < deadline + PATIENCE_S
        assert all(reader.poll() is None for reader in readers)
    (tmp_path / "stop").touch()
    said = [reader.communicate(timeout=PATIENCE_S) for reader in readers]
    results = [json.loads(out.splitlines()[-1]) for out, _ in said]
    print(f"{rounds} rounds removed {removed} entries, {skipped} refused;", *results)
    assert [result["failures"] for result in results] == [[]] * 4
    assert [err for _, err in said] == [""] * 4, "nothing was degraded"
    assert sum(result["reads"] - result["compiled"] for result in results) > 10
    later = time.time() + GRACE_S + 1
    plan(
        scan(str(root)), PrunePolicy(max_size_bytes=max_bytes, grace_s=GRACE_S), environ, later
    ).execute()
    assert sum(one.physical_bytes for one in scan(str(root)).entries) <= max_bytes


def test_texts_are_dropped_until_so_many_entries_have_theirs(tmp_path):
    """A second run with the same number does nothing more, so that a timer may repeat it."""
    keys = trees.make(str(tmp_path), 6, 1)
    policy = PrunePolicy(max_entries=4, keep_binaries=True)
    assert plan(scan(str(tmp_path)), policy, {}).execute().slimmed == 2
    assert plan(scan(str(tmp_path)), policy, {}).slimming == ()
    whole = [entry.key for entry in scan(str(tmp_path)).entries if slimmed_bytes(entry)]
    assert sorted(whole) == sorted(keys[2:])


def test_what_is_mounted_below_stays(mount, tmp_path):
    """Somebody else's files, whatever their directory is called."""
    (key,) = trees.make(str(tmp_path / "root"), 1, 1)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("mine")
    root = tmp_path / "root"
    strays = [root / "gpucache/v1/tmp/scratch", root / "gpucache/v1/quarantine/K.5.1"]
    for point in (root / "triton/0" / key / "work", *strays):
        mount(point, "--bind", str(mine))
    done = pruned(root, max_entries=0)
    assert (mine / "file").read_text() == "mine"
    assert done.entries == 0
    assert {skipped.why.rpartition(": ")[2] for skipped in done.skipped} == {
        "something is mounted in it"
    }


def test_a_stock_entry_that_was_used_since_the_plan_stays(tmp_path):
    """The plan may have waited for an answer for hours."""
    path = tmp_path / "triton/0" / KEY
    path.mkdir(parents=True)
    for name in ("k.cubin", "k.json", "__grp__k.json"):
        (path / name).write_text("{}")
    for file in path.iterdir():
        os.utime(file, (OLD, OLD))
    made = plan(scan(str(tmp_path)), PrunePolicy(max_entries=0), {})
    used = next(path.glob("*.cubin"))
    os.utime(used, (time.time(), used.stat().st_mtime))
    done = made.execute()
    assert (done.entries, [skipped.why for skipped in done.skipped]) == (
        0,
        ["it was used meanwhile"],
    )
    assert used.exists()


def test_what_another_process_removed_first_is_not_told_as_kept(tmp_path):
    trees.make(str(tmp_path), 2, 1)
    made = plan(scan(str(tmp_path)), PrunePolicy(max_entries=0), {})
    assert made.execute().entries == 2
    assert made.execute() == Outcome()


def test_without_a_free_inode_entries_can_be_removed(mount, tmp_path):
    """The lock of a removal would take one."""
    root = mount(tmp_path / "small", "-t", "tmpfs", "-o", "size=8m,nr_inodes=120,mode=700", "tmpfs")
    trees.make(str(root), 4, 1)
    with suppress(OSError):
        for number in range(200):
            (root / f"filler-{number}").touch()
    assert os.statvfs(root).f_favail == 0
    assert pruned(root, max_entries=0).entries == 4


@pytest.mark.parametrize("when", [-9e9, -1.0, 9.3e9, 1e10, 9e18])
def test_a_time_that_no_calendar_has_stops_neither_a_look_nor_a_removal(tmp_path, mount, when):
    """On tmpfs, which keeps any: before 1970, after 2262, and of another age of the universe."""
    mount(tmp_path / "root", "-t", "tmpfs", "-o", "mode=700", "tmpfs")
    tree = Tree(tmp_path)
    stock = left_by_stock(tree.root / "triton/0", "B" * 52)
    damaged = tree.root / "gpucache/v1/quarantine/x.1.1"
    damaged.mkdir(parents=True)
    set_used(tree.entry, when)
    for path in (*stock.iterdir(), damaged):
        os.utime(path, (when, when))
    for human in (True, False):
        assert list(part_cells(parts(planned(tree.root, max_entries=0)), human))
    assert pruned(tree.root, keep_binaries=True).slimmed == 2
    assert pruned(tree.root, max_entries=0).entries == 2
    assert not damaged.exists()


def test_an_entry_of_a_wrong_clock_is_pruned(tmp_path):
    (key,) = trees.make(str(tmp_path), 1, 1)
    manifest = Path(entry_path(str(tmp_path), key)) / "__entry__.json"
    os.utime(manifest, (time.time() + 30 * 86400,) * 2)
    assert pruned(tmp_path, max_entries=0).entries == 1
