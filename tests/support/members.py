"""Members of a group: programs that run as users who are not root, wherever the Python of the tests lies."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import gpucache
from support.processes import PATIENCE_S

TREE = Path(gpucache.__file__).parents[1]
_START = """
set -e
stage=$1 umask=$2 count=$3
shift 3
mount -t tmpfs -o mode=755 none "$stage"
while [ $count -gt 0 ]; do
    mkdir -p "$stage/upper$count" "$stage/work$count"
    mount -t overlay -o "lowerdir=$1,upperdir=$stage/upper$count,workdir=$stage/work$count" overlay "$1"
    count=$((count - 1))
    shift
done
mount -t tmpfs -o mode=1777 none /dev/shm
umask "$umask"
exec setpriv "$@"
"""
"""In mounts of its own, a closed directory gets the mode of an empty layer above it: 0755."""


def run_as(
    uid: int,
    gid: int,
    command: Sequence[object],
    env: Mapping[str, str],
    stage: Path,
    umask: int = 0o022,
    timeout: float = PATIENCE_S,
) -> subprocess.CompletedProcess[str]:
    """Run a command as a user who is in a group, and wait for its end. ``stage`` is a directory for mounts.

    The user has no other groups and no rights of root's, and can read the Python of the tests, and this tree. Each
    command has a ``/dev/shm`` of its own, so that nothing of its markers is left in the real one.
    """
    stage.mkdir(exist_ok=True)
    temporary = stage.with_name("tmp")
    temporary.mkdir(exist_ok=True)
    temporary.chmod(0o1777)
    closed = _closed([sys.prefix, sys.base_prefix, *sys.path])
    who = ["--reuid", str(uid), "--regid", str(uid), "--groups", str(gid), "--inh-caps=-all"]
    start = ["unshare", "--mount", "sh", "-c", _START, "sh", str(stage), f"{umask:04o}"]
    start.append(str(len(closed)))
    return subprocess.run(
        [*start, *closed, *who, "--", *map(str, command)],
        env={
            "TMPDIR": str(temporary),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            **env,
        },
        text=True,
        capture_output=True,
        timeout=timeout,
        cwd="/",
    )


def _closed(paths: Sequence[str]) -> list[str]:
    """The directories on the way to these paths that other users may not walk through, outermost of each first."""
    found: dict[str, None] = {}
    for path in paths:
        for step in [*reversed(Path(path).parents), Path(path)]:
            is_closed = step.is_dir() and not step.stat().st_mode & stat.S_IXOTH
            if is_closed:
                found[str(step)] = None
    return list(found)
