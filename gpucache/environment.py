"""Every environment variable that gpucache reads: its name, its default, and how its value is read."""

from __future__ import annotations

from gpucache.errors import ConfigurationError, GpuCacheError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


SET_BY_US = "GPUCACHE_SET"


TRUST_UIDS = "GPUCACHE_TRUST_UIDS"


TRUST_WORLD_WRITABLE = "GPUCACHE_TRUST_WORLD_WRITABLE"


def is_on(environ: Mapping[str, str], name: str) -> bool:
    """A switch: ``1`` is on, ``0``, empty and unset are off.

    Raises:
        ConfigurationError: any other value.
    """
    value = environ.get(name) or "0"
    if value not in ("0", "1"):
        raise ConfigurationError(name, value, "0 or 1")
    return value == "1"


ROOT = "GPUCACHE_DIR"


INDUCTOR_ROOT = "TORCHINDUCTOR_CACHE_DIR"


TRITON_DIRECTORY = "TRITON_CACHE_DIR"


PINNED_DEVICE = "GPUCACHE_DEVICE"


DISABLE = "GPUCACHE_DISABLE"


MANAGER = "TRITON_CACHE_MANAGER"


OUR_MANAGER = "gpucache.triton:DeviceCacheManager"


FAKE_DEVICES = "GPUCACHE_FAKE_DEVICES"


NVML_TIMEOUT = "GPUCACHE_NVML_TIMEOUT_S"


_DEFAULT_TIMEOUT_S = 10.0


def nvml_timeout_s(environ: Mapping[str, str]) -> float:
    """How long NVML may take, in seconds.

    Raises:
        ConfigurationError: `GPUCACHE_NVML_TIMEOUT_S` makes no sense.
    """
    from threading import TIMEOUT_MAX  # who asks NVML has imported it, and a worker does not

    text = environ.get(NVML_TIMEOUT) or str(_DEFAULT_TIMEOUT_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= TIMEOUT_MAX:
        raise ConfigurationError(NVML_TIMEOUT, text, "a number of seconds above 0")
    return seconds


VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


DEVICE_ORDER = "CUDA_DEVICE_ORDER"


MAX_SIZE = "GPUCACHE_MAX_SIZE"


DEFAULT_MAX_SIZE = "10% of the file system, at most 50GiB"


SHARE = "GPUCACHE_SHARE"


VERIFY = "GPUCACHE_VERIFY"


REQUIRE_HIT = "GPUCACHE_REQUIRE_HIT"


STALL_TIMEOUT = "GPUCACHE_STALL_TIMEOUT_S"


LOCK_TIMEOUT = "GPUCACHE_LOCK_TIMEOUT_S"


STAMP = "GPUCACHE_STAMP_S"


STALL_S = 30.0
"""How long a compile may go without a heartbeat, unless `GPUCACHE_STALL_TIMEOUT_S` says otherwise."""


def said(environ: Mapping[str, str], name: str, word: str) -> bool:
    """Whether a variable has this one value; another than that, ``0`` or none is told once, and counts as unset."""
    value = environ.get(name) or "0"
    if value not in (word, "0"):
        from gpucache.log import warn_once  # logging would be a third of a worker's start

        warn_once(f"{name}={value} is not {word!r}", "ignored", "going on without it")
    return value == word


def seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    """A variable's number of seconds; what is none is told once, and counts as unset."""
    text = environ.get(name) or ""
    try:
        seconds = float(text or default)
    except ValueError:
        seconds = -1.0
    if 0 <= seconds < float("inf"):
        return seconds
    from gpucache.log import warn_once

    warn_once(f"{name} is not a number of seconds", text, f"it is {default:g}")
    return default


def disabled(environ: Mapping[str, str]) -> bool:
    """Whether `GPUCACHE_DISABLE` makes the plug-in step aside; a value that makes no sense does not."""
    try:
        return is_on(environ, DISABLE)
    except GpuCacheError as error:
        from gpucache.log import warn_once

        warn_once("ignored", error, "caching as without it")
        return False
