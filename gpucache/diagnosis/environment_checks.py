"""What `gpucache.doctor` asks about the environment: variables of ours, of torch's and of Triton's."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator, Mapping

from gpucache import environment
from gpucache.diagnosis import disk_checks
from gpucache.diagnosis.config import settings
from gpucache.directories.record import Record
from gpucache.disk.files import inside
from gpucache.environment import SHARE
from gpucache.findings import Finding
from gpucache.layout import paths

TESTED_TRITON = ((3, 2), (3, 9))
"""The first and the last Triton that the plug-in was tested with."""

_CACHE_VARIABLES = (
    environment.ROOT.name,
    environment.INDUCTOR_ROOT.name,
    environment.TRITON_DIRECTORY.name,
)


def bad_values(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Variables of ours whose values make no sense; the finding's subject is the name."""
    for one in settings(environ):
        if one.problem is None:
            continue
        fix = f"correct or unset {one.name}"
        if one.ignored:
            yield Finding(
                "ignored-value", "warning", one.name, f"{one.problem}, and so ignored", fix
            )
        else:
            yield Finding("bad-value", "error", one.name, one.problem, fix)


def empty_variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    """What is ``""`` counts as unset with us, and with nobody else (Triton 3.9.0 and torch 2.13.0, run)."""
    consequences = {
        environment.TRITON_DIRECTORY.name: "Triton 3.4 and later raises an exception",
        environment.INDUCTOR_ROOT.name: "torch caches in the current directory, and executes what it finds there",
    }
    for name, consequence in consequences.items():
        if environ.get(name) == "":
            fix = f"unset {name}, or start the program under `gpucache run`"
            yield Finding("cache-dir-empty", "error", name, f"it is set to '': {consequence}", fix)


def odd_variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Triton 3.5 and later no longer strips blanks, and torch never did."""
    for name in _CACHE_VARIABLES:
        value = environ.get(name, "")
        if value != value.strip():
            fact = f"{value!r} has blanks around it, which are taken for part of the path"
            fix = f"set {name}={value.strip()}" if value.strip() else f"unset {name}"
            yield Finding("cache-dir-blanks", "warning", name, fact, fix)
        elif value and not os.path.isabs(value):
            fact = f"{value!r} is another directory for each process that starts elsewhere"
            yield Finding(
                "cache-dir-relative", "warning", name, fact, f"set {name} to an absolute path"
            )


def hijacked(root: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Torch's first kernel sets `TRITON_CACHE_DIR` for the whole process and all that it starts (triton#9368)."""
    value = environment.TRITON_DIRECTORY.text(environ) or ""
    if not os.path.isabs(value) or inside(value, root):
        return
    parent, name = os.path.split(os.path.normpath(value))
    default = paths.default_root(environ)
    if inside(value, default):
        whose = f"torch's default directory, {default}"
    elif os.path.basename(parent) == "triton" and disk_checks.DEVICE_NAME.fullmatch(name):
        whose = f"another root, {os.path.dirname(parent)}"
    else:
        return  # a directory of the user's choice
    fact = f"{value} is in {whose}, and the root is {root}: a program that used torch before may have set it"
    fix = f"unset {environment.TRITON_DIRECTORY}, or start the program under `gpucache run --force`"
    yield Finding("triton-dir-hijacked", "warning", environment.TRITON_DIRECTORY.name, fact, fix)


def other_device(root: str, known: Record | None, environ: Mapping[str, str]) -> Iterator[Finding]:
    """A device directory that is not the pinned device's, by the host's record."""
    value, pinned = (
        environment.TRITON_DIRECTORY.text(environ) or "",
        environment.PINNED_DEVICE.text(environ) or "",
    )
    if known is None or pinned not in known.names or not os.path.isabs(value):
        return
    wanted = paths.device_directory(root, known.names[pinned])
    if inside(value, f"{root}/triton") and not inside(value, wanted):
        fact = f"{value} is not the directory of {pinned}, which {environment.PINNED_DEVICE} names"
        fix = f"set {environment.TRITON_DIRECTORY}={wanted}, or start the program under `gpucache run --force`"
        yield Finding(
            "triton-dir-other-device", "warning", environment.TRITON_DIRECTORY.name, fact, fix
        )


def plugin(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whose manager Triton uses."""
    value = environment.MANAGER.text(environ)
    if value and not _importable(value):
        fact = f"{value} cannot be imported by {sys.executable}, so that each kernel launch fails there"
        fix = f"install it where the program runs, or unset {environment.MANAGER}"
        yield Finding("plugin-missing", "error", environment.MANAGER.name, fact, fix)
    elif value != environment.OUR_MANAGER:
        whose = (
            f"Triton's cache belongs to {value}"
            if value
            else "it is not set, and Triton caches for itself"
        )
        run = "gpucache run --plugin --force" if value else "gpucache run --plugin"
        fix = f"start the program under `{run}`, or set {environment.MANAGER}={environment.OUR_MANAGER}"
        fact = f"{whose}: each rank compiles each kernel"
        yield Finding("plugin-inactive", "warning", environment.MANAGER.name, fact, fix)


def _importable(manager: str) -> bool:
    """Whether the package of a ``module:Class`` is there; it is not imported."""
    from importlib.util import find_spec

    try:
        return find_spec(manager.partition(":")[0].partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def switched_off(environ: Mapping[str, str]) -> Iterator[Finding]:
    """What the user has turned off, perhaps in another year."""
    if environment.DISABLE.read(environ):
        fact = (
            f"{environment.DISABLE}=1: no directory is made or set, and the plug-in is stock Triton"
        )
        yield Finding(
            "disabled", "warning", environment.DISABLE.name, fact, f"unset {environment.DISABLE}"
        )
    yield from always_compiling(environ, "warning")
    if SHARE.read(environ) is False:
        fact = f"{SHARE}=0: the plug-in is stock Triton, and each rank compiles each kernel"
        yield Finding("not-sharing", "warning", SHARE.name, fact, f"unset {SHARE}")


def always_compiling(environ: Mapping[str, str], level: str) -> Iterator[Finding]:
    """The settings of Triton's that make every kernel a miss."""
    for variable in (environment.ALWAYS_COMPILE, environment.OVERRIDE):
        if variable.read(environ):
            name = variable.name
            fact = f"{name}={environ[name]}: every kernel is compiled, whatever is cached"
            yield Finding("always-compile", level, name, fact, f"unset {name}")


def unknown(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Names that begin like ours: misspelt, or of another version."""
    known, ours = [variable.name for variable in environment.VARIABLES], "GPUCACHE_"
    for name in sorted(environ):
        if (
            name.startswith(ours)
            and name not in known
            and not name.removeprefix(ours).startswith("TEST_")
        ):
            near = difflib.get_close_matches(name, known, 1)
            fix = (
                f"set {near[0]} if that is meant"
                if near
                else f"unset {name}; `gpucache config` lists what there is"
            )
            yield Finding(
                "unknown-variable",
                "warning",
                name,
                f"{name}={environ[name]!r} is nothing to gpucache",
                fix,
            )


def triton_version() -> Iterator[Finding]:
    """Of this interpreter, by its metadata: importing Triton takes seconds."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = str(version("triton"))  # broken metadata have None
    except PackageNotFoundError:
        return
    (first, last), found = TESTED_TRITON, re.match(r"([0-9]{1,6})\.([0-9]{1,6})", installed)
    if found is None or not first <= (int(found[1]), int(found[2])) <= last:
        tested = f"{first[0]}.{first[1]} to {last[0]}.{last[1]}"
        fact = f"Triton {installed} is installed; the plug-in was tested with {tested}"
        wanted = f"triton>={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}"
        fix = f"`gpucache run --no-plugin`; or {wanted}, if torch allows it"
        yield Finding("triton-untested", "warning", "triton", fact, fix)
