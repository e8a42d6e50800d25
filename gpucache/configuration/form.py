"""The parsed form of a file of settings: JSON, which a process reads in microseconds, where TOML takes milliseconds.

A form holds for one file: its path, size, times and inode. It is believed if this user or root has written it, into a
directory in which nobody else can write; of a root's file, if whoever wrote it may write in the root. Whoever had to
parse the file writes it, by a rename; where it cannot be written, each process parses anew.

A file that has changed within two seconds gets none: a second change in the same tick of the file system's clock, which
keeps size and inode, would not be seen.
"""

from __future__ import annotations

import json
import os
import stat
import time

from gpucache.configuration.believing import is_safe_directory, refused
from gpucache.configuration.parsed import Line, Parsed, Problem
from gpucache.disk.door import SETTINGS_BYTES, open_regular
from gpucache.disk.vetting import Trust
from gpucache.environment import TRUST_GROUPS, VARIABLES
from gpucache.layout.paths import SETTINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gpucache.configuration.places import Place

_FORMAT = 1
"""Rises when a value is read otherwise than before."""
_STEADY_S = 2.0


def _table() -> str:
    """What settings there are, since a gpucache that knows others parses anew; a checksum would cost an import."""
    rows = []
    for variable in VARIABLES:
        if variable.in_file:
            rows.append(f"{variable.name_in_file}:{variable.in_file}:{variable.in_root:d}")
    return " ".join(rows)


def _of(place: Place, found: os.stat_result) -> list[object]:
    """What a form is of. A root's lies in the root itself, which has another path in each container."""
    path = SETTINGS if place.source == "root" else place.path
    return [_FORMAT, _table(), path, *identity(found)]


def identity(found: os.stat_result) -> list[int]:
    """What of a file's `os.stat` must be the same for its form to hold.

    The device is left out, whose number each node of a shared file system has of its own.
    """
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def read_form(place: Place, found: os.stat_result, trust: Trust) -> Parsed | None:
    """What the form says of a file with this `os.stat`; None where there is none that holds. Never raises."""
    if place.form is None:
        return None
    try:
        if place.source != "root" and not is_safe_directory(os.lstat(os.path.dirname(place.form))):
            return None
        content = _read(place, trust)
        return _parsed(place, found, json.loads(content))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # another version's, or damaged


def _read(place: Place, trust: Trust) -> bytes:
    """The content of the form's file.

    Raises:
        OSError: it cannot be read, or is not believed.
    """
    path = place.form or ""
    fd, written = open_regular(path)
    try:
        is_group = place.source != "root" and written.st_mode & stat.S_IWGRP
        if is_group or refused(place, written, trust) is not None:
            raise PermissionError(path)
        return os.read(fd, SETTINGS_BYTES)
    finally:
        os.close(fd)


def _parsed(place: Place, found: os.stat_result, form: dict[str, Any]) -> Parsed | None:
    if form["of"] != _of(place, found):
        return None
    may_be = _names_in(place)
    lines = {}
    for name, text, number in form["lines"]:
        if name not in may_be or not isinstance(text, str) or not _is_line(number):
            return None
        if name == TRUST_GROUPS.name:
            # A group may be gone since: then the file is parsed anew, and says so.
            TRUST_GROUPS.parse(text)
        lines[name] = Line(text, number)
    problems = []
    for number, fact, fix in form["problems"]:
        if not _is_line(number):
            return None
        problems.append(Problem(place.path, number, str(fact), str(fix)))
    return Parsed(place.source, place.path, lines, tuple(problems))


def _names_in(place: Place) -> set[str]:
    """The variables that a file of this source may hold: whoever could write a root's form must not name an owner."""
    if place.source == "root":
        return {variable.name for variable in VARIABLES if variable.in_root}
    return {variable.name for variable in VARIABLES if variable.in_file}


def _is_line(number: object) -> bool:
    return number is None or isinstance(number, int)


def keep_form(place: Place, found: os.stat_result, parsed: Parsed) -> None:
    """Keep what a file with this `os.stat` says, for the processes to come; where that cannot be, nothing is kept."""
    if place.form is None or not 0 <= found.st_mtime <= time.time() - _STEADY_S:
        return
    from gpucache.disk.files import write_whole
    from gpucache.errors import GpuCacheError

    form = {
        "of": _of(place, found),
        "lines": [[name, line.text, line.number] for name, line in parsed.lines.items()],
        "problems": [[one.number, one.fact, one.fix] for one in parsed.problems],
    }
    content = json.dumps(form).encode()
    directory = os.path.dirname(place.form)
    if len(content) > SETTINGS_BYTES:
        return
    try:
        if place.source == "root":
            write_whole(place.form, content, f"{directory}/tmp")  # which others sweep
        elif _is_made(directory):
            write_whole(place.form, content, directory)
    except (GpuCacheError, OSError):
        return  # read-only, full, another user's home


def _is_made(directory: str) -> bool:
    """Whether the directory of a form is there, made with mode 0700 if need be, and is safe to write in.

    Nothing is made or written in another user's home, as under ``sudo``, where links of that user's may lead anywhere.

    Raises:
        OSError: the disk refused.
    """
    above = os.path.dirname(directory)
    if not os.path.isdir(above):
        if not _is_own(os.path.dirname(above)):
            return False
        os.mkdir(above, 0o700)
    if not os.path.isdir(directory):
        if not _is_own(above) and not os.stat(above).st_mode & stat.S_ISVTX:
            return False
        os.mkdir(directory, 0o700)
    return _is_own(directory) and is_safe_directory(os.lstat(directory))


def _is_own(directory: str) -> bool:
    return not hasattr(os, "geteuid") or os.stat(directory).st_uid == os.geteuid()
