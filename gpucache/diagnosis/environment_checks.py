"""What `doctor` asks about the environment: variables of gpucache, of torch and of Triton, and Triton's version."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping

from gpucache import environment
from gpucache.configuration import in_force
from gpucache.diagnosis.case import Case
from gpucache.diagnosis.codes import tells
from gpucache.diagnosis.config import settings, unknown_variables
from gpucache.directories.python_path import hidden_by, is_on_path, manager
from gpucache.disk.files import inside
from gpucache.disk.fresh import fresh_part
from gpucache.disk.root import root_above
from gpucache.findings import Finding
from gpucache.layout import paths

TESTED_TRITON = ((3, 2), (3, 9))
"""The first and the last Triton that the plug-in was tested with."""

_CACHE_VARIABLES = (
    environment.ROOT.name,
    environment.INDUCTOR_ROOT.name,
    environment.TRITON_DIRECTORY.name,
)
_EMPTY_MEANS = {
    environment.TRITON_DIRECTORY.name: "Triton 3.4 and later raises an exception",
    environment.INDUCTOR_ROOT.name: "torch caches in the current directory, and executes what it finds there",
}


@tells(
    {
        "bad-value": "a variable has a value that makes no sense, and commands fail",
        "ignored-value": "a variable has a value that makes no sense, and the plug-in goes on without it",
    }
)
def bad_values(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Find variables whose values make no sense. The subject of each finding is the variable's name."""
    for setting in settings(environ):
        name = setting.name
        problem = setting.problem
        if problem is None:
            continue
        fix = f"correct or unset {name}"
        if setting.ignored:
            fact = f"{problem}, and so ignored"
            yield Finding("ignored-value", "warning", name, fact, fix)
        else:
            yield Finding("bad-value", "error", name, problem, fix)


def without_bad_values(environ: Mapping[str, str], bad: Iterable[Finding]) -> dict[str, str]:
    """The environment without the variables that the findings of `bad_values` are about."""
    left = dict(environ)
    for finding in bad:
        left.pop(finding.subject, None)
    return left


@tells({"settings": "something in a file of settings does not hold"})
def files_of_settings(case: Case) -> Iterator[Finding]:
    """Find what in the system's, the user's and the root's file of settings is passed over."""
    for problem in in_force(case.environ, case.root).problems:
        yield Finding("settings", "warning", problem.where, problem.fact, problem.fix)


@tells({"cache-dir-empty": "TRITON_CACHE_DIR or TORCHINDUCTOR_CACHE_DIR is set to nothing"})
def empty_variables(case: Case) -> Iterator[Finding]:
    """Find variables set to ``""``, which counts as unset in gpucache and nowhere else.

    That was seen by running Triton 3.9.0 and torch 2.13.0.
    """
    for name, consequence in _EMPTY_MEANS.items():
        if case.environ.get(name) == "":
            fact = f"it is set to '': {consequence}"
            fix = f"unset {name}, or start the program under `gpucache run`"
            yield Finding("cache-dir-empty", "error", name, fact, fix)


@tells(
    {
        "cache-dir-blanks": "a cache directory's variable has blanks around its value",
        "cache-dir-relative": "a cache directory's variable depends on the current directory",
    }
)
def odd_variables(case: Case) -> Iterator[Finding]:
    """Warn of blanks, which Triton strips before 3.5 and torch never, and of relative paths."""
    for name in _CACHE_VARIABLES:
        value = case.environ.get(name, "")
        stripped = value.strip()
        if value != stripped:
            fact = f"{value!r} has blanks around it, which are taken for part of the path"
            fix = f"set {name}={stripped}" if stripped else f"unset {name}"
            yield Finding("cache-dir-blanks", "warning", name, fact, fix)
        elif value and not os.path.isabs(value):
            fact = f"{value!r} is another directory for each process that starts elsewhere"
            fix = f"set {name} to an absolute path"
            yield Finding("cache-dir-relative", "warning", name, fact, fix)


@tells(
    {
        "triton-dir-hijacked": "TRITON_CACHE_DIR leads into the cache of another root, or of torch's default",
    }
)
def hijacked(case: Case) -> Iterator[Finding]:
    """Warn of a device directory outside the root that another program may have left in the variable.

    Torch's first kernel sets `TRITON_CACHE_DIR` for the whole process and all that it starts (triton#9368).
    """
    variable = environment.TRITON_DIRECTORY
    value = variable.text(case.environ) or ""
    is_absolute = os.path.isabs(value)
    if not is_absolute or inside(value, case.root):
        return
    torchs_default = paths.default_root(case.environ)
    whose = _owner_of(value, torchs_default)
    if whose is None:
        return
    fact = f"{value} is in {whose}, and the root is {case.root}: a program that used torch before may have set it"
    fix = f"unset {variable}, or start the program under `gpucache run --force`"
    yield Finding("triton-dir-hijacked", "warning", variable.name, fact, fix)


def _owner_of(directory: str, torchs_default: str) -> str | None:
    """The cache that a device directory belongs to, by its path; None for a directory of the user's choice."""
    if inside(directory, torchs_default):
        return f"torch's default directory, {torchs_default}"
    above = root_above(directory)
    if above is not None:
        return f"another root, {above}"
    return None


@tells(
    {
        "triton-dir-other-device": "TRITON_CACHE_DIR is another device's directory than GPUCACHE_DEVICE's",
    }
)
def other_device(case: Case) -> Iterator[Finding]:
    """Warn of a directory of the root that is not the pinned device's, by the host's record."""
    variable = environment.TRITON_DIRECTORY
    value = variable.text(case.environ) or ""
    pinned = environment.PINNED_DEVICE.text(case.environ)
    if case.known is None or pinned is None:
        return
    name = case.known.names.get(pinned)
    if name is None or not os.path.isabs(value):
        return
    wanted = paths.device_directory(case.root, name)
    devices = paths.triton_directory(case.root)
    if inside(value, devices) and not inside(value, wanted):
        fact = f"{value} is not the directory of {pinned}, which {environment.PINNED_DEVICE} names"
        fix = f"set {variable}={wanted}, or start the program under `gpucache run --force`"
        yield Finding("triton-dir-other-device", "warning", variable.name, fact, fix)


@tells(
    {
        "plugin-inactive": "Triton does not use our plug-in: each rank compiles for itself",
        "plugin-missing": "TRITON_CACHE_MANAGER names what this Python cannot import, and kernel launches fail",
    }
)
def plugin(case: Case) -> Iterator[Finding]:
    """Find a cache manager that is not gpucache's, or that this Python cannot import."""
    variable, ours = environment.MANAGER, environment.OUR_MANAGER
    value = manager(case.environ)
    if value and not _is_importable(value):
        fact = f"{value} cannot be imported by {sys.executable}, so that each kernel launch fails there"
        fix = f"install it where the program runs, or unset {variable}"
        yield Finding("plugin-missing", "error", variable.name, fact, fix)
    elif value != ours:
        whose, run = _instead_of_plugin(value, case.environ)
        fact = f"{whose}: each rank compiles each kernel"
        fix = f"start the program under `{run}`, or set {variable}={ours}"
        yield Finding("plugin-inactive", "warning", variable.name, fact, fix)


def _instead_of_plugin(value: str | None, environ: Mapping[str, str]) -> tuple[str, str]:
    """What acts in the place of the plug-in, and the command under which the plug-in does."""
    if value:
        return f"Triton's cache belongs to {value}", "gpucache run --force"
    hides = hidden_by(environ) if is_on_path(environ) else None
    if hides is not None:
        name = environment.PYTHON_PATH.name
        return f"{hides} stands before gpucache's own on {name}, and hides that", "gpucache run"
    return "it is not set, and Triton caches for itself", "gpucache run"


def _is_importable(name: str) -> bool:
    """Whether the package of a ``module:Class`` is installed; the package is not imported."""
    from importlib.util import find_spec

    module = name.partition(":")[0]
    package = module.partition(".")[0]
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


@tells({"always-compile": "a variable of Triton's makes it compile whatever is cached"})
def always_compile(case: Case) -> Iterator[Finding]:
    """Find settings that make every kernel a miss: an error, since the cache is of no use then."""
    yield from always_compiling(case.environ)


def always_compiling(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Find the settings of Triton's that make every kernel a miss."""
    for variable in (environment.ALWAYS_COMPILE, environment.OVERRIDE):
        if variable.read(environ):
            name = variable.name
            fact = f"{name}={environ[name]}: every kernel is compiled, whatever is cached"
            yield Finding("always-compile", "error", name, fact, f"unset {name}")


@tells({"unknown-variable": "a variable looks like one of ours, and is none"})
def unknown(case: Case) -> Iterator[Finding]:
    """Warn of variables that begin as gpucache's do and are unknown: misspelt, or of another version."""
    for name, near in unknown_variables(case.environ).items():
        fix = f"unset {name}; `gpucache config` lists what there is"
        if near is not None:
            fix = f"set {near} if that is meant"
        fact = f"{name}={case.environ[name]!r} is nothing to gpucache"
        yield Finding("unknown-variable", "warning", name, fact, fix)


@tells(
    {
        "disabled": "GPUCACHE_DISABLE=1: nothing of ours acts",
        "not-sharing": "GPUCACHE_SHARE=0: the plug-in shares nothing",
        "ir-loc": "USE_IR_LOC is on, and Triton's own cache manager acts",
    }
)
def switched_off(case: Case) -> Iterator[Finding]:
    """Warn of what the user has turned off, perhaps long ago."""
    disable = environment.DISABLE
    share = environment.SHARE
    if disable.read(case.environ):
        fact = f"{disable}=1: no directory is made or set, and the plug-in is stock Triton"
        fix = f"unset {disable}"
        yield Finding("disabled", "warning", disable.name, fact, fix)
    if share.read(case.environ) is False:
        fact = f"{share}=0: the plug-in is stock Triton, and each rank compiles each kernel"
        fix = f"unset {share}"
        yield Finding("not-sharing", "warning", share.name, fact, fix)
    ir_loc = environment.USE_IR_LOC
    if ir_loc.read(case.environ):
        value = case.environ[ir_loc.name]
        fact = (
            f"{ir_loc}={value}: Triton's own cache manager acts, and each rank compiles each kernel"
        )
        yield Finding("ir-loc", "warning", ir_loc.name, fact, f"unset {ir_loc}")


@tells(
    {
        "fresh-directory": "TRITON_CACHE_DIR is fresh on purpose, and the plug-in shares nothing with it"
    }
)
def fresh_directory(case: Case) -> Iterator[Finding]:
    """Warn of a device directory whose name says that everything is to be compiled anew."""
    environ = case.environ
    directory = environment.TRITON_DIRECTORY.text(environ)
    if not directory or environment.SHARE.read(environ) is not None:
        return
    part = fresh_part(directory, case.root)
    if part is not None:
        fact = (
            f"{directory} is fresh on purpose, by its part {part}: each rank compiles each kernel"
        )
        fix = f"set {environment.SHARE}=1 to share it, or another {environment.TRITON_DIRECTORY}"
        subject = environment.TRITON_DIRECTORY.name
        yield Finding("fresh-directory", "warning", subject, fact, fix)


@tells({"triton-untested": "the installed Triton is none that the plug-in was tested with"})
def triton_version(case: Case) -> Iterator[Finding]:
    """Warn of a Triton that the plug-in was not tested with.

    That is the one installed for this interpreter, by its metadata, since importing Triton takes seconds.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = str(version("triton"))  # broken metadata have None
    except PackageNotFoundError:
        return
    first, last = TESTED_TRITON
    found = re.match(r"([0-9]{1,6})\.([0-9]{1,6})", installed)
    if found is not None:
        release = (int(found[1]), int(found[2]))
        if first <= release <= last:
            return
    tested = f"{first[0]}.{first[1]} to {last[0]}.{last[1]}"
    fact = f"Triton {installed} is installed; the plug-in was tested with {tested}"
    wanted = f"triton>={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}"
    fix = f"`gpucache run --no-plugin`; or {wanted}, if torch allows it"
    yield Finding("triton-untested", "warning", "triton", fact, fix)
