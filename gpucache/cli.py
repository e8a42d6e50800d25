"""The command line: data on stdout, everything else on stderr. The only module that prints.

Exit codes: 0; 1 an expected failure; 2 wrong usage; 3 an unexpected one; 130 interrupted. `gpucache run` ends as its
command does, or with 127 (not found) or 126 (not executable) as a shell would.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from gpucache import __version__
from gpucache.errors import GpuCacheError

if TYPE_CHECKING:
    from gpucache.device import Device
    from gpucache.registry import DeviceCacheRegistry

_root = click.option("--root", type=click.Path(), help="Cache root, instead of $GPUCACHE_DIR and torch's default.")
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
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read has gone; so must what is still buffered
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


def _say(text: str) -> None:
    click.echo(text, err=True)


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
    if as_json:
        _print_json(
            {
                "root": registry.root,
                **registry.snapshot.as_json(),
                "how": registry.visible.how,
                "cut": registry.visible.cut,
                "devices": _rows(registry),
            }
        )
        return
    columns = ("ordinal", "directory", "name", "capability", "memory", "uuid")
    _print_table(columns, [_cells(row) for row in _rows(registry)])
    if registry.visible.cut:
        _say(f"note: {registry.visible.cut}")


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
    if as_json:
        about = registry.snapshot.as_json()
        _print_json(
            {
                "root": done.root,
                **{key: about[key] for key in ("status", "source", "fake", "detail", "advice")},
                "created": list(done.created),
                "existing": list(done.existing),
                "warnings": list(done.warnings),
                "devices": _rows(registry),
            }
        )
        return
    made = dict.fromkeys(done.created, "created")
    rows = [(row["path"], made.get(row["directory"], "existing"), row["uuid"]) for row in _rows(registry)]
    _print_table(("path", "state", "uuid"), rows)


@cli.command()
@click.argument("ordinal", type=int)
@_root
@_json
def path(ordinal: int, root: str | None, as_json: bool) -> None:
    """Print the Triton cache directory of the device with this CUDA ordinal, from the record.

    \b
    gpucache path 0
    TRITON_CACHE_DIR=$(gpucache path 3) python tune.py
    """
    registry = _recorded(root)
    found = registry.path(ordinal)
    if as_json:
        _print_json(_row(registry.devices[ordinal], found, ordinal))
    else:
        click.echo(found)


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
    variables = _recorded(root).environ(ordinal)
    if as_json or form == "json":
        _print_json(variables)
        return
    for name, value in variables.items():
        click.echo(_FORMATS[form](name, value))


def _fish(name: str, value: str) -> str:
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"set -gx {name} '{quoted}'"


def _dotenv(name: str, value: str) -> str:
    if re.fullmatch(r"[\w@%+=:,./-]*", value, re.ASCII):
        return f"{name}={value}"
    escaped = re.sub(r'([\\"$`])', r"\\\1", value).replace("\n", "\\n")
    return f'{name}="{escaped}"'


_FORMATS: dict[str, Callable[[str, str], str]] = {
    "sh": lambda name, value: f"export {name}={shlex.quote(value)}",
    "fish": _fish,
    "dotenv": _dotenv,
}


@cli.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--device", type=int, metavar="ORDINAL", help="CUDA ordinal, instead of the local rank's.")
@click.option("--root", type=click.Path(), help="Cache root, instead of $GPUCACHE_DIR and torch's default.")
@click.option("--strict", is_flag=True, help="Fail when the directories cannot be had, instead of going on without.")
@click.option("--force", is_flag=True, help="Replace what you have set, too.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(device: int | None, root: str | None, strict: bool, force: bool, command: tuple[str, ...]) -> int:
    """Execute COMMAND with its device's cache directories; provisions them when needed.

    The device is the one visible one, or the one of the local rank (torchrun, mpirun, srun); with several devices and
    no rank only the root is set. The command replaces this process: signals and exit code are its own.

    \b
    gpucache run -- python train.py
    torchrun --no-python --nproc-per-node 8 gpucache run -- python train.py
    srun gpucache run -- python train.py
    gpucache run --device 2 -- python tune.py
    """
    try:
        environ = _launched(device, root, force)
    except GpuCacheError as error:
        _complain(error)
        if strict:
            return 1
        environ = None
    except Exception:
        # Our failure is never the command's.
        code = _unexpected()
        if strict:
            return code
        environ = None
    if environ is None:
        _say(f"warning: executing {command[0]} with its environment unchanged")
    return _execute(command, dict(os.environ) if environ is None else environ)


def _launched(device: int | None, root: str | None, force: bool) -> dict[str, str]:
    from gpucache.launch import launch_environ

    _log_to_stderr("ERROR")
    base = dict(os.environ)
    if root:
        base["GPUCACHE_DIR"] = os.path.abspath(root)
    environ, report = launch_environ(base, device=device, force=force)
    for warning in report.warnings:
        _say(f"warning: {warning}")
    for setting in report.settings:
        if setting.action == "kept" and "you set it" in setting.reason:
            _say(f"note: kept {setting.name}={setting.value}: {setting.reason}")
    return environ


def _execute(command: Sequence[str], environ: dict[str, str]) -> int:
    import signal

    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores these two, and an ignored signal stays so across exec
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    sys.stdout.flush()
    try:
        os.execvpe(command[0], list(command), environ)
    except OSError as error:
        _say(f"error: {command[0]}: {error.strerror}")
        return 127 if isinstance(error, FileNotFoundError) else 126


# ---- what several commands share


def _discovered(root: str | None, require_gpu: bool, log: str = "WARNING") -> DeviceCacheRegistry:
    from gpucache.discovery import discover
    from gpucache.registry import DeviceCacheRegistry

    _log_to_stderr(log)
    return DeviceCacheRegistry(root, discover(require_gpu=require_gpu))


def _recorded(root: str | None) -> DeviceCacheRegistry:
    from gpucache.registry import DeviceCacheRegistry

    return DeviceCacheRegistry.load(root)


def _rows(registry: DeviceCacheRegistry) -> list[dict[str, Any]]:
    """Every device of the machine: its fields, its directory, and its ordinal in this process if it has one."""
    ordinals = {device.uuid: ordinal for ordinal, device in enumerate(registry.devices)}
    return [
        _row(device, registry.directories[device.uuid], ordinals.get(device.uuid))
        for device in registry.snapshot.devices
    ]


def _row(device: Device, path: str, ordinal: int | None) -> dict[str, Any]:
    known = {"fake": device.fake, **device.as_json()}
    return {"ordinal": ordinal, "directory": os.path.basename(path), "path": path, **known}


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    capability = row.get("compute_capability")
    memory = row.get("memory_bytes")
    return (
        "-" if row["ordinal"] is None else str(row["ordinal"]),
        row["directory"],
        row.get("name") or "-",
        f"{capability[0]}.{capability[1]}" if capability else "-",
        f"{memory / 2**30:.1f} GiB" if memory else "-",
        row["uuid"],
    )


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; tab-separated lines, without a head, when piped."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
