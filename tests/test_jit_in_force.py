"""`gpucache caches`: which JIT caches are in force in a process, and why the others are not."""

from __future__ import annotations

import json
import os
import tempfile

import pytest
from support.cli import on_a_terminal

from gpucache import launch_environ
from gpucache.directories.jit_in_force import in_force
from gpucache.layout.jit_caches import JIT_CACHES, SET_ANYWAY

pytestmark = pytest.mark.usefixtures("bare_dev")


@pytest.fixture
def base(tmp_path, monkeypatch) -> dict[str, str]:
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/elsewhere")
    environ = {"GPUCACHE_DIR": str(tmp_path / "root"), "PATH": "/bin", "HOME": str(tmp_path)}
    return {**environ, "GPUCACHE_FAKE_DEVICES": "1xH100:9.0"}


def rows(environ) -> dict[str, object]:
    return {row.name: row for row in in_force(environ["GPUCACHE_DIR"], environ, environ)}


def test_every_cache_has_a_row_and_a_reason(base):
    found = rows(base)
    assert list(found) == [*SET_ANYWAY, *(cache.name for cache in JIT_CACHES)]
    assert all(row.why for row in found.values())


def test_what_run_has_set_is_in_force_there(base):
    environ, _ = launch_environ(base, caches=["warp"])
    found = rows(environ)
    assert [found[name].state for name in ("triton", "inductor", "warp")] == ["in force"] * 3
    assert found["warp"].directory == environ["WARP_CACHE_PATH"]
    assert found["tilelang"].state == "not set"
    assert found["tilelang"].directory == f"{base['GPUCACHE_DIR']}/jit/tilelang"


def test_what_the_user_has_set_is_his(base):
    row = rows({**base, "TILELANG_CACHE_DIR": "/mine"})["tilelang"]
    assert (row.state, row.directory, row.why) == ("yours", "/mine", "you set TILELANG_CACHE_DIR")


def test_a_tilde_that_a_software_does_not_expand_is_told(base):
    found = rows({**base, "WARP_CACHE_PATH": "~/warp", "VLLM_CACHE_ROOT": "~/vllm"})
    assert "takes ~ for a directory of that name" in found["warp"].why
    assert "~" not in found["vllm"].why


def test_a_row_that_must_be_named_says_how_and_why(base):
    row = rows(base)["jax"]
    assert row.state == "not set"
    assert row.why.startswith("`all` does not set it, its name does: switches JAX's persistent")


def test_without_a_record_no_architecture_is_known(base):
    assert rows(base)["vllm"].state == "no-arch"
    launch_environ(base)
    assert rows(base)["vllm"].directory.endswith("/jit/vllm/sm_90")


def test_nothing_is_made(base, tmp_path):
    rows(base)
    assert not (tmp_path / "root").exists()


def test_the_command_shows_what_each_holds(gpucache, base, tmp_path):
    environ = {**os.environ, **base}
    assert gpucache("run", "--caches", "warp", "--", "true", env=environ).returncode == 0
    (tmp_path / "root/jit/warp/module").write_bytes(b"x" * 1000)
    done = gpucache("caches", "--json", env=environ)
    said = {row["name"]: row for row in json.loads(done.stdout)["caches"]}
    assert (said["warp"]["files"], said["warp"]["logical_bytes"]) == (1, 1000)
    assert said["triton"]["files"] is None
    under = gpucache("run", "--", "true", env=environ)
    assert under.returncode == 0
    lines = gpucache("caches", env=environ).stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("warp\t")]
    assert line.split("\t")[:5] == [
        *("warp", "not set", "WARP_CACHE_PATH"),
        *(f"{tmp_path}/root/jit/warp", "1000"),
    ]
    inside = gpucache("run", "--caches", "warp", "--", "env", env=environ).stdout
    assert f"WARP_CACHE_PATH={tmp_path}/root/jit/warp" in inside.splitlines()


def test_a_person_sees_whole_names_and_paths_from_the_root_on(base, tmp_path):
    environ = {**os.environ, **base, "COLUMNS": "200"}
    code, seen = on_a_terminal("caches", env=environ)
    assert code == 0
    lines = [line.split() for line in seen.splitlines()]
    (row,) = [line for line in lines if line[:1] == ["torch-kernels"]]
    assert row[1:5] == ["not", "set", "PYTORCH_KERNEL_CACHE_PATH", "jit/torch-kernels"]
    assert f"are in {tmp_path}/root" in " ".join(seen.split())
