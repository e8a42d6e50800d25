"""What a recipe tells of the values that a kernel reads, and the functions that it calls, beside its arguments.

These are global variables, variables of modules and classes, and defaults of the functions that are called. Of all
these only constexpr globals are part of Triton's key.
"""

from __future__ import annotations

from collections import ChainMap
from contextlib import suppress
from enum import Enum, EnumMeta
from types import ModuleType

from gpucache.kernels.encoding import (
    Encoder,
    Unencodable,
    as_shown,
    is_constexpr,
    is_function,
)
from gpucache.kernels.recipe import Global

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any


def globals_of(function: Any, constants: Iterable[object], encoder: Encoder) -> tuple[Global, ...]:
    """The values that a function, those among its constants, and those they call read.

    Global variables are as Triton has noted them when it hashed each function; what it has not hashed yet has none.
    Variables of modules and classes (``config.STEP``, which Triton does not note) are all that the code may mean.
    Those of Triton's own modules, which 3.4.0 notes for whoever calls `tl.sum`, are left out: its key has their source.
    """
    constants = list(constants)
    called = called_functions(function, constants)
    noted: dict[Any, Any] = {}
    for one in called:
        noted.update(one.used_global_vals)
    found = []
    for (name, _), (value, variables) in noted.items():
        module = variables.get("__name__", "")
        if not _is_in_triton(module):
            found.append((module, name, value))
    others = _members(constants)
    for one in called:
        others.update(_attributes(one.fn))
        if one is not function:  # whose defaults are among its constants
            others.update(_defaults(one.fn))
    known = {(module, name) for module, name, _ in found}
    found += [(*place, value) for place, value in others.items() if place not in known]
    return tuple(_global(*one, encoder) for one in found)


def noted_by(function: Any) -> set[tuple[str, str]]:
    """The global variables, by module and name, that Triton has noted when it hashed a function."""
    noted = function.used_global_vals.items()
    return {(variables.get("__name__", ""), name) for (name, _), (_, variables) in noted}


def called_functions(function: Any, constants: Iterable[object]) -> list[Any]:
    """A function, those of Triton's among its constants, and all that these call."""
    return _called([function, *_functions_in(constants)])


def _global(module: str, name: str, value: object, encoder: Encoder) -> Global:
    try:
        encoded = encoder.encode(value)
    except Unencodable:
        encoded = {"unencoded": as_shown(_type_of(value))}
    return Global(as_shown(module) if module else "", as_shown(name), encoded)


def _type_of(value: object) -> str:
    """The type of a value, by names; of a class, of which only the variables count, which one it is."""
    if isinstance(value, type):
        return f"{CLASS}{value.__module__}.{value.__qualname__}"
    cls = type(value)
    return f"{cls.__module__}.{cls.__qualname__}"


CLASS = "class "
"""How a class is told: what the code reads of it has an entry of its own."""


_MOST_CALLED = 256


def _functions_in(constants: Iterable[object]) -> list[Any]:
    """The functions of Triton's among constants, and in tuples among these."""
    found: list[Any] = []
    waiting = list(constants)
    while waiting and len(found) < _MOST_CALLED:
        value = waiting.pop()
        if isinstance(value, tuple):
            waiting.extend(value)
        elif is_function(value):
            found.append(value)
    return found


def _called(functions: list[Any]) -> list[Any]:
    """Functions and those that they name, and that these name: all whose globals count.

    Triton 3.7.1 and before notes with a function the globals of another that it calls only if that was hashed before
    (`runtime/jit.py` `_update_hash` copies them before it hashes). Functions of Triton's own are left out: what they
    read is Triton's too.
    """
    found = {id(function): function for function in functions}
    waiting = list(functions)
    while waiting and len(found) < _MOST_CALLED:
        caller = waiting.pop()
        for named in _named(caller.fn):
            if is_function(named) and id(named) not in found and not _is_tritons(named):
                found[id(named)] = named
                waiting.append(named)
    return list(found.values())


def _is_tritons(function: Any) -> bool:
    return _is_in_triton(str(function.fn.__module__))


def _is_in_triton(module: str) -> bool:
    return f"{module}.".startswith("triton.")


def _named(python: Any) -> list[object]:
    """What the code of a Python function may refer to: its globals, what it encloses, and attributes of modules."""
    values = _direct(python)
    for module in _spaces(python, values):
        if type(module) is ModuleType:
            values += [vars(module).get(name) for name in python.__code__.co_names]
    return values


def _direct(python: Any) -> list[object]:
    """The global variables that the code of a Python function may name, and what it encloses."""
    values = [python.__globals__.get(name) for name in python.__code__.co_names]
    for cell in python.__closure__ or ():
        with suppress(ValueError):  # it is still empty
            values.append(cell.cell_contents)
    return values


def _members(constants: Iterable[object]) -> dict[tuple[str, str], object]:
    """The values of members of enums among constants, and in tuples among these; the key has their names alone."""
    found: dict[tuple[str, str], object] = {}
    waiting = list(constants)
    for value in waiting:
        if len(waiting) > _MOST_CALLED:
            break
        if isinstance(value, tuple):
            waiting.extend(value)
        elif isinstance(value, Enum):
            cls = type(value)
            found[cls.__module__, f"{cls.__qualname__}.{value._name_}"] = value._value_
    return found


_MOST_SPACES = 64


def _spaces(python: Any, values: Iterable[object]) -> list[Any]:
    """The modules and classes among values, and those in them that the code may name; none of Triton's own."""
    found: dict[int, Any] = {}
    waiting = list(values)
    while waiting and len(found) < _MOST_SPACES:
        value = waiting.pop()
        if id(value) not in found and _is_space(value):
            found[id(value)] = value
            variables = _variables(value)
            waiting += [variables.get(name) for name in python.__code__.co_names]
    return list(found.values())


def _is_space(value: Any) -> bool:
    if type(value) is ModuleType:
        return not _is_in_triton(value.__name__)
    is_class = isinstance(value, type)
    return is_class and not f"{value.__module__}.".startswith(("triton.", "builtins."))


def _variables(space: Any) -> Mapping[str, object]:
    """The variables of a module or a class; of an enum the values of its members."""
    if isinstance(space, EnumMeta):
        return {name: member._value_ for name, member in space._member_map_.items()}
    if isinstance(space, type):
        return ChainMap(*map(vars, space.__mro__))  # type: ignore[arg-type]
    variables: dict[str, object] = vars(space)
    return variables


def _attributes(python: Any) -> dict[tuple[str, str], object]:
    """The variables of modules and classes that the code of a Python function may read, by module and name."""
    found = {}
    for space in _spaces(python, _direct(python)):
        is_module = type(space) is ModuleType
        module = space.__name__ if is_module else space.__module__
        prefix = "" if is_module else f"{space.__qualname__}."
        variables = _variables(space)
        for name in python.__code__.co_names:
            if name in variables and not _is_code(variables[name]):
                found[module, prefix + name] = variables[name]
    return found


def _is_code(value: object) -> bool:
    """Whether a value is a module, or something to be called: of these Triton hashes what it can."""
    if type(value) is ModuleType or hasattr(type(value), "__get__"):
        return True
    return callable(value) and not is_constexpr(value)


def _defaults(python: Any) -> dict[tuple[str, str], object]:
    """The defaults of the parameters of a Python function, by its module and a name such as ``function(n)``."""
    code = python.__code__
    positional = code.co_varnames[: code.co_argcount]
    defaults = python.__defaults__ or ()
    by_name = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    by_name.update(python.__kwdefaults__ or {})
    named = {}
    for name, value in by_name.items():
        if _is_code(value):  # Triton hashes it
            continue
        named[python.__module__, f"{python.__qualname__}({name})"] = value
    return named
