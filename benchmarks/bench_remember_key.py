"""What share of a whole warm start does it save to remember Triton's own key (`GPUCACHE_REMEMBER_KEY=1`)?

N ranks start at once under `gpucache run`, each a whole process from ``exec`` to exit, with every kernel cached: a
program with the real torch that calls functions of Liger (`tests/support/real_kernels.py`, on a stand-in for the
driver), and one that has Triton alone (`tests/support/kernels.py`). Three ways take turns in each round: without the
plug-in, with it, with it and the key remembered. CPU is user and system of all ranks, and of what they wait for.

Does not measure: a GPU, where the rest of a start takes longer; a library that is not in the page cache, as after a
boot or on a network file system, where the gain is larger; the first start, which hashes and keeps the key.

Repeat: python benchmarks/bench_remember_key.py [--smoke] [--ranks N] [--rounds N]
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from process import Spent, line, run
from report import environment, options_of

PACKAGE = Path(__file__).parent.parent
SUPPORT = PACKAGE / "tests" / "support"
WAYS = {
    "stock Triton": (["--no-plugin"], "0"),
    "gpucache": ([], "0"),
    "gpucache, key remembered": ([], "1"),
}
BASELINE = "gpucache"


def programs(smoke: bool) -> dict[str, list[str]]:
    """What each rank runs, by a name with its number of kernels."""
    count = 1 if smoke else 12
    found = {f"Triton alone, {count} kernels": [f"{SUPPORT}/kernels.py", str(count), "90"]}
    if all(map(importlib.util.find_spec, ("torch", "liger_kernel"))):
        words = ["few"] if smoke else []
        found["torch and Liger"] = [f"{SUPPORT}/real_kernels.py", "liger", *words]
    return found


def start(way: str, words: list[str], environ: Mapping[str, str], ranks: int) -> Spent:
    """Start all ranks of a program, and wait for them."""
    options, remember = WAYS[way]
    ours = [sys.executable, "-m", "gpucache", "run", "--device", "0", *options]
    home = environ["GPUCACHE_DIR"] + ("/stock" if way == "stock Triton" else "/root")
    environ = {**environ, "GPUCACHE_DIR": home, "GPUCACHE_REMEMBER_KEY": remember}
    return run([*ours, "--", sys.executable, *words], environ, copies=ranks)


def measure(words: list[str], ranks: int, rounds: int) -> dict[str, list[Spent]]:
    """Make every kernel, then let the ways take turns."""
    spent: dict[str, list[Spent]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as home:
        own = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        path = os.pathsep.join([str(PACKAGE), *own])
        environ = {**os.environ, "PYTHONPATH": path, "GPUCACHE_FAKE_DEVICES": "1xH100:9.0"}
        environ |= {"GPUCACHE_DIR": home, "REAL_KERNELS_OUT": home}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
        for name in ("root", "stock"):
            os.mkdir(f"{home}/{name}", 0o700)
        for way in WAYS:
            start(way, words, environ, 1)
        for _ in range(rounds):
            for way in WAYS:
                spent[way].append(start(way, words, environ, ranks))
    return spent


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    ranks, rounds = (2, 2) if options.smoke else (options.ranks, options.rounds)
    print(environment())
    found = programs(options.smoke)
    for name, words in found.items():
        print(f"{ranks} ranks, warm: {name}")
        spent = measure(words, ranks, rounds)
        for way, samples in spent.items():
            print(line(f"  {way}", samples, spent[BASELINE]))
    if len(found) == 1:
        print("skipped: torch and Liger, for they are not installed")


if __name__ == "__main__":
    main()
