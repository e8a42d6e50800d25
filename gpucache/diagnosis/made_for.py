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
    """Find a kernel whose code runs on no device of this host, as recorded; where one is pinned, not on that one.

    Nothing is found where the record does not know the capability of each device.
    """
    is_for_cuda = metadata.target.startswith("cuda:")
    record = recorded(root)
    if record is None or not is_for_cuda:
        return
    uuid = environment.PINNED_DEVICE.text(environ)
    pinned = [device for device in record.present if device.uuid == uuid]
    present = set()
    for device in pinned or record.present:
        if device.compute_capability is None:
            return
        major, minor = device.compute_capability
        present.add(arch_of(f"cuda:{major}{minor}"))
    if present and metadata.arch not in present:
        fact = f"it was made for {metadata.arch}; this host has {', '.join(sorted(present))}"
        fix = "compile it on this host"
        yield Finding("other-architecture", "error", key, fact, fix)


@tells({"other-triton": "a kernel was made by another version of Triton than is installed here"})
def other_triton(metadata: Metadata) -> Iterator[Finding]:
    """Find a kernel that was not made by the version of Triton that is installed beside gpucache."""
    installed = installed_triton()
    if installed is None or metadata.triton_version == installed:
        return
    writes_no_version = _numbers(installed) < (3, 3)
    if metadata.triton_version is None and writes_no_version:
        return
    made = metadata.triton_version or "a version before 3.3, which does not say"
    fact = f"it was made by Triton {made}; in {sys.prefix} is {installed}"
    fix = f"install triton=={made}, or compile it again"
    yield Finding("other-triton", "error", "triton", fact, fix)


def installed_triton() -> str | None:
    """The version of Triton beside this gpucache, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    for name in _DISTRIBUTIONS:
        try:
            found = str(version(name))
        except PackageNotFoundError:
            continue
        return None if found == "None" else found.partition("+")[0]  # broken metadata have None
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    numbers = re.findall(r"\d+", version)
    return tuple(int(number) for number in numbers[:2])


@tells({"environment-differs": "a variable that is part of the key had another value"})
def environment_differs(metadata: Metadata, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Find the variables in the key whose values differ between this environment and that of the kernel's compile."""
    there = metadata.environment
    here = key_environment(environ)
    names = there.keys() | here.keys()
    for name in sorted(names):
        made = there.get(name)
        now = here.get(name)
        if made == now:
            continue
        then = made or "not set"
        fact = f"{name} is part of the key: it was {then} then, and is {now or 'not set'} here"
        fix = f"set {name}={made}" if made else f"unset {name}"
        yield Finding("environment-differs", "error", name, fact, fix)
