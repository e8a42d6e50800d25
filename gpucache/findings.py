"""What is wrong, as a value: the report of what is on disk, `verify` and `doctor` all speak in these."""

from __future__ import annotations

import shlex
from dataclasses import dataclass


def repair_command(root: str) -> str:
    """What mends a root, for a shell."""
    return f"gpucache verify --repair --root {shlex.quote(root)}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or will be."""

    code: str
    """Stable, for scripts: ``group-elsewhere``. A code keeps its meaning; new ones may come."""
    level: str
    """``error`` (it hurts now, or somebody could do harm) or ``warning`` (it will hurt, or costs time)."""
    subject: str
    """The path, variable, device or package that it is about."""
    fact: str
    """What was found, with the value."""
    fix: str
    """What to do about it."""

    def as_json(self) -> dict[str, str]:
        """Every field, by its name."""
        return {name: getattr(self, name) for name in ("code", "level", "subject", "fact", "fix")}
