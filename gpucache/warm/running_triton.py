"""The Triton of this process, as a replay needs it: the one module of gpucache that imports Triton.

Nothing here asks which version runs: each of 3.2 to 3.9 is asked for what it has (`triton/runtime/jit.py`,
`triton/compiler/compiler.py`, `triton/runtime/cache.py` of 3.2.0, 3.4.0, 3.6.0 and 3.9.0).
"""

from __future__ import annotations

import functools
import gc
import inspect
import os
import sys
import weakref
from contextlib import contextmanager

import triton
import triton.language as tl
from triton._C.libtriton import get_cache_invalidating_env_vars
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime import JITFunction
from triton.runtime.driver import driver

from gpucache import environment
from gpucache.triton.remember import remember_key
from gpucache.warm.asked import AskedCacheManager, answering
from gpucache.warm.stand_ins import DIVISIBILITY, EQUAL_TO, Pointer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from gpucache.kernels.recipe import Path, Target
    from gpucache.warm.asked import Answer

VERSION: str = triton.__version__


class NoGpuError(AttributeError, RuntimeError):
    """What code that runs during a replay has asked of a GPU. An `AttributeError`, so that ``hasattr`` says no."""


class NoGpu:
    """Triton's active driver where no GPU may be touched: it knows the target, and nothing of a device.

    As `triton.backends.driver.DriverBase`. Code asks for the target while its module is imported, and functions of
    `triton.language` while a kernel is compiled; Triton 3.2 asks for a benchmarker for each ``@triton.autotune``.
    """

    def __init__(self) -> None:
        self.target = GPUTarget("cuda", 90, 32)

    @classmethod
    def is_active(cls) -> bool:
        """Yes: else Triton would look for another driver."""
        return True

    def get_current_target(self) -> Any:
        """The target of the replay."""
        return self.target

    def get_current_device(self) -> int:
        """The first device, which nobody can use."""
        return 0

    def set_current_device(self, device: int) -> None:
        """Do nothing."""

    def get_current_stream(self, device: int) -> int:
        """The default stream, on which nothing is launched."""
        return 0

    def get_active_torch_device(self) -> Any:
        """The torch device by name, if torch is imported; to make a tensor on it fails."""
        torch = sys.modules.get("torch")
        if torch is None:
            raise NoGpuError("torch is not imported")
        return torch.device("cuda", 0)

    def get_benchmarker(self) -> Callable[..., Any]:
        """What measures nothing: to call it fails."""
        return _no_benchmark

    def __getattr__(self, name: str) -> Any:
        raise NoGpuError(f"{name} of a GPU was asked for, and recipes are compiled without one")


def _no_benchmark(*_: object, **__: object) -> Any:
    raise NoGpuError("a kernel was to be launched, and recipes are compiled without a GPU")


_driver = NoGpu()


def put_driver(target: Target) -> None:
    """Make the driver without a GPU Triton's active one, and say that it drives this target."""
    _driver.target = GPUTarget(*target)
    driver.set_active(_driver)


def hash_triton() -> None:
    """Have Triton hash its own files, which it does once a process and keeps; a forked process need not do it again.

    Nor need this one where `GPUCACHE_REMEMBER_KEY` keeps the result in the environment's root.
    """
    from triton.compiler import compiler
    from triton.runtime import cache

    remember_key()
    for module in (cache, compiler):
        if hasattr(module, "triton_key"):
            module.triton_key()
            return


def listed_variables() -> dict[str, str]:
    """The environment variables that are part of this Triton's key and set now, in Triton's form."""
    return dict(get_cache_invalidating_env_vars())


# ---- functions


def is_kernel(value: object) -> bool:
    """Whether this is a function with ``@triton.jit`` (Gluon's too) or a constexpr function."""
    return isinstance(value, _FUNCTIONS)


def all_kernels() -> list[Any]:
    """All functions of Triton's that this process has made and that are still there."""
    found = [noted() for noted in _made]
    return [
        function for function in found if hasattr(function, "fn")
    ]  # else gone, or never made whole


def _functions() -> tuple[type, ...]:
    from triton.runtime import jit

    found = [JITFunction]
    for name in ("JITCallable", "ConstexprFunction"):
        if hasattr(jit, name):
            found.append(getattr(jit, name))
    return tuple(found)


_FUNCTIONS = _functions()


def _note_functions() -> list[weakref.ref[Any]]:
    """The functions that there are, to which each is added that is made from now on.

    The collector does not list them all: a process that forks workers has frozen what it has (`gc.freeze`).
    """
    noted = [weakref.ref(value) for value in gc.get_objects() if _is_kernel_type(type(value))]
    base = getattr(sys.modules["triton.runtime.jit"], "JITCallable", JITFunction)
    make = base.__init__

    @functools.wraps(make)
    def made(self: Any, *words: Any, **named: Any) -> None:
        noted.append(weakref.ref(self))
        make(self, *words, **named)

    base.__init__ = made
    return noted


def _is_kernel_type(cls: type) -> bool:
    """Whether a class is one of functions of Triton's; asks nothing of its objects, which may answer anything."""
    return issubclass(cls, _FUNCTIONS)


_made = _note_functions()


# ---- values


def constexpr(value: object) -> Any:
    """`triton.language.constexpr` of a value."""
    return tl.constexpr(value)


def dtype(name: str) -> Any:
    """The `triton.language.dtype` of that name.

    Raises:
        ValueError: this Triton has none.
    """
    try:
        return tl.dtype(name)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"this Triton has no type {name!r}") from error


def pointer(element: object, address_space: int | str, is_const: bool) -> Any:
    """`triton.language.pointer_type`; of another version's kind of address space, the default."""
    default = inspect.signature(tl.pointer_type.__init__).parameters["address_space"].default
    space = address_space if type(address_space) is type(default) else default
    return tl.pointer_type(element, space, is_const)


def block(element: object, shape: list[int]) -> Any:
    """`triton.language.block_type`."""
    return tl.block_type(element, shape)


def triton_tuple(values: list[object]) -> Any:
    """`triton.language.tuple`.

    Raises:
        ValueError: this Triton has none.
    """
    made = getattr(tl, "tuple", None)
    if made is None:
        raise ValueError("this Triton has no tuples")
    return made(values)


def descriptor(base: Pointer, shape: list[int]) -> Any:
    """A host-side tensor descriptor over a base.

    Raises:
        ValueError: this Triton has none.
    """
    try:
        from triton.tools.tensor_descriptor import TensorDescriptor
    except ImportError as error:
        raise ValueError("this Triton has no tensor descriptors") from error
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, max(strides[0] * size, 16))
    return TensorDescriptor(base, shape, strides, shape)


# ---- sources


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


# ---- the cache


@contextmanager
def asked_for(answer: Answer) -> Iterator[None]:
    """Have ``answer`` make Triton's cache manager of each key that Triton asks for, until the end of the block.

    What ``answer`` raises comes out of Triton's `compile`, which has done nothing before but compute the key.
    """
    knobs = getattr(triton, "knobs", None)
    with answering(answer):
        if knobs is None:
            with _manager_by_variable():
                yield
            return
        with knobs.cache.scope():
            knobs.cache.manager_class = AskedCacheManager
            yield


@contextmanager
def _manager_by_variable() -> Iterator[None]:
    """Name the manager as Triton 3.2 and 3.3 read it."""
    name = environment.MANAGER.name
    before = os.environ.get(name)
    os.environ[name] = f"{AskedCacheManager.__module__}:{AskedCacheManager.__qualname__}"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
