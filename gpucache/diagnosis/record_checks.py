"""What `doctor` asks about the record of this host's devices, which workers read instead of asking NVML."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpucache.diagnosis.case import Case, provision_fix
from gpucache.diagnosis.codes import tells
from gpucache.directories.other_hosts import host_with_gpus
from gpucache.directories.record import Record, of_this_host
from gpucache.directories.registry import DeviceCacheRegistry
from gpucache.errors import RecordError
from gpucache.findings import Finding, Level
from gpucache.layout import paths
from gpucache.layout.keys import device_directories

if TYPE_CHECKING:
    from gpucache.errors import RecordReason


@tells(
    {
        "record-missing": "this host has no record of its devices",
        "record-unusable": "the record is torn, unreadable or another host's",
        "record-fake": "the record has fake devices, and this machine has the NVIDIA driver",
        "record-mismatch": "the kernel shows this process other GPUs than those on record",
        "record-outdated": "NVML shows devices that are not on record",
        "pin-unknown": "GPUCACHE_DEVICE names a device that is not on record",
    }
)
def record(case: Case) -> Iterator[Finding]:
    """Find what is wrong with the record.

    What keeps workers from reading the record is an error, unless `gpucache run` makes up for it.
    """
    root = case.root
    if case.unsafe:
        return
    if not os.path.isdir(root):
        return  # `trust_checks.unsafe` tells
    try:
        found = of_this_host(root)
    except RecordError as error:
        yield from _unread(case, error)
        return
    try:
        DeviceCacheRegistry.load(root, case.environ)
    except RecordError as error:
        yield _refused(error)
    else:
        yield from _outdated(case, found)


def _unread(case: Case, error: RecordError) -> Iterator[Finding]:
    """The finding for a record that cannot be read.

    None is needed by a root in which only stock Triton caches, nor by a host without GPUs among hosts with GPUs, of
    which `fake-devices` tells.
    """
    root = case.root
    needs_record = os.path.isdir(f"{root}/gpucache") or not device_directories(root)
    if case.snapshot.made_up and host_with_gpus(root) is not None:
        needs_record = False
    if error.reason != "missing" or needs_record:
        yield _refused(error)


_REFUSALS: dict[RecordReason, tuple[str, Level]] = {
    "missing": ("record-missing", "warning"),
    "unreadable": ("record-unusable", "error"),
    "torn": ("record-unusable", "error"),
    "foreign": ("record-unusable", "error"),
    "fake": ("record-fake", "error"),
    "pin-unknown": ("pin-unknown", "error"),
    "not-whole": ("record-mismatch", "warning"),
}


def _refused(error: RecordError) -> Finding:
    """The finding for a record that was refused."""
    code, level = _REFUSALS[error.reason]
    return Finding(code, level, error.path, error.fact, error.hint)


def _outdated(case: Case, found: Record) -> Iterator[Finding]:
    """Warn of devices that NVML shows and the record does not have.

    MIG instances come and go under a running machine, and the kernel's device files do not show that.
    """
    on_record = {device.uuid for device in found.present}
    uuids = [device.uuid for device in case.snapshot.devices]
    new = [uuid for uuid in uuids if uuid not in on_record]
    if new and case.snapshot.source == "nvml":
        path = paths.record_path(case.root, found.host)
        more = " and others" if len(new) > 4 else ""
        fact = f"NVML shows {', '.join(new[:4])}{more}, which the record does not have as present"
        fix = provision_fix(case.root)
        yield Finding("record-outdated", "warning", path, fact, fix)
