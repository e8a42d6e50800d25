"""What becomes of each variable that gives a process its directories: set, kept where the user has set it, replaced.

`GPUCACHE_SET` tells, by a checksum of each value, what gpucache has set and nobody has changed since.
"""

from __future__ import annotations

import os

from gpucache import environment
from gpucache.environment import SET_BY_RUN, mark, was_set_by_run
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Literal


VARIABLES = (
    environment.ROOT.name,
    environment.PINNED_DEVICE.name,
    environment.INDUCTOR_ROOT.name,
    environment.TRITON_DIRECTORY.name,
)
_PATHS = (
    environment.ROOT.name,
    environment.INDUCTOR_ROOT.name,
    environment.TRITON_DIRECTORY.name,
)


class Setting(Value):
    """What happened to one variable."""

    name: str
    action: Literal["set", "kept", "replaced", "removed"]
    value: str | None
    """What the command will see; None when it is unset."""
    reason: str
    by: Literal["gpucache", "user"] = "gpucache"
    """Whose choice the value is: the user's where gpucache keeps a value that differs from what it would set."""


class Change(Value):
    """One variable: what it was, and what gpucache wants it to be."""

    name: str
    had: str | None
    wanted: str | None
    by_outer: bool
    """Whether an outer `gpucache run` set it, and nobody has changed it since."""
    forced: bool
    """Whether the user asked for it to be replaced even if it is the user's own."""

    def setting(self, choice: str) -> Setting | None:
        """What becomes of the variable, given how the device was chosen; None when it was and stays unset."""
        name, had, wanted = self.name, self.had, self.wanted
        outer = f"an outer gpucache run set it; {choice}"
        if wanted is None:
            is_leftover = self.by_outer and had
            if not is_leftover:
                return None
            return Setting(name, "removed", None, outer)
        if not had:
            return Setting(name, "set", wanted, choice)
        if had == wanted:
            return Setting(name, "kept", had, "it has the right value")
        if name in _PATHS and os.path.abspath(had) == wanted:
            reason = f"the same as {had}, for a process that is elsewhere"
            return Setting(name, "replaced", wanted, reason)
        if self.by_outer:
            return Setting(name, "replaced", wanted, outer)
        if self.forced:
            return Setting(name, "replaced", wanted, f"as asked, over {had}")
        reason = f"you set it; with --force it would be {wanted}"
        return Setting(name, "kept", had, reason, by="user")


def marks(variables: Mapping[str, str], also: Collection[str] = ()) -> str:
    """The value of `GPUCACHE_SET` that tells an inner call which variables are gpucache's to replace.

    ``also`` has the names of JIT caches' variables; what else is among ``variables`` gets no mark.
    """
    ours = [name for name in (*VARIABLES, *also) if name in variables]
    return ",".join(mark(name, variables[name]) for name in ours)


def set_by_outer(environ: Mapping[str, str]) -> set[str]:
    """The variables that an outer call set, and that still have the value which the outer call gave them."""
    marked = (SET_BY_RUN.text(environ) or "").split(",")
    names = {item.rpartition(":")[0] for item in marked}
    return {name for name in names if was_set_by_run(name, environ)}
