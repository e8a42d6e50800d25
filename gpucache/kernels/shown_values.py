"""`shown`: a constant or an option, encoded in a recipe, as a person would write it in Python."""

from __future__ import annotations

import re

from gpucache.kernels.decoding import BadEncoding, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.kernels.encoding import Encoded, Function

_WORD = re.compile(r"[A-Za-z_][\w.+-]*", re.ASCII)
_NO_TEXTS = ("None", "True", "False", "inf", "nan")


class _Named(str):
    """A value that is shown by a name, also inside a tuple."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def shown(value: Encoded) -> str:
    """The text of an encoded value: ``128``, ``0.5``, ``relu``, ``(1, None)``, ``Layout.ROW``; on one line.

    A text that is a word has no quotes. What is no encoded value is ``?``.

    >>> shown({"tuple": [1, "relu", {"float": "0x1.0p-1"}]}), shown("relu"), shown("two words")
    ("(1, 'relu', 0.5)", 'relu', "'two words'")
    """
    if type(value) is int:
        return str(value)  # most are
    try:
        made = decode(value, _Shown())
    except (BadEncoding, RecursionError):
        return "?"
    if type(made) is str and made not in _NO_TEXTS and _WORD.fullmatch(made):
        return made
    return repr(made)


def _last(qualname: str) -> str:
    return qualname.rpartition(".")[2]


class _Shown:
    """Makes a name of each value that is no plain one."""

    def function(self, function: Function) -> object:
        return _Named(function.qualname)

    def enum(self, module: str, qualname: str, name: str) -> object:
        return _Named(f"{_last(qualname)}.{name}")

    def namedtuple(self, module: str, qualname: str, values: list[object]) -> object:
        return _Named(f"{_last(qualname)}({', '.join(map(repr, values))})")

    def dataclass(self, module: str, qualname: str, fields: dict[str, object]) -> object:
        inner = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        return _Named(f"{_last(qualname)}({inner})")

    def constexpr(self, value: object) -> object:
        return value

    def dtype(self, name: str) -> object:
        return _Named(name)

    def pointer(self, element: object, address_space: int | str, is_const: bool) -> object:
        return _Named(f"*{element}")

    def block(self, element: object, shape: list[int]) -> object:
        return _Named(f"{element}{shape}")

    def triton_tuple(self, values: list[object]) -> object:
        return tuple(values)

    def torch_dtype(self, name: str) -> object:
        return _Named(f"torch.{name}")
