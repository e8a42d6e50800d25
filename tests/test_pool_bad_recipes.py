"""A file of recipes in which nearly all is bad: each line ends as one that is told, and the good one is compiled."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.pools import Modules, is_gone
from support.ranks import KERNELS, PLUGIN, compile_kernels

from gpucache.kernels.recipe import Function, Recipe, to_text
from gpucache.kernels.recipe_lines import FORMAT_LINE, BadRecipeFile, read_recipe_file
from gpucache.upkeep.verify import verify
from gpucache.warm.pool.pool import Pool
from gpucache.warm.pool.report import WarmReport

pytestmark = pytest.mark.compiles

LIMIT_S = 10.0

ENDLESS = """
import triton
import triton.language as tl
from triton.runtime.jit import constexpr_function

@triton.jit
def unrolled(x, BLOCK: tl.constexpr):
    '''Keeps LLVM busy for minutes, or ptxas.'''
    offsets = tl.arange(0, BLOCK)
    value = tl.load(x + offsets)
    for step in tl.static_range(64):
        value = tl.exp(value) + tl.sqrt(value)
    tl.store(x + offsets, value)

@constexpr_function
def loops(value):
    while True:
        value += 1

@constexpr_function
def waits(value):
    import subprocess
    return subprocess.run(['sleep', '1000']).returncode

@constexpr_function
def kills(value):
    import os
    os.kill(os.getpid(), 11)

@triton.jit
def looping(x, BLOCK: tl.constexpr):
    tl.store(x, loops(BLOCK))

@triton.jit
def waiting(x, BLOCK: tl.constexpr):
    tl.store(x, waits(BLOCK))

@triton.jit
def killing(x, BLOCK: tl.constexpr):
    tl.store(x, kills(BLOCK))
"""
CUDA_AT_IMPORT = """
import ctypes
import ctypes.util
import os
import triton

assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
properties = triton.runtime.driver.active.utils.get_device_properties(0)

@triton.jit
def unrolled(x, BLOCK):
    pass
"""


@pytest.fixture
def good(tmp_path: Path, triton: None) -> Recipe:
    """The recipe of a kernel that was compiled by a program."""
    env = {
        **PLUGIN,
        "GPUCACHE_DIR": str(tmp_path / "recorded"),
        "TRITON_CACHE_DIR": str(tmp_path / "recorded/triton/0"),
        "GPUCACHE_RECORD": str(tmp_path / "good.jsonl"),
    }
    compile_kernels(env, 1, 90)
    (recipe,) = read_recipe_file(str(tmp_path / "good.jsonl"))
    assert isinstance(recipe, Recipe)
    return recipe


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Modules:
    made = Modules(tmp_path / "modules")
    made.directory.mkdir()
    monkeypatch.syspath_prepend(str(KERNELS.parent))
    monkeypatch.syspath_prepend(str(made.directory))
    return made


def kernel(directory: Modules, module: str, name: str) -> Recipe:
    """The recipe of one of the kernels above."""
    return directory.recipe(
        module,
        name,
        function=Function(module, name, None, ""),
        signature={"x": "*fp32", "BLOCK": "constexpr"},
        constants=(((1,), 65536),),
        options={"num_warps": 1},
        launched=False,
    )


def warm(path: Path, root: Path, **settings: object) -> WarmReport:
    """What a pool makes of a file, beside which no process is left."""
    mark = f"GPUCACHE_TEST_POOL={os.getpid()}"
    os.environ["GPUCACHE_TEST_POOL"] = str(os.getpid())
    try:
        report = Pool(
            read_recipe_file(str(path)), root=str(root), jobs=2, time_limit_s=LIMIT_S, **settings
        ).run()
    finally:
        del os.environ["GPUCACHE_TEST_POOL"]
    assert is_gone(mark)
    assert report.left == 0
    return report


def test_each_bad_line_is_told_and_the_good_one_is_compiled(good, directory, tmp_path, root):
    text = to_text(good)
    lines = {
        "cut": text[: len(text) // 2],
        "hostile names": text.replace(b'"kernels"', b'"../../etc\\u001b"'),
        "no recipe": b'{"key":"x"}',
        "too long": b'{"key":"' + b"x" * 2**21 + b'"}',
        "good": text,
        "again": text,
    }
    path = tmp_path / "recipes.jsonl"
    path.write_bytes(FORMAT_LINE + b"\n".join(lines.values()) + b'\n{"key":"torn')
    report = warm(path, root)
    assert [one.number for one in report.bad_lines] == [2, 3, 4, 5, 8]
    assert [one.end for one in report.outcomes] == ["made"]
    assert verify(str(root)).findings == ()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"format": "gpucache recipes", "version": 99}\n', "a version that this gpucache"),
        (b'{"format": "another"}\n', "the format"),
        (b"", None),
        (b"\0" * 100, "first line does not say the format"),
    ],
    ids=["a later version", "another format", "empty", "binary"],
)
def test_a_file_that_is_none_of_recipes_starts_nothing(content, why, tmp_path, root, monkeypatch):
    path = tmp_path / "recipes.jsonl"
    path.write_bytes(content)
    monkeypatch.setattr(subprocess, "Popen", None)
    if why is None:
        assert Pool(read_recipe_file(str(path)), root=str(root)).run() == WarmReport(())
        return
    with pytest.raises(BadRecipeFile, match=why):
        Pool(read_recipe_file(str(path)), root=str(root))


def test_modules_and_kernels_that_never_end_are_told(good, directory, tmp_path, root):
    """The kernels' compilers end with them, which run in processes of their own."""
    directory.write("endless", ENDLESS)
    directory.write("hangs", "import time\ntime.sleep(1000)")
    directory.write("raises", "raise OSError('no')")
    directory.write("touches", CUDA_AT_IMPORT)
    wanted = {
        ("endless", "unrolled"): ("failed", f"more than the time limit of {LIMIT_S:g} s"),
        ("endless", "looping"): ("failed", f"more than the time limit of {LIMIT_S:g} s"),
        ("endless", "waiting"): ("failed", f"more than the time limit of {LIMIT_S:g} s"),
        ("endless", "killing"): ("failed", "killed by SIGSEGV"),
        ("hangs", "unrolled"): ("cannot be imported", f"the time limit of {LIMIT_S:g} s"),
        ("raises", "unrolled"): ("cannot be imported", "OSError: no"),
        ("touches", "unrolled"): ("cannot be imported", "of a GPU was asked for"),
        ("nowhere", "unrolled"): ("cannot be imported", "No module named 'nowhere'"),
    }
    recipes = [kernel(directory, *names) for names in wanted]
    path = tmp_path / "recipes.jsonl"
    written = [to_text(one) for one in (*recipes, good)]
    path.write_bytes(FORMAT_LINE + b"\n".join(written) + b"\n")
    *bad, last = warm(path, root).outcomes
    for outcome, (end, why) in zip(bad, wanted.values(), strict=True):
        assert (outcome.end, why in outcome.why) == (end, True), outcome
    assert last.end == "made"
    assert verify(str(root)).findings == ()


def test_a_source_that_is_kept_is_run_only_where_that_is_allowed(directory, tmp_path, root):
    source = "import triton\n@triton.jit\ndef kernel(x, BLOCK):\n    pass\n"
    recipe = kernel(directory, "generated", "kernel")._replace(
        source=source, signature={"x": "*fp32", "BLOCK": "i32"}, constants=()
    )
    path = tmp_path / "recipes.jsonl"
    path.write_bytes(FORMAT_LINE + to_text(recipe) + b"\n")
    (refused,) = warm(path, root).outcomes
    assert refused.end == "cannot be imported"
    (made,) = warm(path, root, sources=True).outcomes
    assert made.end == "made", made
