"""Reads one file of settings: from its parsed form where that holds, else from its TOML. Never raises.

Where there is no file, this module is not imported (`places.look`); a file with a form costs six system calls.
"""

from __future__ import annotations

import errno
import os
import time

from gpucache.configuration.believing import refused, refused_way
from gpucache.configuration.form import identity, keep_form, read_form
from gpucache.configuration.parsed import Parsed, Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.configuration.believing import Refused
    from gpucache.configuration.places import Place
    from gpucache.disk.vetting import Trust

_TRIES = 5
_AGAIN_S = 0.02
_JUST_NOW_S = 1.0
"""A file without sense that has changed since may be half written."""
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
    """What a file says, by its TOML; the form is kept for others.

    A file that is being written in place is read again for a moment: without its settings, this process would go to
    another root than its neighbours.
    """
    for _ in range(_TRIES):
        parsed, is_settled = _parsed_once(place, trust)
        if is_settled:
            break
        time.sleep(_AGAIN_S)
    return parsed


def _parsed_once(place: Place, trust: Trust) -> tuple[Parsed, bool]:
    """What a file says now, by its TOML, and whether nobody seems to be writing it."""
    # The form makes that needless in most processes.
    from gpucache.configuration.toml import parse
    from gpucache.disk.door import SETTINGS_BYTES, open_regular, read_some

    try:
        why = refused_way(place)
        if why is not None:
            return _passed_over(place, why), True
        end = place.path if place.source == "root" else os.path.realpath(place.path)
        fd, opened = open_regular(end)
        with os.fdopen(fd, "rb") as file:
            why = refused(place, opened, trust)  # what is read, and not what was looked at before
            if why is not None:
                return _passed_over(place, why), True
            content = read_some(file, SETTINGS_BYTES)
            found = os.fstat(fd)
    except OSError as error:
        # As by an editor that moves the old file away first.
        is_replaced = error.errno == errno.ENOENT
        return _unreadable(place, error), not is_replaced
    parsed = parse(place.source, place.path, content)
    if identity(opened) != identity(found) or len(content) != found.st_size:
        return parsed, False
    is_torn = not content or any(one.number is None for one in parsed.problems)
    if is_torn and abs(time.time() - found.st_mtime) < _JUST_NOW_S:
        return parsed, False
    if parsed.lasts:
        keep_form(place, found, parsed)
    return parsed, True


def _unreadable(place: Place, error: OSError) -> Parsed:
    fact = f"it cannot be read: {os.strerror(error.errno or errno.EIO)}"
    return _nothing(place, fact, "none of it holds")


def _passed_over(place: Place, why: Refused) -> Parsed:
    return _nothing(place, f"{why.fact}, and is passed over", why.fix)


def _nothing(place: Place, fact: str, fix: str) -> Parsed:
    problem = Problem(place.path, None, fact, fix)
    return Parsed(place.source, place.path, {}, (problem,), lasts=False)
