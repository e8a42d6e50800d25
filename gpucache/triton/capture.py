"""The recipe of the kernel that Triton is asking for, read from the frame of its `compile`, which calls the plug-in.

No hook of Triton's is set: one that is set breaks launches that work without it. When it asks for a group, and when it
puts one, `compile` of Triton 3.2.0 to 3.9.0 (`triton/compiler/compiler.py`; each minor version was asked) has as locals
``src``, an `ASTSource` of function, signature, constants and attributes; ``backend``; ``options``, the backend's,
parsed; ``env_vars``, the variables that are part of the key; ``target``. This module is not imported before a process
publishes, adopts or records its first kernel.
"""

from __future__ import annotations

import linecache
import re
import sys
import threading
from contextlib import contextmanager

from gpucache.kernels.encoding import Encoder, Unencodable, as_shown, function_of, is_function
from gpucache.kernels.recipe import MOST_BYTES, Recipe, Target, to_text
from gpucache.log import DEBUG, tell
from gpucache.triton.captured_globals import globals_of
from gpucache.triton.captured_options import asked_options, differing, shown_variables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType
    from typing import Any

    from gpucache.kernels.encoding import Encoded
    from gpucache.kernels.recipe import Path

    Constants = tuple[tuple[Path, Encoded], ...]
    Specialized = tuple[tuple[Path, tuple[tuple[str, int], ...]], ...]

_COMPILER = "triton.compiler.compiler"
_LAUNCHER = "triton.runtime.jit"
_SOURCES = (
    (_COMPILER, "ASTSource"),
    ("triton.experimental.gluon._runtime", "GluonASTSource"),
)
_GENERATED = re.compile(r"torch\._inductor\.(?:runtime\.compile_tasks|codecache)\.\w+")
"""Modules that TorchInductor has generated: `_reload_python_module` names them so (`torch/_inductor/runtime/
compile_tasks.py` of 2.13.0; before 2.5 in `codecache.py`). Each is a file in its cache, which may go at any time."""

_replayed = threading.local()


@contextmanager
def replaying(recipe: Recipe) -> Iterator[None]:
    """Have what this thread compiles in a ``with`` block recorded as a replay of a recipe.

    Its function may have been imported under another name, and its source from another place, than the program has
    that will ask for the kernel.
    """
    before = getattr(_replayed, "recipe", None)
    _replayed.recipe = recipe
    try:
        yield
    finally:
        _replayed.recipe = before


def recipe_text_of(frame: FrameType, key: str) -> bytes | None:
    """The recipe of the kernel of one key, for which a frame of Triton's `compile` asks, as one line.

    None for what cannot be told in a recipe: a source that is no function, a value of a type that another process
    cannot be given. That is one line of the log, for debugging. Never raises.
    """
    try:
        return to_text(_recipe_of(frame, key))
    except Unencodable as error:
        reason: object = error.reason
    except Exception as error:  # another Triton's objects, or what a value's own code raises
        reason = f"{type(error).__name__}: {error}"
    tell(DEBUG, "no recipe: %s %s: %s", _kernel_in(frame), key, reason)
    return None


def recipe_of(frame: FrameType, key: str) -> Recipe | None:
    """As `recipe_text_of`, as a value."""
    from gpucache.kernels.recipe import from_text

    text = recipe_text_of(frame, key)
    return None if text is None else from_text(text)


def is_compile(frame: FrameType) -> bool:
    """Whether a frame is that of Triton's `compile`.

    Of another frame the locals are not even looked at: until Python 3.12 what was there stays alive in what `f_locals`
    gave, as long as the frame runs; and when a manager object goes decides when a turn of eviction begins.
    """
    return frame.f_code.co_name == "compile" and frame.f_globals.get("__name__") == _COMPILER


def _kernel_in(frame: FrameType) -> str:
    """The name of the kernel that a frame compiles, for the log."""
    try:
        return str(frame.f_locals["src"].name) if is_compile(frame) else "a kernel"
    except Exception:
        return "a kernel"


def _recipe_of(frame: FrameType, key: str) -> Recipe:
    """The recipe of what a frame compiles.

    Raises:
        Unencodable: it has none.
    """
    if not is_compile(frame):
        raise Unencodable("it is not asked for by Triton's compile")
    seen = frame.f_locals
    source, options = seen["src"], seen["options"]
    cls = type(source)
    if (cls.__module__, cls.__qualname__) not in _SOURCES:
        raise Unencodable(f"its source is a {cls.__module__}.{cls.__qualname__}")
    _refuse_hook()
    encoder = Encoder()
    replayed: Recipe | None = getattr(_replayed, "recipe", None)
    launched = _is_launched(frame) if replayed is None else replayed.launched
    asked = asked_options(frame) if replayed is None else set(replayed.options)
    signature = source.signature
    constants = _constants(source, encoder)
    variables = shown_variables(seen["env_vars"])
    recipe = Recipe(
        key=key,
        triton_version=as_shown(sys.modules["triton"].__version__),
        kernel=as_shown(source.name),
        function=function_of(source.fn),
        target=_target(seen["target"]),
        signature={as_shown(name): encoder.encode(kind) for name, kind in signature.items()},
        constants=constants,
        specialized=_specialized(source.attrs, signature, source.fn.arg_names, launched),
        options=differing(options, seen["backend"], variables, asked, encoder),
        variables=variables,
        launched=launched,
        globals=globals_of(source.fn, source.constants.values(), encoder),
        source=_generated_source(source.fn),
    )
    if replayed is None:
        return recipe
    # As the program has it that will ask for the kernel.
    function = replayed.function._replace(cache_key=recipe.function.cache_key)
    return recipe._replace(function=function, source=replayed.source)


def _refuse_hook() -> None:
    """Refuse what is compiled by stages of the program's own, whose name is part of the key (3.9.0 `compile`).

    Raises:
        Unencodable: there is a hook that changes the stages.
    """
    runtime = getattr(sys.modules.get("triton.knobs"), "runtime", None)
    if getattr(runtime, "add_stages_inspection_hook", None) is not None:
        raise Unencodable("a hook of the program changes its stages")


def _is_launched(frame: FrameType) -> bool:
    """Whether a launch has called `compile`, or the function by which a launch compiles in another thread (3.5)."""
    caller = frame.f_back
    return caller is not None and caller.f_globals.get("__name__") == _LAUNCHER


def _target(target: Any) -> Target:
    if type(target.arch) not in (int, str):
        raise Unencodable("the target's architecture is neither a number nor a text")
    return Target(as_shown(target.backend), target.arch, target.warp_size)


# ---- arguments


def _constants(source: Any, encoder: Encoder) -> Constants:
    """The values of the constant parameters by their paths, as Triton has them from 3.3 on."""
    found = []
    for place, value in source.constants.items():
        path = _path(place, source.fn.arg_names)
        encoded = encoder.encode(value)
        # The text is part of the key, but for a function's, and no other process has the same.
        if type(encoded) is dict and not is_function(value) and " at 0x" in str(value):
            raise Unencodable(f"the text of the constant {path} holds an address")
        found.append((path, encoded))
    return tuple(found)


def _path(place: object, names: list[str]) -> Path:
    """A path to an argument; Triton 3.2 has names and numbers of parameters."""
    if type(place) is tuple:
        return place
    if type(place) is int:
        return (place,)
    return (names.index(place),)  # type: ignore[arg-type]


def _specialized(
    attrs: Any, signature: Mapping[str, Any], names: list[str], launched: bool
) -> Specialized:
    """What was found out about arguments, by their paths, as `Recipe.specialized` describes it."""
    if not isinstance(attrs, dict):
        return _described(attrs)
    constant = _constant_paths(signature, names) if launched else ()
    found = []
    for path, properties in attrs.items():
        if not any(path[: len(above)] == above for above in constant):
            found.append((path, tuple(map(_property, properties))))
    return tuple(found)


def _constant_paths(signature: Mapping[str, Any], names: list[str]) -> list[Path]:
    """The paths of the arguments, and of the parts of tuples, that are constants."""
    found: list[Path] = []

    def look(path: Path, kind: object) -> None:
        if isinstance(kind, tuple):
            for number, part in enumerate(kind):
                look((*path, number), part)
        elif kind == "constexpr":
            found.append(path)

    for name, kind in signature.items():
        look((names.index(name),), kind)
    return found


def _property(said: Any) -> tuple[str, int]:
    name, value = said
    if type(value) is not int:
        raise Unencodable(f"an argument has a property that is no number: {name}")
    return as_shown(name), value


def _described(attrs: Any) -> Specialized:
    """The same in Triton 3.2, whose `AttrsDescriptor` (`triton/backends/compiler.py`) has parameters by properties."""
    by_path: dict[Path, list[tuple[str, int]]] = {}
    for name in sorted(attrs.arg_properties):
        value = attrs.property_values[name]
        for number in attrs.arg_properties[name]:
            by_path.setdefault((number,), []).append(_property((name, value)))
    return tuple((path, tuple(by_path[path])) for path in sorted(by_path))


def _generated_source(function: Any) -> str | None:
    """The text of the function's module, if TorchInductor has generated that; else None.

    `linecache` has it already, for Triton has looked the function up in it.
    """
    if not _GENERATED.fullmatch(function.fn.__module__):
        return None
    lines = linecache.getlines(function.fn.__code__.co_filename)
    text = "".join(lines)
    if not text or len(text) > MOST_BYTES:
        raise Unencodable("the source of its generated module is not there, or too long")
    return text
