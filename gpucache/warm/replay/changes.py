"""What has changed since a recipe was recorded: the function's source, its parameters, the values that it reads.

Of all that a kernel reads beside its arguments only constexpr globals are part of Triton's key, and in 3.2 and 3.4 not
even these (`kernels.recipe.Global`). A value that depends on the GPU is another one where there is none, one that the
program sets is not set in a replay, and a kernel compiled with that would lie under the key of another one. So a value
that differs stops a replay; unless the source says the new one, as a literal, and the key says it too.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from typing import NamedTuple

from gpucache.kernels.encoding import Encoder
from gpucache.triton.captured_globals import CLASS, called_functions, globals_of, noted_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import ModuleType
    from typing import Any

    from gpucache.kernels.encoding import Encoded
    from gpucache.kernels.recipe import Global, Recipe

Place = tuple[str, str]
"""A module, and the name of what is read: ``STEP``, ``Config.STEP``, ``function(n)``."""
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
    whole = [path for path, _ in recipe.constants if len(path) == 1]
    missing = sorted(path[0] for path in whole)
    count = len({*missing, *range(len(said))})
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
    recipe: Recipe,
    function: Any,
    constants: Iterable[object],
    is_same_source: bool,
    has_globals_in_key: bool,
) -> Difference | None:
    """The global that differs from what was recorded; of several one that was not edited, if there is one.

    ``constants`` are the decoded ones. ``is_same_source`` is whether the function's digest is the recorded one: then a
    global that the function reads and that was not recorded was None.
    """
    constants = list(constants)
    functions = called_functions(function, constants)
    here = _by_place(globals_of(function, constants, Encoder()))
    then = _by_place(recipe.globals)
    places = set(then)
    if is_same_source:
        places |= here.keys() & _named_by(function)
    found = None
    for place in sorted(places):
        now = here.get(place, [])
        if not now:
            now = _none_or_unused(place)
        was = then.get(place, [None])
        if not now or (_texts(now) == _texts(was) and not _is_untold(now)):
            continue
        is_keyed = has_globals_in_key and _is_constexpr_global(place, now[0], functions)
        is_hashed = is_keyed or _default_of(place, functions) is not None
        edited = is_hashed and _is_said(place, functions)
        found = Difference(_sentence(place, now[0], was[0]), edited)
        if not found.edited:
            return found
    return found


def undecided(function: Any, constants: Iterable[object], has_globals_in_key: bool) -> str:
    """A value that may be another one on another target, and with that no other key, as a sentence; else ``""``.

    The module was imported for the recorded target, and may have asked for it; only what its source says in letters is
    the same everywhere. ``has_globals_in_key`` is whether constexpr globals are part of the running Triton's key: then
    a kernel with another value lies under another key, and harms nobody.
    """
    constants = list(constants)
    functions = called_functions(function, constants)
    for one in globals_of(function, constants, Encoder()):
        place = (one.module, one.name)
        is_keyed = has_globals_in_key and _is_constexpr_global(place, one.value, functions)
        if not is_keyed and not _is_class(one.value) and not _is_said(place, functions):
            where = f"{one.module}.{one.name}" if one.module else one.name
            return f"{where} may have another value there, which the key does not tell"
    return ""


def _by_place(values: Iterable[Global]) -> dict[Place, list[Encoded]]:
    """The values by module and name; the variables of enclosing functions may have one name and several values."""
    found: dict[Place, list[Encoded]] = {}
    for one in values:
        found.setdefault((one.module, one.name), []).append(one.value)
    return found


def _texts(values: Iterable[Encoded]) -> set[str]:
    """The values as text: to Python, a truth and a number are equal. Where the file of a function is does not count."""
    return {json.dumps(_without_file(value)) for value in values}


def _without_file(value: Any) -> Any:
    if type(value) is list:
        return [_without_file(one) for one in value]
    if type(value) is not dict:
        return value
    if "function" in value:
        module, qualname, _, digest = value["function"]
        return {"function": [module, qualname, digest]}
    return {kind: _without_file(content) for kind, content in value.items()}


def _is_untold(values: Iterable[Encoded]) -> bool:
    """Whether one of the values is of a type of which no recipe can tell more than the name."""
    told = [value for value in values if type(value) is dict and "unencoded" in value]
    return not all(map(_is_class, told))


def _is_class(value: Encoded) -> bool:
    """Whether a value is a class; what is read of it is told apart."""
    return type(value) is dict and str(value.get("unencoded")).startswith(CLASS)


def _named_by(function: Any) -> set[Place]:
    """The places of all globals that the code of a function itself names."""
    module = function.fn.__globals__.get("__name__", "")
    return {(module, name) for name in function.fn.__code__.co_names}


def _none_or_unused(place: Place) -> list[Encoded]:
    """What Triton does not list: None, if the variable is None (which it passes over); else it is not read now."""
    module, name = place
    variables = _variables_of(module)
    return [None] if name in variables and variables[name] is None else []


def _variables_of(module: str) -> Mapping[str, Any]:
    found = _imported(module)
    return {} if found is None else vars(found)


def _imported(module: str) -> ModuleType | None:
    """The module of the name that a program knows it by; a replay imports a script under another name."""
    return sys.modules.get("__mp_main__" if module == "__main__" else module)


def _sentence(place: Place, now: Encoded, then: Encoded) -> str:
    module, name = place
    where = f"{module}.{name}" if module else name
    if _is_untold([now]) and now == then:
        type_ = now["unencoded"]  # type: ignore[index]
        return f"{where} is a {type_}, and no recipe can tell whether the recorded one was like it"
    return f"{where} is {_shown(now)} here, and was {_shown(then)}"


def _shown(value: Encoded) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _is_constexpr_global(place: Place, value: Encoded, functions: list[Any]) -> bool:
    """Whether a value is that of a constexpr global, which some Tritons have in the digest of a function."""
    is_constexpr = type(value) is dict and "constexpr" in value
    return is_constexpr and any(place in noted_by(one) for one in functions)


_SAME_EVERYWHERE = frozenset(("torch", "numpy", *sys.stdlib_module_names))
"""Packages whose constants (``math.pi``, ``torch.float32``) no machine decides."""


def _is_said(place: Place, functions: list[Any]) -> bool:
    """Whether the source says a value, as a literal: then no machine decides it."""
    module, _ = place
    if module.partition(".")[0] in _SAME_EVERYWHERE:
        return True
    default = _default_of(place, functions)
    return _is_literal(place) if default is None else _is_plain(default)


def _default_of(place: Place, functions: list[Any]) -> ast.expr | None:
    """The default that the source of one of these functions says, where a place is that; it is hashed with the rest."""
    module, name = place
    qualname, _, parameter = name.rstrip(")").partition("(")
    for one in functions:
        if parameter and (one.fn.__module__, one.fn.__qualname__) == (module, qualname):
            return _defaults_in(one.parse().body[0].args).get(parameter)
    return None


def _defaults_in(arguments: ast.arguments) -> dict[str, ast.expr]:
    positional = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
    count = len(arguments.defaults)
    said: dict[str, ast.expr] = dict(
        zip(positional[len(positional) - count :], arguments.defaults, strict=True)
    )
    for one, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if value is not None:
            said[one.arg] = value
    return said


def _is_literal(place: Place) -> bool:
    """Whether the module, or its class, assigns the variable once, at its top, and a literal."""
    module, name = place
    found = _imported(module)
    if found is None:
        return False
    try:
        tree = ast.parse(inspect.getsource(found))
    except (OSError, TypeError, SyntaxError, ValueError, RecursionError):
        return False
    *classes, variable = name.split(".")
    body: ast.Module | ast.ClassDef = tree
    for class_ in classes:
        inner = [one for one in body.body if isinstance(one, ast.ClassDef) and one.name == class_]
        if len(inner) != 1:
            return False
        body = inner[0]
    top = [value for target, value in _assigned(body.body) if target == variable]
    if len(top) != 1 or _count_assigned(body, variable) != 1:
        return False
    return _is_plain(top[0])


def _count_assigned(tree: ast.AST, variable: str) -> int:
    """How often a variable of this name is assigned anywhere in a source."""
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == variable and isinstance(node.ctx, ast.Store):
            count += 1
    return count


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


def _name_of(called: ast.expr) -> str:
    """The last word of what is called; ``""`` where that is no name."""
    if isinstance(called, ast.Attribute):
        return called.attr
    return called.id if isinstance(called, ast.Name) else ""


def _is_plain(value: ast.expr) -> bool:
    """Whether an expression is a literal, a type ``tl.…``, or such in ``tl.constexpr(…)`` or ``float(…)``.

    Or ``auto()``, the next number in an enum.
    """
    if isinstance(value, ast.Call) and not value.args and not value.keywords:
        return _name_of(value.func) == "auto"
    if isinstance(value, ast.Call):
        if len(value.args) != 1 or value.keywords:
            return False
        return _name_of(value.func) in ("constexpr", "float") and _is_plain(value.args[0])
    if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
        return value.value.id == "tl"
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return False
    return True
