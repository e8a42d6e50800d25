"""What the names on disk look like: keys, and the directories that Triton caches in."""

from __future__ import annotations

import base64
import os
import re
from itertools import accumulate

KEY = re.compile(r"[0-9a-f]{64}|[A-Z2-7]{52}|[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
"""A key of Triton's, a SHA-256: hexadecimal in 3.0 and 3.1, base64 in 3.2 (its last letter holds but four bits), base32
since (`triton/runtime/cache.py`)."""
_SINGLE = re.compile(r"-[0-9a-f]{16}")
STORE_KEY = re.compile(rf"(?:{KEY.pattern})(?:{_SINGLE.pattern})?")
"""A key in the store; that of a file that stands for itself says what else must be equal."""


def is_key_of(key: str, digest: str) -> bool:
    """Whether a key may be that of a kernel whose metadata have this hash; also where one of them is none."""
    if not KEY.fullmatch(key) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        return True
    data = bytes.fromhex(digest)
    forms = (
        digest,
        base64.urlsafe_b64encode(data).decode().rstrip("="),
        base64.b32encode(data).decode().rstrip("="),
    )
    return key in forms


def view_key(store_key: str) -> str:
    """The key under which device directories have a stored entry."""
    return (
        store_key[:-17]
        if not KEY.fullmatch(store_key) and _SINGLE.fullmatch(store_key[-17:])
        else store_key
    )


def device_directories(root: str) -> list[tuple[str, str]]:
    """Name and path of each directory below a root that Triton caches in; links are left out.

    Those are ``triton/<name>``, and the root (named ``.``) or its ``triton`` where they have keys directly below, as
    Triton's default directory and torch's `fresh_cache` do.
    """
    shared = f"{root}/triton"
    found = [
        (name, path)
        for name, path in ((".", root), ("triton", shared))
        if any(map(KEY.fullmatch, _inner(path)))
    ]
    found += sorted(
        (name, f"{shared}/{name}") for name in _inner(shared) if not KEY.fullmatch(name)
    )
    return list({_identity(path): (name, path) for name, path in reversed(found)}.values())[::-1]


def _identity(path: str) -> object:
    """A directory that is mounted under two names is one."""
    try:
        found = os.stat(path)
    except OSError:
        return path
    return found.st_dev, found.st_ino


def shards(root: str) -> list[str]:
    """The paths of the store's parts; links are left out."""
    store = unlinked(root, "store")
    return sorted(f"{store}/{name}" for name in _inner(store)) if store is not None else []


def unlinked(root: str, *parts: str) -> str | None:
    """A path of ours below a root; None where a link leads to it, out of the root perhaps."""
    _, *steps = accumulate((root, "gpucache", "v1", *parts), "{}/{}".format)
    return None if any(map(os.path.islink, steps)) else steps[-1]


def _inner(path: str) -> list[str]:
    if os.path.islink(path):
        return []
    try:
        with os.scandir(path) as items:
            return [
                item.name
                for item in items
                if item.is_dir(follow_symlinks=False) and item.name[:4] != "tmp."
            ]
    except OSError:
        return []
