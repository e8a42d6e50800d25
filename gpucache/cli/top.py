"""The command `gpucache top`: what goes on in a root on this node, drawn again and again, or told once."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from gpucache.cli.common import command_settings, existing
from gpucache.cli.options import TIME, json_option, root_option
from gpucache.cli.screen import Screen, Terminated, end_by
from gpucache.cli.styled import styled_output
from gpucache.cli.terminal import (
    is_capable,
    is_terminal,
    log_to_stderr,
    print_json,
    print_lines,
)
from gpucache.cli.top_view import (
    KEYS,
    ORDERS,
    QUIT,
    directory_lines,
    head_lines,
    screen_lines,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from gpucache.cli.top_view import Line, Order
    from gpucache.watch.live import Activity, Live, Watch

LEAST_INTERVAL_S = 2.0
"""Processes write what they have counted at most so often: a shorter interval would show turns of nothing and twice."""
_REST = 9
"""For each second that a look takes, so many are rested, where that is more than the interval: a tenth of a core is
taken at most, however many nodes count in the root."""


class _Seconds(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4, and not before
    """The type of an interval: a time as elsewhere, or a number of seconds, as of ``watch -n``."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Any:
        """The seconds that a text means."""
        if not isinstance(value, str):
            return value
        seconds = value if not value.replace(".", "", 1).isdigit() else f"{value}s"
        found = TIME.convert(seconds, param, context)
        if found < LEAST_INTERVAL_S:
            least = f"{LEAST_INTERVAL_S:.0f}s"
            self.fail(
                f"{value!r} is too short: what is counted is written every {least}", param, context
            )
        return found


@click.command()
@click.option("--once", is_flag=True, help="Look for one interval, print that, and end.")
@click.option(
    "--interval",
    type=_Seconds(),
    metavar="TIME",
    default=LEAST_INTERVAL_S,
    help="How often to look (5s, 1min); 2s by default, and at least.",
)
@click.option(
    "--sort",
    type=click.Choice(list(ORDERS)),
    default="directory",
    show_default=True,
    help="By what the directories are sorted; keys do so as well.",
)
@root_option
@json_option
def top(once: bool, interval: float, sort: Order, root: str | None, as_json: bool) -> int:
    """Watch this node: hits a second of each device, what compiles now and who waits, the store and the remote.

    Keys: q quits; d, o, s, c and w sort by directory, own/s, store/s, compiles and waiters.

    \b
    gpucache top
    gpucache top --interval 10s --sort compiling
    gpucache top --once --json
    """
    from gpucache.disk.vetting import Trust, vet
    from gpucache.watch.live import Watch

    log_to_stderr("CRITICAL")  # what it would say stands on the screen, or does not belong there
    where = existing(root)
    settings = command_settings()
    vet(where, Trust.parse(settings).in_root(where))
    watch = Watch(os.path.realpath(where), settings)
    if once or as_json:
        _print_once(watch, interval, sort, as_json)
        return 0
    _check_drawable()
    return _draw(watch, interval, sort)


def _check_drawable() -> None:
    """Refuse where there is no terminal on which to draw.

    Raises:
        UsageError: stdout is no terminal, or one that cannot be drawn on.
    """
    if not is_terminal():
        raise click.UsageError(
            "there is no terminal to draw on: say --once for one look, or --once --json"
        )
    if not is_capable():
        kind = os.environ.get("TERM", "")
        raise click.UsageError(
            f"this terminal (TERM={kind}) cannot be drawn on: say --once for one look"
        )


# ---- again and again


def _draw(watch: Watch, interval: float, order: Order) -> int:
    """Draw until a key or a signal says that it is enough; returns the exit code."""
    try:
        with Screen() as screen:
            return _loop(screen, watch, interval, order)
    except Terminated as ended:
        end_by(ended.number)
        return 128 + ended.number


def _loop(screen: Screen, watch: Watch, interval: float, order: Order) -> int:
    live, due = _looked(watch, interval)
    while True:
        columns, lines = screen.size()
        screen.draw([_text(line) for line in screen_lines(live, order, columns, lines)])
        try:
            typed = screen.keys(due - time.monotonic())
        except EOFError:
            return 0
        for letter in typed.lower():
            if letter == QUIT:
                return 0
            order = KEYS.get(letter, order)
        if time.monotonic() >= due:
            live, due = _looked(watch, interval)


def _looked(watch: Watch, interval: float) -> tuple[Live, float]:
    """What is seen now, and when the next look is due, on the clock of `time.monotonic`."""
    began = time.monotonic()
    live = watch.look()
    ended = time.monotonic()
    return live, ended + max(interval, _REST * (ended - began))


def _text(line: Line) -> Text:
    from rich.text import Text

    return Text(line.text, line.style, no_wrap=True)


# ---- once


def _print_once(watch: Watch, interval: float, order: Order, as_json: bool) -> None:
    """Look twice, an interval apart, since rates take two looks; print what is seen then."""
    watch.look()
    time.sleep(interval)
    live = watch.look()
    if as_json:
        print_json(_row_of_live(live))
    elif is_terminal():
        _print_lines(live, order)
    else:
        _print_rows(live, order)


def _print_lines(live: Live, order: Order) -> None:
    """Print on a terminal what the screen would show, all of it."""
    import shutil

    columns = shutil.get_terminal_size().columns
    with styled_output() as console:
        for line in [*head_lines(live, columns), *directory_lines(live, order, columns)]:
            console.print(_text(line), soft_wrap=True)


def _print_rows(live: Live, order: Order) -> None:
    """Print a line for each directory, with tabs: the rates, how many compiles go on, and the one that began first."""
    rows = []
    for one in sorted(live.devices, key=ORDERS[order]):
        rates = [f"{value:.3f}" for value in one.rates.values()]
        rows.append([one.directory, *rates, str(len(one.compiles)), *_first(one)])
    print_lines(rows)


def _first(one: Activity) -> Sequence[str]:
    """Key, kernel, process, start and waiters of the compile that began first; ``-`` where there is none."""
    if not one.compiles:
        return ["-"] * 5
    first = one.compiles[0]
    waiting = "?" if first.waiting is None else str(first.waiting)
    return [first.key, first.kernel, str(first.pid), f"{first.since:.0f}", waiting]


def _row_of_live(live: Live) -> dict[str, Any]:
    from gpucache.values import as_dict

    return {
        "root": live.root,
        "host": live.host,
        "at": live.at,
        "window_s": live.window_s,
        "devices": [_row_of_activity(one) for one in live.devices],
        "all": _row_of_activity(live.all),
        "store": as_dict(live.store),
        "remote": None if live.remote is None else as_dict(live.remote),
    }


def _row_of_activity(one: Activity) -> dict[str, Any]:
    from gpucache.values import as_dict

    row = as_dict(one)
    return {**row, "compiles": [as_dict(each) for each in one.compiles]}
