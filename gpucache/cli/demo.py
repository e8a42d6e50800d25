"""The command `gpucache demo`, which shows on any machine what gpucache saves."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from gpucache.cli.common import counted
from gpucache.cli.next_steps import tell_next
from gpucache.cli.options import json_option
from gpucache.cli.tables import Column, print_table
from gpucache.cli.terminal import has_person, print_json, say
from gpucache.demo import MOST_KERNELS, MOST_RANKS
from gpucache.machine.cores import usable_cores
from gpucache.units import size

if TYPE_CHECKING:
    from types import FrameType

    from gpucache.demo.comparison import Comparison, Show
    from gpucache.demo.ranks import Kernel, Round

_NAMES = {"stock": "stock Triton", "gpucache": "with gpucache"}
_COLUMNS = (
    Column(""),
    Column("compiles", right=True),
    Column("processor time", right=True),
    Column("wall time", right=True),
    Column("on disk", right=True),
)


@click.command()
@click.option(
    "--ranks",
    type=click.IntRange(2, MOST_RANKS),
    default=8,
    show_default=True,
    metavar="N",
    help="How many ranks there are.",
)
@click.option(
    "--kernels",
    type=click.IntRange(1, MOST_KERNELS),
    default=MOST_KERNELS,
    show_default=True,
    metavar="N",
    help="How many kernels each of them compiles.",
)
@json_option
def demo(ranks: int, kernels: int, as_json: bool) -> None:
    """See what gpucache saves: ranks that compile the same kernels, first with stock Triton, then with gpucache.

    Takes real Triton kernels, no GPU, about 20 seconds, and a directory of its own that is gone afterwards.

    \b
    gpucache demo
    gpucache demo --ranks 4 --json
    """
    if not as_json:
        cores = counted(usable_cores(), "core", "cores")
        kernels_each = counted(kernels, "kernel", "kernels")
        say(f"{ranks} ranks, {kernels_each} each, on {cores}; no GPU is used")
    with _ending_when_told():
        found = _compared(ranks, kernels, quiet=as_json)
    if as_json:
        print_json(_as_json(found))
        return
    say("")
    _print(found)
    say("")
    _tell(found)


@contextmanager
def _ending_when_told() -> Iterator[None]:
    """End as an exception does when this process is told to: the ranks go, and the terminal is left in order."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _compared(ranks: int, kernels: int, quiet: bool) -> Comparison:
    """Compare, and show on a terminal how far each rank is."""
    from gpucache.demo.comparison import compare

    if quiet or not has_person(sys.stderr):
        return compare(ranks, kernels, os.environ, lambda name: _tell_beginning(name, quiet))
    from gpucache.cli.demo_bars import Bars

    with Bars(ranks, kernels) as bars:
        return compare(ranks, kernels, os.environ, lambda name: bars.begun(_NAMES[name]))


def _tell_beginning(name: str, quiet: bool) -> Show:
    if not quiet:
        say(f"{_NAMES[name]} …")

    def nothing(kernel: Kernel) -> None:
        pass

    return nothing


# ---- what came of it


def _print(found: Comparison) -> None:
    stock, shared = found.stock, found.shared
    rows = [_row(_NAMES["stock"], stock), _row(_NAMES["gpucache"], shared)]
    saved = (
        "saved",
        str(stock.compiles - shared.compiles),
        _seconds(stock.cpu_s - shared.cpu_s),
        _seconds(stock.wall_s - shared.wall_s),
        _difference(stock.bytes - shared.bytes),
    )
    print_table(_COLUMNS, rows, saved)


def _row(name: str, done: Round) -> tuple[str, ...]:
    return (
        name,
        str(done.compiles),
        _seconds(done.cpu_s),
        _seconds(done.wall_s),
        size(done.bytes),
    )


def _seconds(seconds: float) -> str:
    rounded = round(seconds, 1) + 0.0  # which makes of -0.0 a zero
    return f"{rounded:.1f} s"


def _difference(count: int) -> str:
    return f"-{size(-count)}" if count < 0 else size(count)


def _tell(found: Comparison) -> None:
    """Say what the numbers mean, and what comes next; no line is longer than 80 columns."""
    say(
        f"Triton {found.stock.triton}, for {found.stock.target}. One rank compiles a kernel, the others take it."
    )
    if found.has_core_for_each:
        say("Wall time: each rank has a core here, so that it stays about the same; the")
        say("cores of ranks that wait are free meanwhile.")
    else:
        cores = counted(found.cores, "core", "cores")
        say(f"Wall time: saved since {found.ranks} ranks share {cores}. With a core for each it")
        say("stays about the same, and the cores of ranks that wait are free meanwhile.")
    tell_next("`gpucache provision`, then `gpucache run -- python train.py`")


def _as_json(found: Comparison) -> dict[str, object]:
    stock, shared = found.stock, found.shared
    return {
        "ranks": found.ranks,
        "kernels": found.kernels,
        "cores": found.cores,
        "triton": stock.triton,
        "target": stock.target,
        "stock": _numbers(stock),
        "gpucache": _numbers(shared),
    }


def _numbers(done: Round) -> dict[str, object]:
    return {
        "compiles": done.compiles,
        "taken": done.taken,
        "cpu_s": round(done.cpu_s, 3),
        "wall_s": round(done.wall_s, 3),
        "bytes": done.bytes,
    }
