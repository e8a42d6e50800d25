"""The options and the help of `gpucache run`, which click reads; what the command does is in `run`."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from gpucache.cli.options import DEVICE, caches_option, jobs_option, path_of, root_option
from gpucache.cli.run import RunCall


def _complete_file(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--device",
    type=DEVICE,
    metavar="ORDINAL|UUID",
    help="CUDA ordinal or UUID, or the beginning of one, instead of the local rank's ordinal.",
)
@root_option
@click.option(
    "--strict/--no-strict",
    default=None,
    help="Fail when the directories cannot be had, instead of going on without (default: only "
    "where --device names none, or what --root is to lie in is missing).",
)
@click.option("--force", is_flag=True, help="Replace what you have set, too.")
@click.option(
    "--fresh", is_flag=True, help="A cache of its own for this run, which goes when it has ended."
)
@click.option(
    "--plugin/--no-plugin",
    default=True,
    help="Compile each kernel once per node (default: on, in each Python that can import gpucache).",
)
@click.option(
    "--record",
    metavar="FILE",
    callback=path_of,
    help="Append the recipe of each kernel that COMMAND asks for to FILE.",
)
@click.option(
    "--warm",
    metavar="FILE|auto",
    callback=path_of,
    help="Compile what is missing of the recipes in FILE, or of the last run of COMMAND, while it starts.",
)
@jobs_option("So many of these at once (default: cores less ranks).")
@caches_option
@click.argument(
    "command", nargs=-1, required=True, type=click.UNPROCESSED, shell_complete=_complete_file
)
def run(
    device: int | str | None,
    root: str | None,
    strict: bool | None,
    force: bool,
    fresh: bool,
    plugin: bool,
    record: str | None,
    warm: str | None,
    jobs: int | None,
    caches: tuple[str, ...] | None,
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
    gpucache run --warm auto -- python train.py
    gpucache run --fresh -- python bench.py
    gpucache run --caches all -- python serve.py
    """
    if not command[0]:
        raise click.UsageError("COMMAND is empty")
    if jobs is not None and warm is None:
        raise click.UsageError("--jobs is for --warm: say --warm FILE or --warm auto")
    call = RunCall(
        command=command,
        device=device,
        root=root,
        strict=strict,
        force=force,
        fresh=fresh,
        plugin=plugin,
        record=record,
        warm=warm,
        jobs=jobs,
        caches=caches,
    )
    return call.execute()
