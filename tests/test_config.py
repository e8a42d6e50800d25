"""The table of the variables, and who set what."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpucache import launch_environ
from gpucache.diagnosis.config import settings
from gpucache.environment import (
    INTERPRET,
    KERNEL_DUMP,
    LINE_INFO,
    TOOLKITS,
    VARIABLES,
    was_set_by_run,
)

SOURCES = Path(__file__).parent.parent / "gpucache"


def in_force(environ, root=None):
    return {one.name: one for one in settings(environ, root)}


def names_in(path: Path) -> set[str]:
    """The names of variables that a source file spells as a text of their own."""
    return set(
        re.findall(
            r"""["']((?:GPUCACHE|TRITON|TORCHINDUCTOR|CUDA)_[A-Z_]+|USE_IR_LOC|PYTHONPATH)["']""",
            path.read_text(),
        )
    )


def test_the_table_alone_spells_the_names_of_variables():
    table = SOURCES / "environment.py"
    alone = SOURCES / "site" / "sitecustomize.py"  # imports nothing of gpucache
    of_others = (
        SOURCES / "layout" / "jit_caches.py"
    )  # of other software, which gpucache sets and never obeys
    read = [path for path in SOURCES.rglob("*.py") if path not in (table, alone)]
    others = [path for path in read if path != of_others]
    known = {variable.name for variable in VARIABLES} | {
        LINE_INFO,
        KERNEL_DUMP,
        INTERPRET,
        *TOOLKITS,
    }
    assert names_in(table) == known
    assert names_in(alone) < known
    assert names_in(of_others).isdisjoint(known)
    assert {str(path): names_in(path) for path in others if names_in(path)} == {}


def test_the_page_has_the_variables_of_the_table_and_no_others():
    page = (Path(__file__).parents[1] / "docs/environment.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([A-Z][A-Z_]+)` \|", page, re.MULTILINE)
    assert sorted(told) == sorted(variable.name for variable in VARIABLES)


def test_the_table_has_one_line_for_each():
    names = [variable.name for variable in VARIABLES]
    assert len(set(names)) == len(names)
    assert [
        variable.name
        for variable in VARIABLES
        if "\n" in variable.meaning or len(variable.meaning) > 90
    ] == []


def test_without_an_environment_every_default_is_in_force():
    found = settings({})
    assert [one.name for one in found] == [variable.name for variable in VARIABLES]
    assert {one.source for one in found} == {"default"}
    assert [one.name for one in found if one.value != one.default or one.problem] == []
    assert in_force({})["GPUCACHE_DIR"].value.rpartition("/")[2].startswith("torchinductor_")
    assert in_force({})["GPUCACHE_STAMP_S"].value == "300"


def test_an_empty_variable_is_not_set_but_for_the_mask():
    """`CUDA_VISIBLE_DEVICES=` means no device."""
    found = in_force(dict.fromkeys((variable.name for variable in VARIABLES), ""))
    assert {one.name for one in found.values() if one.source != "default"} == {
        "CUDA_VISIBLE_DEVICES"
    }
    assert found["CUDA_VISIBLE_DEVICES"].value == ""


def test_the_root_is_the_arguments_else_ours_else_torchs(tmp_path):
    environ = {"GPUCACHE_DIR": "/a", "TORCHINDUCTOR_CACHE_DIR": "/b"}
    assert (
        in_force(environ, "/c")["GPUCACHE_DIR"].value,
        in_force(environ, "/c")["GPUCACHE_DIR"].source,
    ) == (
        "/c",
        "argument",
    )
    assert (in_force(environ)["GPUCACHE_DIR"].value, in_force(environ)["GPUCACHE_DIR"].source) == (
        "/a",
        "environment",
    )
    del environ["GPUCACHE_DIR"]
    assert (in_force(environ)["GPUCACHE_DIR"].value, in_force(environ)["GPUCACHE_DIR"].source) == (
        "/b",
        "default",
    )


def test_what_run_set_is_told_from_what_was_changed_since(tmp_path):
    base = {
        "GPUCACHE_FAKE_DEVICES": "1",
        "GPUCACHE_DIR": str(tmp_path),
        "TRITON_CACHE_DIR": "/mine",
    }
    environ, _ = launch_environ(base)
    found = in_force(environ)
    ours = {"GPUCACHE_DEVICE", "GPUCACHE_SET", "TORCHINDUCTOR_CACHE_DIR"}
    ours |= {"PYTHONPATH", "TRITON_CACHE_MANAGER"}
    assert found["TRITON_CACHE_MANAGER"].value == "gpucache.triton:DeviceCacheManager"
    assert {one.name for one in found.values() if one.source == "gpucache run"} == ours
    assert found["TRITON_CACHE_DIR"].source == found["GPUCACHE_DIR"].source == "environment"
    changed = {**environ, "TORCHINDUCTOR_CACHE_DIR": "/other"}
    assert was_set_by_run("TORCHINDUCTOR_CACHE_DIR", environ)
    assert not was_set_by_run("TORCHINDUCTOR_CACHE_DIR", changed)
    assert not was_set_by_run("GPUCACHE_SHARE", environ)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GPUCACHE_FAKE_DEVICES", "none"),
        ("GPUCACHE_DISABLE", "yes"),
        ("GPUCACHE_TRUST_UIDS", "me"),
        ("GPUCACHE_TRUST_UIDS", "4294967295"),
        ("GPUCACHE_TRUST_WORLD_WRITABLE", "2"),
        ("GPUCACHE_SHARE", "no"),
        ("GPUCACHE_VERIFY", "1"),
        ("GPUCACHE_REQUIRE_HIT", "always"),
        ("GPUCACHE_REMEMBER_KEY", "always"),
        ("GPUCACHE_STALL_TIMEOUT_S", "soon"),
        ("GPUCACHE_LOCK_TIMEOUT_S", "-1"),
        ("GPUCACHE_STAMP_S", "inf"),
        ("GPUCACHE_MAX_SIZE", "much"),
        ("GPUCACHE_LOG", "loud"),
        ("GPUCACHE_NVML_TIMEOUT_S", "0"),
    ],
)
def test_what_makes_no_sense_is_told_and_does_not_hold(name, value):
    found = in_force({name: value})[name]
    assert found.problem.startswith(f"{name}={value!r} is not ")
    assert (found.value, found.source) == (found.default, "default")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GPUCACHE_FAKE_DEVICES", "8xH100:9.0"),
        ("GPUCACHE_DISABLE", "1"),
        ("GPUCACHE_TRUST_UIDS", "1000, 1001"),
        ("GPUCACHE_SHARE", "0"),
        ("GPUCACHE_VERIFY", "always"),
        ("GPUCACHE_STALL_TIMEOUT_S", "0.5"),
        ("GPUCACHE_MAX_SIZE", "20GiB"),
        ("GPUCACHE_MAX_SIZE", "0"),
        ("GPUCACHE_LOG", "INFO"),
        ("GPUCACHE_NVML_TIMEOUT_S", "3"),
        ("TRITON_CACHE_MANAGER", "other:Manager"),
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
    ],
)
def test_what_makes_sense_holds(name, value):
    found = in_force({name: value})[name]
    assert (found.value, found.source, found.problem) == (value, "environment", None)


def test_without_a_current_directory_the_root_is_a_problem(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    found = in_force({"TORCHINDUCTOR_CACHE_DIR": "relative"})["GPUCACHE_DIR"]
    assert (found.value, found.default) == (None, None)
    assert "current directory is gone" in found.problem
    assert (
        "current directory is gone"
        in in_force({"GPUCACHE_DIR": "relative"})["GPUCACHE_DIR"].problem
    )


def test_a_name_that_is_no_caches_is_told_with_the_nearest():
    row = in_force({"GPUCACHE_CACHES": "warp,tilelnag"})["GPUCACHE_CACHES"]
    assert row.value is None
    assert row.problem.endswith("the nearest is tilelang")
    assert in_force({"GPUCACHE_CACHES": "warp,tilelang"})["GPUCACHE_CACHES"].problem is None
