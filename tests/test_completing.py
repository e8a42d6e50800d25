"""What a shell offers out of a root: few words, fast, and none that commands a terminal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.processes import PATIENCE_S
from support.stand_in_commands import stand_in_commands
from support.trees import stock_entry

from gpucache.cli import completing
from gpucache.report.cache_report import scan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Offer = Callable[[str], list[str]]

A, B = "A" * 52, "AB" + "B" * 50


@pytest.fixture
def offered(gpucache: Callable[..., subprocess.CompletedProcess[str]], root: Path) -> Offer:
    """What bash is given for a line whose last word is being typed, behind `gpucache`."""
    environ = {**os.environ, "GPUCACHE_DIR": str(root), "GPUCACHE_FAKE_DEVICES": "2"}
    assert gpucache("provision", env=environ).returncode == 0
    stock_entry(root / "triton/0", A, arch=90)
    stock_entry(root / "triton/1", B, arch=80)

    def offered(line: str) -> list[str]:
        words = f"gpucache {line}"
        asked = {
            "_GPUCACHE_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        done = gpucache(env={**environ, **asked})
        assert (done.returncode, done.stderr) == (0, "")
        return [word.split(",", 1)[1] for word in done.stdout.split()]

    return offered


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ls A", [A, B]),
        ("ls AB", [B]),
        ("ls Z", []),
        ("explain " + A + " AB", [B]),
        ("why k", ["k"]),
        ("why AB", [B]),
        ("cat AB", [B]),
        ("cat AB tt", ["ttgir", "ttir"]),
        (f"compare {A} AB", [B]),
        (f"compare {A} {B} --diff s", ["sass", "source"]),
        ("ls --kernel ", ["k"]),
        ("recipe --kernel ", ["k"]),
        ("prune --arch ", ["sm_80", "sm_90"]),
        ("ls --arch sm_9", ["sm_90"]),
        ("ls --directory ", ["0", "1"]),
        ("ls --root /nonexistent A", []),
        ("run --device ", ["0", "1", "FAKE-0", "FAKE-1"]),
        ("path F", ["FAKE-0", "FAKE-1"]),
        ("remote c", ["check"]),
        ("lis", []),
    ],
)
def test_names_of_the_root_are_offered(line: str, words: list[str], offered: Offer) -> None:
    assert offered(line) == words


def test_names_that_a_shell_or_a_terminal_would_execute_are_not_offered(
    offered: Offer, root: Path
) -> None:
    for number, name in enumerate(("$(touch x)", "a\x1b[2J", "a b", "a;b")):
        path = root / "triton/0" / f"{number + 2}".join(("C" * 51, ""))
        path.mkdir()
        (path / f"{name}.json").touch()
    assert offered("ls --kernel ") == ["k"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_what_a_word_means_begins_no_other_word(shell: str, offered: Offer, root: Path) -> None:
    """Zsh and fish read it a line each, and show it."""
    path = root / "triton/0" / ("Z" * 52)
    path.mkdir()
    (path / "k\nplain\n$(touch x)\x1b[2J.json").touch()
    words = {"zsh": "gpucache ls Z", "fish": "gpucache ls"}
    asked = {
        "_GPUCACHE_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words[shell],
        "COMP_CWORD": {"zsh": "2", "fish": "Z"}[shell],
        "GPUCACHE_DIR": str(root),
    }
    done = subprocess.run(
        [sys.executable, "-m", "gpucache"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert "Z" * 52 in done.stdout
    assert not any(line.startswith("$(touch") for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout


def test_kernels_of_the_store_are_offered(
    keys: list[str], tmp_path: Path, gpucache: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    root = str(tmp_path / "root")
    entries = scan(root).entries
    assert len({entry.kernel for entry in entries}) > 1
    for option, wanted in (
        ("--kernel", {entry.kernel for entry in entries}),
        ("--arch", {entry.arch for entry in entries}),
    ):
        asked = {
            "_GPUCACHE_COMPLETE": "bash_complete",
            "COMP_WORDS": f"gpucache ls {option} ",
            "COMP_CWORD": "3",
        }
        done = gpucache(env={**os.environ, "GPUCACHE_DIR": root, **asked})
        assert {word.removeprefix("plain,") for word in done.stdout.split()} == wanted


def test_a_root_of_thousands_is_not_read_whole(
    root: Path, monkeypatch: pytest.MonkeyPatch, offered: Offer
) -> None:
    looked_at = []
    listed = completing._listed
    monkeypatch.setattr(completing, "_LOOKED_AT", 1)
    monkeypatch.setattr(completing, "_listed", lambda path: looked_at.append(path) or listed(path))
    assert len(list(completing._entries(str(root)))) <= 1
    monkeypatch.setattr(completing, "_TIME_S", -1)
    assert list(completing._entries(str(root))) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_printed(shell: str, offered: Offer, here: object) -> None:
    done = here("completion", shell)  # type: ignore[operator]
    assert done.code == 0
    assert f"_GPUCACHE_COMPLETE={shell}_complete" in done.out


def test_bash_takes_the_script_and_completes_a_key(
    offered: Offer, root: Path, tmp_path: Path
) -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    script = """eval "$(gpucache completion bash)" || exit 1
    COMP_WORDS=(gpucache ls AB); COMP_CWORD=2
    _gpucache_completion gpucache
    echo "${COMPREPLY[*]}"
    """
    path = f"{stand_in_commands(tmp_path)}:{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "GPUCACHE_DIR": str(root)}
    done = subprocess.run(
        ["bash", "-c", script], env=environ, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.stdout, done.stderr) == (f"{B}\n", "")


def test_a_shell_that_is_none_is_wrong_usage(here: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    done = here("completion")  # type: ignore[operator]
    assert (done.code, done.out) == (2, "")
    assert (
        done.err == "error: 'tcsh' is no shell that is known\nhint: name one of bash, zsh, fish\n"
    )
