"""What does gpucache add to the start of a process?

Whole processes, started in turn so that a busy machine disturbs all alike: a bare interpreter; ``import gpucache``; a
worker, which loads the registry from the record and asks it for a path; the command line; a bare interpreter as each
one starts under `gpucache run`, whose `sitecustomize` it imports; and eight launches at once, beside eight bare
interpreters at once. Then what the plug-in's import adds to a process that has imported Triton.
Everything is *warm*: a first round, which is not counted, has read the files and written the bytecode.

Ratios are of one round, the process to its neighbour, as medians with the quartiles in brackets. Where other work
shares the processor, believe the ratio of CPU time.

Does not measure: a cold page cache, or NVML.

Repeat: python benchmarks/bench_startup.py [--smoke]
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from process import Spent, line, run
from report import environment, options_of

from gpucache.directories.python_path import SITE

SCRIPT = Path(sys.executable).with_name("gpucache")
BARE = "python -c pass"
UNDER_RUN = "python -c pass, under gpucache run"
LOAD = "from gpucache import DeviceCacheRegistry; DeviceCacheRegistry.load().path(0)"
COMMANDS = {
    BARE: [sys.executable, "-c", "pass"],
    "import gpucache": [sys.executable, "-c", "import gpucache"],
    "worker: import, load(), path(0)": [sys.executable, "-c", LOAD],
    "gpucache path 0": [str(SCRIPT), "path", "0"],
    "gpucache run -- true": [str(SCRIPT), "run", "--", "true"],
    "gpucache --help": [str(SCRIPT), "--help"],
}
AT_ONCE = 8
PLUGIN = """
import time, triton
start = time.process_time()
import gpucache.triton
print(time.process_time() - start)
"""
"""Says how many seconds of CPU time the plug-in's import takes in a process that has imported Triton."""


def rounds_of(count: int, environ: dict[str, str]) -> dict[str, list[Spent]]:
    """What each process took, in so many rounds; the copies at once are called by their number."""
    spent: dict[str, list[Spent]] = {}
    for number in range(count + 1):
        taken = {name: run(command, environ) for name, command in COMMANDS.items()}
        for name in (BARE, "gpucache run -- true"):
            taken[f"{AT_ONCE} x {name}"] = run(COMMANDS[name], environ, copies=AT_ONCE)
        taken[UNDER_RUN] = run(COMMANDS[BARE], {**environ, "PYTHONPATH": SITE})
        for name in taken if number > 0 else ():  # the first round has warmed the rest
            spent.setdefault(name, []).append(taken[name])
    return spent


def plugin_imports(count: int, environ: dict[str, str]) -> list[float]:
    """The CPU seconds of the plug-in's import in so many processes; the first, which has warmed the rest, left out."""
    command = [sys.executable, "-c", PLUGIN]
    said = [
        subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout
        for _ in range(count + 1)
    ]
    return [float(seconds) for seconds in said[1:]]


def main() -> None:
    parser = options_of(__doc__)
    rounds = 2 if parser.parse_args().smoke else 30
    print(environment())
    with tempfile.TemporaryDirectory() as root:
        environ = {**os.environ, "GPUCACHE_DIR": root, "GPUCACHE_FAKE_DEVICES": "8"}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
        os.chdir(root)  # `python -c` looks for modules in the current directory first
        subprocess.run([SCRIPT, "provision"], env=environ, check=True, capture_output=True)
        spent = rounds_of(rounds, environ)
        triton = importlib.util.find_spec("triton") is not None
        imports = plugin_imports(rounds, environ) if triton else []
        os.chdir("/")
    for name, samples in spent.items():
        bare = f"{AT_ONCE} x {BARE}" if name.startswith(f"{AT_ONCE} x") else BARE
        print(line(name, samples, spent[bare]))
    if not imports:
        print("skipped: the plug-in's import after Triton's, for Triton is not installed")
        return
    low, median, high = (
        1e3 * cpu for cpu in statistics.quantiles(imports, n=4, method="inclusive")
    )
    print(
        f"import gpucache.triton after triton takes {median:.1f} ms of CPU ({low:.1f}-{high:.1f})"
    )


if __name__ == "__main__":
    main()
