"""Processes of a soak: they launch kernels whose bytes are known for a while, or run one command.

``main()`` does what its arguments say: ``launches SEED STOP SECONDS TALLY`` for so long, or until there is a file STOP,
with a letter in TALLY for each launch; ``all`` launches every kernel once on each device; ``as UID`` as another user;
``command WORD…``.
"""

from __future__ import annotations

import faulthandler
import os
import random
import sys
import time

# What a launch or a command imports late is imported here, once for all forked processes.
import triton.runtime.cache  # noqa: F401

import gpucache.cli.commands
import gpucache.store.eviction
import gpucache.store.leftovers
import gpucache.triton.shared_kernel
import gpucache.triton.single_file  # noqa: F401
import support.users  # noqa: F401
from gpucache.cli import main as command_line
from gpucache.triton import manager
from support.known_kernels import key_of, launch, load_single

KERNELS, HOT = 30, 5
KEYS = [key_of(f"soak {number}") for number in range(KERNELS)]
SINGLE = key_of("soak single")
HANG_S = 100.0
"".encode("ascii")  # the interpreter may lie where no other user can read it


def _launches(seed: str, stop: str, seconds: str, tally: str) -> None:
    """Launch at random, on either device; each time as a new process would with one chance in ten."""
    end = time.monotonic() + float(seconds)
    draw = random.Random(seed)
    fd = os.open(tally, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    root = os.environ["GPUCACHE_DIR"]
    while time.monotonic() < end and not os.path.exists(stop):
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        if draw.random() < 0.1:
            manager._locations.clear()
        os.environ["TRITON_CACHE_DIR"] = f"{root}/triton/{draw.randrange(2)}"
        # A few kernels are hot, for all alike; the others idle for so long that they may be removed.
        first = int(time.time()) * (HOT - 1)
        key = KEYS[(first + draw.randrange(HOT)) % KERNELS]
        how = load_single(SINGLE, "launcher.so") if draw.random() < 0.05 else launch(key)
        os.write(fd, how[:1].encode())


def launch_all() -> int:
    """Launch everything on both devices; how many kernels were compiled."""
    compiled = 0
    for device in "01":
        os.environ["TRITON_CACHE_DIR"] = f"{os.environ['GPUCACHE_DIR']}/triton/{device}"
        compiled += sum(launch(key) == "compiled" for key in KEYS)
        compiled += load_single(SINGLE, "launcher.so") == "compiled"
    return compiled


def main() -> None:
    """Run what the arguments name."""
    what, *words = sys.argv[1:]
    if what == "launches":
        _launches(*words)
    elif what == "as":
        uid = int(words[0])
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        sys.stdout.write(f"{launch_all()}\n")
    elif what == "all":
        sys.stdout.write(f"{launch_all()}\n")
    else:
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        sys.exit(command_line.main(words))
