"""`serve`: what the scheduler does: it keeps as many kernels compiling as it may, over the packages of all recipes.

    the caller (`gpucache warm`, a program)      any threads; `gpucache.warm.pool.pool`, `scheduler_process`
      gpucache-warm      the scheduler           this module, with `supervisor` and `importers`
        gpucache-import  the first importer      `importer`: Triton is imported, and its key computed
        gpucache-import  one with torch in it    where the modules of a package import torch
        gpucache-import  one a package           imports the package's modules
        gpucache-worker  as many as may compile  `worker`: one kernel after another, of one package

The scheduler is a fresh process with one thread, so that its caller may have any number of them; it imports neither
Triton nor a module of a recipe, so that nothing can hang it. Importers fork all others, and each becomes a child of the
scheduler (`forking`), which asks one thing of a process at a time, under a time limit, and kills by number. What dies
takes its own recipes with it: an importer those of the module that it was importing, a worker the one that it was
compiling. When the caller goes, the scheduler kills the rest; when the scheduler goes, the kernel does. The only lock
that a process of the pool holds is that of the key that it compiles.
"""

from __future__ import annotations

import os
import resource
import signal
import traceback
from contextlib import suppress

from gpucache.warm.pool.channel import Channel
from gpucache.warm.pool.dead_locks import remove_dead_locks
from gpucache.warm.pool.forking import keep_stdio_open, take_name, wake_with_parent
from gpucache.warm.pool.importers import CannotPrepare, Importers
from gpucache.warm.pool.packages import Package, by_package
from gpucache.warm.pool.plan import read_plan
from gpucache.warm.pool.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.warm.outcome import End
    from gpucache.warm.pool.channel import Message
    from gpucache.warm.pool.child import Child, Event
    from gpucache.warm.pool.plan import Job, Place, Plan


class Worker:
    """A process that compiles one kernel after another, of one package."""

    def __init__(self, package: Package) -> None:
        self.package = package
        self.has_begun = False
        self.job: Job | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it can be given a job."""
        return self.has_begun and self.job is None


class Scheduler:
    """This process."""

    def __init__(self, plan: Plan, caller: Channel) -> None:
        self._plan = plan
        self._caller = caller
        self._supervisor = Supervisor()
        self._packages = by_package(plan.jobs)
        self._importers = Importers(
            self._supervisor, plan, self._packages, self._cannot_be_imported, self._begun
        )
        self._order = {job.number: place for place, job in enumerate(plan.jobs)}
        self._workers: dict[Child, Worker] = {}
        self._most = max(1, plan.settings.processes)
        self._left = len(plan.jobs)
        self._is_over = False

    def run(self) -> None:
        """Do all jobs, or as many as are done when the caller goes."""
        self._watch_caller()
        try:
            self._importers.start_first()
            while self._left and not self._is_over:
                self._begin_what_can_begin()
                for event in self._supervisor.events():
                    self._handle(event)
        except CannotPrepare as error:
            self._tell(says="broken", why=str(error))
            self._is_over = True
        self._supervisor.end(at_once=self._is_over)
        # Of those that were killed, at their time limit or now.
        remove_dead_locks(self._plan.settings.root)
        self._tell(says="end")

    # ---- the caller

    def _watch_caller(self) -> None:
        # The caller closes its end, or says to stop.
        self._supervisor.watch(self._caller.fileno(), self._stop)
        with suppress(AttributeError, OSError):  # before Linux 5.3, or the caller is gone
            # The connection stays open where a process that the caller has forked has a copy of its end.
            self._supervisor.watch(os.pidfd_open(os.getppid()), self._stop)

    def _stop(self) -> None:
        self._is_over = True

    def _tell(self, **message: object) -> None:
        try:
            self._caller.send(message)
        except OSError:  # the caller is gone
            self._is_over = True

    def _begun(self, package: Package, module: str | None) -> None:
        says = "imported" if module is None else "importing"
        self._tell(says=says, package=package.name, module=module)

    def _cannot_be_imported(self, job: Job, why: str) -> None:
        self._end(job, "cannot be imported", why)

    def _end(
        self, job: Job, end: End, why: str, key: str | None = None, seconds: float = 0.0
    ) -> None:
        self._left -= 1
        outcome = {"end": end, "why": why, "key": key, "seconds": seconds}
        self._tell(says="outcome", job=job.number, **outcome)

    # ---- what begins

    def _begin_what_can_begin(self) -> None:
        while self._busy() < self._most and self._begin_something():
            pass

    def _busy(self) -> int:
        """How many processes compile, import or begin."""
        working = sum(not worker.is_idle for worker in self._workers.values())
        return self._importers.busy + working

    def _begin_something(self) -> bool:
        """Have one more process be busy; whether there was something to do."""
        begin = self._importers.import_next
        goes_ahead = self._runs_short() and not self._importers.imports_a_package
        if goes_ahead and begin():
            return True
        return self._use_idle_worker() or self._start_worker() or begin()

    def _runs_short(self) -> bool:
        """Whether few kernels wait for a worker: then the next package is imported while the last of them compile."""
        waiting = sum(one.waiting for one in self._packages if one.state == "ready")
        return waiting < 2 * self._most

    def _use_idle_worker(self) -> bool:
        for child, worker in self._workers.items():
            if worker.is_idle and worker.package.waiting:
                worker.job = worker.package.take()
                self._tell(says="started", job=worker.job.number)
                request = {"job": worker.job.number}
                self._supervisor.ask(child, request, self._plan.settings.time_limit_s)
                return True
        return False

    def _start_worker(self) -> bool:
        """Fork a worker for the package whose next job comes first; one that has nothing to do makes room for it.

        Returns whether that has begun.
        """
        wanting = [package for package in self._packages if self._wants_worker(package)]
        if not wanting:
            return False
        package = min(wanting, key=self._place_of_next)
        if len(self._workers) >= self._most:
            self._end_idle_worker()
        assert package.importer is not None
        try:
            child = self._supervisor.start_from(package.importer, "worker")
        except ConnectionError:
            return False  # the importer has just ended, which will be told
        except OSError as error:
            if self._supervisor.is_busy or self._importers.make_room(package):
                return False  # once one of those has ended, there may be room
            self._importers.failed(package, str(error))
        else:
            self._workers[child] = Worker(package)
        return True

    def _place_of_next(self, package: Package) -> int:
        return self._order[package.first().number]

    def _wants_worker(self, package: Package) -> bool:
        """Whether more jobs wait than those workers can take that are about to begin."""
        if package.state != "ready":
            return False
        beginning = 0
        for worker in self._workers.values():
            beginning += worker.package is package and not worker.has_begun
        return package.waiting > beginning

    def _end_idle_worker(self) -> None:
        idle = [child for child, worker in self._workers.items() if worker.is_idle]
        for child in idle[:1]:
            self._end_worker(child)

    def _end_worker(self, child: Child) -> None:
        del self._workers[child]
        self._supervisor.close(child)

    # ---- what has happened

    def _handle(self, event: Event) -> None:
        worker = self._workers.get(event.child)
        if worker is None:
            self._importers.handle(event)
            return
        if event.message is None:
            del self._workers[event.child]
            self._has_ended(worker, event.ended or "")
        elif worker.job is None:
            worker.has_begun = True
        else:
            self._is_done(event.child, worker, event.message)
        self._finish(worker.package)

    def _is_done(self, child: Child, worker: Worker, said: Message) -> None:
        self._supervisor.answered(child)
        assert worker.job is not None
        self._end(worker.job, said["end"], said["why"], said["key"], said["seconds"])
        worker.job = None

    def _has_ended(self, worker: Worker, how: str) -> None:
        """A worker has ended: with the kernel that it was at, or before it could begin."""
        if worker.job is not None:
            self._end(worker.job, "failed", how)
        elif not worker.has_begun and self._workers:
            # A limit of processes, or of memory: those that there are go on.
            self._most = len(self._workers)
        elif not worker.has_begun:
            self._importers.failed(worker.package, how)

    def _finish(self, package: Package) -> None:
        """End the processes of a package of which no job waits; a worker that still has one goes on."""
        if package.waiting:
            return
        if package.state == "ready":
            self._importers.finish(package)
        for child, worker in tuple(self._workers.items()):
            if worker.package is package and worker.is_idle:
                self._end_worker(child)


def serve(file: int, place: Place, caller: int) -> None:
    """Be the scheduler: do what the plan says that lies in a file, and tell the caller by a connection."""
    take_name("gpucache-warm")
    keep_stdio_open()
    with suppress(OSError):
        wake_with_parent()
    # What the caller blocks would be blocked here as well.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # A compiler that crashes is told, and leaves no core.
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    channel = Channel.of_descriptor(caller)
    try:
        Scheduler(read_plan(file, place), channel).run()
    except Exception:
        channel.send({"says": "broken", "why": traceback.format_exc()[-2000:]})
