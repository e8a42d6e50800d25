"""`ls`, `du`, `prune`, `clean` and `verify` of other JIT caches, as their users meet them."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from pathlib import Path

import pytest
from support.cli import check, documented
from support.jit_trees import DAY, HOUR, UNITS, all_files, unit, whole_library, wrote, wrote_bytes
from support.terminals import at_width, table_of
from support.users import ADA, BOB, acting_as, open_the_way_to

from gpucache.layout.jit_caches import JIT_CACHES, by_name
from gpucache.store.jit_units import find
from gpucache.upkeep.jit_prune import UnitPolicy


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/gpucache/v1").mkdir(parents=True, mode=0o700)
    return tmp_path / "root"


@pytest.fixture
def four(root: Path) -> list[Path]:
    """Four units of 1,000 bytes of three caches, the oldest first."""
    return [
        unit(root, "warp", 9 * DAY),
        unit(root, "warp", 7 * DAY, name="other"),
        unit(root, "numba", 5 * DAY),
        unit(root, "tvm-ffi", 3 * DAY),
    ]


def names(here, root: Path, *options: object) -> list[str]:
    return [row[1] for row in here("ls", "--cache", "all", "--root", root, *options).rows]


class TestLs:
    def test_what_was_used_last_comes_first_whichever_cache_has_it(self, here, root, four):
        done = here("ls", "--cache", "all", "--root", root)
        assert [row[0] for row in done.rows] == ["tvm-ffi", "numba", "warp", "warp"]
        _, name, files, size, used, owner = done.rows[0]
        assert (name, files, size) == ("add_3acd30086a5fd9b7", "3", "1000")
        assert used[:10] == time.strftime(
            "%Y-%m-%d", time.gmtime((four[3] / "add.so").stat().st_mtime)
        )
        assert owner == str(os.geteuid())

    def test_only_the_caches_that_are_named(self, here, root, four):
        done = here("ls", "--cache", "numba,tvm-ffi", "--root", root)
        assert {row[0] for row in done.rows} == {"numba", "tvm-ffi"}

    def test_age_size_order_and_number_choose(self, here, root, four):
        wrote(four[0] / "large.cpp", 5000, 9 * DAY)
        assert names(here, root, "--older-than", "6d") == [
            "1.19.0/wp_other_09f3766",
            "1.19.0/wp___main___09f3766",
        ]
        assert names(here, root, "--larger-than", "1000") == ["1.19.0/wp___main___09f3766"]
        assert names(here, root, "--sort", "size", "--limit", "1") == ["1.19.0/wp___main___09f3766"]

    def test_columns_are_chosen_and_are_those_of_units(self, here, root, four):
        words = ("ls", "--cache", "warp", "--root", root, "--sort", "size", "--columns")
        assert here(*words, "cache,files").rows == [["warp", "3"], ["warp", "3"]]
        done = here(*words, "kernel")
        assert (done.code, done.out) == (2, "")
        assert "there is no column 'kernel', but cache, unit, files" in done.err

    def test_a_terminal_gets_a_total(self, root, four):
        shown = at_width(["ls", "--cache", "all", "--limit", 3, "--root", root], 80)
        assert table_of(shown)[-1].startswith("all      3 of 4   ")

    def test_json(self, here, root, four):
        (outer, inner), values = documented("ls --cache NAME")
        said = here("ls", "--cache", "all", "--json", "--root", root).json
        check(said, outer, caches=list, units=list)
        assert len(said["units"]) == 4
        for row in said["units"]:
            check(row, inner, cache=str, unit=str, uid=int)
            assert Path(row["path"]).exists()
        for row in said["caches"]:
            assert list(row) == values["caches"]

    def test_a_name_with_escapes_moves_no_cursor(self, here, root):
        wrote(root / "jit/cupy/\x1b[2Jx\n.cubin", 1, HOUR)
        done = here("ls", "--cache", "cupy", "--root", root)
        assert "\x1b" not in done.out
        assert len(done.rows) == 1

    def test_nothing_there_is_said(self, here, root):
        done = here("ls", "--cache", "warp", "--root", root)
        assert (done.code, done.out) == (0, "")
        assert done.err == f"note: nothing of warp is in {root}/jit\n"

    def test_a_cache_of_which_nothing_goes_alone_is_said_to_be_such(self, here, root):
        wrote(root / "jit/cuda/a/b", 10, HOUR)
        done = here("ls", "--cache", "cuda", "--root", root)
        assert "nothing in it may be removed alone" in done.err

    @pytest.mark.parametrize(
        "words",
        [
            ["ls", "KEY"],
            ["ls", "--arch", "90"],
            ["ls", "--kernel", "x"],
            ["prune", "--inductor", "--yes"],
            ["prune", "--max-entries", "3", "--yes"],
            ["prune", "--keep-binaries", "--yes"],
        ],
    )
    def test_what_only_entries_have_is_refused_beside_it(self, here, root, four, words):
        before = all_files(root)
        done = here(*words, "--cache", "warp", "--root", root)
        assert done.code == 2
        assert "about Triton's entries" in done.err
        assert all_files(root) == before

    @pytest.mark.parametrize("name", ["triton", "inductor"])
    def test_the_two_that_have_commands_of_their_own_are_named_as_such(self, here, root, name):
        done = here("ls", "--cache", name, "--root", root)
        assert done.code == 2

    def test_a_wrong_name_is_told_with_the_nearest(self, here, root):
        done = here("prune", "--cache", "wrap", "--yes", "--root", root)
        assert done.code == 2
        assert "the nearest is warp" in done.err

    @pytest.mark.parametrize("value", ["all,wrap", "wrap,all", "none", "all,none", "", ","])
    def test_nothing_goes_by_a_wrong_name_beside_all_nor_without_a_name(
        self, here, root, four, value
    ):
        done = here("prune", "--cache", value, "--yes", "--root", root)
        assert done.code == 2
        assert "gpucache caches" in done.err
        assert len(names(here, root)) == 4


class TestDu:
    def test_each_cache_has_a_row_of_its_own_and_a_members_count_to_them(self, here, root, four):
        wrote(root / "members/1000/jit/warp/1.19.0/wp_m_0123456/m.o", 50, HOUR)
        wrote(root / "jit/unknown/x", 7, HOUR)
        rows = {row[0]: row[1:4] for row in here("du", "--root", root).rows}
        assert rows["jit/warp"] == ["7", "2050", "2050"]
        assert rows["jit/numba"] == ["2", "1000", "1000"]
        assert rows["jit/tvm-ffi"] == ["3", "1000", "1000"]
        assert rows["jit/unknown"] == ["1", "7", "7"]
        assert rows["all"][1] == "4057"


class TestPrune:
    def test_what_is_older_goes_and_only_of_what_was_named(self, here, root, four):
        done = here("prune", "--cache", "warp", "--older-than", "8d", "--yes", "--root", root)
        assert done.code == 0
        assert [path.exists() for path in four] == [False, True, True, True]
        assert "freed 1000 B" in done.err

    def test_the_least_recently_used_go_until_all_of_these_caches_fit(self, here, root, four):
        here("prune", "--cache", "all", "--max-size", "2000", "--yes", "--root", root)
        assert [path.exists() for path in four] == [False, False, True, True]

    def test_without_a_limit_all_of_a_named_cache_goes_but_what_was_used_just_now(
        self, here, root, four
    ):
        os.utime(next(four[1].iterdir()))
        done = here("prune", "--cache", "warp", "--yes", "--root", root)
        assert [path.exists() for path in four] == [False, True, True, True]
        assert "1 more would go, but were used too recently" in done.err

    def test_without_the_option_no_unit_goes(self, here, root, four):
        before = all_files(root)
        here("prune", "--max-size", "0", "--max-age", "0", "--yes", "--root", root)
        assert all_files(root) == before

    def test_nothing_goes_unasked_or_in_a_dry_run(self, here, root, four):
        before = all_files(root)
        refused = here("prune", "--cache", "warp", "--root", root)
        dry = here("prune", "--cache", "warp", "--dry-run", "--root", root)
        assert (refused.code, dry.code) == (2, 0)
        assert "2 units of other JIT caches, 2.0 KiB would go" in dry.err
        assert [row[:3] for row in dry.rows] == [
            ["remove", "warp", "1.19.0/wp___main___09f3766"],
            ["remove", "warp", "1.19.0/wp_other_09f3766"],
        ]
        assert all_files(root) == before

    def test_what_its_software_is_making_is_kept_and_told(self, here, root, four):
        lock = four[3] / "lock"
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            done = here("prune", "--cache", "tvm-ffi", "--yes", "--root", root)
        assert f"kept {four[3]}: its software holds its lock" in done.err
        assert (four[3] / "add.so").exists()

    def test_what_killed_writers_left_goes_with_it(self, here, root, four):
        left = wrote(root / "jit/warp/1.19.0/wp_a_0123456_p1_t2/a.cpp", 9, 2 * HOUR)
        young = wrote(root / "jit/warp/1.19.0/wp_a_0123456_p3_t4/a.cpp", 9, HOUR / 2)
        here("prune", "--cache", "warp", "--older-than", "30d", "--yes", "--root", root)
        assert (left.exists(), young.exists(), four[0].exists()) == (False, True, True)

    def test_json(self, here, root, four):
        (planned, last, removed), _ = documented("prune")
        whole = ["prune", "--cache", "warp,numba", "--max-age", "6d", "--json", "--root", root]
        said = here(*whole, "--yes").json
        check(said, planned + last, kept=list, removed=dict, spared=list)
        check(said["removed"], removed)
        assert (said["units"], said["removed"]["units"], said["entries"]) == (2, 2, 0)
        assert said["removed"]["physical_bytes"] == 2000

    def test_limits_without_sense_are_refused(self):
        from gpucache.errors import ConfigurationError

        for name in ("max_size_bytes", "max_age_s", "grace_s"):
            with pytest.raises(ConfigurationError):
                UnitPolicy(caches=JIT_CACHES, **{name: float("nan")})


class TestClean:
    def test_all_units_go_and_it_says_so(self, here, root):
        for cache in UNITS:
            unit(root, cache)
        dry = here("clean", "--dry-run", "--root", root)
        assert f"{len(UNITS)} units of other JIT caches" in dry.err
        assert here("clean", "--yes", "--root", root).code == 0
        assert all_files(root) == []

    def test_what_is_dear_or_bounds_itself_stays_and_the_reason_is_said(self, here, root):
        dear = wrote(root / "jit/helion/a.best_config", 10, DAY)
        driver = wrote(root / "jit/cuda/a/b", 10, DAY)
        unknown = wrote(root / "jit/mine/notes", 10, DAY)
        done = here("clean", "--yes", "--root", root)
        assert all(path.exists() for path in (dear, driver, unknown))
        assert "minutes to hours of tuning; `gpucache prune --cache helion` removes it" in done.err
        assert "keeps it small by CUDA_CACHE_MAXSIZE" in done.err
        assert f"{root}/jit/mine is no cache, and stays" in done.err

    def test_force_takes_what_was_used_just_now_and_nothing_that_is_locked(self, here, root):
        warm = unit(root, "warp", 0)
        locked = unit(root, "tvm-ffi", 0)
        here("clean", "--yes", "--root", root)
        assert warm.exists()
        with (locked / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            here("clean", "--force", "--yes", "--root", root)
        assert (warm.exists(), (locked / "add.so").exists()) == (False, True)


class TestVerify:
    @pytest.fixture
    def cut(self, root: Path) -> list[Path]:
        """A library that was cut, one that is whole, and an empty executable of JAX's."""
        return [
            wrote_bytes(root / "jit/tvm-ffi/a_01/a.so", whole_library()[:50]),
            wrote_bytes(root / "jit/tvm-ffi/b_01/b.so", whole_library()),
            wrote_bytes(root / "jit/jax/jit_f-01-cache", b""),
        ]

    def test_what_is_damaged_is_told_and_stays(self, here, root, cut):
        done = here("verify", "--cache", "tvm-ffi,jax", "--root", root)
        assert done.code == 1
        assert [row[1:3] for row in done.rows] == [
            ["unit-cut", str(cut[0])],
            ["unit-empty", str(cut[2])],
        ]
        assert "3 units checked" in done.err
        assert all(path.exists() for path in cut)

    def test_a_repair_removes_the_whole_unit_and_no_other(self, here, root, cut):
        companion = wrote(root / "jit/jax/jit_f-01-atime", 8, HOUR)
        done = here("verify", "--cache", "all", "--repair", "--root", root)
        assert done.code == 0
        assert [path.exists() for path in (*cut, companion)] == [False, True, False, False]
        assert here("verify", "--cache", "all", "--root", root).code == 0

    def test_what_is_being_built_is_passed_over(self, here, root, cut):
        with (cut[0].parent / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            done = here("verify", "--cache", "tvm-ffi", "--repair", "--root", root)
        assert (done.code, done.out) == (0, "")
        assert cut[0].exists()

    def test_a_cache_whose_software_mends_its_files_is_not_judged_and_that_is_said(
        self, here, root
    ):
        wrote(root / "jit/cupy/a.cubin", 0, HOUR)
        done = here("verify", "--cache", "cupy", "--root", root)
        assert done.code == 0
        assert "cupy makes a damaged file again" in done.err

    def test_json_and_codes(self, here, root, cut):
        (outer, _), _ = documented("verify --cache NAME")
        (_, inner), _ = documented("verify")
        said = here("verify", "--cache", "all", "--json", "--root", root).json
        check(said, outer, caches=list, findings=list)
        for finding in said["findings"]:
            check(finding, inner)
        codes = here("verify", "--codes", "--json").json["codes"]
        assert "unit-cut" in json.dumps(codes)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become other users")
class TestGroup:
    """Two members of a group root: one removes what the other's software has made."""

    GID = 60001

    @pytest.fixture
    def shared(self, tmp_path: Path) -> Path:
        root = tmp_path / "shared"
        open_the_way_to(root)
        unit(root, "warp", 9 * DAY)
        unit(root, "numba", 9 * DAY)
        for path in (root, *root.rglob("*")):
            os.chown(path, ADA, self.GID)
            path.chmod(0o2770 if path.is_dir() else 0o660)
        return root

    def test_another_members_unit_goes_in_directories_of_mode_2770(self, shared):
        with acting_as(BOB, self.GID):
            plan = UnitPolicy(caches=JIT_CACHES).planned(str(shared))
            assert {one.uid for one in plan.jit_units} == {ADA}
            done = plan.execute()
        assert (done.units, done.skipped) == (2, ())
        assert all_files(shared) == []

    def test_the_empty_directory_that_stays_is_for_the_next_build_of_any_member(self, shared):
        """Torch makes its lock there, whoever has pruned, under whichever umask."""
        path = unit(shared, "torch-extensions", 9 * DAY)
        for one in (path.parents[1], path.parent, path, *path.iterdir()):
            os.chown(one, ADA, self.GID)
            one.chmod(0o2770 if one.is_dir() else 0o660)
        before = os.umask(0o077)
        try:
            with acting_as(BOB, self.GID):
                UnitPolicy(caches=(by_name("torch-extensions"),)).planned(str(shared)).execute()
        finally:
            os.umask(before)
        found = path.stat()
        assert list(path.iterdir()) == []
        assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (self.GID, 0o2770)
        assert list(path.parent.iterdir()) == [path]

    def test_a_cache_that_may_not_be_looked_into_is_told(self, shared):
        (shared / "jit/warp").chmod(0o700)
        with acting_as(BOB, self.GID):
            plan = UnitPolicy(caches=JIT_CACHES).planned(str(shared))
            (warp,) = find(str(shared), [by_name("warp")])
        assert {one.cache for one in plan.jit_units} == {"numba"}
        assert warp.unreadable == ((f"{shared}/jit/warp", "Permission denied"),)

    def test_what_another_keeps_for_himself_stays_whole(self, shared):
        inner = shared / "jit/warp/1.19.0/wp___main___09f3766"
        inner.chmod(0o2750)
        with acting_as(BOB, self.GID):
            plan = UnitPolicy(caches=JIT_CACHES).planned(str(shared))
            done = plan.execute()
        assert done.units == 1
        assert [one.key for one in done.skipped] == [str(inner)]
        assert "belongs to uid" in done.skipped[0].why
        assert len(list(inner.iterdir())) == 3
