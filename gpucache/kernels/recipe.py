"""The recipe of a kernel: all by which another process can compile it again, for the same or another architecture.

A recipe is one line of JSON, in the file of an entry and in a file of recipes (`gpucache.kernels.recipe_lines`). What
it says may have been written by anybody: `from_text` checks the type, the length and the letters of everything, and
imports nothing.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from gpucache.errors import GpuCacheError
from gpucache.kernels.decoding import BadEncoding, as_function, as_name, check
from gpucache.kernels.decoding import Make as Make
from gpucache.kernels.decoding import decode as decode
from gpucache.kernels.encoding import MOST_DEPTH
from gpucache.kernels.encoding import Function as Function
from gpucache.kernels.encoding import Unencodable as Unencodable
from gpucache.kernels.encoding import encode as encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from gpucache.kernels.encoding import Encoded

MOST_BYTES = 2**20
"""A longer recipe is none, and is neither written nor read."""

Path = tuple[int, ...]
"""Which argument of a kernel is meant: ``(2,)`` is the third parameter, ``(2, 0)`` the first in its tuple."""


class Target(NamedTuple):
    """What a kernel was compiled for, as Triton's `GPUTarget`."""

    backend: str
    """``cuda`` or ``hip``."""
    arch: int | str
    """The compute capability as a number (90), or the name of the architecture (``gfx942``)."""
    warp_size: int

    def __str__(self) -> str:
        return f"sm_{self.arch}" if type(self.arch) is int else str(self.arch)


class Global(NamedTuple):
    """A value that the kernel, or a function that it calls, reads, and that is no argument.

    A global variable, one of another module or of a class, the default of a parameter of a function that is called,
    the value of an enum's member. Only constexpr objects among the kernel's own global variables are part of Triton's
    key (3.6.0 and 3.9.0 `runtime/jit.py` `cache_key`; in 3.2.0 and 3.4.0 none), though each may decide what code is
    made. So a process in which one differs, as one that has no GPU may, must not compile under the recorded key.
    """

    module: str
    """The module whose variable it is; ``""`` for one of an enclosing function."""
    name: str
    """``STEP``; ``Config.STEP`` in a class; ``function(n)`` for the default of a parameter."""
    value: Encoded
    """Encoded; of a value that cannot be encoded ``{"unencoded": "module.qualname of its type"}``, of a class
    ``{"unencoded": "class module.qualname"}``: what is read of that stands by itself."""


class Recipe(NamedTuple):
    """What one call of Triton's `compile` was given, but for what its version and the architecture decide.

    Of the given values only plain ones stand here; what else there was is encoded (`gpucache.kernels.encoding`).
    """

    key: str
    """Triton's key, by which the kernel was asked for."""
    triton_version: str
    kernel: str
    """The name of the kernel, whole; the files of its entry are named after the first 150 letters."""
    function: Function
    target: Target
    signature: Mapping[str, Encoded]
    """The type of each parameter by its name: a text such as ``*fp32``, ``i32``, ``constexpr``; of an argument that is
    a tuple a tuple or named tuple of such, encoded. Triton 3.2 has no types of parameters that are constant."""
    constants: tuple[tuple[Path, Encoded], ...]
    """The values of the parameters that are constant."""
    specialized: tuple[tuple[Path, tuple[tuple[str, int], ...]], ...]
    """What was found out about arguments, in the order in which Triton has it: ``((0,), (("tt.divisibility", 16),))``.

    Of a launch only of those that are not constant, nor below one that is: there Triton's versions differ. An argument
    about which nothing was found out, and one that was not looked at, are not the same: the one stands here with an
    empty tuple, the other does not. Triton 3.2 says only what was found, and of ints ``("tt.equal_to", 1)``, which in
    later versions are constants.
    """
    options: Mapping[str, Encoded]
    """The backend's options that differ from its own for the target, and those that the launch named itself.

    No ``arch``, ``backend_name``, ``extern_libs``.
    """
    variables: Mapping[str, str]
    """The environment variables that are part of the key, in Triton's form (``true``, ``false`` or the text)."""
    launched: bool = True
    """Whether a launch of the function asked for it; else a source was made by hand, as TorchInductor's are, and
    ``specialized`` is word by word what stood there."""
    globals: tuple[Global, ...] = ()
    """What the function and those it calls read beside arguments; global variables as Triton had hashed them."""
    source: str | None = None
    """The text of the function's module, where its file is temporary and of TorchInductor's making."""


class BadRecipe(GpuCacheError, ValueError):
    """Bytes that are no recipe: ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no recipe: {reason}", "", reason)
        self.reason = reason


# ---- writing


_encode_json = json.JSONEncoder(separators=(",", ":")).encode


def to_text(recipe: Recipe) -> bytes:
    """The recipe as one line of JSON, in ASCII and without an end of line. Its key comes first, for `key_in`.

    Raises:
        Unencodable: `from_text` would refuse the line: the recipe is too long, or holds what cannot be shown.
    """
    text = _encode_json(recipe._asdict()).encode()
    if len(text) > MOST_BYTES:
        raise Unencodable(f"a recipe of more than {MOST_BYTES} bytes")
    return text


# ---- reading

_KEY = r"[A-Za-z0-9_=-]{16,128}"
_FIRST = re.compile(rf'\{{[ \t]*"key"[ \t]*:[ \t]*"({_KEY})"[ \t]*,'.encode())


def key_in(data: bytes) -> str | None:
    """Triton's key in a line, where that is its first field, from its first bytes; else None. Checks nothing else."""
    match = _FIRST.match(data)
    return None if match is None else match[1].decode()


def from_text(data: bytes, for_people: bool = False) -> Recipe:
    """Read a recipe, whoever wrote it. Fields that are unknown are passed over.

    ``for_people``: without ``specialized`` and ``globals``, which only a replay needs, and which cost half of the time.

    Raises:
        BadRecipe: it is none.
    """
    said = _decoded(data)
    if for_people:
        said |= {"specialized": [], "globals": []}
    try:
        recipe = _recipe(said)
    except KeyError as error:
        raise BadRecipe(f"it has no {error.args[0]}") from None
    except BadEncoding as error:
        raise BadRecipe(error.reason) from None
    if key_in(data) != recipe.key:
        raise BadRecipe("the key is not its first field")
    return recipe


def _decoded(data: bytes) -> dict[str, Any]:
    if len(data) > MOST_BYTES:
        raise BadRecipe(f"more than {MOST_BYTES} bytes")
    try:
        said = json.loads(data, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadRecipe(_why_no_json(error)) from None
    if type(said) is not dict:
        raise BadRecipe("it is no JSON object")
    return said


def _why_no_json(error: Exception) -> str:
    if isinstance(error, BadRecipe):
        return error.reason
    if isinstance(error, RecursionError):
        return "nested too deep"
    return "it is no JSON"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose fields each stand once: of two with one name, two readers could take different ones."""
    said = dict(pairs)
    if len(said) != len(pairs):
        raise BadRecipe("a field stands twice")
    return said


def _no_constant(name: str) -> None:
    raise BadRecipe(f"a number {name}")


def _recipe(said: Mapping[str, Any]) -> Recipe:
    """Make a recipe of the fields of a JSON object.

    Raises:
        KeyError: a field is missing.
        BadRecipe: a field is not what it should be.
        BadEncoding: a value is not what `encode` makes.
    """
    return Recipe(
        key=_matching(said["key"], _KEY, "the key"),
        triton_version=as_name(said["triton_version"]),
        kernel=as_name(said["kernel"]),
        function=as_function(said["function"]),
        target=_target(said["target"]),
        signature=_by_name(said["signature"], "signature", _encoded),
        constants=_by_path(said["constants"], "constants", _encoded),
        specialized=_by_path(said["specialized"], "specialized", _properties),
        options=_by_name(said["options"], "options", _encoded),
        variables=_variables(said["variables"]),
        launched=_truth(said["launched"]),
        globals=_globals(said["globals"]),
        source=_source(said.get("source")),
    )


def _encoded(value: object) -> Encoded:
    check(value)
    return value  # type: ignore[return-value]


def _matching(value: object, pattern: str, what: str) -> str:
    if type(value) is not str or not re.fullmatch(pattern, value):
        raise BadRecipe(f"{what} is none")
    return value


_MOST_NUMBER = 2**31


def _is_number(value: object) -> bool:
    """Whether this is a whole number as Triton has for sizes and places."""
    return type(value) is int and 0 <= value < _MOST_NUMBER


def _target(said: object) -> Target:
    if type(said) is not list or len(said) != 3:
        raise BadRecipe("the target is no list of three")
    backend, arch, warp_size = said
    if type(arch) is not int:
        _matching(arch, r"[A-Za-z0-9_.:+-]{1,64}", "the architecture")
    elif not _is_number(arch):
        raise BadRecipe("the architecture is none")
    if not _is_number(warp_size):
        raise BadRecipe("the size of a warp is none")
    return Target(_matching(backend, r"[a-z0-9_]{1,32}", "the backend"), arch, warp_size)


def _by_name(said: object, what: str, read: Callable[[Any], Any]) -> dict[str, Any]:
    if type(said) is not dict:
        raise BadRecipe(f"{what} is no object")
    return {as_name(name): read(value) for name, value in said.items()}


def _by_path(said: object, what: str, read: Callable[[Any], Any]) -> tuple[tuple[Path, Any], ...]:
    found = []
    for path, value in _pairs(said, what):
        found.append((_path(path, what), read(value)))
    if len({path for path, _ in found}) != len(found):
        raise BadRecipe(f"{what} has a path twice")
    return tuple(found)


def _pairs(said: object, what: str) -> list[list[Any]]:
    if type(said) is not list:
        raise BadRecipe(f"{what} is no list")
    for pair in said:
        if type(pair) is not list or len(pair) != 2:
            raise BadRecipe(f"{what} is no list of pairs")
    return said


def _path(said: object, what: str) -> Path:
    if type(said) is not list or not 1 <= len(said) <= MOST_DEPTH:
        raise BadRecipe(f"{what} has a path that is none")
    if not all(map(_is_number, said)):
        raise BadRecipe(f"{what} has a path that is none")
    return tuple(said)


def _properties(said: object) -> tuple[tuple[str, int], ...]:
    found = []
    for name, value in _pairs(said, "specialized"):
        if not _is_number(value):
            raise BadRecipe("specialized has a value that is no number")
        found.append((as_name(name), value))
    return tuple(found)


def _variables(said: object) -> dict[str, str]:
    found = _by_name(said, "variables", str)
    for name, value in found.items():
        _matching(name, r"[A-Z][A-Z0-9_]{0,127}", "a variable's name")
        if said[name] != value or len(value) > 4096 or not value.isprintable():  # type: ignore[index]
            raise BadRecipe("a variable's value is no text that could be shown")
    return found


def _truth(said: object) -> bool:
    if type(said) is not bool:
        raise BadRecipe("launched is neither true nor false")
    return said


def _globals(said: object) -> tuple[Global, ...]:
    if type(said) is not list:
        raise BadRecipe("globals is no list")
    found = []
    for one in said:
        if type(one) is not list or len(one) != 3:
            raise BadRecipe("globals is no list of lists of three")
        module, name, value = one
        found.append(Global(as_name(module) if module != "" else "", as_name(name), _global(value)))
    return tuple(found)


def _global(value: object) -> Encoded:
    if type(value) is dict and value.keys() == {"unencoded"}:
        return {"unencoded": as_name(value["unencoded"])}
    return _encoded(value)


def _source(said: object) -> str | None:
    if said is not None and type(said) is not str:
        raise BadRecipe("the source is no text")
    return said
