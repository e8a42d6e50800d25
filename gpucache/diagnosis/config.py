"""What `gpucache config` shows: for every environment variable the value in force, and who gave it that value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gpucache import environment
from gpucache.environment import ROOT, VARIABLES, Variable, was_set_by_run
from gpucache.errors import ConfigurationError
from gpucache.layout import paths

Source = Literal["argument", "environment", "gpucache run", "default"]


@dataclass(frozen=True, slots=True)
class SettingInForce:
    """The value of one variable that holds in an environment, and where it comes from."""

    name: str
    value: str | None
    """The value that holds: the default where the environment's makes no sense; None where that is nothing."""
    default: str | None
    source: Source
    """Who gave the value; ``gpucache run`` did where nobody has changed its value since."""
    meaning: str
    problem: str | None = None
    """Why what the environment says does not hold; None where it does."""
    ignored: bool = False
    """Whether the plug-in, which alone reads the variable, goes on without a value that makes no sense."""

    def as_json(self) -> dict[str, str | None]:
        """The fields that `gpucache config --json` promises."""
        return {
            "name": self.name,
            "value": self.value,
            "default": self.default,
            "source": self.source,
            "meaning": self.meaning,
            "problem": self.problem,
        }


def settings(environ: Mapping[str, str], root: str | None = None) -> tuple[SettingInForce, ...]:
    """Every variable of the table, in its order. ``root`` is the argument (``--root``), which wins."""
    found = []
    for variable in VARIABLES:
        if variable is ROOT:
            found.append(_root_in_force(environ, root))
        else:
            found.append(_in_force(variable, environ))
    return tuple(found)


def _in_force(variable: Variable[Any], environ: Mapping[str, str]) -> SettingInForce:
    text = variable.text(environ)
    problem = None
    try:
        variable.read(environ)
    except ConfigurationError as error:
        text, problem = None, error.problem
    return SettingInForce(
        name=variable.name,
        value=variable.default_text if text is None else text,
        default=variable.default_text,
        source="default" if text is None else _source(variable.name, environ),
        meaning=variable.meaning,
        problem=problem,
        ignored=variable.ignored,
    )


def _root_in_force(environ: Mapping[str, str], root: str | None) -> SettingInForce:
    """The root, which is unlike the others: another variable is its default, and an argument wins."""
    default, problem = _resolved(None, {**environ, ROOT.name: ""})
    value: str | None = default
    source: Source = "default"
    if root or ROOT.text(environ):
        value, problem = _resolved(root, environ)
        source = "argument" if root else _source(ROOT.name, environ)
    return SettingInForce(ROOT.name, value, default, source, ROOT.meaning, problem)


def _resolved(root: str | None, environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The root's absolute path; and where it has none, the reason."""
    try:
        return paths.resolve_root(root, environ), None
    except ConfigurationError as error:
        return None, error.problem


def _source(name: str, environ: Mapping[str, str]) -> Source:
    if name == environment.SET_BY_RUN.name or was_set_by_run(name, environ):
        return "gpucache run"
    return "environment"
