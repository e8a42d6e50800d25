"""Which entries of a root a pack is to have, pinned while the pack is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from gpucache.archive.collect import Collected, NotCollected, collect
from gpucache.archive.errors import BadPack, quoted
from gpucache.archive.inductor import collect_unit
from gpucache.archive.statement import ArchivedEntry, ArchivedFile, Statement
from gpucache.archive.write import write_pack
from gpucache.disk.staging import Staging, staging_below
from gpucache.disk.vetting import Trust, vet_child, vet_file
from gpucache.errors import GpuCacheError, ProvisionError, UnsafeDirectoryError
from gpucache.layout import paths
from gpucache.report.entries import Entry
from gpucache.store.inductor_units import Unit

if TYPE_CHECKING:
    from gpucache.archive.signature import SigningKey

Progress = Callable[[int, int], object]
"""Is told how much is done, and how much there is."""


class LeftOut(NamedTuple):
    """An entry that was chosen, and that the pack does not have."""

    key: str
    kernel: str
    """The kernel's name; of a unit of TorchInductor's the path of its first file, and no key."""
    why: str
    """As `NotCollected.why` has it; or ``unsafe``: somebody could have planted it who is not trusted."""
    fact: str


@dataclass(frozen=True, slots=True)
class Gathered:
    """The entries of a pack that is about to be written, whose files are pinned."""

    collected: tuple[Collected, ...]
    """In the order of the pack: by kernel, target and key, so that what is alike is compressed together."""
    left_out: tuple[LeftOut, ...]
    newest: int
    """When the newest file of the entries was written, in whole seconds since the epoch; 0 where there is none.

    The number of a pack, unless one is named: with each entry that is published it rises, and for equal input it is
    equal.
    """

    @property
    def size_bytes(self) -> int:
        """The bytes of all files."""
        return sum(one.entry.size_bytes for one in self.collected)

    def statement(self, name: str, number: int | None = None) -> Statement:
        """What a pack of these entries says of itself."""
        entries = tuple(one.entry for one in self.collected)
        return Statement(name, self.newest if number is None else number, entries)

    def write(
        self,
        out: BinaryIO,
        statement: Statement,
        signing: SigningKey | None,
        on_progress: Progress | None = None,
    ) -> None:
        """Write the pack; ``on_progress`` is told bytes.

        Raises:
            BadPack: a file is not what it was when it was collected.
            OSError: ``out`` cannot be written, or a file not be read.
            NotInstalledError: the extra ``remote`` is missing.
        """
        found = {one.entry.store_key: one for one in self.collected}
        total = self.size_bytes
        done = 0

        def opened(entry: ArchivedEntry, file: ArchivedFile) -> BinaryIO:
            nonlocal done
            if on_progress is not None:
                on_progress(done, total)
            done += file.size_bytes
            try:
                return found[entry.store_key].opened(file)
            except FileNotFoundError:
                fact = f"{quoted(file.name)} was removed while the pack was written"
                raise BadPack("file-changed", fact) from None

        write_pack(out, statement, signing, opened)


@contextmanager
def gathered(
    root: str,
    entries: Sequence[Entry],
    trust: Trust,
    *,
    units: Sequence[Unit] = (),
    slim: bool = False,
    on_progress: Progress | None = None,
) -> Iterator[Gathered]:
    """Collect the entries of a vetted root for the length of a ``with`` block; their files are pinned meanwhile.

    ``units`` are TorchInductor's in this root (`gpucache.archive.inductor.units_in`), which come after the entries.
    ``slim`` leaves out what no launch needs. ``on_progress`` is told entries and units. Beside any writers and
    removers: what is removed while this looks is left out, and what is removed afterwards is packed all the same.

    Raises:
        OSError: the disk does not answer.
    """
    pins = _pins(root)
    collected: list[Collected] = []
    left_out: list[LeftOut] = []
    newest = 0
    wanted: list[Entry | Unit] = [*entries, *units]
    try:
        for number, one in enumerate(wanted):
            if on_progress is not None:
                on_progress(number, len(wanted))
            if isinstance(one, Unit):
                found = _collected_unit(os.path.realpath(root), one, pins, trust)
                created = one.modified
            else:
                found = _collected(one, pins, trust, slim)
                created = one.created
            if isinstance(found, LeftOut):
                left_out.append(found)
            else:
                collected.append(found)
                newest = max(newest, int(created))
        collected.sort(key=_order)
        yield Gathered(tuple(collected), tuple(left_out), newest)
    finally:
        for pinned in collected:
            pinned.unpin()


def _order(one: Collected) -> tuple[bool, str, str, str]:
    facts = one.entry.facts
    is_unit = one.entry.kind == "inductor"
    return is_unit, facts.kernel, facts.target or "", one.entry.store_key


def _pins(root: str) -> Staging | None:
    """Where files are pinned: below the root's ``tmp``, in a root of gpucache's; nothing is made in another."""
    return staging_below(paths.ours(root, "tmp")) if os.path.isdir(paths.ours(root)) else None


def _collected(entry: Entry, pins: Staging | None, trust: Trust, slim: bool) -> Collected | LeftOut:
    """Collect an entry from the first of its directories that has the entry whole."""
    left_out: LeftOut | None = None
    for copy in entry.copies:
        try:
            vet_child(os.path.dirname(copy.path), trust)
            vet_child(copy.path, trust)
            return _vetted(collect(copy.path, pins, slim=slim), trust)
        except (NotCollected, UnsafeDirectoryError, ProvisionError) as error:
            left_out = left_out or _left_out(entry.key, entry.kernel, error)
    assert left_out is not None  # an entry has at least one directory
    return left_out


def _collected_unit(
    root: str, unit: Unit, pins: Staging | None, trust: Trust
) -> Collected | LeftOut:
    """Collect a unit of TorchInductor's, with the directories that lead to it."""
    name = unit.path[len(root) + 1 :]
    try:
        for file in unit.files:
            step = root
            for part in file.path[len(root) + 1 :].split("/")[:-1]:
                step = f"{step}/{part}"
                vet_child(step, trust)
        return _vetted(collect_unit(root, unit, pins), trust)
    except (NotCollected, UnsafeDirectoryError, ProvisionError) as error:
        return _left_out("", name, error)


def _vetted(found: Collected, trust: Trust) -> Collected:
    """What was pinned, if nobody else could have written that, who cannot replace it any more.

    Raises:
        UnsafeDirectoryError: somebody could have.
    """
    try:
        for path in found.paths.values():
            vet_file(path, trust)
    except UnsafeDirectoryError:
        found.unpin()
        raise
    return found


def _left_out(key: str, kernel: str, error: GpuCacheError) -> LeftOut:
    why = error.why if isinstance(error, NotCollected) else "unsafe"
    return LeftOut(key, kernel, why, error.problem)
