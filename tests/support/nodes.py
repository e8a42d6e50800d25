"""Another node, for tests: processes with another boot id, host name and /dev/shm, that see a root by another mount."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from gpucache.disk.node import BOOT_ID

_BECOME = f"""
set -e
mount --bind "$1" {BOOT_ID}
hostname "$2"
mount --bind "$3" "$4"
mount -t tmpfs none /dev/shm
shift 4
exec "$@"
"""


class Node:
    """A node named ``name`` that sees the directory ``shown``, a mount of its own, at the path ``at``."""

    def __init__(self, name: str, boot_id: Path, shown: Path, at: Path) -> None:
        self._become = ("sh", "-c", _BECOME, "sh", boot_id, name, shown, at)

    def start(self, *words: object, env: Mapping[str, str]) -> subprocess.Popen[str]:
        """A Python with these words, which runs on the node."""
        command = ("unshare", "--mount", "--uts", *self._become, sys.executable, *words)
        return subprocess.Popen(
            [str(word) for word in command],
            env=dict(env),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
