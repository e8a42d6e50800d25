from __future__ import annotations

import json
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cli import MAIN, Command, Done, documented
from support.compiling import compiling, waiters
from support.processes import PATIENCE_S, until
from support.ranks import Rank
from support.snippets import HERE, snippets
from support.terminals import at_width
from support.tmux import Tmux, tmux, typed

from gpucache.layout import paths
from gpucache.store.stats import Stats

TOP = [sys.executable, "-m", "gpucache", "top"]


@pytest.fixture
def made(root: Path) -> Path:
    for name in range(4):
        (root / f"triton/{name}").mkdir(parents=True, mode=0o700)
    root.chmod(0o700)
    return root


@pytest.fixture
def terminal(made: Path) -> Iterator[Tmux]:
    with tmux({"GPUCACHE_DIR": str(made)}) as started:
        yield started


def start(terminal: Tmux, *words: object) -> str:
    terminal.type(typed([*TOP, *words]), "Enter")
    return terminal.until("sort: *d directory")


def ended(terminal: Tmux) -> str:
    """The exit code of what has run, once the terminal is a shell's again, as it was."""
    terminal.until_the_shell_reads()
    terminal.type("stty -a | tr ' ' '\\n' | grep -x -e icanon -e echo; echo code=$?=", "Enter")
    seen = terminal.until("icanon", "\necho\n", "code=0=")
    assert not terminal.is_alternate
    assert terminal.has_cursor
    return seen


def pid_of_top() -> int:
    """The one process that runs the command for this test, as a mark in its environment tells."""
    for name in os.listdir("/proc"):
        if name.isdigit() and _is_top(int(name)):
            return int(name)
    raise ProcessLookupError


def _is_top(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return words[1:4] == [b"-m", b"gpucache", b"top"] and MARK.encode() in environ


MARK = f"GPUCACHE_TEST_TOP={os.getpid()}"


@pytest.mark.compiles
def test_beside_four_ranks_top_shows_who_compiles_and_how_many_wait(
    terminal: Tmux, ranks: Callable[..., Rank], made: Path
) -> None:
    """One rank stands in the middle of a real compile, and three wait for it."""
    first = ranks("triton/0", env={"KERNELS_AT": "make_ptx:block"})
    first.go()
    first.expect("at make_ptx")
    others = [ranks(f"triton/{number}") for number in (1, 2, 3)]
    for rank in others:
        rank.go()
    start(terminal)
    seen = terminal.until("compiling 1, waiting 3")
    (row,) = [line.split() for line in seen.splitlines() if line.startswith("0 ")]
    assert row[-3:] == [str(first.process.pid), "3", "scaled"]
    first.go()
    for rank in (first, *others):
        rank.said()
    terminal.until("compiling 0, waiting 0")
    # what was compiled was counted before the first look
    until(lambda: _positive(terminal, "store/s") == {"1", "2", "3"})
    terminal.type("q")
    ended(terminal)


def _positive(terminal: Tmux, column: str) -> set[str]:
    """The directories that have a rate above nothing in a column."""
    lines = [line.split() for line in terminal.seen.splitlines()]
    (head,) = [words for words in lines if words[:1] == ["directory"]]
    number = head.index(column)
    rows = [words for words in lines if words and words[0] in ("0", "1", "2", "3")]
    return {words[0] for words in rows if words[number] not in ("-", "0.0")}


def test_keys_sort_and_quit(terminal: Tmux) -> None:
    start(terminal)
    for key, name in {"o": "own", "s": "store", "c": "compiling", "w": "waiting"}.items():
        terminal.type(key)
        terminal.until(f"*{key} {name}")
    terminal.type("Up", "x", "d")
    terminal.until("*d directory")
    terminal.type("q")
    ended(terminal)


def test_top_draws_anew_when_the_terminal_gets_another_size(terminal: Tmux) -> None:
    seen = start(terminal)
    assert "fallback/s" not in seen
    terminal.resize(140, 40)
    terminal.until("fallback/s")
    terminal.resize(60, 8)
    terminal.until("more lines: a higher terminal shows them")


def test_ctrl_c_ends_with_130_and_gives_the_terminal_back(terminal: Tmux) -> None:
    start(terminal)
    terminal.type("C-c")
    terminal.until_the_shell_reads()
    terminal.type("echo code=$?=", "Enter")
    terminal.until("code=130=")
    ended(terminal)


def test_ctrl_z_gives_the_shell_its_terminal_and_fg_goes_on(terminal: Tmux) -> None:
    start(terminal)
    for _ in range(2):
        terminal.type("C-z")
        terminal.until("Stopped")
        ended(terminal)
        terminal.type("clear; fg", "Enter")
        terminal.until("sort: *d directory")
        assert terminal.is_alternate
        assert not terminal.has_cursor
    terminal.type("o")
    terminal.until("*o own")
    terminal.type("q")
    ended(terminal)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_as_that_signal_does_and_the_terminal_is_back(
    terminal: Tmux, number: signal.Signals, code: int
) -> None:
    terminal.type(f"export {MARK}", "Enter")
    start(terminal)
    os.kill(pid_of_top(), number)
    terminal.until_the_shell_reads()
    terminal.type("echo code=$?=", "Enter")
    terminal.until(f"code={code}=")
    ended(terminal)


def test_after_a_crash_the_terminal_is_back_and_the_cause_is_told(
    terminal: Tmux, tmp_path: Path
) -> None:
    crashing = tmp_path / "crashing.py"
    crashing.write_text(
        "from gpucache.watch.live import Watch\n"
        "look = Watch.look\n"
        "def crash(self):\n"
        "    Watch.look = lambda self: 1 / 0\n"
        "    return look(self)\n"
        f"Watch.look = crash\n{MAIN}\n"
    )
    terminal.type(typed([sys.executable, crashing, "top"]), "Enter")
    terminal.until("ZeroDivisionError", "this is a defect of gpucache")
    terminal.type("echo code=$?=", "Enter")
    terminal.until("code=3=")
    ended(terminal)


def test_a_terminal_that_goes_away_ends_top(made: Path) -> None:
    with tmux({"GPUCACHE_DIR": str(made), MARK.split("=")[0]: MARK.split("=")[1]}) as terminal:
        start(terminal)
        pid = pid_of_top()
        assert pid
    until(lambda: not _is_top(pid))


def test_without_keys_top_still_draws(terminal: Tmux) -> None:
    terminal.type(typed(TOP) + " < /dev/null", "Enter")
    terminal.until("sort: *d directory", "rates of the last")
    terminal.type("C-c")
    ended(terminal)


@pytest.mark.parametrize("line", snippets(HERE / "docs/watching.md")[0].lines)
def test_every_line_of_the_page_draws(terminal: Tmux, made: Path, line: str) -> None:
    words = line.replace("/scratch/kernels", str(made)).split()
    terminal.type(typed([*TOP, *words[2:]]), "Enter")
    terminal.until("sort:", "store not counted yet", str(made)[:60])
    terminal.type("q")
    ended(terminal)


# ---- once


def test_once_prints_a_line_for_each_directory_with_tabs(here: Command, made: Path) -> None:
    with compiling(made, "matmul", "2") as process, waiters(made, 2):
        until(lambda: _row(here("top", "--once", "--root", made), "2")[-1] == "2")
        done = here("top", "--once", "--root", made)
    assert [row[:7] for row in done.rows] == [
        [str(number), *["0.000"] * 5, str(int(number == 2))] for number in range(4)
    ]
    assert _row(done, "2")[8:10] == ["matmul", str(process.pid)]
    assert done.rows[0][7:] == ["-"] * 5


def _row(done: Done, name: str) -> list[str]:
    (row,) = [row for row in done.rows if row[0] == name]
    return row


def test_once_as_json_has_what_its_page_says(
    here: Command, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUCACHE_MAX_SIZE", "1GiB")
    monkeypatch.setenv("GPUCACHE_REMOTE", "redis://nowhere/0")
    with compiling(made, "matmul", "2"):
        said = here("top", "--once", "--json", "--root", made).json
    (outer, of_device, of_store, of_remote), inner = documented("top")
    said.pop("format", None)
    assert list(said) == outer
    assert said["root"] == os.path.realpath(made)
    assert said["window_s"] >= 2
    assert [one["directory"] for one in said["devices"]] == ["0", "1", "2", "3"]
    for one in [*said["devices"], said["all"]]:
        assert list(one) == of_device
        assert list(one["rates"]) == inner["rates"]
    (compile_,) = said["devices"][2]["compiles"]
    assert list(compile_) == inner["compiles"]
    assert (compile_["kernel"], compile_["waiting"]) == ("matmul", 0)
    assert list(said["store"]) == of_store
    assert said["store"]["limit_bytes"] == 2**30
    assert list(said["remote"]) == of_remote
    assert said["remote"]["state"] == "untrusted"


def test_once_tells_what_was_counted_meanwhile(made: Path) -> None:
    """Another process counts 50 hits while the command waits for its second look."""
    counters = Stats(paths.ours(str(made), "stats"), "1")
    counters.add("hits", 1, now=True)
    before = "\n".join(
        [
            "from gpucache.watch.live import Watch",
            "look = Watch.look",
            "def counted(self):",
            "    seen = look(self)",
            "    from gpucache.store.stats import Stats",
            f"    Stats({paths.ours(str(made), 'stats')!r}, '1').add('hits', 50, now=True)",
            "    return seen",
            "Watch.look = counted",
        ]
    )
    seen = at_width(["top", "--once", "--root", made], 80, before=before)
    (row,) = [line.split() for line in seen.splitlines() if line.startswith("1 ")]
    assert 0 < float(row[1]) <= 25
    counters.leave()


def test_once_on_a_terminal_shows_the_same_as_the_screen(made: Path) -> None:
    seen = at_width(["top", "--once", "--root", made], 80)
    assert str(made) in seen.replace("\n", "")
    (head,) = [line for line in seen.splitlines() if line.startswith("directory ")]
    assert {"own/s", "store/s", "compiled/s", "waiting", "compiling"} <= set(head.split())
    assert "sort:" not in seen


# ---- refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say --once"),
        (("--interval", "1s"), "2s"),
        (("--interval", "0.5"), "2s"),
        (("--interval", "soon"), "'soon' is not a time"),
        (("--sort", "hits"), "directory"),
    ],
)
def test_a_wrong_use_is_refused_with_the_way_out(
    here: Command, made: Path, words: tuple[str, ...], said: str
) -> None:
    done = here("top", *words, "--root", made)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_a_terminal_that_cannot_be_drawn_on_is_refused(made: Path) -> None:
    assert "TERM=dumb" in at_width(["top", "--root", made], 80)


def test_a_root_that_others_may_write_is_refused(here: Command, made: Path) -> None:
    made.chmod(stat.S_IMODE(made.stat().st_mode) | 0o002)
    done = here("top", "--once", "--root", made)
    assert done.code == 1
    assert "everybody may write it" in done.err


def test_an_interval_may_be_a_number_of_seconds(here: Command, made: Path) -> None:
    began = time.monotonic()
    done = here("top", "--once", "--interval", "2.5", "--json", "--root", made)
    assert json.loads(done.out)["window_s"] >= 2.5
    assert time.monotonic() - began < PATIENCE_S
