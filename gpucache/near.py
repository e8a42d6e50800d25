"""Which known names are like one that is none: what may be meant. Imported only where a name is unknown."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like this one; None where none is like it."""
    from difflib import get_close_matches

    found = get_close_matches(name, sorted(known), n=1)
    return found[0] if found else None


def nearest_first(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """All known names: first those that have this name in theirs, then those like it, then the rest in order."""
    from difflib import SequenceMatcher

    wanted = name.lower().strip("*?")

    def place(other: str) -> tuple[bool, float, str]:
        small = other.lower()
        is_part = bool(wanted) and (wanted in small or small in wanted)
        likeness = SequenceMatcher(None, wanted, small[:_LETTERS]).quick_ratio()
        return not is_part, -likeness, other

    return tuple(sorted(known, key=place))


_LETTERS = 200
"""Of a name so many letters are looked at: TorchInductor's may be very long."""
