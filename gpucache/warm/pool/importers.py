"""`Importers`: the scheduler's side of the importers: which there are, what each imports next, and what becomes of it.

The first importer has Triton in it, and all others are forked from it, so that Triton is imported and its key computed
once. A package whose modules import torch has its importer forked from one that has torch in it besides.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from gpucache.warm.pool.channel import Channel, Message
    from gpucache.warm.pool.child import Child, Event
    from gpucache.warm.pool.packages import Package
    from gpucache.warm.pool.plan import Job, Plan
    from gpucache.warm.pool.supervisor import Supervisor

_MOST_FAILURES = 3
"""So often may a process end without a module or a kernel to blame, before what it is for is given up."""
_PREPARE_S = 120.0
"""For the import of Triton, and for that of torch."""


class CannotPrepare(Exception):
    """Nothing can be compiled at all: Triton cannot be imported."""


class Importers:
    """All importers. What they find is told through the two functions."""

    def __init__(
        self,
        supervisor: Supervisor,
        plan: Plan,
        packages: Sequence[Package],
        fail: Callable[[Job, str], None],
        begun: Callable[[Package, str | None], None],
    ) -> None:
        """``fail`` is called with a job whose function cannot be imported, and why.

        ``begun`` is called with a package and each of its modules, and with None once no more is imported.
        """
        self._supervisor = supervisor
        self._plan = plan
        self._packages = packages
        self._fail = fail
        self._begun = begun
        self._first: Child | None = None
        self._is_prepared = False
        self._failures = 0
        self._with_torch: Child | None = None
        self._has_torch = False
        self._torch_fails = False
        self._full_at = -1
        """How many processes had ended when the last one could not be made."""

    @property
    def busy(self) -> int:
        """How many of them import something, or begin."""
        count = sum(package.is_importing for package in self._packages)
        count += not self._is_prepared
        count += self._with_torch is not None and not self._has_torch
        return count

    @property
    def imports_a_package(self) -> bool:
        """Whether a package is being imported."""
        return any(package.is_importing for package in self._packages)

    def start_first(self) -> None:
        """Fork the first importer.

        Raises:
            OSError: no process can be made.
        """
        self._is_prepared = False
        self._first = self._supervisor.start_first(self._serve, {self._plan.file})
        self._supervisor.ask(self._first, {"do": "prepare"}, _PREPARE_S)

    def _serve(self, channel: Channel) -> NoReturn:
        # In the new process: the scheduler itself imports nothing that it does not need.
        from gpucache.warm.pool.importer import Importer

        Importer(self._plan, channel, os.getppid()).serve()

    def import_next(self) -> bool:
        """Begin to import the next package that waits for that; whether there was one."""
        if not self._is_prepared or self._waits_for_room():
            return False
        for package in self._packages:
            if package.state == "waiting":
                return self._start(package)
        return False

    def _start(self, package: Package) -> bool:
        """Have the importer of a package forked; False where its parent has just ended, which will be told."""
        if package.wants_torch and not self._torch_fails and not self._has_torch:
            package.state = "waiting for torch"
            self._start_torch()
            return True
        parent = self._first
        if package.wants_torch and self._has_torch:
            parent = self._with_torch
        assert parent is not None
        try:
            package.importer = self._supervisor.start_from(parent, "importer")
        except ConnectionError:
            return False
        except OSError as error:
            self._not_begun(package, str(error))
        else:
            package.state = "beginning"
        return True

    def _not_begun(self, package: Package, why: str) -> None:
        """No process could be made for a package, as under a limit: there may be room once another has ended."""
        if self._others_will_end():
            package.begin_anew()
            self._full_at = self._supervisor.ended
        else:
            self.failed(package, why)

    def _waits_for_room(self) -> bool:
        return self._full_at == self._supervisor.ended and self._others_will_end()

    def _others_will_end(self) -> bool:
        is_ready = any(package.state == "ready" for package in self._packages)
        return is_ready or self._supervisor.is_busy

    def _start_torch(self) -> None:
        """Have an importer made that has torch in it, unless one is being made."""
        if self._with_torch is not None:
            return
        assert self._first is not None
        try:
            self._with_torch = self._supervisor.start_from(self._first, "importer")
        except OSError:
            self._torch_is_made(False)

    def finish(self, package: Package) -> None:
        """End the importer of a package of which no worker will be forked any more."""
        package.state = "over"
        if package.importer is not None:
            self._supervisor.close(package.importer)
            package.importer = None

    def make_room(self, package: Package) -> bool:
        """End the importer of another package, which is imported again later; whether there was one."""
        for other in self._packages:
            if other is not package and other.state == "ready" and other.importer is not None:
                self._supervisor.close(other.importer)
                other.begin_anew()
                self._full_at = self._supervisor.ended
                return True
        return False

    def failed(self, package: Package, why: str) -> None:
        """A process of a package has not begun, or has ended with nothing to do; after some of these, give it up."""
        package.failures += 1
        if package.failures < _MOST_FAILURES:
            if package.state != "ready" or package.importer is None:
                package.begin_anew()
            return
        for job in package.take_those():
            self._fail(job, f"no process can be had for it: {why}")
        self.finish(package)

    # ---- what has happened

    def handle(self, event: Event) -> None:
        """Go on after what an importer has said, or how it has ended.

        Raises:
            CannotPrepare: without Triton nothing goes on.
            OSError: no process can be made.
        """
        if event.child is self._first:
            self._of_first(event)
        elif event.child is self._with_torch:
            self._of_torch(event)
        for package in self._packages:
            if package.importer is event.child:
                self._of_package(package, event)

    def _of_first(self, event: Event) -> None:
        if event.message is not None:
            self._supervisor.answered(event.child)
            if event.message["why"]:
                raise CannotPrepare(event.message["why"])
            self._is_prepared = True
            return
        # Something kills: the packages that are imported need the first one no more.
        self._failures += 1
        if not self._is_prepared or self._failures >= _MOST_FAILURES:
            raise CannotPrepare(event.ended)
        self.start_first()

    def _of_torch(self, event: Event) -> None:
        if event.message is None:
            self._torch_is_made(False)
        elif "pid" in event.message:
            self._supervisor.ask(event.child, {"do": "import torch"}, _PREPARE_S)
        else:
            self._supervisor.answered(event.child)
            self._torch_is_made(not event.message["why"])

    def _torch_is_made(self, well: bool) -> None:
        """Let go on the packages that wait for torch; without it each imports it alone, and says what happens then."""
        self._has_torch = well
        self._torch_fails = not well
        if not well and self._with_torch is not None:
            self._supervisor.close(self._with_torch)
            self._with_torch = None
        for package in self._packages:
            if package.state == "waiting for torch":
                package.state = "waiting"

    def _of_package(self, package: Package, event: Event) -> None:
        if event.message is None:
            self._has_ended(package, event.ended or "")
        else:
            self._said(package, event.child, event.message)

    def _said(self, package: Package, importer: Child, message: Message) -> None:
        if "offset" in message:
            for job in package.take_recipe(message["offset"]):
                self._fail(job, message["why"])
            return
        self._supervisor.answered(importer)
        if "pid" in message and package.wants_torch is None:
            request = {"do": "look", "package": package.name}
            self._supervisor.ask(importer, request, self._plan.settings.time_limit_s)
            package.state = "looking"
            return
        if message.get("did") == "look":
            package.wants_torch = message["torch"]
            if package.wants_torch:
                self._supervisor.close(importer)
                package.begin_anew()
                return
        if message.get("did") == "import":
            package.imported()
        self._go_on(package, importer)

    def _go_on(self, package: Package, importer: Child) -> None:
        """Import the next module of a package; after the last one workers can be forked."""
        module = None if package.is_over else package.module()
        if module is None:
            self._begun(package, None)
            package.state = "ready"
        if package.is_over:
            self.finish(package)
        elif module is not None:
            package.state = "importing"
            self._begun(package, module)
            request = {"do": "import", "module": module}
            self._supervisor.ask(importer, request, self._plan.settings.time_limit_s)

    def _has_ended(self, package: Package, how: str) -> None:
        """An importer has ended: the module that it was importing is to blame, and others go on without that one."""
        if package.state == "looking":  # a file could not be read in time
            package.wants_torch = False
        if package.state == "beginning":
            self._not_begun(package, how)
            return
        if package.state != "importing":
            package.importer = None
            self.failed(package, how)
            return
        for job in package.take_those(module=package.module()):
            self._fail(job, how)
        self._begun(package, None)
        package.begin_anew()
