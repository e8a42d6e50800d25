"""What `gpucache config` shows: for every setting the value in force, and who or which file gave it that value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from gpucache import environment
from gpucache.configuration import InForce, in_force
from gpucache.directories.python_path import is_on_path, manager
from gpucache.environment import CACHES, MANAGER, ROOT, VARIABLES, Variable, was_set_by_run
from gpucache.errors import ConfigurationError
from gpucache.layout import paths
from gpucache.layout.jit_caches import chosen

Source = Literal["argument", "environment", "gpucache run", "root", "user", "system", "default"]


@dataclass(frozen=True, slots=True)
class SettingInForce:
    """The value of one variable that holds in an environment, and where it comes from."""

    name: str
    value: str | None
    """The value that holds, as text: the default where the environment's makes no sense; None where that is unset."""
    default: str | None
    source: Source
    """Who gave the value; ``gpucache run`` did where nobody has changed its value since. A ``root``, a ``user`` and
    the ``system`` give values in files."""
    meaning: str
    problem: str | None = None
    """Why what the environment says does not hold; None where it does."""
    ignored: bool = False
    """Whether the plug-in, which alone reads the variable, goes on without a value that makes no sense."""
    file: str | None = None
    """The file that gave the value; None where none did."""
    line: int | None = None
    for_all: str | None = None
    """What the root's own file says in the place of this value, and what all go by who bound the root; else None."""

    @property
    def set_by(self) -> str:
        """Who gave the value, or where in which file it stands."""
        if self.file is None:
            return self.source
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def as_json(self) -> dict[str, str | int | None]:
        """The fields that `gpucache config --json` promises."""
        return {
            "name": self.name,
            "value": self.value,
            "default": self.default,
            "source": self.source,
            "meaning": self.meaning,
            "problem": self.problem,
            "file": self.file,
            "line": self.line,
            "for_all": self.for_all,
        }


def settings(environ: Mapping[str, str], root: str | None = None) -> tuple[SettingInForce, ...]:
    """The value in force of every variable of `environment.VARIABLES`, in the order of that table.

    ``root`` is the command's argument ``--root``, which wins over the variable.
    """
    held = in_force(environ, root)
    environ = held.environ
    found = []
    for variable in VARIABLES:
        if variable is ROOT:
            found.append(_from_file(_root_in_force(environ, root), held))
        elif variable is MANAGER and MANAGER.text(environ) is None:
            found.append(_manager_in_force(environ))
        else:
            found.append(_from_file(_in_force(variable, environ), held))
    return tuple(found)


def _from_file(setting: SettingInForce, held: InForce) -> SettingInForce:
    """The setting, with the file that gave the value if one did, and with what the root's file says of it."""
    for_all = held.of_root.get(setting.name)
    if for_all is not None and (for_all.text == setting.value or not for_all.text):
        for_all = None
    origin = held.origins.get(setting.name)
    if origin is None or setting.source != "environment":
        return replace(setting, for_all=None if for_all is None else for_all.text)
    return replace(setting, source=origin.source, file=origin.path, line=origin.number)


def _in_force(variable: Variable[Any], environ: Mapping[str, str]) -> SettingInForce:
    value = variable.text(environ)
    if value is not None:
        value = variable.shown(value)
    problem = None
    try:
        found = variable.read(environ)
        if variable is CACHES:
            chosen(found, CACHES.name)
    except ConfigurationError as error:
        value = None
        problem = error.problem
    source: Source
    if value is None:
        value = variable.default_text
        source = "default"
    else:
        source = _source(variable.name, environ)
    return SettingInForce(
        name=variable.name,
        value=value,
        default=variable.default_text,
        source=source,
        meaning=variable.meaning,
        problem=problem,
        ignored=variable.ignored,
    )


def _root_in_force(environ: Mapping[str, str], root: str | None) -> SettingInForce:
    """The root, which is unlike the other settings: another variable is its default, and an argument wins."""
    without_root = {**environ, ROOT.name: ""}
    default, problem = _resolved(None, without_root)
    value: str | None = default
    source: Source = "default"
    if root or ROOT.text(environ):
        value, problem = _resolved(root, environ)
        source = "argument" if root else _source(ROOT.name, environ)
    return SettingInForce(ROOT.name, value, default, source, ROOT.meaning, problem)


def _manager_in_force(environ: Mapping[str, str]) -> SettingInForce:
    """The cache manager where the user has chosen none: the plug-in, where `gpucache run` has turned that on."""
    value = manager(environ)
    source: Source = "default" if value is None else "gpucache run"
    return SettingInForce(MANAGER.name, value, None, source, MANAGER.meaning)


def _resolved(root: str | None, environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The root's absolute path, and None; or None, and why the root has no path."""
    try:
        return paths.resolve_root(root, environ), None
    except ConfigurationError as error:
        return None, error.problem


def _source(name: str, environ: Mapping[str, str]) -> Source:
    """Who has set a variable that is set."""
    is_mark_of_run = name == environment.SET_BY_RUN.name
    is_path_of_run = name == environment.PYTHON_PATH.name and is_on_path(environ)
    if is_mark_of_run or is_path_of_run or was_set_by_run(name, environ):
        return "gpucache run"
    return "environment"


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str | None]:
    """The variables that begin as gpucache's do and are none, each with the one that may be meant, if there is one."""
    from gpucache.near import nearest  # not imported where every name is known

    known = [variable.name for variable in VARIABLES]
    unknown: dict[str, str | None] = {}
    for name in sorted(environ):
        if name not in known and _looks_like_ours(name):
            unknown[name] = nearest(name, known)
    return unknown


def _looks_like_ours(name: str) -> bool:
    """Whether a name begins with ``GPUCACHE_``; those of gpucache's own tests are left out."""
    prefix = environment.PREFIX
    if name.startswith(f"{prefix}TEST_"):
        return False
    return name.startswith(prefix)
