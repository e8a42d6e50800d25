"""Eight GPUs, and which of them the kernel shows."""

from __future__ import annotations

import shutil
from pathlib import Path

from gpucache import Device, DeviceCacheRegistry, Snapshot, Status

LIKE = [
    Device(
        uuid=f"GPU-{index:08x}-0000-4000-8000-000000000000",
        index=index,
        minor=index,
        pci_bus_id=f"00000000:{index + 16:02x}:00.0",
        name="NVIDIA H100 80GB HBM3",
        compute_capability=(9, 0),
        memory_bytes=80 * 2**30,
    )
    for index in range(8)
]


def gpus(*devices: Device) -> Snapshot:
    return Snapshot(status=Status.OK, source="nvml", devices=devices, driver="580.95.05")


def show(dev: Path, *devices: Device, uuids: bool = False) -> None:
    """Let the kernel show just these GPUs."""
    for node in dev.glob("nvidia[0-9]*"):
        node.unlink()
    shutil.rmtree(dev / "proc", ignore_errors=True)
    for device in devices:
        (dev / f"nvidia{device.minor}").touch()
        if uuids:
            place = dev / "proc" / str(device.pci_bus_id)
            place.mkdir(parents=True)
            (place / "information").write_text(
                f"GPU UUID: \t {device.uuid}\nDevice Minor: \t {device.minor}\n"
            )


def record_device(root: Path, capability: tuple[int, int], cores: int) -> None:
    """Provision the root for one device of this silicon."""
    known = {"name": "NVIDIA H100", "compute_capability": capability, "core_count": cores}
    device = Device(uuid=f"GPU-{cores}", index=0, **known)  # type: ignore[arg-type]
    DeviceCacheRegistry(
        root, Snapshot(status=Status.OK, source="nvml", devices=(device,)), {}
    ).provision()
