"""What `gpucache run --fresh` does before it chooses directories: it makes a cache of its own for the run."""

from __future__ import annotations

from gpucache import environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Say(Protocol):
        """Says a line once in a job."""

        def __call__(self, text: str, sentence: str = "") -> None:
            """Say it, unless another rank has."""


_ELSEWHERE = (environment.TRITON_DIRECTORY, environment.INDUCTOR_ROOT)
"""Where a run would cache in spite of its own root."""
_BROUGHT = (environment.REMOTE, environment.FALLBACK, environment.PACK)
"""From where kernels come into a root that is empty."""


def without_directories(given: dict[str, str], say: Say) -> dict[str, str]:
    """The environment without the directories that the user has set, which are not those of a fresh run."""
    from gpucache.directories.settings import set_by_outer

    environ = dict(given)
    by_outer = set_by_outer(given)
    for variable in _ELSEWHERE:
        had = environ.pop(variable.name, None)
        if had and variable.name not in by_outer:
            say(f"note: --fresh: {variable.name}={had} does not hold for this run")
    return environ


def fresh_root(outer: dict[str, str], program: str, say: Say) -> str | None:
    """Make the root of this run below that of ``outer``, the environment that a run would have without it.

    None where an outer run has one already, which this run shares, and where gpucache is disabled.

    Raises:
        GpuCacheError, OSError: it cannot be made.
    """
    from gpucache.configuration import in_force
    from gpucache.directories.local_rank import local_rank
    from gpucache.layout.paths import root_of_fresh
    from gpucache.upkeep.fresh_runs import begin

    settings = in_force(outer).environ
    if environment.DISABLE.read(settings):
        say(f"warning: --fresh: {environment.DISABLE}=1: {program} caches where it does by default")
        return None
    root = outer[environment.ROOT.name]
    if root_of_fresh(root):
        return None
    rank, _ = local_rank(outer)
    path = begin(root, outer, shared=rank is not None)
    say(f"note: --fresh: a cache of its own, {path}, goes after {program}", "note: --fresh")
    for variable in _BROUGHT:
        if variable.text(settings):
            say(f"note: --fresh: kernels may come from {variable.name}")
    return path
