"""Whether a process here would ask for a kernel at all: its architecture, its Triton, and the variables in its key."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping

from gpucache import environment
from gpucache.diagnosis.codes import tells
from gpucache.directories.record import recorded
from gpucache.findings import Finding
from gpucache.kernels.metadata import Metadata, arch_of, key_environment

_DISTRIBUTIONS = ("triton", "pytorch-triton", "pytorch-triton-rocm")


@tells({"other-architecture": "a kernel was made for an architecture that this host has not"})
def other_architecture(
    metadata: Metadata, key: str, root: str, environ: Mapping[str, str]
) -> Iterator[Finding]:
    """Tell if no recorded device of this host runs the code; with a pinned device, only that one is asked."""
    record = recorded(root)
    if record is None or not metadata.target.startswith("cuda:"):
        return
    uuid = environment.PINNED_DEVICE.text(environ)
    pinned = [device for device in record.present if device.uuid == uuid]
    known = {device.compute_capability for device in pinned or record.present}
    present = {arch_of(f"cuda:{one[0]}{one[1]}") for one in known if one is not None}
    if present and metadata.arch not in present and None not in known:
        fact = f"it was made for {metadata.arch}; this host has {', '.join(sorted(present))}"
        yield Finding("other-architecture", "error", key, fact, "compile it on this host")


@tells({"other-triton": "a kernel was made by another version of Triton than is installed here"})
def other_triton(metadata: Metadata) -> Iterator[Finding]:
    """Tell if another Triton than the one installed beside gpucache made the kernel."""
    installed = _installed()
    if installed is None or metadata.triton_version == installed:
        return
    if metadata.triton_version is None and _numbers(installed) < (3, 3):
        return  # it does not say either
    made = metadata.triton_version or "a version before 3.3, which does not say"
    fact = f"it was made by Triton {made}; in {sys.prefix} is {installed}"
    fix = f"install triton=={made}, or compile it again"
    yield Finding("other-triton", "error", "triton", fact, fix)


def _installed() -> str | None:
    """The version of Triton beside this gpucache, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    for name in _DISTRIBUTIONS:
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


@tells({"environment-differs": "a variable that is part of the key had another value"})
def environment_differs(metadata: Metadata, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Tell of each variable in the key that had another value in the process that compiled the kernel."""
    here = key_environment(environ)
    for name in sorted(metadata.environment.keys() | here.keys()):
        made, now = metadata.environment.get(name), here.get(name)
        if made == now:
            continue
        then = made or "not set"
        fact = f"{name} is part of the key: it was {then} then, and is {now or 'not set'} here"
        fix = f"set {name}={made}" if made else f"unset {name}"
        yield Finding("environment-differs", "error", name, fact, fix)
