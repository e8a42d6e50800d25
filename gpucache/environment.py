"""The table of every environment variable that gpucache reads: name, default, meaning, and how the value is read.

`gpucache config`, the page docs/environment.md (a test compares it) and every reader of a variable follow this one
table; no other module spells the name of one of these variables to read it.
"""

from __future__ import annotations

from gpucache.errors import ConfigurationError
from gpucache.escapes import without_secrets
from gpucache.values import Value

TYPE_CHECKING = False  # importing typing for it would double the cost of this module
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Generic, Literal, TypeVar

    T = TypeVar("T")
    LogFormat = Literal["text", "json"]
    InFile = Literal["text", "path", "number", "switch", "list", "keys"]
    """What a variable is in a file of settings: ``keys`` are a list of keys, or the path of a file of them."""

    class _Typed(Generic[T]):
        pass
else:
    T = None

    class _Typed:
        """What `typing.Generic` is to type checkers, without importing it."""

        def __class_getitem__(cls, _):
            return cls


class Variable(_Typed[T]):
    """One environment variable, whose value is a ``T``. Formatted as text, it is its name."""

    def __init__(
        self,
        name: str,
        default: T,
        meaning: str,
        parse: Callable[[str], T],
        *,
        default_text: str | None = None,
        ignored: bool = False,
        empty_is_set: bool = False,
        shown: Callable[[str], str] | None = None,
        in_file: InFile | None = None,
        in_root: bool = False,
    ) -> None:
        self.name = name
        self.default = default
        """The value of a variable that is not set."""
        self.meaning = meaning
        """What the variable decides, in one line."""
        self.parse = parse
        """Makes a value of a text. For a text that makes no sense it raises `ValueError`, whose message is what is
        expected."""
        self.default_text = default_text
        """The default as a person would write it; None where the variable has no default."""
        self.ignored = ignored
        """Whether only `read_or_default` reads the variable, so that a value that makes no sense stops no program."""
        self.empty_is_set = empty_is_set
        """Whether ``""`` is a value of this variable. Any other variable that is ``""`` counts as unset."""
        self.shown = shown or _text
        """Makes of a value the text that may be shown, where somebody could have put a secret into the value."""
        self.in_file = in_file
        """What the variable is in the user's or the system's file of settings; None where no file may hold it."""
        self.in_root = in_root
        """Whether a root's own file may hold the variable too: what bounds or stamps the root, and trusts nobody."""

    @property
    def name_in_file(self) -> str:
        """What the setting is called in files: ``max_size`` for `GPUCACHE_MAX_SIZE`."""
        return self.name.removeprefix(PREFIX).lower()

    def __str__(self) -> str:
        return self.name

    def text(self, environ: Mapping[str, str]) -> str | None:
        """The text that the environment gives the variable; None where the variable counts as unset."""
        text = environ.get(self.name)
        if text or self.empty_is_set:
            return text
        return None

    def read(self, environ: Mapping[str, str]) -> T:
        """The value that the environment gives the variable, or its default.

        Raises:
            ConfigurationError: the environment's text makes no sense.
        """
        text = self.text(environ)
        if text is None:
            return self.default
        try:
            return self.parse(text)
        except ValueError as error:
            expected = str(error)
            raise ConfigurationError(self.name, self.shown(text), expected) from None

    def read_or_default(self, environ: Mapping[str, str]) -> T:
        """The value as a kernel launch reads it: a text without sense is told once in the log, and counts as unset.

        Never raises.
        """
        try:
            return self.read(environ)
        except ConfigurationError as error:
            from gpucache.log import warn_once  # logging would be a third of a worker's start

            warn_once(error.problem, "ignored", f"it is {self.default_text or 'unset'}")
            return self.default


# ---- how a value is read


def _text(text: str) -> str:
    return text


def _path(text: str) -> str:
    if not text.strip():
        raise ValueError("the path of a directory")
    return text


def _file(text: str) -> str:
    if not text.strip():
        raise ValueError("the path of a file")
    return text


SECRET_KEY = "gpucache-secret-key"
"""How a secret key begins, as `gpucache keygen` writes it."""
_KEY_LETTERS = 43
"""So long is a key itself, at the end of such a line: 32 bytes as base64url."""


def _secret_file(text: str) -> str:
    """The path of a secret key's file; never the key, which CI systems keep as the text of a variable."""
    if _without_secret_key(text) != text:
        raise ValueError("the path of a file: write the key to one that its owner alone can read")
    return _file(text)


def _without_secret_key(text: str) -> str:
    """A text that may be a secret key where it should not, as may be shown.

    >>> _without_secret_key("gpucache-secret-key:ci:PN94B0"), _without_secret_key("/run/ci.key")
    ('gpucache-secret-key:***', '/run/ci.key')
    """
    if SECRET_KEY in text:
        return f"{SECRET_KEY}:***"
    end = text.strip().rpartition(":")[2]
    is_key = len(end) == _KEY_LETTERS and end.replace("-", "").replace("_", "").isalnum()
    return "***" if is_key else text


def _without_secret_keys(text: str) -> str:
    """As `_without_secret_key`, of a list in which public keys belong, which look alike but for the beginning."""
    return f"{SECRET_KEY}:***" if SECRET_KEY in text else text


def _keys(text: str) -> str:
    if not text.strip():
        raise ValueError("a list of public keys, or the path of a file of them")
    return text


def is_key_file(text: str) -> bool:
    """Whether a value of `GPUCACHE_TRUST_KEYS` is the path of a file of keys; else it is a list of them.

    No key and no name of one has a slash, and each ``NAME:KEY`` has a colon.

    >>> is_key_file("./ci.keys"), is_key_file("trusted"), is_key_file("ci:PN94B0…")
    (True, True, False)
    """
    return "/" in text or ":" not in text


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def _zero_or_always(text: str) -> bool:
    if text not in ("0", "always"):
        raise ValueError("0 or always")
    return text == "always"


def _triton_switch(text: str) -> bool:
    """Parse a switch of Triton's own: in any case of letters, all but five words turn it on."""
    return text.lower() not in ("", "0", "false", "off", "no")


def _not_empty(text: str) -> bool:
    return text != ""


_MOST_SECONDS = 1e9
"""Some thirty years: a clock and a wait of this length can still be added up without an overflow."""


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MOST_SECONDS:  # false for NaN too
        raise ValueError("a number of seconds")
    return seconds


def _seconds_to_wait(text: str) -> float:
    """Parse a time limit that `threading` can wait for."""
    import threading

    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise ValueError("a number of seconds above 0")
    return seconds


def _size(text: str) -> int:
    from gpucache.units import parse_size

    try:
        return parse_size(text)
    except ValueError:
        raise ValueError("a size like 20GiB, 500MB or 4096") from None


def _log_format(text: str) -> LogFormat:
    if text == "text":
        return "text"
    if text == "json":
        return "json"
    raise ValueError("text or json")


def _log_level(text: str) -> int:
    from gpucache.log import LEVELS, level_of

    level = level_of(text)
    if level is None:
        raise ValueError(" or ".join(LEVELS))
    return level


_MOST_UID = 2**32 - 2
"""The largest user id of Linux; the next number means none (`chown(2)`)."""


def _user_ids(text: str) -> frozenset[int]:
    parts = [part.strip() for part in text.split(",")]
    ids = [part for part in parts if part]
    if not all(map(_is_user_id, ids)):
        raise ValueError("a comma-separated list of user ids")
    return frozenset(map(int, ids))


def _groups(text: str) -> frozenset[int]:
    """Parse the names or numbers of groups."""
    parts = [part.strip() for part in text.split(",")]
    return frozenset(_gid(part) for part in parts if part)


_MOST_LETTERS = 256
"""A longer name has no group, whatever keeps the names."""


def _gid(name: str) -> int:
    if _is_user_id(name):  # the numbers of groups end where those of users do
        return int(name)
    import grp  # few settings name a group

    expected = "a comma-separated list of groups"
    if len(name) > _MOST_LETTERS:
        raise ValueError(f"{expected} that are here")
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{expected}; {name!r} is none here") from None


def _is_user_id(text: str) -> bool:
    is_number = text.isascii() and text.isdigit()
    # Python refuses to read thousands of digits.
    if not is_number or len(text) > len(str(_MOST_UID)):
        return False
    return int(text) <= _MOST_UID


def _url(text: str) -> str:
    scheme, colon, rest = text.partition("://")
    is_word = scheme.replace("+", "").isalnum() and scheme.isascii()
    if not (is_word and colon and rest and text.isprintable() and " " not in text):
        raise ValueError("a URL such as s3://bucket/prefix or file:///shared/directory")
    return text


_MOST_PACKS = 16


def _packs(text: str) -> tuple[str, ...]:
    """The names of packs, each once; what a name is `gpucache.remote.object_names` has in full."""
    names = [name for name in map(str.strip, text.split(",")) if name]
    if not names or len(names) > _MOST_PACKS or not all(map(_is_pack, names)):
        raise ValueError(f"a comma-separated list of packs by their names, {_MOST_PACKS} at most")
    return tuple(dict.fromkeys(names))


def _is_pack(name: str) -> bool:
    letters = name.replace(".", "").replace("-", "").replace("_", "")
    return len(name) <= 100 and name[0].isalnum() and letters.isalnum() and name.isascii()


def _caches(text: str) -> tuple[str, ...]:
    """The names of JIT caches, each once; which names there are `gpucache.layout.jit_caches` knows."""
    names = [name for name in map(str.strip, text.split(",")) if name]
    if not names:
        raise ValueError("all, none, or names that `gpucache caches` lists: flashinfer,tilelang")
    return tuple(dict.fromkeys(names))


class Fakes(Value):
    """The fake devices that `GPUCACHE_FAKE_DEVICES` asks for."""

    count: int
    name: str | None
    compute_capability: tuple[int, int] | None


_MOST_FAKES = 1024


def _fakes(text: str) -> Fakes:
    """Parse ``8``, or ``8xH100:9.0``: count, name and compute capability."""
    import re

    pattern = r"(\d{1,4})(?:x([^:]+))?(?::(\d{1,3})\.(\d{1,3}))?"
    match = re.fullmatch(pattern, text.strip(), re.ASCII)
    expected = f'a count up to {_MOST_FAKES} or like "8xH100:9.0"'
    if match is None:
        raise ValueError(expected)
    count, name, major, minor = match.groups()
    if not 1 <= int(count) <= _MOST_FAKES:
        raise ValueError(expected)
    capability = None
    if major is not None:
        capability = (int(major), int(minor))
    return Fakes(int(count), name, capability)


# ---- the table

PREFIX = "GPUCACHE_"
"""How the names of gpucache's own variables begin."""

OUR_MANAGER = "gpucache.triton:DeviceCacheManager"
"""The value of `TRITON_CACHE_MANAGER` that makes Triton use our plug-in."""

ROOT = Variable[str | None](
    "GPUCACHE_DIR",
    None,
    "the cache root; without it TORCHINDUCTOR_CACHE_DIR, else torch's default",
    _path,
    in_file="path",
)
PINNED_DEVICE = Variable[str | None](
    "GPUCACHE_DEVICE", None, "the UUID of this process's device", _text
)
FAKE_DEVICES = Variable[Fakes | None](
    "GPUCACHE_FAKE_DEVICES", None, "fake devices, anywhere: 8 or 8xH100:9.0", _fakes
)
DISABLE = Variable(
    "GPUCACHE_DISABLE",
    False,
    "1: nothing is made and nothing set, and the plug-in is stock Triton",
    _switch,
    default_text="0",
    in_file="switch",
)
TRUST_UIDS = Variable[frozenset[int]](
    "GPUCACHE_TRUST_UIDS",
    frozenset(),
    "other owners whose cache may be used: 1000,1001",
    _user_ids,
    in_file="list",
)
TRUST_GROUPS = Variable[frozenset[int]](
    "GPUCACHE_TRUST_GROUPS",
    frozenset(),
    "groups of whose shared roots every member's code may run: ml,1002",
    _groups,
    in_file="list",
)
TRUST_WORLD_WRITABLE = Variable(
    "GPUCACHE_TRUST_WORLD_WRITABLE",
    False,
    "1: accept a root that everybody may write",
    _switch,
    default_text="0",
    in_file="switch",
)
FALLBACK = Variable[str | None](
    "GPUCACHE_FALLBACK",
    None,
    "another root, only read, from which a miss copies what that has",
    _path,
    ignored=True,
    in_file="path",
)
SHARE = Variable[bool | None](
    "GPUCACHE_SHARE",
    None,
    "1: share a fresh directory too; 0: never share",
    _switch,
    ignored=True,
    in_file="switch",
)
VERIFY = Variable(
    "GPUCACHE_VERIFY",
    False,
    "always: check digests at every hit",
    _zero_or_always,
    default_text="0",
    ignored=True,
    in_file="text",
)
REQUIRE_HIT = Variable(
    "GPUCACHE_REQUIRE_HIT",
    False,
    "1: raise CacheMissError instead of compiling",
    _switch,
    default_text="0",
    ignored=True,
    in_file="switch",
)
STALL_TIMEOUT = Variable(
    "GPUCACHE_STALL_TIMEOUT_S",
    30.0,
    "how long to wait for a compile without a heartbeat",
    _seconds,
    default_text="30",
    ignored=True,
    in_file="number",
)
LOCK_TIMEOUT = Variable(
    "GPUCACHE_LOCK_TIMEOUT_S",
    300.0,
    "how long to wait for a compile in all",
    _seconds,
    default_text="300",
    ignored=True,
    in_file="number",
)
STAMP = Variable(
    "GPUCACHE_STAMP_S",
    300.0,
    "how often at most an entry's use is stamped",
    _seconds,
    default_text="300",
    ignored=True,
    in_file="number",
    in_root=True,
)
MAX_SIZE = Variable[int | None](
    "GPUCACHE_MAX_SIZE",
    None,
    "how large the store may grow: 20GiB; 0: no limit",
    _size,
    default_text="10% of the file system, at most 50GiB",
    ignored=True,
    in_file="number",
    in_root=True,
)
INDUCTOR_MAX_SIZE = Variable[int | None](
    "GPUCACHE_INDUCTOR_MAX_SIZE",
    None,
    "how large TorchInductor's code and graphs may grow: 10GiB; else unbounded",
    _size,
    ignored=True,
    in_file="number",
    in_root=True,
)
JIT_MAX_SIZE = Variable[int | None](
    "GPUCACHE_JIT_MAX_SIZE",
    None,
    "how large other JIT caches in the root may grow together: 20GiB; else unbounded",
    _size,
    ignored=True,
    in_file="number",
    in_root=True,
)
REMEMBER_KEY = Variable(
    "GPUCACHE_REMEMBER_KEY",
    False,
    "1: keep Triton's own key in the root, and hash its library no more",
    _switch,
    default_text="0",
    ignored=True,
    in_file="switch",
)
REMOTE = Variable[str | None](
    "GPUCACHE_REMOTE",
    None,
    "the URL of the remote that has what other machines compiled; ?mode=write puts there too",
    _url,
    shown=without_secrets,
    ignored=True,
    in_file="text",
)
REMOTE_TIMEOUT = Variable(
    "GPUCACHE_REMOTE_TIMEOUT_S",
    1.0,
    "how long a miss waits for the remote in all",
    _seconds_to_wait,
    default_text="1",
    ignored=True,
    in_file="number",
)
LOG = Variable[int | None](
    "GPUCACHE_LOG",
    None,
    "what of the log goes to stderr: debug, info, warning or error",
    _log_level,
    ignored=True,
    in_file="text",
)
LOG_FORMAT = Variable["LogFormat"](
    "GPUCACHE_LOG_FORMAT",
    "text",
    "how lines of the log look on stderr: text, or json with an object a line",
    _log_format,
    default_text="text",
    ignored=True,
    in_file="text",
    in_root=True,
)
SUMMARY = Variable(
    "GPUCACHE_SUMMARY",
    True,
    "0: a run on a terminal does not end with a line of what was compiled and taken",
    _switch,
    default_text="1",
    ignored=True,
    in_file="switch",
)
RECORD = Variable[str | None](
    "GPUCACHE_RECORD",
    None,
    "a file to which the recipes of all kernels that are asked for are appended",
    _file,
    ignored=True,
)
SIGN_KEY = Variable[str | None](
    "GPUCACHE_SIGN_KEY",
    None,
    "the file of the secret key that signs what is packed (`gpucache keygen`)",
    _secret_file,
    shown=_without_secret_key,
    in_file="path",
)
TRUST_KEYS = Variable[str | None](
    "GPUCACHE_TRUST_KEYS",
    None,
    "whose packs are believed: NAME:KEY,NAME:KEY, or a file of such lines",
    _keys,
    shown=_without_secret_keys,
    in_file="keys",
)
PACK = Variable[tuple[str, ...]](
    "GPUCACHE_PACK",
    (),
    "the packs that gpucache run pulls from the remote while the program starts: NAME,NAME",
    _packs,
    in_file="list",
)
CACHES = Variable[tuple[str, ...]](
    "GPUCACHE_CACHES",
    (),
    "the JIT caches that gpucache run and env put into the root: all, or flashinfer,tilelang",
    _caches,
    in_file="list",
)
NVML_TIMEOUT = Variable(
    "GPUCACHE_NVML_TIMEOUT_S",
    10.0,
    "how long NVML may take",
    _seconds_to_wait,
    default_text="10",
    in_file="number",
)
SET_BY_RUN = Variable[str | None](
    "GPUCACHE_SET",
    None,
    "the variables that gpucache run set, with a checksum of each",
    _text,
)
INDUCTOR_ROOT = Variable[str | None](
    "TORCHINDUCTOR_CACHE_DIR",
    None,
    "torch's: where TorchInductor caches, and the root without GPUCACHE_DIR",
    _text,
)
TRITON_DIRECTORY = Variable[str | None](
    "TRITON_CACHE_DIR", None, "Triton's: the device directory of this process", _text
)
TRITON_HOME = Variable[str | None](
    "TRITON_HOME",
    None,
    "Triton's: where .triton/cache is without TRITON_CACHE_DIR; else the home",
    _text,
)
MANAGER = Variable[str | None](
    "TRITON_CACHE_MANAGER", None, f"Triton's: the plug-in is {OUR_MANAGER}", _text
)
PYTHON_PATH = Variable[str | None](
    "PYTHONPATH", None, "Python's: gpucache run puts first what turns the plug-in on", _text
)
ALWAYS_COMPILE = Variable(
    "TRITON_ALWAYS_COMPILE",
    False,
    "Triton's: compile whatever is cached, and share nothing",
    _triton_switch,
)
OVERRIDE = Variable(
    "TRITON_KERNEL_OVERRIDE",
    False,
    "Triton's: take stages of kernels from files, and share nothing",
    _triton_switch,
)
USE_IR_LOC = Variable("USE_IR_LOC", False, "Triton's: its own cache manager acts", _not_empty)
VISIBLE_DEVICES = Variable[str | None](
    "CUDA_VISIBLE_DEVICES",
    None,
    "CUDA's: which devices there are, in which order; empty: none",
    _text,
    empty_is_set=True,
)
DEVICE_ORDER = Variable(
    "CUDA_DEVICE_ORDER",
    "FASTEST_FIRST",
    "CUDA's: PCI_BUS_ID orders by bus address",
    _text,
    default_text="FASTEST_FIRST",
)

_so_far = tuple(globals().values())
VARIABLES = tuple(value for value in _so_far if isinstance(value, Variable))
"""The whole table, in the order above."""

LINE_INFO = "TRITON_DISABLE_LINE_INFO"
"""A variable of Triton's, part of each kernel's key. gpucache does not read it: `gpucache.diagnosis.difference` tells
whether two kernels were compiled with the same value."""

KERNEL_DUMP = "TRITON_KERNEL_DUMP"
INTERPRET = "TRITON_INTERPRET"
"""Variables of Triton's with which nothing is shared, or nothing compiled. gpucache does not read them: a process that
compiles recipes does without them (`gpucache.warm.replay.in_process`)."""

TOOLKITS = ("CUDA_HOME", "CUDA_PATH")
"""Variables by which other software finds a toolkit of CUDA: a disassembler is looked for there
(`gpucache.diagnosis.disassembly`)."""

BY_BUS = "PCI_BUS_ID"
"""The value of `CUDA_DEVICE_ORDER` with which CUDA counts the GPUs by their bus addresses."""


# ---- by what the user has turned the sharing off


class TurnedOff(Value):
    """A variable by which the user has kept kernels from being shared; unset, they are shared."""

    name: str
    value: str
    consequence: str


def turned_off(environ: Mapping[str, str]) -> list[TurnedOff]:
    """All by which the user has kept kernels from being shared, perhaps long ago.

    That is told where somebody asks (`run`, `doctor`, `stats`, `GPUCACHE_LOG=info`), and never warned of.
    """
    alone = "each rank compiles each kernel"
    consequences = (
        (DISABLE, DISABLE.read_or_default(environ), "nothing of gpucache acts"),
        (SHARE, SHARE.read_or_default(environ) is False, alone),
        (
            ALWAYS_COMPILE,
            ALWAYS_COMPILE.read(environ),
            "every kernel is compiled, whatever is cached",
        ),
        (OVERRIDE, OVERRIDE.read(environ), "every kernel is compiled, whatever is cached"),
        (USE_IR_LOC, USE_IR_LOC.read(environ), f"Triton's own cache manager acts, and {alone}"),
    )
    found = []
    for variable, is_off, consequence in consequences:
        if is_off:
            found.append(TurnedOff(variable.name, environ[variable.name], consequence))
    return found


# ---- what `gpucache run` set


def mark(name: str, value: str) -> str:
    """What `GPUCACHE_SET` holds for one variable: its name, and a checksum of the value that `gpucache run` set."""
    import os
    import zlib

    return f"{name}:{zlib.crc32(os.fsencode(value)):08x}"


def was_set_by_run(name: str, environ: Mapping[str, str]) -> bool:
    """Whether `gpucache run` set the variable, and nobody has changed its value since."""
    if name not in environ:
        return False
    marks = SET_BY_RUN.text(environ) or ""
    return mark(name, environ[name]) in marks.split(",")
