"""What is asked before a program starts: `missing`, `recipe_summary`, `made_keys` and `installed_triton`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.recipes import key_of, recipe_file, stored

from gpucache.disk.vetting import Trust
from gpucache.errors import ConfigurationError, RecipesError
from gpucache.kernels.recipe import Function
from gpucache.layout.paths import ours
from gpucache.warm.ahead import made_keys
from gpucache.warm.ahead.installed_triton import installed_triton, stamp_of
from gpucache.warm.ahead.made_keys import AGAIN_S, keys_path
from gpucache.warm.ahead.missing import look_for_missing
from gpucache.warm.ahead.recipe_summary import MOST_BYTES, has_recipe, summary_of
from gpucache.warm.outcome import Outcome

TRUST = Trust()


@pytest.fixture
def triton_390(tmp_path, monkeypatch):
    """The Triton that would be imported is 3.9.0, and is a few files."""
    package = tmp_path / "site" / "triton"
    (package / "_C").mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '3.9.0'\n")
    (package / "_C/libtriton.so").write_bytes(b"ELF")
    monkeypatch.setattr("sys.path", [str(tmp_path / "site")])
    return package


@pytest.fixture
def file(tmp_path, root, triton_390) -> Path:
    """A file of three recipes whose source is older, in a root that is there."""
    for part in ("recipes", "tmp"):
        Path(ours(str(root), part)).mkdir(parents=True, mode=0o700)
    source = tmp_path / "kernels.py"
    source.write_text("")
    os.utime(source, (0, 0))
    recipe_file(tmp_path / "r.jsonl", 3, function=Function("kernels", "add", str(source), "0" * 64))
    return tmp_path / "r.jsonl"


def looked(file: Path, root: Path, *targets: str) -> tuple[str, int, int]:
    found = look_for_missing([str(file)], [str(file)], str(root), targets, TRUST)
    return found.why, found.missing, found.total


def made(file: Path, root: Path, outcomes: list[Outcome], *targets: str) -> str:
    """Leave what came of the recipes of a file."""
    path = keys_path(str(root), [str(file)], targets)
    made_keys.write(
        path,
        made_keys.made_keys(outcomes, made_keys.nothing_made(summary_of([str(file)]))),
        str(root),
    )
    return path


def outcomes(keys: dict[int, int | None], end: str = "made (source changed)") -> list[Outcome]:
    """Which key was made of which recorded key, both by number."""
    return [
        Outcome(
            key_of(old),
            "add",
            "sm_90",
            end if new else "failed",
            None if new is None else key_of(new),
        )
        for old, new in keys.items()
    ]


class TestTheRecordedKeys:
    def test_what_has_no_entry_is_missing(self, file, root):
        assert looked(file, root) == ("missing", 3, 3)
        for number in (0, 2):
            stored(root, key_of(number))
        assert looked(file, root) == ("missing", 1, 3)
        stored(root, key_of(1))
        assert looked(file, root) == ("nothing is missing", 0, 3)

    def test_an_entry_that_is_being_removed_is_missing(self, file, root):
        for number in range(3):
            entry = stored(root, key_of(number))
        (entry / "__entry__.json").rename(entry / "__entry__.json.removed")
        assert looked(file, root) == ("missing", 1, 3)

    def test_another_triton_is_not_believed_to_ask_for_them(self, file, root, triton_390):
        for number in range(3):
            stored(root, key_of(number))
        (triton_390 / "__init__.py").write_text("__version__ = '3.9.1'\n")
        assert looked(file, root)[0] == "another Triton"

    def test_nor_is_a_program_for_another_architecture(self, file, root):
        for number in range(3):
            stored(root, key_of(number))
        assert looked(file, root, "sm_90")[0] == "nothing is missing"
        assert looked(file, root, "sm_100")[0] == "another target"

    def test_nor_one_whose_source_was_edited_since(self, file, root, tmp_path):
        for number in range(3):
            stored(root, key_of(number))
        os.utime(tmp_path / "kernels.py")
        os.utime(file, (time.time() - 60, time.time() - 60))
        assert looked(file, root)[0] == "source changed"

    def test_without_triton_all_that_counts_is_what_is_there(self, file, root, monkeypatch):
        monkeypatch.setattr("sys.path", [])
        assert looked(file, root) == ("missing", 3, 3)

    def test_a_file_without_a_recipe_misses_nothing(self, file, root):
        file.write_bytes(b'{"format": "gpucache recipes", "version": 1}\n')
        assert looked(file, root) == ("nothing is missing", 0, 0)


class TestTheSideFile:
    def test_what_was_made_of_an_edited_source_is_looked_for_and_starts_nothing_again(
        self, file, root, tmp_path
    ):
        os.utime(file, (1, 1))
        assert looked(file, root)[0] == "missing"
        stored(root, key_of(0))
        os.utime(tmp_path / "kernels.py")
        assert looked(file, root)[0] == "source changed"
        made(file, root, outcomes({0: 10, 1: 11, 2: 12}))
        assert looked(file, root) == ("missing", 3, 3)
        for number in (10, 11, 12):
            stored(root, key_of(number))
        assert looked(file, root) == ("nothing is missing", 0, 3)

    def test_an_edit_after_it_is_noticed(self, file, root, tmp_path):
        """Also where the recipes are newer than the source."""
        made(file, root, outcomes({0: 10, 1: 11, 2: 12}))
        for number in (0, 1, 2, 10, 11, 12):
            stored(root, key_of(number))
        assert looked(file, root)[0] == "nothing is missing"
        (tmp_path / "kernels.py").write_text("edited = 1")
        os.utime(file)
        assert looked(file, root)[0] == "source changed"

    def test_another_triton_makes_it_void(self, file, root, triton_390):
        made(file, root, outcomes({0: 10, 1: 11, 2: 12}))
        for number in (10, 11, 12):
            stored(root, key_of(number))
        assert looked(file, root)[0] == "nothing is missing"
        (triton_390 / "_C/libtriton.so").write_bytes(b"ELF, another")
        assert looked(file, root)[0] == "another Triton"

    def test_each_choice_of_targets_has_its_own(self, file, root):
        two = [*outcomes({0: 10, 1: 11, 2: 12}), *outcomes({0: 20, 1: 21, 2: 22})]
        made(file, root, two, "sm_80", "sm_100")
        for number in (10, 11, 12, 20, 21):
            stored(root, key_of(number))
        assert looked(file, root, "sm_100", "sm_80") == ("missing", 1, 3)
        assert looked(file, root, "sm_80")[0] == "another target"

    def test_what_could_not_be_compiled_is_tried_again_after_a_day(self, file, root, monkeypatch):
        made(file, root, outcomes({0: 10, 1: 11, 2: None}))
        for number in (10, 11):
            stored(root, key_of(number))
        assert looked(file, root)[0] == "nothing is missing"
        now = time.time()
        monkeypatch.setattr("time.time", lambda: now + AGAIN_S + 1)
        assert looked(file, root)[0] == "missing"

    def test_a_line_that_only_looks_like_a_recipe_does_not_start_a_pool_for_ever(self, file, root):
        with open(file, "ab") as lines:
            lines.write(b'{"key":"' + key_of(7).encode() + b'","triton_version":"3.9.0","odd":1}\n')
        made(file, root, outcomes({0: 10, 1: 11, 2: 12}))
        for number in (10, 11, 12):
            stored(root, key_of(number))
        assert looked(file, root) == ("nothing is missing", 0, 4)

    def test_what_is_not_for_the_target_is_not_tried_again(self, file, root, monkeypatch):
        told = outcomes({0: 10, 1: 11})
        made(file, root, [*told, Outcome(key_of(2), "add", "sm_80", "not for this target")])
        for number in (10, 11):
            stored(root, key_of(number))
        now = time.time()
        monkeypatch.setattr("time.time", lambda: now + AGAIN_S + 1)
        assert looked(file, root)[0] == "nothing is missing"

    @pytest.mark.parametrize(
        "text",
        [
            *("", "[", "[]", "{}", "null", "[" * 9999, '{"format": "gpucache keys"}'),
            '{"format":"gpucache keys","version":2,"triton":"","sources":{},"at":1.0,"failed":0,"keys":{}}',
            '{"format":"gpucache keys","version":1,"triton":"","sources":[],"at":1.0,"failed":0,"keys":{}}',
            '{"format":"gpucache keys","version":1,"triton":"","sources":{},"at":1.0,"failed":0,"keys":{"a":7}}',
            '{"format":"gpucache keys","version":1,"triton":"","sources":{},"at":1.0,"failed":0,"keys":{"a":[7]}}',
            '{"format":"gpucache keys","version":1,"triton":"","sources":{"a":7},"at":1.0,"failed":0,"keys":{}}',
        ],
    )
    def test_nonsense_in_it_is_no_side_file(self, text, file, root):
        path = made(file, root, outcomes({0: 10, 1: 11, 2: 12}))
        Path(path).write_text(text)
        assert made_keys.read(path, TRUST) is None
        assert looked(file, root) == ("missing", 3, 3)

    def test_a_link_a_pipe_or_one_that_all_may_write_is_none(self, file, root, tmp_path):
        path = Path(made(file, root, outcomes({0: 10, 1: 11, 2: 12})))
        assert made_keys.read(str(path), TRUST) is not None
        path.chmod(0o666)
        assert made_keys.read(str(path), TRUST) is None
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        assert made_keys.read(str(path), TRUST) is None
        path.unlink()
        os.mkfifo(path)
        assert made_keys.read(str(path), TRUST) is None

    def test_a_key_in_it_that_leads_out_of_the_store_is_missing(self, file, root):
        told = outcomes({0: 10, 1: 11})
        evil = Outcome(key_of(2), "add", "sm_90", "made", "../../../../" + "x" * 40)
        made(file, root, [*told, evil])
        for number in (10, 11):
            stored(root, key_of(number))
        assert looked(file, root) == ("missing", 1, 3)


class TestLines:
    def test_what_is_read_without_parsing_is_what_the_recipes_say(self, tmp_path):
        odd = '/a "b"/\\c/ü.py'
        keys = recipe_file(tmp_path / "r", 4, function=Function("m", "f", odd, "0" * 64))
        found = summary_of([str(tmp_path / "r")])
        assert found.keys == tuple(keys)
        assert (found.versions, found.targets) == ({"3.9.0"}, {"sm_90"})
        assert found.sources == {odd}
        assert found.written == os.stat(tmp_path / "r").st_mtime

    def test_of_several_files_each_key_counts_once(self, tmp_path):
        recipe_file(tmp_path / "a", 3)
        recipe_file(tmp_path / "b", 5)
        found = summary_of([str(tmp_path / "a"), str(tmp_path / "b")])
        assert len(found.keys) == 5

    def test_lines_that_are_no_recipe_are_passed_over(self, tmp_path):
        keys = recipe_file(tmp_path / "r", 2)
        with open(tmp_path / "r", "ab") as file:
            file.write(b'nonsense\n{"key":"../../x","triton_version":"3"}\n{"key":"torn')
        assert summary_of([str(tmp_path / "r")]).keys == tuple(keys)

    @pytest.mark.parametrize("what", ["missing", "directory", "pipe"])
    def test_what_cannot_be_read_is_an_error_that_names_it(self, what, tmp_path):
        path = tmp_path / "r"
        if what == "directory":
            path.mkdir()
        elif what == "pipe":
            os.mkfifo(path)
        with pytest.raises(RecipesError, match=str(path)):
            summary_of([str(path)])

    def test_a_file_that_takes_long_to_read_is_not_looked_at(self, tmp_path):
        (tmp_path / "r").touch()
        os.truncate(tmp_path / "r", MOST_BYTES + 1)
        with pytest.raises(ConfigurationError, match="a file of at most 64 MiB"):
            summary_of([str(tmp_path / "r")])

    def test_a_file_has_a_recipe_once_a_line_of_one_is_whole(self, tmp_path):
        recipe_file(tmp_path / "r", 1)
        assert has_recipe(str(tmp_path / "r"))
        whole = (tmp_path / "r").read_bytes()
        for torn in (b"", whole[:30], whole[:-1]):
            (tmp_path / "torn").write_bytes(torn)
            assert not has_recipe(str(tmp_path / "torn"))
        assert not has_recipe(str(tmp_path / "nowhere"))


def test_the_installed_triton_is_the_first_on_the_path(tmp_path, triton_390):
    found = installed_triton()
    assert (found.version, found.directory) == ("3.9.0", str(triton_390))
    assert installed_triton([str(tmp_path / "nowhere")]) is None
    (triton_390 / "__init__.py").write_text("# no version here\n")
    assert installed_triton().version == ""


def test_the_installed_triton_is_the_one_that_is_imported():
    triton = pytest.importorskip("triton")
    found = installed_triton()
    assert found.version == triton.__version__
    assert found.directory == str(Path(triton.__file__).parent)
    assert "none" not in found.stamp.split()


def test_a_stamp_changes_with_the_file(tmp_path):
    assert stamp_of(str(tmp_path / "x")) is None
    (tmp_path / "x").write_text("a")
    before = stamp_of(str(tmp_path / "x"))
    os.utime(tmp_path / "x", (1, 1))
    assert stamp_of(str(tmp_path / "x")) != before
