"""Remotes with single entries, and the couriers that tests have started."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from gpucache.archive.collect import collect
from gpucache.archive.signature import SigningKey, make_key
from gpucache.archive.statement import ArchivedEntry, Statement
from gpucache.archive.write import write_pack
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.processes import is_running
from gpucache.remote.object_names import entry_object
from gpucache.store.manifest import Facts
from support.packs import archived
from support.processes import PATIENCE_S

VERSION = "3.9.0"


class Entries:
    """What a remote has: single entries in a directory, as bytes by the names of objects."""

    def __init__(self, directory: Path, signing: SigningKey | None) -> None:
        self.directory = directory
        self.signing = signing
        directory.mkdir(parents=True, exist_ok=True)

    @classmethod
    def signed(cls, tmp_path: Path) -> Entries:
        return cls(tmp_path / "remote", make_key("ci", str(tmp_path / "ci.key")))

    @property
    def url(self) -> str:
        return f"file://{self.directory}"

    @property
    def environ(self) -> dict[str, str]:
        """What a reader has in its environment."""
        trust = "" if self.signing is None else self.signing.public_text
        return {"GPUCACHE_REMOTE": self.url, "GPUCACHE_TRUST_KEYS": trust}

    def path(self, key: str, version: str = VERSION) -> Path:
        return self.directory / entry_object(version, key)

    def put(self, key: str, data: bytes, version: str = VERSION) -> None:
        path = self.path(key, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def add(self, key: str, files: Mapping[str, bytes], **changed: object) -> None:
        """Put a kernel's entry; the first of its files is the metadata."""
        self.put(key, self.packed(key, files, **changed))

    def packed(
        self,
        key: str,
        files: Mapping[str, bytes],
        version: str = VERSION,
        signing: SigningKey | None = None,
    ) -> bytes:
        group = next(iter(files))
        facts = Facts(group.removesuffix(".json"), group, "cuda:90", version, 0.25)
        listed = tuple(archived(name, files[name]) for name in sorted(files))
        entry = ArchivedEntry(key, "kernel", facts, listed)
        out = io.BytesIO()
        write_pack(
            out,
            Statement("", 0, (entry,)),
            signing or self.signing,
            lambda _, file: io.BytesIO(files[file.name]),
        )
        return out.getvalue()

    def take_from(self, root: Path) -> list[str]:
        """Put every kernel of a root's store; their keys."""
        keys = []
        for path in sorted(root.glob("gpucache/v1/store/*/*")):
            found = collect(str(path), None)
            if found.entry.kind != "kernel":
                continue
            out = io.BytesIO()
            statement = Statement("", 0, (found.entry,))
            write_pack(out, statement, self.signing, lambda _, file, of=found: of.opened(file))
            self.put(found.entry.key, out.getvalue(), found.entry.facts.triton_version or "")
            keys.append(found.entry.key)
        return keys


def couriers(root: Path) -> list[int]:
    """The numbers of the couriers of a root that run."""
    return [pid for pid, start in _couriers(root) if is_running((pid, start))]


def _couriers(root: Path) -> Iterator[tuple[int, int]]:
    import json

    directory = Path(LockPlace(str(root)).found())
    for path in directory.glob("remote-*.courier"):
        with suppress(OSError, ValueError, KeyError):
            said = json.loads(path.read_text())
            yield said["pid"], said["start"]


def end_couriers(root: Path) -> None:
    """Kill the couriers of a root, and wait until they are gone."""
    end = time.monotonic() + PATIENCE_S
    while running := couriers(root):
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < end
        time.sleep(0.01)
