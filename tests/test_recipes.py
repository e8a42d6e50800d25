"""`gpucache.report.recipes` and `gpucache recipe`: every recipe of a store is listed, and what is none is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import Command
from support.recipes import recipe
from support.trees import FACTS, Tree, set_used
from support.users import ADA

from gpucache.disk.vetting import Trust
from gpucache.kernels.recipe import MOST_BYTES, to_text
from gpucache.kernels.recipe_lines import FORMAT_LINE, read_recipe_file
from gpucache.report.cache_report import scan
from gpucache.report.recipes import StoredRecipe, Unusable, stored_recipes
from gpucache.report.selection import Selection
from gpucache.store.foreign import remember
from gpucache.store.lookup import sound
from gpucache.store.manifest import MANIFEST, RECIPE
from gpucache.store.publish import link_view
from gpucache.store.recipe_file import add_recipe
from gpucache.warm.ahead.compile_files import read_store

A, B, C = ("A" * 52, "B" * 52, "C" * 52)
NOBODY = Trust()


def text(key: str, **changed: object) -> bytes:
    return to_text(recipe(key=key, **changed))


@pytest.fixture
def trees(tmp_path: Path) -> dict[str, Tree]:
    """Two kernels with a recipe, of which one was used an hour ago, and one kernel without."""
    made = {
        A: Tree(tmp_path, A, recipe=text(A)),
        B: Tree(tmp_path, B, recipe=text(B)),
        C: Tree(tmp_path, C),
    }
    set_used(made[A].entry, time.time())
    return made


@pytest.fixture
def root(trees: dict[str, Tree]) -> str:
    return str(trees[A].root)


def listed(root: str, trust: Trust = NOBODY, **conditions: object) -> dict[str, object]:
    """By the key's first letter: the recipe, or why there is none."""
    selection = Selection(**conditions)  # type: ignore[arg-type]
    found = {}
    for one in stored_recipes(root, trust, selection, now=time.time()):
        found[one.of.key[0]] = one.why if isinstance(one, Unusable) else one.recipe
    return found


def test_every_kernel_of_the_store_is_listed(root):
    assert listed(root) == {"A": recipe(key=A), "B": recipe(key=B), "C": "none"}


def test_a_recipe_says_where_its_kernel_is_and_when_it_was_used(root, trees):
    by_key = {entry.key: entry for entry in scan(root).entries}
    for one in stored_recipes(root, NOBODY):
        entry = by_key[one.of.key]
        assert (one.of.used, one.of.arch, one.of.kernel) == (entry.used, entry.arch, "add")
        assert one.of.directories == entry.directories == ("0", "1")
        assert one.of.path == entry.copies[0].path


def test_a_use_of_a_view_with_a_manifest_of_its_own_counts(root, trees):
    tree = trees[B]
    data = (tree.view / MANIFEST).read_bytes()
    (tree.view / MANIFEST).unlink()
    (tree.view / MANIFEST).write_bytes(data)
    assert listed(root, used_since_s=60.0).keys() == {"A", "B"}


def test_a_view_outside_the_root_is_one_of_its_directories(root, trees, tmp_path):
    tree, outside = trees[B], tmp_path / "outside" / B
    manifest = sound(str(tree.entry), False, 0.0)
    assert manifest is not None
    assert link_view(root, str(tree.entry), str(outside), manifest, False)
    remember(root, str(outside.parent))
    assert listed(root, directory=str(outside.parent)).keys() == {"B"}


@pytest.mark.parametrize(
    ("conditions", "keys"),
    [
        ({"used_since_s": 60.0}, "A"),
        ({"used_since_s": 7200.0}, "ABC"),
        ({"older_than_s": 60.0}, "BC"),
        ({"kernel": "a*"}, "ABC"),
        ({"kernel": "m*"}, ""),
        ({"arch": "sm_90"}, "ABC"),
        ({"arch": "sm_80"}, ""),
        ({"directory": "1"}, "ABC"),
        ({"directory": "2"}, ""),
    ],
    ids=str,
)
def test_conditions_choose(root, conditions, keys):
    assert listed(root, **conditions).keys() == set(keys)


def test_a_root_without_a_store_has_no_recipes(tmp_path):
    assert listed(str(tmp_path)) == {}
    assert listed(str(tmp_path / "nowhere")) == {}


def test_what_is_no_kernel_is_not_listed(tmp_path):
    """A library stands for itself, and is in the store without a recipe."""
    tree = Tree(tmp_path)
    facts = FACTS._replace(kernel="launcher.so", group=None)
    key = facts.store_key(B)
    library = Tree.__new__(Tree)
    library.__dict__.update(tree.__dict__, key=key)
    assert library.publish({"launcher.so": b"\x7fELF"}, facts)
    assert listed(str(tree.root)).keys() == {"A"}


# ---- hostile


def replaced(write: Callable[[Path], object]) -> Callable[[Path], None]:
    def plant(path: Path) -> None:
        path.unlink()
        write(path)

    return plant


PLANTED = {
    "nothing": (replaced(lambda path: None), "missing"),
    "a FIFO": (replaced(lambda path: os.mkfifo(path)), "changed"),
    "a link": (replaced(lambda path: path.symlink_to("/etc/passwd")), "changed"),
    "a link to a device": (replaced(lambda path: path.symlink_to("/dev/zero")), "changed"),
    "a directory": (replaced(lambda path: path.mkdir()), "changed"),
    "100 MB": (replaced(lambda path: path.write_bytes(bytes(10**8))), "changed"),
    "another recipe": (replaced(lambda path: path.write_bytes(text(C))), "changed"),
    "a cut recipe": (lambda path: os.truncate(path, 100), "changed"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_planted_is_told_and_hangs_nobody(planted, root, trees):
    plant, why = PLANTED[planted]
    plant(trees[B].entry / RECIPE)
    assert listed(root) == {"A": recipe(key=A), "B": why, "C": "none"}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "no recipe"),
        (b"\0" * 100, "no recipe"),
        (b"[" * 10**5, "no recipe"),
        (text(B).replace(b'"cuda"', b'"\\u001b[31m"'), "no recipe"),
        (text(B)[:-1] + b',"later":"\xc3\xa9"}', "no recipe"),
        (text(B)[:-1] + b"\n}", "no recipe"),
        (text(B)[:-1] + b"\r}", "no recipe"),
        (text(A), "another key"),
        (b"x" * MOST_BYTES, "no recipe"),
    ],
    ids=lambda value: repr(value)[-24:],
)
def test_what_a_writer_says_that_is_no_recipe_is_told(said, why, tmp_path):
    """Whose digest is right, since whoever wrote it wrote the manifest too."""
    tree = Tree(tmp_path, B, recipe=said)
    assert listed(str(tree.root)) == {"B": why}


def test_a_later_gpucache_may_say_more(tmp_path):
    tree = Tree(tmp_path, B, recipe=text(B)[:-1] + b',"later":[1]}')
    assert listed(str(tree.root)) == {"B": recipe(key=B)}


@pytest.mark.parametrize("what", ["the entry", "the file", "the part of the store"])
@pytest.mark.parametrize("how", ["another user's", "writable for all"])
def test_what_another_user_could_have_planted_is_no_recipe(what, how, root, trees):
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    tree = trees[B]
    path = {
        "the entry": tree.entry,
        "the file": tree.entry / RECIPE,
        "the part of the store": tree.entry.parent,
    }[what]
    if how == "another user's":
        os.chown(path, ADA, ADA)
    else:
        path.chmod(0o777)
    assert listed(root) == {"A": recipe(key=A), "B": "unsafe", "C": "none"}
    if how == "another user's":
        assert listed(root, Trust(uids=frozenset([ADA])))["B"] == recipe(key=B)


@pytest.mark.parametrize("what", ["entry", "part of the store", "store"])
def test_no_link_is_followed_to_a_recipe(what, root, trees, tmp_path):
    tree = trees[B]
    path = {
        "entry": tree.entry,
        "part of the store": tree.entry.parent,
        "store": tree.entry.parents[1],
    }[what]
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    assert "B" not in listed(root)


def test_an_entry_that_goes_meanwhile_is_left_out(root, trees):
    found = {}
    for one in stored_recipes(root, NOBODY):
        found[one.of.key[0]] = one
        for key in (A, B, C):
            shutil.rmtree(trees[key].entry, ignore_errors=True)
    assert len(found) == 1


# ---- the command


def test_the_command_writes_what_warm_reads(root, here: Command, tmp_path):
    done = here("recipe", "--root", root)
    assert done.code == 0
    assert done.out.encode().startswith(FORMAT_LINE)
    (tmp_path / "recipes").write_text(done.out)
    read = list(read_recipe_file(str(tmp_path / "recipes")))
    assert sorted(read) == [recipe(key=A), recipe(key=B)]
    note, hint = done.err.splitlines()
    assert note == "note: 2 recipes; 1 kernel has none"
    assert hint.startswith("hint: a kernel of an earlier gpucache gets its recipe when ")


def test_the_command_writes_a_file_whole(root, here: Command, tmp_path):
    there = here("recipe", "--root", root).out
    file = tmp_path / "recipes.jsonl"
    file.write_text("before")
    done = here("recipe", "--root", root, "--output", file)
    assert (done.code, done.out) == (0, "")
    assert file.read_text() == there
    assert not list(tmp_path.glob(".gpucache-*"))


def test_a_file_that_cannot_be_written_is_as_it_was(root, here: Command, tmp_path, monkeypatch):
    file = tmp_path / "recipes.jsonl"
    file.write_text("before")

    def refuse(fd: int) -> None:
        raise OSError(28, os.strerror(28), str(file))

    monkeypatch.setattr(os, "fsync", refuse)
    done = here("recipe", "--root", root, "-o", file)
    assert done.code == 1
    assert "No space left on device" in done.err
    assert file.read_text() == "before"
    assert not list(tmp_path.glob(".gpucache-*"))


@pytest.mark.parametrize(
    ("name", "why"), [("nowhere/file", "No such file or directory"), (".", "Is a directory")]
)
def test_a_file_that_cannot_be_made_is_named_with_the_way_out(
    name, why, root, here: Command, tmp_path
):
    done = here("recipe", "--root", root, "-o", f"{tmp_path}/{name}")
    assert done.code == 1
    assert done.err == (
        f"error: could not make {tmp_path}/{name}: {why}\n"
        "hint: name another file with --output, in a directory that is there and can be written\n"
    )


@pytest.mark.parametrize("value", ["", " ", "--kernel"])
def test_an_empty_name_of_a_file_is_a_wrong_usage(value, root, here: Command):
    assert here("recipe", "--root", root, "--output", value).code == 2


@pytest.mark.parametrize("output", ["/dev/stdout", "/dev/stderr"])
def test_what_is_no_regular_file_is_written_to_as_it_is(output, root):
    command = [sys.executable, "-m", "gpucache", "recipe", "--root", root, "-o", output]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    said = done.stdout if output == "/dev/stdout" else done.stderr
    assert FORMAT_LINE in said
    assert text(A) in said


def test_the_command_chooses(root, here: Command):
    done = here("recipe", "--root", root, "--used-since", "1min", "--kernel", "add", "--arch", "90")
    assert done.out.encode() == FORMAT_LINE + text(A) + b"\n"
    assert done.err == "note: 1 recipe\n"
    done = here("recipe", "--root", root, "--kernel", "nothing*")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: nothing cached in {root} has --kernel 'nothing*'\nhint: ")
    done = here("recipe", "--root", root, "--kernel", "a*", "--used-since", "0.001s")
    assert done.out.encode() == FORMAT_LINE
    assert done.err == f"note: none of 3 kernels in {root} is like that\nnote: 0 recipes\n"


@pytest.mark.parametrize("option", [("--arch", "sm_75"), ("--directory", "7")])
def test_a_filter_that_names_nothing_there_is_an_error(option, root, here: Command):
    done = here("recipe", "--root", root, *option)
    assert (done.code, done.out) == (1, "")
    assert f"nothing cached in {root} has {option[0]} {option[1]!r}" in done.err


def test_damage_is_told_with_the_way_out(root, trees, here: Command):
    (trees[B].entry / RECIPE).unlink()
    done = here("recipe", "--root", root)
    assert done.code == 0
    assert done.err.splitlines()[0] == (
        f"warning: {trees[B].entry}: no recipe: it is not there; "
        f"gpucache verify --repair --root {root}"
    )
    assert here("verify", "--repair", "--root", root).code == 0
    assert "warning" not in here("recipe", "--root", root).err


def test_an_empty_root_has_no_recipes(here: Command, tmp_path):
    done = here("recipe", "--root", tmp_path)
    assert (done.code, done.out.encode()) == (0, FORMAT_LINE)


def test_a_root_that_others_may_write_is_refused(root, here: Command):
    """To replay a recipe is to import what it names."""
    os.chmod(root, 0o777)
    done = here("recipe", "--root", root)
    assert (done.code, done.out) == (1, "")
    assert "everybody may write it" in done.err


@pytest.mark.parametrize("stdout", ["/dev/full", "closed"])
def test_where_stdout_cannot_be_written_that_is_an_error_and_no_defect(stdout, root):
    command = [sys.executable, "-m", "gpucache", "recipe", "--root", root]
    if stdout == "closed":
        out, into = os.pipe()
        os.close(out)
    else:
        into = os.open(stdout, os.O_WRONLY)
    try:
        done = subprocess.run(command, stdout=into, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(into)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


def test_many_recipes_are_printed_in_pieces(here: Command, tmp_path):
    """More than one buffer of them; not a byte is lost or put in twice."""
    keys = [letter * 52 for letter in "ABCDEFGH"]
    for key in keys:
        tree = Tree(tmp_path, key, recipe=text(key, source="x = 1\n" * 3000))
    done = here("recipe", "--root", tree.root)
    lines = done.out.encode().splitlines()
    assert len(done.out) > 2**17
    assert [line + b"\n" for line in lines[:1]] == [FORMAT_LINE]
    assert sorted(lines[1:]) == [text(key, source="x = 1\n" * 3000) for key in keys]


def test_an_entry_that_got_its_recipe_later_is_listed(root, trees):
    tree = trees[C]
    lock = f"{tree.locks}/{C}.lock"
    assert add_recipe(str(tree.entry), str(tree.view), C, text(C), lambda: lock)
    assert listed(root)["C"] == recipe(key=C)


def test_what_is_yielded_has_the_text_as_it_lies_there(root, trees):
    for one in stored_recipes(root, NOBODY):
        if isinstance(one, StoredRecipe):
            assert one.text == (Path(one.of.path) / RECIPE).read_bytes()


def test_warm_takes_the_recipes_of_the_store_and_tells_of_those_that_are_none(root, trees):
    (trees[B].entry / RECIPE).write_bytes(b"torn")
    given = read_store(root)
    assert given.recipes == (recipe(key=A),)
    (bad,) = given.bad
    assert bad.path == str(trees[B].entry / RECIPE)
    assert bad.reason.startswith("SHA-256 is ")
