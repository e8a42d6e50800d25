"""What all checks of `doctor` have in common: the `Case` that they look at, and the codes that they tell of."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from gpucache.directories.record import Record
from gpucache.machine.device import Snapshot
from gpucache.machine.visible import Visible

AnyCheck = TypeVar("AnyCheck", bound=Callable[..., object])

_codes: dict[Callable[..., object], dict[str, str]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is known before the checks begin: each check is a function of it that yields findings."""

    root: str
    """Absolute."""
    environ: Mapping[str, str]
    """The environment, without the variables whose values make no sense."""
    unsafe: bool
    """Whether somebody else could plant code in the root, so that its record is not believed."""
    known: Record | None
    """This host's record; None where there is none that can be used."""
    snapshot: Snapshot
    """The machine's devices; none where the node is sick."""
    shown: Visible
    """The devices that CUDA shows a process with this environment."""


def provision_fix(root: str) -> str:
    """The fix of a finding that provisioning mends."""
    return f"run `gpucache provision --root {shlex.quote(root)}`"


def tells(codes: dict[str, str]) -> Callable[[AnyCheck], AnyCheck]:
    """Declare, at a check, every code that its findings may have, and what the code means."""

    def declared(check: AnyCheck) -> AnyCheck:
        _codes[check] = codes
        return check

    return declared


def codes_of(*checks: Callable[..., object]) -> dict[str, str]:
    """Every code that these checks tell of, and what it means, in the order of the checks."""
    found: dict[str, str] = {}
    for check in checks:
        found |= _codes[check]
    return found
