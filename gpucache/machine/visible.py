"""Which devices a CUDA process sees, and in which order: the rules of `CUDA_VISIBLE_DEVICES`.

Nothing here asks CUDA or NVML, or reads a file. Sources: CUDA Programming Guide 13.4, section 5.2.1.1 (the variable);
MIG User Guide (R570 changed how MIG instances are enumerated); for signs, repeats, trailing text and mixed kinds, which
no document covers, the behaviour of driver 525.60.13 as checked in pytorch#92315.
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
    Devices = tuple[Device, ...]
    GpuInstance = tuple[str, str | int]
    Choice = tuple[str, Devices]


_UUID_PREFIXES = ("GPU-", "MIG-")
_MIG_LIMIT = 64
_MIG_ERA = 570  # the driver branch since which one process may see several MIG instances
_BEYOND = 10**9  # no machine has so many GPUs
_MOST_QUOTED = 48
# What strtoul reads: ASCII only; the text behind the number does not count.
_INTEGER = r"[ \t\n\v\f\r]*([+-]?)0*([0-9]+)"


class Visible(Value):
    """The devices that CUDA shows one process. A position in ``devices`` is a CUDA ordinal."""

    devices: Devices
    how: How
    """How the order is known: ``uuid`` (the variable names the devices), ``order`` (`CUDA_DEVICE_ORDER=PCI_BUS_ID`),
    ``alike`` (equal GPUs, so CUDA's heuristic keeps NVML's order), ``driver`` (libcuda was asked and the answer
    recorded), ``fake`` (by position), ``none`` (an empty variable), or ``guess``: nobody knows."""
    cut: str | None = None
    """Why the list ended early or came out empty; None when every token counted."""


class _Gpu(Value):
    """A physical GPU, and the devices that CUDA can enumerate of it."""

    uuid: str
    index: int
    pci_bus_id: str | None
    devices: Devices
    """The GPU itself; in MIG mode its instances instead, of which there may be none."""
    kind: tuple[object, ...]
    """Name, compute capability, cores and memory: where all GPUs have the same, no heuristic can tell them apart."""

    @property
    def partitioned(self) -> bool:
        """Whether the GPU is in MIG mode."""
        if not self.devices:
            return True
        return self.devices[0].parent_uuid is not None


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
    if mask is not None and mask.startswith(_UUID_PREFIXES):
        return _by_uuid(mask.split(","), gpus, snapshot)
    answer = _answered(gpus, snapshot, environ)
    if mask is None:
        return _unmasked(gpus, answer, snapshot, environ)
    ordered, how = _cuda_order(gpus, answer, snapshot, environ)
    tokens = mask.split(",")
    return _by_integer(tokens, ordered, how, snapshot)


def _unmasked(
    gpus: list[_Gpu],
    answer: Devices | None,
    snapshot: Snapshot,
    environ: Mapping[str, str],
) -> Visible:
    """What a process without a mask sees; ``answer`` has the devices in libcuda's order, if that is on record."""
    if answer is not None and not _alike(gpus, snapshot):
        return Visible(answer, "driver")
    ordered, how = _cuda_order(gpus, answer, snapshot, environ)
    groups = [gpu.devices for gpu in ordered]
    return Visible(_enumerated(groups, snapshot), how)


def guess_advice(snapshot: Snapshot) -> tuple[str, str]:
    """The fact and the fix to tell a user, where nobody knows the order in which CUDA counts the snapshot's GPUs."""
    fact = "libcuda did not say in which order it counts these GPUs, so that a number may mean another GPU"
    fix = f"name devices by UUID in {VISIBLE_DEVICES}"
    gpus = _physical(snapshot)
    if _all_plain(gpus, snapshot):
        fix = f"set {DEVICE_ORDER}={BY_BUS}, or {fix}"
    return fact, fix


def _physical(snapshot: Snapshot) -> list[_Gpu]:
    """The GPUs in NVML's order, each with the devices that CUDA could enumerate of it."""
    facts: dict[str, Device] = {}
    found: dict[str, list[Device]] = {}
    for parent in snapshot.mig_parents:
        facts[parent.uuid] = parent
        found[parent.uuid] = []
    for device in snapshot.devices:
        facts.setdefault(device.gpu_uuid, device)
        of_gpu = found.setdefault(device.gpu_uuid, [])
        of_gpu.append(device)
    gpus = []
    for uuid, devices in found.items():
        gpu = _gpu(facts[uuid], tuple(devices), last=len(found))
        gpus.append(gpu)
    return sorted(gpus, key=lambda gpu: gpu.index)


def _gpu(facts: Device, devices: Devices, last: int) -> _Gpu:
    """A GPU with these devices, whose facts NVML states; a GPU without an index gets ``last``, behind all others."""
    index = last if facts.index is None else facts.index
    return _Gpu(
        uuid=facts.gpu_uuid,
        index=index,
        pci_bus_id=facts.pci_bus_id,
        devices=devices,
        kind=(facts.name, facts.compute_capability, facts.core_count, facts.memory_bytes),
    )


def _any_mig(gpus: Iterable[_Gpu]) -> bool:
    return any(gpu.partitioned for gpu in gpus)


def _all_plain(gpus: Iterable[_Gpu], snapshot: Snapshot) -> bool:
    """Whether no GPU of the machine is lost, and none is in MIG mode."""
    return not _any_mig(gpus) and not snapshot.lost


def _alike(gpus: Sequence[_Gpu], snapshot: Snapshot) -> bool:
    """Whether no heuristic can tell the GPUs apart, so that CUDA orders them by their bus addresses."""
    if not _all_plain(gpus, snapshot):
        return False
    if len(gpus) < 2:
        return True
    kinds = {gpu.kind for gpu in gpus}
    (first,) = gpus[0].devices
    return len(kinds) == 1 and first.compute_capability is not None


def _cuda_order(
    gpus: list[_Gpu],
    answer: Devices | None,
    snapshot: Snapshot,
    environ: Mapping[str, str],
) -> tuple[list[_Gpu], How]:
    """The GPUs as integers in the mask count them, and how that is known; ``answer`` is libcuda's, if there is one."""
    if snapshot.fake:
        return gpus, "fake"
    by_bus = _by_bus(gpus)
    if _alike(gpus, snapshot):
        return by_bus, "alike"
    all_plain = _all_plain(gpus, snapshot)
    if all_plain and DEVICE_ORDER.read(environ) == BY_BUS:
        return by_bus, "order"
    position: dict[str, int] = {}
    for device in answer or ():
        position.setdefault(device.gpu_uuid, len(position))
    # Integers count a GPU in MIG mode without an instance too, which libcuda does not name.
    if any(gpu.uuid not in position for gpu in gpus):
        return by_bus, "guess"
    ordered = sorted(by_bus, key=lambda gpu: position[gpu.uuid])
    return ordered, "driver"


def _by_bus(gpus: list[_Gpu]) -> list[_Gpu]:
    """The GPUs in the order of their bus addresses; in the given order where the address of any is unknown."""
    if any(gpu.pci_bus_id is None for gpu in gpus):
        return gpus
    return sorted(gpus, key=lambda gpu: str(gpu.pci_bus_id))


def _answered(
    gpus: list[_Gpu],
    snapshot: Snapshot,
    environ: Mapping[str, str],
) -> Devices | None:
    """The devices in libcuda's recorded order; None without an answer, or where the answer is about other devices."""
    order = snapshot.cuda_order
    if snapshot.fake or not order:
        return None
    known = {device.uuid: device for device in snapshot.devices}
    if any(uuid not in known for uuid in order):
        return None
    answer = tuple(known[uuid] for uuid in order)
    names_all = not _any_mig(gpus) or _shows_many_instances(snapshot)
    if names_all:
        groups = [gpu.devices for gpu in gpus]
        expected = _enumerated(groups, snapshot)
        if _gpu_instances(answer) != _gpu_instances(expected):
            return None
    has_addresses = all(device.pci_bus_id for device in answer)
    if has_addresses and DEVICE_ORDER.read(environ) == BY_BUS:
        return tuple(sorted(answer, key=lambda device: str(device.pci_bus_id)))
    return answer


def _gpu_instances(devices: Iterable[Device]) -> set[GpuInstance]:
    return {_gpu_instance(device) for device in devices}


def _gpu_instance(device: Device) -> GpuInstance:
    """What two devices of one GPU instance have in common; a device that NVML gives no such number has its UUID."""
    if device.gpu_instance is None:
        return device.gpu_uuid, device.uuid
    return device.gpu_uuid, device.gpu_instance


def _enumerated(groups: Iterable[Devices], snapshot: Snapshot) -> Devices:
    """The devices that CUDA enumerates of the chosen GPUs and instances, by the MIG rules of the driver's branch."""
    devices: list[Device] = []
    for group in groups:
        devices.extend(group)
    instances = [device for device in devices if device.parent_uuid is not None]
    if not instances:
        return tuple(devices)
    if not _shows_many_instances(snapshot):
        return (instances[0],)
    first_of: dict[GpuInstance, Device] = {}
    for device in devices:
        first_of.setdefault(_gpu_instance(device), device)
    return tuple(first_of.values())[:_MIG_LIMIT]


def _shown(
    groups: list[Devices],
    how: How,
    cut: str | None,
    snapshot: Snapshot,
) -> Visible:
    """The devices that CUDA shows for a mask, each token of which names a group of devices.

    Where CUDA shows none of a token's devices, ``cut`` says so.
    """
    devices = _enumerated(groups, snapshot)
    shown = {device.uuid for device in devices}
    if cut is None and not all(_any_shown(group, shown) for group in groups):
        cut = "a GPU in MIG mode shows its instances only: one of each GPU instance, before driver 570 one in all"
    return Visible(devices, how, cut)


def _any_shown(group: Devices, shown: set[str]) -> bool:
    return any(device.uuid in shown for device in group)


def _shows_many_instances(snapshot: Snapshot) -> bool:
    """Whether the driver lets one process see several MIG instances; true of a driver without a version."""
    branch = re.match(r"[0-9]{1,6}", snapshot.driver or "")
    if branch is None:
        return True
    return int(branch[0]) >= _MIG_ERA


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
    groups = [gpus[number].devices for number in chosen]
    return _shown(groups, how, cut, snapshot)


def _integer(token: str) -> int | None:
    """The number that strtoul reads in a token, or None; a negative or huge number as one beyond every GPU."""
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
    prefixes: tuple[str, ...] = _UUID_PREFIXES
    if not _shows_many_instances(snapshot):
        prefixes = (tokens[0][:4],)  # all of one kind
    chosen: dict[str, Devices] = {}
    how: How = "uuid"
    cut = None
    for token in tokens:
        matches: dict[str, Devices] = {}
        if token.startswith(prefixes):
            matches = _matches(token, names)
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
            how = "guess"
    groups = list(chosen.values())
    return _shown(groups, how, cut, snapshot)


def _names(gpus: Iterable[_Gpu]) -> dict[str, Choice]:
    """Every spelling of a UUID, with the UUID that the spelling stands for and the devices that it selects."""
    names: dict[str, Choice] = {}
    for gpu in gpus:
        names[gpu.uuid] = (gpu.uuid, gpu.devices)
        for device in gpu.devices:
            choice = (device.uuid, (device,))
            names[device.uuid] = choice
            if device.parent_uuid:  # the spelling of drivers before 470.42
                old = f"MIG-{device.parent_uuid}/{device.gpu_instance}/{device.compute_instance}"
                names[old] = choice
    return names


def named_devices(name: str, snapshot: Snapshot) -> dict[str, Devices]:
    """The devices that a UUID, or what UUIDs begin with, stands for, by UUID; as CUDA reads `CUDA_VISIBLE_DEVICES`.

    The UUID of a GPU in MIG mode stands for all its instances.
    """
    return _matches(name, _names(_physical(snapshot)))


def _matches(token: str, names: Mapping[str, Choice]) -> dict[str, Devices]:
    """The devices that a token may mean, by UUID: of the UUID it spells whole, else of each UUID it is the start of."""
    if token in names:
        uuid, devices = names[token]
        return {uuid: devices}
    matches = {}
    for name, (uuid, devices) in names.items():
        if name.startswith(token):
            matches[uuid] = devices
    return matches


def _is_parent(token: str, gpus: Iterable[_Gpu]) -> bool:
    """Whether a token may mean a GPU in MIG mode."""
    if not token.startswith("GPU-"):
        return False
    parents = [gpu for gpu in gpus if gpu.partitioned]
    return any(parent.uuid.startswith(token) for parent in parents)


def _short(token: str) -> str:
    """A token as it is quoted in a message."""
    if len(token) > _MOST_QUOTED:
        token = token[: _MOST_QUOTED - 3] + "..."
    return repr(token)
