"""Every environment variable that gpucache reads: what it means, what is in force, and who said so.

One table. A test holds it against the names in the code, and another those against the README.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gpucache import environment, log
from gpucache.disk.vetting import Trust
from gpucache.environment import is_on
from gpucache.errors import ConfigurationError
from gpucache.layout import paths
from gpucache.machine.device import requested_fakes
from gpucache.units import parse_size

Check = Callable[[Mapping[str, str], str], object]
"""Raises `ValueError`, with the fact, where the variable's value makes no sense."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable."""

    name: str
    default: str | None
    """What holds without it; None where that is nothing."""
    meaning: str
    """One line."""
    check: Check | None = None


@dataclass(frozen=True, slots=True)
class SettingInForce:
    """What one variable amounts to in an environment."""

    name: str
    value: str | None
    """What holds; of a value that makes no sense, the default."""
    default: str | None
    source: str
    """``argument``, ``environment``, ``gpucache run`` (which set it, and nobody changed it since) or ``default``."""
    meaning: str
    problem: str | None = None
    """Why what the environment says does not hold."""


def settings(environ: Mapping[str, str], root: str | None = None) -> tuple[SettingInForce, ...]:
    """Every variable of the table, in its order. ``root`` is the argument (``--root``), which wins."""
    return tuple(
        _root(variable, environ, root)
        if variable.name == environment.ROOT
        else _in_force(variable, environ)
        for variable in VARIABLES
    )


def _in_force(variable: Variable, environ: Mapping[str, str]) -> SettingInForce:
    name, default = variable.name, variable.default
    unset = name not in environ or (environ[name] == "" and name != "CUDA_VISIBLE_DEVICES")
    problem = None if unset else _problem(variable, environ)
    if unset or problem is not None:
        return SettingInForce(name, default, default, "default", variable.meaning, problem)
    return SettingInForce(name, environ[name], default, _source(name, environ), variable.meaning)


def _root(variable: Variable, environ: Mapping[str, str], root: str | None) -> SettingInForce:
    """The root by itself: it is a path, another variable is its default, and an argument wins."""
    default, problem = _resolved(None, {**environ, environment.ROOT: ""})
    value, source = default, "default"
    if root or environ.get(environment.ROOT):
        value, problem = _resolved(root, environ)
        source = "argument" if root else _source(environment.ROOT, environ)
    return SettingInForce(environment.ROOT, value, default, source, variable.meaning, problem)


def _resolved(root: str | None, environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The root, and why there is none."""
    try:
        return paths.resolve_root(root, environ), None
    except ConfigurationError as error:
        return None, error.problem


def _source(name: str, environ: Mapping[str, str]) -> str:
    return "gpucache run" if set_by_run(name, environ) else "environment"


def set_by_run(name: str, environ: Mapping[str, str]) -> bool:
    """Whether `gpucache run` gave the variable this value, by the checksum in `GPUCACHE_SET` (`gpucache.launch`)."""
    value = environ.get(name)
    marks = environ.get("GPUCACHE_SET", "").split(",")
    return name == "GPUCACHE_SET" or (
        value is not None and f"{name}:{zlib.crc32(os.fsencode(value)):08x}" in marks
    )


def _problem(variable: Variable, environ: Mapping[str, str]) -> str | None:
    try:
        if variable.check is not None:
            variable.check(environ, variable.name)
    except ConfigurationError as error:
        return error.problem
    except ValueError as error:
        return f"{variable.name}={environ[variable.name]!r} is not {error}"
    return None


# ---- what makes sense


def _one_of(*words: str) -> Check:
    def check(environ: Mapping[str, str], name: str) -> None:
        if environ[name] not in words:
            raise ValueError(" or ".join(words))

    return check


def _seconds(environ: Mapping[str, str], name: str) -> None:
    try:
        seconds = float(environ[name])
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError("a number of seconds")


def _nvml_timeout(environ: Mapping[str, str], name: str) -> None:
    environment.nvml_timeout_s({name: environ[name]})


def _switch(environ: Mapping[str, str], name: str) -> None:
    is_on(environ, name)


def _fakes(environ: Mapping[str, str], name: str) -> None:
    requested_fakes(environ)


def _uids(environ: Mapping[str, str], name: str) -> None:
    Trust.parse({name: environ[name]})


def _size(environ: Mapping[str, str], name: str) -> None:
    try:
        parse_size(environ[name])
    except ValueError:
        raise ValueError("a size like 20GiB, 500MB or 4096") from None


def _level(environ: Mapping[str, str], name: str) -> None:
    if log.level_of(environ[name]) is None:
        raise ValueError(" or ".join(log.LEVELS))


IGNORED = frozenset(
    f"GPUCACHE_{name}"
    for name in [
        "SHARE",
        "VERIFY",
        "REQUIRE_HIT",
        "STALL_TIMEOUT_S",
        "LOCK_TIMEOUT_S",
        "STAMP_S",
        "MAX_SIZE",
        "LOG",
    ]
)
"""What the plug-in passes over, with a line in the log, where it makes no sense: an exception would stop a kernel."""
VARIABLES = (
    Variable(
        "GPUCACHE_DIR",
        None,
        "the cache root; without it TORCHINDUCTOR_CACHE_DIR, else torch's default",
    ),
    Variable("GPUCACHE_DEVICE", None, "the UUID of this process's device"),
    Variable("GPUCACHE_FAKE_DEVICES", None, "fake devices, anywhere: 8 or 8xH100:9.0", _fakes),
    Variable(
        "GPUCACHE_DISABLE",
        "0",
        "1: nothing is made and nothing set, and the plug-in is stock Triton",
        _switch,
    ),
    Variable("GPUCACHE_TRUST_UIDS", None, "other owners whose cache may be used: 1000,1001", _uids),
    Variable(
        "GPUCACHE_TRUST_WORLD_WRITABLE", "0", "1: accept a root that everybody may write", _switch
    ),
    Variable(
        "GPUCACHE_SHARE", None, "1: share a fresh directory too; 0: never share", _one_of("0", "1")
    ),
    Variable("GPUCACHE_VERIFY", "0", "always: check digests at every hit", _one_of("0", "always")),
    Variable(
        "GPUCACHE_REQUIRE_HIT",
        "0",
        "1: raise CacheMissError instead of compiling",
        _one_of("0", "1"),
    ),
    Variable(
        "GPUCACHE_STALL_TIMEOUT_S",
        "30",
        "how long to wait for a compile without a heartbeat",
        _seconds,
    ),
    Variable("GPUCACHE_LOCK_TIMEOUT_S", "300", "how long to wait for a compile in all", _seconds),
    Variable("GPUCACHE_STAMP_S", "300", "how often at most an entry's use is stamped", _seconds),
    Variable(
        "GPUCACHE_MAX_SIZE",
        environment.DEFAULT_MAX_SIZE,
        "how large the store may grow: 20GiB; 0: no limit",
        _size,
    ),
    Variable(
        "GPUCACHE_LOG",
        None,
        "what of the log goes to stderr: debug, info, warning or error",
        _level,
    ),
    Variable("GPUCACHE_NVML_TIMEOUT_S", "10", "how long NVML may take", _nvml_timeout),
    Variable("GPUCACHE_SET", None, "the variables that gpucache run set, with a checksum of each"),
    Variable(
        "TORCHINDUCTOR_CACHE_DIR",
        None,
        "torch's: where TorchInductor caches, and the root without GPUCACHE_DIR",
    ),
    Variable("TRITON_CACHE_DIR", None, "Triton's: the device directory of this process"),
    Variable(
        "TRITON_HOME",
        None,
        "Triton's: where .triton/cache is without TRITON_CACHE_DIR; else the home",
    ),
    Variable("TRITON_CACHE_MANAGER", None, f"Triton's: the plug-in is {environment.OUR_MANAGER}"),
    Variable(
        "TRITON_ALWAYS_COMPILE", None, "Triton's: compile whatever is cached, and share nothing"
    ),
    Variable(
        "TRITON_KERNEL_OVERRIDE",
        None,
        "Triton's: take stages of kernels from files, and share nothing",
    ),
    Variable("USE_IR_LOC", None, "Triton's: its own cache manager acts"),
    Variable(
        "CUDA_VISIBLE_DEVICES", None, "CUDA's: which devices there are, in which order; empty: none"
    ),
    Variable("CUDA_DEVICE_ORDER", "FASTEST_FIRST", "CUDA's: PCI_BUS_ID orders by bus address"),
)
