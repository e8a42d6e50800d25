"""What the last `gpucache doctor` and `gpucache verify` of each host have found, by code, for `gpucache metrics`.

A diagnosis changes nothing: the commands write this, once they have told what was found. A file for each host and
command, of whom the 128 that were written last stay. Each is a memory and no proof: what cannot be read is not known.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from contextlib import suppress
from typing import Literal, NamedTuple

from gpucache.disk.door import HOLDER_BYTES, read_limited
from gpucache.disk.files import write_whole
from gpucache.errors import GpuCacheError
from gpucache.layout.keys import unlinked
from gpucache.layout.paths import ours
from gpucache.store.counter_files import host_label
from gpucache.store.counts import parsed_moment
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpucache.findings import Finding

Command = Literal["doctor", "verify"]
COMMANDS: tuple[Command, ...] = ("doctor", "verify")
_VERSION = 1
_SUFFIX = ".found"
_MOST_FILES = 128
_MOST_CODES = 64
_MOST_BYTES = 4 * HOLDER_BYTES
_MOST_COUNT = 10**9


class Code(NamedTuple):
    """What findings are counted by."""

    level: str
    code: str


class LastFindings(Value):
    """How many findings of each code a command had when it was last run on a host."""

    host: str
    command: Command
    at: float
    """When, in seconds since the epoch."""
    counts: dict[Code, int]


def note_findings(root: str, command: Command, findings: Iterable[Finding]) -> None:
    """Remember what a command has found now, on this host.

    Never raises for what the disk says, and makes no directory: a root in which nothing was counted stays as it is.
    """
    counts = Counter(Code(finding.level, finding.code) for finding in findings)
    rows = [(*code, number) for code, number in counts.most_common(_MOST_CODES)]
    said = {"version": _VERSION, "host": host_label(), "at": time.time(), "counts": rows}
    directory = unlinked(root, "stats")
    if directory is not None and os.path.isdir(directory):
        path = f"{directory}/{host_label()}.{command}{_SUFFIX}"
        with suppress(OSError, GpuCacheError):
            write_whole(path, json.dumps(said).encode(), ours(root, "tmp"))
            _drop_oldest(directory)


def last_findings(root: str) -> list[LastFindings]:
    """What was found last, once for each host and command. Never raises; what makes no sense is left out."""
    directory = unlinked(root, "stats")
    if directory is None:
        return []
    newest: dict[tuple[str, Command], LastFindings] = {}
    for name in _names(directory)[:_MOST_FILES]:
        one = _read(directory, name)
        if one is None:
            continue
        known = newest.setdefault((one.host, one.command), one)  # a copy of a file has another name
        if known.at < one.at:
            newest[one.host, one.command] = one
    return list(newest.values())


def _names(directory: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if name.endswith(_SUFFIX))
    except OSError:
        return []


def _read(directory: str, name: str) -> LastFindings | None:
    command = name.removesuffix(_SUFFIX).rpartition(".")[2]
    try:
        said = json.loads(read_limited(f"{directory}/{name}", _MOST_BYTES))
        counts = {}
        for level, code, number in said["counts"][:_MOST_CODES]:
            counts[Code(str(level), str(code))] = min(max(0, int(number)), _MOST_COUNT)
        at = parsed_moment(said["at"])
        host = str(said["host"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    for one in COMMANDS:
        if one == command:
            return LastFindings(host, one, at, counts)
    return None


def _drop_oldest(directory: str) -> None:
    """Remove the files that were written first where there are too many: each pod is a host."""
    names = _names(directory)
    if len(names) <= _MOST_FILES:
        return
    written = []
    for name in names:
        path = f"{directory}/{name}"
        with suppress(OSError):
            written.append((os.lstat(path).st_mtime_ns, path))
    written.sort()
    for _, path in written[:-_MOST_FILES]:
        with suppress(OSError):
            os.unlink(path)
