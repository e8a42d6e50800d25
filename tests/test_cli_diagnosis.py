"""`doctor`, `explain` and `config` as their users meet them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from support.cli import Done, check, documented, on_a_terminal, table, told

from gpucache.diagnosis import why_missed
from gpucache.diagnosis.doctor import CODES
from gpucache.environment import VARIABLES
from gpucache.upkeep import verify
from gpucache.upkeep.jit_verify import UNIT_CODES

LEVELS = {"error", "warning"}
TEXT_OR_NONE = (str, type(None))


@pytest.fixture
def root(tmp_path: Path, keys: list[str]) -> Path:
    return tmp_path / "root"


class TestDoctor:
    def test_json_is_what_the_readme_says(self, here, root):
        (outer, inner), values = documented("doctor")
        said = here("doctor", "--json", "--root", root).json
        check(said, outer, well=list)
        assert said["root"] == str(root)
        assert said["findings"] != []
        for finding in said["findings"]:
            check(finding, inner)
            assert finding["level"] in values["level"]
            assert finding["code"] in CODES
        assert set(values["level"]) == LEVELS

    def test_piped_is_a_line_for_each_finding(self, here, root):
        said = here("doctor", "--json", "--root", root).json["findings"]
        done = here("doctor", "--root", root)
        assert done.rows == [
            [one[name] for name in ("level", "code", "subject", "fact", "fix")] for one in said
        ]
        number = f"note: {root}: {len(said)} finding{'s' * (len(said) != 1)}"
        assert done.err.splitlines()[0] == number

    def test_a_terminal_gets_a_paragraph_for_each_with_the_way_out(self, gpucache, root):
        # In a process of its own: in this one another test may have put a machine under NVML.
        said = json.loads(gpucache("doctor", "--json", "--root", root).stdout)["findings"]
        code, seen = on_a_terminal("doctor", "--root", root)
        assert code == 0
        for one in said:
            assert (
                f"{one['level']}: {one['subject']}: {one['fact']} [{one['code']}] {one['fix']} "
                in " ".join(seen.split()) + " "
            )

    def test_it_ends_with_1_when_there_is_an_error_and_0_with_warnings(self, here, root):
        assert here("doctor", "--root", root).code == 0
        root.chmod(0o777)
        done = here("doctor", "--root", root)
        assert done.code == 1
        assert "error" in [row[0] for row in done.rows]


class TestExplain:
    def test_json_of_one_key_is_what_the_readme_says(self, here, root, keys):
        (outer, inner), values = documented("explain KEY")
        done = here("explain", keys[0], "--json", "--root", root)
        assert done.code == 0
        check(done.json, outer)
        assert done.json["key"] == keys[0]
        assert done.json["findings"] != []
        for finding in done.json["findings"]:
            check(finding, inner)
            assert finding["level"] in values["level"]

    def test_json_of_two_keys_is_what_the_readme_says(self, here, root, keys):
        (outer, inner), _ = documented("explain KEY KEY")
        done = here("explain", keys[0], keys[1], "--json", "--root", root)
        check(done.json, outer, a=str, b=str, differences=list)
        assert (done.json["a"], done.json["b"]) == (keys[0], keys[1])
        assert done.json["differences"] != []
        for difference in done.json["differences"]:
            check(difference, inner, kind=str, a=TEXT_OR_NONE, b=TEXT_OR_NONE)

    def test_two_kernels_are_told_apart(self, here, root, keys):
        said = here("explain", keys[0], keys[1], "--json", "--root", root).json["differences"]
        done = here("explain", keys[0][:20], keys[1][:20], "--root", root)
        columns = ("kind", "name", "a", "b")
        assert done.rows == [
            ["-" if one[name] is None else one[name] for name in columns] for one in said
        ]
        code, seen = on_a_terminal("explain", keys[0], keys[1], "--root", root)
        assert code == 0
        assert table(seen)[0] == ["what", "name", keys[0][:12], keys[1][:12]]

    def test_an_entry_does_not_differ_from_itself(self, here, root, keys):
        done = here("explain", keys[0], keys[0], "--root", root)
        assert done == Done(0, "", "note: their files tell of no difference\n")

    def test_a_hit_in_this_environment_is_said_to_be_one(self, compiled, here, monkeypatch):
        root, key = compiled
        monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/1"))
        monkeypatch.setenv("TRITON_CACHE_MANAGER", "gpucache.triton:DeviceCacheManager")
        done = here("explain", key, "--root", root)
        assert (done.code, done.out) == (0, "")
        assert done.err.startswith("note: ")
        assert "hit" in done.err
        monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")
        assert here("explain", key, "--root", root).rows[0][:3] == [
            "error",
            "always-compile",
            "TRITON_ALWAYS_COMPILE",
        ]

    def test_in_a_shell_of_its_own_it_says_how_a_program_is_asked_about(
        self, here, root, keys, monkeypatch
    ):
        done = here("explain", keys[0], "--root", root)
        last = done.err.splitlines()[-1]
        assert f"gpucache run -- gpucache explain {keys[0][:12]}" in last
        assert f"gpucache why {keys[0][:12]}" in last
        monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/elsewhere"))
        assert "gpucache run -- " not in here("explain", keys[0], "--root", root).err

    @pytest.mark.parametrize("words", [["nothing"], ["", "nothing"]], ids=len)
    def test_a_key_that_is_not_there_is_an_expected_failure(self, words, here, root):
        done = here("explain", *words, "--root", root)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("error: ")
        assert "\nhint: " in done.err

    def test_without_a_key_it_says_how_it_is_used(self, here):
        done = here("explain")
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(
            "error: KEY is missing\nhint: write it `gpucache explain [OPTIONS] KEY [KEY]`"
        )


class TestConfig:
    def test_json_is_what_the_readme_says(self, here, tmp_path):
        (outer, inner), _ = documented("config")
        said = here("config", "--json", "--root", tmp_path).json
        check(said, outer, files=list)
        for setting in said["settings"]:
            check(
                setting,
                inner,
                **dict.fromkeys(
                    ("value", "default", "source", "meaning", "problem", "file", "for_all"),
                    TEXT_OR_NONE,
                ),
                line=int | None,
            )
        assert [one["name"] for one in said["settings"]] == [one.name for one in VARIABLES]

    def test_who_set_it_is_told(self, here, tmp_path, monkeypatch):
        monkeypatch.setenv("GPUCACHE_MAX_SIZE", "3GiB")
        monkeypatch.setenv("GPUCACHE_VERIFY", "perhaps")
        done = here("config", "--root", tmp_path)
        rows = {row[0]: row[1:] for row in done.rows}
        assert rows["GPUCACHE_DIR"] == [str(tmp_path), "argument"]
        assert rows["GPUCACHE_MAX_SIZE"] == ["3GiB", "environment"]
        assert rows["GPUCACHE_DEVICE"] == ["-", "default"]
        assert done.err.startswith("warning: GPUCACHE_VERIFY: ")
        assert done.code == 0

    def test_what_a_run_set_is_told_inside_it(self, gpucache, tmp_path):
        environ = {**os.environ, "GPUCACHE_FAKE_DEVICES": "1"}
        words = [
            "run",
            "--root",
            tmp_path / "root",
            "--device",
            0,
            "--",
            sys.executable,
            "-m",
            "gpucache",
            "config",
        ]
        rows = [line.split("\t") for line in gpucache(*words, env=environ).stdout.splitlines()]
        assert ["TRITON_CACHE_DIR", f"{tmp_path}/root/triton/0", "gpucache run"] in rows

    def test_a_terminal_gets_those_that_have_a_value_and_whole_paths(self, tmp_path):
        long = tmp_path / ("x" * 100)
        _, seen = on_a_terminal("config", "--root", long, env={"COLUMNS": "80"})
        assert "…" not in seen
        assert "GPUCACHE_DEVICE " not in seen
        assert str(long) in "".join(
            line[30:].split("  ")[0].strip() for line in seen.splitlines()[1:]
        )


@pytest.mark.parametrize(
    ("command", "codes"),
    [("doctor", CODES), ("verify", {**verify.CODES, **UNIT_CODES}), ("explain", why_missed.CODES)],
)
def test_every_code_can_be_listed(gpucache, command, codes):
    done = gpucache(command, "--codes")
    assert done.stdout == "".join(f"{code}\t{meaning}\n" for code, meaning in codes.items())
    assert told(gpucache(command, "--codes", "--json").stdout) == {"codes": codes}
