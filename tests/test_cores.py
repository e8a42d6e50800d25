from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpucache.machine import cores
from gpucache.machine.cores import usable_cores


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A machine of 16 cores, with the control groups that a test writes."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(cores, "_GROUPS", str(tmp_path / "cgroup"))
    monkeypatch.setattr(cores, "_OWN", str(tmp_path / "own"))

    def write(own: str, **files: str) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = Path(str(tmp_path / "cgroup" / name.replace("__", "/").replace("DOT", ".")))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_without_groups_the_affinity_counts(groups, monkeypatch):
    assert usable_cores() == 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert usable_cores() == 1


def test_the_tightest_quota_on_the_way_up_counts(groups):
    groups("0::/a/b\n", a__b__cpuDOTmax="max 100000\n", a__cpuDOTmax="450000 100000\n")
    assert usable_cores() == 4


def test_a_container_sees_its_own_group_as_the_topmost(groups):
    groups("0::/not/seen/here\n", cpuDOTmax="200000 100000\n")
    assert usable_cores() == 2


def test_a_quota_below_one_core_is_one(groups):
    groups("0::/\n", cpuDOTmax="20000 100000\n")
    assert usable_cores() == 1


def test_version_1_is_read(groups):
    quota = {"cpu,cpuacct__a__cpuDOTcfs_quota_us": "300000\n"}
    quota["cpu,cpuacct__a__cpuDOTcfs_period_us"] = "100000\n"
    groups("4:memory:/a\n3:cpu,cpuacct:/a\n", **quota)
    assert usable_cores() == 3


@pytest.mark.parametrize("text", ["", "max", "x y", "100000 0", "-1 100000", "1 2 3"])
def test_nonsense_is_no_quota(text, groups):
    groups("0::/\nnonsense\n", cpuDOTmax=text)
    assert usable_cores() == 16
