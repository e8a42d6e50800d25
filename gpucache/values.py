"""`Value`: a base for frozen values, like a frozen, slotted dataclass, that does not import `dataclasses` or `typing`.

`dataclasses` compiles every method of every class when the class is made, and imports `inspect`:
14 ms of the 40 ms in which a worker used to resolve its directory. Here each method is written
once, for all classes. To `dataclasses.replace`, ``asdict`` and ``fields``, to pickle, ``copy`` and
``match`` a `Value` is an ordinary frozen dataclass; `dataclasses` is imported when one of them asks.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs more than this module saves
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from typing_extensions import Self, dataclass_transform

    T = TypeVar("T", bound="Value")
else:

    def dataclass_transform(**_):
        """Tell type checkers only."""
        return lambda made: made


@dataclass_transform(frozen_default=True)
class _ValueType(type):
    """Makes slots of a class's annotated fields, and remembers their defaults."""

    def __new__(
        meta,
        name: str,
        bases: tuple[type, ...],
        body: dict[str, Any],
        kw_only: bool = False,
    ) -> _ValueType:
        own = tuple(body.get("__annotations__", ()))
        names = own
        defaults: dict[str, Any] = {}
        for field in own:
            if field in body:
                defaults[field] = body.pop(field)
        for base in bases:
            if isinstance(base, _ValueType):
                names = base._fields + names
                defaults = base._defaults | defaults
        body["__slots__"] = own
        body["__match_args__"] = () if kw_only else names
        made = super().__new__(meta, name, bases, body)
        made._fields = names
        made._names = frozenset(names)
        made._defaults = defaults
        made._kw_only = kw_only
        return made

    _fields: tuple[str, ...]
    _names: frozenset[str]
    _defaults: dict[str, Any]
    _kw_only: bool


class _DataclassFields:
    """The attribute by which `dataclasses` knows a dataclass; made when `dataclasses` reads it, which is seldom."""

    def __get__(self, value: Value | None, cls: _ValueType) -> dict[str, Any]:
        import dataclasses

        fields = []
        for name in cls._fields:
            default = cls._defaults.get(name, dataclasses.MISSING)
            field = dataclasses.field(default=default)
            fields.append((name, object, field))
        made = dataclasses.make_dataclass(cls.__name__, fields, kw_only=True)
        found: dict[str, Any] = made.__dataclass_fields__  # type: ignore[attr-defined]
        return found


class Value(metaclass=_ValueType):
    """The base of a class of frozen values, whose annotated names are the fields. A default must be immutable."""

    __dataclass_fields__ = _DataclassFields()

    def __init__(self, *args: Any, **named: Any) -> None:
        cls = type(self)
        if args:
            named = _by_name(cls, args, named)
        given = cls._defaults | named
        if given.keys() != cls._names:
            raise _wrong_fields(cls, given)
        for name, value in given.items():
            _set(self, name, value)

    def __values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in type(self)._fields)

    def __setattr__(self, name: str, value: object) -> None:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__values() == other.__values()

    def __hash__(self) -> int:
        return hash(self.__values())

    def __repr__(self) -> str:
        said = (f"{name}={getattr(self, name)!r}" for name in type(self)._fields)
        return f"{type(self).__qualname__}({', '.join(said)})"

    def __replace__(self, **changes: Any) -> Self:
        """The same value with some fields changed: what `copy.replace` calls (Python 3.13)."""
        return replace(self, **changes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (type(self), as_dict(self))


_set = object.__setattr__  # a value's own method refuses


def _by_name(
    cls: _ValueType,
    args: tuple[Any, ...],
    named: dict[str, Any],
) -> dict[str, Any]:
    """All the values that a constructor was given, by position or by name, by the names of their fields."""
    names = cls._fields
    if cls._kw_only or len(args) > len(names):
        raise TypeError(f"{cls.__name__} takes {len(names)} fields by name, not {args!r}")
    given = dict(zip(names, args, strict=False))
    if given.keys() & named.keys():
        raise TypeError(f"{cls.__name__} has each of {names} once, not {args!r} and {named!r}")
    return given | named


def _wrong_fields(cls: _ValueType, given: dict[str, Any]) -> TypeError:
    unknown = sorted(given.keys() - cls._names)
    if unknown:
        return TypeError(f"{cls.__name__} has no fields {unknown}")
    missing = [name for name in cls._fields if name not in given]
    return TypeError(f"{cls.__name__} needs values for {missing}")


def _made(cls: type[T], named: dict[str, Any]) -> T:
    """A value from its fields by name: what pickle and `copy` call."""
    return cls(**named)


def replace(value: T, **changes: Any) -> T:
    """The same value with some fields changed, as `dataclasses.replace`.

    Raises:
        TypeError: a name is no field of the value.
    """
    named = as_dict(value)
    named.update(changes)
    return type(value)(**named)


def as_dict(value: Value) -> dict[str, Any]:
    """The fields by name, in their order; what they hold is not copied."""
    return {name: getattr(value, name) for name in type(value)._fields}
