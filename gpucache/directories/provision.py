"""Make the tree on disk: look, lock, look again, build aside, publish by rename."""

from __future__ import annotations

import os
from functools import lru_cache

from gpucache.directories.record import Record, directories, merge, recorded
from gpucache.disk.files import make_directory, write_whole
from gpucache.disk.fitness import fitness, network_file_system
from gpucache.disk.locks import PROVISION_LOCK, local_directory, locked
from gpucache.disk.vetting import Trust, vet, vet_child
from gpucache.layout import paths
from gpucache.machine.device import Device, Snapshot
from gpucache.machine.visible import guess_advice, visible_devices
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


_TAG = b"""Signature: 8a477f597d28d172789f06886806bc55
# This directory is a cache made by gpucache.
# For information about cache directory tags see https://bford.info/cachedir/
"""


class Provision(Value, kw_only=True):
    """What `DeviceCacheRegistry.provision` found and made."""

    root: str
    devices: tuple[Device, ...]
    """Every device of the machine, whatever this process sees of them."""
    directories: tuple[str, ...] = ()
    """The name of each device's directory, in the order of ``devices``."""
    created: tuple[str, ...] = ()
    """Names of the directories that this call made."""
    existing: tuple[str, ...] = ()
    """Names of the directories that were there, or that another process made meanwhile."""
    warnings: tuple[str, ...] = ()
    """What will hurt later: fake devices, lost GPUs, a read-only, full, ``noexec`` or network file system."""


def provision(
    root: str, snapshot: Snapshot, trust: Trust, environ: Mapping[str, str], timeout_s: float
) -> tuple[Record, Provision]:
    """Make what is missing for the snapshot's devices; the host's record as it is now, and what was done.

    Beside any number of processes and threads: see `DeviceCacheRegistry.provision`.
    """
    known = _look(root, snapshot, trust)
    created: list[str] = []
    if known is None:
        known = _make(root, _with_order(root, snapshot, environ), trust, timeout_s, created)
    names = directories(known, snapshot)
    return known, Provision(
        root=root,
        devices=snapshot.devices,
        directories=tuple(names.values()),
        created=tuple(created),
        existing=tuple(name for name in names.values() if name not in created),
        warnings=_warnings(root, snapshot, known),
    )


def _look(root: str, snapshot: Snapshot, trust: Trust) -> Record | None:
    """The record when everything is there, without a lock; else None. All that is there has then been vetted."""
    there = [vet(root, trust)]
    there += [vet_child(path, trust) for path in paths.provisioned_directories(root)]
    known = recorded(root)
    record = merge(known, snapshot, paths.host_name())
    names = directories(record, snapshot).values()
    there += [vet_child(paths.device_directory(root, name), trust) for name in names]
    if record != known or _order_missing(snapshot, known, record):
        return None
    return record if all(there) and os.path.exists(paths.tag_path(root)) else None


def _make(
    root: str, snapshot: Snapshot, trust: Trust, timeout_s: float, created: list[str]
) -> Record:
    """Make what is missing, under the lock, and put the names of new device directories into ``created``."""
    make_directory(root)
    vet(root, trust)  # another user may have made it first, or something above it
    for path in paths.provisioned_directories(root):
        make_directory(path)
        vet_child(path, trust)
    locks = local_directory(root, paths.ours(root, "locks"))
    vet(locks, trust)
    with locked(os.path.join(locks, PROVISION_LOCK), timeout_s=timeout_s):
        known = recorded(root)  # another process may have been here while we waited
        record = merge(known, snapshot, paths.host_name())
        if not os.path.exists(paths.tag_path(root)):
            write_whole(paths.tag_path(root), _TAG, paths.ours(root, "tmp"))
        for name in directories(record, snapshot).values():
            directory = paths.device_directory(root, name)
            if make_directory(directory):
                created.append(name)
            vet_child(directory, trust)
        if record != known:  # last: who can read the record finds the directories
            path = paths.record_path(root, record.host)
            write_whole(path, record.dumps(), paths.ours(root, "tmp"))
    return record


# ---- the order that only libcuda knows


def _order_missing(snapshot: Snapshot, known: Record | None, record: Record) -> bool:
    """Whether libcuda should be asked: not by a worker, and not again (or for want of an answer) while nothing changed.

    A question costs the start of CUDA, half a second or, on a sick node, the whole time limit.
    """
    if snapshot.source == "record" or not _guessed(snapshot, record):
        return False
    return record != known or record.cuda_order is None


def _guessed(snapshot: Snapshot, record: Record) -> bool:
    """Whether nobody knows the order of the GPUs, as far as they and the record tell."""
    return visible_devices(snapshot.with_order(record.cuda_order), {}).how == "guess"


def _with_order(root: str, snapshot: Snapshot, environ: Mapping[str, str]) -> Snapshot:
    """The snapshot with libcuda's order, asked for where that is missing; an empty one where it did not answer."""
    known = recorded(root)
    if not _order_missing(snapshot, known, merge(known, snapshot, paths.host_name())):
        return snapshot
    from gpucache.machine.libcuda import ask_order

    return snapshot.with_order(ask_order(snapshot, environ) or ())


# ---- what will hurt later


def _warnings(root: str, snapshot: Snapshot, record: Record) -> tuple[str, ...]:
    found = []
    if snapshot.fake:
        found.append(f"the devices are fake ({snapshot.status.value}): {snapshot.detail}")
    if _guessed(snapshot, record):
        fact, fix = guess_advice(snapshot)
        found.append(f"{fact}: {fix}")
    found += [f"GPU {gpu.index} is lost: {gpu.text}" for gpu in snapshot.lost]
    return (*found, *_disk_warnings(root))


def _disk_warnings(root: str) -> Iterator[str]:
    """The facts of which `doctor` has findings (`gpucache.diagnosis.disk_checks`), a sentence each."""
    disk = fitness(root)
    if disk.read_only:
        yield f"{root} is on a read-only file system: what is cached is used, nothing new is kept"
    if disk.noexec:
        yield f"{root} is mounted noexec: Triton cannot load its launcher from there"
    if disk.little_space_mib is not None:
        yield f"{root} has {disk.little_space_mib} MiB left"
    if disk.few_inodes is not None:
        yield f"{root} has {disk.few_inodes} inodes left, and a kernel takes nine"
    network = _network(root, os.stat(root).st_dev)
    if network is not None:
        yield (
            f"{root} is on a network file system ({network}), where Triton is known to fail with stale handles: "
            "prefer a local disk"
        )


@lru_cache(maxsize=64)
def _network(root: str, device: int) -> str | None:
    """As `network_file_system`; remembered until another device is mounted there, since it reads all mounts."""
    return network_file_system(root)
