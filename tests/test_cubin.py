"""What the parser reads in a cubin is what NVIDIA's own tools say of it; Triton brings these.

`GPUCACHE_TEST_TRITON` names another Python, with another Triton and other tools.
"""

from __future__ import annotations

import importlib.util
import random
import re
import subprocess
from pathlib import Path

import pytest
from support.ranks import compile_kernels, python_with_triton

from gpucache.kernels.cubin import Resources, resources

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton: pip install '.[test]' on Linux", allow_module_level=True)

COUNT = 64

ENTRY = """.visible .entry {name}(.param .u64 p) {limit} {{
  .reg .f32 %f<{count}>; .reg .b64 %rd<3>; .reg .f32 %g<3>;
  ld.param.u64 %rd1, [p];
{loads}
{work}
  {{ .param .b32 a; .param .b32 r; st.param.f32 [a], %f1; call (r), helper, (a); ld.param.f32 %g2, [r]; }}
  st.global.f32 [%rd1+2000], %g2;
{stores}
  ret; }}
"""
FUNCTION = """.func (.param .b32 r) helper(.param .b32 a) {
  .reg .f32 %f<4>; ld.param.f32 %f1, [a]; sin.approx.f32 %f2, %f1; st.param.f32 [r], %f2; ret; }
"""


def ptx(arch):
    """A function, a kernel with many registers, and the same kernel with too few."""
    loads = "\n".join(f"  ld.global.f32 %f{i}, [%rd1+{4 * i}];" for i in range(COUNT))
    work = "\n".join(
        f"  fma.rn.f32 %f{i * 7 % COUNT}, %f{i}, %f{(i + 1) % COUNT}, %f{(i + 13) % COUNT};"
        for i in range(COUNT)
    )
    stores = "\n".join(f"  st.global.f32 [%rd1+{4 * i}], %f{i};" for i in range(COUNT))
    parts = {"count": COUNT, "loads": loads, "work": work, "stores": stores}
    kernels = ENTRY.format(name="roomy", limit="", **parts) + ENTRY.format(
        name="tight", limit=".maxnreg 32", **parts
    )
    version = "8.7" if arch > 90 else "8.3"
    return f".version {version}\n.target sm_{arch}\n.address_size 64\n{FUNCTION}{kernels}"


@pytest.fixture(scope="module")
def tools(triton):
    """The directory of the ptxas and cuobjdump that the Triton under test brings."""
    code = "import os, triton; print(os.path.dirname(triton.__file__))"
    return Path(python_with_triton(code).strip()) / "backends/nvidia/bin"


@pytest.fixture(scope="module")
def cubins(tmp_path_factory, guard, triton):
    """Binaries of a kernel that the real Triton compiled."""
    directory = tmp_path_factory.mktemp("cubins")
    compile_kernels({"TRITON_CACHE_DIR": str(directory)}, 2, 80, 90)
    return sorted(directory.glob("*/scaled.cubin"))


def said_by_ptxas(text):
    """Kernel to resources, from `ptxas -v`."""
    found = {}
    for part in re.split(r"Compiling entry function ", text)[1:]:
        stack = re.search(r"(\d+) bytes cumulative stack size", part)
        found[part.split("'")[1]] = Resources(
            int(re.search(r"Used (\d+) registers", part)[1]), int(stack[1]) if stack else 0
        )
    return found


def test_registers_and_stack_are_what_ptxas_says(tools, tmp_path):
    """With spills, and a function beside the kernels."""
    compared = []
    for assembler in sorted(tools.glob("ptxas*")):
        for arch in (80, 86, 89, 90, 100, 120):
            (tmp_path / "k.ptx").write_text(ptx(arch))
            out = tmp_path / f"{assembler.name}-{arch}.cubin"
            command = [assembler, "-v", "-arch", f"sm_{arch}", tmp_path / "k.ptx", "-o", out]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            if done.returncode != 0:
                assert "is not defined for option" in done.stderr, done.stderr
                continue
            expected = said_by_ptxas(done.stdout + done.stderr)
            assert resources(str(out)) == expected
            assert expected.keys() == {"roomy", "tight"}
            assert expected["roomy"].registers > expected["tight"].registers
            assert expected["tight"].stack_bytes > 0
            compared.append((assembler.name, arch))
    assert {("ptxas", 80), ("ptxas", 90)} <= set(compared)


def test_a_kernel_of_triton_is_what_cuobjdump_says(tools, cubins):
    assert len(cubins) == 4
    for path in cubins:
        done = subprocess.run(
            [tools / "cuobjdump", "-res-usage", path], capture_output=True, text=True, timeout=60
        )
        (count, stack) = re.search(
            r"Function scaled:\s+REG:(\d+) STACK:(\d+)", done.stdout
        ).groups()
        assert resources(str(path)) == {"scaled": Resources(int(count), int(stack))}


def test_a_cut_file_says_nothing(cubins, tmp_path):
    data, cut = cubins[0].read_bytes(), tmp_path / "cut.cubin"
    for length in [*range(0, len(data), 61), len(data) - 1]:
        cut.write_bytes(data[:length])
        assert resources(str(cut)) is None, length


def test_no_damage_raises(cubins, tmp_path):
    luck, bad = random.Random(1), tmp_path / "bad.cubin"
    for path in cubins:
        for _ in range(150):
            data = bytearray(path.read_bytes())
            for _ in range(8):
                data[luck.randrange(len(data) if luck.random() < 0.5 else 64)] = luck.randrange(256)
            bad.write_bytes(data)
            found = resources(str(bad))
            assert found is None or isinstance(found, dict)


def test_what_is_no_cubin_says_nothing(tmp_path):
    (tmp_path / "text").write_text("no cubin")
    (tmp_path / "empty").touch()
    library = importlib.util.find_spec("_ctypes").origin
    for path in (tmp_path / "text", tmp_path / "empty", tmp_path / "absent", tmp_path, library):
        assert resources(str(path)) is None
