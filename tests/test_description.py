"""What is told of a kernel, from files that may be missing, damaged or anybody's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.ranks import compile_kernels
from support.recipes import recipe

from gpucache.kernels.description import Description, Source, describe
from gpucache.kernels.recipe import encode, to_text
from gpucache.kernels.shown_values import shown
from gpucache.layout.paths import RECIPE

METADATA = {
    "target": {"backend": "cuda", "arch": 90, "warp_size": 32},
    "num_warps": 8,
    "num_stages": 3,
    "DISABLE_LLVM_OPT": "true",
    "triton_version": "3.9.0",
    "shared": 1024,
    "name": "add",
}
LOCATION = '#loc = loc("/somewhere/kernels/add.py":9:1)\nmodule {\n'


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """An entry with a recipe, metadata and a first form, and no binary."""
    (tmp_path / RECIPE).write_bytes(to_text(recipe()))
    (tmp_path / "add.json").write_text(json.dumps(METADATA))
    (tmp_path / "add.ttir").write_text(LOCATION)
    return tmp_path


def described(entry: Path) -> Description:
    found = describe(str(entry), "add")
    assert found is not None
    return found


def test_all_that_the_files_say(entry):
    assert described(entry) == Description(
        has_recipe=True,
        constants={"pair[1]": "0.5", "B": "128"},
        dtypes={"x": "*fp32", "n": "i32", "pair": "(*fp16, constexpr)"},
        options={"num_warps": "8"},
        warps=8,
        stages=3,
        registers=None,
        spills=None,
        shared_bytes=1024,
        variables={"DISABLE_LLVM_OPT": "true"},
        target="sm_90",
        triton_version="3.9.0",
        function=Source("kernels.add", "add", "/somewhere/kernels/add.py", 9),
    )


def test_without_a_recipe_its_metadata_and_forms_still_tell(entry):
    (entry / RECIPE).unlink()
    found = described(entry)
    assert (found.has_recipe, found.constants, found.dtypes) == (False, {}, {})
    assert (found.warps, found.shared_bytes, found.target) == (8, 1024, "sm_90")
    assert found.variables == {"DISABLE_LLVM_OPT": "true"}
    assert found.function == Source(None, "add", "/somewhere/kernels/add.py", 9)


def test_without_metadata_the_recipe_still_tells(entry):
    (entry / "add.json").unlink()
    (entry / "add.ttir").unlink()
    found = described(entry)
    assert (found.warps, found.stages, found.shared_bytes) == (8, None, None)
    assert (found.target, found.triton_version) == ("sm_90", "3.9.0")
    assert found.function == Source("kernels.add", "add", "/somewhere/kernels/add.py", None)


def test_constants_stand_in_the_kernels_order(entry):
    constants = (((3,), 128), ((0,), None), ((2, 1), 2))
    (entry / RECIPE).write_bytes(to_text(recipe(constants=constants)))
    assert list(described(entry).constants.items()) == [
        ("x", "None"),
        ("pair[1]", "2"),
        ("B", "128"),
    ]


@pytest.mark.parametrize("version", ["3.2.0", "3.9.0"])
def test_a_constant_without_a_name_is_told_by_its_place(version, entry):
    """Triton 3.2 writes down no names of constants, and anybody may have written a recipe."""
    said = recipe(triton_version=version, signature={"x": "*fp32"}, constants=(((4,), 64),))
    (entry / RECIPE).write_bytes(to_text(said))
    assert described(entry).constants == {"#4": "64"}


def no_file(path: Path) -> None:
    path.unlink()


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path) -> None:
    other = path.with_name("elsewhere")
    path.rename(other)
    path.symlink_to(other)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def huge(path: Path) -> None:
    os.truncate(path, 2**33)


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00" * 100)


def of_another_shape(path: Path) -> None:
    path.write_text('{"key": "x", "target": 1, "name": [], "num_warps": "8"}')


@pytest.mark.parametrize(
    "harm", [no_file, a_directory, a_fifo, a_link, cut, huge, deep, no_text, of_another_shape]
)
@pytest.mark.parametrize("name", [RECIPE, "add.json", "add.ttir", "add.cubin"])
def test_whatever_lies_there_the_rest_is_told(harm, name, entry):
    (entry / "add.cubin").write_bytes(b"\x7fELF")
    harm(entry / name)
    found = described(entry)
    assert found.has_recipe is (name != RECIPE)
    assert (found.shared_bytes is None) is (name == "add.json")
    assert found.registers is None


@pytest.mark.parametrize("harm", [no_file, a_fifo, deep])
def test_an_entry_of_which_nothing_can_be_read_is_not_described(harm, entry):
    harm(entry / RECIPE)
    harm(entry / "add.json")
    assert describe(str(entry), "add") is None


def test_a_kernels_name_leads_to_no_other_directory(entry):
    (entry / "inner").mkdir()
    assert describe(str(entry / "inner"), "../add") is None


def test_of_a_real_kernel_registers_are_told(triton, tmp_path):
    compile_kernels({"TRITON_CACHE_DIR": str(tmp_path)}, 1, 90)
    (binary,) = tmp_path.glob("*/*.cubin")
    found = describe(str(binary.parent), binary.stem)
    assert found is not None
    assert found.registers > 0
    assert found.spills == 0
    assert found.function is not None
    assert found.function.file.endswith("/kernels.py")
    assert found.function.line > 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (128, "128"),
        (None, "None"),
        (0.5, "0.5"),
        ("relu", "relu"),
        ("None", "'None'"),
        ("two words", "'two words'"),
        ("\x1b[2J", r"'\x1b[2J'"),
        ((1, "a", (True,)), "(1, 'a', (True,))"),
        ([1, 2], "[1, 2]"),
        ({"a": 1}, "{'a': 1}"),
    ],
)
def test_a_value_is_shown_as_python_has_it(value, text):
    assert shown(encode(value)) == text


@pytest.mark.parametrize(
    ("encoded", "text"),
    [
        ({"dtype": "fp32"}, "fp32"),
        ({"torch_dtype": "float16"}, "torch.float16"),
        ({"pointer": [{"dtype": "fp32"}, 1, False]}, "*fp32"),
        ({"block": [{"dtype": "fp32"}, [8, 4]]}, "fp32[8, 4]"),
        ({"constexpr": 3}, "3"),
        ({"function": ["m", "outer.f", None, ""]}, "outer.f"),
        ({"enum": ["m", "Outer.Layout", "ROW"]}, "Layout.ROW"),
        ({"namedtuple": ["m", "Pair", [1, {"dtype": "i8"}]]}, "Pair(1, i8)"),
        ({"dataclass": ["m", "Shape", [["size", {"tuple": [1, 2]}]]]}, "Shape(size=(1, 2))"),
        ({"triton_tuple": [{"dtype": "i1"}]}, "(i1,)"),
        ({"unknown": 1}, "?"),
        ([1], "?"),
    ],
)
def test_a_value_of_tritons_is_shown_by_its_name(encoded, text):
    assert shown(encoded) == text
