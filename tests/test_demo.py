"""The demo: what it counts, that nothing of the user's changes that, and that nothing is left however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.cli import documented
from support.processes import PATIENCE_S
from support.ranks import PLUGIN
from support.terminals import assert_fits, at_width

pytestmark = pytest.mark.compiles
SMALL = ("demo", "--ranks", "2", "--kernels", "2")
RANK = """
import sys
from gpucache.configuration import places
places.SYSTEM_FILE = sys.argv.pop(1)
from gpucache.demo import rank
rank.main()
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The temporary directory of the processes that a test starts; nothing is in it."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    return path


def test_it_counts_what_each_way_compiles_whatever_the_user_has_set(gpucache, temporary, tmp_path):
    """Also under `gpucache run`, with the plug-in on for each Python, and in a rank of a job."""
    home = tmp_path / "home"
    (home / ".config/gpucache").mkdir(parents=True)
    (home / ".config/gpucache/gpucache.toml").write_text("disable = true\nshare = false\n")
    environ = {
        **os.environ,
        "HOME": str(home),
        "TRITON_ALWAYS_COMPILE": "1",
        "TRITON_INTERPRET": "1",
        "TRITON_CACHE_DIR": str(tmp_path / "chosen"),
        "GPUCACHE_REQUIRE_HIT": "1",
        "LOCAL_RANK": "1",
        "GPUCACHE_FAKE_DEVICES": "4",
        "GPUCACHE_DIR": str(tmp_path / "root"),
    }
    inner = (sys.executable, "-m", "gpucache", *SMALL, "--json")
    done = gpucache("run", "--", *inner, env=environ)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    fields, groups = documented("demo")
    assert [name for name in said if name != "format"] == fields[0]
    assert list(said["stock"]) == list(said["gpucache"]) == groups["gpucache"]
    assert (said["stock"]["compiles"], said["stock"]["taken"]) == (4, 0)
    assert (said["gpucache"]["compiles"], said["gpucache"]["taken"]) == (2, 2)
    assert said["gpucache"]["bytes"] < 0.7 * said["stock"]["bytes"]
    assert os.listdir(temporary) == []
    assert not (tmp_path / "chosen").exists()


def test_no_rank_reads_the_systems_settings_whose_remote_would_get_what_it_compiles(tmp_path):
    settings = tmp_path / "gpucache.toml"
    settings.write_text("disable = true\n")
    root = tmp_path / "root"
    environ = {**os.environ, **PLUGIN, "GPUCACHE_DIR": str(root)}
    environ["TRITON_CACHE_DIR"] = str(root / "triton/0")
    command = [sys.executable, "-c", RANK, str(settings), "1", "1"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environ, text=True, **pipes) as rank:
        rank.stdin.write("\n")
        rank.stdin.flush()
        lines = [json.loads(rank.stdout.readline()) for _ in range(3)]
    assert lines[1]["compiled"]
    assert len(list((root / "gpucache/v1/store").glob("*/*"))) == 1


def test_what_a_python_prints_as_it_starts_is_taken_for_nothing_that_a_rank_says(
    gpucache, temporary, tmp_path
):
    (tmp_path / "sitecustomize.py").write_text("print('welcome', flush=True)\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environ = {**os.environ, "PYTHONPATH": path}
    small = ("demo", "--ranks", "2", "--kernels", "1", "--json")
    done = gpucache(*small, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout[done.stdout.index("{") :])["stock"]["compiles"] == 2


def test_what_is_seen_is_a_bar_for_each_rank_a_table_and_what_comes_next(temporary):
    seen = at_width(SMALL, 80, env={"TERM": "xterm-256color", "NO_COLOR": "1"})
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert_fits(drawn.replace("\r", "\n"), 80)
    final = [line.rpartition("\r")[2].rstrip() for line in drawn.splitlines()]
    rank = r"rank [01] ━━ (2 compiled|1 compiled, 1 taken from other ranks|0 compiled, 2 taken from other ranks)"
    ranks = [line for line in final if re.fullmatch(rank, line)]
    assert {line.split()[1] for line in ranks} == {"0", "1"}
    table = final[next(n for n, line in enumerate(final) if "processor time" in line) :]
    numbers = r" +\d +-?[\d.]+ s +-?[\d.]+ s +-?[\d.]+ KiB"
    assert re.fullmatch(r" +compiles +processor time +wall time +on disk", table[0])
    for name, line in zip(("stock Triton", "with gpucache", "saved"), table[1:4], strict=True):
        assert re.fullmatch(name + numbers, line)
    assert final[0] == f"2 ranks, 2 kernels each, on {_cores()}; no GPU is used"
    assert final[-1] == "next: `gpucache provision`, then `gpucache run -- python train.py`"
    assert "\x1b[?25l" not in seen, "the cursor is hidden, and stays so where the demo is killed"


def _cores() -> str:
    from gpucache.machine.cores import usable_cores

    cores = usable_cores()
    return f"{cores} core{'' if cores == 1 else 's'}"


def test_without_triton_it_says_how_to_have_it(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    done = here("demo")
    assert done.code == 1
    assert done.err.splitlines()[-2:] == [
        "error: the library triton is not installed, and the demo compiles with it",
        "hint: pip install triton",
    ]


def test_a_rank_that_fails_ends_it_with_the_last_thing_that_the_rank_said(
    gpucache, temporary, tmp_path
):
    tool = tmp_path / "ptxas"
    tool.write_text(
        "#!/bin/sh\ncase $1 in --version) echo 'release 12.8, V12.8.90';; *) exit 1;; esac\n"
    )
    tool.chmod(0o755)
    tools = dict.fromkeys(("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"), str(tool))
    done = gpucache(*SMALL, env={**os.environ, **tools})
    assert done.returncode == 1
    assert re.search(r"^error: rank [01] of the demo ended with 1: .*\S", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert os.listdir(temporary) == []


def test_where_the_disk_is_full_it_says_so_and_where_else_the_demo_can_be(
    gpucache, mount, tmp_path
):
    """The ranks cannot write what is wrong: their stderr is on that disk."""
    place = mount(tmp_path / "small", "-t", "tmpfs", "-o", "size=200k", "none")
    done = gpucache(*SMALL, env={**os.environ, "TMPDIR": str(place)})
    assert done.returncode == 1
    problem, hint = done.stderr.splitlines()[-2:]
    assert re.fullmatch(
        rf"error: could not write {place}/gpucache-demo-\w+: No space left on device", problem
    )
    assert hint.endswith("or set TMPDIR to a directory elsewhere")
    assert os.listdir(place) == []


@pytest.mark.kills
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
)
def test_ended_while_ranks_compile_it_leaves_no_process_and_no_file(number, code, temporary):
    with _compiling(temporary) as demo:
        demo.send_signal(number)
        _, said = demo.communicate(timeout=PATIENCE_S)
    assert demo.returncode == code, said
    assert b"Traceback" not in said
    _wait(lambda: not os.listdir(temporary))
    assert _processes_in(temporary) == []


@pytest.mark.kills
def test_a_killed_rank_ends_it_with_an_error(temporary):
    with _compiling(temporary) as demo:
        os.kill(_processes_in(temporary, "gpucache.demo.rank")[0], signal.SIGKILL)
        _, said = demo.communicate(timeout=PATIENCE_S)
    assert demo.returncode == 1
    assert re.search(rb"^error: rank [01] of the demo was killed: ", said, re.MULTILINE)
    assert os.listdir(temporary) == []


def _compiling(temporary: Path) -> subprocess.Popen[bytes]:
    """A demo whose ranks have begun to compile."""
    command = [sys.executable, "-m", "gpucache", "demo", "--ranks", "2"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _wait(lambda: list(temporary.glob("*/stock/*/*")))
    return demo


def _wait(is_so) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def _processes_in(temporary: Path, part: str = "") -> list[int]:
    """The processes whose temporary directory is in this one, by their environment, that have a word on their line."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environ, words = (entry / "environ").read_bytes(), (entry / "cmdline").read_text()
        except OSError:
            continue  # it has ended
        if b"TMPDIR=%b/" % os.fsencode(temporary) in environ and part in words:
            found.append(int(entry.name))
    return found
