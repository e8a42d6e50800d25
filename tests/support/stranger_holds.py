"""A stranger who holds a lock on all that he can open."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from support.containers import container_environ
from support.strangers import MALLORY, Machine, planting

_HOLD = """
import resource
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held = []
# The two with files of the root's first: a machine may have more files in the others than a process may open.
paths = [path for place in ("/scratch", "/dev/shm", "/tmp", "/var/tmp") for path in (P(place), *P(place).rglob("*"))]
for path in paths[: most - 100]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        continue
    held.append(fd)
print(len(held), flush=True)
sys.stdin.read()
"""


@contextmanager
def holding(machine: Machine) -> Iterator[int]:
    """Hold an exclusive lock on each file and directory of a machine that Mallory may read; how many they are."""
    words = machine.words(MALLORY, 'exec python -c "$CODE"')
    env = container_environ({"CODE": planting(_HOLD)})
    with subprocess.Popen(
        words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()
