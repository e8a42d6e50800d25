"""The command line: data on stdout, everything else on stderr. Only these modules print.

Exit codes: 0; 1 an expected failure; 2 wrong usage; 3 an unexpected one; 130 interrupted. `gpucache run` ends as its
command does, or with 127 (not found) or 126 (not executable) as a shell would.

The commands about caches are in `caches` and `diagnosis`, which are imported when one of them is asked for.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from gpucache import __version__
from gpucache.cli import device_rows
from gpucache.cli.terminal import (
    OutputError,
    complain,
    json_option,
    log_to_stderr,
    print_data,
    print_json,
    print_table,
    root_option,
    say,
)
from gpucache.errors import GpuCacheError

if TYPE_CHECKING:
    from gpucache.directories.registry import DeviceCacheRegistry

_require_gpu = click.option(
    "--require-gpu", is_flag=True, help="Fail instead of making up a device."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    try:
        return cli.main(args=argv, prog_name="gpucache", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except GpuCacheError as error:
        complain(error)
        return 1
    except (click.Abort, KeyboardInterrupt):
        return 130
    except OutputError as error:
        # what is still buffered must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if error.cause.errno != errno.EPIPE:  # whoever read has gone, and knows why
            say(f"error: could not write to stdout: {error.cause.strerror}")
        return 1
    except Exception:
        return _unexpected()


def _unexpected() -> int:
    import traceback

    traceback.print_exc()
    say("error: this is a defect of gpucache; the lines above tell its developers where")
    return 3


_LATER = {
    "caches": ("ls", "du", "prune", "clean", "verify"),
    "diagnosis": ("doctor", "explain", "config"),
}


class _Commands(click.Group):
    """The commands of this module, and by name those of others."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Every command, in the order of a cache's life."""
        return [*self.commands, *(name for names in _LATER.values() for name in names)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of this name, imported if need be."""
        home = next((module for module, names in _LATER.items() if name in names), None)
        if home is None:
            return super().get_command(context, name)
        from importlib import import_module

        found: click.Command = getattr(import_module(f"gpucache.cli.{home}"), name)
        return found


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Give every GPU its own safe Triton cache directory, and see, bound and mend what is in them.

    \b
    gpucache provision                              make the directories
    gpucache run -- python train.py                 start a command in its device's
    torchrun --no-python … gpucache run -- python train.py
    gpucache ls                                     what is cached
    gpucache doctor                                 what will hurt
    """


@cli.command()
@root_option
@json_option
@_require_gpu
def devices(root: str | None, as_json: bool, require_gpu: bool) -> None:
    """List this machine's devices and their directories; makes nothing.

    \b
    gpucache devices
    gpucache devices --json --require-gpu
    """
    registry = _discovered(root, require_gpu)
    rows = device_rows.device_rows(registry)
    visible = registry.visible
    if as_json:
        about = {
            "root": registry.root,
            **registry.snapshot.as_json(),
            "how": visible.how,
            "cut": visible.cut,
        }
        print_json({**about, "devices": rows})
        return
    print_table(device_rows.COLUMNS, [device_rows.device_cells(row) for row in rows])
    if visible.cut:
        say(f"note: {visible.cut}")
    if visible.how == "guess":
        from gpucache.machine.visible import guess_advice

        say(f"note: {guess_advice(registry.snapshot)}")


@cli.command()
@root_option
@json_option
@_require_gpu
def provision(root: str | None, as_json: bool, require_gpu: bool) -> None:
    """Make a cache directory for every device of this machine.

    Any number of processes may do this at once; what is there is left alone.

    \b
    gpucache provision
    gpucache provision --root /scratch/kernels --json
    """
    registry = _discovered(root, require_gpu, log="ERROR")
    done = registry.provision()
    for warning in done.warnings:
        say(f"warning: {warning}")
    rows = device_rows.device_rows(registry)
    if as_json:
        about = registry.snapshot.as_json()
        print_json(
            {
                "root": done.root,
                **{key: about[key] for key in ("status", "source", "fake", "detail", "advice")},
                "created": list(done.created),
                "existing": list(done.existing),
                "warnings": list(done.warnings),
                "devices": rows,
            }
        )
        return
    states = dict.fromkeys(done.created, "created") | dict.fromkeys(done.existing, "existing")
    print_table(
        ("path", "state", "uuid"),
        [(row["path"], states.get(row["directory"], "not made"), row["uuid"]) for row in rows],
    )


@cli.command()
@click.argument("ordinal", type=int)
@root_option
@json_option
def path(ordinal: int, root: str | None, as_json: bool) -> None:
    """Print the Triton cache directory of the device with this CUDA ordinal, from the record.

    \b
    gpucache path 0
    CUDA_VISIBLE_DEVICES=3 TRITON_CACHE_DIR=$(gpucache path 3) python tune.py
    """
    registry = _recorded(root)
    found = registry.path(ordinal)
    if as_json:
        print_json(device_rows.device_row(registry.devices[ordinal], found, ordinal))
    else:
        print_data(found)


@cli.command()
@click.argument("ordinal", type=int)
@root_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["sh", "fish", "json", "dotenv"]),
    default="sh",
    show_default=True,
)
@json_option
def env(ordinal: int, root: str | None, form: str, as_json: bool) -> None:
    """Print the variables that give a process this device's directory, from the record.

    \b
    eval "$(gpucache env 0)"
    gpucache env 0 --format fish | source
    """
    from gpucache.environment import DISABLE

    variables = {} if DISABLE.read(os.environ) else _marked(_recorded(root).environ(ordinal))
    if as_json or form == "json":
        print_json(variables)
        return
    for name, value in variables.items():
        print_data(device_rows.VARIABLE_FORMATS[form](name, value))


def _marked(variables: dict[str, str]) -> dict[str, str]:
    """With the mark by which a later `gpucache run` may choose another device."""
    from gpucache.directories.launch import marks
    from gpucache.environment import SET_BY_RUN

    return {**variables, SET_BY_RUN.name: marks(variables)}


def _complete_file(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


@cli.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--device", type=int, metavar="ORDINAL", help="CUDA ordinal, instead of the local rank's."
)
@root_option
@click.option(
    "--strict",
    is_flag=True,
    help="Fail when the directories cannot be had, instead of going on without.",
)
@click.option("--force", is_flag=True, help="Replace what you have set, too.")
@click.option(
    "--plugin/--no-plugin",
    default=None,
    help="Compile each kernel once per node (default: where COMMAND is this environment's Python).",
)
@click.argument(
    "command", nargs=-1, required=True, type=click.UNPROCESSED, shell_complete=_complete_file
)
def run(
    device: int | None,
    root: str | None,
    strict: bool,
    force: bool,
    plugin: bool | None,
    command: tuple[str, ...],
) -> int:
    """Execute COMMAND with its device's cache directories; provisions them when needed.

    This chooses directories, not the GPU: the command must use the same device itself, or be masked. The device is the
    one visible one, or the one of the local rank (torchrun, mpirun, srun with several tasks a node); with several
    devices and no rank only the root is set. The command replaces this process: signals and exit code are its own.

    \b
    gpucache run -- python train.py
    torchrun --no-python --nproc-per-node 8 gpucache run -- python train.py
    srun --ntasks-per-node 8 gpucache run -- python train.py
    CUDA_VISIBLE_DEVICES=2 gpucache run -- python tune.py
    """
    if not command[0]:
        raise click.UsageError("COMMAND is empty")
    environ, failure = dict(os.environ), 0
    try:
        environ = _launched(command, device, root, force, plugin)
    except GpuCacheError as error:
        complain(error)
        failure = 1
    except Exception:
        failure = _unexpected()  # a defect of ours is no reason for the command not to run
    if failure and strict:
        return failure
    if failure:
        say(f"warning: executing {command[0]} with its environment unchanged")
    return _execute(command, environ)


def _launched(
    command: Sequence[str], device: int | None, root: str | None, force: bool, plugin: bool | None
) -> dict[str, str]:
    from gpucache.directories.launch import launch_environ, runs_our_python

    log_to_stderr("ERROR")
    ours = runs_our_python(command, os.environ) if plugin is None else plugin
    environ, report = launch_environ(os.environ, device=device, force=force, root=root, plugin=ours)
    if plugin is None and not ours:
        say(
            f"note: {command[0]} is not this environment's Python, so only directories are set; "
            "--plugin compiles each kernel once per node where it can import gpucache"
        )
    for warning in report.warnings:
        say(f"warning: {warning}")
    if report.choice.endswith("the root only"):
        say(f"note: {report.choice}, and TRITON_CACHE_DIR is not set")
    for setting in report.settings:
        if setting.action == "kept" and "you set it" in setting.reason:
            say(f"note: kept {setting.name}={setting.value}: {setting.reason}")
    return environ


def _execute(command: Sequence[str], environ: dict[str, str]) -> int:
    import signal

    # Python ignores these two, and an ignored signal stays so across exec. Whether our parent had them ignored as well
    # cannot be told any more.
    for name in ("SIGPIPE", "SIGXFSZ"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), environ)
    except OSError as error:
        if error.errno == errno.ENOEXEC:  # a script without a shebang
            return _execute(
                [
                    "/bin/sh",
                    shutil.which(command[0], path=environ.get("PATH")) or command[0],
                    *command[1:],
                ],
                environ,
            )
        say(f"error: {command[0]}: {error.strerror}")
        return 127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126


@cli.command()
@root_option
@json_option
def stats(root: str | None, as_json: bool) -> None:
    """Show hits, misses and seconds saved, per device directory and in all.

    \b
    gpucache stats
    gpucache stats --json
    """
    from gpucache.disk.vetting import Trust, vet
    from gpucache.layout.paths import resolve_root
    from gpucache.store.stats import COUNTERS, SECONDS, fold, totals

    where = resolve_root(root, os.environ)
    vet(where, Trust.parse(os.environ))
    with suppress(OSError):  # read-only: they are summed without being folded
        fold(where)
    sums = totals(where)
    columns = COUNTERS + SECONDS
    sums = {name: dict.fromkeys(columns, 0) | values for name, values in sums.items()}
    everything = {name: sum(values.get(name, 0) for values in sums.values()) for name in columns}
    if as_json:
        print_json({"root": where, "devices": sums, "all": everything})
        return
    rows = [*sorted(sums.items()), ("all", everything)]
    print_table(
        ("directory", *columns),
        [(name, *device_rows.counter_cells(values, columns)) for name, values in rows],
    )


# ---- what several commands share


def _discovered(root: str | None, require_gpu: bool, log: str = "WARNING") -> DeviceCacheRegistry:
    from gpucache.directories.registry import DeviceCacheRegistry
    from gpucache.machine.nvml import discover

    log_to_stderr(log)
    return DeviceCacheRegistry(root, discover(require_gpu=require_gpu))


def _recorded(root: str | None) -> DeviceCacheRegistry:
    from gpucache.directories.registry import DeviceCacheRegistry

    return DeviceCacheRegistry.load(root)
