"""Give files of a root that have names outside it as well an inode of their own, with the mode that is wanted here.

A mode belongs to a file, not to a name: what was linked from ``~/.triton/cache``, or into a device directory elsewhere,
would be changed there too. So the bytes are copied once, and each name in the root is made a name of the copy, by a
rename: a reader finds the old file or the new one, whole, and they are equal.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Collection
from contextlib import suppress

from gpucache.disk.door import SAFELY, open_regular
from gpucache.disk.files import STAGED
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.shared_modes import Inside, Wanted
from gpucache.disk.walking import Seen, walk
from gpucache.disk.within import Straight
from gpucache.layout import paths
from gpucache.store import key_lock
from gpucache.store.foreign import Foreign, foreign_directories, view_at
from gpucache.store.manifest import MANIFEST, read_manifest

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFELY
_STORE = os.path.relpath(paths.ours("/", "store"), "/").split("/")

Fail = Callable[[str, OSError], None]


class LinkedOutside(Inside):
    """The files of a root with certain inodes, of which some names are elsewhere."""

    def __init__(
        self, root: str, disk: Straight, wanted: Wanted, uid: int, inodes: Collection[int]
    ) -> None:
        """``root`` is a real path; ``uid`` is whose files are copied."""
        super().__init__(root)
        self._disk = disk
        self._wanted = wanted
        self._uid = uid
        self._inodes = inodes
        self._names: dict[int, list[str]] = {}
        """By inode, the paths of the names below the root."""
        self.busy = 0
        """How many files were left since the keys of their entries are locked."""
        self.failed = 0
        """How many more could not be copied, as on a full disk."""

    def copy(self, fail: Fail) -> int:
        """Copy the files, each once; return how many. ``fail`` is told the path of what could not be copied, and why.

        The files of an entry are copied under the lock of its key, so that no removal or repair is at them; an entry
        that is locked stays for another time. Beside any readers; killed at any instant, each name is of one file or
        the other, and the same call goes on.
        """
        walk(self.root, self._disk, self)
        copied = 0
        for key, inodes in self._by_entry().items():
            if key is None:
                copied += self._copy_all(inodes, fail)
                continue
            lock = f"{LockPlace(self.root, self._disk).directory()}/{key}.lock"
            try:
                with key_lock.holding(lock, "a change of modes", self._disk) as held:
                    if held:
                        self._name_root_in_views(key)
                        copied += self._copy_all(inodes, fail)
                    else:
                        self.busy += len(inodes)
            except OSError as error:
                self.failed += len(inodes)
                fail(self._names[inodes[0]][0], error)
        return copied

    # ---- finding the names

    def see(self, seen: Seen) -> bool:
        """As `walking.Walker.see`."""
        if not self.has(seen):
            return False
        if seen.is_file and seen.found.st_ino in self._inodes:
            self._names.setdefault(seen.found.st_ino, []).append(seen.path)
        return True

    def enter(self, seen: Seen, fd: int) -> None:
        """As `walking.Walker.enter`."""

    def fail(self, path: str, error: OSError) -> None:
        """As `walking.Walker.fail`: what cannot be looked at has no name that could be replaced."""

    def _by_entry(self) -> dict[str | None, list[int]]:
        """The inodes by the key of the store's entry that has a name of them; None for those that the store has not."""
        found: dict[str | None, list[int]] = {}
        for inode, names in self._names.items():
            keys = [key for key in map(_key_in_store, names) if key is not None]
            found.setdefault(keys[0] if keys else None, []).append(inode)
        return found

    # ---- copying

    def _copy_all(self, inodes: Collection[int], fail: Fail) -> int:
        copied = 0
        for inode in inodes:
            try:
                copied += self._copy(inode, self._names[inode])
            except OSError as error:
                self.failed += 1
                fail(self._names[inode][0], error)
        return copied

    def _copy(self, inode: int, names: list[str]) -> bool:
        """Replace all names of a file by those of one copy; return whether that was done."""
        with self._disk.directory(paths.ours(self.root, "tmp")) as staging:
            made = f"{STAGED}{os.getpid()}-{os.urandom(6).hex()}"
            try:
                if not self._written(inode, names[0], staging, made):
                    return False
                for name in names:
                    self._replace(inode, name, staging, made)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(made, dir_fd=staging)
        return True

    def _written(self, inode: int, name: str, staging: int, made: str) -> bool:
        """Copy a file's bytes and times to a new file with the mode that is wanted; False if that is no more there."""

        def opened(here: int, last: str) -> tuple[int, os.stat_result]:
            return open_regular(last, here=here)

        try:
            fd, found = self._disk.act(f"{self.root}/{name}", opened)
        except FileNotFoundError:
            return False
        with open(fd, "rb") as old:
            if found.st_ino != inode or found.st_uid != self._uid:
                return False
            with open(os.open(made, _NEW, 0o600, dir_fd=staging), "wb") as new:
                shutil.copyfileobj(old, new)
                new.flush()
                os.fsync(new.fileno())
                os.utime(new.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
                if self._wanted.gid is not None:
                    os.fchown(new.fileno(), -1, self._wanted.gid)
                os.fchmod(new.fileno(), self._wanted.mode(name, found))
        return True

    def _replace(self, inode: int, name: str, staging: int, made: str) -> None:
        """Make a name one of the copy, if it is still one of the file."""

        def replaced(here: int, last: str) -> None:
            if os.stat(last, dir_fd=here, follow_symlinks=False).st_ino != inode:
                return
            beside = f"{made}-"
            os.link(made, beside, src_dir_fd=staging, dst_dir_fd=staging, follow_symlinks=False)
            try:
                os.rename(beside, last, src_dir_fd=staging, dst_dir_fd=here)
            except OSError:
                os.unlink(beside, dir_fd=staging)
                raise

        with suppress(FileNotFoundError):  # removed meanwhile
            self._disk.act(f"{self.root}/{name}", replaced)

    # ---- views outside the root

    def _name_root_in_views(self, key: str) -> None:
        """Have the views of an entry outside the root say of which root's they are, which the links told until now.

        Else nobody would find them when the entry is evicted.
        """
        for foreign in foreign_directories(self.root):
            view = view_at(foreign, self.root, key)
            if view is not None and not view.is_copy:
                with suppress(OSError):
                    self._name_root(foreign, os.path.basename(view.path))

    def _name_root(self, foreign: Foreign, name: str) -> None:
        with self._disk.directory(f"{foreign.path}/{name}") as here:
            read = read_manifest("", MANIFEST, here)
            if read is None:
                return
            manifest, used = read
            if manifest.root == self.root:
                return
            data = manifest._replace(root=self.root).encoded()
            aside = f"{MANIFEST}.{os.urandom(6).hex()}"
            mode = stat.S_IMODE(os.stat(MANIFEST, dir_fd=here, follow_symlinks=False).st_mode)
            with open(os.open(aside, _NEW, mode, dir_fd=here), "wb") as file:
                file.write(data)
                os.utime(file.fileno(), (used, used))
            os.rename(aside, MANIFEST, src_dir_fd=here, dst_dir_fd=here)


def _key_in_store(path: str) -> str | None:
    """The key of the entry that a file of the store is in, by its path below the root; None for any other file."""
    parts = path.split("/")
    depth = len(_STORE)
    if parts[:depth] != _STORE or len(parts) != depth + 3:
        return None
    return parts[depth + 1]
