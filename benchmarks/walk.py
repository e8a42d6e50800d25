"""Walk or read a cache with nothing but system calls, as a whole process that imports nothing of ours.

Run: python benchmarks/walk.py [--sha256] DIRECTORY
"""

from __future__ import annotations

import hashlib
import os
import sys


def bare_walk(root: str) -> tuple[int, int]:
    """How many files are below the root, and the sum of their sizes: each hard link counted, each one asked for."""
    files = size = 0
    with os.scandir(root) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                more, bytes_more = bare_walk(item.path)
                files, size = files + more, size + bytes_more
            else:
                files, size = files + 1, size + item.stat(follow_symlinks=False).st_size
    return files, size


def bare_read(root: str) -> tuple[int, int]:
    """The same of what was read and digested: each inode once, by whichever of its names comes first."""
    read: set[int] = set()
    size, directories = 0, [root]
    while directories:
        with os.scandir(directories.pop()) as found:
            for item in found:
                if item.is_dir(follow_symlinks=False):
                    directories.append(item.path)
                elif item.inode() not in read:
                    read.add(item.inode())
                    size += _digested(item.path)
    return len(read), size


def _digested(path: str) -> int:
    """Bytes of a file, read whole in one call and put through SHA-256."""
    with open(path, "rb", buffering=0) as file:
        data = file.read()
    hashlib.sha256(data).digest()
    return len(data)


if __name__ == "__main__":
    print((bare_read if "--sha256" in sys.argv else bare_walk)(sys.argv[-1]))
