"""The records of other hosts in a root.

Beside one with real devices, a fake device would be out of place; and one of a host that is gone is removed.
"""

from __future__ import annotations

import os
from contextlib import suppress

from gpucache.directories.record import Record, parse_record
from gpucache.disk.door import RECORD_BYTES, read_limited
from gpucache.disk.record_use import TAKEN_OVER_S, UNUSED_S, unused_records
from gpucache.disk.within import Straight
from gpucache.layout import paths

_MOST_READ = 64
"""How many records are read in search of a real one: a cluster may have thousands, and all are alike."""


def host_with_gpus(root: str) -> str | None:
    """Another host than this one, whose record in the root has real devices; None where there is none."""
    own = paths.record_path(root, paths.host_name())
    directory = os.path.dirname(own)
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return None
    others = []
    for name in names:
        path = f"{directory}/{name}"
        if name.endswith(paths.RECORD_SUFFIX) and path != own:
            others.append(path)
    for path in others[:_MOST_READ]:
        try:
            record = parse_record(read_limited(path, RECORD_BYTES))
        except (OSError, ValueError):
            continue  # damaged, and no matter here
        if not record.fake:
            return record.host
    return None


def remove_records_of_the_gone(root: str, newest: Record) -> None:
    """Remove other hosts' records that nobody uses: `gpucache.disk.record_use` says which, and what goes with them.

    ``newest`` is the record that this host has got just now, in which devices of a former pod may be. Beside any
    process; where the disk refuses, a record stays.
    """
    root = os.path.realpath(root)
    gone = set(unused_records(root, UNUSED_S))
    former = [path for path in unused_records(root, TAKEN_OVER_S) if path not in gone]
    for path in former[:_MOST_READ]:
        if _is_taken_over(path, newest):
            gone.add(path)
    if not gone:
        return
    with Straight() as disk:  # nobody may lead the removal elsewhere
        for path in gone:
            with suppress(OSError):
                disk.unlink(path)


def _is_taken_over(path: str, newest: Record) -> bool:
    """Whether a record has real devices, and the newest has each of them."""
    try:
        record = parse_record(read_limited(path, RECORD_BYTES))
    except (OSError, ValueError):
        return False
    if record.fake or newest.fake:
        return False  # fake devices have one name everywhere
    return bool(record.names) and record.names.keys() <= newest.names.keys()
