"""Make the tree of a root, and the record of its devices: look, lock, look again, build aside, publish by rename."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache

from gpucache.directories.merging import directories, merge
from gpucache.directories.record import Record, readable, recorded
from gpucache.disk.capabilities import learn
from gpucache.disk.files import make_root, write_whole
from gpucache.disk.fitness import fitness, network_file_system
from gpucache.disk.locks import PROVISION_LOCK, locked
from gpucache.disk.members import make_base
from gpucache.disk.record_use import stamp_use
from gpucache.disk.vetting import Trust, vet, vet_child
from gpucache.environment import FAKE_DEVICES
from gpucache.layout import paths
from gpucache.machine.device import Device, Snapshot
from gpucache.machine.visible import guess_advice, visible_devices
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gpucache.disk.sharing import Sharing


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
    unrecorded: bool = False
    """Whether nothing was made: there is no GPU here, nobody has asked for fake devices, and the root has the record of
    another host with real ones."""
    sharing: Sharing = "private"
    """With whom the root is shared."""
    refused: bool = False
    """Whether nothing could be made in a root that has a store: `launch_environ` goes on, `provision` raises."""
    warnings: tuple[str, ...] = ()
    """What will hurt later: fake devices, lost GPUs, a read-only, full, ``noexec`` or network file system, a mount
    that refuses what gpucache does another way."""
    of_node: tuple[str, ...] = ()
    """Those of ``warnings`` that stay true of this node and its root: whoever was told once knows it."""


def provision(
    root: str,
    snapshot: Snapshot,
    trust: Trust,
    environ: Mapping[str, str],
    timeout_s: float,
    sharing: Sharing | None = None,
) -> tuple[Record, Provision]:
    """Make what is missing for the snapshot's devices. Returns the host's record as it is now, and what was done.

    Any number of processes and threads may do so at once: see `DeviceCacheRegistry.provision`.
    """
    trust = trust.in_root(root)
    now = _sharing_of(root, trust)
    known = _look(root, snapshot, trust) if sharing in (None, now) else None
    created: list[str] = []
    if known is None and snapshot.made_up and recorded(root) is None:
        from gpucache.directories.other_hosts import host_with_gpus  # most hosts have GPUs

        other = host_with_gpus(root)
        if other is not None:
            return _out_of_place(root, snapshot, other)
    if known is None:
        ordered = _with_order(root, snapshot, environ)
        known = _make(root, ordered, trust, timeout_s, created, sharing)
        now = _sharing_of(root, trust.in_root(root))
    names = tuple(directories(known, snapshot).values())
    existing = [name for name in names if name not in created]
    of_node = tuple(_of_node(snapshot))
    return known, Provision(
        root=root,
        devices=snapshot.devices,
        directories=names,
        created=tuple(created),
        existing=tuple(existing),
        sharing=now,
        warnings=of_node + _warnings(root, snapshot, known),
        of_node=of_node,
    )


def _out_of_place(root: str, snapshot: Snapshot, other: str) -> tuple[Record, Provision]:
    """What is known of a host without GPUs, and that nothing was made for it beside a host that has some."""
    host = paths.host_name()
    why = f"{snapshot.status.value}: {snapshot.detail}"
    warning = (
        f"no record of {host} is made, since its one device would be fake ({why}), and the root has the real ones of "
        f"{other}; set {FAKE_DEVICES}=1 if a fake one is meant"
    )
    done = Provision(root=root, devices=snapshot.devices, unrecorded=True, warnings=(warning,))
    return merge(None, snapshot, host), done


def _sharing_of(root: str, trust: Trust) -> Sharing:
    """With whom a root is shared (`disk.sharing.sharing_of`); one system call for a root without a mark."""
    if not os.path.lexists(paths.mark_path(root)):
        return "private"
    from gpucache.disk.sharing import sharing_of  # most roots are private

    return sharing_of(root, trust)


def _look(root: str, snapshot: Snapshot, trust: Trust) -> Record | None:
    """The record where nothing is missing, else None. Takes no lock, and vets every directory that is there."""
    there = [vet(root, trust)]
    for path in paths.provisioned_directories(root):
        there.append(vet_child(path, trust))
    known = recorded(root)
    record = merge(known, snapshot, paths.host_name())
    for name in directories(record, snapshot).values():
        path = paths.device_directory(root, name)
        there.append(vet_child(path, trust))
    if record != known or _order_missing(snapshot, known, record):
        return None
    if not all(there):
        return None
    if not os.path.exists(paths.tag_path(root)):
        return None
    stamp_use(paths.record_path(root, record.host))
    return record


def _make(
    root: str,
    snapshot: Snapshot,
    trust: Trust,
    timeout_s: float,
    created: list[str],
    chosen: Sharing | None,
) -> Record:
    """Make what is missing, under the lock, and put the names of new device directories into ``created``.

    ``chosen`` is with whom a root is to be shared; without it a root stays what it is.
    """
    from gpucache.directories.making import Making  # where everything is there, nothing is made
    from gpucache.disk.lock_place import LockPlace

    make_root(root)
    vet(root, trust)  # another user may have made it first, or something above it
    trust = trust.in_root(root)
    sharing = chosen or _sharing_of(root, trust)
    making = Making(root, sharing)
    making.root_directory()
    for path in paths.provisioned_directories(root):
        vet_child(path, trust)  # what is there may be a link, which leads root elsewhere
        making.directory(path)
        vet_child(path, trust)
    if sharing != "private":
        for path in paths.our_directories(root):
            making.directory(path)
        making.locks_of_others()
    locks = LockPlace(root).directory()
    vet(locks, trust)
    tag = paths.tag_path(root)
    staging = paths.ours(root, "tmp")
    with locked(os.path.join(locks, PROVISION_LOCK), timeout_s=timeout_s):
        known = recorded(root)  # another process may have been here while we waited
        record = merge(known, snapshot, paths.host_name())
        if not os.path.exists(tag):
            write_whole(tag, paths.TAG, staging)
        for name in directories(record, snapshot).values():
            directory = paths.device_directory(root, name)
            if making.directory(directory):
                created.append(name)
            vet_child(directory, trust)
        if record != known:  # last: who can read the record finds the directories
            path = paths.record_path(root, record.host)
            write_whole(path, readable(record), staging)
        if known is None:
            from gpucache.directories.other_hosts import remove_records_of_the_gone

            remove_records_of_the_gone(root, record)
        if chosen is not None:
            _write_mark(root, chosen, staging)
    return record


def _write_mark(root: str, sharing: Sharing, staging: str) -> None:
    """Say with whom a root is shared, last of all: until then it is private to everybody."""
    from gpucache.disk.sharing import mark_of, mark_text

    mark = mark_of(root)
    known = "private" if mark is None else mark.sharing
    if known != sharing:
        write_whole(paths.mark_path(root), mark_text(sharing), staging)


# ---- the order that only libcuda knows


def _order_missing(snapshot: Snapshot, known: Record | None, record: Record) -> bool:
    """Whether libcuda should be asked for the order: nobody knows it, and libcuda was not asked since devices changed.

    A worker never asks. A question costs the start of CUDA: half a second or, on a sick node, the whole time limit; so
    a question that got no answer is not repeated either.
    """
    if snapshot.source == "record" or not _guessed(snapshot, record):
        return False
    return record != known or record.cuda_order is None


def _guessed(snapshot: Snapshot, record: Record) -> bool:
    """Whether neither the GPUs themselves nor the record tells in which order CUDA counts the GPUs."""
    ordered = snapshot.with_order(record.cuda_order)
    return visible_devices(ordered, {}).how == "guess"


def _with_order(root: str, snapshot: Snapshot, environ: Mapping[str, str]) -> Snapshot:
    """The snapshot with libcuda's order, asked for where it is missing; empty where libcuda did not answer."""
    known = recorded(root)
    record = merge(known, snapshot, paths.host_name())
    if not _order_missing(snapshot, known, record):
        return snapshot
    from gpucache.machine.libcuda import ask_order

    order = ask_order(snapshot, environ) or ()
    return snapshot.with_order(order)


# ---- what will hurt later


def _of_node(snapshot: Snapshot) -> Iterator[str]:
    """The sentence that devices are fake, if they are."""
    if snapshot.fake:
        yield f"the devices are fake ({snapshot.status.value}): {snapshot.detail}"


def _warnings(root: str, snapshot: Snapshot, record: Record) -> tuple[str, ...]:
    """What else will hurt later, as `Provision.warnings` has it: a sentence for each fact."""
    found = []
    if _guessed(snapshot, record):
        fact, fix = guess_advice(snapshot)
        found.append(f"{fact}: {fix}")
    found += [f"GPU {gpu.index} is lost: {gpu.text}" for gpu in snapshot.lost]
    found.extend(_of_own_base(root))
    with suppress(OSError):  # a disk that does not answer gives no advice, and all has been made
        found.extend(_disk_warnings(root))
    return tuple(found)


def _of_own_base(root: str) -> Iterator[str]:
    """Make this user's own directory where other programs' files cannot be the group's, and tell of that."""
    try:
        base = make_base(root)
    except OSError as error:
        yield f"TorchInductor's caches have no place in {root}: {error.filename}: {error.strerror}"
        return
    if base is not None:
        yield (
            f"{root} is a group's, and its mount has no ACLs: TorchInductor and other JITs cache in {base}, and share "
            "nothing with other members; Triton's kernels are shared"
        )


def _disk_warnings(root: str) -> Iterator[str]:
    """A sentence for each fact of the disk of which `doctor` makes a finding (`gpucache.diagnosis`)."""
    disk = fitness(root)
    if disk.read_only:
        yield f"{root} is on a read-only file system: what is cached is used, nothing new is kept"
    if disk.noexec:
        yield f"{root} is mounted noexec: Triton cannot load its launcher from there"
    if disk.little_space_mib is not None:
        yield f"{root} has {disk.little_space_mib} MiB left"
    if disk.few_inodes is not None:
        yield f"{root} has {disk.few_inodes} inodes left, and a kernel takes nine"
    found = learn(root)
    if found is not None and found.refused():
        refused = ", ".join(found.refused())
        yield f"{root} is on a mount of restrictions ({refused}): `gpucache doctor` tells what is done instead"
    device = os.stat(root).st_dev
    network = _network(root, device)
    if network is not None:
        yield (
            f"{root} is on a network file system ({network}), where Triton is known to fail with stale handles: "
            "prefer a local disk"
        )


@lru_cache(maxsize=64)
def _network(root: str, device: int) -> str | None:
    """What `network_file_system` answers, which reads all mounts; remembered until the root is on another device."""
    return network_file_system(root)
