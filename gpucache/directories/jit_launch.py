"""The JIT caches of a process that is started: which are chosen, their directories made, and what became of variables.

`gpucache run`, `gpucache env` and `DeviceCacheRegistry.environ` ask this module where JIT caches are chosen, and do
not import it where none is.
"""

from __future__ import annotations

from gpucache.directories.jit_directories import left_behind, make_directories
from gpucache.directories.jit_environ import Here, places
from gpucache.directories.settings import VARIABLES, Change, Setting, set_by_outer
from gpucache.disk.vetting import Trust
from gpucache.environment import CACHES
from gpucache.layout.jit_caches import chosen, named
from gpucache.machine.device import architectures
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gpucache.directories.jit_directories import LeftBehind
    from gpucache.directories.jit_environ import JitPlace
    from gpucache.layout.jit_cache import JitCache
    from gpucache.machine.device import Device

ARGUMENT = "caches"
"""What an error names where a call has chosen the caches. Commands have checked the words of ``--caches`` before."""


class JitLaunch(Value):
    """What becomes of the JIT caches of a process."""

    places: tuple[JitPlace, ...] = ()
    """Each cache that was chosen."""
    left: tuple[LeftBehind, ...] = ()
    """Warm caches that are used no more from now on: told by the one process that first places a cache in the root."""
    settings: tuple[Setting, ...] = ()
    """What becomes of each variable."""

    @property
    def variables(self) -> dict[str, str]:
        """The variables that gpucache sets, with their values."""
        found = {}
        for setting in self.settings:
            if setting.value is not None and setting.by == "gpucache":
                found[setting.name] = setting.value
        return found


def jit_launch(
    root: str,
    devices: Sequence[Device],
    environ: Mapping[str, str],
    names: Sequence[str] | str | None,
    settings: Mapping[str, str],
    force: bool = False,
    program: str | None = None,
) -> JitLaunch:
    """What becomes of the JIT caches of a process that has this environment otherwise; makes their directories.

    Args:
        root: a root that is there, or a member's own directory in one.
        devices: those that the process may use.
        environ: what is set there stays, unless an outer call has set it.
        names: the caches that are chosen, as words or one text; None: as `GPUCACHE_CACHES` in ``settings`` says.
        settings: gpucache's own variables, as environment and files have them.
        force: whether to replace what the user has set, too.
        program: the program that is executed; None where it is Python, and this very environment's.

    Raises:
        ConfigurationError: a name is no cache's, or `GPUCACHE_CACHES` makes no sense.
    """
    said_by = ARGUMENT
    if isinstance(names, str):
        names = named(names, ARGUMENT)
    if names is None:
        names, said_by = CACHES.read(settings), CACHES.name
    rows = chosen(names, said_by)
    by_outer = set_by_outer(environ)
    replaced = {*by_outer, *_names_of(rows)} if force else by_outer
    planned = places(rows, Here(root, architectures(devices), environ, replaced, program))
    found, made = make_directories(root, planned, Trust.parse(settings).in_root(root))
    left = []
    for place in made:
        behind = left_behind(root, place, environ)
        if behind is not None:
            left.append(behind)
    changes = [*_settings(found, environ, by_outer, force), *_own(names, said_by, environ)]
    return JitLaunch(tuple(found), tuple(left), tuple(changes))


def _names_of(rows: Sequence[JitCache]) -> Iterator[str]:
    """The variables by which a user may have chosen the places of these caches."""
    for cache in rows:
        yield from (*(name for name, _ in cache.variables), *cache.also)


def _settings(
    found: Sequence[JitPlace], environ: Mapping[str, str], by_outer: set[str], force: bool
) -> Iterator[Setting]:
    """What becomes of the variables of these places, and of those that an outer call has set for others."""
    wanted: dict[str, str | None] = dict.fromkeys(sorted(by_outer - {*VARIABLES, CACHES.name}))
    chosen_by: dict[str, str] = {}
    for place in found:
        for variable, wanted_value in place.variables:
            wanted[variable] = wanted_value
            chosen_by[variable] = f"the place of {place.cache.name}"
        name = place.cache.variable or ""
        if place.outcome == "yours" and environ.get(name):
            wanted[name] = place.directory or ""  # told of, and kept, since the user has set it
    for wanted_name, value in wanted.items():
        change = Change(
            name=wanted_name,
            had=environ.get(wanted_name),
            wanted=value,
            by_outer=wanted_name in by_outer,
            forced=force,
        )
        setting = change.setting(chosen_by.get(wanted_name, "this call leaves it alone"))
        if setting is not None:
            yield setting


def _own(names: Sequence[str], said_by: str, environ: Mapping[str, str]) -> Iterator[Setting]:
    """The setting by which calls below this one choose the same caches, where they were chosen by words."""
    value = ",".join(names)
    if said_by == ARGUMENT and environ.get(CACHES.name) != value:
        yield Setting(CACHES.name, "set", value, "--caches says so")
