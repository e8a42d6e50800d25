"""`why_compiled`: why a kernel was compiled though others of its name were there: the nearest, and what differs.

Reads only: no lock, no stamp, no Triton. What was removed since is not there to be compared with.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from gpucache.diagnosis.difference import difference
from gpucache.errors import GpuCacheError
from gpucache.kernels.differences import Difference, nearest
from gpucache.kernels.ingredients import Ingredients, ingredients_in
from gpucache.report.entries import Entry

_MOST_EARLIER = 64
"""With so many of the entries that were compiled just before it an entry is compared."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """One entry, and why it was compiled."""

    entry: Entry
    earlier: Entry | None
    """The nearest of those of the kernel that were compiled before; None where none is there."""
    differences: tuple[Difference, ...]
    """From that to the entry; empty also where nothing differs that their files tell."""


def kernels_named(entries: Iterable[Entry], name: str) -> list[Entry]:
    """The kernels of a name, or whose names match that as a pattern, the newest first."""
    kernels = [entry for entry in entries if entry.kind == "kernel"]
    found = [entry for entry in kernels if entry.kernel == name]
    if not found:
        found = [entry for entry in kernels if fnmatch.fnmatchcase(entry.kernel, name)]
    return sorted(found, key=_newest_first)


def _newest_first(entry: Entry) -> tuple[float, str]:
    return -entry.created, entry.key


def why_compiled(
    asked: Sequence[Entry],
    entries: Iterable[Entry],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Compiled, ...]:
    """Why each of the entries that are asked about was compiled, given all entries of the root; in the same order.

    ``progress`` is told how many are done, and how many there are.
    """
    names = {entry.kernel for entry in asked}
    by_kernel: dict[str, list[Entry]] = {name: [] for name in names}
    for entry in entries:
        if entry.kind == "kernel" and entry.kernel in names:
            by_kernel[entry.kernel].append(entry)
    for of_kernel in by_kernel.values():
        of_kernel.sort(key=_newest_first)
    read = _Reader()
    found = []
    for number, entry in enumerate(asked):
        found.append(_compiled(entry, by_kernel[entry.kernel], read))
        if progress is not None:
            progress(number + 1, len(asked))
    return tuple(found)


class _Reader:
    """Reads the ingredients of each entry once."""

    def __init__(self) -> None:
        self._known: dict[str, Ingredients | None] = {}

    def __call__(self, entry: Entry) -> Ingredients | None:
        path = entry.copies[0].path
        if path not in self._known:
            self._known[path] = ingredients_in(path, entry.kernel)
        return self._known[path]


def _compiled(entry: Entry, of_kernel: Sequence[Entry], read: _Reader) -> Compiled:
    made = read(entry)
    if made is None:
        return Compiled(entry, None, ())
    earlier = []
    others: list[Ingredients] = []
    for other in of_kernel:
        if _newest_first(other) <= _newest_first(entry) or len(others) >= _MOST_EARLIER:
            continue
        ingredients = read(other)
        if ingredients is not None:
            earlier.append(other)
            others.append(ingredients)
    best = nearest(made, others)
    if best is None:
        return Compiled(entry, None, ())
    number, differences = best
    other = earlier[number]
    with suppress(GpuCacheError):  # it was removed meanwhile
        differences = difference(other.copies[0].path, entry.copies[0].path)
    return Compiled(entry, other, differences)
