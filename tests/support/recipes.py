"""A recipe as an example."""

from __future__ import annotations

from gpucache.kernels.recipe import Function, Global, Recipe, Target, encode


def recipe(**changed):
    """A recipe of one kernel; ``changed`` are fields that are other than in the example."""
    one = Recipe(
        key="A" * 52,
        triton_version="3.9.0",
        kernel="add",
        function=Function("kernels.add", "add", "/somewhere/kernels/add.py", "0" * 64),
        target=Target("cuda", 90, 32),
        signature={
            "x": "*fp32",
            "n": "i32",
            "pair": encode(("*fp16", "constexpr")),
            "B": "constexpr",
        },
        constants=(((2, 1), encode(0.5)), ((3,), 128)),
        specialized=(((0,), (("tt.divisibility", 16),)), ((1,), ())),
        options={"num_warps": 8},
        variables={"DISABLE_LLVM_OPT": "true"},
        launched=True,
        globals=(
            Global("kernels.add", "LIMIT", {"constexpr": 3}),
            Global("", "table", {"unencoded": "builtins.set"}),
        ),
    )
    return one._replace(**changed)
