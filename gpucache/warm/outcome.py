"""`Outcome`: how the compile of one recipe for one target has ended. Imports no Triton."""

from __future__ import annotations

from typing import Literal, get_args

from gpucache.values import Value

End = Literal[
    "made",
    "made (source changed)",
    "there",
    "missing",
    "not for this target",
    "cannot be imported",
    "differs here",
    "source changed",
    "failed",
]
ENDS: tuple[End, ...] = get_args(End)
"""Every end, in the order in which a summary tells them. *missing*: with ``dry_run``, what would have been compiled.
*source changed*: nothing was compiled, since ``exact`` forbids that, or since the parameters are others now."""


class Outcome(Value):
    """How one recipe ended for one target. It can be sent from process to process as JSON of its fields."""

    recipe: str
    """The recorded key, by which recipes are known."""
    kernel: str
    target: str
    """The architecture: ``sm_90``, ``gfx942``."""
    end: End
    key: str | None = None
    """The key under which the kernel lies in the store now; None where nothing was compiled or found."""
    seconds: float = 0.0
    """Wall time from the question to the answer, in seconds."""
    why: str = ""
    """What a person needs to know beyond `end`: the error, the global that differs, the time limit. One line."""
