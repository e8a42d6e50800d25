"""Values that a kernel was compiled with (constants, options) as JSON, by exact type.

None, a bool, an int and a str stand for themselves. Every other value is an object with one field, whose name is the
kind of the value (`Kind`). A value of any other type is refused, a subclass of int or str too: its text, which is part
of Triton's key, may be another one in another process.

Triton's types are known by the module and the name of their class, so that Triton is not imported here
(`triton/language/core.py` and `triton/runtime/jit.py` of 3.2.0, 3.4.0, 3.6.0 and 3.9.0; of Gluon
`triton/experimental/gluon/_runtime.py`).
"""

from __future__ import annotations

import re
import sys
from enum import Enum
from functools import cached_property
from typing import Literal, NamedTuple

from gpucache.errors import GpuCacheError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias, TypeGuard

    Encoded: TypeAlias = bool | int | str | dict[str, Any] | None
    """What `encode` gives, and `json` reads and writes without loss."""

Kind = Literal[
    "float",  # as `float.hex` writes it: "0x1.8p+1", "nan", "inf", "-inf"
    "tuple",  # a list of encoded values
    "list",  # a list of encoded values
    "dict",  # a list of pairs of encoded values
    "namedtuple",  # [module, qualname, list of encoded values]
    "dataclass",  # [module, qualname, list of pairs of a field's name and its encoded value]
    "enum",  # [module, qualname, name of the member]
    "function",  # [module, qualname, file or null, cache_key]: a jit or a constexpr function
    "constexpr",  # the encoded value in a `tl.constexpr`
    "dtype",  # the name of a `tl.dtype`: "fp32"
    "pointer",  # [encoded element type, address space, whether const]: a `tl.pointer_type`
    "block",  # [encoded element type, list of sizes]: a `tl.block_type`
    "triton_tuple",  # a list of encoded values: a `tl.tuple`
    "torch_dtype",  # the name of a `torch.dtype`: "float32"
]
"""Which type an encoded value had, beside None, bool, int and str."""

MOST_DEPTH = 32
"""So deep may values be nested; a structure that contains itself ends here."""
MOST_VALUES = 4096
"""So many values may one value consist of: encoding them takes a millisecond or two."""
MOST_LETTERS = 2**16
"""So long may all texts in one value be together."""
MOST_BITS = 4096
"""So long may one int be."""
MOST_NAME = 1024
"""So long may a name be."""


class Unencodable(GpuCacheError, ValueError):
    """A value that no other process could be given: ``reason`` says why, and names the value's type."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "", reason)
        self.reason = reason


class Function(NamedTuple):
    """A function of a module: one with ``@triton.jit`` (unwrapped of `Autotuner`, `Heuristics`) or a constexpr one."""

    module: str
    qualname: str
    file: str | None
    """The absolute path of the source file, or a name like ``<stdin>``; None where Python does not know it."""
    cache_key: str
    """Triton's digest of its source and all that it calls; ``""`` where Triton had not computed it."""


def encode(value: object) -> Encoded:
    """The value as JSON.

    Functions, enums and classes are encoded by the names of their modules and their own; whether they can be found by
    these is for whoever decodes. No code of the value's own class is called but the attributes of a dataclass.

    >>> encode((1, None, 0.5))
    {'tuple': [1, None, {'float': '0x1.0000000000000p-1'}]}

    Raises:
        Unencodable: the value, or one inside it, is of a type that cannot be encoded, or too large.
    """
    return Encoder().encode(value)


class Encoder:
    """Encodes several values, which together may not be larger than one."""

    def __init__(self) -> None:
        self._values = MOST_VALUES
        self._letters = MOST_LETTERS

    def encode(self, value: object, depth: int = 0) -> Encoded:
        """As the function `encode`; ``depth`` is the number of values around this one."""
        self._values -= 1
        if self._values < 0:
            raise Unencodable(f"more than {MOST_VALUES} values in one")
        if depth > MOST_DEPTH:
            raise Unencodable(f"values nested more than {MOST_DEPTH} deep")
        cls = type(value)
        plain = _PLAIN.get(cls)
        if plain is not None:
            return plain(self, value)
        several = _SEVERAL.get(cls)
        if several is not None:
            return {several: self.all(value, depth)}
        if cls is dict:
            return {"dict": self.pairs(value.items(), depth)}  # type: ignore[attr-defined]
        known = _KNOWN.get((cls.__module__, cls.__qualname__))
        if known is not None:
            return known(self, value, depth)
        return self.of_class(value, cls, depth)

    def read(self, letters: int) -> None:
        """Count the letters of a text."""
        self._letters -= letters
        if self._letters < 0:
            raise Unencodable(f"more than {MOST_LETTERS} letters in one")

    def all(self, values: Any, depth: int) -> list[Encoded]:
        """Encode the values of a sequence that is itself ``depth`` deep."""
        return [self.encode(value, depth + 1) for value in values]

    def pairs(self, pairs: Any, depth: int) -> list[list[Encoded]]:
        """Encode keys and values."""
        return [self.all(pair, depth) for pair in pairs]

    def of_class(self, value: object, cls: type, depth: int) -> Encoded:
        """Encode a value of a class that is known by what the class is."""
        if issubclass(cls, Enum):
            return _enum(value, cls)
        if _is_namedtuple(cls):
            module, qualname = _class_names(cls)
            # The class may iterate in a way of its own.
            values = self.all(tuple.__iter__(value), depth)  # type: ignore[arg-type]
            return {"namedtuple": [module, qualname, values]}
        if hasattr(cls, "__dataclass_fields__"):
            return self.dataclass(value, cls, depth)
        raise Unencodable(f"a value of {_shown(cls)}")

    def dataclass(self, value: Any, cls: type, depth: int) -> Encoded:
        """Encode a value of a dataclass by the fields that its constructor takes."""
        from dataclasses import fields

        module, qualname = _class_names(cls)
        names = [field.name for field in fields(value) if field.init]
        for name in getattr(value, "__dict__", {}).keys() - set(names):
            if not isinstance(vars(cls).get(name), cached_property):
                raise Unencodable(f"a value of {_shown(cls)}, which has {name} beside its fields")
        encoded = []
        for name in names:
            encoded.append([name, self.encode(getattr(value, name), depth + 1)])
        return {"dataclass": [module, qualname, encoded]}


def _itself(_: Encoder, value: Any) -> Encoded:
    return value  # type: ignore[no-any-return]


def _int(_: Encoder, value: Any) -> Encoded:
    if value.bit_length() > MOST_BITS:
        raise Unencodable(f"an int of more than {MOST_BITS} bits")
    return value  # type: ignore[no-any-return]


def _str(encoder: Encoder, value: Any) -> Encoded:
    encoder.read(len(value))
    return value  # type: ignore[no-any-return]


def _float(_: Encoder, value: Any) -> Encoded:
    return {"float": value.hex()}


_PLAIN: dict[type, Callable[[Encoder, Any], Encoded]] = {
    type(None): _itself,
    bool: _itself,
    int: _int,
    str: _str,
    float: _float,
}
_SEVERAL: dict[type, Literal["tuple", "list"]] = {tuple: "tuple", list: "list"}


def _function(_: Encoder, value: Any, depth: int) -> Encoded:
    return {"function": list(function_of(value))}


def _constexpr(encoder: Encoder, value: Any, depth: int) -> Encoded:
    return {"constexpr": encoder.encode(value.value, depth + 1)}


def _dtype(encoder: Encoder, value: Any, depth: int) -> Encoded:
    return {"dtype": as_shown(value.name)}


def _pointer(encoder: Encoder, value: Any, depth: int) -> Encoded:
    element = encoder.encode(value.element_ty, depth + 1)
    space = encoder.encode(value.address_space, depth + 1)
    # 3.2.0 to 3.9.0 have `const`
    return {"pointer": [element, space, bool(value.const)]}


def _block(encoder: Encoder, value: Any, depth: int) -> Encoded:
    element = encoder.encode(value.element_ty, depth + 1)
    return {"block": [element, encoder.all(value.shape, depth + 1)]}


def _triton_tuple(encoder: Encoder, value: Any, depth: int) -> Encoded:
    return {"triton_tuple": encoder.all(value.values, depth)}


def _torch_dtype(encoder: Encoder, value: Any, depth: int) -> Encoded:
    return {"torch_dtype": as_shown(repr(value).removeprefix("torch."))}


DIGEST = r"[0-9a-f]{0,128}"
"""A `cache_key`: SHA-256 in hexadecimal, in 3.2 and 3.4 with the number of the first line behind it; or none."""
_CORE, _JIT = "triton.language.core", "triton.runtime.jit"
_FUNCTIONS = (
    (_JIT, "JITFunction"),
    (_JIT, "ConstexprFunction"),
    ("triton.experimental.gluon._runtime", "GluonJITFunction"),
)
_KNOWN: dict[tuple[str, str], Callable[[Encoder, Any, int], Encoded]] = {
    **dict.fromkeys(_FUNCTIONS, _function),
    (_CORE, "constexpr"): _constexpr,
    (_CORE, "dtype"): _dtype,
    (_CORE, "pointer_type"): _pointer,
    (_CORE, "block_type"): _block,
    (_CORE, "tuple"): _triton_tuple,
    ("torch", "dtype"): _torch_dtype,
}


def is_function(value: object) -> bool:
    """Whether a value is a jit or constexpr function of Triton's."""
    cls = type(value)
    return (cls.__module__, cls.__qualname__) in _FUNCTIONS


def is_constexpr(value: object) -> bool:
    """Whether a value is a `tl.constexpr`."""
    cls = type(value)
    return (cls.__module__, cls.__qualname__) == (_CORE, "constexpr")


def function_of(function: Any) -> Function:
    """A jit or constexpr function of Triton's, by names; its digest is not computed for this.

    Raises:
        Unencodable: it has no names, or none that could be shown.
    """
    import os.path

    python = function.fn
    file = python.__code__.co_filename
    if not file.startswith("<"):
        file = os.path.abspath(file)
    digest = function.hash  # `cache_key` would compute it
    return Function(
        module=as_shown(python.__module__),
        qualname=as_shown(python.__qualname__),
        file=file if file.isprintable() else None,
        cache_key=digest if type(digest) is str and re.fullmatch(DIGEST, digest) else "",
    )


def _enum(value: Any, cls: type) -> Encoded:
    """Encode a member of an enum by its name; a combination of flags has none."""
    module, qualname = _class_names(cls)
    name = value._name_
    if type(name) is not str or cls.__members__.get(name) is not value:  # type: ignore[attr-defined]
        raise Unencodable(f"a value of {_shown(cls)} that is no member by name")
    return {"enum": [module, qualname, as_shown(name)]}


def _is_namedtuple(cls: type) -> bool:
    """Whether a class was made by `collections.namedtuple` or by `typing.NamedTuple`."""
    return cls.__bases__ == (tuple,) and hasattr(cls, "_fields")


def _class_names(cls: type) -> tuple[str, str]:
    """The names by which a class can be found.

    Raises:
        Unencodable: it cannot be found by them.
    """
    module, qualname = cls.__module__, cls.__qualname__
    found: object = sys.modules.get(module)
    for name in qualname.split("."):
        found = getattr(found, name, None)
    if found is not cls:
        raise Unencodable(f"a value of {_shown(cls)}, which is not in its module by that name")
    return as_shown(module), as_shown(qualname)


def is_shown(name: object) -> TypeGuard[str]:
    """Whether this is a name of sensible length that can be shown."""
    return type(name) is str and 0 < len(name) <= MOST_NAME and name.isprintable()


def as_shown(name: object) -> str:
    """The name, if it is one that can be shown.

    Raises:
        Unencodable: it is none.
    """
    if is_shown(name):
        return name
    raise Unencodable("a name that is no text that could be shown")


def _shown(cls: type) -> str:
    name = f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")
    return f"the type {name}"
