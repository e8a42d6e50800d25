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
_BEYOND = 10**9  # no machine has so many GPUs
_MOST_QUOTED = 48
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
    kind: tuple[str | None, tuple[int, int] | None, int | None, int | None]
    """Name, compute capability, cores and memory."""

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
    gpus = [_gpu(facts[uuid], tuple(devices), len(found)) for uuid, devices in found.items()]
    return sorted(gpus, key=lambda gpu: gpu.index)


def _gpu(facts: Device, devices: tuple[Device, ...], last: int) -> _Gpu:
    """A GPU, of which ``facts`` are known; one without an index counts as the last."""
    return _Gpu(
        uuid=facts.gpu_uuid,
        index=facts.index if facts.index is not None else last,
        pci_bus_id=facts.pci_bus_id,
        devices=devices,
        kind=(facts.name, facts.compute_capability, facts.core_count, facts.memory_bytes),
    )


def _any_mig(gpus: Iterable[_Gpu]) -> bool:
    return any(gpu.partitioned for gpu in gpus)


def _alike(gpus: Sequence[_Gpu], snapshot: Snapshot) -> bool:
    """Whether no heuristic can tell the GPUs apart, so that CUDA's order is that of the bus."""
    if _any_mig(gpus) or snapshot.lost:
        return False
    if len(gpus) < 2:
        return True
    kinds = {gpu.kind for gpu in gpus}
    _, capability, _, _ = gpus[0].kind
    return len(kinds) == 1 and capability is not None


def _cuda_order(
    gpus: list[_Gpu],
    answer: tuple[Device, ...] | None,
    snapshot: Snapshot,
    environ: Mapping[str, str],
) -> tuple[list[_Gpu], How]:
    """The GPUs as integers in the mask count them, and how that is known; ``answer`` is libcuda's, if it has one."""
    if snapshot.fake:
        return gpus, "fake"
    by_bus = _by_bus(gpus)
    if _alike(gpus, snapshot):
        return by_bus, "alike"
    whole = not _any_mig(gpus) and not snapshot.lost
    if whole and DEVICE_ORDER.read(environ) == BY_BUS:
        return by_bus, "order"
    position: dict[str, int] = {}
    for device in answer or ():
        position.setdefault(device.gpu_uuid, len(position))
    # Integers count a GPU in MIG mode without an instance too, which libcuda does not name.
    if any(gpu.uuid not in position for gpu in gpus):
        return by_bus, "guess"
    return sorted(by_bus, key=lambda gpu: position[gpu.uuid]), "driver"


def _by_bus(gpus: list[_Gpu]) -> list[_Gpu]:
    """The GPUs by their bus addresses; as they are where one has none."""
    if any(gpu.pci_bus_id is None for gpu in gpus):
        return gpus
    return sorted(gpus, key=lambda gpu: str(gpu.pci_bus_id))


def _answered(
    gpus: list[_Gpu], snapshot: Snapshot, environ: Mapping[str, str]
) -> tuple[Device, ...] | None:
    """The devices in libcuda's recorded order; None without an answer, or where it is about other devices."""
    known = {device.uuid: device for device in snapshot.devices}
    order = snapshot.cuda_order
    if snapshot.fake or not order or any(uuid not in known for uuid in order):
        return None
    answer = tuple(known[uuid] for uuid in order)
    names_all = not _any_mig(gpus) or _driver_branch(snapshot.driver) >= _MIG_ERA
    if names_all:
        expected = _enumerated((gpu.devices for gpu in gpus), snapshot)
        if _gpu_instances(answer) != _gpu_instances(expected):
            return None
    has_addresses = all(device.pci_bus_id for device in answer)
    if has_addresses and DEVICE_ORDER.read(environ) == BY_BUS:
        return tuple(sorted(answer, key=lambda device: str(device.pci_bus_id)))
    return answer


def _gpu_instances(devices: Iterable[Device]) -> set[tuple[str, str | int]]:
    return {_gpu_instance(device) for device in devices}


def _gpu_instance(device: Device) -> tuple[str, str | int]:
    """A GPU or a GPU instance; what NVML does not number stands for itself."""
    if device.gpu_instance is None:
        return device.gpu_uuid, device.uuid
    return device.gpu_uuid, device.gpu_instance


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
    """The devices of a mask whose first token is no UUID: each token is CUDA's number of a GPU."""
    chosen: list[int] = []
    cut = None
    for token in tokens:
        number = _integer(token)
        if number is None:
            cut = f"{_short(token)} is not a number: the list ends before it"
            break
        if number >= len(gpus):
            cut = f"{_short(token)} names none of the {len(gpus)} GPUs: the list ends before it"
            break
        if number in chosen:
            again = f"{_short(token)} names a GPU again: CUDA then shows none at all"
            return Visible((), how, again)
        chosen.append(number)
    return _shown([gpus[number].devices for number in chosen], how, cut, snapshot)


def _integer(token: str) -> int | None:
    """The number that strtoul reads; one beyond every GPU where it is negative or huge; None where there is none."""
    match = re.match(_INTEGER, token)
    if match is None:
        return None
    sign, digits = match.groups()
    is_negative = sign == "-" and digits != "0"
    if is_negative or len(digits) > 9:
        return _BEYOND
    return int(digits)


def _by_uuid(tokens: list[str], gpus: list[_Gpu], snapshot: Snapshot) -> Visible:
    """The devices of a mask whose first token begins as a UUID does."""
    names = _names(gpus)
    prefixes: tuple[str, ...] = ("GPU-", "MIG-")
    if _driver_branch(snapshot.driver) < _MIG_ERA:
        prefixes = (tokens[0][:4],)  # all of one kind
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
            again = f"{_short(token)} names a device again: CUDA then shows none at all"
            return Visible((), "uuid", again)
        chosen.update(matches)
        # Nobody has shown what the driver does with a parent's UUID, nor which UUID a lost GPU had.
        may_be_lost = token not in names and bool(snapshot.lost)
        if may_be_lost or _is_parent(token, gpus):
            sure = False
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
    """What a token may mean: the UUID that it spells whole, else every one that begins so."""
    if token in names:
        uuid, devices = names[token]
        return {uuid: devices}
    return dict(choice for name, choice in names.items() if name.startswith(token))


def _is_parent(token: str, gpus: Iterable[_Gpu]) -> bool:
    """Whether a token may mean a GPU in MIG mode."""
    if not token.startswith("GPU-"):
        return False
    return any(gpu.partitioned and gpu.uuid.startswith(token) for gpu in gpus)


def _short(token: str) -> str:
    """A token as it is quoted in a message."""
    if len(token) > _MOST_QUOTED:
        token = token[: _MOST_QUOTED - 3] + "..."
    return repr(token)
