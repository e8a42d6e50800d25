"""`Finding`: one thing that is wrong, as the report of a root, `verify`, `doctor` and `explain` all state it."""

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
    """One thing that is wrong now, or that will hurt later."""

    code: str
    """A name for scripts, such as ``group-elsewhere``. A code keeps its meaning; new codes may come."""
    level: Level
    """``error`` (it hurts now, or somebody could do harm) or ``warning`` (it will hurt, or costs time)."""
    subject: str
    """The path, variable, device or package that the finding is about."""
    fact: str
    """What was found, with the value."""
    fix: str
    """What to do about the fact."""

    def as_json(self) -> dict[str, str]:
        """The fields as a JSON object, by their names."""
        return {
            "code": self.code,
            "level": self.level,
            "subject": self.subject,
            "fact": self.fact,
            "fix": self.fix,
        }
