"""The records of other hosts in a root: beside one with real devices, a fake device would be out of place."""

from __future__ import annotations

import os

from gpucache.directories.record import parse_record
from gpucache.disk.door import RECORD_BYTES, read_limited
from gpucache.layout import paths

_SUFFIX = ".json"
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
        if name.endswith(_SUFFIX) and path != own:
            others.append(path)
    for path in others[:_MOST_READ]:
        try:
            record = parse_record(read_limited(path, RECORD_BYTES))
        except (OSError, ValueError):
            continue  # damaged, and no matter here
        if not record.fake:
            return record.host
    return None
