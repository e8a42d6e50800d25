"""A cache that real processes made once, to be copied by each test that begins with one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from support.ranks import PLUGIN, compile_kernels


@dataclass(frozen=True)
class Template:
    """A cache that real processes made, to be copied."""

    root: Path
    digests: Mapping[str, str]
    """Of each binary, by its number and architecture."""

    @property
    def digest(self) -> str:
        """Of its only binary."""
        (digest,) = self.digests.values()
        return digest

    def at(self, root: Path) -> Path:
        """The same cache, as if it had been made at another path."""
        subprocess.run(["cp", "-a", self.root, root], check=True)
        for group in root.rglob("__grp__*"):
            before = group.stat()
            group.write_bytes(group.read_bytes().replace(bytes(self.root), bytes(root)))
            os.utime(group, ns=(before.st_atime_ns, before.st_mtime_ns))
        return root


def made_by_a_rank(root: Path, count: int, plugin: bool = True) -> Template:
    """What a rank leaves that compiles so many kernels for sm_90, for the directory ``triton/0``."""
    env = {"GPUCACHE_DIR": str(root), "TRITON_CACHE_DIR": str(root / "triton/0")}
    return Template(
        root, compile_kernels({**env, **PLUGIN} if plugin else env, count, 90)["digests"]
    )
