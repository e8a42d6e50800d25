"""Registers and scratch memory of AMD's kernels, as the assembler writes them down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.ranks import python_with_triton

from gpucache.kernels.amdgcn import resources
from gpucache.kernels.cubin import Resources
from gpucache.kernels.description import describe

METADATA = b"""
	.amdgpu_metadata
---
amdhsa.kernels:
  - .agpr_count:     0
    .name:           scaled
    .private_segment_fixed_size: 48
    .sgpr_count:     19
    .vgpr_count:     128
    .vgpr_spill_count: 12
amdhsa.version:
  - 1
...
	.end_amdgpu_metadata
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scaled.amdgcn"
    path.write_bytes(b"\t.vgpr_count: 7\n" + METADATA)
    return path


def test_what_the_metadata_say(file):
    assert resources(str(file)) == Resources(128, 48)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\tv_add_u32 v0, v1\n",
        METADATA.replace(b"128", b"many"),
        METADATA.replace(b"    .private_segment_fixed_size: 48\n", b""),
        METADATA + METADATA.replace(b".amdgpu_metadata", b"more"),
        b"\xff" * 1000,
    ],
    ids=["empty", "no metadata", "no number", "no scratch", "two kernels", "no text"],
)
def test_of_another_shape_nothing_is_told(content, file):
    file.write_bytes(content)
    assert resources(str(file)) is None


def test_what_is_no_file_of_a_kernels_size_is_not_read(tmp_path):
    assert resources(str(tmp_path)) is None
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(2**40)
    assert resources(str(tmp_path / "huge")) is None


COMPILE = """
import sys, triton, kernels
from triton.backends.compiler import GPUTarget
print(triton.__version__)
try:
    triton.compile(kernels.source(1), target=GPUTarget("hip", "gfx942", 64))
except Exception as error:  # before 3.6, for lack of ROCm's linker
    print(error)
"""


def test_of_a_real_kernel_they_are_told(triton, tmp_path):
    said = python_with_triton(COMPILE, env={"TRITON_CACHE_DIR": str(tmp_path)})
    if "ld.lld not found" in said:
        assert said.startswith(("3.2.", "3.4.")), said
        return
    (file,) = tmp_path.glob("*/scaled.amdgcn")
    found = describe(str(file.parent), "scaled")
    assert found is not None
    assert f".vgpr_count:     {found.registers}\n" in file.read_text()
    assert found.spills == 0
    assert found.target == "gfx942"
    assert found.shared_bytes == json.loads((file.parent / "scaled.json").read_text())["shared"]
