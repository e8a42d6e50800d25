"""Which files and directories of a JIT cache are units, that may be removed alone, told by their names.

The patterns of each cache, and where they were seen, are in `layout.jit_caches`. Nothing here looks at the disk.
"""

from __future__ import annotations

import re

from gpucache.layout.keys import ASIDE
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from gpucache.layout.jit_cache import JitCache, Unit

    Role = Literal["part", "staged", "aside", "way", "other"]
    """What something is: a unit or a part of one; what its writer has not finished; what a removal has set aside and
    not deleted; a directory in which there may be units; anything else."""

_STEM = "{stem}"
_LEVEL = re.compile(r"(?:sm_|gfx)[0-9a-z]+|cp[0-9]+[a-z]*-torch[^/]+")
"""What the names of levels look like (`directories.jit_level`)."""
_SPECIAL = re.compile(r"(\*|\{stem\}|\{number\})")


class Place(Value):
    """Where something belongs."""

    role: Role
    unit: str = ""
    """Of a part the unit's name: the path of its first part below the cache's directory."""
    turn: int = 0
    """Which of the parts of its unit it is; they are removed in this order."""
    kind: Unit | None = None
    """Of a part, what is known of units of its kind."""


_AWAY = Place("aside")
_STAGED = Place("staged")
_WAY = Place("way")
_OTHER = Place("other")


class Match:
    """The patterns of one cache, ready for looking at many paths; a level, where there is one, stands above them."""

    def __init__(self, cache: JitCache) -> None:
        self.cache = cache
        self._staged = [_Path(pattern) for pattern in cache.staged]
        self._kinds = [_Kind(unit) for unit in cache.units]

    def place(self, parts: tuple[str, ...], is_directory: bool) -> Place:
        """Where something belongs by its path below the cache's directory, in parts."""
        if parts[-1].startswith(ASIDE):
            return _AWAY
        levels = self._levels(parts[0])
        below = parts[levels:]
        if not below:
            return _WAY if is_directory else _OTHER
        if any(path.is_like(below, is_directory) for path in self._staged):
            return _STAGED
        for kind in self._kinds:
            found = kind.part(below, is_directory)
            if found is not None:
                name, turn = found
                unit = "/".join((*parts[:levels], name))
                return Place("part", unit, turn, kind.unit)
        if is_directory and any(path.leads(below) for path in self._paths()):
            return _WAY
        return _OTHER

    def _levels(self, first: str) -> int:
        """How many parts of a path are a level, by the first one: who sets a variable by hand may leave that out."""
        return int(self.cache.level != "none" and _LEVEL.fullmatch(first) is not None)

    def _paths(self) -> list[_Path]:
        paths = list(self._staged)
        for kind in self._kinds:
            paths += kind.paths
        return paths


def lock_of(unit: str, kind: Unit) -> str | None:
    """The path, below the cache's directory, of the lock of a unit of this name and kind; None where there is none."""
    if kind.lock is None:
        return None
    parent, _, last = unit.rpartition("/")
    pattern = _Path(kind.pattern)
    stem = pattern.stem(last) or last
    path = f"{parent}/{kind.lock.replace(_STEM, stem)}"
    parts: list[str] = []
    for part in path.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", ".", ".."):
            parts.append(part)
    return "/".join(parts)


class _Path:
    """A pattern of paths: one expression for each component, and whether they are of directories."""

    def __init__(self, pattern: str, above: tuple[re.Pattern[str], ...] = ()) -> None:
        self.is_directory = pattern.endswith("/")
        components = pattern.strip("/").split("/")
        last_star = max((n for n, text in enumerate(components) if "*" in text), default=-1)
        own = [_expression(text, n == last_star) for n, text in enumerate(components)]
        self.parts = (*above, *own)

    @property
    def above(self) -> tuple[re.Pattern[str], ...]:
        """The expressions of the directories above the last component."""
        return self.parts[:-1]

    def is_like(self, parts: tuple[str, ...], is_directory: bool) -> bool:
        """Whether a path is one of these."""
        if is_directory != self.is_directory or len(parts) != len(self.parts):
            return False
        return _begins(self.parts, parts)

    def leads(self, parts: tuple[str, ...]) -> bool:
        """Whether below a directory there may be one of these."""
        return len(parts) < len(self.parts) and _begins(self.parts, parts)

    def stem(self, name: str) -> str | None:
        """What the last ``*`` stood for in the last component; None where the name is none of these."""
        found = self.parts[-1].fullmatch(name)
        if found is None:
            return None
        return found.groupdict().get("stem")


class _Kind:
    """The patterns of units of one kind, and of their companions."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self._main = _Path(unit.pattern)
        others = [_Path(pattern, self._main.above) for pattern in unit.companions]
        self.paths = [self._main, *others]
        self._last = unit.pattern.strip("/").rpartition("/")[2]

    def part(self, below: tuple[str, ...], is_directory: bool) -> tuple[str, int] | None:
        """The name of the unit that something is a part of, below the level, and which part; None for no part."""
        for turn, path in enumerate(self.paths):
            if below[-1] in self.unit.not_units or not path.is_like(below, is_directory):
                continue
            stem = self._stem(path, below)
            name = below[-1] if turn == 0 else self._name(stem)
            above = below[: len(self._main.above)]
            return "/".join((*above, name)), turn
        return None

    def _stem(self, path: _Path, below: tuple[str, ...]) -> str:
        for expression, part in zip(path.parts, below, strict=True):
            found = expression.fullmatch(part)
            stem = found.groupdict().get("stem") if found else None
            if stem is not None:
                return stem
        return below[-1]

    def _name(self, stem: str) -> str:
        """The name of the unit with this stem."""
        before, star, after = self._last.rpartition("*")
        return f"{before}{stem}{after}" if star else self._last


def _expression(component: str, has_stem: bool) -> re.Pattern[str]:
    """The expression of one component; ``has_stem``: its last ``*`` is the stem."""
    stem_at = component.rfind("*") if has_stem and _STEM not in component else -1
    text = ""
    at = 0
    for piece in _SPECIAL.split(component):
        if piece == "*":
            letters = "[^/]+" if at else r"(?!\.)[^/]+"
            text += f"(?P<stem>{letters})" if at == stem_at else letters
        elif piece == _STEM:
            text += "(?P<stem>[^/]+)"
        elif piece == "{number}":
            text += "[0-9]+"
        else:
            text += re.escape(piece)
        at += len(piece)
    return re.compile(text, re.DOTALL)


def _begins(pattern: tuple[re.Pattern[str], ...], parts: tuple[str, ...]) -> bool:
    return all(one.fullmatch(part) for one, part in zip(pattern, parts, strict=False))


def is_baton_mode(mode: int) -> bool:
    """Whether the mode of a file ``lock`` of torch's says that its mere existence is the lock.

    torch up to 2.13 opens it with no mode, so that its owner may execute it (0777 before the umask, `torch/utils/
    file_baton.py`). torch 2.14 has filelock make it with 0644, leaves it there for good, and waits for its flock alone
    (`torch/utils/_filelock.py`): seen of both.
    """
    return bool(mode & 0o100)
