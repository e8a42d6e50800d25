"""Every exception that the public functions of gpucache raise on purpose.

GpuCacheError
├── ConfigurationError      a setting (argument or environment variable) that makes no sense
├── DiscoveryError          the node is sick: NVML answers, but not as a healthy machine would
├── NoDeviceError           real GPUs were required and this process has none
├── DeviceIndexError        an ordinal for which this process has no device
├── RecordError             the record of this host's devices is missing, torn, foreign or fake
├── UnsafeDirectoryError    another user could plant code in the cache
├── ProvisionError          a directory or file could not be made
├── LockTimeoutError        another process held a lock for too long
├── CacheMissError          a kernel is not cached, and compiling is forbidden
└── NoEntryError            no entry, or more than one, has a key that begins so
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Tried = Literal["make", "look at"]
    RecordReason = Literal[
        "missing", "unreadable", "torn", "foreign", "fake", "pin-unknown", "not-whole"
    ]


class GpuCacheError(Exception):
    """The base of what gpucache's public functions raise on purpose.

    ``problem`` names the path or value that is wrong, ``hint`` says what to do about it.
    Every error can be pickled, so that it survives the way back from a worker process.
    """

    def __init__(self, problem: str, hint: str, *args: object) -> None:
        # Not super().__init__: an OSError among the bases would read these as errno and strerror.
        pickled = args or (problem, hint)
        Exception.__init__(self, *pickled)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem}; {self.hint}"


class ConfigurationError(GpuCacheError, ValueError):
    """A setting has a value that makes no sense."""

    def __init__(self, name: str, value: str, expected: str) -> None:
        problem = f"{name}={_quoted(value)} is not {expected}"
        hint = f"correct or unset {name}"
        super().__init__(problem, hint, name, value, expected)
        self.name = name
        self.value = value
        self.expected = expected


_MOST_LETTERS = 200


def _quoted(value: str) -> str:
    """The value in quotes; of a very long one, which would bury the message, the beginning and the length."""
    if len(value) <= _MOST_LETTERS:
        return repr(value)
    return f"{value[:_MOST_LETTERS]!r} and so on ({len(value)} letters)"


class DiscoveryError(GpuCacheError, RuntimeError):
    """This node has, or should have, GPUs, but they cannot be enumerated."""

    def __init__(self, status: str, detail: str, advice: str, code: int | None = None) -> None:
        problem = f"GPUs cannot be enumerated ({status}): {detail}"
        super().__init__(problem, advice, status, detail, advice, code)
        self.status = status
        """The value of a `gpucache.Status`."""
        self.detail = detail
        self.advice = advice
        self.code = code
        """NVML's return code, where NVML gave one."""


class NoDeviceError(GpuCacheError, LookupError):
    """Real devices were required, and this process has none."""

    def __init__(self, status: str, detail: str, advice: str) -> None:
        problem = f"no GPU here ({status}): {detail}"
        super().__init__(problem, advice, status, detail, advice)
        self.status = status
        self.detail = detail
        self.advice = advice


class DeviceIndexError(GpuCacheError, IndexError):
    """This process has no device with that CUDA ordinal."""

    def __init__(self, ordinal: object, count: int, why: str | None = None) -> None:
        problem = f"no device with ordinal {ordinal!r}: this process has {_ordinals(count)}"
        if why:
            problem = f"{problem} ({why})"
        super().__init__(
            problem,
            "CUDA_VISIBLE_DEVICES, GPUCACHE_DEVICE and what was provisioned decide which devices a process has",
            ordinal,
            count,
            why,
        )
        self.ordinal = ordinal
        self.count = count
        self.why = why


def _ordinals(count: int) -> str:
    if count == 0:
        return "no device"
    if count == 1:
        return "only ordinal 0"
    return f"ordinals 0 to {count - 1}"


class RecordError(GpuCacheError, LookupError):
    """The devices of this host cannot be read from the record."""

    def __init__(
        self,
        path: str,
        reason: RecordReason,
        fact: str,
        hint: str = "run `gpucache provision` on this host, for this root",
    ) -> None:
        problem = f"{path}: {fact}"
        super().__init__(problem, hint, path, reason, fact, hint)
        self.path = path
        self.reason = reason
        """Why the record cannot be used. ``foreign``: it is another host's. ``fake``: its devices are made up, and this
        machine has the driver. ``pin-unknown``: it lacks the device that `GPUCACHE_DEVICE` names. ``not-whole``: this
        process does not see just the GPUs that the record lists."""
        self.fact = fact


class UnsafeDirectoryError(GpuCacheError, PermissionError):
    """Another user could plant code in a cache directory, and Triton and torch execute what they find there."""

    def __init__(self, path: str, fact: str, hint: str) -> None:
        problem = f"{path}: {fact}"
        super().__init__(problem, hint, path, fact, hint)
        self.path = path
        self.fact = fact


class ProvisionError(GpuCacheError, OSError):
    """The operating system refused to make something, or to look at what is there (``errno`` says why)."""

    def __init__(
        self, path: str, number: int, hint: str | None = None, tried: Tried = "make"
    ) -> None:
        problem = f"could not {tried} {path}: {os.strerror(number)}"
        super().__init__(problem, hint or _way_out(number, tried), path, number, hint, tried)
        self.path = path
        self.errno = number
        self.tried = tried
        """What the operating system refused: ``make``, or ``look at`` for what may be there, and cannot be seen."""


def _way_out(number: int, tried: Tried) -> str:
    """What to do about a refusal, by its errno and by what was tried."""
    if tried == "look at" and number in (errno.EACCES, errno.EPERM):
        return f"choose a root (--root, GPUCACHE_DIR) that uid {os.geteuid()} can enter, or chmod what it is in"
    if tried == "look at" and number == errno.ENAMETOOLONG:
        return "choose a shorter path"
    if tried == "look at":
        return "look at what it is mounted from, or choose another"
    if number == errno.EROFS:
        return "choose a root (--root, GPUCACHE_DIR) that is not mounted read-only"
    return "choose a root (--root, GPUCACHE_DIR) that this user can write, with space left"


class LockTimeoutError(GpuCacheError, TimeoutError):
    """A lock was still held by another process after the timeout."""

    def __init__(self, path: str, timeout_s: float, holder: str) -> None:
        super().__init__(
            f"could not lock {path} within {timeout_s:g} s: held by {holder}",
            "wait for that process, or stop it: its death frees the lock",
            path,
            timeout_s,
            holder,
        )
        self.path = path
        self.timeout_s = timeout_s
        self.holder = holder
        """The holder's process, its host and the time, as far as the lock file names them."""


class CacheMissError(GpuCacheError, LookupError):
    """A kernel is not in the cache, and `GPUCACHE_REQUIRE_HIT=1` forbids to compile it."""

    def __init__(self, kernel: str, key: str, looked: tuple[str, ...]) -> None:
        places = " nor in ".join(looked)
        super().__init__(
            f"kernel {kernel} with key {key} is not in {places}",
            "warm the cache with the same Triton, options and architecture, or unset GPUCACHE_REQUIRE_HIT",
            kernel,
            key,
            looked,
        )
        self.kernel = kernel
        self.key = key
        self.looked = looked


class NoEntryError(GpuCacheError, LookupError):
    """No cached entry has this key, or several begin with it."""

    def __init__(self, root: str, key: str, found: tuple[str, ...]) -> None:
        problem = f"no entry in {root} has a key that begins with {key!r}"
        hint = "look at `gpucache ls`, or choose another root (--root, GPUCACHE_DIR)"
        if found:
            some = ", ".join(found[:3])
            problem = (
                f"{len(found)} entries in {root} have keys that begin with {key!r}, such as {some}"
            )
            hint = "say more of the key"
        super().__init__(problem, hint, root, key, found)
        self.root = root
        self.key = key
        self.found = found
