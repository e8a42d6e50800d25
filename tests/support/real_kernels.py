"""Compile kernels of Liger and flash-linear-attention (fla) by their own Python functions, without a GPU.

``python real_kernels.py PACKAGE…`` with packages ``liger``, ``fla``; a word ``few`` takes only some of each. A
stand-in for Triton's active driver (`stand_in`) says that there is an H100, or the GPU of `REAL_KERNELS_TARGET`:
argument specialisation and ptxas are real, and launches go nowhere. Writes one JSON object to a file of its own in the
directory `REAL_KERNELS_OUT`: what was compiled and hit, and the digest of each binary by its key.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton

from stand_in import stand_in, target_of  # isort: skip

TARGET = target_of(os.environ.get("REAL_KERNELS_TARGET", "sm_90"))
CAPABILITY = divmod(TARGET.arch, 10)
NAME = {80: "NVIDIA A100", 90: "NVIDIA H100", 100: "NVIDIA B200"}.get(TARGET.arch, "NVIDIA GPU")


def _properties(*_: object) -> Any:
    return types.SimpleNamespace(
        multi_processor_count=132,
        name=NAME,
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
        total_memory=80 << 30,
    )


def pretend() -> None:
    """Put the stand-in in place, and what these packages ask torch about a GPU."""
    stand_in(TARGET)
    torch.cuda.get_device_properties = _properties
    torch.cuda.get_device_capability = lambda *_: CAPABILITY
    torch.cuda.get_device_name = lambda *_: NAME
    torch.cuda.current_device = lambda: 0


def tensor(*shape: int, grad: bool = True) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, requires_grad=grad)


def _backward(out: Any) -> None:
    parts = out if isinstance(out, tuple) else (out,)
    total = sum(
        part.float().sum() for part in parts if torch.is_tensor(part) and part.requires_grad
    )
    total.backward()


def liger() -> dict[str, Callable[[], Any]]:
    """Forward calls of Liger's functions."""
    from liger_kernel import ops
    from liger_kernel.ops import (
        cross_entropy,
        fused_add_rms_norm,
        fused_linear_cross_entropy,
        geglu,
        group_norm,
        jsd,
        kl_div,
        layer_norm,
        poly_norm,
        relu_squared,
        rope,
        softmax,
        sparsemax,
        swiglu,
        tvd,
    )

    assert ops
    target = torch.randint(0, 512, (64,))

    def of(function: Any, *words: Any) -> Callable[[], Any]:
        return lambda: function.apply(*words)

    return {
        "swiglu": of(swiglu.LigerSiLUMulFunction, tensor(4, 64, 256), tensor(4, 64, 256)),
        "geglu": of(geglu.LigerGELUMulFunction, tensor(4, 64, 256), tensor(4, 64, 256)),
        "layer_norm": of(
            layer_norm.LigerLayerNormFunction, tensor(64, 256), tensor(256), tensor(256), 1e-5
        ),
        "softmax": of(softmax.LigerSoftmaxFunction, tensor(64, 256)),
        "cross_entropy": of(
            cross_entropy.LigerCrossEntropyFunction, tensor(64, 512), target, None, -100
        ),
        "kl_div": of(kl_div.LigerKLDivLossFunction, tensor(64, 512), tensor(64, 512, grad=False)),
        "jsd": of(jsd.LigerJSDFunction, tensor(64, 512), tensor(64, 512, grad=False)),
        "tvd": of(tvd.LigerTVDLossFunction, tensor(64, 512), tensor(64, 512, grad=False)),
        "sparsemax": of(sparsemax.LigerSparsemaxFunction, tensor(64, 512), -1),
        "relu_squared": of(relu_squared.LigerReLUSquaredFunction, tensor(64, 256)),
        "group_norm": of(
            group_norm.LigerGroupNormFunction,
            tensor(4, 32, 64),
            tensor(32),
            tensor(32),
            32,
            8,
            1e-5,
        ),
        "poly_norm": of(
            poly_norm.LigerPolyNormFunction, tensor(64, 256), tensor(3), tensor(), 1e-6
        ),
        "rope": of(
            rope.LigerRopeFunction,
            tensor(2, 8, 64, 64),
            tensor(2, 4, 64, 64),
            tensor(1, 64, 64, grad=False),
            tensor(1, 64, 64, grad=False),
        ),
        "fused_add_rms_norm": of(
            fused_add_rms_norm.LigerFusedAddRMSNormFunction,
            tensor(64, 256),
            tensor(64, 256),
            tensor(256),
            1e-6,
        ),
        "fused_linear_ce": of(
            fused_linear_cross_entropy.LigerFusedLinearCrossEntropyFunction,
            tensor(64, 256),
            tensor(512, 256),
            target,
        ),
    }


def fla() -> dict[str, Callable[[], Any]]:
    """Forward calls of flash-linear-attention's functions, most of them autotuned."""
    from fla.modules.l2norm import l2_norm
    from fla.modules.layernorm import rms_norm
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.hgrn import chunk_hgrn

    heads = 1, 128, 2, 64
    gates = torch.rand(1, 128, 2).sigmoid().log().requires_grad_()
    return {
        "l2_norm": lambda: l2_norm(tensor(64, 256)),
        "rms_norm": lambda: rms_norm(tensor(64, 256), tensor(256), None),
        "hgrn": lambda: chunk_hgrn(tensor(1, 128, 256), tensor(1, 128, 256)),
        "gated_delta": lambda: chunk_gated_delta_rule(
            tensor(*heads),
            tensor(*heads),
            tensor(*heads),
            gates,
            torch.rand(1, 128, 2).bfloat16(),
        ),
    }


FEW = {"swiglu", "layer_norm", "softmax", "cross_entropy", "l2_norm"}


def main() -> None:
    """Run the functions of the packages that the arguments name."""
    words = set(sys.argv[1:])
    pretend()
    seen: list[bool] = []
    binaries: dict[str, str] = {}

    def listen(
        *, src: Any, metadata: Any, metadata_group: dict[str, str], cache_hit: bool, **_: Any
    ) -> None:
        seen.append(cache_hit)
        (cubin,) = (path for name, path in metadata_group.items() if name.endswith(".cubin"))
        key = metadata["hash"] if isinstance(metadata, dict) else metadata.hash
        with open(cubin, "rb") as file:
            binaries[key] = hashlib.sha256(file.read()).hexdigest()

    triton.knobs.compilation.listener = listen
    failed = {}
    for package in (liger, fla):
        if package.__name__ not in words:
            continue
        for name, forward in package().items():
            if "few" in words and name not in FEW:
                continue
            try:
                _backward(forward())
            except Exception:
                failed[name] = traceback.format_exc()[-1500:]
    said = {
        "compiled": seen.count(False),
        "hits": seen.count(True),
        "binaries": binaries,
        "failed": failed,
        "directory": os.environ.get("TRITON_CACHE_DIR"),
    }
    out = Path(os.environ["REAL_KERNELS_OUT"]) / f"{os.getpid()}.json"
    out.write_text(json.dumps(said))


if __name__ == "__main__":
    main()
