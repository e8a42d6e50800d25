"""What other users read of a *read* root: its owner learns of their uses by access times, as of stock Triton's.

A reader copies an entry into his own store (`store.fallback`), and may write nothing here. Linux renews the access time
of a file that is read where that is older than a day, or than the last change of the file (mount option ``relatime``,
which is the default), so that a use may be up to a day younger than its file says. On a mount with ``noatime`` no use
is seen, which `gpucache doctor` tells. A copy that is used later is used in the reader's own root, and not here.
"""

from __future__ import annotations

import os
from contextlib import suppress

from gpucache.disk.sharing import READ, modes_in
from gpucache.layout import paths
from gpucache.store.manifest import CONDEMNED, MANIFEST, RECIPE

_OWNERS = (MANIFEST, CONDEMNED, RECIPE)
"""What commands read of an entry that nobody uses."""


def is_read_by_others(root: str) -> bool:
    """Whether others may read what is published in a root's store. Never raises."""
    try:
        return modes_in(paths.ours(root, "store")) == READ
    except OSError:
        return False


def last_read_ns(entry: str) -> int:
    """When a file of a stored entry was read last, in nanoseconds since the epoch; 0 where it is gone.

    Its manifest does not count, which each listing of the root reads, nor its recipe.
    """
    newest_ns = 0
    with suppress(OSError), os.scandir(entry) as files:
        for file in files:
            if file.name not in _OWNERS:
                newest_ns = max(newest_ns, file.stat(follow_symlinks=False).st_atime_ns)
    return newest_ns
