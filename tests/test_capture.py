"""The recipe that the plug-in reads from the frame of the real Triton's `compile`; nothing is compiled.

`GPUCACHE_TEST_TRITON` names another Python, with another Triton.
"""

from __future__ import annotations

import json
import os
import sys
import weakref

import pytest
from support.ranks import python_with_triton

from gpucache.kernels.recipe import Global, Target, from_text
from gpucache.triton.capture import recipe_of, recipe_text_of

needs_triton = pytest.mark.usefixtures("triton")
ASK = "import ask_recipes; ask_recipes.main()"


def asked(target="sm_90", **environ):
    return json.loads(python_with_triton(ASK, target, env={**os.environ, **environ}))


@pytest.fixture(scope="module")
def answer(guard, triton):
    return asked()


@pytest.fixture
def recipe(answer):
    """The recipe of a case, whose constants came back as they were."""

    def recipe_of_case(name):
        said = answer["said"][name]
        assert isinstance(said, list), said
        text, came_back = said
        assert came_back
        return from_text(text.encode())

    return recipe_of_case


def since(answer, *version):
    return tuple(map(int, answer["version"].split(".")[:2])) >= version


def test_a_plain_launch_is_told_whole(answer, recipe):
    one = recipe("plain")
    assert one.triton_version == answer["version"]
    assert (one.kernel, one.function.module, one.function.qualname) == (
        "plain",
        "recorded_kernels",
        "plain",
    )
    assert one.function.file.endswith("/tests/support/recorded_kernels.py")
    assert one.function.cache_key
    assert one.target == Target("cuda", 90, 32)
    types = {"x": "*fp32", "y": "*fp16", "n": "i32"}
    assert one.signature == (types | {"B": "constexpr"} if since(answer, 3, 3) else types)
    assert one.constants == (((3,), 128),)
    assert dict(one.specialized)[(0,)] == dict(one.specialized)[(2,)] == (("tt.divisibility", 16),)
    assert not dict(one.specialized).get((1,))
    assert (one.options, one.variables, one.launched, one.source) == ({}, {}, True, None)


def test_globals_of_a_function_that_the_kernel_calls_are_told_too(recipe):
    module = "recorded_kernels"
    assert sorted(recipe("plain").globals) == [
        Global(module, "LIMIT", {"constexpr": 4}),
        Global(module, "PLAIN", 3),
    ]
    assert recipe("a global set").globals == (
        Global(module, "OTHER", {"unencoded": "builtins.set"}),
    )


def test_options_that_a_launch_names_are_told_though_they_are_the_backends_own(recipe):
    assert recipe("options").options == {"num_warps": 8, "enable_fp_fusion": False}
    assert recipe("default options").options == {"num_warps": 4, "enable_fp_fusion": True}
    assert recipe("plain").options == {}


def test_what_was_not_looked_at_differs_from_what_has_no_property(answer, recipe):
    """In Triton's key an annotated argument has no path where it is 1, and an empty one where it is 3."""
    if not since(answer, 3, 3):
        return  # Triton 3.2 tells only what was found
    assert (1,) not in dict(recipe("annotated one").specialized)
    assert dict(recipe("annotated three").specialized)[(1,)] == ()


def test_constants_that_are_no_numbers_are_encoded_by_their_types(answer, recipe):
    module = "recorded_kernels"
    assert dict(recipe("one and none").constants)[(1,)] is None
    assert dict(recipe("dtype").constants)[(3,)] == {"dtype": "fp16"}
    assert dict(recipe("enum").constants)[(3,)] == {"enum": [module, "Mode", "FAST"]}
    pair = [module, "Pair", [1, {"dtype": "fp32"}]]
    assert dict(recipe("namedtuple").constants)[(3,)] == {"namedtuple": pair}
    assert recipe("nested").constants
    assert recipe("tuple of functions").constants
    fields = [["rows", 4], ["columns", {"tuple": [{"dtype": "int8"}, {"float": (2.0).hex()}]}]]
    assert dict(recipe("dataclass").constants)[(3,)] == {"dataclass": [module, "Tile", fields]}
    if since(answer, 3, 3):
        assert dict(recipe("constexpr").constants)[(3,)] == {"constexpr": 3}
        function = dict(recipe("function").constants)[(3,)]["function"]
        assert function[:2] == [module, "helper"]


def test_tuples_of_arguments_keep_their_types_and_the_places_of_their_constants(answer, recipe):
    if not since(answer, 3, 3):
        return  # Triton 3.2 has no arguments that are tuples
    one = recipe("tuple argument")
    inner = {"tuple": ["i32", "constexpr"]}
    assert one.signature["t"] == {"tuple": ["constexpr", "i32", "*fp16", inner]}
    assert [path for path, _ in one.constants] == [(1, 0), (1, 3, 1), (2,)]
    assert recipe("namedtuple argument").signature["t"] == {
        "namedtuple": ["recorded_kernels", "Pair", ["i32", "constexpr"]]
    }


def test_constexpr_functions_are_encoded_where_their_text_is_not_in_the_key(answer, recipe):
    if not since(answer, 3, 6):
        return  # this Triton has no constexpr functions
    assert dict(recipe("constexpr_function").constants)[(3,)]["function"][1] == "doubled"
    assert "holds an address" in answer["said"]["tuple of a constexpr_function"]


def test_a_kernel_of_gluon_is_told_with_its_layout(answer, recipe):
    if not since(answer, 3, 4):
        return  # this Triton has no Gluon
    one = recipe("gluon")
    assert (one.function.qualname, one.launched) == ("of_gluon", True)
    (module, qualname, fields) = dict(one.constants)[(2,)]["dataclass"]
    assert module.startswith("triton.experimental.gluon.language.")
    assert (qualname, fields[0]) == ("BlockedLayout", ["size_per_thread", {"list": [1]}])


def test_a_kernel_made_inside_a_function_is_told_with_its_name(recipe):
    assert recipe("inside").function.qualname == "inside.<locals>.inner"


def test_what_another_process_could_not_be_given_has_a_reason(answer):
    said = answer["said"]
    assert said["object"].endswith(": a value of the type object")
    assert said["a set in a tuple"].endswith(": a value of the type frozenset")
    if since(answer, 3, 3):
        assert said["lambda"].endswith(": a value of the type function")


def test_a_replay_is_recorded_as_the_launch_that_will_ask_for_the_kernel(answer):
    """Its module may have another name in the process that replays, and no launch of Triton's compiles it."""
    launched, replayed = (from_text(text.encode()) for text in answer["replayed"])
    function = replayed.function._replace(
        module=launched.function.module, file=launched.function.file
    )
    assert replayed._replace(function=function, source=None) == launched
    assert (replayed.function.module, replayed.source) == ("another", "x = 1")


def test_a_launch_that_compiles_in_another_thread_is_a_launch(answer):
    if not since(answer, 3, 5):
        return  # this Triton compiles where it launches
    text, _ = answer["in a thread"]
    one = from_text(text.encode())
    assert (one.launched, one.options) == (True, {"num_warps": 8})


@needs_triton
def test_a_kernel_whose_stages_a_hook_changes_has_no_recipe(answer):
    if not since(answer, 3, 9):
        return
    code = """
import triton
triton.knobs.runtime.add_stages_inspection_hook = lambda *_: ("mine", "mine")
import ask_recipes; ask_recipes.main()
"""
    said = json.loads(python_with_triton(code, "sm_90"))["said"]
    assert said["plain"].endswith("a hook of the program changes its stages")


@needs_triton
def test_variables_that_are_part_of_the_key_are_told_in_tritons_form():
    answer = asked(TRITON_DISABLE_LINE_INFO="On", DISABLE_LLVM_OPT="licm")
    text, _ = answer["said"]["plain"]
    assert from_text(text.encode()).variables == {
        "TRITON_DISABLE_LINE_INFO": "true",
        "DISABLE_LLVM_OPT": "licm",
    }


@needs_triton
def test_options_that_triton_took_from_the_environment_at_its_import_are_told(answer):
    """`PTXAS_OPTIONS` is the default of an option, in the key, and no variable of the key."""
    if not since(answer, 3, 6):
        return  # this Triton does not read PTXAS_OPTIONS
    from support.ranks import PYTHON, warm
    from support.warm import WarmPython

    assert warm()
    env = {**os.environ, "PTXAS_OPTIONS": "-O1"}
    python = WarmPython([PYTHON], "pass", env)
    try:
        done = python.run(ASK, "sm_90", env=env)
    finally:
        python.close()
    text, _ = json.loads(done.stdout)["said"]["plain"]
    assert from_text(text.encode()).options == {"ptx_options": "-O1"}


@needs_triton
def test_a_kernel_that_is_linked_with_a_library_of_its_own_has_no_recipe(tmp_path):
    library = tmp_path / "libdevice.bc"
    library.touch()
    said = asked(TRITON_LIBDEVICE_PATH=str(library))["said"]["plain"]
    assert said.endswith(f"it is linked with {library}")


@needs_triton
def test_amds_targets_are_told_with_their_properties(answer):
    if not since(answer, 3, 7):
        return  # this Triton has no linker for AMD, or asks torch for the size of an argument
    text, _ = asked("gfx942")["said"]["plain"]
    one = from_text(text.encode())
    assert one.target == Target("hip", "gfx942", 64)
    assert one.options == {}


def test_a_frame_that_is_not_tritons_compile_has_no_recipe():
    def compile():
        src = options = backend = env_vars = target = None
        return recipe_of(sys._getframe(), "A" * 52), (src, options, backend, env_vars, target)

    assert compile()[0] is None


def test_the_locals_of_another_frame_are_not_kept_alive():
    """A manager object is to go when its caller drops it, though the caller's frame runs on."""

    class Manager:
        pass

    manager = Manager()
    gone = weakref.ref(manager)
    assert recipe_of(sys._getframe(), "A" * 52) is None
    del manager
    assert gone() is None


class Interrupted:
    """A source whose signature is asked for just as the user interrupts the program."""

    @property
    def signature(self):
        raise KeyboardInterrupt


def test_an_interrupt_goes_on_to_the_program():
    code = "def compile(src, options, look):\n    return look()"
    scope = {"__name__": "triton.compiler.compiler"}
    exec(code, scope)
    Interrupted.__module__, Interrupted.__qualname__ = "triton.compiler.compiler", "ASTSource"
    with pytest.raises(KeyboardInterrupt):
        scope["compile"](Interrupted(), None, lambda: recipe_text_of(sys._getframe(1), "A" * 52))
