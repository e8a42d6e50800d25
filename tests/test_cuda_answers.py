"""What modules ask torch about the GPU while they are imported, answered by the target of the recipes."""

from __future__ import annotations

import pytest

ASK = """
import sys
from gpucache.kernels.recipe import Target
from gpucache.warm.replay.cuda_answers import answer_by

answer_by(Target(*eval(sys.argv[1])))
import torch
properties = torch.cuda.get_device_properties(0)
print(torch.cuda.get_device_capability(), properties.major, torch.cuda.get_device_name(0))
print(torch.cuda.current_device(), torch.cuda.is_available(), hasattr(properties, "total_memory"))
"""


@pytest.fixture
def a_torch(tmp_path):
    """A torch as it is where there is no GPU: who asks for one is answered by an exception."""
    package = tmp_path / "torch/cuda"
    package.mkdir(parents=True)
    (tmp_path / "torch/__init__.py").write_text("from torch import cuda\n")
    lines = ["def is_available():", "    return False"]
    for name in ("capability", "name", "properties"):
        lines += [f"def get_device_{name}(device=None):", "    raise AssertionError"]
    (package / "__init__.py").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (("cuda", 90, 32), "(9, 0) 9 NVIDIA GPU (sm_90)"),
        (("cuda", 120, 32), "(12, 0) 12 NVIDIA GPU (sm_120)"),
        (("hip", "gfx942", 64), "(9, 4) 9 AMD GPU (gfx942)"),
    ],
)
def test_torch_answers_by_the_target_and_claims_no_gpu(target, said, a_torch, python):
    code = f"import sys; sys.path.insert(0, {str(a_torch)!r})\n{ASK}"
    done = python(code, repr(target))
    assert done.stdout.splitlines() == [said, "0 False False"], done.stderr


def test_a_torch_that_is_imported_already_answers_too(a_torch, python):
    code = f"import sys; sys.path.insert(0, {str(a_torch)!r})\nimport torch\n{ASK}"
    done = python(code, repr(("cuda", 80, 32)))
    assert done.stdout.startswith("(8, 0) 8 NVIDIA GPU (sm_80)\n"), done.stderr
