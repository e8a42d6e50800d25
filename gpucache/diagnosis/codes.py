"""The codes of findings: a new check carries its codes here, by `tells`, and `--codes` lists them by `codes_of`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

AnyCheck = TypeVar("AnyCheck", bound=Callable[..., object])

_codes: dict[Callable[..., object], dict[str, str]] = {}
"""The codes that each check has declared, and what each code means."""


def tells(codes: dict[str, str]) -> Callable[[AnyCheck], AnyCheck]:
    """Declare, above a check, every code that its findings may have, and what the code means."""

    def declared(check: AnyCheck) -> AnyCheck:
        _codes[check] = codes
        return check

    return declared


def codes_of(*checks: Callable[..., object]) -> dict[str, str]:
    """Every code that these checks have declared, and what each code means, in the order of the checks."""
    found: dict[str, str] = {}
    for check in checks:
        found |= _codes[check]
    return found
