"""What a recipe tells of the global variables that a kernel reads, and the functions that it calls."""

from __future__ import annotations

from contextlib import suppress
from types import ModuleType

from gpucache.kernels.encoding import Encoder, Unencodable, as_shown, is_function
from gpucache.kernels.recipe import Global

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


def globals_of(function: Any, constants: Iterable[object], encoder: Encoder) -> tuple[Global, ...]:
    """The globals that a function, those among its constants, and those they call read.

    As Triton has noted them when it hashed each; what Triton has not hashed yet has none.
    """
    noted: dict[Any, Any] = {}
    for called in _called([function, *_functions_in(constants)]):
        noted.update(called.used_global_vals)
    found = []
    for (name, _), (value, variables) in noted.items():
        module = variables.get("__name__", "")
        try:
            encoded = encoder.encode(value)
        except Unencodable:
            cls = type(value)
            encoded = {"unencoded": as_shown(f"{cls.__module__}.{cls.__qualname__}")}
        found.append(Global(as_shown(module) if module else "", as_shown(name), encoded))
    return tuple(found)


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
    return str(function.fn.__module__).startswith("triton.")


def _named(python: Any) -> list[object]:
    """What the code of a Python function may refer to: its globals, what it encloses, and attributes of modules."""
    names = python.__code__.co_names
    values = [python.__globals__.get(name) for name in names]
    for cell in python.__closure__ or ():
        with suppress(ValueError):  # it is still empty
            values.append(cell.cell_contents)
    for module in [value for value in values if type(value) is ModuleType]:
        values += [vars(module).get(name) for name in names]
    return values
