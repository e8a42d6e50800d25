"""Why two entries are two, and why one is not a hit: with kernels of the real Triton, and with small trees.

`GPUCACHE_TEST_TRITON` names another Python, with another Triton, for the processes that compile.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from support.ranks import PYTHON, python_with_triton
from support.trees import stock_entry

from gpucache import GpuCacheError
from gpucache.diagnosis.difference import difference
from gpucache.kernels.differences import Difference
from gpucache.report.directory_metadata import metadata_in

needs_triton = pytest.mark.usefixtures("triton")

KERNEL = """
import triton, triton.language as tl
@triton.jit
def scaled(x, out, n, SCALE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(out + offsets, tl.load(x + offsets, mask) * SCALE, mask)
"""
COMPILE = """if True:
    import importlib.util, json, os, sys, triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    at = json.loads(sys.argv[1])
    os.environ["TRITON_CACHE_DIR"] = at["directory"]
    os.environ.update(at.get("environ", {}))
    spec = importlib.util.spec_from_file_location("kernel", at["file"])
    kernel = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernel)
    types = {"x": at.get("x", "*fp32"), "out": "*fp32", "n": at.get("n", "i32")}
    constants = {"SCALE": at.get("scale", 2.0), "BLOCK": 512}
    if hasattr(triton, "knobs"):
        types |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel.scaled, signature=types, constexprs=constants)
    else:
        source = ASTSource(fn=kernel.scaled, signature=types, constants=constants)
    triton.compile(source, target=GPUTarget("cuda", at.get("arch", 90), 32), options=at.get("options"))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, guard, triton):
    """Compile the kernel in some way with the real Triton, once; its directory."""
    base = tmp_path_factory.mktemp("explain")
    known = {}

    def compile_it(text=KERNEL, name="kernel.py", python=PYTHON, **how):
        case = json.dumps([text, name, python, how])
        if case not in known:
            file, directory = base / name, base / str(len(known))
            file.write_text(text)
            how |= {"file": str(file), "directory": str(directory)}
            python_with_triton(COMPILE, json.dumps(how), python=python)
            (known[case],) = (str(path.parent) for path in directory.glob("*/scaled.json"))
        return known[case]

    return compile_it


def test_an_entry_does_not_differ_from_itself_nor_from_a_copy(compiled, tmp_path):
    one = compiled()
    shutil.copytree(one, tmp_path / "copy")
    assert difference(one, one) == difference(one, str(tmp_path / "copy")) == ()


def test_another_option_is_named(compiled):
    found = difference(compiled(), compiled(options={"num_warps": 8}))
    assert found == (Difference("option", "num_warps", "4", "8"),)


def test_another_device_is_named_and_not_what_follows_from_it(compiled):
    assert difference(compiled(), compiled(arch=80)) == (
        Difference("target", "target", "cuda:90", "cuda:80"),
    )


def test_a_variable_of_the_environment_is_named(compiled):
    found = difference(compiled(), compiled(environ={"TRITON_DISABLE_LINE_INFO": "1"}))
    assert found == (Difference("environment", "TRITON_DISABLE_LINE_INFO", None, "true"),)


def test_an_argument_of_another_type_is_named(compiled):
    (found,) = difference(compiled(), compiled(x="*fp16"))
    assert (found.kind, found.a, found.b) == ("signature", "!tt.ptr<f32>", "!tt.ptr<f16>")
    (found,) = difference(compiled(), compiled(n="i64"))
    assert (found.kind, found.a, found.b) == ("signature", "i32", "i64")


def test_another_constant_shows_in_the_code_where_there_is_no_recipe(compiled):
    (found,) = difference(compiled(), compiled(scale=3.0))
    assert found.kind == "code"
    assert found.name in (
        "kernel.py:7",
        "",
    )  # Triton 3.2 keeps but a form in which constants stand on no line
    assert "2.0" in found.a
    assert "3.0" in found.b


def test_a_moved_kernel_is_at_another_line(compiled):
    """Any edit above a kernel in its file does that."""
    one, other = compiled(), compiled(text="\n\n" + KERNEL, name="moved.py")
    (found,) = difference(one, other)
    assert found.kind == "location"
    assert found.a.endswith("kernel.py:4")
    assert found.b.endswith("moved.py:6")


def test_what_is_in_no_file_is_not_made_up(compiled):
    """A comment is in the key, and nowhere else."""
    one, other = (
        compiled(),
        compiled(
            text=KERNEL.replace("    mask", "    # a comment\n    mask", 1), name="kernel2.py"
        ),
    )
    assert Path(one).name != Path(other).name
    assert {found.kind for found in difference(one, other)} <= {"location"}


def test_another_assembler_is_noticed(compiled, tmp_path):
    """Its version is in the key, and in no metadata."""
    package = python_with_triton(
        "import os, triton; print(os.path.dirname(triton.__file__))"
    ).strip()
    environ = {}
    for path in (Path(package) / "backends/nvidia/bin").glob("ptxas*"):
        script = tmp_path / path.name
        script.write_text(
            f'#!/bin/sh\ncase "$*" in *--version*) {path} --version; echo a;; *) {path} "$@" -O1;; esac\n'
        )
        script.chmod(0o755)
        environ[f"TRITON_{path.name.upper().replace('-', '_')}_PATH"] = str(script)
    one, other = compiled(), compiled(environ=environ)
    assert Path(one).name != Path(other).name
    assert [(found.kind, found.name) for found in difference(one, other)] == [
        ("assembler", "ptxas")
    ]


def test_another_triton_is_named_and_not_what_follows_from_it(tmp_path):
    one = stock_entry(
        tmp_path / "a", "KEY", triton_version="3.8.0", options={"num_warps": 4, "old": True}
    )
    other = stock_entry(
        tmp_path / "b", "KEY", triton_version="3.9.0", options={"num_warps": 4, "new": True}
    )
    assert difference(one, other) == (Difference("triton", "triton_version", "3.8.0", "3.9.0"),)


def test_a_library_at_another_path_is_the_same_library(tmp_path):
    """The content of a library is in the key, its path is not."""
    for name, content in (("a", "equal"), ("b", "equal"), ("c", "other")):
        (tmp_path / name).write_text(content)
    a, b, c = (
        stock_entry(
            tmp_path / f"{name}-entry",
            "KEY",
            options={"extern_libs": [["libdevice", str(tmp_path / name)]]},
        )
        for name in "abc"
    )
    assert difference(a, b) == ()
    assert [found.name for found in difference(a, c)] == ["extern_libs"]


@pytest.mark.parametrize("missing", ["nothing", "an empty directory", "a library"])
def test_what_is_no_kernel_is_refused(missing, tmp_path):
    path = tmp_path / "KEY"
    if missing != "nothing":
        path.mkdir()
    if missing == "a library":
        (path / "cuda_utils.so").write_bytes(b"library")
    with pytest.raises(GpuCacheError, match="there is no compiled kernel"):
        difference(str(path), str(path))


def test_metadata_are_found_with_a_manifest_and_without(compiled, tmp_path):
    assert metadata_in(compiled()).arch == "sm_90"
    assert metadata_in(str(tmp_path)) is None


def test_the_same_line_of_a_file_elsewhere_is_no_difference(compiled):
    """The file's path is in no key."""
    assert difference(compiled(), compiled(name="elsewhere.py")) == ()


def test_where_the_text_was_removed_more_may_differ(compiled, tmp_path):
    path = tmp_path / "slim"
    shutil.copytree(compiled(), path)
    for ending in (".source", ".ttir"):
        (path / f"scaled{ending}").unlink(missing_ok=True)
    (found,) = difference(compiled(), str(path))
    assert (found.kind, found.a, found.b) == ("unseen", "there", "removed")


@pytest.mark.parametrize("name", ["scaled.json", "scaled.source", "scaled.ttir"])
def test_a_fifo_is_not_waited_for(compiled, tmp_path, name):
    path = tmp_path / "entry"
    shutil.copytree(compiled(), path)
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)
    if name == "scaled.json":
        with pytest.raises(GpuCacheError):
            difference(compiled(), str(path))
    else:
        difference(compiled(), str(path))
