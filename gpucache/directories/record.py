"""The record of a host's devices: ``devices/<host>.json``, which workers read instead of asking NVML.

It maps each UUID to the name of its directory. An index is not an identity, since containers and cgroups renumber from
0: a UUID that finds its index taken by another known UUID of this host gets the next free number, and once given, a
name stays. The record holds no pid and no time, so it is byte-identical when nothing changed.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache

from gpucache.disk.door import RECORD_BYTES, read_limited
from gpucache.errors import DiscoveryError, RecordError
from gpucache.layout import paths
from gpucache.machine.device import Device, Snapshot, Status, Unavailable
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Literal

    from gpucache.errors import RecordReason


_VERSION = 1
_MOST_HOSTS = 4


class Listed(Value):
    """One line of the record: a device that was seen on the host, and the name of its directory."""

    directory: str
    device: Device
    present: bool = True
    """Whether the device was there when the host was last seen whole. An absent device keeps its directory."""

    def as_json(self) -> dict[str, Any]:
        """The line as a JSON object, which `parse_record` reads back."""
        return {
            "directory": self.directory,
            "present": self.present,
            "device": self.device.as_json(),
        }


class Record(Value, kw_only=True):
    """Every device that was ever seen on one host. A record never changes: `merging.merge` makes the next one of it."""

    host: str
    source: Literal["nvml", "fake"]
    """Where the devices come from; for a Jetson without NVML it is ``nvml`` too."""
    status: Status = Status.OK
    devices: tuple[Listed, ...] = ()
    """In the order of their directories' numbers."""
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
        """The name of each device's directory, by UUID; also of devices that are gone."""
        return {listed.device.uuid: listed.directory for listed in self.devices}

    @property
    def present(self) -> tuple[Device, ...]:
        """The devices that were there when the host was last seen whole."""
        return tuple(listed.device for listed in self.devices if listed.present)

    @property
    def gpus(self) -> dict[str, int | None]:
        """The minor number of each physical GPU's device file, by UUID; lost GPUs are left out."""
        minors: dict[str, int | None] = {}
        for device in self.present:
            minors[device.gpu_uuid] = device.minor
        for parent in self.mig_parents:
            minors[parent.uuid] = parent.minor
        return minors

    @property
    def renumbered(self) -> bool:
        """Whether two present devices were seen under one number: then some process sees only a part of the host."""
        numbers = [device.directory_name for device in self.present]
        return len(set(numbers)) < len(numbers)

    def snapshot(self) -> Snapshot:
        """The devices as `gpucache.visible_devices` takes them."""
        return Snapshot(
            status=self.status,
            source="record",
            detail=f"as provisioned on {self.host}",
            devices=self.present,
            mig_parents=self.mig_parents,
            lost=self.lost,
            driver=self.driver,
            nvml=self.nvml,
            cuda=self.cuda,
            cuda_order=self.cuda_order,
        )

    def dumps(self) -> bytes:
        """The content of the record's file."""
        order: list[str] | None = None
        if self.cuda_order is not None:
            order = list(self.cuda_order)
        value = {
            "version": _VERSION,
            "host": self.host,
            "source": self.source,
            "status": self.status.value,
            "driver": self.driver,
            "nvml": self.nvml,
            "cuda": self.cuda,
            "cuda_order": order,
            "mig_parents": [parent.as_json() for parent in self.mig_parents],
            "lost": [[gpu.index, gpu.code, gpu.text] for gpu in self.lost],
            "devices": [listed.as_json() for listed in self.devices],
        }
        text = json.dumps(value, indent=1, sort_keys=True)
        return f"{text}\n".encode("ascii")


def readable(record: Record) -> bytes:
    """The content of a record's file, after a look whether a reader will understand that.

    Raises:
        DiscoveryError: no reader would, as of two devices of one UUID.
    """
    text = record.dumps()
    problem = "it is not what was written"
    try:
        if len(text) > RECORD_BYTES:
            problem = f"it is longer than {RECORD_BYTES} bytes"
        elif parse_record(text) == record:
            return text
    except ValueError as error:
        problem = str(error)
    raise DiscoveryError(
        Status.ERROR.value,
        f"a record of these devices could not be read again: {problem}",
        "look at what `gpucache devices --json` or your own snapshot says of them",
    )


@lru_cache(maxsize=8)
def parse_record(text: bytes) -> Record:
    """Read what `Record.dumps` wrote.

    Raises:
        ValueError: the text is torn, or not a record.
    """
    try:
        value = json.loads(text)
        is_record = isinstance(value, dict) and value.get("version") == _VERSION
        if not is_record:
            raise ValueError("not a record of this version")
        order = value["cuda_order"]
        devices: tuple[Listed, ...] = _each(_listed, value["devices"])
        count = len(devices)
        names = {listed.directory for listed in devices}
        uuids = {listed.device.uuid for listed in devices}
        if len(names) < count or len(uuids) < count:
            raise ValueError("a directory or a UUID is there twice")
        return Record(
            host=_typed(value["host"], str),
            source=_source(value["source"]),
            status=Status(value["status"]),
            devices=devices,
            mig_parents=_each(Device.parse, value["mig_parents"]),
            lost=_each(_unavailable, value["lost"]),
            driver=_optional(value["driver"], str),
            nvml=_optional(value["nvml"], str),
            cuda=_optional(value["cuda"], int),
            cuda_order=None if order is None else _each(_string, order),
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a whole record: {error!r}") from error


def _listed(value: Mapping[str, Any]) -> Listed:
    directory = _typed(value["directory"], str)
    if not paths.is_device_name(directory):  # it becomes part of a path
        raise ValueError(f"not a directory name: {directory!r}")
    device = Device.parse(value["device"])
    present = _typed(value["present"], bool)
    return Listed(directory, device, present)


def _source(value: object) -> Literal["nvml", "fake"]:
    if value == "nvml" or value == "fake":
        return value
    raise ValueError(f"neither nvml nor fake: {value!r}")


def _unavailable(value: object) -> Unavailable:
    index, code, text = _typed(value, list)
    return Unavailable(
        index=_typed(index, int),
        code=_optional(code, int),
        text=_typed(text, str),
    )


def _each(parse: Callable[[Any], Any], value: Any) -> tuple[Any, ...]:
    """Parse each item of a JSON list."""
    items = _typed(value, list)
    return tuple(parse(item) for item in items)


def _string(value: Any) -> Any:
    return _typed(value, str)


def _typed(value: Any, expected: type) -> Any:
    if type(value) is not expected:
        raise ValueError(f"not {expected.__name__}: {value!r}")
    return value


def _optional(value: Any, expected: type) -> Any:
    if value is None:
        return None
    return _typed(value, expected)


def read_record(path: str, host: str) -> Record:
    """Read a host's record. Safe beside any writer: a record is published whole.

    Raises:
        RecordError: the record is missing, torn or another host's; the message says to run `gpucache provision`.
    """
    try:
        record = parse_record(read_limited(path, RECORD_BYTES))
    except FileNotFoundError:
        is_dangling_link = os.path.lexists(path)
        reason: RecordReason = "unreadable" if is_dangling_link else "missing"
        fact = f"there is no record of host {host}{_others(path)}"
        raise RecordError(path, reason, fact) from None
    except OSError as error:
        raise RecordError(
            path,
            "unreadable",
            f"the record cannot be read: {error.strerror}",
            "run as the user who provisioned, or `gpucache provision` under another root",
        ) from error
    except ValueError as error:
        raise RecordError(path, "torn", f"the record cannot be understood: {error}") from error
    if record.host != host:
        fact = f"this is the record of host {record.host}, not of {host}"
        raise RecordError(path, "foreign", fact)
    return record


def of_this_host(root: str) -> Record:
    """The record that a root has of this host, as `read_record`.

    Raises:
        RecordError: as `read_record`.
    """
    host = paths.host_name()
    return read_record(paths.record_path(root, host), host)


def recorded(root: str) -> Record | None:
    """The record that a root has of this host; None where there is no record that can be used. Writes nothing."""
    try:
        return of_this_host(root)
    except RecordError:
        return None


def _others(path: str) -> str:
    """The hosts that have a record beside the missing one, for its error message."""
    directory = os.path.dirname(path)
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return ""
    hosts = []
    for name in names:
        if name.endswith(".json"):
            hosts.append(name.removesuffix(".json"))
    if not hosts:
        return ""
    named = ", ".join(hosts[:_MOST_HOSTS])
    more = " and others" if len(hosts) > _MOST_HOSTS else ""
    return f" (only of {named}{more})"
