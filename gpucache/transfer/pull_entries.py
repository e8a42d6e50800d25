"""Take the single entries of a remote into a root, as many at once as hide the time that a request takes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from gpucache.archive.errors import BadPack
from gpucache.archive.read import PackReader
from gpucache.archive.unpack import Skipped, Unpacked, everything, unpack
from gpucache.errors import UnsafeDirectoryError
from gpucache.layout import paths
from gpucache.remote.errors import NotThere, RemoteError
from gpucache.remote.object_names import EntryName, entries_prefix, entry_name, entry_object
from gpucache.remote.single_entry import ENTRY_BYTES, LIMITS, single_entry
from gpucache.store.lookup import whole
from gpucache.store.manifest import entry_path
from gpucache.store.pulled import use_of_pull
from gpucache.store.recency import boot_time
from gpucache.store.stats import REMOTE as NO_DEVICE
from gpucache.store.stats import Stats
from gpucache.transfer.bring import fitting_here, make_ready, note_made
from gpucache.transfer.source import Source

if TYPE_CHECKING:
    from gpucache.archive.read import Judge
    from gpucache.archive.statement import ArchivedEntry
    from gpucache.archive.unpack import Progress
    from gpucache.disk.vetting import Trust
    from gpucache.remote.pulls import Pull
    from gpucache.remote.remote import Remote

_AT_ONCE = 8
"""At 30 ms a request, 100 entries come in a seventh of the time that they take one after the other."""
MOST_LISTED = 100_000
"""So many names of a remote's list are looked at; what a server lists may be endless."""


class Refused(NamedTuple):
    """An entry that lies on the remote, and is not what it should be."""

    name: EntryName
    error: BadPack | UnsafeDirectoryError


class PulledEntries(NamedTuple):
    """What a pull of single entries has brought, or with ``dry_run`` what it would."""

    there: tuple[EntryName, ...]
    """Those of the remote's entries that the store had whole."""
    missing: tuple[EntryName, ...]
    """Those that it lacked."""
    made: tuple[ArchivedEntry, ...]
    skipped: tuple[Skipped, ...]
    refused: tuple[Refused, ...]
    received_bytes: int
    lists_more: bool
    """Whether the remote lists more than `MOST_LISTED`, of which as many were looked at."""


def pull_entries(
    remote: Remote,
    root: str,
    trust: Trust,
    judge: Judge,
    *,
    triton_version: str | None = None,
    chosen: Callable[[ArchivedEntry], bool] = everything,
    pull: Pull | None = None,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> PulledEntries:
    """Take all single entries of a remote, or those of one Triton, that are chosen and that the store lacks.

    ``pull`` is as for `pull_pack`; progress is told entries. An entry that cannot be believed is left out and told;
    one that is removed meanwhile is none.

    Raises:
        RemoteError: the remote failed, or cannot list; what was taken before stays.
        GpuCacheError: the root is not safe, or has too little room.
        OSError: the disk refused.
        ValueError: that is no version of Triton.
    """
    began = time.monotonic()
    if pull is not None:
        pull.ask()
    names, lists_more = _listed(remote, triton_version)
    boot = boot_time()
    missing: list[EntryName] = []
    there: list[EntryName] = []
    for name in names:
        found = whole(entry_path(root, name.store_key), boot)
        (missing if found is None else there).append(name)
    done = PulledEntries(tuple(there), tuple(missing), (), (), (), 0, lists_more)
    if dry_run or not missing:
        return done
    if pull is not None:
        with suppress(OSError):  # a full disk: nobody waits, and the first file will tell
            pull.bring([name.store_key for name in missing])
    make_ready(root, trust)
    work = _Work(remote, root, judge, chosen, pull)
    try:
        work.take(missing, on_progress)
    finally:
        _count(root, work, time.monotonic() - began)
        note_made(root, "", 0, work.made, work.used)
    return done._replace(
        made=tuple(work.made),
        skipped=tuple(work.skipped),
        refused=tuple(work.refused),
        received_bytes=work.received_bytes,
    )


def _listed(remote: Remote, triton_version: str | None) -> tuple[list[EntryName], bool]:
    """The single entries of a remote, sorted; and whether it lists more than was looked at."""
    listed = remote.list(entries_prefix(triton_version))
    names = (entry_name(one.name) for one in itertools.islice(listed, MOST_LISTED))
    found = sorted({name for name in names if name is not None})
    return found, next(listed, None) is not None


class _Work:
    """What has come so far. Threads get and take entries; one lock is around the sums."""

    def __init__(
        self,
        remote: Remote,
        root: str,
        judge: Judge,
        chosen: Callable[[ArchivedEntry], bool],
        pull: Pull | None,
    ) -> None:
        self.made: list[ArchivedEntry] = []
        self.skipped: list[Skipped] = []
        self.refused: list[Refused] = []
        self.received_bytes = 0
        self._remote = remote
        self._root = root
        self.used = use_of_pull(time.time())
        self._fitting = fitting_here(root)
        self._judge = judge
        self._chosen = chosen
        self._pull = pull

    def take(self, names: Sequence[EntryName], on_progress: Progress | None) -> None:
        """Get and take all entries of these names; the first failure of the remote or the disk ends it."""
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            try:
                for number, one in enumerate(_in_order(threads, self._taken, names), 1):
                    self._add(one)
                    if on_progress is not None:
                        on_progress(number, len(names))
            except BaseException:
                threads.shutdown(wait=True, cancel_futures=True)
                raise

    def _add(self, one: _Taken) -> None:
        self.received_bytes += one.received_bytes
        if one.refused is not None:
            self.refused.append(one.refused)
        if one.unpacked is not None:
            self.made += one.unpacked.made
            self.skipped += one.unpacked.skipped
        if self._pull is not None:
            self._pull.beat()

    def _taken(self, name: EntryName) -> _Taken:
        object_name = entry_object(*name)
        source = None
        try:
            with self._remote.get(object_name, ENTRY_BYTES) as file:
                source = Source(file, self._remote, object_name)
                unpacked = self._unpacked(source, name, f"{self._remote.shown} {object_name}")
                return _Taken(unpacked, None, source.received_bytes)
        except NotThere:
            return _Taken(None, None, 0)
        except RemoteError as error:
            if error.kind != "too-large":
                raise
            bad = BadPack("too-large", error.problem)
            return _Taken(None, Refused(name, bad), 0)
        except (BadPack, UnsafeDirectoryError) as error:
            received_bytes = 0 if source is None else source.received_bytes
            return _Taken(None, Refused(name, error), received_bytes)

    def _unpacked(self, source: Source, name: EntryName, called: str) -> Unpacked:
        with PackReader(source, self._judge, source_name=called, limits=LIMITS) as reader:
            single_entry(reader, *name)
            return unpack(
                reader, self._root, chosen=self._chosen, fitting=self._fitting, used=self.used
            )


class _Taken(NamedTuple):
    """What became of one object."""

    unpacked: Unpacked | None
    refused: Refused | None
    received_bytes: int


def _in_order(
    threads: ThreadPoolExecutor,
    take: Callable[[EntryName], _Taken],
    names: Sequence[EntryName],
) -> Iterator[_Taken]:
    """Take the names in threads, twice as many begun as are at work, so that few results wait."""
    left = iter(names)
    begun = [threads.submit(take, name) for name in itertools.islice(left, 2 * _AT_ONCE)]
    while begun:
        done = begun.pop(0).result()
        begun += [threads.submit(take, name) for name in itertools.islice(left, 1)]
        yield done


def _count(root: str, work: _Work, seconds: float) -> None:
    stats = Stats(paths.ours(root, "stats"), NO_DEVICE)
    stats.add("pulled", len(work.made))
    stats.add("pulled_bytes", work.received_bytes)
    stats.add("pull_s", seconds, now=True)
