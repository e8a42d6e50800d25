"""What `gpucache run` does under `GPUCACHE_PACK`: starts the pull of packs, and goes on to become the program.

A pull is begun here and carried on by a process of its own, which is started detached (`disk.spawning`) and inherits
the locked file of the pull (`remote.pulls`). So from before the program's first instruction until the pull is over, who
misses a kernel finds the file: there is no instant in which ranks would compile because the puller is not up yet. One
process of the node pulls a pack, however many ranks call `gpucache run`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from gpucache import configuration
from gpucache.configuration import for_child
from gpucache.disk.spawning import python_command, settle_in, start_detached
from gpucache.environment import RECORD
from gpucache.forks import run_at_exit
from gpucache.once import first_in_job
from gpucache.remote.errors import NobodyTrustedError, NoRemoteError
from gpucache.remote.pulls import Pull
from gpucache.remote.url import RemoteUrl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal

    from gpucache.archive.statement import ArchivedEntry
    from gpucache.remote.pull_files import Kind, Remark
    from gpucache.transfer.pull import PulledPack

    Did = Literal["started", "joined", "done"]


class Prefetch(NamedTuple):
    """What became of one pack."""

    name: str
    did: Did
    """``joined``: another process is at it; ``done``: another rank of this job was."""
    pid: int | None = None
    """The process that was started."""
    before: Remark | None = None
    """What is wrong with the last pull of this pack, which this one replaces."""


def configured_remote(environ: Mapping[str, str]) -> RemoteUrl:
    """The remote from which is pulled ahead, if it can be asked as things are set up; nothing is asked yet.

    Raises:
        NoRemoteError: none is named.
        NobodyTrustedError: nobody is trusted about what it has.
        NotInstalledError: a library of the extra ``remote`` is missing.
        ConfigurationError, RemoteUrlError, BadKey: what is set up makes no sense.
    """
    url = RemoteUrl.configured(environ)
    if url is None:
        raise NoRemoteError
    from gpucache.remote.libraries import require

    require(url)  # first: the next line imports one
    from gpucache.remote.trusting import judge_of

    if judge_of(url, environ) is None:
        raise NobodyTrustedError(url.shown)
    return url


def pull_ahead(
    names: Sequence[str],
    url: RemoteUrl,
    root: str,
    environ: Mapping[str, str],
    is_rank: bool,
) -> list[Prefetch]:
    """Start the pull of each pack, one process for each, unless one of this node is at it. Does not wait.

    ``root`` is vetted and provisioned, ``environ`` that of the program. Of the ranks of a job (``is_rank``) one pulls a
    pack, also where another has ended before the others begin.

    Raises:
        OSError, GpuCacheError: nothing could be started; the pulls that were begun before go on.
    """
    return [_pull_ahead(name, url, root, environ, is_rank) for name in names]


def _pull_ahead(
    name: str, url: RemoteUrl, root: str, environ: Mapping[str, str], is_rank: bool
) -> Prefetch:
    words = (url.shown, name, "ahead")
    pull = Pull.begin(root, words, f"the pull of {name} from {url.shown}")
    if pull is None:
        return Prefetch(name, "joined")
    # While the lock is held: a rank that was first has begun before, so that it is at it, or done.
    if is_rank and not first_in_job(f"pull {name} {url.text} {root}", environ):
        if pull.before is None:
            pull.end()
        else:
            pull.leave(pull.before.kind, pull.before.why)
        return Prefetch(name, "done")
    asked = {"name": name, "root": root, "fd": pull.fileno(), "path": pull.path}
    command = python_command("gpucache.transfer.prefetch", json.dumps(asked))
    kept = {key: value for key, value in for_child(environ).items() if key != RECORD.name}
    try:
        pid = start_detached(command, kept, kept=pull.fileno())
    except BaseException:
        pull.end()
        raise
    pull.hand_over()
    return Prefetch(name, "started", pid, pull.before)


# ---- the process that pulls


def main() -> None:
    """Carry on the pull that the only word says, in JSON. What people should know is left in the file of the pull."""
    asked = json.loads(sys.argv[1])
    pull = Pull(asked["fd"], asked["path"])
    os.set_inheritable(pull.fileno(), False)
    pull.sign()
    known: tuple[Kind, str] | None = ("failed", "it ended too early")
    try:
        try:
            known = _pulled(asked, pull)
        finally:
            run_at_exit()  # what was staged goes
    finally:
        if known is None:
            pull.end()
        else:
            pull.leave(*known)
        os._exit(0)  # whatever threads a remote has that hangs


def _pulled(asked: dict[str, Any], pull: Pull) -> tuple[Kind, str] | None:
    """Pull; what people should know of that, None if nothing."""
    from gpucache.errors import GpuCacheError
    from gpucache.escapes import printable

    try:
        return _to_be_told(_pull(asked, pull))
    except GpuCacheError as error:
        return "failed", printable(str(error))
    except OSError as error:
        return "failed", printable(error.strerror or str(error))
    except Exception as error:  # a defect: what a pull does not bring is compiled
        return "failed", printable(repr(error))


def _pull(asked: dict[str, Any], pull: Pull) -> PulledPack:
    from gpucache.disk.vetting import Trust
    from gpucache.remote.opening import open_remote
    from gpucache.remote.trusting import judge_of
    from gpucache.transfer.pull import pull_pack
    from gpucache.transfer.source import PATIENCE

    settings = configuration.environ(root=asked["root"])
    url = RemoteUrl.configured(settings)
    if url is None:
        raise NoRemoteError
    judge = judge_of(url, settings)
    if judge is None:
        raise NobodyTrustedError(url.shown)
    settle_in()  # not before: a file of keys may be named from where the program is
    root, fits = asked["root"], _Fits(asked["root"])
    return pull_pack(
        open_remote(url, settings, PATIENCE),
        asked["name"],
        root,
        Trust.for_launch(settings),
        judge,
        chosen=fits.chosen,
        pull=pull,
    )


def _to_be_told(done: PulledPack) -> tuple[Kind, str] | None:
    statement, unpacked = done.statement, done.unpacked
    if done.is_older:
        said = f"it is number {statement.number}, and number {done.seen} was seen here before"
        return "older", f"{said}: an older pack than that"
    if unpacked.skipped and not (unpacked.made or unpacked.there):
        found = sorted({entry.arch or entry.kind for entry in statement.entries})
        some = ", ".join(found[:4]) + (", …" if len(found) > 4 else "")
        return "unfit", f"none of its {len(statement.entries)} entries is for this node ({some})"
    return None


class _Fits:
    """Which entries this node can use, by the architectures of the devices on record here."""

    def __init__(self, root: str) -> None:
        self._architectures = _architectures(root)

    def chosen(self, entry: ArchivedEntry) -> bool:
        """Whether an entry is for one of them, or for any, or nobody knows what devices there are."""
        if entry.arch is None or not self._architectures:
            return True
        return entry.arch in self._architectures


def _architectures(root: str) -> frozenset[str]:
    """Of all devices of this host, as its record has them; empty where that is not known of each."""
    from gpucache.directories.record import of_this_host
    from gpucache.errors import RecordError

    try:
        devices = of_this_host(root).present
    except RecordError:
        return frozenset()
    found = set()
    for device in devices:
        if device.compute_capability is None:
            return frozenset()
        major, minor = device.compute_capability
        found.add(f"sm_{major}{minor}")
    return frozenset(found)
