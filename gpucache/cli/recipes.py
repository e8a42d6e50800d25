"""The command `recipe`, which lists by what the cached kernels can be compiled again."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from gpucache.cli.common import check_cached, check_pattern, command_settings, counted, tell, vetted
from gpucache.cli.options import TIME, arch_option, path_of, root_option
from gpucache.cli.output_file import whole_file
from gpucache.cli.terminal import print_data, progress, say
from gpucache.environment import LOG, RECORD
from gpucache.findings import repair_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpucache.report.recipes import StoredKernel, Unusable
    from gpucache.report.selection import Selection

_PIECE_BYTES = 2**16
_REPAIRED = ("missing", "changed")
"""Why there is no recipe where `gpucache verify --repair` mends that."""
_NONE = (
    "a kernel of an earlier gpucache gets its recipe when a launch next takes it from the store, or with any launch "
    f"under {RECORD}; one whose source or arguments no other process could be given has none ({LOG}=debug says why)"
)


@click.command()
@click.option("--kernel", metavar="GLOB", help="Only kernels whose name matches.")
@arch_option
@click.option("--directory", metavar="NAME", help="Only kernels in this device directory.")
@click.option(
    "--used-since", type=TIME, metavar="TIME", help="Only kernels used within so long (2h, 7d)."
)
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    callback=path_of,
    help="Write FILE, whole or not at all, instead of stdout.",
)
@root_option
def recipe(
    kernel: str | None,
    arch: str | None,
    directory: str | None,
    used_since: float | None,
    output: str | None,
    root: str | None,
) -> None:
    """List the recipes of the cached kernels, by which `gpucache warm` compiles them again.

    As lines of JSON, for one device or another, this Triton or a later one: first a line that says the format, then one
    for each kernel of the store. How many kernels have none is told on stderr.

    \b
    gpucache recipe > recipes.jsonl
    gpucache recipe --used-since 2h --arch sm_90 --output recipes.jsonl
    """
    from gpucache.report.selection import Selection

    selection = Selection(kernel=kernel, arch=arch, directory=directory, used_since_s=used_since)
    where = vetted(root)  # to replay a recipe is to import what it names
    with _written_to(output) as write:
        listed, without = _list(where, selection, write)
    _tell(where, listed, without)


def _list(
    root: str, selection: Selection, write: Callable[[bytes], object]
) -> tuple[int, list[Unusable]]:
    """Write the selected recipes; how many these are, and the kernels without one."""
    from gpucache.disk.vetting import Trust
    from gpucache.kernels.recipe_lines import FORMAT_LINE
    from gpucache.report.recipes import StoredRecipe, recipe_of, stored_kernels

    trust = Trust.parse(command_settings()).in_root(root)
    with progress("looking") as show:
        kernels = list(stored_kernels(root))
        _check_named(root, kernels, selection)
        now = time.time()
        chosen = [one for one in kernels if selection.chooses(one, now)]
        listed, without = 0, []
        write(FORMAT_LINE)
        for number, one in enumerate(chosen):
            if show is not None:
                show(number, len(chosen))
            found = recipe_of(one, trust)
            if isinstance(found, StoredRecipe):
                write(found.text + b"\n")
                listed += 1
            elif found is not None:
                without.append(found)
    if kernels and not chosen:
        say(f"note: none of {counted(len(kernels), 'kernel', 'kernels')} in {root} is like that")
    return listed, without


def _check_named(root: str, kernels: Sequence[StoredKernel], selection: Selection) -> None:
    """Refuse filters each of which alone names nothing of what is cached; together they may leave nothing.

    Raises:
        NotCachedError: there is no such kernel, architecture or device directory.
    """
    from gpucache.layout.keys import device_directories

    archs = {one.arch for one in kernels if one.arch is not None}
    names = {name for name, _ in device_directories(os.path.realpath(root))}
    for one in kernels:
        names.update(one.directories)
    for option, value, there in (
        ("--arch", selection.arch, archs),
        ("--directory", selection.directory, names),
    ):
        if value is not None:
            check_cached(root, option, value, there)
    if selection.kernel is not None:
        check_pattern(root, "--kernel", selection.kernel, {one.kernel for one in kernels})


# ---- writing


@contextmanager
def _written_to(output: str | None) -> Iterator[Callable[[bytes], object]]:
    """A function that writes lines to stdout or, if that is named, to a file, which is there whole or as it was.

    Raises:
        ProvisionError: there can be no such file.
    """
    if output is None:
        with _to_stdout() as write:
            yield write
        return
    with whole_file(output) as file:
        yield file.write


@contextmanager
def _to_stdout() -> Iterator[Callable[[bytes], object]]:
    """A function that collects lines, and prints them in large pieces; what is left after the ``with`` block."""
    piece = bytearray()

    def write(line: bytes) -> None:
        piece.extend(line)
        if len(piece) >= _PIECE_BYTES:
            flush()

    def flush() -> None:
        text = piece.decode("ascii").removesuffix("\n")
        piece.clear()
        print_data(text)

    yield write
    if piece:
        flush()


# ---- what people are told


def _tell(root: str, listed: int, without: Iterable[Unusable]) -> None:
    """Tell how many recipes were listed, and why other kernels have none."""
    whys = Counter[str]()
    lines = []
    for one in without:
        whys[one.why] += 1
        if one.why != "none":
            way_out = f"; {repair_command(root)}" if one.why in _REPAIRED else ""
            lines.append(f"warning: {one.of.path}: no recipe: {one.fact}{way_out}")
    tell(lines)
    said = f"note: {counted(listed, 'recipe', 'recipes')}"
    if whys:
        said += f"; {counted(whys.total(), 'kernel has', 'kernels have')} none"
    say(said)
    if whys["none"]:
        say(f"hint: {_NONE}")
