"""Reads one file of settings: from its parsed form where that holds, else from its TOML. Never raises.

Where there is no file, this module is not imported (`places.look`); a file with a form costs six system calls.
"""

from __future__ import annotations

import errno
import os

from gpucache.configuration.believing import refused, refused_way
from gpucache.configuration.form import identity, keep_form, read_form
from gpucache.configuration.parsed import Parsed, Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.configuration.believing import Refused
    from gpucache.configuration.places import Place
    from gpucache.disk.vetting import Trust

_known: dict[str, tuple[list[int], Parsed]] = {}
"""By path what this process has read last, and of which file."""


def read(place: Place, found: os.stat_result | OSError, trust: Trust) -> Parsed:
    """What a file says, of which `places.look` has said ``found``. One that is not read, or not believed, says why."""
    if isinstance(found, OSError):
        return _unreadable(place, found)
    why = refused(place, found, trust)
    if why is not None:
        return _passed_over(place, why)
    this = identity(found)
    known = _known.get(place.path)
    if known is not None and known[0] == this:
        return known[1]
    parsed = read_form(place, found, trust) or _parsed_now(place, trust)
    if parsed.lasts:
        _known[place.path] = (this, parsed)
    return parsed


def _parsed_now(place: Place, trust: Trust) -> Parsed:
    """What a file says, by its TOML; the form is kept for others."""
    # The form makes that needless in most processes.
    from gpucache.configuration.toml import parse
    from gpucache.disk.door import SETTINGS_BYTES, open_regular, read_some

    try:
        why = refused_way(place)
        if why is not None:
            return _passed_over(place, why)
        end = place.path if place.source == "root" else os.path.realpath(place.path)
        fd, found = open_regular(end)
        with os.fdopen(fd, "rb") as file:
            why = refused(place, found, trust)  # what is read, and not what was looked at before
            if why is not None:
                return _passed_over(place, why)
            content = read_some(file, SETTINGS_BYTES)
            found = os.fstat(fd)
    except OSError as error:
        return _unreadable(place, error)
    parsed = parse(place.source, place.path, content)
    if parsed.lasts and len(content) == found.st_size:
        keep_form(place, found, parsed)
    return parsed


def _unreadable(place: Place, error: OSError) -> Parsed:
    fact = f"it cannot be read: {os.strerror(error.errno or errno.EIO)}"
    return _nothing(place, fact, "none of it holds")


def _passed_over(place: Place, why: Refused) -> Parsed:
    return _nothing(place, f"{why.fact}, and is passed over", why.fix)


def _nothing(place: Place, fact: str, fix: str) -> Parsed:
    problem = Problem(place.path, None, fact, fix)
    return Parsed(place.source, place.path, {}, (problem,), lasts=False)
