"""Remotes with packs of small kernels, whose launches are hits where the pack was pulled."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gpucache.archive.signature import SigningKey, make_key
from gpucache.archive.statement import ArchivedEntry, Statement
from gpucache.archive.write import write_pack
from gpucache.disk.lock_place import LockPlace
from gpucache.remote.pull_files import PULL
from gpucache.store.manifest import Facts
from support.launches import kernel
from support.packs import archived
from support.processes import PATIENCE_S


class Packs:
    """A directory with packs, as a remote: each of kernels that `support.launches.kernel` makes of seeds."""

    def __init__(self, directory: Path, signing: SigningKey | None) -> None:
        self.directory = directory
        self.signing = signing
        (directory / "v1/packs").mkdir(parents=True, exist_ok=True)

    @classmethod
    def signed(cls, tmp_path: Path) -> Packs:
        return cls(tmp_path / "remote", make_key("ci", str(tmp_path / "ci.key")))

    @property
    def url(self) -> str:
        return f"file://{self.directory}"

    @property
    def environ(self) -> dict[str, str]:
        """What a reader has in its environment."""
        trust = "" if self.signing is None else self.signing.public_text
        return {"GPUCACHE_REMOTE": self.url, "GPUCACHE_TRUST_KEYS": trust}

    def path(self, name: str) -> Path:
        return self.directory / "v1/packs" / name

    def put(self, name: str, seeds: Sequence[str], number: int = 1, served_as: str = "") -> Path:
        """Put a pack of these kernels, in this order; under its own name, or another."""
        path = self.path(served_as or name)
        path.write_bytes(self.packed(name, seeds, number))
        return path

    def packed(self, name: str, seeds: Sequence[str], number: int = 1) -> bytes:
        entries, content = [], {}
        for seed in seeds:
            key, files = kernel(seed)
            facts = Facts("add", "add.json", "cuda:90", "3.9.0", 0.25)
            listed = tuple(archived(each, files[each]) for each in sorted(files))
            entries.append(ArchivedEntry(key, "kernel", facts, listed))
            for each, data in files.items():
                content[key, each] = data
        out = io.BytesIO()
        write_pack(
            out,
            Statement(name, number, tuple(entries)),
            self.signing,
            lambda entry, file: io.BytesIO(content[entry.key, file.name]),
        )
        return out.getvalue()


def pull_files(root: Path) -> list[Path]:
    """The files of pulls into a root, over or not."""
    return sorted(Path(LockPlace(str(root)).found()).glob(f"{PULL}*"))


def until_pulled(root: Path) -> None:
    """Wait until no pull into a root is in progress."""
    from gpucache.disk.locks import is_free

    end = time.monotonic() + PATIENCE_S
    while not all(is_free(str(path)) or not path.exists() for path in pull_files(root)):
        assert time.monotonic() < end
        time.sleep(0.01)


def end_pulls(root: Path) -> None:
    """Kill the processes that pull into a root, as their files name them, and wait until they are gone."""
    import json

    for path in pull_files(root):
        with suppress(OSError, ValueError, KeyError):
            said = json.loads(path.read_bytes()[:4096])
            if said["pid"] != os.getpid():
                os.kill(said["pid"], signal.SIGKILL)
    until_pulled(root)
