"""What the key of a cached kernel looks like on disk, and walks that find the directories which hold keys.

The patterns, and the functions before the walks, are pure; `device_directories`, `shards` and `unlinked` look at the
disk.
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
"""A key in the store. That of a file which is stored without a group ends in a digest of its name and Triton's tag."""
ASIDE = "tmp.gpucache-"
"""How the name of a directory begins that is not yet, or no longer, an entry or view, beside entries and views."""


# The digits of base 32 as `base64.b32encode` writes them, and as `int` reads them.
_DIGITS = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789abcdefghijklmnopqrstuv")


def is_key_of(key: str, digest: str) -> bool:
    """Whether a key may be that of a kernel whose metadata have this hash; True where either does not look like one."""
    hexadecimal = re.fullmatch(r"[0-9a-f]{64}", digest)
    if not KEY.fullmatch(key) or not hexadecimal:
        return True
    if len(key) == 64:
        return key == digest
    if len(key) == 52:  # 260 bits: the last four are none of the hash
        number = int(key.translate(_DIGITS), 32)
        return number == int(digest, 16) << 4
    encoded = base64.urlsafe_b64encode(bytes.fromhex(digest))
    return key == encoded.decode().rstrip("=")


def versions_of(key: str) -> tuple[str, ...]:
    """The versions of Triton whose keys look like this one, where that tells which; none for one of 3.3 or later.

    Before 3.3 the metadata name no version (`triton/compiler/compiler.py` of 3.2.0), and each kind of key is of few.

    >>> versions_of("A" * 43), versions_of("0" * 64), versions_of("A" * 52)
    (('3.2.0',), ('3.0.0', '3.1.0'), ())
    """
    digits = len(view_key(key))
    if digits == 43:
        return ("3.2.0",)
    return ("3.0.0", "3.1.0") if digits == 64 else ()


def view_key(store_key: str) -> str:
    """The key under which device directories have the entry that the store has under this key."""
    if KEY.fullmatch(store_key):
        return store_key
    key, separator, rest = store_key.rpartition("-")
    return key if _SINGLE.fullmatch(separator + rest) else store_key


# ---- walks


def device_directories(root: str) -> list[tuple[str, str]]:
    """Name and path of each directory below a root that Triton caches in; links are left out.

    Those are ``triton/<name>``, and the root (named ``.``) or its ``triton`` where they have keys directly below, as
    Triton's default directory and torch's `fresh_cache` do. A directory that is mounted under two names is listed once.
    """
    shared = triton_directory(root)
    found = []
    if has_keys(root):
        found.append((".", root))
    if has_keys(shared):
        found.append(("triton", shared))
    for name in sorted(directories_in(shared)):
        if not KEY.fullmatch(name):
            found.append((name, f"{shared}/{name}"))
    different = []
    seen: set[object] = set()
    for name, path in found:
        identity = _identity(path)
        if identity not in seen:
            seen.add(identity)
            different.append((name, path))
    return different


def has_keys(path: str) -> bool:
    """Whether a directory has directories of keys directly below."""
    names = directories_in(path)
    return any(KEY.fullmatch(name) for name in names)


def _identity(path: str) -> object:
    """What is equal for all paths of one directory: its device and inode; the path where they cannot be read."""
    try:
        found = os.stat(path)
    except OSError:
        return path
    return found.st_dev, found.st_ino


def shards(root: str) -> list[str]:
    """The paths of the store's directories, each of which holds the keys that begin alike; links are left out."""
    store = unlinked(root, "store")
    if store is None:
        return []
    return sorted(f"{store}/{name}" for name in directories_in(store))


def unlinked(root: str, part: Part | None = None) -> str | None:
    """The path that `ours` names; None where a step of it is a symbolic link, which may lead out of the root."""
    path = ours(root, part)
    steps = [f"{root}/gpucache", ours(root), path]
    if any(map(os.path.islink, steps)):
        return None
    return path


def directories_in(path: str) -> list[str]:
    """The names of the directories in a directory, less those in which torch unpacks; none where it is a link."""
    if os.path.islink(path):
        return []
    try:
        with os.scandir(path) as items:
            names = [item.name for item in items if item.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [name for name in names if not name.startswith("tmp.")]
