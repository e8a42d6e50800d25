"""The files of TorchInductor's in a root, as `clean` finds them among all that is no entry.

By their names alone they are told from what is no cache, which nobody but its owner may remove.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from gpucache.disk.locks import is_free
from gpucache.disk.reading import listed
from gpucache.layout import paths
from gpucache.layout.inductor import is_cache
from gpucache.layout.jit_caches import JIT_CACHES
from gpucache.layout.paths import below_base, members_directory, settings_path, tag_path
from gpucache.report.cache_report import CacheReport
from gpucache.store.inductor_units import InductorFile


class Sorted(NamedTuple):
    """The files below a root beside entries and strays, by what is to become of them."""

    files: tuple[InductorFile, ...]
    """TorchInductor's, that nobody uses."""
    in_use: tuple[str, ...]
    """The paths of those that were used too recently, and of locks that are held."""
    left: tuple[str, ...]
    """The paths of what is no cache; of a directory without any cached file, its own path only."""


def sort_files(report: CacheReport, since: float) -> Sorted:
    """Walk a root, and sort every file beside entries and strays into: to be deleted, in use (since then), no cache.

    Follows no link.
    """
    return _Sorting(report, since).sort()


class _Sorting:
    """A walk over one root, and the files that it has sorted so far."""

    def __init__(self, report: CacheReport, since: float) -> None:
        self.root = report.root
        self.since = since
        others = [f"{self.root}/{name}" for name in ("fxgraph", "aotautograd", "gpucache")]
        self.is_shared = any(map(os.path.isdir, others))
        """Whether something else is Inductor's or gpucache's here."""
        ours = os.path.join(self.root, "gpucache")
        self.known = {ours, tag_path(self.root), settings_path(self.root)}
        self.known |= _jit_directories(self.root)
        self.known |= {stray.path for stray in report.strays}
        self.members = members_directory(self.root)
        for entry in report.entries:
            self.known |= {copy.path for copy in entry.copies}
        tritons = os.path.join(self.root, "triton")
        self.cached = {self.root, tritons}
        """The directories that are a cache's, or have something of one below."""
        self.cached |= {device.path for device in report.devices}
        self.outside: dict[str, list[str]] = {}
        """What is no cache, by the directory that it is in."""
        self.files: list[InductorFile] = []
        self.in_use: list[str] = []

    def sort(self) -> Sorted:
        directories = [self.root]
        for path in directories:  # which grows
            directories += self._directory(path)
        left: list[str] = []
        for path in reversed(directories):  # what is below a directory comes before it
            outside = self.outside[path]
            parent = os.path.dirname(path)
            if path in self.cached:
                left += outside
                self.cached.add(parent)
            elif outside:
                self.outside[parent].append(path)
        left.sort()
        return Sorted(tuple(self.files), tuple(self.in_use), tuple(left))

    def _directory(self, path: str) -> list[str]:
        """Sort the files in a directory, and list the directories in it."""
        outside = self.outside.setdefault(path, [])
        inner: list[str] = []
        try:
            with os.scandir(path) as items:
                for item in items:
                    if item.path in self.known or self._is_own_link(item):
                        self.cached.add(path)
                    elif item.is_dir(follow_symlinks=False):
                        inner.append(item.path)
                    elif self._is_cache(item):
                        self.cached.add(path)
                        self._add(item)
                    else:
                        outside.append(item.path)
        except OSError:  # gone, or not for us to look into
            is_anothers = os.path.dirname(path) == self.members
            if os.path.lexists(path) and not is_anothers:
                outside.append(path)
        return inner

    def _is_own_link(self, item: os.DirEntry[str]) -> bool:
        """Whether something is the link in a member's own directory that leads to the device directories."""
        is_there = os.path.dirname(os.path.dirname(item.path)) == self.members
        return is_there and item.name == "triton" and item.is_symlink()

    def _is_cache(self, item: os.DirEntry[str]) -> bool:
        """Whether a file is surely Inductor's, by its name. A directory named ``cache`` alone may be anybody's."""
        if not item.is_file(follow_symlinks=False):
            return False
        name = below_base(os.path.relpath(item.path, self.root))
        if not is_cache(name):
            return False
        return self.is_shared or not name.startswith("cache/")

    def _add(self, item: os.DirEntry[str]) -> None:
        try:
            found = item.stat(follow_symlinks=False)
        except OSError:
            return
        file = InductorFile.of(item.path, found)
        is_lock = file.path.endswith(".lock")
        is_held = is_lock and not is_free(file.path)
        if is_held or file.used >= self.since:
            self.in_use.append(file.path)
        else:
            self.files.append(file)


def _jit_directories(root: str) -> set[str]:
    """Where other JIT caches of a root are, and those of members, whose units are found by `store.jit_units`."""
    bases = [root]
    members = paths.members_directory(root)
    for path in listed(members):
        if os.path.basename(path).isdigit():
            bases.append(path)
    return {paths.jit_directory(base, cache.name) for base in bases for cache in JIT_CACHES}
