"""Which other nodes use a root, by what they have left in it; what this host left before its last start does not count.

On a mount whose locks reach one node only, this alone tells that nodes share the root.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress

from gpucache.disk.capabilities import MOST_BYTES
from gpucache.disk.door import read_limited
from gpucache.disk.node import DAY_S, node_id
from gpucache.disk.reading import listed
from gpucache.disk.staging import PREFIXES
from gpucache.layout import paths
from gpucache.values import Value

_WEEK_S = 7 * DAY_S


class OtherNode(Value):
    """Another node that has used a root lately."""

    node: str
    """Its id, as `node_id` gives it there."""
    host: str | None
    """Its name; None where nothing tells."""


def other_nodes(root: str) -> tuple[OtherNode, ...]:
    """The other nodes that have provisioned the root in the last week, or have written to it in the last day.

    Sorted. Writes nothing, and passes over what cannot be read.
    """
    hosts: dict[str, str | None] = dict.fromkeys(_staging_nodes(root))
    hosts |= dict(_counting_nodes(root))
    hosts |= dict(_provisioned_nodes(root))
    others = []
    for node, host in sorted(hosts.items()):
        if node != node_id() and host != paths.host_name():
            others.append(OtherNode(node, host))
    return tuple(others)


def _provisioned_nodes(root: str) -> Iterator[tuple[str, str | None]]:
    for path in _changed_within(paths.ours(root, "mounts"), _WEEK_S):
        node, suffix = os.path.splitext(os.path.basename(path))
        if suffix != ".json":
            continue
        host = None
        with suppress(OSError, ValueError, RecursionError):
            said = json.loads(read_limited(path, MOST_BYTES))
            if isinstance(said, dict) and isinstance(said.get("host"), str):
                host = said["host"]
        yield node, host


def _counting_nodes(root: str) -> Iterator[tuple[str, str | None]]:
    """The node and host in the names of the counters' files: ``<node>.<host>.<pid>.<time>.counts``."""
    for path in _changed_within(paths.ours(root, "stats"), DAY_S):
        node, _, rest = os.path.basename(path).partition(".")
        host = rest.rsplit(".", 3)[0]
        if _is_node(node) and rest.endswith(".counts"):
            yield node, host


def _staging_nodes(root: str) -> Iterator[str]:
    for path in _changed_within(paths.ours(root, "tmp"), DAY_S):
        name = os.path.basename(path)
        for prefix in PREFIXES:
            node = name.removeprefix(prefix).partition(".")[0]
            if name.startswith(prefix) and _is_node(node):
                yield node


def _is_node(text: str) -> bool:
    """Whether a part of a name is a node's id."""
    try:
        return len(text) == 8 and int(text, 16) >= 0
    except ValueError:
        return False


def _changed_within(directory: str, age_s: float) -> Iterator[str]:
    """The paths of what is in a directory, and has changed so lately."""
    now = time.time()
    for path in listed(directory):
        with suppress(OSError):
            if now - os.lstat(path).st_mtime < age_s:
                yield path
