"""`gpucache warm`: what it prints, and what it refuses. The pool compiles nothing here; `test_pool` shows that."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from support.cli import Command, documented, on_a_terminal
from support.recipes import key_of, recipe_file

from gpucache.cli import warm as command
from gpucache.disk.vetting import Trust
from gpucache.kernels.recipe import Target
from gpucache.kernels.recipe_lines import FORMAT_LINE
from gpucache.warm.ahead import made_keys
from gpucache.warm.outcome import Outcome
from gpucache.warm.pool.pool import TIME_LIMIT_S
from gpucache.warm.pool.report import WarmReport
from gpucache.warm.pool.shard import WHOLE, Shard

RUNS_CODE = "note: this imports the modules that recipes name, and so runs their code\n"
ENDS = {0: "made", 1: "made (source changed)", 2: "there", 3: "cannot be imported", 4: "failed"}


class StandIn:
    """In the place of the pool: takes note of what is asked, and ends as a test says."""

    asked: ClassVar[dict[str, object]]
    ends: ClassVar[dict[int, str]] = {}
    left = 0

    def __init__(self, recipes, *, on_progress, **options):
        StandIn.asked = {"keys": [recipe.key for recipe in recipes], **options}
        self.on_progress = on_progress
        self.report = WarmReport((), len(recipes), "")

    def run(self):
        outcomes = []
        for number, end in self.ends.items():
            made = end.startswith("made") or end == "there"
            key = key_of(number + 100) if made else None
            why = "" if made else f"because of {number}"
            outcomes.append(Outcome(key_of(number), "add", "sm_90", end, key, 0.25, why))
        return WarmReport(tuple(outcomes), self.left, "it was stopped" if self.left else "")


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr(command, "Pool", StandIn)
    monkeypatch.setattr(StandIn, "ends", {0: "made"})
    return StandIn


@pytest.fixture
def file(tmp_path, root, monkeypatch, gpucache) -> Path:
    """A file of five recipes; the root is provisioned, and the environment's."""
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("GPUCACHE_FAKE_DEVICES", "1")
    assert gpucache("provision").returncode == 0
    recipe_file(tmp_path / "r.jsonl", 5)
    return tmp_path / "r.jsonl"


def test_counts_are_printed_and_what_leaves_a_question_is_told(here: Command, file, pool):
    pool.ends = ENDS
    done = here("warm", file)
    assert done.rows == [[end, "1"] for end in ENDS.values()]
    assert done.err == (
        RUNS_CODE + "warning: add (sm_90): cannot be imported: because of 3\n"
        "error: add (sm_90): failed: because of 4\n"
    )
    assert done.code == 1


def test_the_list_has_a_row_for_each(here: Command, file, pool):
    pool.ends = ENDS
    done = here("warm", "--list", file)
    assert done.rows[0] == ["made", "sm_90", "add", key_of(100), "0.25", ""]
    assert done.rows[4] == ["failed", "sm_90", "add", key_of(4), "0.25", "because of 4"]
    assert done.err == (
        f"{RUNS_CODE}note: 1 made, 1 made (source changed), 1 there, 1 cannot be imported, 1 failed\n"
    )


def test_json_is_one_object_with_the_documented_fields(here: Command, file, pool, root):
    pool.ends = ENDS
    with open(file, "ab") as recipes:
        recipes.write(b'{"key":"torn')
    done = here("warm", "--json", file)
    (fields, outcome), added = documented("warm")
    assert list(done.json) == fields
    assert [list(one) for one in done.json["outcomes"]] == [outcome] * 5
    assert [list(one) for one in done.json["bad_lines"]] == [added["bad_lines"]]
    assert done.json["counts"] == dict.fromkeys(ENDS.values(), 1)
    assert done.json["root"] == str(root)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("made", 0),
        ("there", 0),
        ("not for this target", 0),
        ("cannot be imported", 0),
        ("failed", 1),
    ],
)
def test_only_a_failure_is_one(end, code, here: Command, file, pool):
    pool.ends = {0: end}
    assert here("warm", file).code == code


def test_what_was_not_gone_through_is_an_error(here: Command, file, pool, monkeypatch):
    monkeypatch.setattr(pool, "left", 4)
    done = here("warm", file)
    assert done.code == 1
    assert done.err.endswith("error: 4 recipes were not gone through: it was stopped\n")


def test_options_are_the_pools(here: Command, file, pool, root):
    here("warm", file)
    plain = {
        "keys": [key_of(number) for number in range(5)],
        "root": str(root),
        "targets": (),
        "jobs": None,
        "time_limit_s": TIME_LIMIT_S,
        "exact": False,
        "dry_run": False,
        "main": None,
        "sources": True,
        "shard": WHOLE,
    }
    assert pool.asked == plain
    words = "--arch sm_80,gfx942 -j 3 --shard 2/8 --time-limit 5min --exact --main t.py --dry-run"
    here("warm", *words.split(), file)
    assert pool.asked == {
        **plain,
        "targets": (Target("cuda", 80, 32), Target("hip", "gfx942", 64)),
        "jobs": 3,
        "shard": Shard(2, 8),
        "time_limit_s": 300.0,
        "exact": True,
        "main": "t.py",
        "dry_run": True,
    }


def test_several_files_and_stdin_are_read_and_each_key_counts_once(
    here: Command, file, pool, tmp_path, monkeypatch
):
    recipe_file(tmp_path / "more.jsonl", 7)
    stdin = io.TextIOWrapper(io.BytesIO((tmp_path / "more.jsonl").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    here("warm", file, "-")
    assert len(pool.asked["keys"]) == 7
    assert pool.asked["sources"] is False, "nobody knows who has written stdin"


def test_a_link_is_followed_and_a_pipe_read(here: Command, file, pool, tmp_path):
    """The files of a Kubernetes ConfigMap are links, and a shell's ``<(…)`` is a pipe."""
    (tmp_path / "link").symlink_to(file)
    assert here("warm", tmp_path / "link").code == 0
    assert len(pool.asked["keys"]) == 5
    readable, writable = os.pipe()
    os.write(writable, file.read_bytes())
    os.close(writable)
    assert here("warm", f"/dev/fd/{readable}").code == 0
    assert len(pool.asked["keys"]) == 5
    assert pool.asked["sources"] is False
    os.close(readable)


def test_sources_of_a_file_that_others_may_write_are_not_run(here: Command, file, pool):
    file.chmod(0o666)
    here("warm", file)
    assert pool.asked["sources"] is False


class TestTheSideFile:
    def left(self, file, root, *targets):
        return made_keys.read(made_keys.keys_path(str(root), [str(file)], targets), Trust())

    def test_tells_the_next_start_of_a_program_which_keys_were_made(self, here, file, pool, root):
        pool.ends = ENDS
        here("warm", file)
        keys = self.left(file, root).keys
        assert keys[key_of(1)] == [key_of(101)]
        assert keys[key_of(4)] == []
        here("warm", "--arch", "sm_80", file)
        assert self.left(file, root, "sm_80") is not None

    @pytest.mark.parametrize("word", ["--dry-run", "--exact", "--shard=1/2"])
    def test_is_not_left_where_not_all_was_done(self, word, here, file, pool, root):
        here("warm", word, file)
        assert self.left(file, root) is None

    def test_nor_where_the_pool_was_stopped(self, here, file, pool, root, monkeypatch):
        monkeypatch.setattr(pool, "left", 1)
        here("warm", file)
        assert self.left(file, root) is None


class TestErrors:
    def test_neither_a_file_nor_the_store_is_wrong_usage(self, here: Command, file):
        for words in ([], ["--store", file]):
            done = here("warm", *words)
            assert done.code == 2
            assert "name a FILE of recipes, or say --store" in done.err

    @pytest.mark.parametrize(
        "words",
        [
            ["--arch", "sm_x"],
            ["--arch", ","],
            ["--jobs", "0"],
            ["--shard", "9/8"],
            ["--shard", "x"],
            ["--time-limit", "long"],
            ["--main", ""],
            ["--nonsense"],
        ],
        ids=" ".join,
    )
    def test_options_without_sense_are_wrong_usage(self, words, here: Command, file, pool):
        assert here("warm", *words, file).code == 2

    def test_a_file_that_cannot_be_read_is_named(self, here: Command, file, pool, tmp_path):
        done = here("warm", tmp_path / "nowhere")
        assert done.code == 1
        assert done.err == (
            f"error: {tmp_path}/nowhere: No such file or directory\n"
            "hint: name a file that `gpucache recipe` or `gpucache run --record` has written\n"
        )

    @pytest.mark.parametrize("data", [b"", FORMAT_LINE], ids=["empty", "the format alone"])
    def test_a_file_without_a_recipe_is_an_error(self, data, here: Command, file, pool):
        file.write_bytes(data)
        done = here("warm", file)
        assert done.code == 1
        assert done.err.startswith(f"error: {file}: there is no recipe\n")

    def test_a_file_of_another_kind_is_an_error(self, here: Command, file, pool):
        file.write_text("hello\n")
        done = here("warm", file)
        assert done.code == 1
        assert done.err == (
            f"error: {file} is no file of recipes: its first line does not say the format\n"
            "hint: name a file that `gpucache recipe` or `gpucache run --record` has written\n"
        )

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--arch", "h100"], "'h100' is not an architecture like sm_90 or gfx942"),
            (["--shard", "0/8"], "'0/8' is not a shard like 1/8, the first of eight, "),
        ],
    )
    def test_a_value_without_sense_is_told_once_with_an_example(
        self, words, said, here: Command, file, pool
    ):
        assert f"error: {words[0]}: {said}" in here("warm", *words, file).err

    def test_a_line_that_is_none_is_told_and_the_rest_compiled(self, here: Command, file, pool):
        with open(file, "ab") as recipes:
            recipes.write(b'{"key":"torn')
        done = here("warm", file)
        assert done.code == 0
        assert re.match(rf"warning: {file}, line 7: the line is torn: ", done.err)
        assert len(pool.asked["keys"]) == 5

    def test_an_unsafe_root_is_refused(self, here: Command, file, pool, root):
        (root / "gpucache/v1").chmod(0o777)
        done = here("warm", file)
        assert done.code == 1
        assert "everybody may write it" in done.err

    def test_a_root_that_is_not_there_is_none(self, here: Command, file, pool, tmp_path):
        assert here("warm", "--root", tmp_path / "nowhere", file).code == 1
        assert not (tmp_path / "nowhere").exists()

    def test_where_gpucache_is_disabled_nothing_is_compiled(
        self, here: Command, file, pool, monkeypatch
    ):
        monkeypatch.setenv("GPUCACHE_DISABLE", "1")
        done = here("warm", file)
        assert done.code == 1
        assert done.err.startswith("error: GPUCACHE_DISABLE=1: ")

    def test_a_python_without_triton_is_named(self, file, python, tmp_path):
        """By the pool, in a Python that has no other modules than these."""
        places = []
        for place in filter(os.path.isdir, sys.path):
            places.append(tmp_path / f"place{len(places)}")
            places[-1].mkdir()
            for name in os.listdir(place):
                if not name.startswith("triton"):
                    (places[-1] / name).symlink_to(f"{place}/{name}")
        code = f"import sys; sys.path[:] = {[str(place) for place in places]}\n"
        code += "from gpucache.cli.main import main; sys.exit(main(sys.argv[1:]))"
        done = python(code, "warm", file, env=dict(os.environ))
        assert done.returncode == 1
        assert sys.executable in done.stderr
        assert "hint: install Triton there, or run the Python that has it" in done.stderr


AT_WORK = r"""
from gpucache.cli import terminal, warm
from gpucache.warm.pool.report import Compiling, Progress, WarmReport
class StandIn:
    def __init__(self, recipes, *, on_progress, **options):
        self.show = on_progress
    def run(self):
        compiling = tuple(Compiling(f"[red]k{n}\x1b[2J", "sm_90", 0.0) for n in range(5))
        self.show(Progress(1, 5, compiling, ("package.module",)))
        return WarmReport(())
terminal._PATIENCE_S = 0.0
warm.Pool = StandIn
"""
"""A pool that is in the middle of its work for a moment."""


class TestOnATerminal:
    def test_a_bar_shows_what_is_compiling(self, file):
        """After a second; names from recipes are shown, and command nothing."""
        environ = {"TERM": "xterm-256color", "NO_COLOR": "1"}
        code, seen = on_a_terminal("warm", file, env=environ, before=AT_WORK)
        assert code == 0
        assert "[red]k0" in seen
        assert "and 3 more" in seen
        assert "\x1b[2J" not in seen

    def test_none_is_shown_where_nobody_looks(self, here: Command, file, pool):
        here("warm", file)
        assert command._bar(None) is None
