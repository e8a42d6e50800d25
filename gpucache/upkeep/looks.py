"""`look`: judges all directories of one key in one go, which is the work that `verify` divides between processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gpucache.report.flaws import Flaw
from gpucache.report.judge import Judge
from gpucache.report.judged import Judged


class Unit(NamedTuple):
    """All directories of one of Triton's keys."""

    key: str
    stored: tuple[str, ...]
    """The store's directories: one, or one for each file that stands for itself."""
    others: tuple[str, ...]
    """The key's directory in each device directory that has one."""

    @property
    def directories(self) -> int:
        """How many directories the key has."""
        return len(self.stored) + len(self.others)


class Seen(NamedTuple):
    """What `look` has seen in all directories of one key."""

    files: int
    """In all of them: a hard link counts each time."""
    flaws: tuple[Flaw, ...]


def look(judge: Judge, unit: Unit, twice: bool) -> Seen:
    """Judge the directories of a key; ``twice``: tell only of flaws that a second look sees as well.

    The first look may come in the middle of a publication or a removal.
    """
    judged = judge.key(unit.stored, unit.others)
    files = 0
    for one in judged:
        files += len(one.files)
    flaws = flaws_of(judged)
    if flaws and twice:
        seen = set(flaws)
        second = look_again(judge, unit)
        flaws = [flaw for flaw in second if flaw in seen]
    judge.forget()
    return Seen(files, tuple(flaws))


def look_again(judge: Judge, unit: Unit) -> list[Flaw]:
    """Judge the directories of a key once more, and return the flaws that they have now."""
    judged = judge.key(unit.stored, unit.others)
    return flaws_of(judged)


def flaws_of(judged: Iterable[Judged]) -> list[Flaw]:
    """Collect the flaws of some directories, in their order."""
    return [flaw for one in judged for flaw in one.flaws]
