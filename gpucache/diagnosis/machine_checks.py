"""What `doctor` asks about the machine: its GPUs, and which of them CUDA shows, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gpucache.diagnosis.case import Case, provision_fix
from gpucache.diagnosis.codes import tells
from gpucache.environment import BY_BUS, DEVICE_ORDER, FAKE_DEVICES, VISIBLE_DEVICES
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
    }
)
def discovered(environ: Mapping[str, str]) -> tuple[Snapshot, tuple[Finding, ...]]:
    """The machine's devices; of a sick node no device, and a finding that says why."""
    from gpucache.machine.nvml import discover

    try:
        return discover(environ), ()
    except DiscoveryError as error:
        sick = Finding(f"gpu-{error.status}", "error", "NVML", error.detail, error.advice)
        return Snapshot(status=Status(error.status), source="none"), (sick,)


@tells({"gpu-lost": "a GPU fell off the bus, or does not answer"})
def lost(case: Case) -> Iterator[Finding]:
    """An error, although the others work: whoever starts a rank for each GPU of the node has one too few now."""
    for gpu in case.snapshot.lost:
        fact = gpu.text if gpu.code is None else f"{gpu.text} (NVML's code {gpu.code})"
        yield Finding("gpu-lost", "error", f"GPU {gpu.index}", fact, case.snapshot.advice)


@tells({"fake-devices": "there is no GPU here, or fake devices were asked for"})
def fake(case: Case) -> Iterator[Finding]:
    """A warning also where fakes were asked for: the variable may be left over from a test."""
    snapshot = case.snapshot
    if snapshot.fake:
        subject = FAKE_DEVICES.name if snapshot.status is Status.REQUESTED else "NVML"
        fact = f"the devices are fake: {snapshot.detail}"
        fix = snapshot.advice or f"unset {FAKE_DEVICES} where real devices are meant"
        yield Finding("fake-devices", "warning", subject, fact, fix)


@tells({"mask-cut": "CUDA shows fewer devices than CUDA_VISIBLE_DEVICES lists, or none"})
def mask(case: Case) -> Iterator[Finding]:
    """A mask that leaves nothing is an error, unless that is plainly meant. Of made-up devices a mask says nothing."""
    made_up = case.snapshot.fake and case.snapshot.status is not Status.REQUESTED
    if case.shown.cut is None or made_up:
        return
    text = VISIBLE_DEVICES.text(case.environ) or ""
    is_meant = bool(case.shown.devices) or text in _MEANS_NO_DEVICE
    level: Level = "warning" if is_meant else "error"
    fact = f"{text!r}: {case.shown.cut}"
    fix = f"unset {VISIBLE_DEVICES}, or list each device once, by a UUID that `gpucache devices` shows"
    yield Finding("mask-cut", level, VISIBLE_DEVICES.name, fact, fix)


@tells({"order-guess": "nobody knows in which order CUDA counts the GPUs"})
def order_guess(case: Case) -> Iterator[Finding]:
    """With the way out, which is to ask libcuda where nobody has asked it yet."""
    if case.shown.how != "guess":
        return
    fact, fix = guess_advice(case.snapshot)
    if case.known is None or case.known.cuda_order is None:
        fact = "only libcuda knows in which order it counts these GPUs, and it has not been asked"
        fix = f"{provision_fix(case.root)}, which asks it once; or {fix}"
    yield Finding("order-guess", "warning", DEVICE_ORDER.name, fact, fix)


@tells({"mixed-gpus": "unlike GPUs, which CUDA counts fastest first and nvidia-smi by bus"})
def mixed_gpus(case: Case) -> Iterator[Finding]:
    """A warning, since a number then means two things; not where the environment says to count by bus."""
    snapshot = case.snapshot
    gpus = [gpu for gpu in snapshot.devices if gpu.parent_uuid is None]
    names = [str(gpu.name) for gpu in (*gpus, *snapshot.mig_parents)]
    kinds = list(dict.fromkeys(names))
    by_bus = DEVICE_ORDER.read(case.environ) == BY_BUS
    if case.shown.how == "driver" and len(kinds) > 1 and not by_bus:
        indices = ", ".join(str(device.directory_name) for device in case.shown.devices)
        fact = (
            f"{', '.join(kinds)}: CUDA counts fastest first; its 0, 1, … are nvidia-smi's {indices}"
        )
        fix = f"set {DEVICE_ORDER}={BY_BUS}, or name devices by UUID in {VISIBLE_DEVICES}"
        yield Finding("mixed-gpus", "warning", DEVICE_ORDER.name, fact, fix)
