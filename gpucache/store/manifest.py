"""The manifest ``__entry__.json`` of an entry: what was published, file by file, and what is known of the kernel."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpucache.disk.files import write_new
from gpucache.layout import paths

MANIFEST = "__entry__.json"


CONDEMNED = "__entry__.json.removed"
"""What a manifest is called from the moment on when its directory is to go: nobody takes the entry for one any more."""


Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an entry beside its files."""

    kernel: str
    group: str | None
    """The name of the metadata file that stands for the group; None for a single file."""
    target: str | None = None
    triton_version: str | None = None
    compile_s: float | None = None
    tag: str = ""
    """What else must be equal for a file to be shared: a Python ABI, a kind of silicon."""


_FIELDS = Facts.__dataclass_fields__.keys()


# a FIFO must not hang anyone
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


_decode = json.JSONDecoder().raw_decode  # faster than json.loads, and on the path of every hit


def facts_of(manifest: Manifest) -> Facts:
    """What a manifest says of an entry beside its files."""
    return Facts(**{name: manifest[name] for name in _FIELDS})


def entry_path(root: str, key: str) -> str:
    """The directory of a key's entry in the store."""
    return paths.ours(root, "store", key[:2], key)


def single_key(key: str, filename: str, tag: str) -> str:
    """The key in the store of a file that stands for itself: Triton's, and what else must be equal."""
    digest = hashlib.sha256(f"{filename}\0{tag}".encode()).hexdigest()
    return f"{key}-{digest[:16]}"


def read_manifest(directory: str, name: str = MANIFEST) -> tuple[Manifest, float] | None:
    """An entry's manifest and when it was last used (seconds since the epoch); None without a sound one."""
    try:
        fd = os.open(f"{directory}/{name}", _READ)
    except OSError as error:
        raise_unless_damage(error)
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return None
        manifest, _ = _decode(os.read(fd, found.st_size).decode())
        whole = (
            manifest["version"] == 1
            and type(manifest["files"]) is dict
            and manifest.keys() >= _FIELDS
        )
        return (manifest, found.st_mtime) if whole and manifest["files"] else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    finally:
        os.close(fd)


def raise_unless_damage(error: OSError) -> None:
    """What is not there, or not a file, is damage; a disk that does not answer (EIO, ESTALE, EMFILE) is none."""
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO):
        raise error


def unchanged(directory: str, manifest: Manifest) -> bool:
    """Whether every file is there with the size and the modification time it was published with."""
    try:
        for name, (size, mtime_ns, _) in manifest["files"].items():
            found = os.stat(f"{directory}/{name}")
            if found.st_size != size or found.st_mtime_ns != mtime_ns:
                return False
    except OSError as error:
        raise_unless_damage(error)
        return False
    except (ValueError, TypeError):
        return False
    return True


def intact(directory: str, manifest: Manifest) -> bool:
    """Whether every file's content is what was published."""
    try:
        return all(
            digest_of(f"{directory}/{name}") == sha256
            for name, (_, _, sha256) in manifest["files"].items()
        )
    except OSError as error:
        raise_unless_damage(error)
        return False
    except (ValueError, TypeError):
        return False


def digest_of(path: str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def write_manifest(
    directory: str, files: Mapping[str, tuple[int, int, str]], facts: Manifest
) -> None:
    """``facts`` are those of `Facts`, or of the manifest that is written anew."""
    known = {name: facts[name] for name in _FIELDS}
    origin = facts.get("origin") or paths.host_name()
    manifest = {"version": 1, "files": files, **known, "origin": origin}
    write_new(f"{directory}/{MANIFEST}", json.dumps(manifest, separators=(",", ":")).encode())
