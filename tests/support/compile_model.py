"""Compile a small model on the CPU with the real torch, forward and backward; print what its caches say, as JSON.

What is printed of the result is its distance from that of the model which is not compiled.
"""

from __future__ import annotations

import json
import sys

import torch
from torch._dynamo.utils import counters


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(64, 64)
        self.norm = torch.nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        held = torch.nn.functional.gelu(self.first(x))
        return torch.softmax(self.norm(held), -1).square().sum()


def main() -> None:
    torch.manual_seed(0)
    model = Model()
    x = torch.randn(8, 64, requires_grad=True)
    result = torch.compile(model)(x)
    result.backward()
    said = {"distance": float(abs(result - model(x)))}
    for name in ("inductor", "aot_autograd"):
        for counter, count in counters[name].items():
            if counter.endswith(("_hit", "_miss")):
                said[counter] = count
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
