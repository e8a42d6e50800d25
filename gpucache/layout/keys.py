"""What keys look like on disk, and walks that find the directories which have keys.

The patterns, `is_key_of` and `view_key` are pure; `device_directories`, `shards` and `unlinked` look at the disk.
"""

from __future__ import annotations

import base64
import os
import re

from gpucache.layout.paths import ours, triton_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.layout.paths import Part

KEY = re.compile(r"[0-9a-f]{64}|[A-Z2-7]{52}|[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
"""A key of Triton's, a SHA-256: hexadecimal in 3.0 and 3.1, base64 in 3.2 (its last letter holds but four bits), base32
since (`triton/runtime/cache.py`)."""
_SINGLE = re.compile(r"-[0-9a-f]{16}")
STORE_KEY = re.compile(rf"(?:{KEY.pattern})(?:{_SINGLE.pattern})?")
"""A key in the store; that of a file that stands for itself says what else must be equal."""


# The digits of base 32 as `base64.b32encode` writes them, and as `int` reads them.
_DIGITS = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789abcdefghijklmnopqrstuv")


def is_key_of(key: str, digest: str) -> bool:
    """Whether a key may be that of a kernel whose metadata have this hash; True where either does not look like one."""
    if not KEY.fullmatch(key) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        return True
    if len(key) == 64:
        return key == digest
    if len(key) == 52:  # 260 bits: the last four are none of the hash
        return int(key.translate(_DIGITS), 32) == int(digest, 16) << 4
    return key == base64.urlsafe_b64encode(bytes.fromhex(digest)).decode().rstrip("=")


def view_key(store_key: str) -> str:
    """The key under which device directories have a stored entry."""
    if KEY.fullmatch(store_key):
        return store_key
    key, separator, rest = store_key.rpartition("-")
    return key if _SINGLE.fullmatch(separator + rest) else store_key


# ---- walks


def device_directories(root: str) -> list[tuple[str, str]]:
    """Name and path of each directory below a root that Triton caches in; links are left out.

    Those are ``triton/<name>``, and the root (named ``.``) or its ``triton`` where they have keys directly below, as
    Triton's default directory and torch's `fresh_cache` do. One that is mounted under two names is listed once.
    """
    shared = triton_directory(root)
    found = []
    for name, path in ((".", root), ("triton", shared)):
        if any(KEY.fullmatch(inner) for inner in _inner(path)):
            found.append((name, path))
    for name in sorted(_inner(shared)):
        if not KEY.fullmatch(name):
            found.append((name, f"{shared}/{name}"))
    first_of: dict[object, tuple[str, str]] = {}
    for name, path in found:
        first_of.setdefault(_identity(path), (name, path))
    return list(first_of.values())


def _identity(path: str) -> object:
    """What a directory has in common with itself under another name."""
    try:
        found = os.stat(path)
    except OSError:
        return path
    return found.st_dev, found.st_ino


def shards(root: str) -> list[str]:
    """The paths of the store's parts, each of which has the keys that begin alike; links are left out."""
    store = unlinked(root, "store")
    return sorted(f"{store}/{name}" for name in _inner(store)) if store is not None else []


def unlinked(root: str, part: Part | None = None) -> str | None:
    """As `ours`; None where a step of the path is a symbolic link, which may lead out of the root."""
    path = ours(root, part)
    steps = [f"{root}/gpucache", ours(root), path]
    return None if any(os.path.islink(step) for step in steps) else path


def _inner(path: str) -> list[str]:
    """The names of the directories in a directory, less those in which torch unpacks; none behind a link."""
    if os.path.islink(path):
        return []
    try:
        with os.scandir(path) as items:
            return [
                item.name
                for item in items
                if item.is_dir(follow_symlinks=False) and not item.name.startswith("tmp.")
            ]
    except OSError:
        return []
