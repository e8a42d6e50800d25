"""What `doctor` asks about the machine: its GPUs, and which of them CUDA shows, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gpucache.diagnosis.case import Case, provision_fix
from gpucache.diagnosis.codes import tells
from gpucache.directories.visible_by_record import contradiction
from gpucache.environment import (
    BY_BUS,
    DEVICE_ORDER,
    FAKE_DEVICES,
    PINNED_DEVICE,
    VISIBLE_DEVICES,
)
from gpucache.errors import DiscoveryError
from gpucache.findings import Finding, Level
from gpucache.machine.device import Snapshot, Status
from gpucache.machine.visible import guess_advice

_MEANS_NO_DEVICE = ("", "-1", "NoDevFiles")  # the last is Slurm's


@tells(
    {
        "gpu-version-mismatch": "the driver's library and its kernel module have different versions",
        "gpu-no-permission": "this user, cgroup or container may not ask NVML",
        "gpu-timeout": "NVML did not answer in time",
        "gpu-wrong-bindings": "an old pynvml package hides nvidia-ml-py",
        "gpu-error": "NVML failed in another way, or all GPUs are lost",
        "gpu-no-library": "the driver is here, and its library libnvidia-ml.so.1 is not",
        "gpu-no-driver": "the driver's device files are here, and its kernel module is not loaded",
        "gpu-no-bindings": "the driver is here, and the Python package nvidia-ml-py is not",
    }
)
def discovered(environ: Mapping[str, str]) -> tuple[Snapshot, tuple[Finding, ...]]:
    """The machine's devices, and no finding; of a sick node no device, and a finding that says why."""
    from gpucache.machine.nvml import discover

    try:
        return discover(environ), ()
    except DiscoveryError as error:
        code = f"gpu-{error.status}"
        sick = Finding(code, "error", "NVML", error.detail, error.advice)
        nothing = Snapshot(status=Status(error.status), source="none")
        return nothing, (sick,)


@tells({"gpu-lost": "a GPU fell off the bus, or does not answer"})
def lost(case: Case) -> Iterator[Finding]:
    """Find lost GPUs: an error although the others work, since a job with a rank for each GPU lacks one now."""
    fix = case.snapshot.advice
    for gpu in case.snapshot.lost:
        subject = f"GPU {gpu.index}"
        fact = gpu.text if gpu.code is None else f"{gpu.text} (NVML's code {gpu.code})"
        yield Finding("gpu-lost", "error", subject, fact, fix)


@tells({"fake-devices": "there is no GPU here, or fake devices were asked for"})
def fake(case: Case) -> Iterator[Finding]:
    """Warn of fake devices, even of those that were asked for: the variable may be left over from a test."""
    snapshot = case.snapshot
    if snapshot.fake:
        was_asked_for = snapshot.status is Status.REQUESTED
        subject = FAKE_DEVICES.name if was_asked_for else "NVML"
        fact = f"the devices are fake: {snapshot.detail}"
        fix = snapshot.advice or f"unset {FAKE_DEVICES} where real devices are meant"
        yield Finding("fake-devices", "warning", subject, fact, fix)


@tells({"mask-cut": "CUDA shows fewer devices than CUDA_VISIBLE_DEVICES lists, or none"})
def mask(case: Case) -> Iterator[Finding]:
    """Find a mask that cuts devices off: an error where none is left, unless that is plainly meant.

    Nothing is found where the devices are made up for want of real ones, since a mask does not mean those.
    """
    snapshot = case.snapshot
    if case.shown.cut is None or snapshot.made_up:
        return
    text = VISIBLE_DEVICES.text(case.environ) or ""
    is_meant = bool(case.shown.devices) or text in _MEANS_NO_DEVICE
    level: Level = "warning" if is_meant else "error"
    fact = f"{text!r}: {case.shown.cut}"
    fix = f"unset {VISIBLE_DEVICES}, or list each device once, by a UUID that `gpucache devices` shows"
    subject = VISIBLE_DEVICES.name
    yield Finding("mask-cut", level, subject, fact, fix)


@tells({"pin-contradicts-mask": "GPUCACHE_DEVICE names a device that CUDA does not show"})
def pin(case: Case) -> Iterator[Finding]:
    """Find a pin of one device and a mask of another: the kernels of one are then cached for the other.

    Nothing is found where the devices are made up for want of real ones.
    """
    snapshot = case.snapshot
    against = contradiction(snapshot, case.environ, numbers_hold=True)
    if against is None or snapshot.made_up:
        return
    known = {device.uuid for device in snapshot.devices}
    if case.known is not None:
        known |= case.known.names.keys()
    if against.pinned in known:  # else `pin-unknown` tells
        subject = PINNED_DEVICE.name
        yield Finding("pin-contradicts-mask", "error", subject, against.fact, against.fix)


@tells({"order-guess": "nobody knows in which order CUDA counts the GPUs"})
def order_guess(case: Case) -> Iterator[Finding]:
    """Warn of an order that is a guess. The fix is to ask libcuda, where the record does not show that it was asked."""
    if case.shown.how != "guess":
        return
    fact, fix = guess_advice(case.snapshot)
    was_asked = case.known is not None and case.known.cuda_order is not None
    if not was_asked:
        fact = "only libcuda knows in which order it counts these GPUs, and it has not been asked"
        fix = f"{provision_fix(case.root)}, which asks it once; or {fix}"
    yield Finding("order-guess", "warning", DEVICE_ORDER.name, fact, fix)


@tells({"mixed-gpus": "unlike GPUs, which CUDA counts fastest first and nvidia-smi by bus"})
def mixed_gpus(case: Case) -> Iterator[Finding]:
    """Warn of unlike GPUs, since a number then means two things; not where the environment says to count by bus."""
    if case.shown.how != "driver" or DEVICE_ORDER.read(case.environ) == BY_BUS:
        return
    snapshot = case.snapshot
    gpus = [device for device in snapshot.devices if device.parent_uuid is None]
    gpus += snapshot.mig_parents
    names = [str(gpu.name) for gpu in gpus]
    kinds = list(dict.fromkeys(names))
    if len(kinds) > 1:
        indices = ", ".join(str(device.directory_name) for device in case.shown.devices)
        fact = (
            f"{', '.join(kinds)}: CUDA counts fastest first; its 0, 1, … are nvidia-smi's {indices}"
        )
        fix = f"set {DEVICE_ORDER}={BY_BUS}, or name devices by UUID in {VISIBLE_DEVICES}"
        yield Finding("mixed-gpus", "warning", DEVICE_ORDER.name, fact, fix)
