"""`rm` takes what is named, and nothing else; a long plan is told in sums."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from support.cli import check, documented, on_a_terminal
from support.terminals import WIDTHS, assert_fits, at_width
from support.trees import everything_below
from tree import make

from gpucache.disk.lock_place import LockPlace
from gpucache.store.key_lock import holding
from gpucache.store.manifest import MANIFEST, entry_path


class Kernel(NamedTuple):
    key: str
    name: str
    arch: str


@pytest.fixture
def root(tmp_path: Path, keys: list[str]) -> Path:
    return tmp_path / "root"


@pytest.fixture
def kernels(here, root: Path) -> list[Kernel]:
    """Those in the root, oldest first."""
    rows = here("ls", "--json", "--root", root).json["entries"]
    found = [Kernel(row["key"], row["kernel"], row["arch"]) for row in reversed(rows)]
    assert len({one.name for one in found}) > 1
    assert len({one.arch for one in found}) > 1
    return found


def left(here, root: Path) -> set[str]:
    return {row["key"] for row in here("ls", "--json", "--root", root).json["entries"]}


def test_a_key_goes_from_the_store_and_all_views(here, root, keys):
    done = here("rm", keys[2][:10], keys[4], "--yes", "--root", root)
    assert done.code == 0
    assert {row[1] for row in done.rows} == {keys[2], keys[4]}
    gone = {path.name for path in root.rglob("*")} & {keys[2], keys[4]}
    assert gone == set()
    assert left(here, root) == set(keys) - {keys[2], keys[4]}


def test_a_key_that_is_said_twice_goes_once(here, root, keys):
    done = here("rm", keys[0], keys[0][:9], "--yes", "--root", root)
    assert (done.code, len(done.rows)) == (0, 1)


def test_a_kernel_goes_by_a_pattern_of_its_name(here, root, kernels):
    name = kernels[0].name
    pattern = f"{name[:-2]}*"
    assert here("rm", "--kernel", pattern, "--yes", "--root", root).code == 0
    stay = {one.key for one in kernels if not one.name.startswith(name[:-2])}
    assert left(here, root) == stay != {one.key for one in kernels}


def test_all_conditions_have_to_be_met(here, root, kernels):
    one = kernels[0]
    words = ["rm", "--arch", one.arch, "--kind", "kernel", "--kernel", one.name]
    assert here(*words, "--yes", "--root", root).code == 0
    stay = {each.key for each in kernels if (each.name, each.arch) != (one.name, one.arch)}
    assert left(here, root) == stay


def test_what_dead_processes_left_stays(here, root, keys):
    stray = root / "gpucache/v1/quarantine" / f"{keys[0]}.1"
    stray.mkdir(parents=True)
    os.utime(stray, (0, 0))
    assert here("rm", keys[0], "--yes", "--root", root).code == 0
    assert stray.exists()


def test_what_was_used_just_now_stays_and_is_a_failure_unless_it_is_forced(here, root, keys):
    os.utime(f"{entry_path(str(root), keys[0])}/{MANIFEST}")
    done = here("rm", keys[0], "--yes", "--root", root)
    assert done.code == 1
    assert done.err.splitlines()[0].startswith("note: 1 more would go, but ")
    assert done.err.splitlines()[-1] == "hint: --force removes also what was used just now"
    assert keys[0] in left(here, root)
    assert here("rm", keys[0], "--force", "--yes", "--root", root).code == 0
    assert keys[0] not in left(here, root)


def test_what_is_being_compiled_stays_also_by_force(here, root, keys):
    with holding(f"{LockPlace(str(root)).directory()}/{keys[0]}.lock", "a test") as is_held:
        assert is_held
        done = here("rm", keys[0], "--force", "--yes", "--root", root)
    assert done.code == 1
    assert f"note: kept {keys[0]}: " in done.err
    assert keys[0] in left(here, root)


def test_its_json_is_that_of_prune(here, root, keys):
    (planned, last, _), inner = documented("prune")
    done = here("rm", keys[0], "--yes", "--json", "--root", root)
    check(done.json, planned + last, kept=list, parts=list, removed=dict)
    (part,) = done.json["parts"]
    check(part, inner["parts"], what=str, which=str)
    assert (part["what"], part["which"]) == ("remove", keys[0])


def test_it_asks_a_person(here, root, keys):
    code, seen = on_a_terminal("rm", keys[0], "--root", root, answer=b"n\n")
    assert code == 1
    assert "Remove 1 entry, " in seen
    assert left(here, root) == set(keys)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "nothing is named that is to be removed"),
        (["A", "--arch", "sm_90"], 2, "KEY names entries"),
        ([""], 2, "a KEY is empty"),
        (["nosuchkey"], 1, "has a key that begins with 'nosuchkey'"),
        (["--kernel", "nosuch*"], 1, "--kernel 'nosuch*'"),
        (["--arch", "sm_99"], 1, "--arch 'sm_99'"),
        (["--kind", "graph"], 2, "'graph' is not one of"),
    ],
)
def test_what_names_nothing_is_an_error_and_removes_nothing(words, code, said, here, root, keys):
    before = everything_below(root)
    done = here("rm", *words, "--yes", "--root", root)
    assert done.code == code
    assert said in done.err
    assert "hint: " in done.err or code == 2
    assert everything_below(root) == before


def test_the_only_entry_does_not_go_by_an_empty_key(here, root, keys):
    """As a script says whose variable is not set."""
    here("prune", "--max-entries", 1, "--yes", "--root", root)
    assert here("rm", "", "--yes", "--root", root).code == 2
    assert len(left(here, root)) == 1


# ---- prune by the same conditions


def test_prune_takes_of_a_kernel_what_is_old(here, root, kernels):
    name = kernels[0].name
    words = ["prune", "--kernel", name, "--kind", "kernel", "--max-age", "1s", "--yes"]
    assert here(*words, "--root", root).code == 0
    assert left(here, root) == {one.key for one in kernels if one.name != name}


def test_prune_of_a_kind_that_is_not_there_takes_nothing(here, root, keys):
    done = here("prune", "--kind", "library", "--yes", "--root", root)
    assert (done.code, done.out) == (0, "")
    assert len(left(here, root)) == 6


def test_prune_of_a_kernel_that_is_gone_says_so_and_is_no_failure(here, root, keys):
    done = here("prune", "--kernel", "nosuch*", "--yes", "--root", root)
    assert done.code == 0
    assert "note: nothing cached in " in done.err


# ---- long plans


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of 60 kernels, of which half were used a month ago."""
    root = tmp_path_factory.mktemp("many") / "root"
    now = time.time()
    for number, key in enumerate(make(str(root), 60, 1)):
        used = now - (40 * 86400 if number % 2 else 3600)
        for path in (entry_path(str(root), key), f"{root}/triton/0/{key}"):
            os.utime(f"{path}/{MANIFEST}", (used, used))
    return root


def test_a_long_plan_is_sums_by_kernel_and_age_and_the_ten_largest(many):
    seen = at_width(["prune", "--max-entries", 0, "--dry-run", "--root", many], 100)
    lines = seen.splitlines()
    heads = [line.split() for line in lines]
    assert ["kernel", "count", "size", "last", "used"] in heads
    at = heads.index(["unused", "for", "count", "size", "last", "used"])
    assert [row[:4] for row in heads[at + 1 : at + 3]] == [
        ["under", "a", "day", "30"],
        ["30", "to", "90", "days"],
    ]
    assert (heads[at + 2][4], heads[at + 3]) == ("30", [])
    at = lines.index("the 10 largest:")
    assert lines[at + 1].split() == ["what", "which", "name", "size", "used"]
    assert [line.split()[0] for line in lines[at + 2 : at + 12]] == ["remove"] * 10
    assert lines[at + 12] == "note: and 50 more; --all lists each"
    assert lines[-1].startswith("note: 60 entries, ")


def test_the_sums_are_those_of_all_parts(many):
    seen = at_width(["prune", "--max-entries", 0, "--dry-run", "--root", many], 100)
    kernels, ages = seen.split("\n\n")[:2]
    for table in (kernels, ages.split("the 10 largest")[0]):
        rows = table.splitlines()[1:]
        assert sum(_count(row) for row in rows) == 60


def _count(row: str) -> int:
    """The number of parts in a row: what stands before the size and its unit, and how long ago."""
    before, unit, _ = row.rpartition(" KiB") if " KiB" in row else row.rpartition(" MiB")
    assert unit, row
    return int(before.split()[-2])


@pytest.mark.parametrize("width", WIDTHS)
def test_a_long_plan_fits(many, width):
    seen = at_width(["clean", "--dry-run", "--root", many], width)
    assert_fits(seen, width)
    assert "the 10 largest:" in seen


def test_all_and_a_pipe_list_each(many, here):
    seen = at_width(["clean", "--all", "--dry-run", "--root", many], 200)
    assert sum(line.startswith("remove") for line in seen.splitlines()) == 60
    assert len(here("clean", "--dry-run", "--root", many).rows) == 60


def test_a_short_plan_lists_each(root, keys):
    seen = at_width(["clean", "--dry-run", "--root", root], 100)
    assert sum(line.startswith("remove") for line in seen.splitlines()) == 6
    assert "largest" not in seen
