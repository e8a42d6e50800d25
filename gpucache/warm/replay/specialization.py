"""What a recipe has Triton compile: a source, whose arguments the running Triton specialises itself, and options.

Nothing here asks which version runs: each of 3.2 to 3.9 is asked for what it has (`triton/runtime/jit.py` and
`triton/compiler/compiler.py` of 3.2.0, 3.4.0, 3.6.0 and 3.9.0).
"""

from __future__ import annotations

import inspect

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from gpucache.warm.replay.running_triton import put_driver
from gpucache.warm.replay.stand_ins import DIVISIBILITY, EQUAL_TO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from gpucache.kernels.recipe import Path, Target


class Compilable:
    """What Triton's `compile` is given: a source, a target, and options."""

    def __init__(self, source: Any, target: Any, options: Mapping[str, Any]) -> None:
        self.source = source
        self.target = target
        self.options = options

    def compile(self) -> Any:
        """Have Triton compile it, or take it from the cache."""
        return triton.compile(self.source, target=self.target, options=dict(self.options))


def unknown_options(target: Target, names: Sequence[str]) -> list[str]:
    """Which of these options the backend of a target does not have.

    Raises:
        RuntimeError: this Triton has no backend for the target.
    """
    parsed = make_backend(GPUTarget(*target)).parse_options({})
    return sorted(name for name in names if not hasattr(parsed, name))


def launched(
    function: Any, target: Target, arguments: Mapping[str, object], options: Mapping[str, object]
) -> Compilable:
    """What a launch of a function with these arguments, by name, would have Triton compile.

    The running Triton's own code specialises them. No hook of Triton's is called, and none of the function's.
    """
    put_driver(target)
    gpu = GPUTarget(*target)
    if _HAS_DESCRIPTOR_OF_ATTRIBUTES:
        return _launched_before_3_3(function, gpu, arguments, options)
    # create_binder also chooses the class of the source, which is another one for Gluon
    *_, backend, bind = function.create_binder()
    words, named = _call(function, arguments, options)
    bound, specialization, excess = bind(*words, **named)
    pack = getattr(function, "_pack_args", _packed)
    if pack is _packed:
        packed = _packed(function, backend, dict(options), bound, specialization)
    else:
        packed = pack(backend, dict(options), bound, specialization, excess)
    parsed, signature, constants, attributes = packed
    source = function.ASTSource(function, signature, constants, attributes)
    return Compilable(source, gpu, parsed.__dict__)


def _call(
    function: Any, arguments: Mapping[str, object], options: Mapping[str, object]
) -> tuple[list[object], dict[str, object]]:
    """How to call what binds arguments: by position and by name; an option may be called as a parameter is."""
    words: list[object] = []
    named = {name: value for name, value in options.items() if name not in arguments}
    has_gap = False
    for name, parameter in function.signature.parameters.items():
        if name not in arguments:
            has_gap = True  # it has a default
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            words.extend(arguments[name])  # type: ignore[arg-type]
        elif has_gap or parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            named[name] = arguments[name]
        else:
            words.append(arguments[name])
    return words, named


def _packed(
    function: Any,
    backend: Any,
    options: dict[str, object],
    bound: Mapping[str, object],
    specialization: list[tuple[Any, Any]],
) -> tuple[Any, ...]:
    """As `JITFunction.run` of 3.4.0 does between binding and compiling; later versions have a method for that."""
    from triton._utils import find_paths_if, get_iterable_path

    types = [one[0] for one in specialization]
    found = [one[1] for one in specialization]
    signature = dict(zip([one.name for one in function.params], types, strict=True))
    values = list(bound.values())
    constants = {}
    for path in find_paths_if(types, lambda _, value: value == "constexpr"):
        constants[path] = get_iterable_path(values, path)
    attributes = {}
    for path in find_paths_if(found, lambda _, value: isinstance(value, str)):
        attributes[path] = backend.parse_attr(get_iterable_path(found, path))
    return backend.parse_options(options), signature, constants, attributes


def as_said(
    function: Any,
    target: Target,
    signature: Mapping[str, object],
    constants: Mapping[Path, object],
    attributes: Mapping[Path, Sequence[tuple[str, int]]],
    options: Mapping[str, object],
) -> Compilable:
    """What was compiled of a source that somebody made himself: word by word."""
    put_driver(target)
    gpu = GPUTarget(*target)
    if _HAS_DESCRIPTOR_OF_ATTRIBUTES:
        source = _said_before_3_3(function, signature, constants, attributes)
        return Compilable(source, gpu, options)
    cls = ASTSource
    if getattr(function, "is_gluon", lambda: False)():
        from triton.experimental.gluon._runtime import GluonASTSource

        cls = GluonASTSource
    lists = {}
    for path, properties in attributes.items():
        lists[path] = [list(one) for one in properties]
    types = {name: signature.get(name, "constexpr") for name in function.arg_names}
    return Compilable(cls(function, types, dict(constants), lists), gpu, options)


# ---- Triton 3.2

_HAS_DESCRIPTOR_OF_ATTRIBUTES = "constants" in inspect.signature(ASTSource.__init__).parameters
"""Until 3.2 the attributes of all arguments are one object, and constants are known by names."""


def _launched_before_3_3(
    function: Any, gpu: Any, arguments: Mapping[str, object], options: Mapping[str, object]
) -> Compilable:
    """As `JITFunction.run` of 3.2.0 does between binding and compiling."""
    backend = make_backend(gpu)
    function.create_binder(backend)
    words, named = _call(function, arguments, options)
    bound, types, *_ = function.binder(*words, **named)
    values = tuple(bound.values())
    signature = {}
    for index, type_ in zip(function.non_constexpr_indices, types, strict=False):
        signature[function.params[index].name] = "*i8" if type_ == "none" else type_
    attributes = backend.get_attrs_descriptor(function.params, values)
    ones = attributes.get_constants()
    constants = {}
    for parameter, value in zip(function.params, values, strict=True):
        if parameter.is_constexpr or parameter.num in ones or value is None:
            constants[parameter.name] = value
    source = ASTSource(function, signature, constants, attributes)
    return Compilable(source, gpu, backend.parse_options(dict(options)).__dict__)


def _said_before_3_3(
    function: Any,
    signature: Mapping[str, object],
    constants: Mapping[Path, object],
    attributes: Mapping[Path, Sequence[tuple[str, int]]],
) -> Any:
    from triton.backends.compiler import AttrsDescriptor

    names = function.arg_names
    named = {names[path[0]]: value for path, value in constants.items()}
    types = {name: type_ for name, type_ in signature.items() if type_ != "constexpr"}
    found: dict[str, list[int]] = {}
    for path, properties in attributes.items():
        for name, _ in properties:
            found.setdefault(name, []).append(path[0])
    if not found:
        return ASTSource(function, types, named)
    for name in (DIVISIBILITY, EQUAL_TO):
        found.setdefault(name, [])
    said = {"arg_properties": found, "cls": "AttrsDescriptor"}
    return ASTSource(function, types, named, AttrsDescriptor.from_dict(said))
