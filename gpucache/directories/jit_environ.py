"""Which variables give a process its JIT caches in the root, and why a cache has none here.

The rows are those of `gpucache.layout.jit_caches`. Nothing here writes: `gpucache.directories.jit_directories` makes
the directories.
"""

from __future__ import annotations

import os

from gpucache import environment
from gpucache.directories.jit_level import level_of
from gpucache.disk.fitness import network_file_system
from gpucache.layout.jit_caches import by_name
from gpucache.layout.paths import jit_directory
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Literal

    from gpucache.directories.jit_python import Python
    from gpucache.layout.jit_cache import JitCache

    Outcome = Literal[
        "placed",
        "yours",
        "by-hand",
        "no-arch",
        "several-archs",
        "no-torch",
        "in-tmp",
        "network",
        "odd-path",
        "not-writable",
        "unsafe",
    ]
    """What becomes of a cache: its variables are set (``placed``), the user has set them (``yours``), or why they stay
    unset."""


class JitPlace(Value):
    """What becomes of one JIT cache in a process."""

    cache: JitCache
    outcome: Outcome
    why: str
    """The outcome in words, for a person; empty for ``placed``."""
    directory: str | None = None
    """The directory in the root, with its level, whether or not a variable leads there; None where no level is
    known."""
    variables: tuple[tuple[str, str], ...] = ()
    """The variables that lead there, with their values; empty unless placed."""


class Here:
    """A process's surroundings, as far as they decide where JIT caches go; each thing is looked up when first asked."""

    def __init__(
        self,
        base: str,
        archs: Sequence[str],
        environ: Mapping[str, str],
        ours: Collection[str] = (),
        program: str | None = None,
    ) -> None:
        """Say where the process is.

        Args:
            base: the directory that has ``jit`` in it: the root, or a member's own directory there.
            archs: the architectures of the devices that the process may use.
            environ: the environment that it has otherwise.
            ours: names of variables there that gpucache has set, or may replace, and that count as unset.
            program: the program that is executed; None where it is Python, and this very environment's.
        """
        self.base = base
        self.archs = archs
        self._environ = environ
        self._ours = ours
        self._program = program
        self._network: str | Literal[False] | None = False

    def has_set(self, cache: JitCache) -> str | None:
        """The variable by which the user has chosen the place of a cache; None where he has not."""
        for name in (*(name for name, _ in cache.variables[:1]), *cache.also):
            if self._environ.get(name) and name not in self._ours:
                return name
        return None

    def python(self) -> Python:
        """The Python of the process."""
        from gpucache.directories.jit_python import python_of, this_python

        if self._program is None:
            return this_python()
        return python_of(self._program, self._environ)

    @property
    def deepgemm(self) -> str:
        """Where DeepGEMM's kernels are: as the user says, else in the root."""
        cache = by_name("deepgemm")
        chosen = self.has_set(cache)
        return jit_directory(self.base, cache.name) if chosen is None else self._environ[chosen]

    @property
    def network(self) -> str | None:
        """The type of the network file system that the base is on; None where it is local, or not there."""
        if self._network is False:
            self._network = network_file_system(self.base) if os.path.exists(self.base) else None
        return self._network

    @property
    def temporary(self) -> str | None:
        """The temporary directory, where the base lies below it by its name, as SGLang compares; else None."""
        import tempfile  # slow to import

        directory = tempfile.gettempdir()
        return directory if self.base.startswith(directory) else None


def places(rows: Sequence[JitCache], here: Here) -> list[JitPlace]:
    """What becomes of each of these caches; nothing is made."""
    return [_place(cache, here) for cache in rows]


def variables_of(found: Sequence[JitPlace]) -> dict[str, str]:
    """All variables that lead to these places."""
    variables: dict[str, str] = {}
    for place in found:
        variables.update(place.variables)
    return variables


def values_of(cache: JitCache, directory: str, deepgemm: str) -> tuple[tuple[str, str], ...]:
    """The variables of a cache, with the values that lead to this directory; ``deepgemm`` is that of DeepGEMM's."""
    found = []
    for name, value in cache.variables:
        value = value.replace("{directory}", directory)
        found.append((name, value.replace("{deepgemm}", deepgemm)))
    return tuple(found)


def _place(cache: JitCache, here: Here) -> JitPlace:
    level = level_of(cache.level, here.archs, here.python)
    directory: str | None = jit_directory(here.base, cache.name, level.name)
    if level.unknown is not None:
        directory = None
    user_set = here.has_set(cache)
    if cache.kind == "by-hand":
        return JitPlace(cache, "by-hand", cache.reason, directory)
    if user_set is not None:
        return JitPlace(cache, "yours", f"you set {user_set}", directory)
    if directory is None:
        assert level.unknown is not None
        return JitPlace(cache, level.unknown, _UNKNOWN[level.unknown])
    odd = _odd_in(directory, cache.not_quoted)
    if odd is not None:
        why = f"the path has {odd}, at which such builds fail; {_OTHER_ROOT}"
        return JitPlace(cache, "odd-path", why, directory)
    if cache.not_in_tmp and here.temporary is not None:
        why = f"{cache.software} replaces values below {here.temporary}; {_OTHER_ROOT}"
        return JitPlace(cache, "in-tmp", why, directory)
    if cache.needs_local and here.network is not None:
        why = f"only a file system of this node is safe, and the root is on {here.network}; {_OTHER_ROOT}"
        return JitPlace(cache, "network", why, directory)
    return JitPlace(cache, "placed", "", directory, values_of(cache, directory, here.deepgemm))


def _odd_in(directory: str, not_quoted: str) -> str | None:
    """What in a path a software cannot take; None where there is nothing. No Python program can count on bytes."""
    for letter in directory:
        if letter in not_quoted:
            return repr(letter)
    try:
        directory.encode()
    except UnicodeEncodeError:
        return "bytes that are no UTF-8"
    return None


_OTHER_ROOT = f"set {environment.ROOT} to a directory elsewhere"
_UNKNOWN: dict[str, str] = {
    "no-arch": "the directory is named by the architecture, and none is known of the devices here",
    "several-archs": "the directory is named by the architecture, and there are several; --device chooses a device",
    "no-torch": "the directory is named by torch's version, and that Python has no torch",
}
