"""What `gpucache run` does: it chooses cache directories, and becomes the command. Imports no click.

The command line has been read by `quick`, or by click in `run_options`.
"""

from __future__ import annotations

import errno
import os

from gpucache import environment
from gpucache.cli.failures import complain, complain_of_defect, complain_of_refusal
from gpucache.cli.settings import undoing
from gpucache.cli.terminal import log_to_stderr, say
from gpucache.errors import (
    DeviceIndexError,
    DeviceNameError,
    GpuCacheError,
    ProvisionError,
    RecipesError,
)
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpucache.directories.launch import LaunchReport


class RunCall(Value, kw_only=True):
    """A call of `gpucache run`, which becomes a command with the cache directories of the command's device."""

    command: tuple[str, ...]
    """The program and its arguments."""
    device: int | str | None = None
    """A CUDA ordinal, or a UUID, or what only one UUID begins with."""
    root: str | None = None
    strict: bool | None = None
    """Whether a failure is an end. None: if there is no such device, or no place for such a root, as was asked for."""
    force: bool = False
    fresh: bool = False
    """Whether the command gets a root of its own, which goes after it."""
    plugin: bool = True
    """Whether Pythons that the command starts, and that can import gpucache, are to use the plug-in."""
    record: str | None = None
    """A file to which the recipe of each kernel is appended that the command asks for."""
    warm: str | None = None
    """A file of recipes that are compiled while the command starts; ``auto``: those of the command's last run."""
    jobs: int | None = None
    """How many of these are compiled at once; None: one on each core that no rank computes on."""
    caches: tuple[str, ...] | None = None
    """The JIT caches that are put into the root: ``all``, or names; None: as `GPUCACHE_CACHES` says."""

    def execute(self) -> int:
        """Execute the command, which replaces this process. Returns an exit code where that fails or was not tried."""
        environ = given = _given()
        if not _is_there(self.command[0], given):
            say(f"error: {self.command[0]}: {os.strerror(errno.ENOENT)}")
            where = "there is no such path"
            if "/" not in self.command[0]:
                where = "no directory of PATH has a program of that name"
            say(f"hint: {where}")
            return 127
        failure = 0
        ends = self.fresh if self.strict is None else self.strict
        try:
            environ = self._environ(given)
        except GpuCacheError as error:
            ends = self._ends(error)
            failure = 1
            if ends or _is_first_to_say(error.problem):
                complain(error)
        except (OSError, MemoryError) as error:
            failure = 1
            if ends or _is_first_to_say(repr(error)):
                complain_of_refusal(error)
        except Exception as error:
            # A defect of gpucache is no reason for the command not to run.
            failure = 3
            if ends or _is_first_to_say(repr(error)):
                complain_of_defect()
        if failure and ends:
            if self.strict is None:
                say(f"hint: --no-strict executes {self.command[0]} all the same")
            return failure
        if failure:
            _say_unchanged(self.command[0])
        return _execute(self.command, environ, None if self.strict else given)

    def _ends(self, error: GpuCacheError) -> bool:
        """Whether an error is the end; what the user has named and does not exist is one without being asked."""
        if self.strict is not None:
            return self.strict
        if self.fresh or isinstance(error, RecipesError):
            return True
        if isinstance(error, ProvisionError):
            return self.root is not None and error.errno in (errno.ENOENT, errno.ENOTDIR)
        return self.device is not None and isinstance(error, (DeviceIndexError, DeviceNameError))

    def _environ(self, given: dict[str, str]) -> dict[str, str]:
        """The environment for the command, from the one given to this process.

        What the user should know of that environment is said on stderr.
        """
        log_to_stderr("ERROR")
        root = self.root
        if self.fresh:
            from gpucache.cli.run_fresh import fresh_root, without_directories

            given = without_directories(given, _say_in_job)
            outer, _ = self._launch(given, root)
            root = fresh_root(outer, self.command[0], _say_in_job) or root
        environ, report = self._launch(given, root)
        settings = self._settings(environ, root)
        _tell(report, environ, self.fresh or _tells_of_node(self.command))
        if report.jit is not None:
            from gpucache.cli.jit_words import sentences

            for sentence in sentences(report.jit):
                _say_in_job(f"note: {sentence}")
        if self.plugin:
            _tell_of_alone(settings)
        if environment.PACK.text(settings):
            from gpucache.cli.run_pull import pull_packs

            pull_packs(settings, self.plugin, _say_in_job)
        if self.plugin and environment.REMOTE.text(settings):
            from gpucache.cli.run_remote import start_courier, start_pusher

            start_courier(settings)
            start_pusher(settings)
        if self.record is None and self.warm is None:
            return environ
        from gpucache.cli.run_ahead import with_recipes

        return with_recipes(self, environ, report, _say_in_job)

    def _launch(
        self, given: dict[str, str], root: str | None
    ) -> tuple[dict[str, str], LaunchReport]:
        """The environment that gives the command directories in a root, provisioned, and what was done for that."""
        from gpucache.directories.launch import launch_environ

        return launch_environ(
            given,
            device=self.device,
            force=self.force,
            root=root,
            plugin=self.plugin,
            caches=self.caches,
            program=self.command[0],
        )

    def _settings(self, environ: dict[str, str], root: str | None) -> Mapping[str, str]:
        """What holds for the command; what is wrong in a file of settings is said."""
        from gpucache.configuration import in_force

        found = in_force(environ, root)
        for problem in found.problems:
            _say_in_job(f"warning: {problem}")
        return found.environ


def _given() -> dict[str, str]:
    """The environment that was given to this process.

    Where no locale was, Python has put one into its own (PEP 538), which a command would have only because of gpucache.
    """
    environ = dict(os.environ)
    if "LC_CTYPE" not in environ:
        return environ
    try:
        with open("/proc/self/environ", "rb") as file:
            items = file.read().split(b"\0")
    except OSError:
        return environ
    if not any(item.startswith(b"LC_CTYPE=") for item in items):
        del environ["LC_CTYPE"]
    return environ


def _is_there(program: str, environ: Mapping[str, str]) -> bool:
    """Whether there is a file of that name where the system looks for programs, executable or not."""
    if "/" in program:
        return os.path.lexists(program)
    directories = os.get_exec_path(dict(environ))
    return any(os.path.lexists(os.path.join(directory, program)) for directory in directories)


def _is_first_to_say(sentence: str) -> bool:
    """Whether this is the rank that says what every rank of the job on this node would say."""
    from gpucache.directories.local_rank import local_rank
    from gpucache.once import first_in_job

    rank, _ = local_rank(os.environ)
    return rank is None or first_in_job(f"run: {sentence}", os.environ)


def _say_in_job(text: str, sentence: str = "") -> None:
    """Say a line, unless another rank has; ``sentence`` is what such lines have in common, if they are not alike."""
    if _is_first_to_say(sentence or text):
        say(text)


def _tells_of_node(command: Sequence[str]) -> bool:
    """Whether the command is `gpucache doctor`, which finds what is wrong with the node itself."""
    programs = [os.path.basename(word) for word in command]
    return "doctor" in programs and "gpucache" in programs


def _is_news(sentence: str, in_any_case: bool) -> bool:
    """Whether what holds of a node and its root is told: the first time in a day, or ``in_any_case``."""
    from gpucache.once import first_on_node

    return first_on_node(sentence) or in_any_case


def _tell(report: LaunchReport, environ: dict[str, str], is_told_next: bool) -> None:
    """Say the warnings, that no device was chosen, and which variables of the user's were kept.

    ``is_told_next``: what holds of the node is told by the command, or is no matter for a root that goes with it.
    """
    root = environ.get(environment.ROOT.name)
    for warning in report.warnings:
        if warning not in report.of_node or (
            not is_told_next and _is_news(f"{root}: {warning}", bool(report.created))
        ):
            _say_in_job(f"warning: {warning}")
    root_only = report.device is None and report.settings  # none at all where gpucache is disabled
    is_shared = report.has_own_workers and _has_plugin(environ)
    if root_only and not is_shared and not environment.TRITON_DIRECTORY.text(environ):
        way_out = "; --device ORDINAL chooses one" if report.device_count else ""
        _say_in_job(f"note: {report.choice}, and TRITON_CACHE_DIR is not set{way_out}")
    for setting in report.settings:
        if setting.by == "user":
            kept = f"note: kept {setting.name}={setting.value}"
            _say_in_job(f"{kept}: {setting.reason}", kept)


def _has_plugin(environ: Mapping[str, str]) -> bool:
    """Whether Pythons of the command that can import gpucache will use the plug-in, and so share what they compile."""
    from gpucache.directories.python_path import is_on_path

    chosen = environment.MANAGER.text(environ)
    return is_on_path(environ) and chosen in (None, environment.OUR_MANAGER)


def _tell_of_alone(environ: Mapping[str, str]) -> None:
    """Say why kernels are not shared, where that is by a setting of the user's or by a fresh directory."""
    for off in environment.turned_off(environ):
        way_out = undoing(off.name, environment.ROOT.text(environ))
        _say_in_job(f"note: {off.name}={off.value}: {off.consequence}; {way_out} to share")
    directory = environment.TRITON_DIRECTORY.text(environ)
    root = environment.ROOT.text(environ)
    if not directory or not root or environment.SHARE.read_or_default(environ) is not None:
        return
    from gpucache.disk.fresh import fresh_part

    part = fresh_part(directory, root)
    if part is not None:
        _say_in_job(
            f"note: {directory} is fresh on purpose, by its part {part}, so that each rank compiles "
            f"each kernel; {environment.SHARE}=1 shares it"
        )


def _say_unchanged(program: str) -> None:
    _say_in_job(
        f"warning: executing {program} with its environment unchanged: each rank compiles each kernel"
    )


def _execute(
    command: Sequence[str], environ: dict[str, str], given: dict[str, str] | None = None
) -> int:
    """Replace this process by the command. Where that fails, returns the exit code that a shell would give.

    ``given`` is the environment with which the command is tried again where ``environ`` is too large for the system.
    """
    import signal

    # Python ignores these two, and an ignored signal stays so across exec. Whether the parent of this process had them
    # ignored as well cannot be told any more.
    for name in ("SIGPIPE", "SIGXFSZ"):
        if hasattr(signal, name):
            ignored = getattr(signal, name)
            signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), environ)
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            return _execute(_by_shell(command, environ), environ, given)
        if error.errno == errno.E2BIG and given is not None and given != environ:
            _say_in_job(f"error: {command[0]}: {error.strerror}, with what gpucache sets")
            _say_unchanged(command[0])
            return _execute(command, given)
        say(f"error: {command[0]}: {error.strerror}")
        not_found = error.errno in (errno.ENOENT, errno.ENOTDIR)
        return 127 if not_found else 126


def _by_shell(command: Sequence[str], environ: dict[str, str]) -> list[str]:
    """The command for a script without a ``#!`` line, which the system does not execute."""
    from gpucache.directories.jit_python import which  # few scripts lack the line

    script = which(command[0], environ) or command[0]
    return ["/bin/sh", script, *command[1:]]
