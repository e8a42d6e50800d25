"""The options that several commands have, and the types of values that people write: sizes and times."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from gpucache.cli.quick import UUIDS
from gpucache.errors import ConfigurationError
from gpucache.units import parse_duration, parse_size


class _Unit(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4, and not before
    """The type of an option whose value is a size or a time as people write it: ``20GiB``, ``30d``."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self.parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Any:
        """The bytes or seconds that a text means. A default value is a number already."""
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, context)


class DeviceType(click.ParamType):  # type: ignore[type-arg]  # as above
    """The type of what names a device: a CUDA ordinal, a UUID, or the beginning of one."""

    name = "device"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> int | str:
        """The ordinal as a number, or the UUID."""
        if not isinstance(value, str):
            return int(value)
        if value.startswith(UUIDS):
            return value
        try:
            return int(value)
        except ValueError:
            example = "an ordinal like 0, or a UUID like GPU-8a56a4bc"
            self.fail(f"{value!r} is not {example} (`gpucache devices` lists them)", param, context)


DEVICE = DeviceType()
SIZE = _Unit("size", parse_size)
TIME = _Unit("time", parse_duration)


def _whole_arch(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """The architecture as Triton writes it: ``90`` becomes ``sm_90``."""
    if value is not None and value[:1].isdigit():
        return f"sm_{value}"
    return value


_ARCH = re.compile(r"sm_[0-9]{2,3}[a-z]?|gfx[0-9a-f]{3,5}")


def is_arch(text: str) -> bool:
    """Whether a text looks like an architecture (``sm_90``), of which the last entry may have been pruned."""
    return _ARCH.fullmatch(text) is not None


def path_of(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuse ``--root ""``: a script's variable that is not set must not make `clean` empty the default root.

    Without the quotes, the next word is the value: ``--root -- python`` must not make a root of the name ``--``.
    """
    if value is None:
        return None
    if not value.strip():
        raise click.BadParameter("the path is empty")
    if value.startswith("-"):
        raise click.BadParameter(
            f"{value!r} looks like an option; if it is a path, say './{value}'"
        )
    return value


# Not readable: whether a directory may be used is for vetting to say, with its reasons.
root_option = click.option(
    "--root",
    type=click.Path(readable=False),
    callback=path_of,
    help="Cache root, instead of $GPUCACHE_DIR and torch's default.",
)


def _paths_of(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """As `path_of`, of each of several paths."""
    return tuple(path_of(context, option, value) or "" for value in values)


roots_option = click.option(
    "--root",
    "roots",
    type=click.Path(readable=False),
    callback=_paths_of,
    multiple=True,
    help="Cache root, instead of $GPUCACHE_DIR and torch's default; several, or a pattern in quotes.",
)


def name_of(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuse a name that is empty, or is the next option, since the option's own value was forgotten."""
    if value is None:
        return None
    if not value.strip():
        raise click.BadParameter("the name is empty")
    if value.startswith("-"):
        raise click.BadParameter(f"{value!r} looks like an option: the name is missing")
    return value


def jobs_option(help_text: str) -> Callable[[Any], Any]:
    """How many kernels are compiled at once; what that is without the option, the help of each command says."""
    return click.option("--jobs", "-j", type=click.IntRange(min=1), metavar="N", help=help_text)


def _caches_of(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    """The names of JIT caches; an unknown one is refused with the nearest right one."""
    from gpucache.layout.jit_caches import named

    if name_of(context, option, value) is None:
        return None
    try:
        return named(value or "", "--caches")
    except ConfigurationError as error:
        raise click.BadParameter(f"{error.value!r} is not {error.expected}") from None


caches_option = click.option(
    "--caches",
    metavar="all|NAMES",
    callback=_caches_of,
    help="Put these JIT caches into the root, too: all, none or flashinfer,tilelang (`gpucache caches` lists them).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
codes_option = click.option(
    "--codes", is_flag=True, help="Only list every code of a finding, and what it means."
)
kernel_option = click.option(
    "--kernel",
    metavar="GLOB",
    help="Only entries whose kernel's name matches.",
)
kind_option = click.option(
    "--kind",
    type=click.Choice(["kernel", "library", "autotune", "file"]),
    help="Only entries of this kind.",
)
arch_option = click.option(
    "--arch",
    metavar="ARCH",
    callback=_whole_arch,
    help="Only entries for this architecture, such as sm_90.",
)
