"""Where the plug-in's process caches: its device directory, the store it shares, and what forbids sharing."""

from __future__ import annotations

import os
from functools import lru_cache

from gpucache import environment
from gpucache.directories.record import Record, of_this_host
from gpucache.disk.files import inside, make_directory, sweep_old
from gpucache.disk.locks import local_directory
from gpucache.disk.staging import Staging
from gpucache.disk.vetting import Trust, vet, vet_child
from gpucache.errors import GpuCacheError, RecordError
from gpucache.layout import paths
from gpucache.log import warn_once
from gpucache.machine.device import Device
from gpucache.store.limit import Limit, max_size_bytes
from gpucache.store.lookup import Found, find, sound
from gpucache.store.manifest import Manifest
from gpucache.store.quarantine import ASIDE
from gpucache.store.recency import STAMP_S, boot_time, stamp_interval
from gpucache.store.stats import Stats
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Location(Value, kw_only=True):
    """What one value of `TRITON_CACHE_DIR` means in this process."""

    directory: str
    """The device directory: Triton reads and writes ``<directory>/<KEY>/``."""
    root: str
    locks: str
    staging: Staging
    stats: Stats
    limit: Limit
    mode: str
    """``shared``; ``stock`` (a deliberately fresh cache: Triton's own manager); or ``private`` (no safe store)."""
    silicon: str | None = None
    """Compute capability and core count, which alone decide an autotuner's timings; None where unknown or mixed."""
    verify: bool = False
    require_hit: bool = False
    stall_s: float = environment.STALL_TIMEOUT.default
    timeout_s: float = environment.LOCK_TIMEOUT.default
    boot: float = 0.0
    stamp_s: float = STAMP_S
    """How often at most the use of an entry is stamped. What prunes must leave alone what was used in twice that."""

    def find(self, directory: str, verify: bool = False) -> Found | None:
        """An entry or view that this process may use, as `gpucache.store.lookup.find`."""
        return find(directory, verify or self.verify, self.boot, self.stamp_s)

    def sound(self, directory: str, verify: bool = False) -> Manifest | None:
        """The manifest of an entry or view that this process may use, as `gpucache.store.lookup.sound`."""
        return sound(directory, verify or self.verify, self.boot, self.stamp_s)


def locate(directory: str | None, environ: Mapping[str, str]) -> Location:
    """Settle where to cache; ``directory`` is the value of `TRITON_CACHE_DIR`, of which ``""`` counts as unset.

    Never raises for what the disk or the environment says: it warns once, and the place is private.
    """
    device: Device | None = None
    known: Record | None = None
    try:
        directory = paths.absolute(directory) if directory else None
        root = paths.resolve_root(None, environ)
        mode = _mode(directory, root, environ)
    except (GpuCacheError, OSError) as error:
        # the current directory is gone, or there is no temporary one
        warn_once("the cache cannot be found", error)
        root, mode = os.devnull, "private"
    else:
        try:
            known = of_this_host(root)
            device = _device(known, environ)
        except RecordError as error:
            if not directory and mode != "stock":
                warn_once("no record", error, "caching where Triton does by default")
    chosen = directory or default_directory(root, known, environ)
    if not os.path.isabs(chosen):  # a relative home, and no current directory
        mode = "private"
    locks = paths.ours(root, "locks")
    if mode == "shared":
        try:
            locks = _prepared(root, environ)
            vet(chosen, Trust.parse(environ))  # what lies there is taken into the store
            if os.path.isdir(chosen):
                sweep_old(chosen, ASIDE)
        except (GpuCacheError, OSError) as error:
            warn_once("the store cannot be used", error)
            mode = "stock" if _usable_alone(chosen, root, environ) else "private"
    return Location(
        directory=chosen,
        root=root,
        locks=locks,
        staging=_staging(paths.ours(root, "tmp") if mode == "shared" else "/dev/shm"),
        stats=Stats(
            paths.ours(root, "stats") if mode == "shared" else None, os.path.basename(chosen)
        ),
        mode=mode,
        silicon=_silicon(known, device),
        verify=environment.VERIFY.read_or_default(environ),
        require_hit=environment.REQUIRE_HIT.read_or_default(environ),
        stall_s=environment.STALL_TIMEOUT.read_or_default(environ),
        timeout_s=environment.LOCK_TIMEOUT.read_or_default(environ),
        boot=boot_time(),
        limit=_limit_of(root, locks, mode, environ),
        stamp_s=stamp_interval(environ),
    )


def _limit_of(root: str, locks: str, mode: str, environ: Mapping[str, str]) -> Limit:
    allowed = 0
    if mode == "shared":
        try:
            allowed = max_size_bytes(root, environ)
        except OSError as error:
            warn_once("the size of the file system is unknown", error, "the store has no limit")
    return Limit(root, locks, allowed, 3 * stamp_interval(environ))


def _device(known: Record, environ: Mapping[str, str]) -> Device | None:
    pinned = environment.PINNED_DEVICE.text(environ)
    if not pinned:
        return known.present[0] if len(known.present) == 1 else None
    devices = {listed.device.uuid: listed.device for listed in known.devices}
    return devices.get(pinned)


def default_directory(root: str, known: Record | None, environ: Mapping[str, str]) -> str:
    """Without `TRITON_CACHE_DIR`: the directory on record of the one device of this process, else Triton's default."""
    device = _device(known, environ) if known is not None else None
    if known is not None and device is not None:
        return paths.device_directory(root, known.names[device.uuid])
    home = environment.TRITON_HOME.text(environ) or os.path.expanduser("~")
    try:
        return os.path.abspath(os.path.join(home, ".triton", "cache"))
    except OSError:
        return home


def _mode(directory: str | None, root: str, environ: Mapping[str, str]) -> str:
    share = environment.SHARE.read_or_default(environ)
    if share is False or environment.DISABLE.read_or_default(environ):
        return "stock"
    if share or not directory:
        return "shared"
    return "stock" if is_fresh(directory, root) else "shared"


def is_fresh(directory: str, root: str) -> bool:
    """Whether a device directory is fresh on purpose: in the temporary directory, and outside the root."""
    import tempfile

    return inside(directory, tempfile.gettempdir()) and not inside(directory, root)


def _usable_alone(directory: str, root: str, environ: Mapping[str, str]) -> bool:
    """Whether the device directory is safe although the store is not: then Triton's own manager may have it."""
    if inside(directory, root):
        return False
    try:
        return vet(directory, Trust.parse(environ)) and os.access(directory, os.W_OK)
    except (GpuCacheError, OSError):
        return False


def _prepared(root: str, environ: Mapping[str, str]) -> str:
    """Vet the root and make what the store needs; the directory for locks."""
    trust = Trust.parse(environ)
    vet(root, trust)
    make_directory(root)
    vet(root, trust)  # another user may have made it first
    for name in ("locks", "tmp", "store"):
        make_directory(paths.ours(root, name))
    for path in paths.our_directories(root):
        vet_child(path, trust)
    locks = local_directory(root, paths.ours(root, "locks"))
    vet(locks, trust)
    return locks


def _silicon(known: Record | None, device: Device | None) -> str | None:
    """One kind of silicon, for the pinned device or for all that are there."""
    present = known.present if known is not None else ()
    kinds = {_kind(one) for one in ((device,) if device is not None else present)}
    return kinds.pop() if len(kinds) == 1 else None


def _kind(device: Device) -> str | None:
    cores = device.multiprocessor_count if device.parent_uuid else device.core_count
    if device.compute_capability is None or cores is None:
        return None
    major, minor = device.compute_capability
    return f"sm_{major}{minor}-{cores}{'sm' if device.parent_uuid else ''}"


@lru_cache(maxsize=8)
def _staging(preferred: str) -> Staging:
    """One for all places that write to the same directory: each holds a descriptor for life."""
    return Staging(preferred)
