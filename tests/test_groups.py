"""How a command is found: other names, what may be meant, options before it, and `--quiet`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.cli import Command, on_a_terminal
from support.trees import stock_entry

from gpucache.cli.commands import cli

if TYPE_CHECKING:
    from pathlib import Path

KEY = "A" * 52


@pytest.fixture
def entry(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPUCACHE_FAKE_DEVICES", "1")
    root.mkdir(mode=0o700)
    stock_entry(root / "triton/0", KEY)
    return root


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lsx", "ls"),
        ("clear", "clean"),
        ("remot", "remote"),
        ("provison", "provision"),
        ("doctr", "doctor"),
        ("version", "--version"),
        ("gc", "prune"),
    ],
)
def test_an_unknown_command_names_what_may_be_meant(word: str, meant: str, here: Command) -> None:
    done = here(word)
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"error: there is no command 'gpucache {word}'\n"
        f"hint: `gpucache {meant}` may be meant; `gpucache --help` lists all\n"
    )


def test_what_is_like_no_command_is_told_where_all_are(here: Command) -> None:
    assert here("xyzzy").err.endswith("hint: `gpucache --help` lists all\n")
    done = here("remote", "chek")
    assert "hint: `gpucache remote check` may be meant" in done.err


def test_a_group_without_a_command_lists_its_commands(here: Command) -> None:
    done = here("remote")
    assert (done.code, done.err) == (
        2,
        "error: the command is missing\nhint: name one of check, ls\n",
    )


def test_list_is_ls_and_help_is_an_option(here: Command, entry: Path) -> None:
    assert here("list", "--root", entry) == here("ls", "--root", entry)
    assert here("help", "ls") == here("ls", "--help")
    assert here("help") == here("--help")
    assert here("help").code == 0


@pytest.mark.parametrize("words", ["ls", "prune --dry-run", "verify"])
def test_options_before_the_command_hold_as_behind_it(
    words: str, here: Command, entry: Path
) -> None:
    behind = here(*words.split(), "--json", "--root", entry)
    assert behind.code == 0
    assert here("--json", "--root", entry, *words.split()) == behind
    assert here(f"--root={entry}", "--json", *words.split()) == behind


def test_an_option_before_a_command_that_has_none_such_is_refused(here: Command) -> None:
    done = here("--root", "/r", "keygen", "name")
    assert (done.code, done.err) == (
        2,
        "error: `gpucache keygen` has no option --root\nhint: leave --root out\n",
    )
    done = here("--json", "remote", "ls")
    assert json.loads(done.out)["error"]["kind"] == "no-remote"


@pytest.mark.parametrize("words", [["-q", "provision"], ["provision", "--quiet"]])
def test_a_quiet_command_that_changes_something_prints_warnings_only(
    words: list[str], here: Command, entry: Path
) -> None:
    done = here(*words, "--root", entry)
    assert (done.code, done.out) == (0, "")
    assert {line.split(":")[0] for line in done.err.splitlines()} <= {"warning"}
    assert (entry / "gpucache").is_dir()


def test_a_quiet_prune_is_silent_and_the_next_command_is_not(here: Command, entry: Path) -> None:
    assert here(
        "prune", "--max-entries", "0", "--grace", "600s", "--yes", "-q", "--root", entry
    ) == (
        0,
        "",
        "",
    )
    assert here("ls", "-q", "--root", entry).rows[0][0] == KEY
    assert "note: nothing to remove" in here("prune", "--yes", "--root", entry).err


def test_what_was_asked_for_as_json_is_printed_however_quiet(here: Command, entry: Path) -> None:
    done = here("prune", "--yes", "--json", "-q", "--root", entry)
    assert done.json["root"] == str(entry)


def test_errors_are_said_however_quiet(here: Command) -> None:
    assert here("prune", "-q", "--yes", "--root", "/nonexistent").err.startswith("error: ")


def test_every_command_can_be_quiet(here: Command) -> None:
    import click

    with click.Context(cli) as context:
        for name in cli.list_commands(context):
            assert "--quiet" in here(name, "--help").out, name


def test_a_level_is_in_colour_on_a_terminal_that_has_colours() -> None:
    words = ("ls", "--root", "/nonexistent")
    colourful = {"TERM": "xterm-256color", "NO_COLOR": ""}
    _, seen = on_a_terminal(*words, env=colourful)
    assert "\x1b[1;31merror:\x1b[0m there is no /nonexistent" in seen
    assert "\x1b[36mhint:\x1b[0m correct" in seen
    for plain in ({**colourful, "NO_COLOR": "1"}, {**colourful, "TERM": "dumb"}):
        _, seen = on_a_terminal(*words, env=plain)
        assert "\x1b" not in seen
        assert seen.startswith("error: there is no /nonexistent\n")
