"""`unpack`: takes the entries of a pack into a store, in one pass over the stream, each once the next one begins.

Each file is written once, into a private directory below the root's ``tmp``, and that directory itself becomes the
entry by one rename. So a reader of the store sees an entry whole or not at all, whenever this process dies, and a
second run takes what the first did not. What is there already is not written again, and first of all not replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from typing import NamedTuple

from gpucache.archive import inductor, room
from gpucache.archive.errors import BadPack, quoted
from gpucache.archive.fits import Here, here
from gpucache.archive.inductor import Unfit
from gpucache.archive.read import PackReader
from gpucache.archive.staged_entry import StagedEntry
from gpucache.archive.staged_unit import StagedUnit
from gpucache.archive.statement import ArchivedEntry, ArchivedFile
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.locks import holder, is_free
from gpucache.disk.members import base_of_others
from gpucache.disk.staging import staging_below
from gpucache.disk.within import Straight
from gpucache.layout import paths
from gpucache.store import size
from gpucache.store.inductor_placing import are_there
from gpucache.store.key_lock import holding
from gpucache.store.lookup import whole
from gpucache.store.manifest import entry_path
from gpucache.store.names import can_be_named
from gpucache.store.recency import boot_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Why = Literal["not chosen", "unsigned", "name", "busy"] | Unfit

Progress = Callable[[int, int], object]
"""Is told how many bytes of the wanted files are done, and how many there are."""


_COUNTED = 50
"""So many entries at most a killed run has not added to the store's size, which is counted anew once a day."""


class Skipped(NamedTuple):
    """An entry of a pack that was not taken."""

    entry: ArchivedEntry
    why: Why
    """``not chosen``: by the caller; ``machine``, ``abi``, ``libc``, ``device``, ``cpu``, ``torch``: it does not fit
    here; ``unsigned``: TorchInductor's, in a pack that nobody vouches for; ``name``: this process's locale lacks a
    letter of a file's name; ``busy``: another process has its lock, and of a kernel something damaged is in its place;
    or of TorchInductor's a link is in the way."""
    fact: str = ""


class Unpacked(NamedTuple):
    """What became of the entries of a pack; with ``dry_run`` what would."""

    made: tuple[ArchivedEntry, ...]
    there: tuple[ArchivedEntry, ...]
    """The store had these whole."""
    skipped: tuple[Skipped, ...]
    made_bytes: int
    """Of the files of the entries that were made."""


def everything(entry: ArchivedEntry) -> bool:
    """Choose each entry."""
    return True


def unpack(
    reader: PackReader,
    root: str,
    *,
    chosen: Callable[[ArchivedEntry], bool] = everything,
    locked_key: str | None = None,
    dry_run: bool = False,
    fitting: Here | None = None,
    used: float | None = None,
    is_own: bool = False,
    on_made: Callable[[ArchivedEntry], object] | None = None,
    on_progress: Progress | None = None,
) -> Unpacked:
    """Take the chosen entries of a pack, as far as they fit here, into the store of a root that was prepared.

    ``locked_key`` is the key in the store whose lock the caller holds. Any other key's lock that is held is left to
    its holder, and the entry taken at the end. ``fitting`` is what can be used here, by default by this Python and
    without a device. ``used`` is when what is made counts as last used, in seconds since the epoch, if that is not now.
    ``is_own`` says that a pack is this very user's file: of one that nobody vouches for, and that is not, nothing of
    TorchInductor's is taken, which torch would unpickle. ``on_made`` is told at the end each entry that was made, also
    where the end is an error. Nothing is written with ``dry_run``, and the files are not read.

    Beside any readers, writers and removers. What was made before an error stays, and is whole. Atomic for readers, not
    durable across power loss: digests are checked at the first use after a boot.

    Raises:
        BadPack: a file is not what the statement says, or the stream ends early, or goes on; the error has the number
            of entries that were made before.
        ProvisionError: there is less room than the wanted entries take, before anything was written.
        OSError: the disk refused.
    """
    takes_inductor = reader.signer is not None or is_own
    plan = _Plan(root, reader.statement.entries, chosen, fitting or here(), takes_inductor)
    if dry_run:
        made_bytes = sum(entry.size_bytes for entry in plan.wanted)
        return Unpacked(tuple(plan.wanted), tuple(plan.there), tuple(plan.skipped), made_bytes)
    if plan.wanted:
        room.check(root, plan.wanted)
    work = _Work(root, reader.source_name, plan, locked_key, used)
    try:
        for entry, file, pieces in reader.files():
            # Of what is not wanted the reader checks the digest all the same.
            if plan.wants(entry):
                work.take(entry, file, pieces)
            if on_progress is not None:
                on_progress(work.done_bytes, plan.wanted_bytes)
        work.publish_whole()  # the pack has ended as its statement says
        work.take_deferred()
    except BadPack as error:
        error.tell_taken(len(work.made))
        raise
    finally:
        work.count()
        work.clear()
        if on_made is not None:
            for entry in work.made:
                on_made(entry)
    return Unpacked(tuple(work.made), tuple(plan.there), tuple(plan.skipped), work.made_bytes)


class _Plan:
    """Which entries of a statement are wanted."""

    def __init__(
        self,
        root: str,
        entries: tuple[ArchivedEntry, ...],
        chosen: Callable[[ArchivedEntry], bool],
        fitting: Here,
        takes_inductor: bool,
    ) -> None:
        self.wanted: list[ArchivedEntry] = []
        self.there: list[ArchivedEntry] = []
        self.skipped: list[Skipped] = []
        self.boot = boot_time()
        for entry in entries:
            why = _why_not(entry, chosen, fitting, takes_inductor)
            if why is not None:
                self.skipped.append(Skipped(entry, why))
            elif _is_there(root, entry, self.boot):
                self.there.append(entry)
            else:
                self.wanted.append(entry)
        self.wanted_bytes = sum(entry.size_bytes for entry in self.wanted)
        self._wanted = {entry.store_key for entry in self.wanted}

    def wants(self, entry: ArchivedEntry) -> bool:
        return entry.store_key in self._wanted


def _why_not(
    entry: ArchivedEntry,
    chosen: Callable[[ArchivedEntry], bool],
    fitting: Here,
    takes_inductor: bool,
) -> Why | None:
    if not chosen(entry):
        return "not chosen"
    if entry.kind == "inductor":
        return inductor.unfit(entry, fitting) if takes_inductor else "unsigned"
    if not all(can_be_named(file.name) for file in entry.files):
        return "name"
    return fitting.unfit(entry.fits, entry.facts.tag)


def _is_there(root: str, entry: ArchivedEntry, boot: float) -> bool:
    """Whether a root has an entry whole, or names for all files of a unit of TorchInductor's."""
    if entry.kind == "inductor":
        with Straight() as disk:
            names = tuple(file.name for file in entry.files)
            return are_there(base_of_others(os.path.realpath(root)), names, disk)
    # With digests where nobody has used it since the boot, and else by size and time, as a hit looks. To be pulled
    # again is no use.
    return whole(entry_path(root, entry.store_key), boot) is not None


_Staged = StagedEntry | StagedUnit


def _staged(entry: ArchivedEntry, directory: str) -> _Staged:
    is_unit = entry.kind == "inductor"
    return StagedUnit(entry, directory) if is_unit else StagedEntry(entry, directory)


class _Work:
    """Stages the wanted entries, and publishes each once it is whole."""

    def __init__(
        self, root: str, source: str, plan: _Plan, locked_key: str | None, used: float | None
    ) -> None:
        self.made: list[ArchivedEntry] = []
        self.made_bytes = 0
        self.done_bytes = 0
        self._root = root
        self._source = source
        self._plan = plan
        self._locked_key = locked_key
        self._used = used
        self._staging = staging_below(paths.ours(root, "tmp"))
        self._current: _Staged | None = None
        self._whole: _Staged | None = None
        self._deferred: list[_Staged] = []
        self._uncounted = 0
        self._uncounted_bytes = 0

    def take(self, entry: ArchivedEntry, file: ArchivedFile, pieces: Iterator[bytes]) -> None:
        """Write a file; if it is the first of an entry, publish the entry before."""
        if self._current is None:
            self.publish_whole()
            self._current = _staged(entry, self._staging.directory())
        self._current.write(file, pieces)
        self.done_bytes += file.size_bytes
        if not self._current.is_whole:
            return
        staged, self._current = self._current, None
        fact = staged.contradiction()
        if fact is not None:
            staged.remove()
            raise BadPack("contradiction", f"{quoted(entry.store_key)}: {fact}", self._source)
        staged.complete(self._used)
        self._whole = staged

    def publish_whole(self) -> None:
        """Publish the entry that was written whole last, or leave it to the holder of its lock.

        Not before the pack has gone on, or ended, as its statement says: so of an object with one entry nothing is
        published if anything at all is wrong with it.
        """
        staged, self._whole = self._whole, None
        if staged is not None:
            self._publish_or_defer(staged)

    def take_deferred(self) -> None:
        """Publish what was left to the holders of its locks; a lock that is held still costs nothing but a repair."""
        for staged in self._deferred:
            if isinstance(staged, StagedUnit):
                # Torch's lock, which `publish` takes, is the only one.
                if not self._published(staged, repair=True):
                    self._plan.skipped.append(Skipped(staged.entry, "busy", staged.obstacle))
                continue
            key = staged.entry.store_key
            with holding(self._lock_of(key), "its unpacking") as held:
                if not self._published(staged, repair=held):
                    fact = "" if held else f"the lock is held by {holder(self._lock_of(key))}"
                    self._plan.skipped.append(Skipped(staged.entry, "busy", fact))

    def clear(self) -> None:
        """Remove what is staged and was not published."""
        for staged in (self._current, self._whole, *self._deferred):
            if staged is not None:
                staged.remove()

    def _publish_or_defer(self, staged: _Staged) -> None:
        key = staged.entry.store_key
        if isinstance(staged, StagedUnit):
            if not self._published(staged, repair=False):
                self._deferred.append(staged)
            return
        if key == self._locked_key:
            if not self._published(staged, repair=True):
                self._plan.skipped.append(Skipped(staged.entry, "busy"))
            return
        path = self._lock_of(key)
        if os.path.lexists(path) and not is_free(path):
            self._deferred.append(staged)
            return
        # As a rule nothing is in the place, and no lock is needed for what one rename makes.
        if self._published(staged, repair=False):
            return
        self._deferred.append(staged)

    def _published(self, staged: _Staged, repair: bool) -> bool:
        """Publish a staged entry; return whether the store has it now. One that it has not is still staged."""
        try:
            is_there = self._put(staged, repair)
        except BaseException:
            staged.remove()
            raise
        if not is_there:
            if repair:
                staged.remove()
            return False
        if staged.was_faster:
            self._plan.there.append(staged.entry)
        else:
            self.made.append(staged.entry)
            self.made_bytes += staged.entry.size_bytes
            self._uncounted += 1
            self._uncounted_bytes += staged.published_bytes
            if self._uncounted >= _COUNTED:
                self.count()
        staged.remove()
        return True

    def _put(self, staged: _Staged, repair: bool) -> bool:
        if staged.publish(self._root, False):
            return True
        # What is there may be whole with other files, slim or not, and is then no damage to repair.
        if _is_there(self._root, staged.entry, self._plan.boot):
            staged.was_faster = True
            return True
        return repair and staged.publish(self._root, True)

    def count(self) -> None:
        """Add to the store's size what was made since; while another process writes that, with the next call."""
        self._uncounted = 0
        if not self._uncounted_bytes:
            return
        with suppress(OSError):
            if size.updated(self._root, self._uncounted_bytes) is not None:
                self._uncounted_bytes = 0

    @cached_property
    def _locks(self) -> str:
        """Where the locks are, asked for once something is to be published."""
        return LockPlace(self._root).directory()

    def _lock_of(self, store_key: str) -> str:
        return f"{self._locks}/{store_key}.lock"
