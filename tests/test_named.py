"""Filters and options that name something which is not there, or contradict each other: no silent success."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
from support.trees import Tree, stock_entry

from gpucache import PrunePolicy
from gpucache.errors import ConfigurationError
from gpucache.store.recency import check_grace


@pytest.fixture
def entries(root):
    stock_entry(root / "triton/0", "A" * 52, arch=90)
    stock_entry(root / "triton/1.2", "B" * 52, arch=80)
    return root


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["", "json"])
@pytest.mark.parametrize(
    ("words", "there"),
    [
        (["ls", "--arch", "hopper"], "sm_80, sm_90"),
        (["ls", "--arch", "100"], "sm_80, sm_90"),
        (["ls", "--directory", "9"], "0, 1.2"),
        (["ls", "--kernel", "att*"], "k"),
        (["prune", "--arch", "hopper", "--yes"], "sm_80, sm_90"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_filter_that_names_nothing_lists_what_there_is(words, there, as_json, here, entries):
    done = here(*words, *as_json, "--root", entries)
    first, hint = done.err.splitlines()
    assert first.startswith(f"error: nothing cached in {entries} has {words[1]} ")
    assert hint == f"hint: there is {there}"
    assert done.code == 1
    if not as_json:
        assert done.out == ""
        return
    problem = first.removeprefix("error: ")
    assert done.json == {"error": {"kind": "not-cached", "problem": problem, "hint": hint[6:]}}


@pytest.mark.parametrize(
    "words",
    [
        ["ls", "--kernel", "k*", "--older-than", "99d"],
        ["ls", "--directory", "0", "--arch", "sm_80"],  # each is there
        ["prune", "--arch", "sm_100", "--yes"],  # the last one may be pruned already
    ],
    ids=" ".join,
)
def test_a_filter_that_may_match_nothing_is_a_success_that_says_so(words, here, entries):
    done = here(*words, "--root", entries)
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("note: no")


def test_a_part_of_a_kernels_name_is_offered_as_a_pattern(here, tmp_path):
    root = Tree(tmp_path).root
    done = here("ls", "--kernel", "ad", "--root", root)
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[1] == "hint: --kernel '*ad*' names some; there is add"
    assert len(here("ls", "--kernel", "*ad*", "--root", root).rows) == 1


def test_two_forms_at_once_are_wrong_usage(gpucache):
    done = gpucache("env", "0", "--json", "--format", "sh")
    assert done.returncode == 2
    assert "contradict" in done.stderr


@pytest.mark.parametrize("value", [-1, math.nan, -math.inf])
@pytest.mark.parametrize("name", ["max_size_bytes", "max_age_s", "max_entries"])
def test_a_limit_without_sense_removes_nothing(name, value):
    with pytest.raises(ConfigurationError, match=name):
        PrunePolicy(**{name: value})


@pytest.mark.parametrize("grace_s", [math.nan, -1, 0, 1])
def test_a_grace_without_sense_is_refused(grace_s):
    with pytest.raises(ConfigurationError):
        check_grace(grace_s, {})


def test_config_names_the_variable_that_was_misspelt(here, monkeypatch, root):
    root.mkdir()
    monkeypatch.setenv("GPUCACHE_MAXSIZE", "20GiB")
    done = here("config", "--root", root)
    assert (
        "warning: GPUCACHE_MAXSIZE is no variable of gpucache's; GPUCACHE_MAX_SIZE may be meant\n"
        in done.err
    )


# ---- what the machine refuses is no defect of gpucache

COMMANDS = [
    "ls",
    "verify",
    "prune --yes",
    "doctor",
    "devices",
    "provision",
    "stats",
    "du",
    "path 0",
    "config",
]
PYTHON = f"exec {sys.executable} -m gpucache"


def shell(script: str, root: object, **changed: str | None) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "GPUCACHE_FAKE_DEVICES": "2", "GPUCACHE_DIR": str(root)}
    for name, value in changed.items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value
    return subprocess.run(
        ["sh", "-c", script],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        errors="replace",
    )


@pytest.fixture
def provisioned(root):
    assert shell(f"{PYTHON} provision", root).returncode == 0
    return root


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "changed",
    [
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"HOME": None},
        {"HOME": "relative"},
        {"HOME": "/nonexistent", "TMPDIR": "/nonexistent"},
    ],
    ids=["C locale", "ascii", "no home", "relative home", "no temporary directory"],
)
def test_an_odd_environment_is_no_defect(command, changed, provisioned):
    for words in (command, f"{command} --help"):
        done = shell(f"{PYTHON} {words}", provisioned, **changed)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("limit", ["-n 5", "-n 7", "-n 9"])
def test_too_few_files_are_no_defect(command, limit, provisioned):
    done = shell(f"ulimit {limit}; {PYTHON} {command}", provisioned)
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr


def test_no_memory_is_no_defect(monkeypatch, capsys):
    """The exception is raised by hand: where a real limit strikes, Python itself may not survive."""
    from gpucache.cli import main, quick

    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(quick, "read", exhausted)
    assert main.main(["ls"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: there is no memory left\nhint: ")


@pytest.mark.parametrize("words", ["--", "--strict --"])
def test_run_calls_what_the_system_refuses_no_defect(words, provisioned, monkeypatch, capsys):
    from gpucache.cli import run

    def refused(*_: object) -> None:
        raise OSError(5, "Input/output error", str(provisioned))

    monkeypatch.setattr(run.RunCall, "_environ", refused)
    monkeypatch.setattr(run, "_execute", lambda *_: 0)
    call = run.RunCall(command=("true",), strict="--strict" in words)
    assert call.execute() == (1 if call.strict else 0)
    said = capsys.readouterr().err
    assert said.startswith(f"error: {provisioned}: Input/output error\n")
    assert "defect" not in said
