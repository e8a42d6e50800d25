"""What does gpucache add to the start of a process?

Whole processes, started in turn so that a busy machine disturbs all alike: a bare interpreter, ``import gpucache``, the
same with the registry loaded from the record, and the command line. Ratios are to the bare interpreter of the same run.

Does not measure: a cold page cache, or NVML.

Repeat: python benchmarks/bench_startup.py [--smoke]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import environment, line

SCRIPT = Path(sys.executable).with_name("gpucache")
LOAD = "from gpucache import DeviceCacheRegistry; DeviceCacheRegistry.load().path(0)"
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import gpucache": [sys.executable, "-c", "import gpucache"],
    "import, load the record, resolve": [sys.executable, "-c", LOAD],
    "gpucache path 0": [str(SCRIPT), "path", "0"],
    "gpucache run -- true": [str(SCRIPT), "run", "--", "true"],
    "gpucache --help": [str(SCRIPT), "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="only prove that it runs")
    rounds = 2 if parser.parse_args().smoke else 30
    with tempfile.TemporaryDirectory() as root:
        environ = {**os.environ, "GPUCACHE_DIR": root, "GPUCACHE_FAKE_DEVICES": "8"}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
        subprocess.run([SCRIPT, "provision"], env=environ, check=True, capture_output=True)
        seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for _ in range(rounds):
            for name, command in COMMANDS.items():
                start = time.perf_counter()
                subprocess.run(command, env=environ, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - start)
    print(environment())
    bare = statistics.median(seconds["python -c pass"])
    for name, samples in seconds.items():
        print(line(name, samples, bare))


if __name__ == "__main__":
    main()
