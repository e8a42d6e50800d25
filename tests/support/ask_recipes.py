"""Ask Triton for kernels, on a stand-in driver, and print the recipes that the plug-in reads from `compile`'s frame.

``python ask_recipes.py TARGET`` prints one JSON object: by the name of the case the recipe as a line, or the reason why
there is none, and whether each constant came back from its encoding as it was. Nothing is compiled. For Triton 3.2 to
3.9: what a version cannot launch is left out.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

warnings.simplefilter("ignore")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

import recorded_kernels as kernels  # noqa: E402  # isort: skip
from stand_in import stand_in, target_of  # noqa: E402  # isort: skip

from gpucache.kernels.recipe import decode, from_text  # noqa: E402
from gpucache.triton import capture  # noqa: E402


class Asked(Exception):
    """A kernel was asked for; it is not to be compiled."""


class Tensor:
    """An argument of a launch, as far as Triton looks at one."""

    def __init__(self, dtype: str = "fp32", address: int = 16) -> None:
        self.dtype = dtype
        self.address = address

    def data_ptr(self) -> int:
        return self.address

    def ptr_range(self) -> int:
        return 2**32


class CacheManager:
    """Reads the recipe of the one kernel that it is asked for."""

    answer: Any = None
    seen: Any = None
    """The locals of `compile` when it asked."""

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        self.key = key

    def get_group(self, filename: str) -> None:
        frame = sys._getframe(1)
        CacheManager.seen = dict(frame.f_locals)
        text = capture.recipe_text_of(frame, self.key)
        if text is None:
            CacheManager.answer = None
        else:
            came_back = all(map(_came_back, from_text(text).constants, _constants(frame)))
            CacheManager.answer = [text.decode(), came_back]
        raise Asked


def _constants(frame: Any) -> list[Any]:
    return list(frame.f_locals["src"].constants.values())


def _came_back(constant: Any, value: Any) -> bool:
    """Whether a constant has after encoding and decoding the type and the text that it had."""
    again = decode(constant[1], Triton())
    return type(again) is type(value) and str(again) == str(value)


class Triton:
    """Makes the values that are Triton's, and finds what has a name."""

    def find(self, module: str, qualname: str) -> Any:
        found = sys.modules[module]
        for name in qualname.split("."):
            found = getattr(found, name)
        return found

    def function(self, function: Any) -> Any:
        return self.find(function.module, function.qualname)

    def enum(self, module: str, qualname: str, name: str) -> Any:
        return self.find(module, qualname)[name]

    def namedtuple(self, module: str, qualname: str, values: list[Any]) -> Any:
        return self.find(module, qualname)(*values)

    def dataclass(self, module: str, qualname: str, fields: dict[str, Any]) -> Any:
        return self.find(module, qualname)(**fields)

    def constexpr(self, value: Any) -> Any:
        return tl.constexpr(value)

    def dtype(self, name: str) -> Any:
        return tl.dtype(name)

    def pointer(self, element: Any, space: Any, is_const: bool) -> Any:
        return tl.pointer_type(element, space, is_const)

    def block(self, element: Any, shape: list[int]) -> Any:
        return tl.block_type(element, shape)

    def triton_tuple(self, values: list[Any]) -> Any:
        return tl.tuple(values)

    def torch_dtype(self, name: str) -> Any:
        return getattr(sys.modules["torch"], name)


class Reasons(logging.Handler):
    """Keeps the last line of the log."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        Reasons.last = record.getMessage()


def use_manager() -> None:
    if hasattr(triton, "knobs"):
        triton.knobs.cache.manager_class = CacheManager
        return
    from triton.compiler import compiler
    from triton.runtime import cache

    key = cache._base32 if hasattr(cache, "_base32") else cache._base64
    compiler.get_cache_manager = lambda digest: CacheManager(key(digest))


def ask(function: Any, *arguments: object, **named: object) -> Any:
    """The recipe of a kernel and whether its constants came back; else why there is none."""
    CacheManager.answer, Reasons.last = None, ""
    try:
        function[(1,)](*arguments, **named)
    except Asked:
        return CacheManager.answer or Reasons.last
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nobody asked"


def ask_in_another_thread() -> Any:
    """What `ask` says of a kernel that a launch compiles in a thread of an executor (Triton 3.5 and later)."""
    try:
        from triton.runtime._async_compile import AsyncCompileMode
    except ImportError:
        return None
    with ThreadPoolExecutor(1) as pool, suppress(Asked), AsyncCompileMode(pool):
        ask(kernels.plain, Tensor(), Tensor(), 64, B=256, num_warps=8)
    return CacheManager.answer  # the end of the block has waited for the thread


def ask_as_replay() -> Any:
    """What `ask` says of a kernel that was launched, and now is compiled as the replay of its recipe."""
    said = ask(kernels.plain, Tensor(), None, 1, B="Dx")
    if isinstance(said, str):
        return None
    text = said[0]
    recipe, seen = from_text(text.encode()), CacheManager.seen
    function = recipe.function._replace(module="another", file="/elsewhere/another.py")
    try:
        with capture.replaying(recipe._replace(function=function, source="x = 1")):
            triton.compile(seen["src"], target=seen["target"], options=seen["options"].__dict__)
    except Asked:
        return [text, CacheManager.answer[0]]
    return None


def cases() -> dict[str, Any]:
    """By names what to launch."""
    x, odd = Tensor(), Tensor("fp16", 8)
    plain, annotated, tuples = kernels.plain, kernels.annotated, kernels.tuples
    found = {
        "plain": (plain, (x, odd, 48), {"B": 128}),
        "one and none": (plain, (x, None, 1), {"B": 1.5}),
        "options": (plain, (x, x, 3), {"B": 1, "num_warps": 8, "enable_fp_fusion": False}),
        "default options": (plain, (x, x, 3), {"B": 1, "num_warps": 4, "enable_fp_fusion": True}),
        "annotated one": (annotated, (x, 1), {"WORD": "Dx"}),
        "annotated three": (annotated, (x, 3), {"WORD": "Dx"}),
        "dtype": (plain, (x, x, 3), {"B": tl.float16}),
        "enum": (plain, (x, x, 3), {"B": kernels.Mode.FAST}),
        "nested": (plain, (x, x, 3), {"B": (1, (2.0, None, "a"), True)}),
        "namedtuple": (plain, (x, x, 3), {"B": kernels.Pair(1, tl.float32)}),
        "constexpr": (plain, (x, x, 3), {"B": tl.constexpr(3)}),
        "function": (plain, (x, x, 3), {"B": kernels.helper}),
        "tuple of functions": (plain, (x, x, 3), {"B": (kernels.helper, 1)}),
        "tuple argument": (tuples, (x, (1, 32, odd, (5, kernels.helper))), {"B": 1}),
        "namedtuple argument": (tuples, (x, kernels.Pair(5, None)), {"B": 1}),
        "inside": (kernels.inside(), (x,), {"B": 1}),
        "a global set": (kernels.reads_a_set, (x,), {"B": 1}),
        "dataclass": (plain, (x, x, 3), {"B": kernels.Tile(4, (tl.int8, 2.0))}),
        "object": (plain, (x, x, 3), {"B": object()}),
        "lambda": (plain, (x, x, 3), {"B": lambda: 0}),
        "a set in a tuple": (plain, (x, x, 3), {"B": (1, frozenset())}),
    }
    if hasattr(triton, "constexpr_function"):
        found["constexpr_function"] = (plain, (x, x, 3), {"B": kernels.doubled})
        found["tuple of a constexpr_function"] = (plain, (x, x, 3), {"B": (kernels.doubled, 1)})
    if kernels.gluon is not None:
        found["gluon"] = (kernels.of_gluon, (x,), {"B": 128, "LAYOUT": kernels.BLOCKED})
    return found


def main() -> None:
    stand_in(target_of(sys.argv[1]))
    use_manager()
    logging.getLogger("gpucache").setLevel(logging.DEBUG)
    logging.getLogger("gpucache").addHandler(Reasons())
    said = {name: ask(one, *words, **named) for name, (one, words, named) in cases().items()}
    answer = {"version": triton.__version__, "said": said, "replayed": ask_as_replay()}
    answer["in a thread"] = ask_in_another_thread()
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
