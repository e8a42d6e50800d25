"""What every rank of a job would say is said by one of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpucache import log, once

ONCE = Path(once.__file__)
ASK = (
    "import os, runpy, sys\n"
    "once = runpy.run_path(sys.argv[1])\n"
    "once['first_in_job'].__globals__['PLACES'] = (sys.argv[2],)\n"
    "print(once['first_in_job'](sys.argv[3], os.environ), flush=True)\n"
    "sys.stdin.read()\n"
)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Where markers are, in this process."""
    monkeypatch.setattr(once, "PLACES", (str(tmp_path),))
    return tmp_path


def marks(places: Path) -> list[Path]:
    return list(places.glob("gpucache-told-*/*"))


def ranks(places, count=8, sentence="s", shell=False, **environ):
    """The answers of so many processes of one launcher, which all live until each has answered."""
    command = [sys.executable, "-c", ASK, ONCE, places, sentence]
    if shell:  # one between the launcher and each rank, as of a script
        command = ["bash", "-c", '"$@"; true', "bash", *command]
    launcher = (
        "import os, subprocess, sys\n"
        "name, count, *command = sys.argv[1:]\n"
        "pipe = subprocess.PIPE\n"
        "ranks = []\n"
        "for rank in range(int(count)):\n"
        "    environ = {**os.environ, name: str(rank)} if name else None\n"
        "    rank = subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe,"
        "                            start_new_session=bool(name))\n"
        "    ranks.append(rank)\n"
        "print(*[rank.stdout.readline().decode().strip() for rank in ranks])\n"
        "[rank.communicate() for rank in ranks]\n"
    )
    name = environ.pop("rank", "LOCAL_RANK")
    done = subprocess.run(
        [sys.executable, "-c", launcher, name, str(count), *map(str, command)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        start_new_session=True,
    )
    return done.stdout.split().count("True")


@pytest.mark.parametrize("rank", ["LOCAL_RANK", "SLURM_LOCALID", "PALS_LOCAL_RANKID", ""])
def test_one_of_eight_ranks_is_first_and_the_next_job_is_told_again(rank, tmp_path):
    assert ranks(tmp_path, rank=rank) == 1
    assert ranks(tmp_path, rank=rank) == 1


def test_a_shell_between_the_launcher_and_the_rank_changes_nothing(tmp_path):
    assert ranks(tmp_path, shell=True) == 1


def test_another_sentence_is_said_too(places):
    assert once.first_in_job("one \ud800 \udcff", {})
    assert once.first_in_job("one", {})
    assert once.first_in_job("two", {})
    assert not once.first_in_job("one", {})


def aged(marker: Path, seconds: float) -> None:
    os.utime(marker, (time.time() - seconds,) * 2)


def test_a_job_that_goes_on_is_told_again_after_an_hour(places):
    assert once.first_in_job("s", {})
    (marker,) = marks(places)
    aged(marker, 3500)
    assert not once.first_in_job("s", {})
    aged(marker, 3700)
    assert once.first_in_job("s", {})
    assert not once.first_in_job("s", {})
    assert marks(places) == [marker]


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_of_two_that_find_an_old_marker_one_says_it(moment, places, monkeypatch):
    """The other one comes in between, and takes the marker first."""
    once.first_in_job("s", {})
    aged(marks(places)[0], 3700)
    real, answers = os.rename, []

    def rename(*words, **options):
        monkeypatch.setattr(os, "rename", real)
        if moment == "before the rename":
            answers.append(once.first_in_job("s", {}))
            real(*words, **options)
        else:
            real(*words, **options)
            answers.append(once.first_in_job("s", {}))

    monkeypatch.setattr(os, "rename", rename)
    answers.append(once.first_in_job("s", {}))
    assert sorted(answers) == [False, True]
    assert not once.first_in_job("s", {})
    assert len(marks(places)) == 1


def test_the_markers_of_the_day_before_are_swept(places):
    once.first_in_job("old", {})
    (old,) = marks(places)
    os.utime(old, (1, 1))
    once.first_in_job("new", {})
    assert len(marks(places)) == 1
    assert not old.exists()


@pytest.mark.parametrize("what", ["missing", "a file", "everybody's", "a link"])
def test_where_no_marker_can_be_left_each_process_says_it(what, places, monkeypatch):
    directory = places / f"gpucache-told-{os.geteuid()}"
    if what == "missing":
        monkeypatch.setattr(once, "PLACES", (str(places / "nowhere"), "/proc"))
    elif what == "a file":
        directory.touch()
    elif what == "everybody's":
        directory.mkdir()
        directory.chmod(0o777)
    else:
        (places / "elsewhere").mkdir()
        directory.symlink_to(places / "elsewhere")
    assert once.first_in_job("s", {})
    assert once.first_in_job("s", {})
    assert not list(places.glob("elsewhere/*"))


def test_another_users_directory_is_not_believed(as_root, places):
    directory = places / f"gpucache-told-{os.geteuid()}"
    directory.mkdir(mode=0o700)
    os.chown(directory, 54321, 54321)
    assert once.first_in_job("s", {})
    assert once.first_in_job("s", {})


def test_a_warning_of_one_cause_is_one_of_the_job(monkeypatch, caplog):
    """Another rank, whose path differs and whose cause does not, logs it for debugging."""
    monkeypatch.setattr(log, "_warned", set())
    log.warn_once("one cannot be published", OSError(28, "No space left on device", "/root/a"))
    monkeypatch.setattr(log, "_warned", set())
    log.warn_once("another cannot be published", OSError(28, "No space left on device", "/root/b"))
    log.warn_once("a third cannot be read", OSError(5, "Input/output error", "/root/c"))
    assert [message.partition(" cannot")[0] for message in caplog.messages] == ["one", "a third"]


def test_what_cannot_be_told_once_is_told_all_the_same(monkeypatch, caplog):
    monkeypatch.setattr(once, "first_in_job", lambda *_: 1 / 0)
    log.tell_in_job(log.WARNING, "lost: %s", "GPU 3")
    assert caplog.messages == ["lost: GPU 3"]


def test_a_command_that_a_person_calls_tells_each_time(monkeypatch, caplog):
    monkeypatch.setattr(log, "_tells_alone", True)
    for _ in range(2):
        log.tell_in_job(log.WARNING, "lost: %s", "GPU 3")
    assert caplog.messages == ["lost: GPU 3"] * 2


def test_a_process_whose_parent_cannot_be_seen_has_a_job_all_the_same(places, monkeypatch):
    monkeypatch.setattr(once, "_PROC", "/nonexistent")
    assert once.first_in_job("s", {"LOCAL_RANK": "0"})
    assert not once.first_in_job("s", {"LOCAL_RANK": "0"})


class TestOfNode:
    def test_one_process_of_all_jobs_says_it_in_a_day(self, places):
        assert once.first_on_node("s")
        assert not once.first_on_node("s")
        assert once.first_on_node("another")
        of_old = time.time() - 86401
        for marker in marks(places):
            os.utime(marker, (of_old, of_old))
        assert once.first_on_node("s")
        assert not once.first_on_node("s")

    def test_it_is_said_where_no_marker_can_be_left(self, places, monkeypatch):
        (places / "file").touch()
        monkeypatch.setattr(once, "PLACES", (str(places / "file"),))
        assert once.first_on_node("s")
        assert once.first_on_node("s")
