"""What is in force of JIT caches in a process: which variables are set, by whom, and what the others would be."""

from __future__ import annotations

from gpucache.directories.jit_environ import Here, places
from gpucache.directories.registry import DeviceCacheRegistry
from gpucache.directories.settings import set_by_outer
from gpucache.disk.members import base_of_others
from gpucache.errors import GpuCacheError
from gpucache.layout.jit_caches import JIT_CACHES, SET_ANYWAY
from gpucache.machine.device import architectures
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from gpucache.directories.jit_environ import JitPlace, Outcome
    from gpucache.layout.jit_cache import Kind

    State = Literal["in force", "not set"] | Outcome
    """``in force``: gpucache has set the variable; ``not set``: nobody has, and gpucache would; else why gpucache does
    not set it here."""


class InForce(Value, kw_only=True):
    """One cache of a process, also Triton's and TorchInductor's."""

    name: str
    state: State
    why: str
    """Why the state is so, and what would change it."""
    variable: str | None
    directory: str | None
    """What the variable is set to, or would be; None where that is not known."""
    kind: Kind
    software: str
    versions: str
    holds: str


def in_force(root: str, environ: Mapping[str, str], settings: Mapping[str, str]) -> list[InForce]:
    """Every cache of a process with this environment, those that `gpucache run` sets anyway first. Writes nothing.

    ``settings`` has gpucache's own variables, as environment and files have them.
    """
    by_outer = set_by_outer(environ)
    rows = [_set_anyway(name, environ, by_outer) for name in SET_ANYWAY]
    here = Here(base_of_others(root), _archs(root, settings), environ, by_outer)
    return rows + [_in_force(place, environ, by_outer) for place in places(JIT_CACHES, here)]


def _archs(root: str, settings: Mapping[str, str]) -> tuple[str, ...]:
    try:
        registry = DeviceCacheRegistry.load(root, settings)
    except GpuCacheError:
        return ()  # no record: which devices there are is not known
    return architectures(registry.devices)


_HOLDS = {"triton": "kernels, a directory each", "inductor": "graphs and code of torch.compile"}


def _set_anyway(name: str, environ: Mapping[str, str], by_outer: set[str]) -> InForce:
    variable = SET_ANYWAY[name]
    value = environ.get(variable)
    state, why = _of_set(variable, value, by_outer)
    if value is None:
        why = "`gpucache run` sets it"
    return InForce(
        name=name,
        state=state,
        why=why,
        variable=variable,
        directory=value,
        kind="on",
        software={"triton": "triton", "inductor": "torch"}[name],
        versions="",
        holds=_HOLDS[name],
    )


def _in_force(place: JitPlace, environ: Mapping[str, str], by_outer: set[str]) -> InForce:
    cache = place.cache
    variable = cache.variable
    value = environ.get(variable) if variable is not None else None
    state: State = place.outcome
    why, directory = place.why, place.directory
    if value and variable is not None:
        directory = value
        state, why = _of_set(variable, value, by_outer)
        if value.startswith("~") and not cache.expands_home:
            why += f"; {cache.software} takes ~ for a directory of that name in the current one"
    elif place.outcome == "placed":
        state, why = "not set", _would_set(place)
    return InForce(
        name=cache.name,
        state=state,
        why=why,
        variable=variable,
        directory=directory,
        kind=cache.kind,
        software=cache.software,
        versions=cache.versions,
        holds=cache.holds,
    )


def _of_set(variable: str, value: str | None, by_outer: set[str]) -> tuple[State, str]:
    if not value:
        return "not set", ""
    if variable in by_outer:
        return "in force", "gpucache set it"
    return "yours", f"you set {variable}"


def _would_set(place: JitPlace) -> str:
    cache = place.cache
    if cache.kind == "on":
        return "`--caches all` sets it"
    return f"`all` does not set it, its name does: {cache.reason}"
