"""The command line: data on stdout, everything else on stderr. The only module that prints.

Exit codes: 0; 1 an expected failure; 2 wrong usage; 3 an unexpected one; 130 interrupted. `gpucache run` ends as its
command does, or with 127 (not found) or 126 (not executable) as a shell would.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import click
from click.shell_completion import CompletionItem

from gpucache import __version__, formats
from gpucache.errors import GpuCacheError

if TYPE_CHECKING:
    from gpucache.registry import DeviceCacheRegistry

# Not readable: whether a directory may be used is for vetting to say, with its reasons.
_root = click.option(
    "--root", type=click.Path(readable=False), help="Cache root, instead of $GPUCACHE_DIR and torch's default."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_require_gpu = click.option("--require-gpu", is_flag=True, help="Fail instead of making up a device.")


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    try:
        return cli.main(args=argv, prog_name="gpucache", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except GpuCacheError as error:
        _complain(error)
        return 1
    except (click.Abort, KeyboardInterrupt):
        return 130
    except _OutputError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered must not fail again at exit
        if error.cause.errno != errno.EPIPE:  # whoever read has gone, and knows why
            _say(f"error: could not write to stdout: {error.cause.strerror}")
        return 1
    except Exception:
        return _unexpected()


def _complain(error: GpuCacheError) -> None:
    _say(f"error: {error.problem}")
    _say(f"hint: {error.hint}")


def _unexpected() -> int:
    import traceback

    traceback.print_exc()
    _say("error: this is a defect of gpucache; the lines above tell its developers where")
    return 3


class _OutputError(Exception):
    def __init__(self, cause: OSError) -> None:
        super().__init__(cause)
        self.cause = cause


def _print(text: str) -> None:
    """Data: the very bytes of a path, whatever the locale."""
    if sys.stdout is None:
        return
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:  # a product's name, in a locale that lacks its letters
        data = text.encode("utf-8", "surrogateescape")
    try:
        click.echo(data)
    except OSError as error:
        raise _OutputError(error) from error


def _say(text: str) -> None:
    if sys.stderr is None:
        return  # closed by whoever started us
    try:
        click.echo(text, err=True)
    except (OSError, ValueError):
        return  # nobody can be told


def _log_to_stderr(level: str) -> None:
    """Show the library's log; what a command tells itself it need not say twice."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    handler.setLevel(level)
    logging.getLogger("gpucache").addHandler(handler)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Give every GPU its own safe Triton cache directory.

    \b
    gpucache provision                              make the directories
    gpucache run -- python train.py                 start a command in its device's
    torchrun --no-python … gpucache run -- python train.py
    """


@cli.command()
@_root
@_json
@_require_gpu
def devices(root: str | None, as_json: bool, require_gpu: bool) -> None:
    """List this machine's devices and their directories; makes nothing.

    \b
    gpucache devices
    gpucache devices --json --require-gpu
    """
    registry = _discovered(root, require_gpu)
    rows = formats.device_rows(registry)
    visible = registry.visible
    if as_json:
        about = {"root": registry.root, **registry.snapshot.as_json(), "how": visible.how, "cut": visible.cut}
        _print_json({**about, "devices": rows})
        return
    _print_table(formats.COLUMNS, [formats.device_cells(row) for row in rows])
    if visible.cut:
        _say(f"note: {visible.cut}")
    if visible.how == "guess":
        from gpucache.visible import guess_advice

        _say(f"note: {guess_advice(registry.snapshot)}")


@cli.command()
@_root
@_json
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
        _say(f"warning: {warning}")
    rows = formats.device_rows(registry)
    if as_json:
        about = registry.snapshot.as_json()
        _print_json(
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
    _print_table(
        ("path", "state", "uuid"),
        [(row["path"], states.get(row["directory"], "not made"), row["uuid"]) for row in rows],
    )


@cli.command()
@click.argument("ordinal", type=int)
@_root
@_json
def path(ordinal: int, root: str | None, as_json: bool) -> None:
    """Print the Triton cache directory of the device with this CUDA ordinal, from the record.

    \b
    gpucache path 0
    CUDA_VISIBLE_DEVICES=3 TRITON_CACHE_DIR=$(gpucache path 3) python tune.py
    """
    registry = _recorded(root)
    found = registry.path(ordinal)
    if as_json:
        _print_json(formats.device_row(registry.devices[ordinal], found, ordinal))
    else:
        _print(found)


@cli.command()
@click.argument("ordinal", type=int)
@_root
@click.option("--format", "form", type=click.Choice(["sh", "fish", "json", "dotenv"]), default="sh", show_default=True)
@_json
def env(ordinal: int, root: str | None, form: str, as_json: bool) -> None:
    """Print the variables that give a process this device's directory, from the record.

    \b
    eval "$(gpucache env 0)"
    gpucache env 0 --format fish | source
    """
    from gpucache.paths import DISABLE
    from gpucache.vetting import is_on

    variables = {} if is_on(os.environ, DISABLE) else _marked(_recorded(root).environ(ordinal))
    if as_json or form == "json":
        _print_json(variables)
        return
    for name, value in variables.items():
        _print(formats.VARIABLE_FORMATS[form](name, value))


def _marked(variables: dict[str, str]) -> dict[str, str]:
    """With the mark by which a later `gpucache run` may choose another device."""
    from gpucache.launch import SET_BY_US, marks

    return {**variables, SET_BY_US: marks(variables)}


def _complete_file(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


@cli.command(context_settings={"allow_interspersed_args": False})
@click.option("--device", type=int, metavar="ORDINAL", help="CUDA ordinal, instead of the local rank's.")
@_root
@click.option("--strict", is_flag=True, help="Fail when the directories cannot be had, instead of going on without.")
@click.option("--force", is_flag=True, help="Replace what you have set, too.")
@click.option(
    "--plugin/--no-plugin",
    default=None,
    help="Compile each kernel once per node (default: where COMMAND is this environment's Python).",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, shell_complete=_complete_file)
def run(
    device: int | None, root: str | None, strict: bool, force: bool, plugin: bool | None, command: tuple[str, ...]
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
        _complain(error)
        failure = 1
    except Exception:
        failure = _unexpected()  # a defect of ours is no reason for the command not to run
    if failure and strict:
        return failure
    if failure:
        _say(f"warning: executing {command[0]} with its environment unchanged")
    return _execute(command, environ)


def _launched(
    command: Sequence[str], device: int | None, root: str | None, force: bool, plugin: bool | None
) -> dict[str, str]:
    from gpucache.launch import launch_environ, runs_our_python

    _log_to_stderr("ERROR")
    ours = runs_our_python(command, os.environ) if plugin is None else plugin
    environ, report = launch_environ(os.environ, device=device, force=force, root=root, plugin=ours)
    if plugin is None and not ours:
        _say(
            f"note: {command[0]} is not this environment's Python, so only directories are set; "
            "--plugin compiles each kernel once per node where it can import gpucache"
        )
    for warning in report.warnings:
        _say(f"warning: {warning}")
    if report.choice.endswith("the root only"):
        _say(f"note: {report.choice}, and TRITON_CACHE_DIR is not set")
    for setting in report.settings:
        if setting.action == "kept" and "you set it" in setting.reason:
            _say(f"note: kept {setting.name}={setting.value}: {setting.reason}")
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
                ["/bin/sh", shutil.which(command[0], path=environ.get("PATH")) or command[0], *command[1:]], environ
            )
        _say(f"error: {command[0]}: {error.strerror}")
        return 127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126


@cli.command()
@_root
@_json
def stats(root: str | None, as_json: bool) -> None:
    """Show hits, misses and seconds saved, per device directory and in all.

    \b
    gpucache stats
    gpucache stats --json
    """
    from gpucache.paths import resolve_root
    from gpucache.stats import COUNTERS, SECONDS, fold, totals
    from gpucache.vetting import Trust, vet

    where = resolve_root(root, os.environ)
    vet(where, Trust.parse(os.environ))
    with suppress(OSError):  # read-only: they are summed without being folded
        fold(where)
    sums = totals(where)
    columns = COUNTERS + SECONDS
    everything = {name: sum(values.get(name, 0) for values in sums.values()) for name in columns}
    if as_json:
        _print_json({"root": where, "devices": sums, "all": everything})
        return
    rows = [*sorted(sums.items()), ("all", everything)]
    _print_table(("directory", *columns), [(name, *formats.counter_cells(values, columns)) for name, values in rows])


# ---- what several commands share


def _discovered(root: str | None, require_gpu: bool, log: str = "WARNING") -> DeviceCacheRegistry:
    from gpucache.discovery import discover
    from gpucache.registry import DeviceCacheRegistry

    _log_to_stderr(log)
    return DeviceCacheRegistry(root, discover(require_gpu=require_gpu))


def _recorded(root: str | None) -> DeviceCacheRegistry:
    from gpucache.registry import DeviceCacheRegistry

    return DeviceCacheRegistry.load(root)


def _print_json(value: object) -> None:
    _print(json.dumps(value, indent=2))


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; tab-separated lines, without a head, when piped."""
    if sys.stdout is None or not sys.stdout.isatty():
        for row in rows:
            _print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # What one copies is folded where it does not fit, never cut.
        table.add_column(column, overflow="fold" if column in ("path", "uuid") else "ellipsis")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
