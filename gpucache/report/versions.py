"""Choose entries by a version of Triton, or by a specifier of PEP 440. The only door to packaging."""

from __future__ import annotations

from collections.abc import Callable

from gpucache.errors import ConfigurationError
from gpucache.layout.keys import versions_of
from gpucache.report.entries import Entry


def is_of(entry: Entry, matches: Callable[[str | None], bool]) -> bool:
    """Whether the version of an entry matches; where its key tells that it is one of several, whether all do."""
    if entry.triton_version is not None:
        return matches(entry.triton_version)
    possible = versions_of(entry.key)
    return bool(possible) and all(map(matches, possible))


def versions(text: str) -> Callable[[str | None], bool]:
    """Make a function that says whether a version matches the text; an unknown or odd version matches nothing.

    Raises:
        ConfigurationError: the text is no version and no specifier.
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion

    try:
        is_version = text[:1].isdigit()
        wanted = SpecifierSet(f"=={text}" if is_version else text, prereleases=True)
    except InvalidSpecifier:
        expected = "a version specifier like '<3.6'"
        raise ConfigurationError("--triton-version", text, expected) from None

    def matches(version: str | None) -> bool:
        if not version:
            return False
        try:
            return wanted.contains(version)
        except InvalidVersion:
            return False

    return matches
