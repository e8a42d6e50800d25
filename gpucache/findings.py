"""`Finding`: one thing that is wrong, in which the report of a root, `verify`, `doctor` and `explain` all speak."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning"]


def repair_command(root: str) -> str:
    """The command that repairs a root, as one types it into a shell."""
    return f"gpucache verify --repair --root {shlex.quote(root)}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or will be."""

    code: str
    """Stable, for scripts: ``group-elsewhere``. A code keeps its meaning; new ones may come."""
    level: Level
    """``error`` (it hurts now, or somebody could do harm) or ``warning`` (it will hurt, or costs time)."""
    subject: str
    """The path, variable, device or package that it is about."""
    fact: str
    """What was found, with the value."""
    fix: str
    """What to do about it."""

    def as_json(self) -> dict[str, str]:
        """Every field, by its name."""
        return {
            "code": self.code,
            "level": self.level,
            "subject": self.subject,
            "fact": self.fact,
            "fix": self.fix,
        }
