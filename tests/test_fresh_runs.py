"""`run --fresh` gives a run a cache of its own, and nothing is left of it, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.processes import PATIENCE_S, until

from gpucache.disk.processes import process_of
from gpucache.upkeep import fresh_runs
from gpucache.upkeep.fresh_runs import sweep

TELL = "import os; print(os.environ['GPUCACHE_DIR'], os.environ.get('TRITON_CACHE_DIR'), flush=True); input()"


ENDLESS = '{"node": "x", "namespace": Infinity, "processes": [], "keeper": null}'


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "GPUCACHE_DIR": str(tmp_path / "root"),
        "GPUCACHE_FAKE_DEVICES": "2xH100:9.0",
    }


class Program:
    """A program under `run --fresh`, which tells its directories and goes on until it is told."""

    def __init__(self, environ: Mapping[str, str], *words: object, code: str = TELL) -> None:
        command = [sys.executable, "-m", "gpucache", "run", "--fresh", *map(str, words)]
        command += ["--", sys.executable, "-c", code]
        self.process = subprocess.Popen(
            command,
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().split()
        if not line:
            raise AssertionError(self.process.communicate()[1])
        self.root, self.directory = line

    def end(self) -> str:
        _, err = self.process.communicate("\n", timeout=PATIENCE_S)
        assert self.process.returncode == 0, err
        return err

    @property
    def keeper(self) -> int:
        return int(json.loads(Path(f"{self.root}.json").read_text())["keeper"][0])


def fresh(tmp_path: Path) -> list[str]:
    directory = tmp_path / "root/gpucache/v1/fresh"
    return sorted(os.listdir(directory)) if directory.exists() else []


def ranked(environ: Mapping[str, str], rank: int) -> dict[str, str]:
    return {**environ, "LOCAL_RANK": str(rank), "RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}


def test_a_run_has_a_root_of_its_own_which_goes_after_it(environ, tmp_path):
    one = Program(environ, "--device", 1)
    assert one.root.startswith(f"{tmp_path}/root/gpucache/v1/fresh/")
    assert one.directory == f"{one.root}/triton/1"
    assert os.stat(one.root).st_mode & 0o777 == 0o700
    keeper = one.keeper
    said = one.end()
    assert f"note: --fresh: a cache of its own, {one.root}, goes after {sys.executable}" in said
    until(lambda: not fresh(tmp_path))
    until(lambda: process_of(keeper) is None)


def test_two_runs_have_two_and_one_ends_without_the_other(environ, tmp_path):
    one, two = Program(environ), Program(environ)
    assert one.root != two.root
    one.end()
    until(lambda: not os.path.exists(one.root))
    assert os.path.exists(two.root)
    two.end()
    until(lambda: not fresh(tmp_path))


def test_ranks_of_a_job_have_one_until_the_last_has_ended(environ, tmp_path):
    one, two = Program(ranked(environ, 0)), Program(ranked(environ, 1))
    assert one.root == two.root
    assert one.keeper == two.keeper
    one.end()
    until(lambda: len(json.loads(Path(f"{two.root}.json").read_text())["processes"]) == 2)
    assert os.path.exists(two.root)
    two.end()
    until(lambda: not fresh(tmp_path))


def test_a_later_run_of_a_job_finds_nothing_of_an_earlier_one(environ, tmp_path):
    one = Program(ranked(environ, 0))
    Path(one.root, "old").touch()
    os.kill(one.keeper, signal.SIGKILL)
    one.end()
    two = Program(ranked(environ, 0))
    assert not Path(two.root, "old").exists()
    two.end()
    until(lambda: not fresh(tmp_path))


def test_a_run_within_one_shares_the_outer_root(environ, tmp_path):
    inner = [sys.executable, "-m", "gpucache", "run", "--fresh", "--", sys.executable, "-c", TELL]
    outer = Program(environ, code=f"import os; os.execv({sys.executable!r}, {inner!r})")
    assert len([name for name in fresh(tmp_path) if not name.endswith(".json")]) == 1
    assert outer.root.count("/fresh/") == 1
    outer.end()
    until(lambda: not fresh(tmp_path))


def test_directories_of_the_users_do_not_hold_and_that_is_told(environ, tmp_path):
    mine = {"TRITON_CACHE_DIR": str(tmp_path / "mine"), "TORCHINDUCTOR_CACHE_DIR": "/mine"}
    one = Program({**environ, **mine}, "--device", 0)
    assert one.directory == f"{one.root}/triton/0"
    said = one.end()
    assert f"note: --fresh: TRITON_CACHE_DIR={tmp_path}/mine does not hold for this run" in said
    assert "note: --fresh: TORCHINDUCTOR_CACHE_DIR=/mine does not hold for this run" in said


def test_from_where_kernels_may_still_come_is_told(environ, tmp_path):
    one = Program({**environ, "GPUCACHE_FALLBACK": str(tmp_path / "other")})
    assert "note: --fresh: kernels may come from GPUCACHE_FALLBACK" in one.end()


def test_after_a_kill_of_both_the_next_command_removes_it(environ, tmp_path, here):
    one = Program(environ)
    keeper = one.keeper
    os.kill(keeper, signal.SIGKILL)
    until(lambda: process_of(keeper) is None)
    here("ls", "--root", tmp_path / "root")
    assert os.path.exists(one.root), "the run goes on"
    one.process.kill()
    one.process.wait()
    here("ls", "--root", tmp_path / "root")
    assert fresh(tmp_path) == []


def test_a_killed_program_leaves_nothing(environ, tmp_path):
    one = Program(environ)
    one.process.kill()
    one.process.wait()
    until(lambda: not fresh(tmp_path))


def test_one_of_another_node_goes_after_a_day(environ, tmp_path):
    one = Program(environ)
    os.kill(one.keeper, signal.SIGKILL)
    one.process.kill()
    one.process.wait()
    record = Path(f"{one.root}.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "node": "0" * 8}))
    sweep(str(tmp_path / "root"))
    assert os.path.exists(one.root)
    yesterday = time.time() - 2 * 86400
    os.utime(record, (yesterday, yesterday))
    sweep(str(tmp_path / "root"))
    assert fresh(tmp_path) == []


def test_one_of_another_user_whose_processes_may_be_hidden_goes_after_a_day(
    environ, tmp_path, monkeypatch
):
    one = Program(environ)
    os.kill(one.keeper, signal.SIGKILL)
    one.process.kill()
    one.process.wait()
    monkeypatch.setattr(os, "geteuid", lambda: os.lstat(one.root).st_uid + 1)
    assert not fresh_runs._is_over(one.root)
    os.utime(f"{one.root}.json", (0, 0))
    assert fresh_runs._is_over(one.root)
    monkeypatch.undo()
    sweep(str(tmp_path / "root"))
    assert fresh(tmp_path) == []


def test_what_a_killed_removal_or_a_late_writer_left_goes(environ, tmp_path):
    Program(environ).end()
    until(lambda: not fresh(tmp_path))
    directory = tmp_path / "root/gpucache/v1/fresh"
    (directory / ".over-1").mkdir()
    (directory / "came-back/gpucache").mkdir(parents=True)
    sweep(str(tmp_path / "root"))
    assert fresh(tmp_path) == []


def test_a_record_that_a_kill_left_half_written_goes(environ, tmp_path):
    Program(environ).end()
    until(lambda: not fresh(tmp_path))
    (tmp_path / "root/gpucache/v1/fresh/.over-0123456789abcdef.json").write_text("{")
    sweep(str(tmp_path / "root"))
    assert fresh(tmp_path) == []


@pytest.mark.parametrize("name", ["fresh", "v1"])
def test_a_directory_that_has_become_a_link_leads_a_removal_nowhere(
    environ, tmp_path, monkeypatch, name
):
    """Its owner puts the link there after root has looked, and before root acts."""
    Program(environ).end()
    until(lambda: not fresh(tmp_path))
    directory = tmp_path / "root/gpucache/v1/fresh"
    (directory / "over").mkdir()
    outside = tmp_path / "outside" if name == "fresh" else tmp_path / "outside/fresh"
    (outside / "over").mkdir(parents=True)
    turned = directory if name == "fresh" else directory.parent
    real = fresh_runs._is_over

    def turn(path: str) -> bool:
        turned.rename(tmp_path / "aside")
        turned.symlink_to(tmp_path / "outside")
        return real(path)

    monkeypatch.setattr(fresh_runs, "_is_over", turn)
    sweep(str(tmp_path / "root"))
    assert os.listdir(outside) == ["over"]


def test_links_in_it_lead_a_removal_nowhere(environ, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis").touch()
    one = Program(environ)
    os.symlink(outside, f"{one.root}/link")
    os.symlink(outside, tmp_path / "root/gpucache/v1/fresh/linked")
    one.end()
    until(lambda: fresh(tmp_path) == ["linked"])
    assert (outside / "thesis").exists()


def test_where_it_cannot_be_made_the_command_does_not_run_unless_that_is_asked_for(
    environ, tmp_path
):
    Program(environ).end()
    until(lambda: not fresh(tmp_path))
    (tmp_path / "root/gpucache/v1/fresh").rmdir()
    (tmp_path / "root/gpucache/v1/fresh").touch()
    command = [sys.executable, "-m", "gpucache", "run", "--fresh"]
    done = subprocess.run([*command, "--", "true"], env=environ, capture_output=True, text=True)
    assert done.returncode == 1
    assert "hint: --no-strict executes true all the same" in done.stderr
    done = subprocess.run([*command, "--no-strict", "--", "true"], env=environ, capture_output=True)
    assert done.returncode == 0


def test_a_root_of_a_torn_record_is_taken_for_one_that_is_over(environ, tmp_path):
    directory = tmp_path / "root/gpucache/v1/fresh"
    Program(environ).end()
    until(lambda: not fresh(tmp_path))
    (directory / "one").mkdir()
    for torn in ("", "{", "[]", '{"node": 1}', "[" * 4000, ENDLESS):
        (directory / "one.json").write_text(torn)
        assert fresh_runs._is_over(f"{directory}/one")


def test_warm_auto_takes_what_other_runs_have_recorded(environ, tmp_path):
    """The fresh root is empty each time: what is recorded is kept in the outer root."""
    one = Program(environ, "--warm", "auto")
    one.end()
    assert [*(tmp_path / "root/gpucache/v1/recipes").glob("*.recipes")] != []
