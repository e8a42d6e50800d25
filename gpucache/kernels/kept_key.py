"""Triton's own key as it is kept in a root: a small file for each installation of Triton, as that was looked at.

The file's name is a digest of all that was looked at, and its text repeats that, so that nodes and images that have
their Triton at the same path do not overwrite each other's. Readers take no lock; a writer renames a whole file to its
place, and of several writers the last wins, all with the same content.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from hashlib import sha256

from gpucache.disk.door import DIRECTORY, KEPT_KEY_BYTES, read_limited
from gpucache.disk.files import write_whole
from gpucache.disk.record_use import stamp_use
from gpucache.kernels.triton_files import is_key
from gpucache.layout import paths
from gpucache.values import as_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gpucache.kernels.triton_files import Installation

_VERSION = 1
MOST = 32
"""So many are kept; of more, those that nobody has used for longest go."""
UNUSED_S = 30 * 86400.0
"""Nor is one kept that nobody has used for so long."""


def path_of(root: str, installation: Installation) -> str:
    """Where the key of an installation is kept."""
    text = json.dumps(_described(installation))
    name = sha256(text.encode()).hexdigest()[:32]
    return paths.ours(root, "tritons", f"{name}.json")


def kept(root: str, installation: Installation) -> str | None:
    """The key that is kept for just this installation; None where there is none. Never raises.

    Whoever asks has vetted the directory and the file: whoever can write there decides what this process takes for its
    Triton's kernels.
    """
    path = path_of(root, installation)
    try:
        said = json.loads(read_limited(path, KEPT_KEY_BYTES))
        key = said.pop("key")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if said != _described(installation) or not is_key(key, installation.triton):
        return None
    stamp_use(path)
    text: str = key
    return text


def keep(root: str, installation: Installation, key: str) -> None:
    """Keep the key of an installation, and forget the oldest of too many. Atomic for readers.

    Raises:
        ProvisionError: nothing can be written there.
    """
    said = {**_described(installation), "key": key}
    path = path_of(root, installation)
    write_whole(path, json.dumps(said).encode(), paths.ours(root, "tmp"))
    with suppress(OSError):
        _forget_old(os.path.dirname(path))


def _described(installation: Installation) -> dict[str, Any]:
    """An installation as JSON has it."""
    said = as_dict(installation)
    files = [list(file) for file in installation.files]
    return {"version": _VERSION, **said, "files": files}


def _forget_old(directory: str) -> None:
    """Remove what is too old or too much; nothing behind a link in the place of the directory."""
    here = os.open(directory, DIRECTORY)
    try:
        used = {}
        for name in os.listdir(here):
            with suppress(OSError):
                used[name] = os.stat(name, dir_fd=here, follow_symlinks=False).st_mtime
        newest_first = sorted(used, key=lambda name: used[name], reverse=True)
        latest = time.time() - UNUSED_S
        for number, name in enumerate(newest_first):
            if number >= MOST or used[name] < latest:
                with suppress(OSError):
                    os.unlink(name, dir_fd=here)
    finally:
        os.close(here)
