"""What will hurt before it hurts: `examine` looks at the machine, the environment and the disk, and changes nothing.

This module asks about the machine and its record; `gpucache.environment_checks` and `gpucache.disk_checks` do the rest.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping

from gpucache import environment
from gpucache.diagnosis import disk_checks, environment_checks
from gpucache.directories.record import Record, read_record, recorded
from gpucache.directories.registry import DeviceCacheRegistry
from gpucache.environment import BY_BUS, DEVICE_ORDER, FAKE_DEVICES, VISIBLE_DEVICES
from gpucache.errors import DiscoveryError, GpuCacheError, RecordError
from gpucache.findings import Finding
from gpucache.layout import paths
from gpucache.layout.keys import device_directories
from gpucache.machine import device_files
from gpucache.machine.device import Snapshot, Status, requested_fakes
from gpucache.machine.visible import Visible, guess_advice, visible_devices

CODES = {
    # the machine
    "gpu-version-mismatch": "the driver's library and its kernel module have different versions",
    "gpu-no-permission": "this user, cgroup or container may not ask NVML",
    "gpu-timeout": "NVML did not answer in time",
    "gpu-wrong-bindings": "an old pynvml package hides nvidia-ml-py",
    "gpu-error": "NVML failed in another way, or all GPUs are lost",
    "gpu-lost": "a GPU fell off the bus, or does not answer",
    "fake-devices": "there is no GPU here, or fake devices were asked for",
    "mask-cut": "CUDA shows fewer devices than CUDA_VISIBLE_DEVICES lists, or none",
    "order-guess": "nobody knows in which order CUDA counts the GPUs",
    "mixed-gpus": "unlike GPUs, which CUDA counts fastest first and nvidia-smi by bus",
    # the record
    "root-missing": "nothing was provisioned: the root is not there",
    "record-missing": "this host has no record of its devices",
    "record-unusable": "the record is torn, unreadable or another host's",
    "record-fake": "the record has fake devices, and this machine has the NVIDIA driver",
    "record-mismatch": "the kernel shows this process other GPUs than those on record",
    "record-outdated": "NVML shows devices that are not on record",
    "pin-unknown": "GPUCACHE_DEVICE names a device that is not on record",
    # the environment
    "bad-value": "a variable has a value that makes no sense, and commands fail",
    "ignored-value": "a variable has a value that makes no sense, and the plug-in goes on without it",
    "cache-dir-empty": "TRITON_CACHE_DIR or TORCHINDUCTOR_CACHE_DIR is set to nothing",
    "cache-dir-blanks": "a cache directory's variable has blanks around its value",
    "cache-dir-relative": "a cache directory's variable depends on the current directory",
    "triton-dir-hijacked": "TRITON_CACHE_DIR leads into the cache of another root, or of torch's default",
    "triton-dir-other-device": "TRITON_CACHE_DIR is another device's directory than GPUCACHE_DEVICE's",
    "plugin-inactive": "Triton does not use our plug-in: each rank compiles for itself",
    "plugin-missing": "TRITON_CACHE_MANAGER names what this Python cannot import, and kernel launches fail",
    "always-compile": "a variable of Triton's makes it compile whatever is cached",
    "unknown-variable": "a variable looks like one of ours, and is none",
    "disabled": "GPUCACHE_DISABLE=1: nothing of ours acts",
    "not-sharing": "GPUCACHE_SHARE=0: the plug-in shares nothing",
    "triton-untested": "the installed Triton is none that the plug-in was tested with",
    # the disk
    "unsafe-directory": "somebody else could plant code in the cache",
    "broken-path": "the way to a directory of the cache does not lead to one",
    "group-writable": "everybody in a group may write the root",
    "network-fs": "the root is on a network file system",
    "tmpfs": "the root is in memory",
    "noexec": "nothing can be loaded from the root's file system",
    "read-only": "the root's file system is mounted read-only",
    "not-writable": "this user may not write the root",
    "little-space": "the root's file system is nearly full",
    "few-inodes": "the root's file system has few inodes left",
    "over-limit": "the store takes more than GPUCACHE_MAX_SIZE allows",
    "headers-elsewhere": "torch keeps precompiled headers in its default directory",
    "lock-stale": "the holder of a kernel's lock has died",
    "lock-stalled": "the holder of a kernel's lock shows no sign of life",
    "provision-lock-held": "somebody has been provisioning for more than a minute",
    "clock-skew": "the file system's clock is not this machine's",
    "future-times": "files of the cache have times in the future",
    "unreadable": "something could not be examined",
}
"""Every code, and what it means."""

_MEANS_NO_DEVICE = ("", "-1", "NoDevFiles")  # the last is Slurm's


def examine(root: str, environ: Mapping[str, str]) -> tuple[Finding, ...]:
    """What hurts, or will, for processes with this environment and an absolute root; empty when all is well.

    Never raises for what it examines. Writes nothing, but for a file that is there for an instant, in the root's own
    temporary directory, to ask the file system's clock. NVML is asked as `discover` does, with its time limit; CUDA is
    not. Beside any process: a lock is tried only after it stood still for long. An ``error`` hurts now, or is unsafe; a
    ``warning`` will hurt, or costs time.
    """
    bad = tuple(environment_checks.bad_values(environ))
    wrong = {finding.subject for finding in bad}
    environ = {name: value for name, value in environ.items() if name not in wrong}
    unsafe = tuple(_told(root, disk_checks.unsafe(root, environ)))
    known = None if unsafe else recorded(root)
    snapshot, sick = _discovered(environ)
    ordered = snapshot.with_order(known.cuda_order if known else None)
    shown = visible_devices(ordered, {} if sick else environ)
    checks = (
        _fake(snapshot),
        _lost(snapshot),
        _mask(snapshot, shown, environ),
        _order(root, snapshot, shown, known, environ),
        () if unsafe else _record(root, snapshot, environ),
        environment_checks.empty_variables(environ),
        environment_checks.odd_variables(environ),
        environment_checks.hijacked(root, environ),
        environment_checks.other_device(root, known, environ),
        environment_checks.plugin(environ),
        environment_checks.switched_off(environ),
        environment_checks.unknown(environ),
        environment_checks.triton_version(),
        disk_checks.group_writable(root),
        disk_checks.file_system(root),
        disk_checks.mount_options(root),
        disk_checks.room(root),
        disk_checks.over_limit(root, environ),
        disk_checks.headers(root, environ),
        disk_checks.kernel_locks(root, environ),
        disk_checks.provision_lock(root),
        disk_checks.clock_skew(root, environ),
        disk_checks.future_times(root),
    )
    found = (*bad, *sick, *unsafe, *(finding for check in checks for finding in _told(root, check)))
    closed = tuple(f"{finding.subject}/" for finding in found if finding.code == "unreadable")
    return tuple(
        finding
        for finding in found
        if finding.code != "unreadable" or not finding.subject.startswith(closed)
    )


def _told(root: str, check: Iterable[Finding]) -> Iterator[Finding]:
    """What a check finds; if something kept it from looking, that."""
    try:
        yield from check
    except GpuCacheError as error:
        yield Finding("unreadable", "warning", root, error.problem, error.hint)
    except OSError as error:
        where = str(error.filename or root)
        yield Finding(
            "unreadable", "warning", where, error.strerror or str(error), "look at it as its owner"
        )


# ---- the machine


def _discovered(environ: Mapping[str, str]) -> tuple[Snapshot, tuple[Finding, ...]]:
    """The machine's devices; of a sick node none, and why."""
    from gpucache.machine.nvml import discover

    try:
        return discover(environ), ()
    except DiscoveryError as error:
        sick = Finding(f"gpu-{error.status}", "error", "NVML", error.detail, error.advice)
        return Snapshot(status=Status(error.status), source="sick"), (sick,)


def _fake(snapshot: Snapshot) -> Iterator[Finding]:
    if snapshot.fake:
        subject = FAKE_DEVICES.name if snapshot.status is Status.REQUESTED else "NVML"
        fix = snapshot.advice or f"unset {FAKE_DEVICES} where real devices are meant"
        yield Finding(
            "fake-devices", "warning", subject, f"the devices are fake: {snapshot.detail}", fix
        )


def _lost(snapshot: Snapshot) -> Iterator[Finding]:
    """An error, although the others work: whoever starts a rank for each GPU of the node has one too few now."""
    for gpu in snapshot.lost:
        fact = gpu.text if gpu.code is None else f"{gpu.text} (NVML's code {gpu.code})"
        yield Finding("gpu-lost", "error", f"GPU {gpu.index}", fact, snapshot.advice)


def _mask(snapshot: Snapshot, shown: Visible, environ: Mapping[str, str]) -> Iterator[Finding]:
    """A mask that leaves nothing is an error, unless that is plainly meant. Of made-up devices a mask says nothing."""
    if shown.cut is None or (snapshot.fake and snapshot.status is not Status.REQUESTED):
        return
    mask = VISIBLE_DEVICES.text(environ) or ""
    level = "warning" if shown.devices or mask in _MEANS_NO_DEVICE else "error"
    fix = f"unset {VISIBLE_DEVICES}, or list each device once, by a UUID that `gpucache devices` shows"
    yield Finding("mask-cut", level, VISIBLE_DEVICES.name, f"{mask!r}: {shown.cut}", fix)


def _order(
    root: str, snapshot: Snapshot, shown: Visible, known: Record | None, environ: Mapping[str, str]
) -> Iterator[Finding]:
    if shown.how == "guess":
        fact, _, fix = guess_advice(snapshot).partition(": ")
        if known is None or known.cuda_order is None:
            fact = (
                "only libcuda knows in which order it counts these GPUs, and it has not been asked"
            )
            fix = f"{_provision(root)}, which asks it once; or {fix}"
        yield Finding("order-guess", "warning", DEVICE_ORDER.name, fact, fix)
    kinds = {
        gpu.name: None
        for gpu in (*snapshot.devices, *snapshot.mig_parents)
        if gpu.parent_uuid is None
    }
    if shown.how == "driver" and len(kinds) > 1 and DEVICE_ORDER.read(environ) != BY_BUS:
        indices = ", ".join(str(device.directory_name) for device in shown.devices)
        fact = f"{', '.join(map(str, kinds))}: CUDA counts fastest first; its 0, 1, … are nvidia-smi's {indices}"
        fix = f"set {DEVICE_ORDER}={BY_BUS}, or name devices by UUID in {VISIBLE_DEVICES}"
        yield Finding("mixed-gpus", "warning", DEVICE_ORDER.name, fact, fix)


# ---- the record


def _provision(root: str) -> str:
    return f"run `gpucache provision --root {shlex.quote(root)}`"


def _record(root: str, snapshot: Snapshot, environ: Mapping[str, str]) -> Iterator[Finding]:
    """What keeps workers from reading the record is an error, unless `gpucache run` makes up for it."""
    host = paths.host_name()
    path = paths.record_path(root, host)
    if not os.path.isdir(root):
        yield Finding("root-missing", "warning", root, "it is not there", _provision(root))
        return
    try:
        record = read_record(path, host)
    except RecordError as error:
        if _missing(path) and not os.path.isdir(f"{root}/gpucache") and device_directories(root):
            return  # a directory of stock Triton's, which needs none
        code, level = (
            ("record-missing", "warning") if _missing(path) else ("record-unusable", "error")
        )
        yield Finding(code, level, path, error.fact, error.hint)
        return
    try:
        DeviceCacheRegistry.load(root, environ)
    except RecordError as error:
        code, level = _refusal(record, environ)
        yield Finding(code, level, path, error.fact, error.hint)
    else:
        yield from _outdated(root, path, record, snapshot)


def _missing(path: str) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _refusal(record: Record, environ: Mapping[str, str]) -> tuple[str, str]:
    """For which of its reasons `DeviceCacheRegistry.load` refused a sound record."""
    if record.fake and device_files.driver_loaded() and requested_fakes(environ) is None:
        return "record-fake", "error"
    return (
        ("pin-unknown", "error")
        if environment.PINNED_DEVICE.text(environ)
        else ("record-mismatch", "warning")
    )


def _outdated(root: str, path: str, record: Record, snapshot: Snapshot) -> Iterator[Finding]:
    """MIG instances come and go under a running machine, and the kernel's nodes do not tell."""
    present = {device.uuid for device in record.present}
    new = [device.uuid for device in snapshot.devices if device.uuid not in present]
    if new and snapshot.source == "nvml":
        names = ", ".join(new[:4]) + (" and others" if len(new) > 4 else "")
        fact = f"NVML shows {names}, which the record does not have as present"
        yield Finding("record-outdated", "warning", path, fact, _provision(root))
