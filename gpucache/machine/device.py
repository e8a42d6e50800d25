"""What a machine's GPUs are, as plain values: `Device`, `Snapshot` and their JSON."""

from __future__ import annotations

import enum

from gpucache.environment import FAKE_DEVICES
from gpucache.values import Value, as_dict, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Literal


class Status(str, enum.Enum):
    """Why a snapshot lists the devices that it lists: real ones, fake ones, or none."""

    OK = "ok"
    REQUESTED = "requested"
    """Fake devices, because `GPUCACHE_FAKE_DEVICES` asks for them."""
    NO_BINDINGS = "no-bindings"
    NO_LIBRARY = "no-library"
    NO_DRIVER = "no-driver"
    NO_DEVICES = "no-devices"
    TEGRA = "tegra"
    """A Jetson without NVML (before JetPack 6): one integrated GPU, of which nothing else is known."""
    WRONG_BINDINGS = "wrong-bindings"
    VERSION_MISMATCH = "version-mismatch"
    NO_PERMISSION = "no-permission"
    TIMEOUT = "timeout"
    ERROR = "error"


class Device(Value, kw_only=True):
    """One CUDA device: a GPU, or a MIG instance (``parent_uuid`` is set). Only the UUID is always known."""

    uuid: str
    """``GPU-…`` or ``MIG-…`` as NVML spells it; ``FAKE-…`` for a fake. The one identity of a device."""
    index: int | None = None
    """NVML's number of the GPU (of the parent, for a MIG instance). Not an identity: containers renumber."""
    minor: int | None = None
    """The number of its node, ``/dev/nvidia<minor>`` (the parent's, for a MIG instance). Containers keep it."""
    pci_bus_id: str | None = None
    """``00000000:1b:00.0``: eight-digit domain, lower case. A MIG instance has its parent's."""
    name: str | None = None
    compute_capability: tuple[int, int] | None = None
    """(major, minor)."""
    memory_bytes: int | None = None
    core_count: int | None = None
    """CUDA cores of the whole GPU (``nvmlDeviceGetNumGpuCores``)."""
    parent_uuid: str | None = None
    slot: int | None = None
    """Position among the parent's MIG devices. Slots have holes."""
    gpu_instance: int | None = None
    compute_instance: int | None = None
    multiprocessor_count: int | None = None
    """Streaming multiprocessors of a MIG instance (``nvmlDeviceGetAttributes`` answers for those only)."""
    fake: bool = False

    @property
    def directory_name(self) -> str | None:
        """The directory's name by NVML's numbers: ``"3"``, or ``"1.2"`` for slot 2 of GPU 1; None without an index.

        A host's record may have given the device another name (see `gpucache.directories.record`).
        """
        if self.index is None:
            return None
        if self.slot is None:
            return str(self.index)
        return f"{self.index}.{self.slot}"

    @property
    def gpu_uuid(self) -> str:
        """The UUID of the physical GPU: the parent's for a MIG instance."""
        return self.parent_uuid or self.uuid

    @property
    def silicon(self) -> str | None:
        """What decides an autotuner's timings: ``sm_90-16896-NVIDIA H200``; None where the device does not tell.

        An H200 has the capability and the cores of an H100, and another memory. For a MIG instance, whose cores NVML
        does not count, it is ``sm_90-16sm-…``.
        """
        name = self.name
        if self.compute_capability is None or not name or not name.isprintable():
            return None
        major, minor = self.compute_capability
        if self.parent_uuid:
            count, unit = self.multiprocessor_count, "sm"
        else:
            count, unit = self.core_count, ""
        return None if count is None else f"sm_{major}{minor}-{count}{unit}-{name}"

    def as_json(self) -> dict[str, Any]:
        """The fields that are known, as JSON's types; `parse` reads them back."""
        known: dict[str, Any] = {}
        for name, value in as_dict(self).items():
            if value is not None and value is not False:
                known[name] = value
        if self.compute_capability is not None:
            known["compute_capability"] = list(self.compute_capability)
        return known

    @classmethod
    def parse(cls, value: object) -> Device:
        """Read what `as_json` wrote; fields of a later version are passed over.

        Raises:
            ValueError: a field is missing or has the wrong type.
        """
        if not isinstance(value, dict):
            raise ValueError(f"a device is a JSON object, not {value!r}")
        known: dict[str, Any] = {}
        for name, expected in _FIELD_TYPES.items():
            found = value.get(name)
            if found is None:
                continue
            if name == "compute_capability":
                found = _capability(found)
            if type(found) is not expected:
                raise ValueError(f"a device's {name} is not {found!r}")
            known[name] = found
        if not known.get("uuid"):
            raise ValueError(f"a device without a uuid: {value!r}")
        return cls(**known)


def architectures(devices: Iterable[Device]) -> tuple[str, ...]:
    """What these devices are, as Triton names it (``sm_90``), each once; none where that is not known of each."""
    found = set()
    for device in devices:
        if device.compute_capability is None:
            return ()
        major, minor = device.compute_capability
        found.add(f"sm_{major}{minor}")
    return tuple(sorted(found))


_FIELD_TYPES: dict[str, type] = {
    "uuid": str,
    "index": int,
    "minor": int,
    "pci_bus_id": str,
    "name": str,
    "compute_capability": tuple,
    "memory_bytes": int,
    "core_count": int,
    "parent_uuid": str,
    "slot": int,
    "gpu_instance": int,
    "compute_instance": int,
    "multiprocessor_count": int,
    "fake": bool,
}


def _capability(value: object) -> tuple[int, int]:
    if (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(type(part) is int for part in value)
    ):
        return (value[0], value[1])
    raise ValueError(f"a compute capability is [major, minor], not {value!r}")


class Unavailable(Value):
    """A GPU that NVML counts but this process cannot use."""

    index: int
    """The number that NVML gives the GPU."""
    code: int | None
    """NVML's return code: 15 is GPU_IS_LOST, 4 is NO_PERMISSION; None where NVML gave no code."""
    text: str

    def as_json(self) -> dict[str, Any]:
        """The fields as a JSON object, by their names."""
        return as_dict(self)


class Snapshot(Value, kw_only=True):
    """The devices of a machine at one moment, and how they are known. It holds plain values, no handle of NVML."""

    status: Status
    source: Literal["nvml", "fake", "tegra", "record", "none"]
    """What told of the devices; ``"record"`` when read from disk, ``"none"`` when the node is sick and nothing did."""
    detail: str = ""
    """One sentence: what was found, or why the devices are fake."""
    advice: str = ""
    """What to do about what ``detail`` says; empty when nothing needs doing."""
    devices: tuple[Device, ...] = ()
    """What CUDA could run on, in NVML's order: GPUs, and for a GPU in MIG mode its instances instead."""
    mig_parents: tuple[Device, ...] = ()
    """The GPUs in MIG mode, those without an instance included."""
    lost: tuple[Unavailable, ...] = ()
    """GPUs that fell off the bus or do not answer."""
    hidden: tuple[Unavailable, ...] = ()
    """GPUs that this process may not open (a container, a cgroup)."""
    driver: str | None = None
    nvml: str | None = None
    cuda: int | None = None
    """CUDA version of the driver: 13000 is 13.0."""
    cuda_order: tuple[str, ...] | None = None
    """UUIDs in libcuda's order, unmasked; empty when it gave no answer, None when it was not asked."""

    @property
    def fake(self) -> bool:
        """Whether the devices are made up."""
        if self.source == "fake":
            return True
        return any(device.fake for device in self.devices)

    @property
    def made_up(self) -> bool:
        """Whether the devices are fake for want of real ones, and not because somebody has asked for fakes."""
        return self.fake and self.status is not Status.REQUESTED

    def as_json(self) -> dict[str, Any]:
        """The fields as a JSON object, by their names, and ``fake``."""
        order: list[str] | None = None
        if self.cuda_order is not None:
            order = list(self.cuda_order)
        return {
            "status": self.status.value,
            "source": self.source,
            "fake": self.fake,
            "detail": self.detail,
            "advice": self.advice,
            "devices": [device.as_json() for device in self.devices],
            "mig_parents": [device.as_json() for device in self.mig_parents],
            "lost": [gpu.as_json() for gpu in self.lost],
            "hidden": [gpu.as_json() for gpu in self.hidden],
            "driver": self.driver,
            "nvml": self.nvml,
            "cuda": self.cuda,
            "cuda_order": order,
        }

    def with_order(self, cuda_order: tuple[str, ...] | None) -> Snapshot:
        """The same devices, with the order that libcuda answered."""
        return replace(self, cuda_order=cuda_order)


def requested_fakes(environ: Mapping[str, str]) -> Snapshot | None:
    """The fake devices that `GPUCACHE_FAKE_DEVICES` asks for; None when it is unset or empty.

    Raises:
        ConfigurationError: the value makes no sense.
    """
    fakes = FAKE_DEVICES.read(environ)
    if fakes is None:
        return None
    return Snapshot(
        status=Status.REQUESTED,
        source="fake",
        detail=f"{FAKE_DEVICES} is set to {FAKE_DEVICES.text(environ)}",
        devices=fake_devices(fakes.count, fakes.name, fakes.compute_capability),
    )


def fake_devices(
    count: int,
    name: str | None = None,
    compute_capability: tuple[int, int] | None = None,
) -> tuple[Device, ...]:
    """Make up devices for a machine without any: numbered from index 0, with UUIDs that no GPU can have."""
    return tuple(
        Device(
            uuid=f"FAKE-{index}",
            index=index,
            name=name or "fake",
            compute_capability=compute_capability,
            fake=True,
        )
        for index in range(count)
    )
