"""Files of settings: a system, a user and a root that have some, for this process and for real ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from support.processes import PATIENCE_S

_LONG_AGO_S = 3600.0
_BIND = """
mount --bind "$1/etc" /etc && mount --bind "$1/shm" /dev/shm && shift && exec "$@"
"""
"""Puts another ``/etc`` and ``/dev/shm`` in the place of the real ones, in a mount namespace of the process."""


def written(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    """Write a file that has not changed for an hour, as most files of settings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    then = time.time() - _LONG_AGO_S
    os.utime(path, (then, then))
    return path


def user_file(home: Path) -> Path:
    return home / ".config" / "gpucache" / "gpucache.toml"


def forms(home: Path) -> Path:
    return home / ".cache" / "gpucache"


class Machine:
    """A machine of which a test decides ``/etc`` and the home; real processes run on it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.etc = base / "etc"
        self.home = base / "home"
        self.root = base / "root"
        self.home.mkdir(mode=0o700)
        (base / "shm").mkdir()
        (base / "shm").chmod(0o1777)
        shutil.copytree("/etc", self.etc, symlinks=True, ignore_dangling_symlinks=True)

    def system(self, text: str, mode: int = 0o644) -> Path:
        return written(self.etc / "gpucache" / "gpucache.toml", text, mode)

    def user(self, text: str, mode: int = 0o600) -> Path:
        return written(user_file(self.home), text, mode)

    def of_root(self, text: str, mode: int = 0o600) -> Path:
        return written(self.root / "gpucache.toml", text, mode)

    def environ(self, **more: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if name != "GPUCACHE_DIR"}
        return {**clean, "HOME": str(self.home), "GPUCACHE_FAKE_DEVICES": "2", **more}

    def wrapped(self, *words: object) -> list[str]:
        """The command line that runs these words on this machine."""
        outer = ["unshare", "--mount", "sh", "-c", _BIND, "sh", str(self.base)]
        return [*outer, *map(str, words)]

    def run(
        self, *words: object, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.wrapped(*words),
            env=self.environ(**(env or {})),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            start_new_session=True,
            check=False,
        )

    def gpucache(
        self, *words: object, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "gpucache", *words, env=env)
