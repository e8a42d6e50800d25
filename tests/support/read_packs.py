"""Read the packs that are named, and say of each what was refused, how long that took and how much memory.

A process of its own, so that its memory is measured, and that it makes no file can be seen.
"""

from __future__ import annotations

import json
import sys
import time

from gpucache.archive.errors import BadPack
from gpucache.archive.read import PackReader
from gpucache.archive.trusted_keys import TrustedKeys


def peak_bytes() -> int:
    """The most memory that this process has had since `forget_peak`."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise OSError("no VmHWM")


def forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def read(path: str, trusted: TrustedKeys) -> tuple[str, str]:
    """The flaw of a pack, and what is said about it."""
    try:
        with open(path, "rb") as file, PackReader(file, trusted.judge, source_name=path) as reader:
            for _, _, pieces in reader.files():
                for _ in pieces:
                    pass
    except BadPack as error:
        if not (error.hint and str(error).startswith(f"{path}: ")):
            raise
        return error.code, error.fact
    return "", ""


def main() -> None:
    trusted = TrustedKeys.parse(sys.argv[1])
    for path in sys.stdin.read().splitlines():
        forget_peak()
        began = time.process_time()
        code, fact = read(path, trusted)
        took_s = time.process_time() - began
        told = {"path": path, "code": code, "fact": fact, "cpu_s": took_s, "peak": peak_bytes()}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
