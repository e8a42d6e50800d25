"""The codes of findings: a new check carries its codes here, by `tells`, and `--codes` lists them by `codes_of`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Codes = dict[str, str]
"""What each code means."""
Check = Callable[..., object]
"""A function that yields findings."""
AnyCheck = TypeVar("AnyCheck", bound=Check)

_codes: dict[Check, Codes] = {}
"""The codes that each check has declared."""


def tells(codes: Codes) -> Callable[[AnyCheck], AnyCheck]:
    """Declare, above a check, every code that its findings may have, and what the code means."""

    def declared(check: AnyCheck) -> AnyCheck:
        _codes[check] = codes
        return check

    return declared


def codes_of(*checks: Check) -> Codes:
    """Every code that these checks have declared, and what each code means, in the order of the checks."""
    found: Codes = {}
    for check in checks:
        found |= _codes[check]
    return found
