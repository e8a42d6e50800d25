"""The settings that hold in a process: one mapping, in which files stand behind the environment.

The system's file is overruled by the user's, that by the root's, and all by the environment. A variable of the
environment that is empty counts as unset. Which root it is, the argument says, the environment, the user's or the
system's file. The mapping is for gpucache's own reading, and never the environment of another process: each process
reads the files itself.
"""

from __future__ import annotations

import os

from gpucache.configuration.places import home_in, look, root_place, system_place, user_place
from gpucache.disk.vetting import Trust
from gpucache.environment import VARIABLES
from gpucache.errors import ConfigurationError
from gpucache.layout import paths
from gpucache.values import Value, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpucache.configuration.parsed import Line, Parsed, Problem
    from gpucache.configuration.places import Place, Source

_BELOW_HOME = tuple(variable.name for variable in VARIABLES if variable.in_file in ("path", "keys"))


_NO_LINES: dict[str, Line] = {}


class Origin(Value):
    """Where a setting comes from that a file has."""

    source: Source
    path: str
    number: int | None
    """The line; None where that is not known."""

    def __str__(self) -> str:
        return self.path if self.number is None else f"{self.path}:{self.number}"


class Merged(dict[str, str]):
    """An environment, with what files say where the environment says nothing."""

    __slots__ = ("given",)

    given: Mapping[str, str]
    """The environment itself."""

    def __init__(self, merged: Mapping[str, str], given: Mapping[str, str]) -> None:
        super().__init__(merged)
        self.given = given


class InForce(Value):
    """The settings that hold, and where those come from that files have."""

    environ: Mapping[str, str]
    origins: dict[str, Origin]
    """By the name of the variable; what the environment has set is not among them."""
    problems: tuple[Problem, ...]
    """What in the files does not hold."""
    files: tuple[str, ...] = ()
    """The files that are there, the weakest first."""
    of_root: dict[str, Line] = _NO_LINES
    """What the root's own file says, by the name of the variable."""


def environ(
    base: Mapping[str, str] | None = None, root: str | os.PathLike[str] | None = None
) -> Mapping[str, str]:
    """The environment, with what files say where it says nothing; itself where there is no file.

    ``base`` is the environment, by default ``os.environ``; what was merged already comes back as it is. ``root`` is the
    argument that names the root. What is wrong in a file is told in the log, once in a job; never raises.
    """
    if isinstance(base, Merged):
        return base
    found = in_force(base, root)
    for problem in found.problems:
        from gpucache.log import warn_once  # in most files nothing is wrong

        warn_once(problem.where, problem.fact, problem.fix)
    return found.environ


def changeable(
    base: Mapping[str, str] | None = None, root: str | os.PathLike[str] | None = None
) -> Merged:
    """As `environ`, as a copy that the caller may change, and that nobody merges with the files again."""
    merged = environ(base, root)
    return Merged(merged, for_child(merged))


def for_child(merged: Mapping[str, str]) -> Mapping[str, str]:
    """The environment behind a mapping: what other processes get, which read the files themselves."""
    return merged.given if isinstance(merged, Merged) else merged


def in_force(
    base: Mapping[str, str] | None = None, root: str | os.PathLike[str] | None = None
) -> InForce:
    """As `environ`, with where each setting comes from; tells nothing."""
    given = os.environ if base is None else base
    outer = []
    for place in (system_place(), user_place(given)):
        parsed = None if place is None else _read(place)
        if parsed is not None:
            outer.append(_at_home(parsed, given))
    merged, _ = _merged(given, outer)
    of_root = _of_root(merged, root)
    files = outer if of_root is None else [*outer, of_root]
    if not files:
        return InForce(given, {}, ())
    merged, origins = _merged(given, files)
    problems = [problem for parsed in files for problem in parsed.problems]
    return InForce(
        environ=Merged(merged, given),
        origins=origins,
        problems=tuple(problems),
        files=tuple(parsed.path for parsed in files),
        of_root=_NO_LINES if of_root is None else of_root.lines,
    )


def _merged(
    given: Mapping[str, str], files: list[Parsed]
) -> tuple[Mapping[str, str], dict[str, Origin]]:
    """The environment with what files say, the strongest last; and where each of these settings comes from."""
    origins: dict[str, Origin] = {}
    said: dict[str, str] = {}
    for parsed in files:
        for name, line in parsed.lines.items():
            said[name] = line.text
            origins[name] = Origin(parsed.source, parsed.path, line.number)
    if not said:
        return given, {}
    merged = dict(given)
    for name in list(origins):
        if given.get(name):
            del origins[name]
        else:
            merged[name] = said[name]
    return merged, origins


def _at_home(parsed: Parsed, given: Mapping[str, str]) -> Parsed:
    """What a file says to this user, for whose home ``~`` stands in a path.

    Without a home such a path is unset, and a problem: it would lead to where the process happens to be.
    """
    below = {}
    for name in _BELOW_HOME:
        line = parsed.lines.get(name)
        if line is not None and line.text.startswith("~/"):
            below[name] = line
    if not below:
        return parsed
    from gpucache.configuration.parsed import Line, Problem

    home = home_in(given)
    lines, problems = dict(parsed.lines), list(parsed.problems)
    for name, line in below.items():
        text = "" if home is None else os.path.join(home, line.text[2:])
        lines[name] = Line(text, line.number)
        if home is None:
            fact = f"{line.text} is below a home, and this user has none"
            fix = f"{name} is unset: set HOME, or write an absolute path"
            problems.append(Problem(parsed.path, line.number, fact, fix))
    return replace(parsed, lines=lines, problems=tuple(problems))


def for_all(root: str, environ: Mapping[str, str]) -> Mapping[str, str]:
    """The settings that bound a root for all who act there: what the root's file says is stronger than the environment.

    One process's limit must not evict what others keep, nor its stamps decide what of others looks unused.
    """
    parsed = _read(root_place(root), environ)
    if parsed is None:
        return environ
    merged = Merged(environ, for_child(environ))
    for name, line in parsed.lines.items():
        merged[name] = line.text
    return merged


def _of_root(merged: Mapping[str, str], root: str | os.PathLike[str] | None) -> Parsed | None:
    """What the file of the root says that this process uses; None where it has no file, or there is no root."""
    try:
        where = paths.resolve_root(root, merged)
    except (ConfigurationError, OSError):
        return None
    return _read(root_place(where), merged)


def _read(place: Place, environ: Mapping[str, str] | None = None) -> Parsed | None:
    """What a file says; None where there is none. ``environ`` tells whom the user trusts, which counts in a root."""
    found = look(place)
    if found is None:
        return None
    from gpucache.configuration.reading import read  # on most machines there is no file

    return read(place, found, Trust() if environ is None else _trust(environ))


def _trust(environ: Mapping[str, str]) -> Trust:
    """Whom this user trusts in a root; nobody where that makes no sense, which is told by whoever uses the root."""
    try:
        return Trust.parse(environ)
    except ConfigurationError:
        return Trust()
