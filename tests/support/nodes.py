"""Another node, for tests: processes with another boot id, host name and /dev/shm, that see a root by another mount."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

from gpucache.disk.node import BOOT_ID
from support.fuse import mounted, same_directory

NAMES = ("one", "two")
BOOT_IDS = ("0badcafe-0000-4000-8000-000000000001", "0badbeef-0000-4000-8000-000000000002")

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
        become = (
            "unshare",
            "--mount",
            "--uts",
            "sh",
            "-c",
            _BECOME,
            "sh",
            boot_id,
            name,
            shown,
            at,
        )
        self.become = tuple(str(word) for word in become)
        """The words before a command that runs on the node, with all that it starts."""

    def start(self, *words: object, env: Mapping[str, str]) -> subprocess.Popen[str]:
        """A Python with these words, which runs on the node."""
        return subprocess.Popen(
            [*self.become, sys.executable, *(str(word) for word in words)],
            env=dict(env),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


class Pair(NamedTuple):
    """Two nodes, and the path at which both have one directory."""

    nodes: list[Node]
    at: Path


MOUNTS: dict[str, Callable[[Path, Path], AbstractContextManager[Path]]] = {
    "bindfs": same_directory,
    "object store": lambda shown, point: mounted(shown, point, BARE),
}
BARE = {"rename": "EPERM", "link": "ENOTSUP", "utime": "EPERM", "fsync": "EINVAL"}


@contextmanager
def two_nodes(
    tmp_path: Path, kind: str = "bindfs", boot_ids: Sequence[str] = BOOT_IDS
) -> Iterator[Pair]:
    """Show ``tmp_path/"shared"``, which is made, to two nodes at ``tmp_path/"at"``, each by a mount of its own."""
    mount = MOUNTS[kind]
    at = tmp_path / "at"
    at.mkdir()
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o700)
    with (
        mount(shared, tmp_path / "first") as first,
        mount(shared, tmp_path / "second") as second,
    ):
        nodes = []
        for name, boot_id, shown in zip(NAMES, boot_ids, (first, second), strict=True):
            file = tmp_path / f"boot-id-{name}"
            file.write_text(boot_id + "\n")
            nodes.append(Node(name, file, shown, at))
        yield Pair(nodes, at)
