"""What commands say of JIT caches. Imports no click, so that ranks start fast."""

from __future__ import annotations

from gpucache.units import size as readable_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpucache.directories.jit_directories import LeftBehind
    from gpucache.directories.jit_environ import JitPlace
    from gpucache.directories.jit_launch import JitLaunch


def sentences(launch: JitLaunch) -> Iterator[str]:
    """What a person should know of the JIT caches of a program that is started: a sentence each."""
    unset: dict[str, list[JitPlace]] = {}
    for place in launch.places:
        if place.outcome not in ("placed", "yours"):
            unset.setdefault(place.why, []).append(place)
    for why, places in unset.items():
        yield f"{not_put(places)}: {why}"
    for behind in launch.left:
        yield left(behind)


def not_put(places: list[JitPlace]) -> str:
    """That some caches do not go to the root."""
    names = [place.cache.name for place in places]
    variables = [place.cache.variable for place in places if place.cache.variable is not None]
    if len(names) > 1:
        return f"{', '.join(names)} are not put into the root, and their variables stay as they are"
    if not variables:
        return f"{names[0]} is not put into the root"
    return f"{names[0]} is not put into the root, and {variables[0]} stays as it is"


def left(behind: LeftBehind) -> str:
    """That a warm cache is used no more, and whether its content can be taken along."""
    from gpucache.disk.refusal import quoted

    size = readable_size(behind.logical_bytes)
    at_least = "" if behind.is_all else "more than "
    fact = f"{behind.cache.name} had {at_least}{size} in {behind.path}, which is used no more"
    if not behind.cache.moves:
        why = behind.cache.moves_because
        return f"{fact} and cannot be moved ({why}): all is compiled again"
    command = f"cp -r --preserve=timestamps {quoted(behind.path + '/.')} {quoted(behind.to)}"
    return f"{fact}; `{command}` takes it along"
