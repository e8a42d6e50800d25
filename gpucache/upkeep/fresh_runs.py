"""Caches of single runs: ``gpucache/v1/fresh/<name>``, a root of its own for `gpucache run --fresh`, and its end.

Beside each lies ``<name>.json``: which processes of this node use the root, and which one, the keeper
(`gpucache.upkeep.fresh_keeper`), waits for their end and then removes it. All changes are made under one lock of the
outer root, so that a process that begins finds either a root that is still in use, or none. What is over is renamed
aside under the lock and removed behind it.

Where the keeper was killed too, whoever comes by removes what is over: of this node and pid namespace by the processes,
of another one or of another user, whose processes may be hidden from here, after a day without a sign of its keeper.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from contextlib import contextmanager, suppress

from gpucache.disk.door import HOLDER_BYTES
from gpucache.disk.files import make_below_root, write_new
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.locks import FRESH_LOCK, locked
from gpucache.disk.node import DAY_S, node_id
from gpucache.disk.processes import is_running, pid_namespace, process_of, this_process
from gpucache.disk.reading import read
from gpucache.disk.spawning import python_command, start_detached
from gpucache.disk.vetting import Trust, vet, vet_child
from gpucache.disk.within import Straight, remove_tree_in
from gpucache.errors import GpuCacheError
from gpucache.layout.paths import ours
from gpucache.once import job
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from gpucache.disk.processes import Process

_LOCK_S = 30.0
_ASIDE = ".over-"
_RECORD = ".json"
_MOST_BYTES = 8 * HOLDER_BYTES
_MOST_PROCESSES = 512
_KEEPER = "gpucache.upkeep.fresh_keeper"


class FreshRun(Value):
    """What is known of a fresh root: who uses it."""

    node: str
    namespace: int
    """Of the numbers of the processes."""
    processes: tuple[Process, ...]
    keeper: Process | None

    @property
    def is_seen(self) -> bool:
        """Whether this process can tell if those processes run."""
        return self.node == node_id() and self.namespace == pid_namespace()

    def running(self) -> tuple[Process, ...]:
        """Those that have not ended, as far as they can be seen."""
        return tuple(filter(is_running, self.processes))


def begin(root: str, environ: Mapping[str, str], shared: bool) -> str:
    """Make a fresh root below a provisioned one for this process and what it becomes, and return its path.

    With ``shared`` all ranks of this process's job that run at the same time have one together. A keeper is started
    where none runs. Beside any processes that begin and end.

    Raises:
        GpuCacheError, OSError: the root cannot be made.
    """
    this = this_process()
    if this is None:
        raise OSError("there is no /proc to know this process by")
    trust = Trust.parse(environ).in_root(root)
    directory = ours(root, "fresh")
    make_below_root(directory)
    vet(root, trust)
    vet_child(directory, trust)
    whose = f"job {job(environ)}" if shared else f"process {this}"
    name = _name(f"{whose} {node_id()} {pid_namespace()} {os.geteuid()}")
    path = f"{directory}/{name}"
    with _changing(root):
        over = _set_aside(directory)
        found = _read(path)
        if found is None:
            os.mkdir(path, 0o700)
            found = FreshRun(node_id(), pid_namespace(), (), None)
        keeper = found.keeper
        if keeper is None or not is_running(keeper):
            keeper = _started(root, name, environ)
        processes = tuple(dict.fromkeys((*found.running(), this)))
        _write(path, FreshRun(found.node, found.namespace, processes, keeper))
    _remove(over)
    return path


def users(root: str, name: str) -> tuple[Process, ...]:
    """The processes that use a fresh root of this node; where there are none any more, it is removed first.

    Raises:
        GpuCacheError, OSError: the lock cannot be had.
    """
    directory = ours(root, "fresh")
    path = f"{directory}/{name}"
    with _changing(root):
        found = _read(path)
        running = () if found is None else found.running()
        if running:
            os.utime(f"{path}{_RECORD}")  # a sign of life for other nodes
            return running
        over = _put_aside(directory, name)
    _remove(over)
    return ()


def sweep(root: str) -> None:
    """Remove the fresh roots of a vetted root whose processes have ended, as after a kill. Never raises, or waits."""
    directory = ours(root, "fresh")
    try:
        if not os.listdir(directory):
            return
        with _changing(root, 0.0):
            over = _set_aside(directory)
    except (GpuCacheError, OSError):
        return  # none was ever made, or others are at it, or it is read-only
    _remove(over)


@contextmanager
def _changing(root: str, patience_s: float = _LOCK_S) -> Iterator[None]:
    with locked(f"{LockPlace(root).directory()}/{FRESH_LOCK}", timeout_s=patience_s):
        yield


def _name(text: str) -> str:
    data = text.encode()
    return f"{zlib.crc32(data):08x}{zlib.adler32(data):08x}"


def _started(root: str, name: str, environ: Mapping[str, str]) -> Process | None:
    """Start the keeper; where there can be none, the next command that comes by removes the root."""
    try:
        return process_of(start_detached(python_command(_KEEPER, root, name), environ))
    except OSError:
        return None


# ---- what is over


def _set_aside(directory: str) -> list[str]:
    """Rename all that is over, and return the paths, with what a killed process has left aside."""
    over = []
    for name in sorted(os.listdir(directory)):
        path = f"{directory}/{name}"
        if os.path.islink(path):
            continue  # nobody here made that
        if name.startswith(_ASIDE):
            over.append(path)
        elif not name.endswith(_RECORD) and _is_over(path):
            over += _put_aside(directory, name)
    return over


def _is_over(path: str) -> bool:
    """Whether nobody uses a root any more. One without a record was never begun, or came back after its end."""
    found = _read(path)
    if found is None:
        return True
    if found.is_seen and _may_see(path):
        return not found.running()
    with suppress(OSError):
        return time.time() - os.lstat(f"{path}{_RECORD}").st_mtime > DAY_S
    return False


def _may_see(path: str) -> bool:
    """Whether this user sees all processes that use a root: another's may be hidden (``hidepid`` of proc(5))."""
    try:
        return os.geteuid() in (0, os.lstat(path).st_uid)
    except OSError:
        return False


def _put_aside(directory: str, name: str) -> list[str]:
    """Rename one root, and forget who used it."""
    aside = f"{directory}/{_ASIDE}{name}.{os.getpid()}.{time.monotonic_ns()}"
    try:
        with _straight(directory) as (disk, here):
            with suppress(OSError):
                disk.unlink(f"{here}/{name}{_RECORD}")
            disk.rename(f"{here}/{name}", f"{here}/{os.path.basename(aside)}")
    except OSError:
        return []
    return [aside]


def _remove(over: list[str]) -> None:
    """Remove what was set aside: directories with all that is in them, and what was to become a record."""
    for path in over:
        directory, _, name = path.rpartition("/")
        with suppress(OSError), _straight(directory) as (disk, here):
            try:
                disk.unlink(f"{here}/{name}")
            except OSError:  # a directory
                disk.act(f"{here}/{name}", remove_tree_in)


@contextmanager
def _straight(directory: str) -> Iterator[tuple[Straight, str]]:
    """What removes in the directory of fresh roots, and its path without a link on the way.

    Its owner may put a link in the place of what was looked at, for root to follow.
    """
    above, _, name = directory.rpartition("/gpucache/")
    with Straight() as disk:
        yield disk, f"{os.path.realpath(above)}/gpucache/{name}"


# ---- who uses a root


def _read(path: str) -> FreshRun | None:
    """Who uses a root; None where that is not said."""
    try:
        said = json.loads(read(f"{path}{_RECORD}", _MOST_BYTES))
        keeper = said["keeper"]
        return FreshRun(
            str(said["node"]),
            int(said["namespace"]),
            tuple(map(_process, said["processes"])),
            None if keeper is None else _process(keeper),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _process(said: Any) -> Process:
    pid, start = said
    return int(pid), int(start)


def _write(path: str, run: FreshRun) -> None:
    """Say who uses a root, whole or not at all.

    Raises:
        OSError: the disk refused.
    """
    said = {
        "version": 1,
        "node": run.node,
        "namespace": run.namespace,
        "processes": run.processes[-_MOST_PROCESSES:],
        "keeper": run.keeper,
    }
    directory, _, name = path.rpartition("/")
    new = f"{directory}/{_ASIDE}{name}{_RECORD}"
    write_new(new, json.dumps(said).encode(), replace=True)
    os.replace(new, f"{path}{_RECORD}")
