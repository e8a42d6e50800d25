"""What `gpucache top` shows of one look, as lines: no name and no number is cut, whatever the terminal's width."""

from __future__ import annotations

import textwrap
import time
from typing import TYPE_CHECKING, NamedTuple

from gpucache.cli.table_layout import ALWAYS, Column, Layout
from gpucache.escapes import printable
from gpucache.units import size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Literal

    from gpucache.watch.compiling import Compile
    from gpucache.watch.live import Activity, Live, StoreNow
    from gpucache.watch.remote_now import RemoteNow

    Style = Literal["", "bold", "yellow", "dim"]
    Order = Literal["directory", "own", "store", "compiling", "waiting"]

COLUMNS = (
    Column("directory", ALWAYS),
    Column("own/s", 90, right=True),
    Column("store/s", 60, right=True),
    Column("fallback/s", 20, right=True),
    Column("remote/s", 30, right=True),
    Column("compiled/s", 65, right=True),
    Column("since", 80, right=True),
    Column("pid", 70, right=True),
    Column("waiting", 75, right=True),
)
"""What is shown of each device directory, and of each of its compiles; a compile's kernel follows."""
_KERNEL = "compiling"
_GAP = "  "
_INDENT = 4
_MOST_BESIDE = 16
"""For a longer name of a kernel no numbers are left out."""
_NEARLY_FULL = 0.9
_NONE = "-"


class Line(NamedTuple):
    """One line of the screen."""

    text: str
    style: Style = ""


ORDERS: dict[Order, Callable[[Activity], Any]] = {
    "directory": lambda one: 0,
    "own": lambda one: -one.rates["own"],
    "store": lambda one: -one.rates["store"],
    "compiling": lambda one: (-len(one.compiles), -one.rates["compiled"]),
    "waiting": lambda one: -sum(each.waiting or 0 for each in one.compiles),
}
"""By what the directories can be sorted; equal ones stay in the order of their numbers."""
KEYS: dict[str, Order] = {
    "d": "directory",
    "o": "own",
    "s": "store",
    "c": "compiling",
    "w": "waiting",
}
"""The keys that sort."""
QUIT = "q"


def screen_lines(live: Live, order: Order, columns: int, lines: int) -> list[Line]:
    """The lines of a screen of this size: the head, as many directories as have room, and the keys at the end."""
    top = head_lines(live, columns)
    bottom = _flowed([f"sort: {_keys(order)}", f"{QUIT} quit"], columns, "dim")
    table = directory_lines(live, order, columns)
    room = max(1, lines - len(top) - len(bottom) - 1)
    if len(table) > room:
        left_out = len(table) - room + 1
        more = f"and {left_out} more lines: a higher terminal shows them"
        table = [*table[: room - 1], Line(more[:columns], "yellow")]
    blank = Line("")
    return [*top, blank, *table, *bottom][:lines]


def _keys(order: Order) -> str:
    """The keys that sort, and by what; a star at the one in force."""
    marks = []
    for key, name in KEYS.items():
        marks.append(f"{'*' if name == order else ''}{key} {name}")
    return ", ".join(marks)


def head_lines(live: Live, columns: int) -> list[Line]:
    """What is told of the root as a whole: the rates' time, the store, the remote."""
    window = f"rates of the last {live.window_s:.0f} s" if live.window_s else "first look"
    now = time.strftime("%H:%M:%S", time.localtime(live.at))
    lines = _flowed([live.root, f"on {live.host}", window, now], columns, "bold")
    lines += _flowed([_going_on(live)], columns)
    lines += _store_lines(live, columns)
    if live.remote is not None:
        lines += _remote_lines(live.remote, columns)
    return lines


def _going_on(live: Live) -> str:
    """How many compiles go on, and how many processes wait for one."""
    compiles = live.all.compiles
    seen = [one.waiting for one in compiles if one.waiting is not None]
    waiting = str(sum(seen)) if len(seen) == len(compiles) else "? (some of other containers)"
    return f"compiling {len(compiles)}, waiting {waiting}"


def _store_lines(live: Live, columns: int) -> list[Line]:
    store = live.store
    evicted = f"evicted {_rate(store.evicted)}/s ({size(round(store.evicted_bytes))}/s)"
    words = [_taken(store), evicted, f"degraded {_rate(live.all.degraded)}/s"]
    is_nearly_full = (_share(store) or 0) > _NEARLY_FULL
    return _flowed(words, columns, "yellow" if is_nearly_full else "")


def _taken(store: StoreNow) -> str:
    """What the store takes of its limit, in words."""
    limit = "no limit"
    if store.limit_bytes is None:
        limit = "limit not known"
    elif store.limit_bytes:
        limit = f"limit {size(store.limit_bytes)}"
    if store.size_bytes is None:
        return f"store not counted yet, {limit}"
    share = _share(store)
    percent = "" if share is None else f" ({share:.0%})"
    return f"store {size(store.size_bytes)}, {limit}{percent}"


def _share(store: StoreNow) -> float | None:
    """How much of its limit the store takes; None where either is not known, or there is no limit."""
    if not store.limit_bytes or store.size_bytes is None:
        return None
    return store.size_bytes / store.limit_bytes


def _remote_lines(remote: RemoteNow, columns: int) -> list[Line]:
    words = [f"remote {remote.shown}", remote.state]
    if remote.again_in_s:
        words.append(f"again in {remote.again_in_s:.0f} s")
    if remote.said:
        words.append(remote.said)
    words.append(f"{_rate(remote.hits)} hits/s")
    words.append(f"{_rate(remote.misses)} misses/s")
    words.append(f"{_rate(remote.errors)} errors/s")
    words.append(f"{size(round(remote.bytes))}/s")
    if remote.to_push:
        words.append(f"{remote.to_push} to push")
    return _flowed(words, columns, "" if remote.state == "asked" else "yellow")


def _flowed(words: Sequence[str], columns: int, style: Style = "") -> list[Line]:
    """Groups of words on as few lines as they need; only what alone is wider than the terminal is folded."""
    texts: list[str] = []
    line = ""
    for word in map(printable, words):
        joined = f"{line}{_GAP}{word}" if line else word
        if len(joined) <= columns:
            line = joined
            continue
        if line:
            texts.append(line)
        *folded, line = _folded(word, columns)
        texts += folded
    return [Line(text, style) for text in [*texts, line]]


def _folded(text: str, columns: int) -> list[str]:
    """A text on lines that fit, broken after words where there are any."""
    return textwrap.wrap(text, columns, break_on_hyphens=False) or [""]


# ---- the directories


def directory_lines(live: Live, order: Order, columns: int) -> list[Line]:
    """The table: a line for each device directory, one more for each further compile of it, and their sum.

    What has no room beside the numbers stands on lines of its own: the path of a directory elsewhere above them, the
    name of a kernel below.
    """
    rows = []
    for one in sorted(live.devices, key=ORDERS[order]):
        rows += _rows(one, live)
    if not rows:
        none = "no device directory here yet: `gpucache provision` makes them"
        return [Line(part) for part in _folded(none, columns)]
    rows.append(_Row("all", _cells(live.all, None, live), ""))
    longest = max(len(COLUMNS[0].name), columns // 3)
    short = [row.label if len(row.label) <= longest else "" for row in rows]
    cells = [(label, *row.cells) for label, row in zip(short, rows, strict=True)]
    names = [len(row.kernel) for row in rows]
    beside = min(_MOST_BESIDE, max(len(_KERNEL), *names))
    layout = Layout(COLUMNS, cells, columns - len(_GAP) - beside)
    lines = ["".join(layout.lines(each)) for each in cells]
    width = max(map(len, lines))
    found = _beside(layout.head(), _KERNEL, width, columns, "bold")[:1]
    for row, label, line in zip(rows, short, lines, strict=True):
        if not label:
            found += [Line(part) for part in _folded(row.label, columns) if part]
        found += _beside(line, row.kernel, width, columns)
    return found


class _Row(NamedTuple):
    """What is shown of a directory, or of one more compile for it."""

    label: str
    """The directory; empty for one more compile."""
    cells: tuple[str, ...]
    kernel: str


def _rows(one: Activity, live: Live) -> list[_Row]:
    first = one.compiles[0] if one.compiles else None
    rows = [_Row(printable(one.directory), _cells(one, first, live), _name(first))]
    for more in one.compiles[1:]:
        cells = ("",) * len(one.rates) + _compile_cells(more, live)
        rows.append(_Row("", cells, _name(more)))
    return rows


def _beside(line: str, kernel: str, width: int, columns: int, style: Style = "") -> list[Line]:
    """A line of numbers with a kernel behind it, or below it where that has no room there."""
    whole = f"{line:<{width}}{_GAP}{kernel}".rstrip()
    if len(whole) <= columns:
        return [Line(whole, style)]
    indent = " " * max(0, min(_INDENT, columns - len(kernel)))
    below = [Line(indent + part) for part in _folded(kernel, columns)]
    return [Line(line.rstrip(), style), *below]


def _name(compile_: Compile | None) -> str:
    return "" if compile_ is None else printable(compile_.kernel)


def _cells(one: Activity, compile_: Compile | None, live: Live) -> tuple[str, ...]:
    rates = [_NONE] * len(one.rates)
    if live.window_s:
        rates = [_rate(value) for value in one.rates.values()]
    return (*rates, *_compile_cells(compile_, live))


def _compile_cells(compile_: Compile | None, live: Live) -> tuple[str, str, str]:
    """Since when, by which process, and how many wait; ``?`` where that cannot be seen."""
    if compile_ is None:
        return "", "", ""
    since = f"{max(0.0, live.at - compile_.since):.0f} s"
    waiting = "?" if compile_.waiting is None else str(compile_.waiting)
    return since, str(compile_.pid), waiting


def _rate(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"
