"""Which columns of a table a terminal has room for, how wide each is, and the lines that come of it.

Widths are columns of a terminal, of which a letter may take two.
"""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ALWAYS = 1000
"""The weight of a column that is never left out."""
_GAP = 2
"""Blanks between two columns."""
_LEAST_PROSE = 20
"""A column of prose is not made narrower."""
_MOST_PROSE = 40
"""Nor narrower than its longest word, up to this width."""
MATTERS = 70
"""From this weight on a column is not left out for the sake of a few long names: these push what follows instead."""
_USUAL = 0.8
"""The share of a column's cells that its width is made for then."""


class Column(NamedTuple):
    """One column of a table, and what becomes of it on a narrow terminal."""

    name: str
    """Its head, and what ``--columns`` calls it."""
    weight: int = ALWAYS
    """What is lightest is left out first."""
    right: bool = False
    """Whether it is aligned on the right, as numbers are."""
    whole: bool = True
    """Whether each cell is to stay on one line; else it is prose, which goes on in the next line after any word."""
    items: bool = False
    """Whether a cell is a list with blanks between: where not all has room, ``+3`` stands for the last three."""
    wanted: int = 0
    """So wide a list should be; made narrower, down to its first item, only before it would be left out."""


class Layout:
    """Which columns are shown, and how wide.

    ``cells`` are all rows, and ``room`` is the width of the terminal; None where all is to be shown.
    """

    def __init__(
        self, columns: Sequence[Column], cells: Sequence[Sequence[str]], room: int | None
    ) -> None:
        self.columns = columns
        self.widths = [
            _widest([column.name, *(row[number] for row in cells)])
            for number, column in enumerate(columns)
        ]
        self.shown = list(range(len(columns)))
        self.left_out: list[str] = []
        self.counts_items = False
        if room is not None and self._needed(self.widths) > room:
            self._shrink(cells, room)
        self.starts = self._starts()

    def _needed(self, widths: Sequence[int]) -> int:
        """How wide the shown columns are together."""
        return sum(widths[number] for number in self.shown) + _GAP * (len(self.shown) - 1)

    def _shrink(self, cells: Sequence[Sequence[str]], room: int) -> None:
        """Leave out what does not fit, and give what room is left to the columns that can use some."""
        natural = self.widths
        texts = [[row[number] for row in cells] for number in range(len(self.columns))]
        least = list(map(_least, self.columns, texts, natural))
        self._leave_out(least, room)
        if not self._has_all_that_matters():
            least = self._squeezed(least, texts, room)
        self._take_back(least, room)
        self.widths = least
        self._spread(natural, room)
        self._overflow(room)
        self.left_out = [
            column.name for number, column in enumerate(self.columns) if number not in self.shown
        ]
        self.counts_items = any(
            self.columns[number].items and self.widths[number] < natural[number]
            for number in self.shown
        )

    def _has_all_that_matters(self) -> bool:
        return not any(
            column.weight >= MATTERS and number not in self.shown
            for number, column in enumerate(self.columns)
        )

    def _squeezed(
        self, least: Sequence[int], texts: Sequence[Sequence[str]], room: int
    ) -> list[int]:
        """Show what matters in the room that the few longest names leave if they push, and lists as short as can be.

        Returns how wide each column has to be then.
        """
        self.shown = [
            number for number, column in enumerate(self.columns) if column.weight >= MATTERS
        ]
        narrow = list(map(_usual, self.columns, texts, least))
        self._leave_out(narrow, room)
        for number, column in enumerate(self.columns):
            if column.items and number not in self.shown:
                narrow[number] = min(narrow[number], _smallest_list(column, texts[number]))
        return narrow

    def _leave_out(self, least: Sequence[int], room: int) -> None:
        by_weight = sorted(self.shown, key=lambda number: (self.columns[number].weight, -number))
        for number in by_weight:
            if self._needed(least) <= room or self.columns[number].weight >= ALWAYS:
                return
            self.shown.remove(number)

    def _take_back(self, least: Sequence[int], room: int) -> None:
        """Show what was left out after all where only a wider, heavier column had no room."""
        gone = [number for number in range(len(self.columns)) if number not in self.shown]
        is_squeezed = not self._has_all_that_matters()
        for number in sorted(gone, key=lambda number: (-self.columns[number].weight, number)):
            if is_squeezed and self.columns[number].weight < MATTERS:
                return  # the room is for long names
            if self._needed(least) + _GAP + least[number] <= room:
                self.shown = sorted([*self.shown, number])

    def _spread(self, natural: Sequence[int], room: int) -> None:
        """Give the room that is left to what is narrower than it would be, the heaviest first."""
        left = room - self._needed(self.widths)
        for number in sorted(self.shown, key=lambda number: (-self.columns[number].weight, number)):
            more = min(left, natural[number] - self.widths[number])
            if more > 0:
                self.widths[number] += more
                left -= more

    def _overflow(self, room: int) -> None:
        """Where too much is left still, make the widest column narrower, whose cells then push what follows."""
        over = self._needed(self.widths) - room
        if over <= 0:
            return
        widest = max(self.shown, key=lambda number: self.widths[number])
        least = len(self.columns[widest].name)
        self.widths[widest] = max(least, self.widths[widest] - over)

    def _starts(self) -> list[int]:
        """Where each shown column begins."""
        starts = []
        at = 0
        for number in self.shown:
            starts.append(at)
            at += self.widths[number] + _GAP
        return starts

    # ---- lines

    def head(self) -> str:
        """The line above all rows."""
        return "\n".join(self._line([column.name for column in self.columns]))

    def lines(self, row: Sequence[str]) -> list[str]:
        """The lines of a row: one, but for prose that goes on, and for what a cell has pushed."""
        wrapped = []
        for number in self.shown:
            wrapped.append(_folded(self.columns[number], row[number], self.widths[number]))
        depth = max(map(len, wrapped))
        lines: list[str] = []
        for level in range(depth):
            cells = [""] * len(row)
            for number, parts in zip(self.shown, wrapped, strict=True):
                cells[number] = parts[level] if level < len(parts) else ""
            lines += self._line(cells)
        return lines

    def _line(self, cells: Sequence[str]) -> list[str]:
        """The cells under their heads; where one is too long, the next one begins a new line."""
        lines = []
        line = ""
        taken = 0
        for number, start in zip(self.shown, self.starts, strict=True):
            cell = cells[number]
            if not cell:
                continue
            if taken > max(0, start - _GAP):
                lines.append(line)
                line = ""
                taken = 0
            blanks = start - taken
            wide = _width(cell)
            if self.columns[number].right:
                blanks += max(0, self.widths[number] - wide)
            line += " " * blanks + cell
            taken += blanks + wide
        lines.append(line)
        return lines


def _least(column: Column, texts: Sequence[str], natural: int) -> int:
    """How wide a column has to be, at least."""
    if not column.whole:
        words = [word for text in texts for word in text.split(" ")]
        longest = min(_MOST_PROSE, _widest(words))
        return min(natural, max(_LEAST_PROSE, longest, len(column.name)))
    if column.items:
        return min(natural, max(column.wanted, _smallest_list(column, texts)))
    return natural


def _usual(column: Column, texts: Sequence[str], least: int) -> int:
    """How wide a column of names that is always there has to be for most of them; another one ``least``."""
    is_of_names = not column.right and not column.items and column.whole
    if column.weight < ALWAYS or not is_of_names:
        return least
    widths = sorted(map(_width, texts))
    return max(len(column.name), widths[math.ceil(_USUAL * len(widths)) - 1])


def _smallest_list(column: Column, texts: Sequence[str]) -> int:
    """The width of the longest first item, and of how many more there are."""
    firsts = [text.split(" ", 1)[0] for text in texts]
    return _widest([column.name, *firsts]) + len(" +99")


def _folded(column: Column, text: str, width: int) -> list[str]:
    """The lines of one cell."""
    if _width(text) <= width:
        return [text]
    if column.items:
        return [_first_items(text.split(" "), width)]
    if column.whole:
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _first_items(items: Sequence[str], width: int) -> str:
    """As many items as have room, at least one, and how many more there are."""
    for count in range(len(items) - 1, 1, -1):
        text = " ".join([*items[:count], f"+{len(items) - count}"])
        if _width(text) <= width:
            return text
    return f"{items[0]} +{len(items) - 1}"


def _widest(texts: Iterable[str]) -> int:
    return max(map(_width, texts))


def _width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
