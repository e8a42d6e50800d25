"""When the record of a host's devices was last used, told by the time of its file; and which records nobody uses.

A pod has a host name of its own each time, so that a root on a cluster gets a record with each, for ever. A record is
used by `provision` and `run`, by a worker's `DeviceCacheRegistry.load`, and by the first launch of a process. What is
gone with a record is the mapping of UUIDs to names: a device that comes back has the directory of NVML's number again,
and finds its views there or makes them anew of the store, where nothing is lost. Device directories stay.

Limit: of a record that comes into use again in the instant between the last look and its removal, the removal is not
undone; the next `provision` or `run` of its host writes it again.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress

from gpucache.layout import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_DAY_S = 86400.0
UNUSED_S = 30 * _DAY_S
"""A record of another host that was not used for so long is removed by `prune`, by `clean` and by `provision`."""
TAKEN_OVER_S = 7 * _DAY_S
"""Nor is one kept for longer than so whose devices are all on a newer record: they are in another pod now."""


def stamp_use(path: str) -> None:
    """Note that a record is used, once a day; where that cannot be noted, the record may go in time. Never raises."""
    with suppress(OSError):
        found = os.stat(path, follow_symlinks=False)
        if time.time() - found.st_mtime > _DAY_S:
            os.utime(path, follow_symlinks=False)


def unused_records(root: str, unused_s: float = UNUSED_S) -> Iterator[str]:
    """The paths of other hosts' records that were not used for so long."""
    own = paths.record_path(root, paths.host_name())
    directory = os.path.dirname(own)
    latest = time.time() - unused_s
    if os.path.islink(directory):
        return
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return
    for name in names:
        path = f"{directory}/{name}"
        if path == own or not name.endswith(paths.RECORD_SUFFIX):
            continue
        with suppress(OSError):
            found = os.lstat(path)
            if stat.S_ISREG(found.st_mode) and found.st_mtime < latest:
                yield path
