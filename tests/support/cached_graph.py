"""Have TorchInductor take a graph of a GPU that is not there from its cache: ``python cached_graph.py TARGET INDEX``.

As `inductor_graphs`, with what torch asks before it looks into its caches (2.13.0: a `ShapeEnv`, and a CUDA whose
version it knows), and the tensors on the device of this index. Prints one JSON object: the counters of torch's cache of
graphs, and how many kernels Triton has compiled.
"""

from __future__ import annotations

import json
import sys

import inductor_graphs
import torch
from stand_in import stand_in

INDEX = int(sys.argv[2])


def on_device() -> None:
    """Let the current device be that of the index, among as many as that takes; its name is in torch's keys."""
    torch.version.cuda = "12.8"
    torch.cuda.get_device_properties(INDEX).name = f"a GPU of {sys.argv[1]}"
    for name in ("current_device", "_exchange_device", "_maybe_exchange_device"):
        setattr(torch.cuda, name, lambda *_, **__: INDEX)
    torch.cuda.device_count = lambda: INDEX + 1


def main() -> None:
    stand_in(inductor_graphs.TARGET)
    inductor_graphs.answer_for_cuda()
    on_device()
    inductor_graphs.do_without_gpu()
    from torch._dynamo.utils import counters
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    with inductor_graphs.asked_for() as seen, fake, tracing(TracingContext(fake)):
        shapes = ((64, 3000), (64, 3000), (3000,))
        inputs = [torch.empty(shape, device=f"cuda:{INDEX}") for shape in shapes]
        graph = make_fx(inductor_graphs.pointwise, tracing_mode="fake")(*inputs)
        compile_fx(graph, inputs)
    said = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")}
    compiled = sum(not one["hit"] for one in seen)
    sys.stdout.write(json.dumps({**said, "compiled": compiled}) + "\n")


if __name__ == "__main__":
    main()
