"""What a snapshot, which may show a part of the host only, changes in the host's record; and the names of new devices.

Workers and the plug-in read a `record` and change none.
"""

from __future__ import annotations

from gpucache.directories.record import Listed, Record
from gpucache.machine.device import Device, Snapshot
from gpucache.values import Value, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def merge(known: Record | None, snapshot: Snapshot, host: str) -> Record:
    """What is known of the host after this snapshot, which may show only a part of the host.

    After a snapshot that shows the host whole, devices that it does not list are marked absent, and its index numbers
    replace the recorded ones. Any other snapshot only adds to what is known. A real record is never replaced by a fake
    one, and a fake one is replaced whole.
    """
    if known is not None and _is_no_news(snapshot, known):
        return known
    if known is None or known.fake:
        known = Record(host=host, source="nvml")
    sighting = _sighting(known, snapshot)
    seen = {device.uuid: device for device in snapshot.devices}
    old = []
    for listed in known.devices:
        now = seen.get(listed.device.uuid)
        old.append(_renewed(listed, now, sighting))
    new = _named(_unknown(known, snapshot), old)
    devices = sorted(old + new, key=_order)
    # The versions are taken from it too: a container may bring another CUDA than the host's.
    newest = snapshot if sighting.whole else known
    return replace(
        known,
        source="fake" if snapshot.fake else "nvml",
        status=snapshot.status,
        devices=tuple(devices),
        mig_parents=_merged_parents(known, snapshot, sighting),
        lost=newest.lost,
        driver=newest.driver,
        nvml=newest.nvml,
        cuda=newest.cuda,
        cuda_order=_merged_order(known.cuda_order, snapshot.cuda_order, sighting),
    )


def _is_no_news(snapshot: Snapshot, known: Record) -> bool:
    """Whether a snapshot was made of a record, or is fake while the record is real."""
    if snapshot.source == "record" and snapshot.fake == known.fake:
        return True  # that may have been an older state of this very record
    return snapshot.fake and not known.fake


class _Sighting(Value):
    """How much of a known host a snapshot shows."""

    whole: bool
    """Whether nothing is hidden from the process, and no more GPUs are missing than it counts as lost."""
    there: frozenset[str]
    """UUIDs of the recorded devices that are still there as far as the snapshot tells, shown by it or not."""


def _sighting(known: Record, snapshot: Snapshot) -> _Sighting:
    """Judge how much of the known host a snapshot shows."""
    there = [device for device in known.present if not _displaced(device, snapshot)]
    seen = {device.uuid for device in snapshot.devices}
    missing = {device.gpu_uuid for device in there if device.uuid not in seen}
    may_all_be_lost = len(missing) <= len(snapshot.lost)
    return _Sighting(
        whole=not snapshot.hidden and may_all_be_lost,
        there=frozenset(device.uuid for device in there),
    )


def directories(record: Record, snapshot: Snapshot) -> dict[str, str]:
    """The name of the directory of each of the snapshot's devices, by UUID, also of those that are not on record yet.

    Fake devices beside a real record have the directories of their own numbers.
    """
    if snapshot.fake and not record.fake:
        return {device.uuid: device.directory_name or "0" for device in snapshot.devices}
    names = record.names
    new = _named(_unknown(record, snapshot), list(record.devices))
    for listed in new:
        names[listed.device.uuid] = listed.directory
    return {device.uuid: names[device.uuid] for device in snapshot.devices}


def _unknown(record: Record, snapshot: Snapshot) -> list[Device]:
    names = record.names
    return [device for device in snapshot.devices if device.uuid not in names]


def _order(listed: Listed) -> tuple[int, ...]:
    numbers = listed.directory.split(".")
    return tuple(map(int, numbers))


def _renewed(listed: Listed, now: Device | None, sighting: _Sighting) -> Listed:
    """A line of the record after a sighting, in which the device was seen as ``now``, or not at all."""
    if now is None:
        is_present = listed.device.uuid in sighting.there and not sighting.whole
        return replace(listed, present=is_present)
    if sighting.whole:
        return Listed(listed.directory, now)
    # Who sees a part of the host may number its GPUs anew.
    old = listed.device
    as_numbered = replace(now, index=old.index, slot=old.slot)
    return Listed(listed.directory, as_numbered)


def _displaced(device: Device, snapshot: Snapshot) -> bool:
    """Whether the snapshot shows something else where the device was."""
    if device.parent_uuid is None:
        return _gpu_displaced(device, snapshot)
    return _instance_displaced(device, snapshot)


def _gpu_displaced(gpu: Device, snapshot: Snapshot) -> bool:
    """Whether the GPU is in MIG mode now, so that it is no device itself, or something else is at its bus address."""
    parents = {parent.uuid for parent in snapshot.mig_parents}
    if gpu.uuid in parents:
        return True
    if gpu.pci_bus_id is None:
        return False
    shown = (*snapshot.devices, *snapshot.mig_parents)
    return any(other.pci_bus_id == gpu.pci_bus_id for other in shown)


def _instance_displaced(instance: Device, snapshot: Snapshot) -> bool:
    """Whether the MIG instance's GPU is whole now, or has another instance of the same numbers."""
    shown = {other.uuid for other in snapshot.devices}
    if instance.parent_uuid in shown:
        return True
    if instance.gpu_instance is None or instance.compute_instance is None:
        return False
    numbers = _numbers(instance)
    return any(_numbers(other) == numbers for other in snapshot.devices)


def _numbers(device: Device) -> tuple[str | None, int | None, int | None]:
    return device.parent_uuid, device.gpu_instance, device.compute_instance


def _named(devices: list[Device], known: list[Listed]) -> list[Listed]:
    """List new devices under the names that NVML gives them, or under the next free names where those are taken."""
    taken = {listed.directory for listed in known}
    named: dict[str, str] = {}
    for device in devices:
        name = device.directory_name
        if name is not None and name not in taken:
            named[device.uuid] = name
            taken.add(name)
    for device in devices:
        if device.uuid not in named:
            name = _next_free(device, taken)
            named[device.uuid] = name
            taken.add(name)
    return [Listed(named[device.uuid], device) for device in devices]


def _next_free(device: Device, taken: Iterable[str]) -> str:
    prefix = ""
    if device.slot is not None:
        prefix = f"{device.index or 0}."
    number = 0
    while f"{prefix}{number}" in taken:
        number += 1
    return f"{prefix}{number}"


def _merged_parents(known: Record, snapshot: Snapshot, sighting: _Sighting) -> tuple[Device, ...]:
    """The GPUs in MIG mode after a snapshot. A partial sighting adds to those on record, and keeps their numbers."""
    if sighting.whole:
        return snapshot.mig_parents
    plain = {device.uuid for device in snapshot.devices}
    parents: dict[str, Device] = {}
    for parent in known.mig_parents:
        if parent.uuid not in plain:
            parents[parent.uuid] = parent
    for parent in snapshot.mig_parents:
        old = parents.get(parent.uuid)
        if old is not None:
            parent = replace(parent, index=old.index)
        parents[parent.uuid] = parent
    return tuple(parents.values())


def _merged_order(
    known: tuple[str, ...] | None,
    now: tuple[str, ...] | None,
    sighting: _Sighting,
) -> tuple[str, ...] | None:
    """The newer of libcuda's two answers; the older where a partial sighting asked about a part of its devices."""
    if now is None:
        return known
    is_part = known is not None and set(now) < set(known)
    if is_part and not sighting.whole:
        return known
    return now
