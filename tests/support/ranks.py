"""Processes that compile real kernels, many at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PYTHON = os.environ.get("GPUCACHE_TEST_TRITON", sys.executable)
"""The Python whose Triton compiles."""
KERNELS = Path(__file__).with_name("kernels.py")
WORKER = Path(__file__).with_name("prune_worker.py")
ONE_KERNEL = Path(__file__).with_name("compile_kernel.py")
PLUGIN = {"TRITON_CACHE_MANAGER": "gpucache.triton:DeviceCacheManager"}


class Rank:
    """A process that compiles kernels once it is told to."""

    def __init__(self, env, count=1, arch=(90,), start=True):
        command = [PYTHON, str(KERNELS), str(count), *map(str, arch)]
        self.process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if start:
            self.expect("ready")

    def expect(self, line):
        said = self.process.stdout.readline()
        assert said == line + "\n", (said, self.process.stderr.read() if not said else "")

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def said(self, timeout=120):
        out, self.err = self.process.communicate("\n", timeout=timeout)
        assert self.process.returncode == 0, self.err
        return json.loads(out.splitlines()[-1])
