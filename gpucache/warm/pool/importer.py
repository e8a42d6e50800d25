"""`Importer`: what an importer does: it imports what it is told to, and forks other importers and workers.

The first importer imports Triton and computes its key, which takes half a second and is then done for all. Others are
forked from it, one for each package, or from one that has torch in it besides; each imports the modules of its package,
one after the other, and forks workers from its main thread. What a module does to its process (threads, signals,
variables, an end) it does to those of its own package.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec

from gpucache.disk.door import read_limited
from gpucache.warm.pool import worker
from gpucache.warm.pool.channel import Channel
from gpucache.warm.pool.forking import (
    fork_for,
    keep_stdio_open,
    leave_terminal_and_files,
    take_name,
)
from gpucache.warm.pool.worker import in_a_line, shortened
from gpucache.warm.replay.functions import places
from gpucache.warm.replay.source_files import CannotImportError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from gpucache.kernels.recipe import Recipe
    from gpucache.warm.pool.plan import Job, Plan

REPLAY = "gpucache.warm.replay.in_process"
"""The module that imports Triton, by its name, so that no other process imports Triton."""
_MOST_LOOKED_AT = 100
"""So many files of a package are looked at for an import of torch."""
_SOURCE_BYTES = 2**20
_TORCH = re.compile(rb"^\s*(?:import|from)\s+torch\b", re.MULTILINE)


class Importer:
    """This process."""

    def __init__(self, plan: Plan, channel: Channel, scheduler: int) -> None:
        self._plan = plan
        self._channel = channel
        self._scheduler = scheduler
        self._by_module: dict[str, list[Job]] = {}
        for job in plan.jobs:
            self._by_module.setdefault(job.module, []).append(job)
        self._replay: Any = None
        self._functions: Any = None
        self._environ: dict[str, str] = {}
        self._directory = "/"
        self._umask = 0o077

    def serve(self) -> NoReturn:
        """Do what the messages say, until the connection is closed; then end."""
        take_name("gpucache-import")
        acts = {
            "prepare": self._prepare,
            "look": self._look,
            "import torch": self._import_torch,
            "import": self._import,
        }
        while (received := self._channel.receive()) is not None:
            message = received.message
            if message["do"] == "fork":
                self._fork(message["role"], *received.descriptors)
            else:
                acts[message["do"]](message)
        os._exit(0)

    def _say(self, **message: object) -> None:
        self._channel.send(message)

    # ---- what it imports

    def _prepare(self, _: object) -> None:
        """Import Triton, and do all that each process that compiles would have to do."""
        why = ""
        try:
            self._umask = os.umask(self._umask)
            os.umask(self._umask)
            self._directory = os.getcwd()
            self._replay = import_module(REPLAY)
            first = self._plan.recipe(self._plan.jobs[0])
            self._replay.prepare(first.target)
            settings = self._plan.settings
            self._functions = self._replay.import_functions(
                os.environ, settings.main, settings.sources
            )
        except BaseException as error:
            why = in_a_line(error)
        self._environ = dict(os.environ)
        self._say(did="prepare", why=why)

    def _import_torch(self, _: object) -> None:
        """Import torch, for all packages that will."""
        why = ""
        try:
            import_module("torch")
        except BaseException as error:
            why = in_a_line(error)
        self._say(did="import torch", why=why)

    def _look(self, message: dict[str, Any]) -> None:
        """Say whether the package's modules import torch, as far as their files can be read."""
        files: set[str] = set()
        texts = []
        for job in self._first_jobs(message["package"])[:_MOST_LOOKED_AT]:
            recipe = self._plan.recipe(job)
            files.update(_paths_of(recipe.function.file))
            texts.append((recipe.source or "").encode())
        for file in files:
            with suppress(OSError, ValueError):
                texts.append(read_limited(file, _SOURCE_BYTES))
        imports_torch = any(map(_TORCH.search, texts))
        self._say(did="look", torch=imports_torch and find_spec("torch") is not None)

    def _first_jobs(self, package: str) -> list[Job]:
        """The first job of each module of a package."""
        firsts = [jobs[0] for jobs in self._by_module.values()]
        return [job for job in firsts if job.package == package]

    def _import(self, message: dict[str, Any]) -> None:
        """Import a module, and find the functions of its recipes; say of each recipe for which that fails why."""
        each_once = {job.offset: job for job in self._by_module[message["module"]]}
        for job in each_once.values():
            why = self._load(self._plan.recipe(job))
            if why:
                self._say(did="find no function", offset=job.offset, why=why)
        keep_stdio_open()
        with suppress(OSError):
            os.chdir(self._directory)
        self._say(did="import", module=message["module"])

    def _load(self, recipe: Recipe) -> str:
        """Import what a recipe needs; why that cannot be done, or nothing."""
        try:
            for place in places(recipe):
                self._functions.load(place)
            self._functions.find(recipe.function, recipe.source)
        except CannotImportError as error:
            return shortened(error.reason)
        return ""

    # ---- what it forks

    def _fork(self, role: str, channel: int, output: int) -> None:
        theirs = Channel.of_descriptor(channel)
        try:
            _flush()
            if fork_for(self._scheduler):
                self._become(role, theirs, output)
        except OSError as error:
            theirs.send({"cannot": f"no process can be forked: {error.strerror}"})
        theirs.close()
        os.close(output)

    def _become(self, role: str, channel: Channel, output: int) -> NoReturn:
        """In the new process: be what it was forked for."""
        self._channel.close()
        self._channel = channel
        try:
            leave_terminal_and_files(output)
            self._say(pid=os.getpid())
            if role == "worker":
                self._restore()
                worker.serve(self._plan, channel, self._replay, self._functions)
            self.serve()
        finally:
            os._exit(1)

    def _restore(self) -> None:
        """Take back what modules have done to this process's variables, directory and umask."""
        os.umask(self._umask)
        os.environ.clear()
        os.environ.update(self._environ)
        with suppress(OSError):
            os.chdir(self._directory)


def _paths_of(file: str | None) -> list[str]:
    """Where a recorded file may be: that of a recipe which was carried here is relative to where modules are."""
    if file is None:
        return []
    if os.path.isabs(file):
        return [file]
    return [os.path.join(place, file) for place in sys.path]


def _flush() -> None:
    """Write what was printed so far, so that no forked process writes it again."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a module may have put anything there
            stream.flush()
