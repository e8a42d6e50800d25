"""A mount like that of an object store, for tests: files and names, and often nothing else. A program of its own.

``object_store.py BACKING POINT [WHAT=ERRNO ...]`` shows a directory at a mount point, and refuses what is named:
``rename`` (of directories), ``link``, ``utime``, ``flock``, ``unlink``, ``chmod``, ``fsync``, ``statfs``. Any number
of mounts may show one directory, as on several nodes: a lock of one of them is not seen on the others.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from typing import Any

import mfusepy

_NOW, _OMIT = (1 << 30) - 1, (1 << 30) - 2
"""What stands for the present, and for no change (``utimensat``), where libfuse hands on times in nanoseconds."""


class ObjectStore(mfusepy.Operations):
    """Passes everything on to a directory, but what is refused."""

    use_ns = True

    def __init__(self, backing: str, refused: dict[str, int]) -> None:
        self.backing = backing
        self.refused = refused

    def _at(self, path: str) -> str:
        return self.backing + path

    def _refuse(self, what: str) -> None:
        if what in self.refused:
            raise mfusepy.FuseOSError(self.refused[what])

    # ---- what may be refused

    def rename(self, old: str, new: str) -> int:
        if stat.S_ISDIR(os.lstat(self._at(old)).st_mode):
            self._refuse("rename")
        os.rename(self._at(old), self._at(new))
        return 0

    def link(self, target: str, source: str) -> int:
        self._refuse("link")
        os.link(self._at(source), self._at(target))
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        self._refuse("utime")
        asked = times or (_NOW, _NOW)
        before, now = os.lstat(self._at(path)), time.time_ns()
        known = (before.st_atime_ns, before.st_mtime_ns)
        special = [{_NOW: now, _OMIT: old} for old in known]
        meant = [
            meaning.get(time_ns, time_ns) for meaning, time_ns in zip(special, asked, strict=True)
        ]
        os.utime(self._at(path), ns=(meant[0], meant[1]), follow_symlinks=False)
        return 0

    def unlink(self, path: str) -> int:
        self._refuse("unlink")
        os.unlink(self._at(path))
        return 0

    # ---- what is passed on

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.lstat(self._at(path)) if fh is None else os.fstat(fh)
        names = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")
        said = {name: getattr(found, name) for name in names}
        times = {
            f"st_{name}": getattr(found, f"st_{name}_ns") for name in ("atime", "mtime", "ctime")
        }
        return said | times

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, Any], int]]:
        found = [(".", {}, 0), ("..", {}, 0)]
        with os.scandir(self._at(path)) as items:
            for item in items:
                try:
                    seen = item.stat(follow_symlinks=False)
                except FileNotFoundError:  # another mount has removed it meanwhile
                    continue
                # Without a number glibc passes a name over.
                found.append((item.name, {"st_ino": seen.st_ino, "st_mode": seen.st_mode}, 0))
        return found

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._at(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._at(path))
        return 0

    def chmod(self, path: str, mode: int) -> int:
        self._refuse("chmod")
        os.chmod(self._at(path), mode)
        return 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self._at(path), flags & ~os.O_NOFOLLOW)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self._at(path) if fh is None else fh, length)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._refuse("fsync")
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        self._refuse("statfs")
        found = os.statvfs(self._at(path))
        names = (
            "f_bavail",
            "f_bfree",
            "f_blocks",
            "f_bsize",
            "f_favail",
            "f_ffree",
            "f_files",
            "f_frsize",
            "f_namemax",
        )
        return {name: getattr(found, name) for name in names}


def _no_locks(code: int) -> Any:
    """A ``flock`` that always fails. Without one Linux keeps the locks itself, for each mount."""

    def flock(self: ObjectStore, path: str, fh: int, op: int) -> int:
        raise mfusepy.FuseOSError(code)

    return flock


def main() -> None:
    backing, point, *words = sys.argv[1:]
    refused = {}
    for word in words:
        what, _, name = word.partition("=")
        refused[what] = getattr(errno, name)
    if "flock" in refused:
        ObjectStore.flock = _no_locks(refused["flock"])  # type: ignore[method-assign]
    mfusepy.FUSE(
        ObjectStore(backing, refused),
        point,
        foreground=True,
        nothreads=True,
        use_ino=True,
        hard_remove=True,
        attr_timeout=0,
        entry_timeout=0,
        fsname="object-store",
    )


if __name__ == "__main__":
    main()
