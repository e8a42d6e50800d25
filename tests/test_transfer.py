"""What one root has compiled is a hit in another: real kernels, by a file, for the plug-in and for stock Triton.

`GPUCACHE_TEST_TRITON` names another Python, with another Triton and gpucache; here several may stand, with commas.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.ranks import PLUGIN, compile_kernels
from support.trees import OLD

from gpucache.archive.read import PackReader
from gpucache.archive.signature import anyone
from gpucache.archive.statement import Statement
from gpucache.kernels.recipe import from_text
from gpucache.upkeep.verify import verify

PYTHONS = os.environ.get("GPUCACHE_TEST_TRITON", sys.executable).split(",")


def compiled(
    python: str, root: Path, directory: str, *, plugin: bool, archs: tuple[int, ...] = (90,)
) -> Mapping[str, Any]:
    """What a fresh process says that compiled, or found, two real kernels for each architecture."""
    env = {"GPUCACHE_DIR": str(root), "TRITON_CACHE_DIR": str(root / "triton" / directory)}
    said = compile_kernels({**env, **PLUGIN} if plugin else env, 2, *archs, python=python)
    assert said["dangling"] == []
    return said


def statement_of(pack: Path) -> Statement:
    with pack.open("rb") as file, PackReader(file, anyone, source_name=str(pack)) as reader:
        return reader.statement


@pytest.fixture
def carried(here, tmp_path):
    """Pack a root, lose the root, and unpack elsewhere; what `unpack --json` says. The other root's path is new."""

    def carry(root: Path, *words: object) -> dict[str, Any]:
        pack = tmp_path / "kernels.tar.zst"
        done = here("pack", "-o", pack, "--root", root, *words)
        assert done.code == 0, done.err
        shutil.rmtree(root)
        done = here("unpack", pack, "--unsigned", "--root", tmp_path / "other", "--json")
        assert done.code == 0, done.err
        return json.loads(done.out)

    return carry


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("slim", [False, True])
def test_an_unpacked_kernel_is_a_hit_on_every_device_and_to_stock_triton(
    python, slim, tmp_path, triton, carried
):
    root, other = tmp_path / "root", tmp_path / "other"
    first = compiled(python, root, "0", plugin=True)
    assert first["compiled"] == 2
    said = carried(root, *["--slim"] * slim)
    assert (len(said["made"]), said["skipped"]) == (2, [])
    for directory, plugin in (("0", True), ("3", True), ("0", False), ("3", False)):
        again = compiled(python, other, directory, plugin=plugin)
        assert (again["compiled"], again["digests"]) == (0, first["digests"]), (directory, plugin)
    assert not verify(str(other)).findings
    names = {path.suffix for path in other.glob("gpucache/v1/store/*/*/scaled.*")}
    assert (".ptx" in names) != slim


@pytest.mark.parametrize("python", PYTHONS)
def test_what_stock_triton_cached_is_packed_too_and_is_not_touched(
    python, tmp_path, triton, carried
):
    """Also where its directory is no root of gpucache's, in which nothing is made."""
    cache, other = tmp_path / "cache", tmp_path / "other"
    env = {"TRITON_CACHE_DIR": str(cache)}
    first = compile_kernels(env, 2, 90, python=python)
    assert first["compiled"] == 2
    for path in cache.rglob("*.cubin"):
        os.utime(path, (OLD, OLD))
    said = carried_with_times(cache, carried)
    assert len(said["made"]) == 2
    for directory, plugin in (("0", True), ("0", False), ("1", True)):
        again = compiled(python, other, directory, plugin=plugin)
        assert (again["compiled"], again["digests"]) == (0, first["digests"])


def carried_with_times(cache: Path, carried) -> dict[str, Any]:
    """Carry a cache of stock Triton's, from a copy of which nothing may differ before it is removed."""
    before = {
        path: (path.stat().st_atime_ns, path.stat().st_nlink) for path in cache.rglob("*.cubin")
    }
    rmtree = shutil.rmtree

    def checked(path: Path, *words: object, **options: object) -> None:
        if path == cache:
            after = {one: (one.stat().st_atime_ns, one.stat().st_nlink) for one in before}
            assert after == before
            assert not (cache / "gpucache").exists()
        rmtree(path, *words, **options)

    shutil.rmtree = checked
    try:
        return carried(cache)
    finally:
        shutil.rmtree = rmtree


def test_an_architecture_of_several_is_packed_and_taken_alone(tmp_path, triton, here):
    root = tmp_path / "root"
    compiled(sys.executable, root, "0", plugin=True, archs=(80, 90))
    every, one = tmp_path / "all.tar.zst", tmp_path / "one.tar.zst"
    for words in ((every,), (one, "--arch", "80")):
        assert here("pack", "--root", root, "-o", *words).code == 0
    assert {entry.arch for entry in statement_of(every).entries} == {"sm_80", "sm_90"}
    assert {entry.arch for entry in statement_of(one).entries} == {"sm_80"}
    done = here(
        "unpack", every, "--unsigned", "--arch", "sm_90", "--root", tmp_path / "o", "--json"
    )
    said = json.loads(done.out)
    assert {row["arch"] for row in said["made"]} == {"sm_90"}
    assert {(row["arch"], row["why"]) for row in said["skipped"]} == {("sm_80", "not chosen")}


def test_a_recipe_is_carried_and_names_no_absolute_path(tmp_path, triton, carried):
    root, other = tmp_path / "root", tmp_path / "other"
    compiled(sys.executable, root, "0", plugin=True)
    carried(root)
    recipes = list(other.glob("gpucache/v1/store/*/*/__recipe__.json"))
    assert len(recipes) == 2
    for path in recipes:
        assert from_text(path.read_bytes()).function.file == "kernels.py"
    assert not verify(str(other)).findings


def test_a_library_built_here_is_a_hit_in_another_root(tmp_path, triton, carried):
    """As Triton's launcher is: a file that stands for itself, whose tag is this Python and libc."""
    code = """
import os, sys, sysconfig
from gpucache.triton.manager import DeviceCacheManager
name = "launcher" + (sysconfig.get_config_var("EXT_SUFFIX") if sys.argv[1] == "named" else ".so")
manager = DeviceCacheManager("A" * 52)
print(manager.get_file(name) is not None)
if len(sys.argv) > 2:
    manager.put(open(sys.argv[2], "rb").read(), name, binary=True)
"""
    libc = next(
        path
        for path in ("/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6", "/usr/lib/libm.so.6")
        if os.path.exists(path)
    )

    def asked(root: Path, how: str, *words: str) -> str:
        env = {**os.environ, "GPUCACHE_DIR": str(root), "TRITON_CACHE_DIR": f"{root}/triton/0"}
        done = subprocess.run(
            [sys.executable, "-c", code, how, *words], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    root, other = tmp_path / "root", tmp_path / "other"
    for how in ("named", "plain"):
        assert asked(root, how, libc) == "False"
    said = carried(root)
    assert [row["kind"] for row in said["made"]] == ["library", "library"]
    for how in ("named", "plain"):
        assert asked(other, how) == "True"


def test_a_stream_from_pack_to_unpack(tmp_path, keys):
    """As over ssh: nothing is written but the other root."""
    command = [sys.executable, "-m", "gpucache"]
    packing = subprocess.Popen(
        [*command, "pack", "-o", "-", "--root", str(tmp_path / "root")], stdout=subprocess.PIPE
    )
    unpacking = subprocess.run(
        [*command, "unpack", "-", "--unsigned", "--json", "--root", str(tmp_path / "other")],
        stdin=packing.stdout,
        capture_output=True,
        timeout=60,
    )
    packing.stdout.close()
    assert packing.wait(60) == 0
    assert unpacking.returncode == 0, unpacking.stderr
    said = json.loads(unpacking.stdout)
    assert {row["key"] for row in said["made"]} == set(keys)
