"""What packs have brought into a store, and how much of that was used since: a file for each pull, in ``pulled/``.

A pull that brings what nobody asks for costs time at each start of a container, and nothing else would tell. An entry
is published as one that was last used when `use_of_pull` says, and each use stamps it later than that. So to know what
was used, one time of each pulled entry is compared, and no hit pays for it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from gpucache.disk.door import read_limited
from gpucache.disk.files import make_below_root, write_whole
from gpucache.disk.node import node_id
from gpucache.disk.reading import listed
from gpucache.kernels.group import are_plain
from gpucache.layout import paths
from gpucache.store.manifest import MANIFEST, entry_path
from gpucache.store.recency import STAMP_S

MOST_PULLS = 32
"""So many pulls are known; the oldest is forgotten."""
_SUFFIX = ".json"
_MOST_BYTES = 16 * 2**20


class PulledEntry(NamedTuple):
    """What is known of an entry that a pull has made."""

    target: str | None
    """Backend and architecture, such as ``cuda:90``; None where the entry is for any, or nobody knows."""
    triton_version: str | None


class Pulled(NamedTuple):
    """What one pull has made in a store."""

    name: str
    """The pack's."""
    number: int
    used: float
    """When its entries were last used, as they were published: seconds since the epoch, as `use_of_pull` says."""
    entries: Mapping[str, PulledEntry]
    """By the key in the store."""


class PulledUse(NamedTuple):
    """How much was used of what was pulled; each entry counts once, however many pulls have made it."""

    entries: int
    used: int
    """Of those that are there still: how many were used since they were pulled."""
    gone: int
    """How many are there no more, so that nobody knows."""


def use_of_pull(now: float) -> float:
    """When an entry that is pulled at ``now`` is to count as last used, in seconds since the epoch.

    So long ago that its first use is stamped, however soon that comes.
    """
    return round(now - STAMP_S - 1, 3)


def note_pulled(root: str, pulled: Pulled) -> None:
    """Note what a pull has made, and forget the oldest pulls. Any number of processes may note at once.

    Raises:
        OSError: the disk refused.
    """
    if not pulled.entries:
        return
    directory = paths.ours(root, "pulled")
    make_below_root(directory)
    name = f"{time.time_ns():020x}.{node_id()}.{os.getpid()}{_SUFFIX}"
    said = {"version": 1, **pulled._asdict()}
    data = json.dumps(said, separators=(",", ":")).encode()
    write_whole(f"{directory}/{name}", data, paths.ours(root, "tmp"))
    for path in _files(root)[:-MOST_PULLS]:
        with suppress(OSError):
            os.unlink(path)


def pulls(root: str) -> Iterator[Pulled]:
    """What was noted of the last pulls, oldest first; what cannot be read is passed over."""
    for path in _files(root):
        with suppress(OSError):
            found = _parsed(read_limited(path, _MOST_BYTES))
            if found is not None:
                yield found


def use_of_pulled(root: str) -> PulledUse:
    """Count what was used of what the last `MOST_PULLS` pulls have made. Reads no entry, and changes nothing.

    Limits: stock Triton, which stamps nothing, uses what counts as unused; where a mount keeps no times that are set,
    everything counts as used.
    """
    made: dict[str, float] = {}
    for pulled in pulls(root):
        made |= dict.fromkeys(pulled.entries, pulled.used)
    used = gone = 0
    for key, published in made.items():
        try:
            stamp = os.lstat(f"{entry_path(root, key)}/{MANIFEST}").st_mtime
        except OSError:
            gone += 1
            continue
        # To a millisecond: what is rounded, is rounded down.
        used += stamp > published + 0.001
    return PulledUse(len(made), used, gone)


def _files(root: str) -> list[str]:
    """The files of pulls by their paths, oldest first."""
    directory = paths.ours(root, "pulled")
    if os.path.islink(directory):
        return []
    return sorted(path for path in listed(directory) if path.endswith(_SUFFIX))


def _parsed(data: bytes) -> Pulled | None:
    """What a file says; None where that is not what `note_pulled` has written."""
    try:
        said = json.loads(data)
        if said["version"] != 1:
            return None
        entries = {}
        for key, facts in said["entries"].items():
            if are_plain([key]):
                entries[key] = PulledEntry(*map(_text_or_none, facts))
        name, number, used = said["name"], said["number"], said["used"]
        if type(name) is not str or type(number) is not int or type(used) is not float:
            return None
        return Pulled(name, number, used, entries)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _text_or_none(value: Any) -> str | None:
    if value is None or (type(value) is str and value.isprintable()):
        return value
    raise TypeError
