"""What does gpucache add to the start of a process?

Whole processes, started in turn so that a busy machine disturbs all alike: a bare interpreter; ``import gpucache``; a
worker, which loads the registry from the record and asks it for a path; the command line; a bare interpreter as each
one starts under `gpucache run`, whose `sitecustomize` it imports; and eight launches at once, beside eight bare
interpreters at once. Then what the plug-in's import adds to a process that has imported Triton.
Everything is *warm*: a first round, which is not counted, has read the files and written the bytecode.

With ``--settings`` the same where the system, the user and the root each have a file of settings, with its parsed
form: in a mount namespace with an ``/etc`` of its own, which needs root. Where there is strace, the number of system
calls of each process is told, so that two runs can be compared.

Ratios are of one round, the process to its neighbour, as medians with the quartiles in brackets. Where other work
shares the processor, believe the ratio of CPU time.

Does not measure: a cold page cache, or NVML.

Repeat: python benchmarks/bench_startup.py [--smoke] [--settings]
"""

from __future__ import annotations

import importlib.util
import os
import shutil
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


FILES = {
    "/etc/gpucache/gpucache.toml": 'max_size = "20GiB"\nlock_timeout_s = 120\nlog = "warning"\n',
    "home/.config/gpucache/gpucache.toml": 'stall_timeout_s = 20\ntrust_keys = ["me:PN94B0"]\n',
    "root/gpucache.toml": 'max_size = "10GiB"\nstamp_s = 200\n',
}
"""The files of settings, of which the first is the system's; the others lie below the benchmark's own directory."""
_ANOTHER_ETC = 'mount --bind "$1" /etc && shift && exec "$@"'


def with_another_etc() -> None:
    """Start this benchmark again with a copy of ``/etc``, in a mount namespace that goes with the process."""
    with tempfile.TemporaryDirectory() as copied:
        shutil.copytree("/etc", copied, symlinks=True, dirs_exist_ok=True)
        again = [sys.executable, __file__, *sys.argv[1:]]
        command = ["unshare", "--mount", "sh", "-c", _ANOTHER_ETC, "sh", copied, *again]
        environ = {**os.environ, "BENCH_ETC": copied}
        sys.exit(subprocess.run(command, env=environ, check=False).returncode)


def put_settings(base: str, environ: dict[str, str]) -> None:
    """Write the three files, as if an hour ago, and have their parsed forms made."""
    for path, text in FILES.items():
        file = Path(base, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        then = file.stat().st_mtime - 3600
        os.utime(file, (then, then))
    subprocess.run([SCRIPT, "path", "0"], env=environ, check=True, capture_output=True)


def system_calls(environ: dict[str, str], base: str) -> str | None:
    """How many system calls each process makes, with those of its start; None where there is no strace."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    counts = []
    for name, command in COMMANDS.items():
        trace = Path(base, "trace")
        traced = [strace, "-f", "-o", str(trace), *command]
        if subprocess.run(traced, env=environ, check=False, capture_output=True).returncode:
            return None
        counts.append(f"{name} {len(trace.read_text().splitlines())}")
    return "system calls: " + "; ".join(counts)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--settings", action="store_true", help="with three files of settings")
    options = parser.parse_args()
    if options.settings and "BENCH_ETC" not in os.environ:
        with_another_etc()
    rounds = 2 if options.smoke else 30
    print(environment() + (", with three files of settings" if options.settings else ""))
    with tempfile.TemporaryDirectory() as base:
        root, home = f"{base}/root", f"{base}/home"
        os.mkdir(home, 0o700)
        environ = {**os.environ, "GPUCACHE_DIR": root, "GPUCACHE_FAKE_DEVICES": "8", "HOME": home}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
        os.chdir(base)  # `python -c` looks for modules in the current directory first
        subprocess.run([SCRIPT, "provision"], env=environ, check=True, capture_output=True)
        if options.settings:
            put_settings(base, environ)
        spent = rounds_of(rounds, environ)
        triton = importlib.util.find_spec("triton") is not None
        imports = plugin_imports(rounds, environ) if triton else []
        calls = system_calls(environ, base)
        os.chdir("/")
    for name, samples in spent.items():
        bare = f"{AT_ONCE} x {BARE}" if name.startswith(f"{AT_ONCE} x") else BARE
        print(line(name, samples, spent[bare]))
    if calls is not None:
        print(calls)
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
