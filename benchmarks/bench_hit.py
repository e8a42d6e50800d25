"""What does a hit cost: through the plug-in, and through Triton's own manager, in one run?

A hit is what Triton asks of a manager for a kernel that is there: construct it and call ``get_group``. Measured on one
entry of a real kernel, warm, in turns so that a busy machine disturbs all alike; beside it the same with a digest of
every file (`GPUCACHE_VERIFY=always`), and what the first ask of a key in a process takes beside that where it is
recorded (`GPUCACHE_RECORD`): the recipe is read from the frame of Triton's `compile` and appended to a file.

Does not measure: what Triton does with the paths (it reads every file), or a cold page cache.

Repeat: python benchmarks/bench_hit.py [--smoke]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from report import environment, line, options_of

KERNELS = Path(__file__).parent.parent / "tests/support/kernels.py"
sys.path.append(str(KERNELS.parent))


def seconds(manager: object, key: str) -> float:
    start = time.perf_counter()
    found = manager(key).get_group("scaled.json")
    spent = time.perf_counter() - start
    assert len(found) >= 6
    return spent


def seconds_to_record(root: str, key: str, rounds: int) -> list[float]:
    """What each of some first asks takes that are recorded, made by the real `compile` of the kernel."""
    import kernels
    import triton
    from triton.backends.compiler import GPUTarget

    from gpucache.triton.recorder import Recorder

    recorder = Recorder(f"{root}/recipes")
    spent = []

    class CacheManager:
        def __init__(self, key: str, **_: bool) -> None:
            self.key = key

        def get_group(self, filename: str) -> dict[str, str]:
            frame = sys._getframe(1)
            for _ in range(rounds):
                recorder._asked.clear()
                start = time.perf_counter()
                recorder.asked(frame, key)
                spent.append(time.perf_counter() - start)
            raise InterruptedError  # nothing is to be compiled

    triton.knobs.cache.manager_class = CacheManager
    with suppress(InterruptedError):
        triton.compile(kernels.source(0), target=GPUTarget("cuda", 90, 32))
    return spent


def main() -> None:
    parser = options_of(__doc__)
    rounds = 5 if parser.parse_args().smoke else 3000
    with tempfile.TemporaryDirectory() as root:
        os.environ |= {"GPUCACHE_DIR": root, "TRITON_CACHE_DIR": f"{root}/triton/0", "TMPDIR": root}
        env = {**os.environ, "TRITON_CACHE_MANAGER": "gpucache.triton:DeviceCacheManager"}
        subprocess.run(
            [sys.executable, KERNELS, "1", "90"],
            env=env,
            input="\n",
            text=True,
            check=True,
            capture_output=True,
        )
        (key,) = os.listdir(f"{root}/triton/0")
        from triton.runtime.cache import FileCacheManager

        from gpucache.triton import manager as plugin

        spent: dict[str, list[float]] = {
            "FileCacheManager": [],
            "gpucache": [],
            "gpucache, digests": [],
        }
        normal = plugin.current_location()
        os.environ["GPUCACHE_VERIFY"] = "always"
        plugin._locations.clear()
        verifying = plugin.current_location()
        for _ in range(rounds):
            spent["FileCacheManager"].append(seconds(FileCacheManager, key))
            for name, place in (("gpucache", normal), ("gpucache, digests", verifying)):
                plugin._locations[os.environ["TRITON_CACHE_DIR"]] = place
                spent[name].append(seconds(plugin.DeviceCacheManager, key))
        spent["recorded, beside the hit"] = seconds_to_record(root, key, rounds)
        print(environment())
        baseline = sorted(spent["FileCacheManager"])[rounds // 2]
        for name, samples in spent.items():
            print(
                line(name, samples, baseline)
                + f"  p99 {sorted(samples)[rounds * 99 // 100] * 1e6:.1f} us"
            )


if __name__ == "__main__":
    main()
