"""The Triton plug-in: `TRITON_CACHE_MANAGER=gpucache.triton:DeviceCacheManager` compiles each kernel once per node.

Works with every Triton from 3.2 to 3.9 unpatched. It imports no Triton: the contract (`triton/runtime/cache.py` and
`compiler.compile` of 3.2.0 to 3.9.0) is a class with a base *named* ``CacheManager``, one object per key and lookup:
``get_group`` is asked first; on a miss come a ``put`` per stage and one ``put_group``, and Triton reads the paths that
``put`` returned again after that. Triton's own manager is taken from ``sys.modules`` where it should act.

Every failure of ours ends in a compile of this process's own, with one log warning: also a defect, which is no reason
for a kernel not to launch. That is why exceptions are caught here, and in `gpucache.log`, without naming them, and
nowhere else.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from types import FrameType
from typing import Any

from gpucache import environment
from gpucache.disk.locks import holder
from gpucache.errors import CacheMissError
from gpucache.forks import after_fork
from gpucache.kernels.group import STANDALONE
from gpucache.kernels.metadata import target_and_version
from gpucache.log import tell, warn_once
from gpucache.stderr_log import configure
from gpucache.store.key_lock import KeyLock, locks_of_this_thread
from gpucache.store.manifest import MANIFEST, Facts, Manifest, digest_of, entry_path
from gpucache.store.publish import link_view, publish_entry
from gpucache.store.quarantine import quarantine
from gpucache.store.stock import describe, stock_group
from gpucache.triton.location import Location, locate
from gpucache.triton.single_file import SingleFile
from gpucache.triton.staged import Staged

_locations: dict[str | None, Location] = {}
_settling = threading.RLock()
_full: set[str] = set()
"""Roots that refused a publication; cleared by the next one that succeeds."""
_get = os.environ.get
_TRITON_DIRECTORY = environment.TRITON_DIRECTORY.name
_USE_IR_LOC = environment.USE_IR_LOC.name
_log = logging.getLogger("gpucache")


class CacheManager:
    """Triton looks for a base of this name."""


class DeviceCacheManager(CacheManager):
    """The cache of one key: a view in the device directory over the store that all processes of the node share.

    Beside any number of processes and threads. Reading takes no lock; a miss takes the key's lock, and whoever finds it
    taken waits for the entry instead of compiling, but never for long without a sign of life.
    """

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        self.key = key
        self._own = None
        place = _location()
        if override or dump or _triton_only() or place.mode == "stock":
            self._own = sys.modules["triton.runtime.cache"].FileCacheManager(
                key, override=override, dump=dump
            )
            return
        self._place = place
        self._view = f"{self._place.directory}/{key}"
        self._compile: Staged | None = None
        self._group: str | None = None
        self._served: str | None = None
        self._single: SingleFile | None = None

    # ---- groups: kernels

    def get_group(self, filename: str) -> dict[str, str] | None:
        """The paths of a kernel's files, or None: then this process is to compile it.

        Raises:
            CacheMissError: there is none, and `GPUCACHE_REQUIRE_HIT=1` forbids to compile.
        """
        if self._own is not None:
            own: dict[str, str] | None = self._own.get_group(filename)
            return own
        self._group = filename
        if self._place.mode == "private" or _overriding() or _always_compiling():
            self._missed(filename, None, self._not_asked())
            return None
        try:
            found = self._hit(filename)
            if found is None:
                found = self._search(filename, sys._getframe(1))
        except CacheMissError:
            raise
        except Exception as error:
            self._degraded("the cache cannot be used", error)
            self._missed(filename, None, "failed")
            return None
        if found is not None:
            self._served = filename
        return found

    def put_group(self, filename: str, group: dict[str, str]) -> None:
        """The kernel is whole: publish what this object staged, then let the others have it."""
        if self._own is not None:
            self._own.put_group(filename, group)
            return
        compiled = self._begun()
        compiled.group = group
        try:
            if self._served is None and compiled.shareable:
                self._publish_group(filename, group, compiled)
            _full.discard(self._place.root)
        except Exception as error:
            if isinstance(error, OSError):
                _full.add(self._place.root)
                self._place.limit.refused()
            self._degraded("the kernel cannot be published", error)
        finally:
            compiled.free()
            compiled.rescue()

    # ---- files: stages of a kernel, shared libraries, autotune results

    def has_file(self, filename: str) -> bool:
        """Whether `get_file` has it (asked by Triton 3.0 and 3.1 only)."""
        return self.get_file(filename) is not None

    def get_file(self, filename: str) -> str | None:
        """The path of one file, staged or published; None for a miss."""
        if self._own is not None:
            own: str | None = self._own.get_file(filename)
            return own
        if self._group is not None:  # a stage of this compile
            return (
                self._compile.staged[filename][0]
                if self._compile and filename in self._compile.staged
                else None
            )
        if self._place.mode == "private" or _overriding():
            return None
        try:
            self._single = SingleFile(self._place, self.key, filename)
            return self._single.get()
        except Exception as error:
            self._degraded("the cache cannot be used", error)
            return None

    def put(self, data: object, filename: str, binary: bool = True) -> str:
        """Stage one file; outside a compile publish it at once. The path can be opened now, and stays.

        Raises:
            OSError: it can be written nowhere; the message names every place.
        """
        if self._own is not None:
            own: str = self._own.put(data, filename, binary=binary)
            return own
        content = data if isinstance(data, bytes) else str(data).encode()
        compiled = self._begun()
        path = compiled.stage(filename, content)
        if self._place.mode == "private" or _overriding():
            return path
        try:
            single = self._alone(filename)
            return single.put(compiled) if single is not None else path
        except Exception as error:
            self._degraded("the file cannot be published", error)
            return path

    def _alone(self, filename: str) -> SingleFile | None:
        """The file as one that stands for itself: it was asked for, or its name says so; not a stage of a kernel."""
        if self._group is not None:
            return None
        if self._single is not None and self._single.filename == filename:
            return self._single
        named = filename.endswith(STANDALONE)
        return SingleFile(self._place, self.key, filename) if named else None

    # ---- looking

    def _hit(self, filename: str) -> dict[str, str] | None:
        manifest = self._place.sound(self._view)
        if manifest is None or manifest.facts.group != filename:
            return None
        self._place.stats.add("hits")
        if _log.isEnabledFor(logging.DEBUG):
            tell(logging.DEBUG, "hit: %s %s in %s", manifest.facts.kernel, self.key, self._view)
        return {name: f"{self._view}/{name}" for name in manifest.files}

    def _search(self, filename: str, frame: FrameType) -> dict[str, str] | None:
        """The store, else what another manager left here, else a miss with the key's lock held."""
        place = self._place
        why = self._absent_or_damaged()
        found = self._adopted(filename, repair=False)
        if found is not None:
            return found
        # nothing will be published, so that waiting would only make the ranks take turns
        if place.root in _full:
            self._missed(filename, None, why)
            return None
        lock = KeyLock(f"{place.locks}/{self.key}.lock")
        found = self._wait(lock, filename, frame)
        if found is not None:
            return found
        if not lock.held:
            self._missed(filename, None, "busy")
            return None
        try:
            found = self._hit(filename) or self._adopted(filename, repair=True)
        except BaseException:
            lock.release()
            raise
        if found is not None:
            lock.release()
            return found
        self._missed(filename, lock, why)
        return None

    def _wait(self, lock: KeyLock, filename: str, frame: FrameType) -> dict[str, str] | None:
        """Take the lock, or sleep until its holder has published; gives up without either after the time limits."""
        place, began = self._place, time.monotonic()
        nested = bool(locks_of_this_thread())  # waiting while others wait for us could be a circle
        try:
            while not lock.try_acquire(frame, filename.removesuffix(".json")):
                if nested:
                    return None
                if not lock.wait(place.stall_s, began + place.timeout_s):
                    self._degraded(
                        "waited in vain for a compile", f"{holder(lock.path)} ({lock.path})"
                    )
                    return None
                found = self._hit(filename) or self._adopted(filename, repair=False)
                if found is not None:
                    return found
            return None
        finally:
            waited = time.monotonic() - began
            if waited > 0.01:
                place.stats.add("waits")
                place.stats.add("waited_s", waited, now=True)

    def _adopted(self, filename: str, repair: bool) -> dict[str, str] | None:
        """The entry of the store, or of Triton's own manager here, as a view; ``repair`` needs the key's lock."""
        place, entry = self._place, entry_path(self._place.root, self.key)
        manifest = place.sound(entry, verify=True)
        if manifest is None and repair and os.path.lexists(entry):
            quarantine(place.root, entry)
        if manifest is None:
            return self._from_stock(filename)
        if manifest.facts.group != filename:
            return None
        place.stats.add("shared_hits")
        place.stats.add("saved_s", manifest.facts.compile_s or 0.0, now=True)
        at = self._viewed(entry, manifest, repair)
        place.limit.viewed()
        tell(logging.DEBUG, "shared hit: %s %s from %s", manifest.facts.kernel, self.key, entry)
        return {name: f"{at}/{name}" for name in manifest.files}

    def _from_stock(self, filename: str) -> dict[str, str] | None:
        """Adopt what Triton's own manager made in the device directory: a whole group becomes an entry."""
        files = stock_group(self._view, filename)
        if files is None:
            return None
        try:
            staged = {name: (path, digest_of(path)) for name, path in files.items()}
            with open(files[filename], encoding="utf-8") as file:
                facts = _facts(filename, file.read(), None)
        except FileNotFoundError:
            return None  # it is being removed
        try:
            publish_entry(
                self._place.root, self.key, staged, facts, self._place.staging, repair=False
            )
            digests = {name: sha256 for name, (_, sha256) in staged.items()}
            describe(self._view, digests, facts)
            self._place.limit.adopted(files.values())
        except FileNotFoundError:
            return None  # it is being removed
        except OSError as error:  # it is a hit all the same
            self._degraded("what Triton left cannot be adopted", error)
        self._place.stats.add("hits")
        tell(logging.DEBUG, "hit: %s %s of Triton's own in %s", facts.kernel, self.key, self._view)
        return files

    def _missed(self, filename: str, lock: KeyLock | None, why: str) -> None:
        """Count the miss, and begin the compile; ``why`` is one word for the log."""
        place = self._place
        place.stats.add("misses", now=True)
        if place.require_hit:
            if lock is not None:
                lock.release()
            raise CacheMissError(
                filename.removesuffix(".json"),
                self.key,
                (self._view, entry_path(place.root, self.key)),
            )
        if why in ("absent", "damaged", "busy"):
            why += f" in {place.directory} and in the store of {place.root}"
        tell(logging.INFO, "miss: %s %s: %s", filename.removesuffix(".json"), self.key, why)
        self._begun().lock = lock

    def _not_asked(self) -> str:
        """Why the cache is not asked at all, in one word."""
        if self._place.mode == "private":
            return "private"
        return "override" if _overriding() else "always-compile"

    def _absent_or_damaged(self) -> str:
        """For the log only, and before a repair removes what tells."""
        there = (f"{self._view}/{MANIFEST}", entry_path(self._place.root, self.key))
        wanted = _log.isEnabledFor(logging.INFO)
        return "damaged" if wanted and any(map(os.path.lexists, there)) else "absent"

    # ---- compiling

    def _begun(self) -> Staged:
        """This object's compile; what it staged goes when the object does."""
        if self._compile is None:
            shareable = (
                self._place.mode == "shared" and not _overriding() and not _always_compiling()
            )
            self._compile = Staged(self._place, shareable)
            weakref.finalize(self, Staged.finish, self._compile)
        return self._compile

    def _publish_group(self, filename: str, group: dict[str, str], compiled: Staged) -> None:
        place = self._place
        files = {
            name: compiled.staged[name] for name, path in group.items() if compiled.has(name, path)
        }
        if filename not in files:
            return
        spent = time.monotonic() - compiled.began
        facts = _facts(filename, compiled.metadata, spent)
        place.stats.add("compiled_s", spent, now=True)
        locked = compiled.lock is not None and compiled.lock.held
        if not publish_entry(place.root, self.key, files, facts, place.staging, repair=locked):
            return
        manifest = place.sound(entry_path(place.root, self.key))
        if manifest is None:
            return
        place.limit.published(manifest)
        compiled.published = self._viewed(entry_path(place.root, self.key), manifest, locked)
        tell(
            logging.INFO,
            "published: %s %s: compiled in %.2f s, to %s",
            facts.kernel,
            self.key,
            spent,
            compiled.published,
        )

    def _viewed(self, entry: str, manifest: Manifest, locked: bool = False) -> str:
        """The view of an entry, made or mended where needed; the entry itself where that cannot be."""
        root = self._place.root
        try:
            if link_view(root, entry, self._view, manifest, repair=locked):
                return self._view
            # Something damaged is in its place. Whoever holds the lock meanwhile mends it as well.
            lock = KeyLock(f"{self._place.locks}/{self.key}.lock")
            if not locked and lock.try_acquire(sys._getframe(), manifest.facts.kernel):
                try:
                    return (
                        self._view
                        if link_view(root, entry, self._view, manifest, repair=True)
                        else entry
                    )
                finally:
                    lock.release()
        except OSError as error:
            self._degraded(f"{self._place.directory} cannot be written", error)
        return entry

    def _degraded(self, what: str, cause: object) -> None:
        self._place.stats.add("errors_degraded", now=True)
        warn_once(what, cause)


def _location() -> Location:
    directory = _get(_TRITON_DIRECTORY) or None
    place = _locations.get(directory)
    if place is None:
        with _settling:
            place = _locations.get(directory) or _settled(directory)
            _locations[directory] = place
    return place


def _settled(directory: str | None) -> Location:
    configure(environment.LOG.read_or_default(os.environ))
    place = locate(directory, os.environ)
    tell(
        logging.DEBUG,
        "caching in %s, store in %s, mode %s",
        place.directory,
        place.root,
        place.mode,
    )
    return place


def _knob(name: str, variable: environment.Variable[bool]) -> Any:
    """A compilation setting, from Triton's knobs (3.4 and later) or the environment."""
    knobs = sys.modules.get("triton.knobs")
    if knobs is None:
        return variable.read(os.environ)
    return getattr(knobs.compilation, name, None)


def _overriding() -> bool:
    """Whether `TRITON_KERNEL_OVERRIDE` is on: such a kernel has the key of the plain one, and must reach nobody."""
    return bool(_knob("override", environment.OVERRIDE))


def _always_compiling() -> bool:
    """Whether `TRITON_ALWAYS_COMPILE` is on: hits are ignored, and the result is this process's own."""
    return bool(_knob("always_compile", environment.ALWAYS_COMPILE))


def _triton_only() -> bool:
    """Whether Triton's own manager is to act: `USE_IR_LOC` bakes the cache's path into the code."""
    return bool(_get(_USE_IR_LOC))


def _facts(filename: str, metadata: str, spent: float | None) -> Facts:
    target, version = target_and_version(metadata)
    kernel = filename.removesuffix(".json")
    return Facts(
        kernel=kernel, group=filename, target=target, triton_version=version, compile_s=spent
    )


@after_fork
def _after_fork_in_child() -> None:
    global _settling
    _settling = threading.RLock()
