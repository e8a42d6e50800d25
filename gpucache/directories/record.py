"""The record of a host's devices: ``devices/<host>.json``, which workers read instead of asking NVML.

It maps each UUID to the name of its directory. An index is not an identity, since containers and cgroups renumber from
0: a UUID that finds its index taken by another known UUID of this host gets the next free number, and once given, a
name stays. The record holds no pid and no time, so it is byte-identical when nothing changed.
"""

from __future__ import annotations

import json
import os
import re
from functools import lru_cache

from gpucache.errors import RecordError
from gpucache.layout import paths
from gpucache.machine.device import Device, Snapshot, Status, Unavailable
from gpucache.values import Value, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any


_VERSION = 1
_NAME = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class Listed(Value):
    """One device that was seen on the host, and the name of its directory."""

    directory: str
    device: Device
    present: bool = True
    """Whether it was there when the host was last seen whole. The name stays its own either way."""


class Record(Value, kw_only=True):
    """Every device known of one host. A value: `merge` makes the next one."""

    host: str
    source: str
    status: Status = Status.OK
    entries: tuple[Listed, ...] = ()
    mig_parents: tuple[Device, ...] = ()
    lost: tuple[Unavailable, ...] = ()
    driver: str | None = None
    nvml: str | None = None
    cuda: int | None = None
    cuda_order: tuple[str, ...] | None = None

    @property
    def fake(self) -> bool:
        """Whether the devices are made up."""
        return self.source == "fake"

    @property
    def names(self) -> dict[str, str]:
        """The directory of each UUID."""
        return {entry.device.uuid: entry.directory for entry in self.entries}

    @property
    def gpus(self) -> dict[str, int | None]:
        """The physical GPUs of the host, lost ones excepted: UUID to the minor number of its node."""
        found = {
            entry.device.gpu_uuid: entry.device.minor for entry in self.entries if entry.present
        }
        return found | {parent.uuid: parent.minor for parent in self.mig_parents}

    @property
    def renumbered(self) -> bool:
        """Whether two known devices were seen under one number: then some process sees only part of the host."""
        places = [entry.device.directory_name for entry in self.entries if entry.present]
        return len(set(places)) < len(places)

    def snapshot(self) -> Snapshot:
        """The devices as `gpucache.visible_devices` takes them."""
        return Snapshot(
            status=self.status,
            source="record",
            detail=f"as provisioned on {self.host}",
            devices=tuple(entry.device for entry in self.entries if entry.present),
            mig_parents=self.mig_parents,
            lost=self.lost,
            driver=self.driver,
            nvml=self.nvml,
            cuda=self.cuda,
            cuda_order=self.cuda_order,
        )

    def dumps(self) -> bytes:
        """The file's content."""
        value = {
            "version": _VERSION,
            "host": self.host,
            "source": self.source,
            "status": self.status.value,
            "driver": self.driver,
            "nvml": self.nvml,
            "cuda": self.cuda,
            "cuda_order": None if self.cuda_order is None else list(self.cuda_order),
            "mig_parents": [parent.as_json() for parent in self.mig_parents],
            "lost": [[gpu.index, gpu.code, gpu.text] for gpu in self.lost],
            "devices": [
                {
                    "directory": entry.directory,
                    "present": entry.present,
                    "device": entry.device.as_json(),
                }
                for entry in self.entries
            ],
        }
        return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("ascii")


@lru_cache(maxsize=8)
def parse_record(text: bytes) -> Record:
    """Read what `Record.dumps` wrote.

    Raises:
        ValueError: the text is torn, or not a record.
    """
    try:
        value = json.loads(text)
        if not isinstance(value, dict) or value.get("version") != _VERSION:
            raise ValueError("not a record of this version")
        order = value["cuda_order"]
        entries = tuple(_entry(item) for item in _typed(value["devices"], list))
        if min(
            len({entry.directory for entry in entries}),
            len({entry.device.uuid for entry in entries}),
        ) < len(entries):
            raise ValueError("a directory or a UUID is there twice")
        return Record(
            host=_typed(value["host"], str),
            source=_typed(value["source"], str),
            status=Status(value["status"]),
            entries=entries,
            mig_parents=tuple(
                Device.parse(parent) for parent in _typed(value["mig_parents"], list)
            ),
            lost=tuple(_unavailable(gpu) for gpu in _typed(value["lost"], list)),
            driver=_optional(value["driver"], str),
            nvml=_optional(value["nvml"], str),
            cuda=_optional(value["cuda"], int),
            cuda_order=None
            if order is None
            else tuple(_typed(uuid, str) for uuid in _typed(order, list)),
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a whole record: {error!r}") from error


def _entry(value: Mapping[str, Any]) -> Listed:
    directory = _typed(value["directory"], str)
    if not _NAME.fullmatch(directory):  # it becomes part of a path
        raise ValueError(f"not a directory name: {directory!r}")
    return Listed(directory, Device.parse(value["device"]), _typed(value["present"], bool))


def _unavailable(value: object) -> Unavailable:
    index, code, text = _typed(value, list)
    return Unavailable(_typed(index, int), _optional(code, int), _typed(text, str))


def _typed(value: Any, expected: type) -> Any:
    if type(value) is not expected:
        raise ValueError(f"not {expected.__name__}: {value!r}")
    return value


def _optional(value: Any, expected: type) -> Any:
    return None if value is None else _typed(value, expected)


def read_record(path: str, host: str) -> Record:
    """The record of this host. Safe beside any writer: a record is published whole.

    Raises:
        RecordError: it is missing, torn or another host's; the message says to run `gpucache provision`.
    """
    try:
        with open(path, "rb") as file:
            record = parse_record(file.read())
    except FileNotFoundError:
        raise RecordError(path, f"there is no record of host {host}{_others(path)}") from None
    except OSError as error:
        raise RecordError(
            path,
            f"the record cannot be read: {error.strerror}",
            "run as the user who provisioned, or `gpucache provision` under another root",
        ) from error
    except ValueError as error:
        raise RecordError(path, f"the record cannot be understood: {error}") from error
    if record.host != host:
        raise RecordError(path, f"this is the record of host {record.host}, not of {host}")
    return record


def recorded(root: str) -> Record | None:
    """This host's record, or None where there is none that can be used; writes nothing."""
    host = paths.host_name()
    try:
        return read_record(paths.record_path(root, host), host)
    except RecordError:
        return None


def _others(path: str) -> str:
    try:
        hosts = sorted(
            name[:-5] for name in os.listdir(os.path.dirname(path)) if name.endswith(".json")
        )
    except OSError:
        return ""
    return (
        f" (only of {', '.join(hosts[:4])}{' and others' if len(hosts) > 4 else ''})"
        if hosts
        else ""
    )


def merge(known: Record | None, snapshot: Snapshot, host: str) -> Record:
    """What is known of the host after this snapshot, which may show a part of it only.

    A snapshot shows the host whole when nothing is hidden and no more GPUs are missing than it counts as lost: then
    what it lacks is absent and its indices are news. Otherwise it adds to what is known. A real record is never
    replaced by a fake one, and a fake one is replaced whole.
    """
    if known is not None and snapshot.source == "record" and snapshot.fake == known.fake:
        return known  # it was read from here, and may be older than what is here now
    if known is not None and snapshot.fake and not known.fake:
        return known
    if known is None or known.fake:
        known = Record(host=host, source="")
    seen = {device.uuid: device for device in snapshot.devices}
    there = {
        entry.device.uuid
        for entry in known.entries
        if entry.present and not _displaced(entry.device, snapshot)
    }
    missing = {
        entry.device.gpu_uuid for entry in known.entries if entry.device.uuid in there - seen.keys()
    }
    whole = not snapshot.hidden and len(missing) <= len(snapshot.lost)
    entries = [
        _renewed(entry, seen.get(entry.device.uuid), entry.device.uuid in there, whole)
        for entry in known.entries
    ]
    return replace(
        known,
        source="fake" if snapshot.fake else "nvml",
        status=snapshot.status,
        entries=tuple(sorted(entries + _named(_unknown(known, snapshot), entries), key=_order)),
        mig_parents=snapshot.mig_parents if whole else _merged_parents(known, snapshot),
        lost=snapshot.lost if whole else known.lost,
        # a container may bring another CUDA than the host's
        driver=snapshot.driver if whole else known.driver,
        nvml=snapshot.nvml if whole else known.nvml,
        cuda=snapshot.cuda if whole else known.cuda,
        cuda_order=_merged_order(known.cuda_order, snapshot.cuda_order, whole),
    )


def directories(record: Record, snapshot: Snapshot) -> dict[str, str]:
    """The directory of each of the snapshot's devices; fakes beside a real record keep their own numbers."""
    if snapshot.fake and not record.fake:
        return {device.uuid: device.directory_name or "0" for device in snapshot.devices}
    names = record.names
    for entry in _named(_unknown(record, snapshot), list(record.entries)):
        names[entry.device.uuid] = entry.directory
    return {device.uuid: names[device.uuid] for device in snapshot.devices}


def _unknown(record: Record, snapshot: Snapshot) -> list[Device]:
    known = {entry.device.uuid for entry in record.entries}
    return [device for device in snapshot.devices if device.uuid not in known]


def _order(entry: Listed) -> tuple[int, ...]:
    return tuple(int(part) for part in entry.directory.split("."))


def _renewed(entry: Listed, now: Device | None, there: bool, whole: bool) -> Listed:
    if now is None:
        return replace(entry, present=there and not whole)
    if whole:
        return Listed(entry.directory, now)
    old = entry.device  # a partial view may have renumbered
    return Listed(entry.directory, replace(now, index=old.index, slot=old.slot))


def _displaced(device: Device, snapshot: Snapshot) -> bool:
    """Whether the snapshot shows something else where the device was."""
    if device.parent_uuid is None:
        others = (*snapshot.devices, *snapshot.mig_parents)
        return any(parent.uuid == device.uuid for parent in snapshot.mig_parents) or (
            device.pci_bus_id is not None
            and any(other.pci_bus_id == device.pci_bus_id for other in others)
        )
    place = (device.parent_uuid, device.gpu_instance, device.compute_instance)
    return any(other.uuid == device.parent_uuid for other in snapshot.devices) or (
        None not in place
        and any(
            (other.parent_uuid, other.gpu_instance, other.compute_instance) == place
            for other in snapshot.devices
        )
    )


def _named(devices: list[Device], entries: list[Listed]) -> list[Listed]:
    """New devices under the names NVML gives them, or where those are taken, under the next free ones."""
    taken = {entry.directory for entry in entries}
    named: dict[str, str] = {}
    for device in devices:
        if device.directory_name is not None and device.directory_name not in taken:
            named[device.uuid] = device.directory_name
            taken.add(device.directory_name)
    for device in devices:
        if device.uuid not in named:
            named[device.uuid] = _next_free(device, taken)
            taken.add(named[device.uuid])
    return [Listed(named[device.uuid], device) for device in devices]


def _next_free(device: Device, taken: Iterable[str]) -> str:
    prefix = "" if device.slot is None else f"{device.index or 0}."
    number = 0
    while f"{prefix}{number}" in taken:
        number += 1
    return f"{prefix}{number}"


def _merged_parents(known: Record, snapshot: Snapshot) -> tuple[Device, ...]:
    """The GPUs in MIG mode after a partial view, which may have renumbered them."""
    plain = {device.uuid for device in snapshot.devices}
    parents = {parent.uuid: parent for parent in known.mig_parents if parent.uuid not in plain}
    for parent in snapshot.mig_parents:
        old = parents.get(parent.uuid)
        parents[parent.uuid] = replace(parent, index=old.index) if old else parent
    return tuple(parents.values())


def _merged_order(
    known: tuple[str, ...] | None, now: tuple[str, ...] | None, whole: bool
) -> tuple[str, ...] | None:
    """The newer answer, unless a partial view answered for a part of the devices of the older one."""
    if now is None or (not whole and known is not None and set(now) < set(known)):
        return known
    return now
