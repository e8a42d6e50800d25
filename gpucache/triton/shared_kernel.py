"""One kernel in the store that the node shares: searched, waited for, adopted and published after a miss.

Imported at the first miss of a process: where all kernels are in the device directory, nobody needs it.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress

from gpucache.disk.door import METADATA_BYTES, read_limited
from gpucache.disk.locks import holder
from gpucache.kernels.metadata import target_and_version
from gpucache.log import tell
from gpucache.store import key_lock
from gpucache.store.foreign import remember
from gpucache.store.identity import identify
from gpucache.store.key_lock import KeyLock
from gpucache.store.manifest import (
    MANIFEST,
    Facts,
    Manifest,
    digest_of,
    entry_path,
    read_manifest,
)
from gpucache.store.names import stored_name
from gpucache.store.publish import link_view, publish_entry
from gpucache.store.recipe_file import add_recipe, lacks_recipe
from gpucache.store.stock import describe, stock_group
from gpucache.triton.capture import recipe_text_of
from gpucache.triton.fetched import fetched, running_version
from gpucache.triton.from_fallback import from_fallback
from gpucache.triton.left_behind import compiled
from gpucache.triton.location import NO_VIEWS, Location
from gpucache.triton.pulled import wait_for_pull
from gpucache.triton.staged import Staged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from gpucache.store.fallback_entry import Did
    from gpucache.triton.staged import Why

_full: set[str] = set()
"""Roots that refused a publication; cleared by the next one that succeeds."""
_log = logging.getLogger("gpucache")


class SharedKernel:
    """A kernel of one key, as one manager object misses it in the device directory or has compiled it."""

    def __init__(
        self,
        location: Location,
        key: str,
        filename: str,
        look: Callable[[], dict[str, str] | None],
    ) -> None:
        self.location = location
        self.key = key
        self.filename = filename
        """The metadata file by whose name Triton asks for the kernel's group, as the entry has it (`stored_name`)."""
        self.look = look
        """Looks into the device directory: the paths of a hit, or None."""
        self.view = location.view(key)
        self.entry = entry_path(location.root, key)
        self.lock: KeyLock | None = None
        """After a search that found nothing: the key's lock, unless that could not be had."""
        self.why: Why = "absent"
        """After a search that found nothing: why."""
        self.of_fallback: Did | None = None
        """After a search that found nothing: what came of asking the fallback; None where it was not asked."""

    def search(self, frame: FrameType) -> dict[str, str] | None:
        """Look in the store, for what Triton's own manager left, in the fallback, and on the remote; the files' paths.

        None where nothing is found: then `why` tells why, and the caller compiles, with `lock` held if it could be had.
        ``frame`` is that of Triton's `compile`: the lock is held while that frame is on the stack.
        """
        why = self._absent_or_damaged()
        if identify(self.entry, self.view, self.key, self._lock_path):
            found = self.look()
            if found is not None:
                return found
        found = self._adopt(frame, repair=False)
        if found is not None:
            return found
        # nothing will be published, so that waiting would only make the ranks take turns
        if self.location.root in _full:
            self.why = why
            return None
        # Before the key's lock is taken: whoever pulls passes over a key whose lock is held.
        found = self._pulled(frame)
        if found is not None:
            return found
        lock = KeyLock(self._lock_path())
        found = self._wait(lock, frame)
        if found is not None:
            return found
        if not lock.held:
            self.why = "busy"
            return None
        try:
            # Its last holder may have published between our look and our lock.
            found = self._published_meanwhile(frame, repair=True)
            if found is None:
                self.of_fallback = from_fallback(self.location, self.key, repair=True)
                if self.of_fallback == "hit":
                    found = self._adopt(frame, repair=True)
            if found is None and fetched(self.location, self.key):
                found = self._adopt(frame, repair=True)
        except BaseException:
            lock.release()
            raise
        if found is not None:
            lock.release()
            return found
        self.lock, self.why = lock, why
        return None

    def keep(self, recipe: bytes) -> None:
        """Give the store's entry this recipe, if it has none; nothing where the key is locked or the disk refuses."""
        with suppress(OSError):
            found = read_manifest(self.entry)
            if found is not None and lacks_recipe(self.entry, found[0]):
                add_recipe(self.entry, self.view, self.key, recipe, self._lock_path)

    def publish(self, group: dict[str, str], staged: Staged, frame: FrameType) -> None:
        """Publish the files of a group that the manager object has staged, and make the view of them.

        ``frame`` is that of Triton's `compile`, of which the recipe is read.

        Raises:
            OSError: the disk refused; the staged files are still there.
        """
        try:
            self._publish(group, staged, frame)
        except OSError:
            _full.add(self.location.root)
            self.location.limit.refused()
            raise
        _full.discard(self.location.root)

    @property
    def _kernel(self) -> str:
        return self.filename.removesuffix(".json")

    def _lock_path(self) -> str:
        return f"{self.location.locks.directory()}/{self.key}.lock"

    def _absent_or_damaged(self) -> Why:
        """Which of the two an entry is that is no hit. Asked before a repair removes what tells; for the log."""
        if not _log.isEnabledFor(logging.INFO):
            return "absent"
        there = os.path.lexists(f"{self.view}/{MANIFEST}") or os.path.lexists(self.entry)
        return "damaged" if there else "absent"

    def _wait(self, lock: KeyLock, frame: FrameType) -> dict[str, str] | None:
        """Take the lock, or sleep until its holder has published; gives up without either after the time limits."""
        location, began = self.location, time.monotonic()
        waited = False
        # waiting while others wait for us could be a circle
        nested = bool(key_lock.locks_of_this_thread())
        try:
            while not lock.try_acquire(frame, self._kernel, location.stats.device):
                if nested:
                    return None
                waited = True
                if not lock.wait(location.stall_s, began + location.timeout_s):
                    cause = f"{holder(lock.path)} ({lock.path})"
                    location.degraded("waited in vain for a compile", cause)
                    return None
                found = self._published_meanwhile(frame, repair=False)
                if found is not None:
                    return found
            return None
        finally:
            if waited:
                spent = time.monotonic() - began
                location.stats.add("waits")
                location.stats.add("waited_s", spent, now=True)

    def _published_meanwhile(self, frame: FrameType, repair: bool) -> dict[str, str] | None:
        """Look again after another process may have published, be that an earlier gpucache; the files' paths."""
        found = self.look()
        if found is None:
            identify(self.entry, self.view, self.key, self._lock_path)
            found = self._adopt(frame, repair)
        return found

    def _pulled(self, frame: FrameType) -> dict[str, str] | None:
        """Sleep while a pull of this node may bring the entry; the paths of the kernel's files if it did."""
        location = self.location
        came = wait_for_pull(location, self.key, self.entry)
        if not came:
            return None
        found = self.look()
        return self._adopt(frame, repair=False) if found is None else found

    # ---- adopting

    def _adopt(self, frame: FrameType, repair: bool) -> dict[str, str] | None:
        """Make a view of the store's entry, else of what Triton's own manager left here; the paths of its files.

        ``repair`` replaces a damaged entry of the store, or a damaged view, and needs the key's lock. An entry that has
        no recipe gets that of which ``frame`` tells.
        """
        manifest = self.location.sound(self.entry, verify=True)
        if manifest is None:
            return self._adopt_stock(frame, repair)
        if manifest.facts.group != self.filename:
            return None
        return self._adopt_entry(manifest, frame, repair)

    def _adopt_entry(self, manifest: Manifest, frame: FrameType, repair: bool) -> dict[str, str]:
        """Make a view of an entry of the store."""
        location = self.location
        if lacks_recipe(self.entry, manifest):
            manifest = self._with_recipe(manifest, frame)
        location.stats.add_shared()
        saved_s = manifest.facts.compile_s or 0.0
        location.stats.add("saved_s", saved_s, now=True)
        directory = self._viewed(manifest, repair)
        location.limit.viewed()
        # What is fetched takes room, and a process that compiles nothing would never make any.
        location.limit.enforce()
        kernel = manifest.facts.kernel
        said = "shared hit: %s %s from %s"
        tell(logging.DEBUG, said, kernel, self.key, self.entry, key=self.key)
        return {name: f"{directory}/{name}" for name in manifest.listed}

    def _with_recipe(self, manifest: Manifest, frame: FrameType) -> Manifest:
        """The manifest of the store's entry after that got a recipe, if it could be given one."""
        recipe = recipe_text_of(frame, self.key)
        if recipe is None:
            return manifest
        with suppress(OSError):
            if add_recipe(self.entry, self.view, self.key, recipe, self._lock_path):
                return self.location.sound(self.entry) or manifest
        return manifest

    def _adopt_stock(self, frame: FrameType, repair: bool) -> dict[str, str] | None:
        """Make an entry and a view of a whole group that Triton's own manager has left in the device directory."""
        files = stock_group(self.view, self.filename)
        if files is None:
            return None
        location = self.location
        try:
            digests, staged = {}, {}
            for name, path in files.items():
                digests[name] = digest_of(path)
                staged[name] = (path, digests[name])
            metadata = read_limited(files[self.filename], METADATA_BYTES)
            facts = self._facts(metadata, None)
        except FileNotFoundError:
            return None  # it is being removed
        except OSError as error:
            location.degraded("what Triton left cannot be read", error, "compiling it again")
            return None
        recipe = recipe_text_of(frame, self.key)
        try:
            publish_entry(
                location.root,
                self.key,
                staged,
                facts,
                location.staging,
                repair,
                recipe=recipe,
            )
            describe(self.view, digests, facts)
            location.limit.adopted(files.values(), recipe)
        except FileNotFoundError:
            return None  # it is being removed
        except OSError as error:  # it is a hit all the same
            outcome = "it is used where it is, by this device directory alone"
            location.degraded("what Triton left cannot be adopted", error, outcome)
        location.stats.add("hits")
        said = "hit: %s %s of Triton's own in %s"
        tell(logging.DEBUG, said, facts.kernel, self.key, self.view, key=self.key)
        return files

    # ---- publishing

    def _publish(self, group: dict[str, str], staged: Staged, frame: FrameType) -> None:
        location = self.location
        files = {}
        for name, path in group.items():
            if staged.path_of(name) != path:
                return  # it was not staged here: an entry is whole, or there is none
            files[stored_name(name)] = staged.staged[stored_name(name)]
        if self.filename not in files:
            return
        spent = time.monotonic() - staged.began
        facts = self._facts(staged.metadata, spent)
        location.stats.add("compiled_s", spent, now=True)
        if not location.limit.may_add():
            return
        locked = staged.lock is not None and staged.lock.held
        recipe = recipe_text_of(frame, self.key)
        is_there = publish_entry(
            location.root, self.key, files, facts, location.staging, locked, recipe=recipe
        )
        if not is_there:
            return
        manifest = location.sound(self.entry)
        if manifest is None:
            return
        location.limit.published(manifest)
        compiled(location, self.key, spent)
        directory = self._viewed(manifest, locked)
        staged.published = directory
        published = "published: %s %s: compiled in %.2f s, to %s"
        fields = {"key": self.key, "seconds": round(spent, 3)}
        tell(logging.INFO, published, facts.kernel, self.key, spent, directory, **fields)

    def _viewed(self, manifest: Manifest, locked: bool) -> str:
        """The view of the entry, made or repaired where needed; the entry itself where there can be no view."""
        root = self.location.root
        if self.location.views == NO_VIEWS:
            return self.entry
        try:
            if link_view(root, self.entry, self.view, manifest, repair=locked):
                self._made(manifest)
                return self.view
            if locked:
                return self.entry
            # Something damaged is in the view's place, and only who holds the lock may replace it.
            with key_lock.holding(self._lock_path(), manifest.facts.kernel) as held:
                if held and link_view(root, self.entry, self.view, manifest, repair=True):
                    self._made(manifest)
                    return self.view
        except OSError as error:
            self.location.without_view(error)
        return self.entry

    def _made(self, manifest: Manifest) -> None:
        """Count a new view that is a copy, and note where it is if that is outside the root."""
        self.location.limit.copied(self.view, manifest)
        remember(self.location.root, self.location.directory)

    def _facts(self, metadata: str | bytes, spent: float | None) -> Facts:
        """What is known of the kernel beside its files; ``spent`` is the time of its compile in seconds."""
        target, version = target_and_version(metadata)
        return Facts(
            kernel=self._kernel,
            group=self.filename,
            target=target,
            # Up to 3.2 no kernel says it; the key that this process asks for is of its own Triton.
            triton_version=version or running_version(),
            compile_s=spent,
        )
