"""Which devices a CUDA process sees, and in which order: the rules of `CUDA_VISIBLE_DEVICES`.

Pure: no CUDA, no NVML, no file. Sources: CUDA Programming Guide 13.4, section 5.2.1.1 (the variable); MIG User Guide
(R570 changed how MIG instances are enumerated); for signs, repeats, trailing text and mixed kinds, which no document
covers, the behaviour of driver 525.60.13 as checked in pytorch#92315.
"""

from __future__ import annotations

import re

from gpucache.environment import BY_BUS, DEVICE_ORDER, VISIBLE_DEVICES
from gpucache.machine.device import Device, Snapshot
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Literal

    How = Literal["uuid", "order", "alike", "driver", "fake", "none", "guess"]


_MIG_LIMIT = 64
_MIG_ERA = 570  # the driver branch since which one process may see several MIG instances
# What strtoul reads: ASCII only; the text behind the number does not count.
_INTEGER = r"[ \t\n\v\f\r]*([+-]?)0*([0-9]+)"


class Visible(Value):
    """The devices that CUDA shows one process. A position in ``devices`` is a CUDA ordinal."""

    devices: tuple[Device, ...]
    how: How
    """How the order is known: ``uuid`` (the variable names the devices), ``order`` (`CUDA_DEVICE_ORDER=PCI_BUS_ID`),
    ``alike`` (equal GPUs, so CUDA's heuristic keeps NVML's order), ``driver`` (libcuda was asked and the answer
    recorded), ``fake`` (by position), ``none`` (an empty variable), or ``guess``: nobody knows."""
    cut: str | None = None
    """Why the list ended early or came out empty; None when every token counted."""


class _Gpu(Value):
    """A physical GPU as CUDA counts them: itself, or in MIG mode its instances (possibly none)."""

    uuid: str
    index: int
    pci_bus_id: str | None
    devices: tuple[Device, ...]
    kind: tuple[object, ...]

    @property
    def partitioned(self) -> bool:
        return not self.devices or self.devices[0].parent_uuid is not None


def visible_devices(snapshot: Snapshot, environ: Mapping[str, str]) -> Visible:
    """The devices that a CUDA process with this environment sees, in CUDA's order.

    Never raises, whatever the variable holds: like CUDA, it reads as far as the list makes sense, and ``cut`` says
    where that ended. Integers count the GPUs this process can open, in CUDA's order; UUIDs may be shortened to any
    prefix that is unique in the snapshot. Not modelled: MPS, which renumbers (use UUIDs there).
    """
    gpus = _physical(snapshot)
    mask = VISIBLE_DEVICES.text(environ)
    if mask == "":
        return Visible((), "none", f"{VISIBLE_DEVICES} is empty: no device")
    if mask is not None and mask.startswith(("GPU-", "MIG-")):
        return _by_uuid(mask.split(","), gpus, snapshot)
    answer = _answered(gpus, snapshot, environ)
    if mask is None and answer is not None and not _alike(gpus, snapshot):
        return Visible(answer, "driver")
    ordered, how = _cuda_order(gpus, answer, snapshot, environ)
    if mask is None:
        return Visible(_enumerated((gpu.devices for gpu in ordered), snapshot), how)
    return _by_integer(mask.split(","), ordered, how, snapshot)


def guess_advice(snapshot: Snapshot) -> tuple[str, str]:
    """What is wrong where nobody knows the order of the snapshot's GPUs, and what to do about it."""
    fact = "libcuda did not say in which order it counts these GPUs, so that a number may mean another GPU"
    fix = f"name devices by UUID in {VISIBLE_DEVICES}"
    bus_helps = not _any_mig(_physical(snapshot)) and not snapshot.lost
    if bus_helps:
        fix = f"set {DEVICE_ORDER}={BY_BUS}, or {fix}"
    return fact, fix


def _physical(snapshot: Snapshot) -> list[_Gpu]:
    """The GPUs in NVML's order, each with what CUDA could enumerate of it."""
    found: dict[str, list[Device]] = {parent.uuid: [] for parent in snapshot.mig_parents}
    facts = {parent.uuid: parent for parent in snapshot.mig_parents}
    for device in snapshot.devices:
        found.setdefault(device.gpu_uuid, []).append(device)
        facts.setdefault(device.gpu_uuid, device)
    gpus = [
        _Gpu(
            uuid=uuid,
            index=len(found) if facts[uuid].index is None else facts[uuid].index or 0,
            pci_bus_id=facts[uuid].pci_bus_id,
            devices=tuple(devices),
            kind=(
                facts[uuid].name,
                facts[uuid].compute_capability,
                facts[uuid].core_count,
                facts[uuid].memory_bytes,
            ),
        )
        for uuid, devices in found.items()
    ]
    return sorted(gpus, key=lambda gpu: gpu.index)


def _any_mig(gpus: Iterable[_Gpu]) -> bool:
    return any(gpu.partitioned for gpu in gpus)


def _alike(gpus: Sequence[_Gpu], snapshot: Snapshot) -> bool:
    """Whether no heuristic can tell the GPUs apart, so that CUDA's order is that of the bus."""
    if _any_mig(gpus) or snapshot.lost:
        return False
    return len(gpus) < 2 or (len({gpu.kind for gpu in gpus}) == 1 and gpus[0].kind[1] is not None)


def _cuda_order(
    gpus: list[_Gpu],
    answer: tuple[Device, ...] | None,
    snapshot: Snapshot,
    environ: Mapping[str, str],
) -> tuple[list[_Gpu], How]:
    if snapshot.fake:
        return gpus, "fake"
    by_bus = (
        gpus
        if any(gpu.pci_bus_id is None for gpu in gpus)
        else sorted(gpus, key=lambda gpu: gpu.pci_bus_id or "")
    )
    if _alike(gpus, snapshot):
        return by_bus, "alike"
    if DEVICE_ORDER.read(environ) == BY_BUS and not _any_mig(gpus) and not snapshot.lost:
        return by_bus, "order"
    position: dict[str, int] = {}
    for device in answer or ():
        position.setdefault(device.gpu_uuid, len(position))
    # integers count a GPU in MIG mode without an instance too
    if not position.keys() >= {gpu.uuid for gpu in gpus}:
        return by_bus, "guess"
    return sorted(by_bus, key=lambda gpu: position[gpu.uuid]), "driver"


def _answered(
    gpus: list[_Gpu], snapshot: Snapshot, environ: Mapping[str, str]
) -> tuple[Device, ...] | None:
    """The devices in libcuda's recorded order; None without an answer, or where it is about other devices."""
    known = {device.uuid: device for device in snapshot.devices}
    if snapshot.fake or not snapshot.cuda_order or not known.keys() >= set(snapshot.cuda_order):
        return None
    answer = tuple(known[uuid] for uuid in snapshot.cuda_order)
    expected = _enumerated((gpu.devices for gpu in gpus), snapshot)
    several = not _any_mig(gpus) or _driver_branch(snapshot.driver) >= _MIG_ERA
    if several and {_gpu_instance(device) for device in answer} != {
        _gpu_instance(device) for device in expected
    }:
        return None
    if DEVICE_ORDER.read(environ) == BY_BUS and all(device.pci_bus_id for device in answer):
        return tuple(sorted(answer, key=lambda device: device.pci_bus_id or ""))
    return answer


def _gpu_instance(device: Device) -> tuple[str, str | int]:
    """A GPU or a GPU instance; what NVML does not number stands for itself."""
    return device.gpu_uuid, device.uuid if device.gpu_instance is None else device.gpu_instance


def _enumerated(chosen: Iterable[tuple[Device, ...]], snapshot: Snapshot) -> tuple[Device, ...]:
    """What CUDA makes of the chosen GPUs and instances: the MIG rules of the driver's era."""
    devices = [device for group in chosen for device in group]
    instances = [device for device in devices if device.parent_uuid is not None]
    if not instances:
        return tuple(devices)
    if _driver_branch(snapshot.driver) < _MIG_ERA:
        return (instances[0],)
    first_of: dict[tuple[str, str | int], Device] = {}
    for device in devices:
        first_of.setdefault(_gpu_instance(device), device)
    return tuple(first_of.values())[:_MIG_LIMIT]


def _shown(
    chosen: list[tuple[Device, ...]], how: How, cut: str | None, snapshot: Snapshot
) -> Visible:
    """What CUDA makes of the tokens' devices; a token of which nothing is left is told."""
    devices = _enumerated(chosen, snapshot)
    shown = {device.uuid for device in devices}
    if cut is None and any(shown.isdisjoint(device.uuid for device in group) for group in chosen):
        cut = "a GPU in MIG mode shows its instances only: one of each GPU instance, before driver 570 one in all"
    return Visible(devices, how, cut)


def _driver_branch(driver: str | None) -> int:
    match = re.match(r"[0-9]{1,6}", driver or "")
    return int(match[0]) if match else _MIG_ERA


def _by_integer(tokens: list[str], gpus: list[_Gpu], how: How, snapshot: Snapshot) -> Visible:
    chosen: list[int] = []
    cut = None
    for token in tokens:
        number = _integer(token)
        if number is None:
            cut = f"{_short(token)} is not a number: the list ends before it"
        elif number >= len(gpus):
            cut = f"{_short(token)} names none of the {len(gpus)} GPUs: the list ends before it"
        elif number in chosen:
            return Visible(
                (), how, f"{_short(token)} names a GPU again: CUDA then shows none at all"
            )
        if cut:
            break
        chosen.append(number or 0)
    return _shown([gpus[number].devices for number in chosen], how, cut, snapshot)


def _integer(token: str) -> int | None:
    """The number that strtoul reads; one beyond every GPU where it is negative or huge; None where there is none."""
    match = re.match(_INTEGER, token)
    if match is None:
        return None
    beyond = len(match[2]) > 9 or (match[1] == "-" and match[2] != "0")
    return 10**9 if beyond else int(match[2])


def _by_uuid(tokens: list[str], gpus: list[_Gpu], snapshot: Snapshot) -> Visible:
    names = _names(gpus)
    prefixes = ("GPU-", "MIG-") if _driver_branch(snapshot.driver) >= _MIG_ERA else (tokens[0][:4],)
    chosen: dict[str, tuple[Device, ...]] = {}
    sure = True
    cut = None
    for token in tokens:
        matches = _matches(token, names) if token.startswith(prefixes) else {}
        if len(matches) != 1:
            what = "fits several devices" if matches else "names no device"
            cut = f"{_short(token)} {what}: the list ends before it"
            break
        if matches.keys() <= chosen.keys():
            return Visible(
                (), "uuid", f"{_short(token)} names a device again: CUDA then shows none at all"
            )
        chosen.update(matches)
        # Nobody has shown what the driver does with a parent's UUID, nor which UUID a lost GPU had.
        sure = sure and not _is_parent(token, gpus) and (token in names or not snapshot.lost)
    return _shown(list(chosen.values()), "uuid" if sure else "guess", cut, snapshot)


_Choice = tuple[str, tuple[Device, ...]]


def _names(gpus: Iterable[_Gpu]) -> dict[str, _Choice]:
    """Every spelling of a UUID; the UUID it stands for, and the devices it selects."""
    names: dict[str, _Choice] = {}
    for gpu in gpus:
        names[gpu.uuid] = (gpu.uuid, gpu.devices)
        for device in gpu.devices:
            names[device.uuid] = (device.uuid, (device,))
            if device.parent_uuid:  # the spelling of drivers before 470.42
                old = f"MIG-{device.parent_uuid}/{device.gpu_instance}/{device.compute_instance}"
                names[old] = (device.uuid, (device,))
    return names


def _matches(token: str, names: Mapping[str, _Choice]) -> dict[str, tuple[Device, ...]]:
    if token in names:
        return dict([names[token]])
    return dict(choice for name, choice in names.items() if name.startswith(token))


def _is_parent(token: str, gpus: Iterable[_Gpu]) -> bool:
    return token.startswith("GPU-") and any(
        gpu.partitioned and gpu.uuid.startswith(token) for gpu in gpus
    )


def _short(token: str) -> str:
    return repr(token if len(token) <= 48 else token[:45] + "...")
