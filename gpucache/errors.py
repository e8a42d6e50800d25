"""Every exception that the public functions of gpucache raise on purpose.

GpuCacheError
├── ConfigurationError      a setting (argument or environment variable) that makes no sense
├── DiscoveryError          the node is sick: NVML answers, but not as a healthy machine would
├── NoDeviceError           real GPUs were required and this process has none
├── DeviceIndexError        an ordinal for which this process has no device
├── DeviceNameError         no device of this process, or more than one, has a UUID that begins so
├── TooLateError            `gpucache.use` after this process has cached a kernel or a graph elsewhere
├── RecordError             the record of this host's devices is missing, torn, foreign or fake
├── UnsafeDirectoryError    another user could plant code in the cache
├── SharingError            with whom a root is shared cannot be changed, or not so
├── NoRootError             what was named as a cache root is not there, or is no cache
├── ProvisionError          a directory or file could not be made, or not be looked at
├── LockTimeoutError        another process held a lock for too long
├── CacheMissError          a kernel is not cached, and compiling is forbidden
├── NotCachedError          a filter names an architecture, a directory or a kernel of which nothing is cached
├── NoEntryError            no entry, or more than one, has a key that begins so
├── NoArtefactError         an entry has no file of the form that was asked for (ptx, ttgir)
├── RecipesError            a file of recipes that was named cannot be read
└── NotInstalledError       a library of an extra (`remote`, `demo`, …) is missing
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Tried = Literal["make", "look at", "write", "lock", "share"]
    NotShared = Literal[
        "no-such-group",
        "not-a-member",
        "not-the-owner",
        "no-modes",
        "no-groups",
        "at-work",
    ]
    NoRoot = Literal["missing", "dangling", "no-directory", "no-cache", "device-directory"]

    ErrorKind = Literal[
        "configuration",
        "discovery",
        "no-device",
        "no-such-device",
        "too-late",
        "record",
        "unsafe",
        "no-root",
        "refused",
        "locked",
        "miss",
        "no-entry",
        "recipes",
        "not-installed",
        "not-cached",
        "sharing",
        "pack-name",
        "pack-there",
        "bad-pack",
        "bad-key",
        "bad-recipes",
        "pool",
        "remote",
        "remote-url",
        "no-remote",
        "not-there",
        "nothing-signs",
        "nobody-trusted",
        "failure",
        "usage",
        "system",
        "defect",
    ]
    """What kind of error a command ended with, as ``--json`` tells; the last three have no class here: wrong usage,
    what the operating system refused, and what no part of gpucache expected."""

    Cached = Literal["kernel", "graph", "compile-workers", "jit-cache"]

    RecordReason = Literal[
        "missing", "unreadable", "torn", "foreign", "fake", "pin-unknown", "not-whole"
    ]


class GpuCacheError(Exception):
    """The base of what gpucache's public functions raise on purpose.

    ``problem`` names the path or value that is wrong, ``hint`` says what to do about it; that is empty where nothing is
    to be done but to name something else.
    Every error can be pickled, so that it survives the way back from a worker process.
    """

    error_kind: ErrorKind = "failure"
    """By which a program that reads a command's JSON tells errors apart."""

    def __init__(self, problem: str, hint: str, *args: object) -> None:
        # Not super().__init__: an OSError among the bases would read these as errno and strerror.
        pickled = args or (problem, hint)
        Exception.__init__(self, *pickled)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem}; {self.hint}" if self.hint else self.problem


class ConfigurationError(GpuCacheError, ValueError):
    """A setting has a value that makes no sense."""

    error_kind: ErrorKind = "configuration"

    def __init__(self, name: str, value: str, expected: str, hint: str = "") -> None:
        problem = f"{name}={shortened(value)} is not {expected}"
        usual_hint = f"correct or unset {name}"
        if name.startswith("--"):
            usual_hint = f"correct {name}, or leave it out"
            self.error_kind = "usage"
        super().__init__(problem, hint or usual_hint, name, value, expected, hint)
        self.name = name
        self.value = value
        self.expected = expected


_MOST_LETTERS = 200
_MOST_NAMES = 10
"""So many names an error lists at most."""


def shortened(value: str) -> str:
    """The value in quotes; of a very long one, which would bury the message, the beginning and the length."""
    if len(value) <= _MOST_LETTERS:
        return repr(value)
    return f"{value[:_MOST_LETTERS]!r} and so on ({len(value)} letters)"


class DiscoveryError(GpuCacheError, RuntimeError):
    """This node has, or should have, GPUs, but they cannot be enumerated."""

    error_kind = "discovery"

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

    error_kind = "no-device"

    def __init__(self, status: str, detail: str, advice: str) -> None:
        problem = f"no GPU here ({status}): {detail}"
        super().__init__(problem, advice, status, detail, advice)
        self.status = status
        self.detail = detail
        self.advice = advice


class DeviceIndexError(GpuCacheError, IndexError):
    """This process has no device with that CUDA ordinal."""

    error_kind = "no-such-device"

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


class DeviceNameError(GpuCacheError, LookupError):
    """This process has no device with that UUID, or several whose UUIDs begin so."""

    error_kind = "no-such-device"

    def __init__(
        self, name: str, found: tuple[str, ...], there: tuple[str, ...], hidden: bool = False
    ) -> None:
        named = ", ".join(there[:_MOST_NAMES])
        problem = f"no device has the UUID {name!r}, or one that begins so"
        hint = f"there is {named}" if there else "this process has no device"
        if hidden:
            problem = f"this process does not see the device {name!r}"
            hint = f"{hint}; CUDA_VISIBLE_DEVICES and GPUCACHE_DEVICE decide which devices a process has"
        elif found:
            problem = f"{len(found)} devices have UUIDs that begin with {name!r}"
            hint = f"say more of one of {', '.join(found[:_MOST_NAMES])}"
        super().__init__(problem, hint, name, found, there, hidden)
        self.name = name
        self.found = found
        """The UUIDs that begin so, where they are several."""
        self.there = there
        """The UUIDs of this process's devices."""
        self.hidden = hidden
        """Whether the machine has the device, and this process is not to see the device."""


def _ordinals(count: int) -> str:
    if count == 0:
        return "no device"
    if count == 1:
        return "only ordinal 0"
    return f"ordinals 0 to {count - 1}"


class TooLateError(GpuCacheError, RuntimeError):
    """`gpucache.use` was called after this process, or the one it was forked of, had cached something elsewhere."""

    error_kind = "too-late"

    def __init__(self, ordinal: int, what: Cached, where: str) -> None:
        facts = {
            "kernel": f"Triton has a kernel in this process, cached in {where}",
            "graph": f"TorchInductor has a graph in this process, cached in {where}",
            "compile-workers": "TorchInductor has started its compile workers, without the plug-in",
            "jit-cache": f"{where} was imported in this process, and has read where to cache",
        }
        super().__init__(
            f"gpucache.use({ordinal}) comes too late: {facts[what]}",
            "call it as the first thing that a worker does, in a process that is spawned, or forked before the first "
            "kernel; or start the worker with the variables of `DeviceCacheRegistry.environ`",
            ordinal,
            what,
            where,
        )
        self.ordinal = ordinal
        self.what = what
        """What there is: a ``kernel`` or a ``graph`` in memory, TorchInductor's ``compile-workers``, which lack the
        plug-in, or a module that has read where to cache (``jit-cache``)."""
        self.where = where


class RecordError(GpuCacheError, LookupError):
    """The devices of this host cannot be read from the record."""

    error_kind = "record"

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

    error_kind = "unsafe"

    def __init__(self, path: str, fact: str, hint: str) -> None:
        problem = f"{path}: {fact}"
        super().__init__(problem, hint, path, fact, hint)
        self.path = path
        self.fact = fact


class NoRootError(GpuCacheError, LookupError):
    """What was named as a cache root is not there, is no directory, or has nothing of a cache in it."""

    error_kind = "no-root"

    def __init__(
        self,
        root: str,
        reason: NoRoot,
        named: str | None = None,
        above: str | None = None,
    ) -> None:
        name = os.path.basename(root)
        facts = {
            "missing": f"there is no {root}",
            "dangling": f"{root} is a symbolic link that leads nowhere",
            "no-directory": f"{root} is no directory",
            "no-cache": f"{root} is no cache: nothing in it is gpucache's, Triton's or TorchInductor's",
            "device-directory": f"{root} is not a root, but the directory of device {name} in {above}",
        }
        import shlex  # not at a start

        correct = f"correct {named or 'the root'}"
        missing = f"{correct}, or make it: `gpucache provision --root {shlex.quote(root)}`"
        if "*" in root:
            missing = "name one root: only `gpucache prune` takes a pattern"
        hints = {
            "missing": missing,
            "dangling": f"{correct}, or make what the link leads to",
            "no-directory": correct,
            "no-cache": "",
            "device-directory": f"name the root, {above}",
        }
        super().__init__(facts[reason], hints[reason], root, reason, named, above)
        self.root = root
        self.reason = reason
        self.named = named
        """The option or variable that named the root; None where that was an argument, or nobody."""
        self.above = above
        """The root that a device directory belongs to."""


_ELSEWHERE = "choose another root (--root, GPUCACHE_DIR)"
_WAYS_OUT = {
    errno.ENOENT: "its file system makes no directories there: choose a root (--root, GPUCACHE_DIR) elsewhere",
    errno.EROFS: f"mount it writable, or {_ELSEWHERE}; what is cached there is used all the same",
    errno.ENOSPC: f"make room (`df -h` and `df -i` tell what is full, `gpucache prune` removes), or {_ELSEWHERE}",
    errno.EDQUOT: f"this user's quota is used up (`quota -s`): make room (`gpucache prune`), or {_ELSEWHERE}",
    errno.ENAMETOOLONG: "choose a root with a shorter path (--root, GPUCACHE_DIR)",
    errno.ELOOP: f"links on the way lead in a circle (`namei -l` shows them): remove one, or {_ELSEWHERE}",
    errno.EMFILE: "this process may open no more files: raise its limit (`ulimit -n`)",
    errno.ENFILE: "the machine may open no more files: raise its limit (`sysctl fs.file-max`)",
    errno.ENOMEM: "the machine or this container has no memory left: free some, or raise its limit",
    errno.ENOTDIR: f"something on the way is no directory: move that away, or {_ELSEWHERE}",
    errno.EEXIST: f"move that away, or {_ELSEWHERE}",
    errno.EIO: f"the disk or its server fails: look at `dmesg`, or {_ELSEWHERE}",
    errno.ESTALE: f"the file server has lost it: mount it anew, or {_ELSEWHERE}",
}
"""The way out of each error number that has one of its own."""


class ProvisionError(GpuCacheError, OSError):
    """The operating system refused to make something, or to let it be looked at (``errno`` says why)."""

    error_kind = "refused"

    def __init__(
        self, path: str, number: int, hint: str | None = None, tried: Tried = "make"
    ) -> None:
        problem = f"could not {tried} {path}: {os.strerror(number)}"
        usual_hint = _WAYS_OUT.get(
            number, "choose a root (--root, GPUCACHE_DIR) that this user can write"
        )
        super().__init__(problem, hint or usual_hint, path, number, hint, tried)
        self.path = path
        self.errno = number
        self.tried = tried
        """What was refused."""


class LockTimeoutError(GpuCacheError, TimeoutError):
    """A lock was still held by another process after the timeout."""

    error_kind = "locked"

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

    error_kind = "miss"

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


_NO_SIGNS = dict.fromkeys(map(ord, "_-."))
"""What is not looked at in a name that a shell takes as it is."""


class NoEntryError(GpuCacheError, LookupError):
    """No cached entry has this key, or several begin with it."""

    error_kind = "no-entry"

    def __init__(
        self,
        root: str,
        key: str,
        found: tuple[str, ...],
        is_kernel: bool = False,
        is_empty: bool = False,
    ) -> None:
        problem = f"no entry in {root} has a key that begins with {key!r}"
        hint = "look at `gpucache ls`, or choose another root (--root, GPUCACHE_DIR)"
        if is_empty:
            problem = f"nothing is cached in {root}, and so nothing called {key!r}"
            hint = (
                "`gpucache run -- python train.py` caches what it compiles; "
                "--root, GPUCACHE_DIR choose another root"
            )
        elif is_kernel:
            hint = f"that is a kernel's name: `gpucache ls --kernel {key}` shows its keys"
        elif key.translate(_NO_SIGNS).isalnum():
            named = f"`gpucache ls --kernel '*{key}*'` looks for a kernel's name"
            hint = (
                f"`gpucache ls` lists keys, and {named}; --root, GPUCACHE_DIR choose another root"
            )
        if found:
            some = ", ".join(found[:3])
            problem = (
                f"{len(found)} entries in {root} have keys that begin with {key!r}, such as {some}"
            )
            hint = "say more of the key"
        super().__init__(problem, hint, root, key, found, is_kernel, is_empty)
        self.root = root
        self.key = key
        self.found = found
        self.is_kernel = is_kernel
        """Whether the store has a kernel of this name."""


class NoArtefactError(GpuCacheError, LookupError):
    """An entry has no file of the form that was asked for, such as ``ptx``."""

    error_kind = "no-entry"

    def __init__(self, kernel: str, key: str, form: str, there: tuple[str, ...]) -> None:
        hint = f"there is {', '.join(there)}" if there else ""
        if "cubin" in there and "ptx" not in there:
            hint += "; its texts were removed (`prune --keep-binaries`)"
        super().__init__(f"{kernel} {key} has no {form}", hint, kernel, key, form, there)
        self.kernel = kernel
        self.key = key
        self.form = form
        self.there = there
        """What there is."""


A_RECIPE_FILE = "name a file that `gpucache recipe` or `gpucache run --record` has written"
"""The way out where what was named is no file of recipes."""


class RecipesError(GpuCacheError, ValueError):
    """A file of recipes that was named cannot be read, or none was named where one is needed."""

    error_kind = "recipes"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}", A_RECIPE_FILE, path, reason)
        self.path = path
        self.reason = reason


LIBRARIES = {
    "demo": "triton",
    "remote": "opendal redis zstandard cryptography",
    "watch": "prometheus-client jinja2 matplotlib",
}
"""The libraries of each extra that a command may miss (`pyproject.toml`), as a person installs them.

Not the extra by name: gpucache is on no index, and whoever takes its name there would have their code installed.
"""


class NotInstalledError(GpuCacheError, ImportError):
    """A library of an extra is missing that a command needs: by default one of packs and remotes."""

    error_kind = "not-installed"

    def __init__(
        self, module: str, why: str = "packs and remotes need it", extra: str = "remote"
    ) -> None:
        super().__init__(
            f"the library {module} is not installed, and {why}",
            f"pip install {LIBRARIES[extra]}",
            module,
            why,
            extra,
        )
        self.module = module
        self.extra = extra


class NotCachedError(GpuCacheError, LookupError):
    """A filter names something of which nothing is cached: an architecture, a device directory, a kernel."""

    error_kind = "not-cached"

    def __init__(
        self,
        root: str,
        option: str,
        value: str,
        there: tuple[str, ...],
        wider: str | None = None,
    ) -> None:
        named = ", ".join(there[:_MOST_NAMES])
        left = len(there) - _MOST_NAMES
        more = f" and {left} more" if left > 0 else ""
        hint = f"there is {named}{more}"
        if wider is not None:
            hint = f"{option} {wider!r} names some; {hint}"
        problem = f"nothing cached in {root} has {option} {value!r}"
        super().__init__(problem, hint, root, option, value, there, wider)
        self.root = root
        self.option = option
        self.value = value
        self.there = there
        """What there is, the most like ``value`` first."""
        self.wider = wider
        """A pattern that names some of what there is, and means perhaps what was meant."""


class SharingError(GpuCacheError, PermissionError):
    """With whom a root is shared cannot be changed, or not so; nothing was changed."""

    error_kind = "sharing"

    def __init__(self, root: str, reason: NotShared, fact: str, hint: str) -> None:
        super().__init__(f"{root}: {fact}", hint, root, reason, fact, hint)
        self.root = root
        self.reason = reason
        self.fact = fact
