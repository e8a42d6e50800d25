"""A kernel may be called anything: names of ours, of groups, too long ones, ones that lead elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.launches import another_process, kernel, launched
from support.ranks import PLUGIN

from gpucache.kernels.group import group_files, grouped_names
from gpucache.report import scan
from gpucache.store.names import stored_name
from gpucache.triton.manager import DeviceCacheManager
from gpucache.upkeep.verify import verify

ODD = {
    "our manifest": "__entry__",
    "our condemned manifest": "__entry__.json.removed",
    "a group": "__grp__add",
    "a group of a group": "__grp____grp__add",
    "a recipe": "__recipe__",
    "a slash": "a/b",
    "the directory above": "../../up",
    "a root": "/etc/add",
    "a null byte": "a\0b",
    "a new line": "a\nb",
    "an escape": "\x1b[31madd",
    "nothing": "",
    "a dot": ".",
    "two dots": "..",
    "another name": "=add",
    "240 bytes": "n" * 240,
    "250 bytes": "n" * 250,
    "255 bytes": "n" * 255,
    "1,000 bytes": "n" * 1000,
    "many bytes in few letters": "\u30ab" * 150,
    "unicode": "größe_\u30ab\u30fc\u30cd\u30eb",
    "a lone surrogate": "a\ud800b",
    "an undecodable byte": "a\udcffb",
    "only a suffix": ".json",
}


@pytest.fixture(autouse=True)
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    another_process(monkeypatch)


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_a_kernel_of_any_name_is_compiled_once(name, root, monkeypatch):
    key, files = kernel(repr(name), name)
    assert launched(key, files) == (False, files)
    another_process(monkeypatch)
    assert launched(key, files) == (True, files)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/1"))
    assert launched(key, files) == (True, files)
    assert not verify(str(root)).findings
    (entry,) = scan(str(root)).entries
    assert entry.key == key
    assert not list(root.parent.glob("up*"))


@pytest.mark.parametrize("end", [".so", ".autotune.json", ".json"])
@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_a_single_file_of_any_name_is_kept(name, end, root):
    key, _ = kernel("single")
    data = json.dumps({"key": [], "configs_timings": []})
    assert DeviceCacheManager(key).get_file(f"{name}{end}") is None
    manager = DeviceCacheManager(key)
    assert manager.get_file(f"{name}{end}") is None
    path = manager.put(data, f"{name}{end}", binary=False)
    assert Path(path).read_text() == data
    found = DeviceCacheManager(key).get_file(f"{name}{end}")
    assert found is not None
    assert Path(found).read_text() == data
    assert found.endswith(end)


def test_names_that_are_not_their_own_differ_as_the_names_do():
    names = [f"{name}.json" for name in ODD.values()]
    assert len({stored_name(name) for name in names}) == len(names)
    for name in names:
        assert len(os.fsencode(f"__grp__{stored_name(name)}")) <= 255


def test_the_files_of_a_kernel_that_is_called_as_a_group_are_none():
    directory = ["__grp__add.json", "__grp__add.cubin", "__grp____grp__add.json", "__grp__b.json"]
    assert group_files(directory) == ["__grp____grp__add.json", "__grp__b.json"]
    assert grouped_names(["__grp__add.json", "add.json"]) == ["add.json"]


SCRIPT = """
import hashlib, json, os, sys, types
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
sys.path.insert(0, {support!r})
import kernels
compiled = kernels.count_compiles()
source = kernels.source(0)
source.name = sys.argv[1]
kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
print(json.dumps([len(compiled), hashlib.sha256(kernel.asm["cubin"]).hexdigest(), sorted(kernel.asm)]))
"""


@pytest.mark.parametrize(
    "name", ["__entry__", "__grp__add", "__recipe__", "\u30ab" * 80, "n" * 245]
)
def test_the_real_triton_compiles_a_kernel_of_an_odd_name_once(name, root, triton):
    script = SCRIPT.format(support=str(Path(__file__).parent / "support"))

    def rank(directory: str) -> list[object]:
        env = {**os.environ, **PLUGIN, "TRITON_CACHE_DIR": str(root / directory)}
        command = [sys.executable, "-W", "ignore", "-c", script, name]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said: list[object] = json.loads(done.stdout)
        return said

    count, digest, stages = rank("triton/0")
    assert count == 1
    for directory in ("triton/0", "triton/1"):
        assert rank(directory) == [0, digest, stages]
    assert not verify(str(root)).findings
