"""How `ls` lists entries: the columns of its table, and what each says of an entry.

What only the author of a kernel asks for (constants, registers) is read from the entry's files, of the entries that are
shown and where a column is shown that needs it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from gpucache.cli.cache_rows import described, owner_of, utc
from gpucache.cli.common import counted
from gpucache.cli.tables import Choice, Column, print_table
from gpucache.cli.terminal import is_terminal
from gpucache.cli.tuning_table import tuning_of
from gpucache.disk.group_names import login_name
from gpucache.disk.sharing import is_shared_by_group
from gpucache.kernels.metadata import count
from gpucache.units import ago, size

if TYPE_CHECKING:
    from gpucache.kernels.autotune import TuningResult
    from gpucache.kernels.description import Description
    from gpucache.report.entries import Entry

_LONGEST_ITEM = 60
"""A longer constant, such as a table as a tuple, is ``...`` in the list of constants; JSON has it whole."""
_UNKNOWN = "-"


class Shown(NamedTuple):
    """An entry as `ls` shows it."""

    entry: Entry
    description: Description | None
    """None of what is no kernel, or where no column needs it."""
    telling: Collection[str]
    """The names of the constants that differ among the shown entries of this kernel."""
    owner: str
    """Who has made it, in a root that is shared by a group; else empty."""


Cell = Callable[[Shown], str]


class EntryColumn(NamedTuple):
    """A column of `ls`, and what its cells are for people and for the next program."""

    column: Column
    human: Cell
    piped: Cell
    is_described: bool = False
    """Whether the cells need the entry's description."""


def print_entries(
    root: str, entries: Sequence[Entry], found: int, choice: Choice, now: float
) -> None:
    """Print a table of entries, which are the first of ``found``.

    Raises:
        OutputError: stdout cannot be written.
    """
    human = is_terminal()
    columns = entry_columns(now)
    used = [one for one in columns if choice.names is None or one.column.name in choice.names]
    needs_description = any(one.is_described for one in used)
    shown = list(_shown(root, entries, needs_description))
    rows = []
    for one in shown:
        rows.append([_cell(one, column, human) for column in columns])
    total = _total(entries, found)
    print_table(
        [_with_room(one.column, shown) for one in columns],
        rows,
        [total.get(one.column.name, "") for one in columns],
        choice=choice,
        piped=_PIPED,
    )


_MOST_TELLING = 48
"""So wide a list of the constants that tell entries apart may become at the cost of other columns."""


def _with_room(column: Column, shown: Sequence[Shown]) -> Column:
    """The column, wide enough for what tells the entries of each kernel apart."""
    if column.name != "constants":
        return column
    widths = [_telling_width(one) for one in shown]
    return column._replace(wanted=min(_MOST_TELLING, max(widths, default=0)))


def _telling_width(shown: Shown) -> int:
    """The width of the constants in which an entry may differ from others of its kernel, with a count of the rest."""
    if shown.description is None:
        return 0
    constants = shown.description.constants.items()
    items = _items([pair for pair in constants if pair[0] in shown.telling])
    return len(items) + len(" +99")


def _cell(shown: Shown, column: EntryColumn, human: bool) -> str:
    return column.human(shown) if human else column.piped(shown)


def _total(entries: Sequence[Entry], found: int) -> dict[str, str]:
    """What the last line says below some columns."""
    count = len(entries)
    kernels = len({entry.kernel for entry in entries})
    one_or_more = counted(kernels, "kernel", "kernels")
    return {
        "key": counted(count, "entry", "entries") if count == found else f"{count} of {found}",
        "kernel": one_or_more,
        "size": size(sum(entry.physical_bytes for entry in entries)),
    }


def _shown(root: str, entries: Sequence[Entry], needs_description: bool) -> Iterable[Shown]:
    descriptions: list[Description | None] = [None] * len(entries)
    if needs_description:
        descriptions = [_described_entry(entry) for entry in entries]
    telling = _telling(entries, descriptions)
    owners = _Owners() if is_shared_by_group(root) else None
    for entry, description in zip(entries, descriptions, strict=True):
        owner = "" if owners is None else owners.of(entry)
        yield Shown(entry, description, telling[entry.kernel], owner)


def _described_entry(entry: Entry) -> Description | None:
    """The description of a kernel; of an autotuner's result that of the fastest configuration."""
    if entry.kind != "autotune":
        return described(entry)
    result = tuning_of(entry)
    return None if result is None else _of_winner(result)


def _of_winner(result: TuningResult) -> Description:
    from gpucache.kernels.description import Description

    winner = result.winner
    fastest = f"{winner.milliseconds[0]:.4g}ms" if winner.runs else "none"
    tried = {"fastest": fastest, "tried": str(len(result.configurations))}
    return Description(
        has_recipe=False,
        constants={name: str(value) for name, value in winner.values.items()},
        dtypes={},
        options=tried,
        warps=count(winner.options.get("num_warps")),
        stages=count(winner.options.get("num_stages")),
        registers=None,
        spills=None,
        shared_bytes=None,
        variables={},
        target=None,
        triton_version=None,
        function=None,
    )


def _telling(
    entries: Sequence[Entry], descriptions: Sequence[Description | None]
) -> dict[str, set[str]]:
    """By kernel the names of the constants that do not have one value in all the entries of the kernel."""
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for entry, description in zip(entries, descriptions, strict=True):
        of_kernel = values[entry.kernel]
        for name, value in ({} if description is None else description.constants).items():
            of_kernel[name].add(value)
    found = {}
    for kernel, by_name in values.items():
        found[kernel] = {name for name, seen in by_name.items() if len(seen) > 1}
    return found


class _Owners:
    """The names of the users who own entries; each is looked up once."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def of(self, entry: Entry) -> str:
        uid = owner_of(entry)
        if uid is None:
            return _UNKNOWN
        if uid not in self._names:
            self._names[uid] = login_name(uid) or str(uid)
        return self._names[uid]


# ---- cells


def entry_columns(now: float | None = None) -> tuple[EntryColumn, ...]:
    """The columns of `ls` in the order in which people see them. ``now`` is when they look."""
    moment = time.time() if now is None else now

    def used(shown: Shown) -> str:
        return ago(moment - shown.entry.used)

    def created(shown: Shown) -> str:
        return ago(moment - shown.entry.created)

    return (
        EntryColumn(Column("key"), lambda one: one.entry.key[:12], lambda one: one.entry.key),
        _plain(Column("kernel"), lambda one: one.entry.kernel),
        _described(Column("constants", 90, items=True), _constants),
        _described(Column("warps", 85, right=True), lambda one: _number(one.description, "warps")),
        _described(
            Column("stages", 84, right=True), lambda one: _number(one.description, "stages")
        ),
        _described(
            Column("regs", 75, right=True), lambda one: _number(one.description, "registers")
        ),
        _described(
            Column("spills", 50, right=True), lambda one: _number(one.description, "spills")
        ),
        EntryColumn(
            Column("smem", 65, right=True),
            lambda one: _bytes(one.description),
            lambda one: _number(one.description, "shared_bytes"),
            is_described=True,
        ),
        EntryColumn(
            Column("size", 95, right=True),
            lambda one: size(one.entry.physical_bytes),
            lambda one: str(one.entry.physical_bytes),
        ),
        EntryColumn(Column("used", 70, right=True), used, lambda one: utc(one.entry.used)),
        EntryColumn(
            Column("directories", 55),
            lambda one: ranges(one.entry.directories) or _UNKNOWN,
            lambda one: " ".join(one.entry.directories) or _UNKNOWN,
        ),
        _plain(Column("arch", 60), lambda one: one.entry.arch or _UNKNOWN),
        _described(Column("dtypes", 45, items=True), _dtypes),
        _described(Column("options", 43, items=True), _options),
        EntryColumn(Column("kind", 40), _odd_kind, lambda one: one.entry.kind),
        _plain(Column("owner", 80), lambda one: one.owner),
        _plain(Column("triton", 20), lambda one: one.entry.triton_version or _UNKNOWN),
        _plain(Column("files", 10, right=True), lambda one: str(len(one.entry.files))),
        EntryColumn(Column("created", 5, right=True), created, lambda one: utc(one.entry.created)),
    )


def _plain(column: Column, cell: Cell) -> EntryColumn:
    return EntryColumn(column, cell, cell)


def _described(column: Column, cell: Cell) -> EntryColumn:
    return EntryColumn(column, cell, cell, is_described=True)


_PIPED = (
    *("key", "kernel", "arch", "triton", "files", "size", "used", "directories"),
    *("kind", "constants", "dtypes", "options", "warps", "stages", "regs", "spills", "smem"),
    *("owner", "created"),
)
"""The order of piped columns: new ones come last, since scripts count them."""


def _number(description: Description | None, name: str) -> str:
    value = None if description is None else getattr(description, name)
    return _UNKNOWN if value is None else str(value)


def _bytes(description: Description | None) -> str:
    """Shared memory; whole KiB have no decimal."""
    if description is None or description.shared_bytes is None:
        return _UNKNOWN
    return size(description.shared_bytes).replace(".0 ", " ")


def _constants(shown: Shown) -> str:
    """Name and value of each constant: first what tells the kernel's entries apart, then what is in upper case.

    Of an autotuner's result those of the winner.
    """
    if shown.description is None:
        return _UNKNOWN

    def rank(item: tuple[str, str]) -> int:
        name = item[0]
        if name in shown.telling:
            return 0
        return 1 if name.isupper() else 2

    return _items(sorted(shown.description.constants.items(), key=rank))


def _dtypes(shown: Shown) -> str:
    """The types of the parameters, each once, in their order."""
    if shown.description is None:
        return _UNKNOWN
    types = dict.fromkeys(shown.description.dtypes.values())
    return " ".join(map(_short, types)) or _UNKNOWN


def _options(shown: Shown) -> str:
    """The options that have no column of their own."""
    if shown.description is None:
        return _UNKNOWN
    options = shown.description.options.items()
    return _items([pair for pair in options if pair[0] not in ("num_warps", "num_stages")])


def _odd_kind(shown: Shown) -> str:
    """The kind of what is no kernel: where all are kernels, people need no column of it."""
    return "" if shown.entry.kind == "kernel" else shown.entry.kind


def _items(pairs: Iterable[tuple[str, str]]) -> str:
    return " ".join(f"{name}={_short(value)}" for name, value in pairs) or _UNKNOWN


def _short(value: str) -> str:
    """A value without blanks, which stand between items; in a text each is an underscore."""
    blank = "_" if value[:1] in ("'", '"') else ""
    bare = value.replace(" ", blank)
    return bare if len(bare) <= _LONGEST_ITEM else "..."


def ranges(names: Iterable[str]) -> str:
    """The names of device directories, with whole numbers in a row as a range: ``0-3 6 1.2 /other/place``.

    >>> ranges(["0", "1", "2", "5", "1.2"])
    '0-2 5 1.2'
    """
    numbers: list[str] = []
    others: list[str] = []
    for name in names:
        is_number = name.isascii() and name.isdigit() and str(int(name)) == name
        (numbers if is_number else others).append(name)
    runs: list[list[int]] = []
    for number in sorted(set(map(int, numbers))):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return " ".join([*texts, *others])
