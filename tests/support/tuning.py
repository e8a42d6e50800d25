"""A kernel as its author works at it: compiled by the real Triton, through the plug-in, in one way after another."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from support.ranks import PLUGIN, warm

KERNEL = """
import triton, triton.language as tl
STEP = tl.constexpr(1)
@triton.jit
def helper(x):
    return x + STEP
@triton.jit
def scaled(x, out, n, SCALE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(out + offsets, helper(tl.load(x + offsets, mask)) * SCALE, mask)
"""
COMPILE = """if True:
    import importlib.util, json, os, sys, triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    at = json.loads(sys.argv[1])
    spec = importlib.util.spec_from_file_location("tune", at["file"])
    module = sys.modules["tune"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    types = {"x": at.get("x", "*fp32"), "out": "*fp32", "n": "i32"}
    constants = {"SCALE": 2.0, "BLOCK": at.get("block", 512)}
    if hasattr(triton, "knobs"):
        types |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=module.scaled, signature=types, constexprs=constants)
    else:
        source = ASTSource(fn=module.scaled, signature=types, constants=constants)
    triton.compile(source, target=GPUTarget("cuda", at.get("arch", 90), 32), options=at.get("options"))
"""
LAUNCH = """if True:
    import importlib.util, sys
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from gpucache.warm.replay.no_gpu import NoGpu
    driver.set_active(NoGpu(GPUTarget("cuda", 90, 32)))
    file, *numbers = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("tune", file)
    module = sys.modules["tune"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    class Tensor:
        dtype = "torch.float32"
        def data_ptr(self): return 16
    for n in numbers:
        module.scaled.warmup(Tensor(), Tensor(), int(n), SCALE=2.0, BLOCK=512, grid=(1,))
"""
"""Launches but for the GPU: the kernel is compiled as a launch with this number of elements would compile it."""


class Tuned(NamedTuple):
    """What one author's afternoon leaves. Do not change it."""

    root: Path
    keys: Mapping[str, str]
    """Of each way in which the kernel was compiled, in that order."""
    lines: Mapping[str, str]
    """What each of its misses has logged."""


class Author:
    """Compiles the kernel in a root."""

    def __init__(self, base: Path) -> None:
        self.root, self.file = base / "root", base / "tune.py"
        self.environ = {
            **os.environ,
            **PLUGIN,
            "GPUCACHE_DIR": str(self.root),
            "TRITON_CACHE_DIR": str(self.root / "triton/0"),
            "GPUCACHE_LOG": "info",
        }
        self.keys: dict[str, str] = {}
        self.lines: dict[str, str] = {}

    def compile(
        self, name: str, text: str = KERNEL, env: Mapping[str, str] | None = None, **how: object
    ) -> None:
        """Compile what the kernel's file says now, which is a miss."""
        self.file.write_text(text)
        said = json.dumps({"file": str(self.file), **how})
        done = warm().run(COMPILE, said, env={**self.environ, **(env or {})})
        assert done.returncode == 0, done.stderr
        (self.lines[name],) = re.findall(r"^.*miss: .*$", done.stderr, re.MULTILINE)
        (self.keys[name],) = set(re.findall(r"[\w-]{43,52}", self.lines[name])) - {
            *self.keys.values()
        }


def tuned(base: Path) -> Tuned:
    """Compile the kernel in ten ways."""
    author = Author(base)
    author.compile("first")
    author.compile("constant", block=1024)
    author.compile("options", block=1024, options={"num_warps": 8, "num_stages": 4})
    author.compile("type", x="*fp16")
    author.compile("target", arch=80)
    author.compile("moved", "# a comment\n" + KERNEL)
    author.compile("variable", env={"TRITON_DISABLE_LINE_INFO": "1"})
    author.compile("source", KERNEL.replace("* SCALE", "- SCALE"))
    author.compile("helper", KERNEL.replace("x + STEP", "x - STEP"))
    author.compile("json", env={"GPUCACHE_LOG_FORMAT": "json"}, block=2048)
    return Tuned(author.root, author.keys, author.lines)
