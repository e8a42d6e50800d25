"""`Package`: how far the modules of one top-level package are imported, and which of its kernels are to be done."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    from gpucache.warm.pool.child import Child
    from gpucache.warm.pool.plan import Job

    State = Literal[
        "waiting",  # it has no importer
        "waiting for torch",  # an importer with torch in it is being made, from which its own will be forked
        "beginning",  # its importer is being forked
        "looking",  # its importer looks whether the modules import torch
        "importing",  # its importer imports a module
        "ready",  # workers can be forked
        "over",  # nothing is left to be done
    ]


class Package:
    """The kernels of one package, and the process that imports its modules."""

    def __init__(self, name: str, jobs: Iterable[Job]) -> None:
        self.name = name
        self.state: State = "waiting"
        self.importer: Child | None = None
        self.wants_torch: bool | None = None
        """Whether its modules import torch; None while nobody has looked."""
        self.failures = 0
        """How often its importer, or a worker that was to begin, has ended without a module to blame."""
        self._jobs: dict[int, Job] = {job.number: job for job in jobs}
        """Those that were not given to a worker, and have not ended."""
        modules = [job.module for job in self._jobs.values()]
        self._modules = list(dict.fromkeys(modules))
        """All modules that are to be imported, in this order."""
        self._imported = 0
        self._of_recipe: dict[int, list[int]] = {}
        """The numbers of the jobs of each recipe, by its offset."""
        for job in self._jobs.values():
            self._of_recipe.setdefault(job.offset, []).append(job.number)

    @property
    def is_importing(self) -> bool:
        """Whether its importer is busy."""
        return self.state in ("beginning", "looking", "importing")

    @property
    def is_over(self) -> bool:
        """Whether no job is left to be given to a worker."""
        return not self._jobs

    @property
    def waiting(self) -> int:
        """How many jobs are left to be given to a worker."""
        return len(self._jobs)

    def first(self) -> Job:
        """The job that is to be done next."""
        return next(iter(self._jobs.values()))

    def take(self) -> Job:
        """The job that is to be done next, which is not given again."""
        job = self.first()
        del self._jobs[job.number]
        return job

    def take_those(self, *, module: str | None = None) -> list[Job]:
        """Jobs that are not to be done: all, or those of one module."""
        found = []
        for job in tuple(self._jobs.values()):
            if module in (None, job.module):
                found.append(self._jobs.pop(job.number))
        return found

    def take_recipe(self, offset: int) -> list[Job]:
        """The jobs of one recipe, which are not to be done. Takes no longer where there are many others."""
        numbers = self._of_recipe.pop(offset, [])
        return [self._jobs.pop(number) for number in numbers if number in self._jobs]

    # ---- modules

    def module(self) -> str | None:
        """The module that is to be imported next, or is being imported; None once all are."""
        if self._imported == len(self._modules):
            return None
        return self._modules[self._imported]

    def imported(self) -> None:
        """Go on to the next module."""
        self._imported += 1

    def begin_anew(self) -> None:
        """Import all modules again, in another process, but those of which no job is left."""
        wanted = {job.module for job in self._jobs.values()}
        self._modules = [module for module in self._modules if module in wanted]
        self._imported = 0
        self.importer = None
        self.state = "over" if self.is_over else "waiting"


def by_package(jobs: Iterable[Job]) -> list[Package]:
    """The packages of the jobs, in the order of their first jobs."""
    jobs_of: dict[str, list[Job]] = {}
    for job in jobs:
        jobs_of.setdefault(job.package, []).append(job)
    return [Package(name, jobs) for name, jobs in jobs_of.items()]
