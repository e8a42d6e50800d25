"""How findings are shown: on a terminal in groups, one of each code, and piped a line for each of them."""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import click

from gpucache.cli.common import counted
from gpucache.cli.styled import styled_output
from gpucache.cli.terminal import has_person, is_terminal, print_lines, say
from gpucache.escapes import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gpucache.findings import Finding, Level

EXAMPLES = 3
"""How many findings of one code are shown where there are more, unless all are asked for."""
_STYLES: Mapping[Level, str] = {"error": "bold red", "warning": "yellow"}
_ORDER: Sequence[Level] = ("error", "warning")
_WORD = re.compile(r"\S*`[^`]*`\S*|\S+")
"""What no line ends in: a word, or a command in backticks, which is there to be copied."""

all_option = click.option(
    "--all", "all_", is_flag=True, help="Show each finding; else three of a code on a terminal."
)


class Told(NamedTuple):
    """A finding, and what to do about it, or what was done."""

    finding: Finding
    last: str


class Group(NamedTuple):
    """All findings of one code and level, in their order."""

    level: Level
    code: str
    told: Sequence[Told]


def print_findings(
    findings: Sequence[Finding],
    notes: Sequence[str] = (),
    *,
    codes: Mapping[str, str],
    each: bool = False,
) -> None:
    """Print findings: on a terminal a paragraph for each code, errors first, with its number and three examples.

    Piped, it is a tab-separated line for each finding. ``notes`` has a text for each; where that is not empty, it
    stands in the place of the finding's fix. ``codes`` tells what each code means. With ``each``, no example is left
    out. Colours are shown where the terminal has some, and `NO_COLOR` is not set.

    Raises:
        OutputError: stdout cannot be written.
    """
    notes = notes or [""] * len(findings)
    told = []
    for finding, note in zip(findings, notes, strict=True):
        told.append(Told(finding, note or finding.fix))
    if not is_terminal():
        print_lines([_fields(one) for one in told])
        return
    for group in grouped(told):
        _print_group(group, codes.get(group.code, ""), each)


def grouped(told: Iterable[Told]) -> list[Group]:
    """The findings by level and code: errors first, and then in the order in which each code came first."""
    groups: dict[tuple[Level, str], list[Told]] = {}
    for one in told:
        key = (one.finding.level, one.finding.code)
        groups.setdefault(key, []).append(one)
    found = [Group(level, code, several) for (level, code), several in groups.items()]
    return sorted(found, key=_rank)


def _rank(group: Group) -> int:
    return _ORDER.index(group.level)


def _fields(one: Told) -> tuple[str, ...]:
    finding = one.finding
    return (finding.level, finding.code, finding.subject, finding.fact, one.last)


def _print_group(group: Group, meaning: str, each: bool) -> None:
    """Print a single finding as a sentence, and several as a head, the examples, and what to do."""
    shown = group.told if each else group.told[:EXAMPLES]
    if len(group.told) == 1:
        one = group.told[0]
        _print(group.level, f"{one.finding.subject}: {one.finding.fact} [{group.code}]")
        _print_below([one.last])
        return
    facts = {one.finding.fact for one in group.told}
    is_same = len(facts) == 1
    what = next(iter(facts)) if is_same else meaning
    _print(group.level, f"{len(group.told)} times [{group.code}]: {what}")
    examples = []
    for one in shown:
        fact = "" if is_same else f": {one.finding.fact}"
        examples.append(f"{one.finding.subject}{fact}")
    more = len(group.told) - len(shown)
    if more:
        examples.append(f"and {more} more (--all shows each)")
    _print_below(examples)
    _print_below(_ways_out(group, each))


def _ways_out(group: Group, each: bool) -> list[str]:
    """What to do about the findings of a group, what concerns most of them first."""
    numbers = Counter(one.last for one in group.told)
    if len(numbers) == 1:
        return [f"-> {next(iter(numbers))}"]
    listed = numbers.most_common(None if each else EXAMPLES)
    lines = [f"-> {counted(count, 'time', 'times')}: {last}" for last, count in listed]
    more = len(numbers) - len(listed)
    if more:
        lines.append(f"-> and {more} other ways out (--all shows each)")
    return lines


# ---- on a terminal


def _print_below(texts: Iterable[str]) -> None:
    for text in texts:
        _print(None, text)


def _print(level: Level | None, text: str) -> None:
    """Print a text, behind its level if it has one, or else set in; further lines are set in."""
    from rich.text import Text

    head = "  " if level is None else f"{level}: "
    width = shutil.get_terminal_size().columns
    lines = filled(printable(text), width, head)
    line = Text("\n".join(lines))
    if level is not None:
        line.stylize(_STYLES[level], 0, len(level))
    with styled_output() as console:
        console.print(line, soft_wrap=True)


def say_filled(text: str) -> None:
    """Say a sentence for a person, in lines that end between words where stderr is a terminal."""
    if not has_person(sys.stderr):
        say(text)
        return
    for line in filled(text, shutil.get_terminal_size().columns, ""):
        say(line)


def filled(text: str, width: int, head: str) -> list[str]:
    """The text in lines of at most this width, ``head`` before the first, four blanks before the others.

    A word, such as a path, is never broken, nor a command in backticks: what is longer than a line is for the terminal
    to break, which then copies it whole.
    """
    lines = []
    line = head
    is_empty = True
    for word in _WORD.findall(text):
        gap = "" if is_empty else " "
        if not is_empty and len(line) + len(gap) + len(word) > width:
            lines.append(line)
            line, gap = "    ", ""
        line += gap + word
        is_empty = False
    return [*lines, line]
