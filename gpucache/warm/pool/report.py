"""`WarmReport` and `Progress`: what a pool has done, and what it is doing."""

from __future__ import annotations

from gpucache.values import Value
from gpucache.warm.outcome import ENDS, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.kernels.recipe_lines import BadLine
    from gpucache.warm.outcome import End


class WarmReport(Value):
    """How all recipes have ended, each for each target."""

    outcomes: tuple[Outcome, ...]
    """In the order in which the recipes were given, as far as they have ended."""
    left: int = 0
    """How many have not: the pool was stopped, or killed."""
    why_left: str = ""
    bad_lines: tuple[BadLine, ...] = ()
    """Lines of the file of recipes that were none."""

    @property
    def counts(self) -> dict[End, int]:
        """How many have ended in each way, the ways that none has left out."""
        counts = {}
        for end in ENDS:
            count = sum(one.end == end for one in self.outcomes)
            if count:
                counts[end] = count
        return counts


class Compiling(Value):
    """A kernel that is being compiled now."""

    kernel: str
    target: str
    since: float
    """When that began, on the clock of `time.monotonic`."""


class Progress(Value):
    """How far a pool is; given to ``on_progress`` whenever something begins or has ended."""

    done: int
    total: int
    compiling: tuple[Compiling, ...]
    importing: tuple[str, ...]
    """The modules whose import has begun last, in each package that is being imported."""
    last: Outcome | None = None
    """What has just ended; None where something has begun."""
