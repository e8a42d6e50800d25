"""`gpucache prune` of several roots, as an administrator meets it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tree
from support import jit_trees
from support.cli import check, documented
from support.trees import everything_below

ALICE, BOB = 41001, 41002


@pytest.fixture
def scratch(everyones: Path, as_root: None) -> Path:
    """Two users' roots of three entries each, one of a system user, and a directory that is no cache."""
    for name, uid in (("alice", ALICE), ("bob", BOB), ("daemon", 998)):
        home = everyones / name
        home.mkdir()
        tree.make(str(home / "kernels"), 3, 1)
        for path in (home, *home.rglob("*")):
            os.chown(path, uid, uid, follow_symlinks=False)
    (everyones / "carol/kernels/thesis").mkdir(parents=True)
    os.chown(everyones / "carol", 41003, 41003)
    os.chown(everyones / "carol/kernels", 41003, 41003)
    return everyones


ALL = ("prune", "--max-entries", 0, "--yes")


def test_one_line_a_root_and_one_sum(here, scratch):
    done = here(*ALL, "--root", f"{scratch}/*/kernels")
    assert done.code == 0
    assert [row[:5] for row in done.rows] == [
        [f"{scratch}/alice/kernels", str(ALICE), "pruned", "3", "0"],
        [f"{scratch}/bob/kernels", str(BOB), "pruned", "3", "0"],
        [f"{scratch}/carol/kernels", "41003", "no-cache", "0", "0"],
        [f"{scratch}/daemon/kernels", "998", "system", "0", "0"],
    ]
    note, total = done.err.splitlines()
    assert note == f"note: {scratch}/daemon/kernels: it belongs to uid 998, a user of the system's"
    assert total.startswith("note: 2 roots pruned; ")
    assert total.endswith(" KiB freed")


def test_json_is_what_the_page_says(here, scratch):
    (outer, inner), values = documented("prune --root")
    done = here(*ALL, "--json", "--root", f"{scratch}/*/kernels")
    said = done.json
    check(said, outer, roots=list)
    for one in said["roots"]:
        check(one, inner, outcome=str, uid=int, units=int, kept=int, problem=str, hint=str)
        assert one["outcome"] in values["outcome"]
    assert [one["entries"] for one in said["roots"]] == [3, 3, 0, 0]
    assert done.err == ""


def test_a_failure_is_told_and_the_code_is_1_and_the_others_are_pruned(here, scratch):
    (scratch / "bob").chmod(0o777)
    done = here(*ALL, "--root", f"{scratch}/*/kernels")
    assert done.code == 1
    assert [row[2] for row in done.rows] == ["pruned", "refused", "no-cache", "system"]
    assert (
        f"warning: {scratch}/bob/kernels: others may write {scratch}/bob (mode 0777), and put "
        "another directory there\n" in done.err
    )
    assert "note: 1 root pruned, 1 failed; " in done.err


def test_several_roots_are_named_and_each_is_pruned_once(here, scratch):
    roots = [f"{scratch}/daemon/kernels", f"{scratch}/[ad]*/kernels", f"{scratch}/alice/kernels"]
    done = here(*ALL, *(word for root in roots for word in ("--root", root)))
    assert [row[1:4] for row in done.rows] == [
        [str(ALICE), "pruned", "3"],
        ["998", "pruned", "3"],
    ]


def test_another_users_single_root_is_pruned_with_that_users_rights(here, scratch):
    done = here(*ALL, "--root", scratch / "alice/kernels")
    assert [row[1:4] for row in done.rows] == [[str(ALICE), "pruned", "3"]]


def test_a_dry_run_says_what_would_go(here, scratch):
    before = everything_below(scratch)
    done = here("prune", "--max-age", "1s", "--dry-run", "--root", f"{scratch}/*/kernels")
    assert (done.code, done.rows[0][2:4]) == (0, ["planned", "3"])
    assert done.err.splitlines()[-1].endswith(" would go")
    assert everything_below(scratch) == before


def test_it_asks_nothing_and_so_wants_a_word(here, scratch):
    done = here("prune", "--max-entries", 0, "--root", f"{scratch}/*/kernels")
    assert done.code == 2
    assert "say --yes, or --dry-run" in done.err


def test_a_pattern_without_a_match_is_no_failure_and_a_missing_root_is_one(here, scratch):
    done = here(*ALL, "--root", f"{scratch}/*/nothing")
    assert (done.code, done.rows[0][2]) == (0, "no-match")
    assert f"note: no directory is like {scratch}/*/nothing\n" in done.err
    done = here(*ALL, "--root", f"{scratch}/alice/kernels", "--root", f"{scratch}/dave")
    assert (done.code, [row[2] for row in done.rows]) == (1, ["pruned", "refused"])


@pytest.mark.parametrize(
    "words", [["--triton-version", "latest"], ["--inductor", "--arch", "sm_90"]]
)
def test_a_filter_without_sense_is_told_once(here, scratch, words):
    done = here("prune", "--yes", *words, "--root", f"{scratch}/*/kernels")
    assert (done.code, done.out, done.err.count("error: ")) == (2, "", 1)


def test_names_of_users_directories_command_no_terminal(here, scratch):
    evil = scratch / "e\033[2Jvil\n"
    (evil / "kernels").mkdir(parents=True)
    os.chown(evil, BOB, BOB)
    os.chown(evil / "kernels", 0, 0)
    done = here(*ALL, "--root", f"{scratch}/*/kernels")
    assert "\033" not in done.out + done.err
    assert len(done.rows) == 5


def test_as_another_user_than_root_a_pattern_works_with_that_users_rights(scratch):
    """What another owns is refused, as ever."""
    from gpucache.upkeep.bounded_children import ended
    from gpucache.upkeep.many_roots import Order, _import_all, prune_roots
    from gpucache.upkeep.owners_rights import Rights, become
    from gpucache.upkeep.prune import PrunePolicy

    (scratch / "bob").chmod(0o755)
    _import_all()

    def as_alice() -> object:
        become(Rights(ALICE, ALICE))
        order = Order(policy=PrunePolicy(max_entries=0), limit_s=60)
        done = prune_roots([f"{scratch}/*/kernels"], order, {})
        return {one.root.split("/")[-2]: [one.state, one.entries] for one in done}

    ((_, how),) = ended([as_alice], 120)
    assert how.answer["alice"] == ["pruned", 3]
    assert {state for state, _ in (how.answer["bob"], how.answer["daemon"])} == {"refused"}


def test_units_of_other_jit_caches_go_from_each_root(here, scratch):
    for name, uid in (("alice", ALICE), ("bob", BOB)):
        jit_trees.unit(scratch / name / "kernels", "tvm-ffi", 40 * jit_trees.DAY)
        for path in (scratch / name).rglob("*"):
            os.chown(path, uid, uid, follow_symlinks=False)
    words = ("prune", "--cache", "tvm-ffi", "--max-age", "30d", "--yes", "--json")
    said = here(*words, "--root", f"{scratch}/*/kernels").json
    assert [(one["entries"], one["units"]) for one in said["roots"][:2]] == [(0, 1)] * 2
    assert [jit_trees.all_files(root) for root in scratch.glob("*/kernels")] == [[]] * 4


def test_a_root_whose_name_has_brackets_is_no_pattern(here, everyones, as_root):
    root = everyones / "run[1]"
    tree.make(str(root), 3, 1)
    done = here(*ALL, "--root", root)
    assert done.code == 0
    assert "run[1]" not in done.out  # which has a row a root where a pattern was meant
    assert list(root.rglob("__entry__.json")) == []


def test_a_directory_named_like_a_pattern_keeps_no_users_root_from_being_pruned(here, scratch):
    (scratch / "*").mkdir()
    done = here(*ALL, "--root", f"{scratch}/*/kernels")
    assert [row[2] for row in done.rows] == ["pruned", "pruned", "no-cache", "system"]
