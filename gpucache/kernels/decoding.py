"""JSON that may be anybody's, as the values that `gpucache.kernels.encoding` has encoded so.

Only plain values are made here; all that is Triton's or somebody's own, a `Make` makes, of names that can be shown.
"""

from __future__ import annotations

import re
from typing import Protocol

from gpucache.errors import GpuCacheError
from gpucache.kernels.encoding import (
    DIGEST,
    MOST_BITS,
    MOST_DEPTH,
    MOST_LETTERS,
    MOST_VALUES,
    Function,
    is_shown,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class BadEncoding(GpuCacheError, ValueError):
    """JSON that `encode` did not write: ``reason`` says what is wrong with it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "", reason)
        self.reason = reason


class Make(Protocol):
    """Makes the values that `decode` cannot make itself. What a method raises comes out of `decode`."""

    def function(self, function: Function) -> object:
        """The jit or constexpr function."""

    def enum(self, module: str, qualname: str, name: str) -> object:
        """The member of an enum."""

    def namedtuple(self, module: str, qualname: str, values: list[object]) -> object:
        """The named tuple of a class."""

    def dataclass(self, module: str, qualname: str, fields: dict[str, object]) -> object:
        """The value of a dataclass, such as a layout of Gluon."""

    def constexpr(self, value: object) -> object:
        """`triton.language.constexpr` of a value."""

    def dtype(self, name: str) -> object:
        """`triton.language.dtype` of that name."""

    def pointer(self, element: object, address_space: int | str, is_const: bool) -> object:
        """`triton.language.pointer_type`; the address space is an int in Triton 3.2 to 3.6, and a text in 3.9."""

    def block(self, element: object, shape: list[int]) -> object:
        """`triton.language.block_type`."""

    def triton_tuple(self, values: list[object]) -> object:
        """`triton.language.tuple`."""

    def torch_dtype(self, name: str) -> object:
        """`torch.dtype` of that name."""


def check(encoded: object) -> None:
    """Check that `encode` may have written this, whoever did.

    Raises:
        BadEncoding: it did not.
    """
    cls = type(encoded)
    if cls is not dict:
        _checked(encoded, cls)  # most values are plain
    else:
        decode(encoded, _Nothing())


def decode(encoded: object, make: Make) -> Any:
    """The value of which `encode` made this; whoever wrote it, only ``make`` does more than make plain values.

    Raises:
        BadEncoding: `encode` did not make it.
    """
    return _Decoder(make).decode(encoded, 0)


class _Decoder:
    """Decodes one value; counts what it consists of."""

    def __init__(self, make: Make) -> None:
        self.make = make
        self.left = MOST_VALUES

    def decode(self, encoded: object, depth: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise BadEncoding(f"more than {MOST_VALUES} values in one")
        if depth > MOST_DEPTH:
            raise BadEncoding(f"values nested more than {MOST_DEPTH} deep")
        cls = type(encoded)
        if cls is not dict:
            return _checked(encoded, cls)
        if len(encoded) != 1:  # type: ignore[arg-type]
            raise BadEncoding(f"an object of {len(encoded)} fields")  # type: ignore[arg-type]
        ((kind, content),) = encoded.items()  # type: ignore[attr-defined]
        decoder = _DECODERS.get(kind)
        if decoder is None:
            raise BadEncoding(f"a value of the unknown kind {_quoted(kind)}")
        return decoder(self, content, depth + 1)

    def all(self, content: object, depth: int) -> list[Any]:
        if type(content) is not list:
            raise BadEncoding("values that are no list")
        return [self.decode(value, depth) for value in content]

    def float_in(self, content: object, depth: int) -> float:
        if type(content) is not str or not re.fullmatch(_FLOAT, content):
            raise BadEncoding("a float that is none")
        try:
            return float.fromhex(content)
        except OverflowError:
            raise BadEncoding("a float that is too large") from None

    def tuple_in(self, content: object, depth: int) -> tuple[Any, ...]:
        return tuple(self.all(content, depth))

    def dict_in(self, content: object, depth: int) -> dict[Any, Any]:
        if type(content) is not list:
            raise BadEncoding("pairs that are no list")
        try:
            return {self.decode(k, depth): self.decode(v, depth) for k, v in content}
        except (ValueError, TypeError) as error:
            if isinstance(error, GpuCacheError):
                raise
            raise BadEncoding("a dictionary that is no list of pairs") from None

    def namedtuple_in(self, content: object, depth: int) -> object:
        module, qualname, values = _parts(content, 3)
        decoded = self.all(values, depth)
        return self.make.namedtuple(as_name(module), as_name(qualname), decoded)

    def dataclass_in(self, content: object, depth: int) -> object:
        module, qualname, pairs = _parts(content, 3)
        if type(pairs) is not list:
            raise BadEncoding("fields that are no list")
        fields = {}
        for pair in pairs:
            name, value = _parts(pair, 2)
            fields[as_name(name)] = self.decode(value, depth)
        return self.make.dataclass(as_name(module), as_name(qualname), fields)

    def enum_in(self, content: object, depth: int) -> object:
        module, qualname, name = _parts(content, 3)
        return self.make.enum(as_name(module), as_name(qualname), as_name(name))

    def function_in(self, content: object, depth: int) -> object:
        return self.make.function(as_function(content))

    def constexpr_in(self, content: object, depth: int) -> object:
        return self.make.constexpr(self.decode(content, depth))

    def dtype_in(self, content: object, depth: int) -> object:
        return self.make.dtype(as_name(content))

    def pointer_in(self, content: object, depth: int) -> object:
        element, space, is_const = _parts(content, 3)
        if type(is_const) is not bool or type(space) not in (int, str):
            raise BadEncoding("a pointer that is none")
        return self.make.pointer(self.decode(element, depth), self.decode(space, depth), is_const)

    def block_in(self, content: object, depth: int) -> object:
        element, shape = _parts(content, 2)
        sizes = self.all(shape, depth)
        if not all(type(size) is int for size in sizes):
            raise BadEncoding("a block whose sizes are no numbers")
        return self.make.block(self.decode(element, depth), sizes)

    def triton_tuple_in(self, content: object, depth: int) -> object:
        return self.make.triton_tuple(self.all(content, depth))

    def torch_dtype_in(self, content: object, depth: int) -> object:
        return self.make.torch_dtype(as_name(content))


_DECODERS: dict[str, Callable[[_Decoder, Any, int], Any]] = {
    "float": _Decoder.float_in,
    "tuple": _Decoder.tuple_in,
    "list": _Decoder.all,
    "dict": _Decoder.dict_in,
    "namedtuple": _Decoder.namedtuple_in,
    "dataclass": _Decoder.dataclass_in,
    "enum": _Decoder.enum_in,
    "function": _Decoder.function_in,
    "constexpr": _Decoder.constexpr_in,
    "dtype": _Decoder.dtype_in,
    "pointer": _Decoder.pointer_in,
    "block": _Decoder.block_in,
    "triton_tuple": _Decoder.triton_tuple_in,
    "torch_dtype": _Decoder.torch_dtype_in,
}
_FLOAT = r"-?(?:nan|inf|0x[01]\.[0-9a-f]{1,13}p[+-][0-9]{1,4})"


def _checked(encoded: object, cls: type) -> object:
    """A value that stands for itself."""
    if cls is int and encoded.bit_length() > MOST_BITS:  # type: ignore[attr-defined]
        raise BadEncoding(f"an int of more than {MOST_BITS} bits")
    if cls is str and len(encoded) > MOST_LETTERS:  # type: ignore[arg-type]
        raise BadEncoding(f"a text of more than {MOST_LETTERS} letters")
    if cls not in (type(None), bool, int, str):
        raise BadEncoding(f"a value that is {_JSON_NAMES.get(cls, 'nothing of JSON')}")
    return encoded


_JSON_NAMES = {float: "a decimal number", list: "a list"}


def _parts(content: object, count: int) -> list[Any]:
    if type(content) is not list or len(content) != count:
        raise BadEncoding(f"a value that is no list of {count}")
    return content


def as_function(content: object) -> Function:
    """The function that was encoded as a list of four.

    Raises:
        BadEncoding: it is none.
    """
    module, qualname, file, digest = _parts(content, 4)
    if file is not None and not _is_path(file):
        raise BadEncoding("the file of a function is no path")
    if type(digest) is not str or not re.fullmatch(DIGEST, digest):
        raise BadEncoding("the cache_key of a function is no digest")
    return Function(as_name(module), as_name(qualname), file, digest)


def _is_path(file: object) -> bool:
    return type(file) is str and 0 < len(file) <= 4096 and file.isprintable()


def as_name(name: object) -> str:
    """The name, if it is one that can be shown.

    Raises:
        BadEncoding: it is none.
    """
    if is_shown(name):
        return name
    raise BadEncoding("a name that is no text that could be shown")


def _quoted(kind: object) -> str:
    return repr(str(kind)[:40])


class _Nothing:
    """Makes nothing, to check only."""

    def function(self, function: Function) -> object:
        return None

    def enum(self, module: str, qualname: str, name: str) -> object:
        return name

    def namedtuple(self, module: str, qualname: str, values: list[object]) -> object:
        return None

    def dataclass(self, module: str, qualname: str, fields: dict[str, object]) -> object:
        return None

    def constexpr(self, value: object) -> object:
        return None

    def dtype(self, name: str) -> object:
        return name

    def pointer(self, element: object, address_space: int | str, is_const: bool) -> object:
        return None

    def block(self, element: object, shape: list[int]) -> object:
        return None

    def triton_tuple(self, values: list[object]) -> object:
        return None

    def torch_dtype(self, name: str) -> object:
        return name
