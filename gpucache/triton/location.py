"""Where the plug-in's process caches: its device directory, the store it shares, and what forbids sharing."""

from __future__ import annotations

import errno
import os

from gpucache import environment
from gpucache.configuration import for_all
from gpucache.directories.record import of_this_host
from gpucache.disk.files import inside, sweep_old
from gpucache.disk.fresh import fresh_part
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.record_use import stamp_use
from gpucache.disk.refusal import may
from gpucache.disk.staging import Staging, staging_below
from gpucache.disk.vetting import Trust, vet
from gpucache.errors import (
    ConfigurationError,
    GpuCacheError,
    ProvisionError,
    RecordError,
    UnsafeDirectoryError,
)
from gpucache.layout import paths
from gpucache.layout.keys import ASIDE
from gpucache.log import ALONE, INFO, tell_in_job, warn_once
from gpucache.store.counts import device_label
from gpucache.store.limit import Limit, max_size_bytes, own_max_size_bytes
from gpucache.store.lookup import sound
from gpucache.store.preparing import prepare
from gpucache.store.recency import STAMP_S, boot_time, stamp_interval
from gpucache.store.stats import Stats
from gpucache.triton.own_device import (
    default_directory,
    nobody_elses,
    silicon,
    tell_of_contradiction,
)
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from gpucache.directories.record import Record
    from gpucache.store.manifest import Manifest
    from gpucache.triton.recorder import Recorder

    Mode = Literal["shared", "stock", "private"]
    """``stock``: a deliberately fresh cache, which Triton's own manager has; ``private``: there is no safe store."""


NO_VIEWS = os.devnull
"""A path below which there is nothing and can be nothing."""
_NEVER = float("inf")
"""As the time of the machine's start: no use was stamped since."""


class Location(Value, kw_only=True):
    """What one value of `TRITON_CACHE_DIR` means in this process."""

    directory: str
    """The device directory: Triton reads and writes ``<directory>/<KEY>/``."""
    views: str
    """Where the views are: in the device directory; `NO_VIEWS` where that cannot be used, though the store can."""
    root: str
    locks: LockPlace
    """Where the locks of keys are."""
    staging: Staging
    stats: Stats
    limit: Limit
    mode: Mode
    silicon: str | None = None
    """Compute capability, core count and name, which decide an autotuner's timings; None where unknown or mixed."""
    nobody_elses: str = ""
    """What stands for the silicon where that is not known."""
    verify: bool = False
    """Whether every hit checks the digests."""
    require_hit: bool = False
    """Whether a miss is an error."""
    stall_s: float = environment.STALL_TIMEOUT.default
    """How long a compile that others wait for may go without a sign of life, in seconds."""
    timeout_s: float = environment.LOCK_TIMEOUT.default
    """How long to wait for a compile of another process, in seconds."""
    boot: float = 0.0
    """When this machine started, in seconds since the epoch."""
    recorder: Recorder | None = None
    """Writes the recipes of what is asked for; None where nobody wants them."""
    has_remote: bool = False
    """Whether a remote is set, which may have what is missed here."""
    fallback: str | None = None
    """The absolute path of a root that is only read, and asked for what is missed here; None where none is set."""
    trust: Trust = Trust()
    """Whom this user trusts with what lies in the fallback."""
    stamp_s: float = STAMP_S
    """How often at most the use of an entry is stamped. What prunes must leave alone what was used in twice that."""

    def sound(self, directory: str, verify: bool = False) -> Manifest | None:
        """The manifest of an entry or view that this process may use, as `gpucache.store.lookup.sound`.

        ``verify`` checks the digests, unless this process has done so since the last change.
        """
        boot = _NEVER if verify else self.boot
        return sound(directory, self.verify, boot, self.stamp_s)

    def view(self, key: str) -> str:
        """The path of the view of a key, whether it is there or not."""
        return f"{self.views}/{key}"

    def sound_view(self, directory: str) -> Manifest | None:
        """As `sound`, for a view: where the disk refuses to look, the store is still there."""
        try:
            return self.sound(directory)
        except OSError as error:
            self.without_view(error)
            return None

    def degraded(self, what: str, cause: object, outcome: str = ALONE) -> None:
        """Count a failure of gpucache's, and log its kind once, with its outcome. Never raises."""
        try:
            self.stats.add("errors_degraded", now=True)
            warn_once(what, cause, outcome)
        except Exception:
            return  # what cannot be told is no reason for a kernel not to launch either

    def without_view(self, error: OSError) -> None:
        """Tell that a view can be neither read nor made; the store's own entry is used instead."""
        what = f"no views in {self.directory}"
        self.degraded(what, _cause(error), _outcome_without_view(error))


def locate(directory: str | None, environ: Mapping[str, str]) -> Location:
    """Settle where to cache; ``directory`` is the value of `TRITON_CACHE_DIR`, of which ``""`` counts as unset.

    Never raises for what the disk or the environment says: it warns once, and the location is private.
    """
    for off in environment.turned_off(environ):
        tell_in_job(INFO, "not shared: %s=%s: %s", off.name, off.value, off.consequence)
    chosen = _choose(directory, environ)
    mode, locks = chosen.mode, LockPlace(chosen.root)
    views = chosen.directory
    if mode == "shared":
        try:
            prepare(chosen.root, Trust.for_launch(environ))
            views = _prepared_views(chosen, environ)
            stamp_use(paths.record_path(chosen.root, paths.host_name()))
            _tell_reader(chosen.root)
        except (GpuCacheError, OSError) as error:
            warn_once("the store cannot be used", error)
            mode = "stock" if _is_usable_alone(chosen, environ) else "private"
    shared = mode == "shared"
    counters = paths.ours(chosen.root, "stats") if shared else None
    staging = paths.ours(chosen.root, "tmp") if shared else "/dev/shm"
    stats = Stats(counters, _label(chosen) if shared else "")
    return Location(
        directory=chosen.directory,
        views=views,
        root=chosen.root,
        locks=locks,
        staging=staging_below(staging),
        stats=stats,
        mode=mode,
        silicon=chosen.silicon,
        nobody_elses=chosen.nobody_elses,
        verify=environment.VERIFY.read_or_default(environ),
        require_hit=environment.REQUIRE_HIT.read_or_default(environ),
        stall_s=environment.STALL_TIMEOUT.read_or_default(environ),
        timeout_s=environment.LOCK_TIMEOUT.read_or_default(environ),
        boot=boot_time(),
        limit=_limit(chosen.root, locks, shared, environ, stats),
        recorder=_recorder(environ),
        has_remote=shared and environment.REMOTE.text(environ) is not None,
        fallback=None if mode == "stock" else _fallback(environ),
        trust=Trust.for_launch(environ),
        stamp_s=_stamp_interval(chosen.root, environ),
    )


def _tell_reader(root: str) -> None:
    """Say it where this user has named a root in which he may read only: nothing that he misses is kept or shared."""
    locks = paths.ours(root, "locks")
    if may(locks, os.W_OK | os.X_OK) or not _is_anothers(locks):
        return
    outcome = (
        "what is cached there is used, and all else compiled by each process; set "
        f"{environment.ROOT} to a directory of your own and {environment.FALLBACK}={root}"
    )
    warn_once("others may only read this root", root, outcome)


def _is_anothers(directory: str) -> bool:
    """Whether a directory is there, and another user's."""
    try:
        return os.stat(directory).st_uid != os.geteuid()
    except OSError:
        return False


def _recorder(environ: Mapping[str, str]) -> Recorder | None:
    path = environment.RECORD.read_or_default(environ)
    if path is None or environment.DISABLE.read_or_default(environ):
        return None
    from gpucache.triton.recorder import recorder_of  # few processes record

    return recorder_of(path)


def _fallback(environ: Mapping[str, str]) -> str | None:
    """The absolute path of the fallback; None where none is set, or none that makes sense, which is told."""
    path = environment.FALLBACK.read_or_default(environ)
    if path is None:
        return None
    try:
        return paths.absolute(path)
    except ConfigurationError as error:
        warn_once("the fallback cannot be found", error, "going on without it")
        return None


WARM = "warm"
"""In the place of a device directory, for the counters: kernels that were compiled for no device of this process."""


def store_only(root: str, environ: Mapping[str, str]) -> Location:
    """A location that publishes into the store of ``root`` and makes no view, for whoever compiles for later.

    Raises:
        GpuCacheError: the root is not safe, or cannot be looked at.
        OSError: the disk refused.
    """
    prepare(root, Trust.for_launch(environ))
    locks = LockPlace(root)
    stats = Stats(paths.ours(root, "stats"), WARM)
    return Location(
        directory=NO_VIEWS,
        views=NO_VIEWS,
        root=root,
        locks=locks,
        staging=staging_below(paths.ours(root, "tmp")),
        stats=stats,
        mode="shared",
        stall_s=environment.STALL_TIMEOUT.read_or_default(environ),
        timeout_s=environment.LOCK_TIMEOUT.read_or_default(environ),
        boot=boot_time(),
        limit=_limit(root, locks, True, environ, stats, is_alone=False),
        has_remote=environment.REMOTE.text(environ) is not None,
        fallback=_fallback(environ),
        trust=Trust.for_launch(environ),
        stamp_s=_stamp_interval(root, environ),
    )


def nowhere(directory: str | None) -> Location:
    """A location in which nothing is read or kept; neither the disk nor the environment is asked."""
    return Location(
        directory=directory or os.devnull,
        views=directory or os.devnull,
        root=os.devnull,
        locks=LockPlace(os.devnull),
        staging=staging_below("/dev/shm"),
        stats=Stats(None, ""),
        mode="private",
        limit=Limit(os.devnull, LockPlace(os.devnull), 0),
    )


def _label(chosen: _Chosen) -> str:
    """What the device directory is called in the counters."""
    root = os.path.realpath(chosen.root)
    directory = os.path.realpath(chosen.directory)
    return device_label(root, directory)


class _Chosen(Value):
    """Where the environment and the record want this process to cache; nothing on disk was looked at yet."""

    root: str
    directory: str
    mode: Mode
    silicon: str | None = None
    nobody_elses: str = ""


def _choose(directory: str | None, environ: Mapping[str, str]) -> _Chosen:
    try:
        directory = paths.absolute(directory) if directory else None
        root = paths.root_for_launch(environ)
        directory = paths.in_root(directory, root) if directory else None
        mode = _mode(directory, root, environ)
    except (GpuCacheError, OSError) as error:
        # The current directory is gone, or there is no temporary one.
        warn_once("the cache cannot be found", error)
        directory = directory or default_directory("", None, environ)
        return _Chosen(os.devnull, directory, "private")
    known: Record | None = None
    try:
        known = of_this_host(root)
    except RecordError as error:
        if not directory and mode != "stock":
            warn_once("no record", error, "caching where Triton does by default")
    tell_of_contradiction(known, environ)
    chosen = directory or default_directory(root, known, environ)
    if not os.path.isabs(chosen):  # a relative home, and no current directory
        mode = "private"
    alone = nobody_elses(known, environ, chosen)
    return _Chosen(root, chosen, mode, silicon(known, environ), alone)


def _prepared_views(chosen: _Chosen, environ: Mapping[str, str]) -> str:
    """Vet the device directory, since what lies there is taken into the store; where the views are then.

    Raises:
        UnsafeDirectoryError: it is not safe.
    """
    directory = chosen.directory
    trust = Trust.for_launch(environ)
    of_group = trust.in_root(chosen.root)
    if of_group.shared_gid is not None and inside(directory, chosen.root):
        trust = of_group
    try:
        if vet(directory, trust):
            sweep_old(directory, ASIDE)
    except UnsafeDirectoryError:
        raise
    except ProvisionError as error:
        # Nobody can tell what lies there: it is not looked at again.
        warn_once(f"no views in {directory}", _cause(error), _outcome_without_view(error))
        return NO_VIEWS
    except OSError:
        return directory  # one may use a directory without the right to list it
    return directory


def _cause(error: OSError) -> OSError:
    """An error without the ways out that it names, which are those of a root."""
    number = error.errno or errno.EIO
    path = error.path if isinstance(error, ProvisionError) else error.filename
    return OSError(number, os.strerror(number), path)


def _outcome_without_view(error: OSError) -> str:
    """What follows where a view can be neither read nor made, and what to do about it."""
    way_out = "set TRITON_CACHE_DIR to another directory"
    if error.errno in (errno.EACCES, errno.EPERM):
        way_out = "chmod it, or set TRITON_CACHE_DIR to a directory of your own"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        way_out = "make space there, or set TRITON_CACHE_DIR to another directory"
    return f"kernels are used from the store itself ({way_out})"


def _limit(
    root: str,
    locks: LockPlace,
    shared: bool,
    environ: Mapping[str, str],
    stats: Stats,
    is_alone: bool = True,
) -> Limit:
    """The limit of a root; ``is_alone``: with the lower one that this process has asked for itself."""
    allowed = of_inductor = of_jits = 0
    for_root = for_all(root, environ)
    if shared:
        of_inductor = environment.INDUCTOR_MAX_SIZE.read_or_default(for_root) or 0
        of_jits = environment.JIT_MAX_SIZE.read_or_default(for_root) or 0
        try:
            allowed = max_size_bytes(root, environ)
        except OSError as error:
            warn_once("the size of the file system is unknown", error, "the store has no limit")
    grace_s = 3 * stamp_interval(for_root)
    own = own_max_size_bytes(environ, allowed) if shared and is_alone else 0
    return Limit(root, locks, allowed, grace_s, of_inductor, of_jits, own, stats)


def _stamp_interval(root: str, environ: Mapping[str, str]) -> float:
    """How often this process stamps a use: never less often than all do that share the root, by whom entries go."""
    return min(stamp_interval(environ), stamp_interval(for_all(root, environ)))


def _mode(directory: str | None, root: str, environ: Mapping[str, str]) -> Mode:
    share = environment.SHARE.read_or_default(environ)
    if share is False or environment.DISABLE.read_or_default(environ):
        return "stock"
    if share or not directory:
        return "shared"
    part = fresh_part(directory, root)
    if part is None:
        return "shared"
    said = "not shared: %s is fresh on purpose, by its part %s; %s=1 shares it"
    tell_in_job(INFO, said, directory, part, environment.SHARE.name)
    return "stock"


def _is_usable_alone(chosen: _Chosen, environ: Mapping[str, str]) -> bool:
    """Whether the device directory is safe although the store is not: then Triton's own manager may have it."""
    if inside(chosen.directory, chosen.root):
        return False
    try:
        safe = vet(chosen.directory, Trust.for_launch(environ))
    except (GpuCacheError, OSError):
        return False
    return safe and may(chosen.directory, os.W_OK)
