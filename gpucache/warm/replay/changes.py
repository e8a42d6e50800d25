"""What has changed since a recipe was recorded: the function's source, its parameters, the globals it reads.

Of the globals that a kernel reads only constexpr objects are part of Triton's key, and in 3.2 and 3.4 not even these
(`kernels.recipe.Global`). A global that depends on the GPU has another value where there is none, and a kernel compiled
with that would lie under the key of another one. So a global that differs stops a replay, unless the module assigns it
a literal: then its source was edited, and the program has the new value as well.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from typing import NamedTuple

from gpucache.kernels.encoding import Encoder
from gpucache.triton.captured_globals import globals_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from gpucache.kernels.encoding import Encoded
    from gpucache.kernels.recipe import Recipe

_MOST_SHOWN = 80


def unfit(recipe: Recipe, function: Any) -> str:
    """Why a function's parameters no longer fit what was recorded; ``""`` where they do."""
    names = list(function.arg_names)
    recorded = recorded_names(recipe, names)
    if recorded is None or recorded != names[: len(recorded)]:
        had = ", ".join(recipe.signature)
        return f"its parameters are now ({', '.join(names)}) and were ({had})"
    constant = {path[0] for path, _ in recipe.constants}
    for parameter in function.params:
        index = parameter.num
        if index >= len(recorded) and parameter.default is inspect.Parameter.empty:
            return f"its parameter {parameter.name} is new, and has no default"
        if index < len(recorded) and parameter.is_constexpr and index not in constant:
            return f"its parameter {parameter.name} is a constexpr now, and no value was recorded"
    return ""


def recorded_names(recipe: Recipe, names: list[str]) -> list[str] | None:
    """The names of the parameters as recorded; of the constants of Triton 3.2, which kept none, as they are now.

    None where the recipe has a constant for which there is no parameter.
    """
    said = list(recipe.signature)
    missing = sorted(path[0] for path, _ in recipe.constants if len(path) == 1)
    count = len(set(missing) | set(range(len(said))))
    if len(said) == count or not missing:
        return said
    merged: list[str] = []
    constants = [index for index in missing if index < len(names) and names[index] not in said]
    for name in said:
        while len(merged) in constants:
            merged.append(names[len(merged)])
        merged.append(name)
    while len(merged) in constants:
        merged.append(names[len(merged)])
    return merged


# ---- globals


class Difference(NamedTuple):
    """A global variable with another value than was recorded."""

    sentence: str
    """Which one, and both values."""
    edited: bool
    """Whether its module assigns it a literal, so that the source has changed; else it may depend on the machine."""


def difference(
    recipe: Recipe, function: Any, constants: Iterable[object], is_same_source: bool
) -> Difference | None:
    """The global that differs from what was recorded; of several one that was not edited, if there is one.

    ``constants`` are the decoded ones. ``is_same_source`` is whether the function's digest is the recorded one: then a
    global that the function reads and that was not recorded was None.
    """
    here = {(one.module, one.name): one.value for one in globals_of(function, constants, Encoder())}
    then = {(one.module, one.name): one.value for one in recipe.globals}
    places = set(then)
    if is_same_source:
        places |= here.keys() & _named_by(function)
    found = None
    for place in sorted(places):
        now = here.get(place, _MISSING)
        if now is _MISSING:
            now = _none_or_unused(place)
        if now is _MISSING or now == then.get(place):
            continue
        found = Difference(_sentence(place, now, then.get(place)), _is_literal(place))
        if not found.edited:
            return found
    return found


def undecided(recipe: Recipe, has_constexpr_in_key: bool) -> str:
    """A global that may have another value on another target, and with that no other key, as a sentence; else ``""``.

    The module was imported for the recorded target, and may have asked for it; only what its source says in letters is
    the same everywhere. ``has_constexpr_in_key`` is whether constexpr globals are part of the running Triton's key:
    then a kernel with another value lies under another key, and harms nobody.
    """
    for one in recipe.globals:
        is_constexpr = isinstance(one.value, dict) and "constexpr" in one.value
        if is_constexpr and has_constexpr_in_key:
            continue
        if not _is_literal((one.module, one.name)):
            where = f"{one.module}.{one.name}" if one.module else one.name
            return f"{where} may have another value there, which the key does not tell"
    return ""


def _named_by(function: Any) -> set[tuple[str, str]]:
    """The places of all globals that the code of a function itself names."""
    module = function.fn.__globals__.get("__name__", "")
    return {(module, name) for name in function.fn.__code__.co_names}


_MISSING: Any = object()


def _none_or_unused(place: tuple[str, str]) -> Encoded:
    """What Triton does not list: None, if the variable is None (which it passes over); else it is not read now."""
    module, name = place
    variables = _variables_of(module)
    if name in variables and variables[name] is None:
        return None
    return _MISSING  # type: ignore[no-any-return]


def _variables_of(module: str) -> Mapping[str, Any]:
    found = sys.modules.get("__mp_main__" if module == "__main__" else module)
    return {} if found is None else vars(found)


def _sentence(place: tuple[str, str], now: Encoded, then: Encoded) -> str:
    module, name = place
    where = f"{module}.{name}" if module else name
    return f"{where} is {_shown(now)} here, and was {_shown(then)}"


def _shown(value: Encoded) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _is_literal(place: tuple[str, str]) -> bool:
    """Whether the module assigns the variable once, at its top, and a literal: then no machine decides its value."""
    module, name = place
    found = sys.modules.get("__mp_main__" if module == "__main__" else module)
    if found is None:
        return False
    try:
        tree = ast.parse(inspect.getsource(found))
    except (OSError, TypeError, SyntaxError, ValueError, RecursionError):
        return False
    top = [value for target, value in _assigned(tree.body) if target == name]
    anywhere = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store):
            anywhere += 1
    return len(top) == anywhere == 1 and _is_plain(top[0])


def _assigned(body: list[ast.stmt]) -> list[tuple[str, ast.expr]]:
    found = []
    for statement in body:
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets: list[ast.expr] = [statement.target]
        elif isinstance(statement, ast.Assign):
            targets = statement.targets
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name) and statement.value is not None:
                found.append((target.id, statement.value))
    return found


def _is_plain(value: ast.expr) -> bool:
    """Whether an expression is a literal, a type ``tl.…``, or such in ``tl.constexpr(…)`` or ``float(…)``."""
    if isinstance(value, ast.Call) and len(value.args) == 1 and not value.keywords:
        called = value.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        return name in ("constexpr", "float") and _is_plain(value.args[0])
    if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
        return value.value.id == "tl"
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return False
    return True
