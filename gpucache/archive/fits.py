"""Where a library or an autotuner's result fits, beside its key: as a pack says it, and whether that is here.

A library fits one kind of processor, one Python ABI, and the libc that it was built for or a later one of the same
name; an autotuner's result is worth what the device was on which it was measured. A kernel fits wherever its key is
asked for.
"""

from __future__ import annotations

import platform
import re
import struct
import sysconfig
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from gpucache.kernels.elf import ELF_64

Unfit = Literal["machine", "abi", "libc", "device"]

# Of `e_machine` in an ELF header (elf.h), what `platform.machine` calls it on Linux.
_MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64", 21: "ppc64le"}
_MACHINE = struct.Struct("<H")
_MACHINE_AT = 18
_ABI = re.compile(r"(?:cpython|pypy|graalpy)[0-9A-Za-z_-]*")
_NOBODY_ELSES = "only-"
"""How the tag of an autotuner's result begins that was measured on a device of which nobody knows the kind."""


class Here(NamedTuple):
    """What a process on this node can use."""

    machine: str
    """As `platform.machine` says it: ``x86_64``."""
    abi: str
    """Of this Python, as `sysconfig` calls it (SOABI): ``cpython-311-x86_64-linux-gnu``."""
    libc: str
    """Name and version: ``glibc-2.36``."""
    devices: frozenset[str] = frozenset()
    """The kinds of devices on record (`gpucache.machine.device.Device.silicon`)."""

    def unfit(self, fits: Mapping[str, str], tag: str) -> Unfit | None:
        """In what an entry with this ``fits`` and this tag (`Facts.tag`) differs from what is here; None if it fits.

        What has a tag is stored under a key that is made of that, so that the tag has to say the same as ``fits``: of a
        library this Python, and libc's very version; of an autotuner's result the device.
        """
        if "device" in fits:
            is_here = fits["device"] in self.devices and tag == fits["device"]
            return None if is_here else "device"
        if "machine" not in fits:
            return None
        if fits["machine"] != self.machine:
            return "machine"
        if fits.get("abi") != self.abi:
            return "abi"
        libc = fits.get("libc", "")
        is_usable = tag == f"{self.abi}-{self.libc}" if tag else _runs_on(libc, self.libc)
        return None if is_usable else "libc"


def here(devices: Iterable[str] = ()) -> Here:
    """What this process can use; ``devices`` are the kinds of devices of this node, as far as a record tells."""
    return Here(platform.machine(), _abi(), _libc(), frozenset(devices))


def fits_of_library(name: str, tag: str, head: bytes) -> dict[str, str] | None:
    """Where a library of this name and tag fits, whose file begins with ``head``; None where nobody can tell.

    Of a library whose name tells its ABI the libc is that of this process, which is taken for the one that built it.
    """
    machine = _machine_of(head)
    abi, libc = _abi_in(name), _libc()
    if tag:
        parts = tag.rsplit("-", 2)
        if len(parts) != 3:
            return None
        abi, libc = parts[0], f"{parts[1]}-{parts[2]}"
    if machine is None or not abi:
        return None
    return {"machine": machine, "abi": abi, "libc": libc}


def fits_of_autotune(tag: str) -> dict[str, str] | None:
    """The device on which an autotuner's result of this tag was measured; None where nobody knows its kind."""
    if not tag or tag.startswith(_NOBODY_ELSES):
        return None
    return {"device": tag}


def _machine_of(head: bytes) -> str | None:
    if not head.startswith(ELF_64) or len(head) < _MACHINE_AT + _MACHINE.size:
        return None
    (number,) = _MACHINE.unpack_from(head, _MACHINE_AT)
    return _MACHINES.get(number)


def _abi_in(name: str) -> str:
    """The ABI in the name of a library, as in ``launcher.cpython-311-x86_64-linux-gnu.so``; empty without one."""
    tag = name.removesuffix(".so").rpartition(".")[2]
    return tag if _ABI.fullmatch(tag) else ""


def _abi() -> str:
    return str(sysconfig.get_config_var("SOABI"))


def _libc() -> str:
    return "-".join(platform.libc_ver())


def _runs_on(built: str, there: str) -> bool:
    """Whether what was built for one libc runs on another: of the same name, and as late or later."""
    name, _, version = built.rpartition("-")
    its_name, _, its_version = there.rpartition("-")
    return name == its_name and _numbers(version) <= _numbers(its_version)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]+", version)]
