"""Files that stand for themselves: shared libraries, autotune results, whatever is put outside a kernel's group.

Each is an entry of its own in the store, under the key and what else must be equal: the Python and libc of a library
without an ABI tag in its name (Triton 3.2 and 3.3), the silicon of an autotune result. Only what depends on nothing but
the key has a view in the device directory, which is named by the key alone.
"""

from __future__ import annotations

import json
import os
import sysconfig

from gpucache.disk.door import METADATA_BYTES, read_limited
from gpucache.kernels.elf import is_whole_elf
from gpucache.kernels.group import AUTOTUNE
from gpucache.store import key_lock
from gpucache.store.foreign import remember
from gpucache.store.identity import identify
from gpucache.store.manifest import (
    MANIFEST,
    Facts,
    Manifest,
    digest_of,
    entry_path,
    read_manifest,
    single_key,
)
from gpucache.store.publish import link_view, publish_entry
from gpucache.store.quarantine import quarantine
from gpucache.triton.from_fallback import from_fallback
from gpucache.triton.location import NO_VIEWS, Location
from gpucache.triton.pulled import wait_for_pull
from gpucache.triton.staged import Staged, executable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.store.fallback_entry import Did


class SingleFile:
    """A file that stands for itself, as one manager object sees it.

    Beside any number of processes. Reading takes no lock; a put takes the lock of the file's entry, if that is free.
    """

    def __init__(self, location: Location, key: str, filename: str) -> None:
        self.location = location
        self.key = key
        self.filename = filename
        """The file's name in the entry (`gpucache.store.names.stored_name`)."""
        self.tag = _tag(filename, location.silicon or location.nobody_elses)
        self.entry_key = single_key(key, filename, self.tag)
        self.entry = entry_path(location.root, self.entry_key)
        self.view = location.view(key)
        """The directory of the key in the device directory."""
        self.bad: str | None = None
        """SHA-256 of what was handed out, or could not be: a ``put`` after it says that it is no good."""
        self.of_fallback: Did | None = None
        """What came of asking the fallback; None where it was not asked."""

    def get(self) -> str | None:
        """The path of the file, published or left by Triton's own manager; None for a miss.

        Raises:
            OSError: the disk refused.
        """
        if self._cannot_be_loaded():
            return None
        path = self._find()
        if path is None:
            return None
        self.bad = digest_of(path)
        return path if self._is_readable(path) else None

    def _find(self) -> str | None:
        """Look for what was published, for what Triton's own manager left, and then in the fallback."""
        path = self._find_published()
        if path is None and identify(self.entry, self.view, self.key, self._lock_path):
            path = self._find_published()
        location, key = self.location, self.entry_key
        if path is None and wait_for_pull(location, key, self.entry):
            path = self._find_published()
        if path is not None:
            return path
        # What has a tag may be of another Python or silicon: nobody knows whose stock Triton's is.
        if not self.tag and self._is_tritons_own() and is_whole_elf(self._beside):
            location.stats.add("hits")
            return self._beside
        # Without the lock: nothing damaged is replaced by what comes from there.
        self.of_fallback = from_fallback(location, key, repair=False)
        return self._find_published() if self.of_fallback == "hit" else None

    def _find_published(self) -> str | None:
        """Look in the view, then in the store."""
        location = self.location
        manifest = location.sound_view(self.view) if self.tag == "" else None
        if manifest is not None and self._is_of(manifest):
            location.stats.add("hits")
            return self._beside
        manifest = location.sound(self.entry, verify=True)
        if manifest is not None and self._is_of(manifest):
            location.stats.add_shared(now=True)
            return f"{self._viewed(manifest, repair=False)}/{self.filename}"
        return None

    def _lock_path(self) -> str:
        return f"{self.location.locks.directory()}/{self.entry_key}.lock"

    def _is_of(self, manifest: Manifest) -> bool:
        """Whether an entry or view of this key is that of this very file."""
        return manifest.facts.store_key(self.key) == self.entry_key

    @property
    def _beside(self) -> str:
        """Where the view, or Triton's own manager, has the file."""
        return f"{self.view}/{self.filename}"

    def _is_tritons_own(self) -> bool:
        """Whether Triton's own manager has put the file into the device directory."""
        ours = os.path.lexists(f"{self.view}/{MANIFEST}")
        return not ours and os.path.isfile(self._beside)

    def _cannot_be_loaded(self) -> bool:
        """Whether the file is a library, and lies where none can be loaded from."""
        location = self.location
        directory = location.root if location.views == NO_VIEWS else location.directory
        return self.filename.endswith(".so") and not executable(directory)

    def put(self, staged: Staged) -> str:
        """Publish what the manager object has staged; the path to use: the published one, or the staged one.

        Raises:
            OSError: the disk refused; the staged file is still there.
        """
        path, sha256 = staged.staged[self.filename]
        if self._cannot_be_loaded():
            return path
        with key_lock.holding(self._lock_path(), self.filename) as locked:
            if self.bad is not None and not locked:
                return path  # another rank replaces it at this moment
            if self.bad is not None:
                self._discard()
            manifest = self._publish(path, sha256, locked)
            if manifest is None:
                return path
            staged.published = self._viewed(manifest, repair=locked)
            return f"{staged.published}/{self.filename}"

    def _publish(self, path: str, sha256: str, locked: bool) -> Manifest | None:
        """Put the staged file into the store; the manifest of what is there then, None where that is of no use."""
        location = self.location
        if not location.limit.may_add():
            return None
        facts = Facts(kernel=self.filename, group=None, tag=self.tag)
        files = {self.filename: (path, sha256)}
        key, staging = self.entry_key, location.staging
        if not publish_entry(location.root, key, files, facts, staging, repair=locked):
            return None
        manifest = location.sound(self.entry)
        if manifest is None:
            return None
        if manifest.files[self.filename].sha256 == self.bad:
            return None
        location.limit.published(manifest)
        return manifest

    def _discard(self) -> None:
        """Move aside what was no good, but not what another rank has put in its place since."""
        for directory in (self.entry, self.view):
            found = read_manifest(directory)
            if found is None:
                continue
            published = found[0].files.get(self.filename)
            if published is not None and published.sha256 == self.bad:
                quarantine(self.location.root, directory)
        if self._is_tritons_own() and digest_of(self._beside) == self.bad:
            os.unlink(self._beside)  # Triton would overwrite it

    def _viewed(self, manifest: Manifest, repair: bool) -> str:
        """The directory to name: the view where there can be one, else the entry."""
        if self.tag != "":
            return self.entry  # the view is named by the key alone
        if self.location.views == NO_VIEWS:
            return self.entry
        try:
            root = self.location.root
            made = link_view(root, self.entry, self.view, manifest, repair)
        except OSError as error:
            self.location.without_view(error)
            return self.entry
        if not made:
            return self.entry
        self.location.limit.copied(self.view, manifest)
        remember(root, self.location.directory)
        return self.view

    def _is_readable(self, path: str) -> bool:
        """Whether Triton's unguarded `json.load` of an autotune result would succeed."""
        if not path.endswith(AUTOTUNE):
            return True
        try:
            data = read_limited(path, METADATA_BYTES)
            return "configs_timings" in json.loads(data)
        except (ValueError, TypeError, RecursionError):
            return False


def _tag(filename: str, silicon: str) -> str:
    """What must be equal beside the key for a file to be shared."""
    if filename.endswith(AUTOTUNE):
        return silicon
    if not filename.endswith(".so"):
        return ""
    with_tag = str(sysconfig.get_config_var("EXT_SUFFIX"))
    if with_tag in filename:
        return ""
    python, libc = sysconfig.get_config_var("SOABI"), "-".join(_libc())
    return f"{python}-{libc}"


def _libc() -> tuple[str, str]:
    import platform

    return platform.libc_ver()
