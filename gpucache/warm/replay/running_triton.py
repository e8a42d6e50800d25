"""The Triton of this process, as a replay needs it; only this module and `specialization` import Triton.

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
from triton.runtime import JITFunction
from triton.runtime.driver import driver

from gpucache import environment
from gpucache.triton.remember import remember_key
from gpucache.warm.replay.cache_manager import ReplayCacheManager, answering
from gpucache.warm.replay.no_gpu import NoGpu
from gpucache.warm.replay.stand_ins import Pointer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from gpucache.kernels.recipe import Target
    from gpucache.warm.replay.cache_manager import Answer

VERSION: str = triton.__version__
_major, _minor = VERSION.split(".")[:2]
HAS_GLOBALS_IN_KEY = (int(_major), int(_minor)) >= (3, 6)
"""Whether constexpr globals that a function reads are part of the key: not in 3.2.0 and 3.4.0, but from 3.6.0 on."""


_driver = NoGpu(GPUTarget("cuda", 90, 32))


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
    # One without is gone, or was never made whole.
    return [function for function in found if hasattr(function, "fn")]


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
    there = [value for value in gc.get_objects() if _is_kernel_type(type(value))]
    noted = [weakref.ref(value) for value in there]
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
    parameters = inspect.signature(tl.pointer_type.__init__).parameters
    default = parameters["address_space"].default
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
            knobs.cache.manager_class = ReplayCacheManager
            yield


@contextmanager
def _manager_by_variable() -> Iterator[None]:
    """Name the manager as Triton 3.2 and 3.3 read it."""
    name = environment.MANAGER.name
    before = os.environ.get(name)
    os.environ[name] = f"{ReplayCacheManager.__module__}:{ReplayCacheManager.__qualname__}"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
