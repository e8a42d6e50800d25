"""`Pool`: compiles recipes on all cores, in processes of its own.

    from gpucache.warm import Pool, read_recipe_file
    report = Pool(read_recipe_file("recipes.jsonl"), root="/cache").run()

A fresh process, the scheduler, does all the forking (`pool.scheduler`), so that the caller may have threads,
GPUs and Triton's hooks of its own: nothing of them is in the processes that compile. Those import the modules that
recipes name, *hence run their code*; no GPU is visible to them. A module or a kernel that raises, hangs, or kills its
process ends as an outcome of its own recipes, and of no others.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from gpucache.kernels.recipe_lines import BadLine
from gpucache.machine.cores import usable_cores
from gpucache.warm.outcome import Outcome
from gpucache.warm.pool.plan import Settings, wanted_in_order, write_plan
from gpucache.warm.pool.report import Compiling, Progress, WarmReport
from gpucache.warm.pool.scheduler_process import PoolError, SchedulerProcess
from gpucache.warm.pool.shard import WHOLE, Shard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from gpucache.kernels.recipe import Recipe, Target
    from gpucache.warm.pool.channel import Message
    from gpucache.warm.pool.plan import Wanted

TIME_LIMIT_S = 300.0
"""For the compile of one kernel, and for the import of one module, by default."""


class Pool:
    """Compiles each recipe for each target, as many at once as there are cores. Used once.

    Several pools may run beside each other, in one process too, and beside programs that compile: of each kernel one
    process compiles it, and the others wait. What was compiled when the pool ends, however it ends, is whole in the
    store. Linux only.
    """

    def __init__(
        self,
        recipes: Iterable[Recipe | BadLine],
        *,
        root: str,
        targets: Sequence[Target] = (),
        jobs: int | None = None,
        time_limit_s: float = TIME_LIMIT_S,
        exact: bool = False,
        dry_run: bool = False,
        main: str | None = None,
        sources: bool = False,
        shard: Shard = WHOLE,
        seconds: Mapping[str, float] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        is_wanted: Callable[[], bool] | None = None,
    ) -> None:
        """Take note of what is to be done; nothing is started. Lines that are no recipes are told in the report.

        ``targets`` are what each recipe is compiled for; without any, each for its own. ``jobs`` is how many kernels
        are compiled at once, by default as many as this process may use cores. ``time_limit_s`` is for one kernel, and
        for the import of one module: what takes longer is killed. ``exact``, ``dry_run``: as for a `replay`.
        ``main`` is the script whose kernels are those of ``__main__``; ``sources`` allows to run module sources that
        are kept with recipes, for whoever knows who wrote these. ``shard`` is the part of the recipes that is done
        here. ``seconds`` says of keys how long they took: the longest are compiled first.

        ``on_progress`` is called in the thread of `run`. ``is_wanted`` is so too, twice a second: once it says no,
        the pool ends.
        """
        mine = []
        bad_lines = []
        for found in recipes:
            if isinstance(found, BadLine):
                bad_lines.append(found)
            elif shard.has(found.key):
                mine.append(found)
        self._bad_lines = tuple(bad_lines)
        self._wanted: list[Wanted] = wanted_in_order(mine, targets, seconds or {})
        self._settings = Settings(
            root=os.path.abspath(root),
            processes=usable_cores() if jobs is None else jobs,
            time_limit_s=time_limit_s,
            exact=exact,
            dry_run=dry_run,
            main=None if main is None else os.path.abspath(main),
            sources=sources,
        )
        self._on_progress = on_progress
        self._is_wanted = is_wanted
        self._outcomes: dict[int, Outcome] = {}
        self._compiling: dict[int, Compiling] = {}
        self._importing: dict[str, str] = {}
        self._why_left = "the pool was not run"
        self._is_stopped = False
        self._stopping: int | None = None
        """The end of a pipe at which `stop` wakes `run`."""

    def stop(self) -> None:
        """Have `run` end all processes and return; from any thread, and from a signal handler. May be called twice."""
        self._is_stopped = True
        if self._stopping is not None:
            with suppress(OSError):  # it is full, or was closed just now
                os.write(self._stopping, b"!")

    @property
    def report(self) -> WarmReport:
        """What has ended by now."""
        in_order = tuple(self._outcomes[number] for number in sorted(self._outcomes))
        left = len(self._wanted) - len(in_order)
        why_left = self._why_left if left else ""
        return WarmReport(in_order, left, why_left, self._bad_lines)

    def run(self) -> WarmReport:
        """Compile all, and return how each has ended. When this returns or raises, no process of the pool is left.

        Raises:
            PoolError: nothing can be compiled at all.
            OSError: there is no memory for the recipes, or this process may open no more files.
            Exception: what ``on_progress`` or ``is_wanted`` raised, or a signal handler. `report` tells what was done.
        """
        self._why_left = "it was stopped"
        file, place, refused = write_plan(self._settings, self._wanted)
        with file:
            for number, why in refused.items():
                self._ended(number, {"end": "failed", "why": why})
            if len(refused) < len(self._wanted) and not self._is_stopped:
                with SchedulerProcess(file.fileno(), place, self._settings.root) as scheduler:
                    self._listen(scheduler)
        return self.report

    def _listen(self, scheduler: SchedulerProcess) -> None:
        """Take note of what the scheduler says, until it ends."""
        wake, self._stopping = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if self._is_stopped:  # before there was a pipe
                scheduler.stop()
            for message in scheduler.messages(wake, self._is_over):
                self._said(message)
            if len(self._outcomes) < len(self._wanted) and not self._is_stopped:
                self._why_left = scheduler.why_ended()
        finally:
            stopping, self._stopping = self._stopping, None
            os.close(stopping)
            os.close(wake)

    def _is_over(self) -> bool:
        """Whether the scheduler is to stop."""
        if self._is_wanted is not None and not self._is_wanted():
            self._is_stopped = True
            self._why_left = "it was not wanted any more"
        return self._is_stopped

    def _said(self, message: Message) -> None:
        """Take note of a message, and tell of it."""
        says = message["says"]
        number = message.get("job", -1)
        last = None
        if says == "broken":
            raise PoolError(message["why"])
        if says == "importing":
            self._importing[message["package"]] = message["module"]
        elif says == "imported":
            self._importing.pop(message["package"], None)
        elif says == "started":
            kernel, target = self._names(number)
            self._compiling[number] = Compiling(kernel, target, time.monotonic())
        elif says == "outcome":
            self._compiling.pop(number, None)
            last = self._ended(number, message)
        self._show(last)

    def _names(self, number: int) -> tuple[str, str]:
        recipe, target = self._wanted[number]
        return recipe.kernel, str(target)

    def _ended(self, number: int, said: Mapping[str, Any]) -> Outcome:
        kernel, target = self._names(number)
        outcome = Outcome(
            recipe=self._wanted[number].recipe.key,
            kernel=kernel,
            target=target,
            end=said["end"],
            key=said.get("key"),
            seconds=said.get("seconds", 0.0),
            why=said["why"],
        )
        self._outcomes[number] = outcome
        return outcome

    def _show(self, last: Outcome | None) -> None:
        if self._on_progress is not None:
            progress = Progress(
                done=len(self._outcomes),
                total=len(self._wanted),
                compiling=tuple(self._compiling.values()),
                importing=tuple(self._importing.values()),
                last=last,
            )
            self._on_progress(progress)
