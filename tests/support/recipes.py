"""A recipe as an example, files of such, and entries as far as somebody looks for them."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from gpucache.kernels.recipe import Function, Global, Recipe, Target, encode, to_text
from gpucache.kernels.recipe_lines import FORMAT_LINE


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


def key_of(number: int) -> str:
    """A key of its own for each number."""
    return base64.b32encode(hashlib.sha256(str(number).encode()).digest()).decode().rstrip("=")


def recipe_file(path: Path, count: int = 1, **changed: object) -> list[str]:
    """Write a file of so many recipes; their keys."""
    keys = [key_of(number) for number in range(count)]
    lines = [to_text(recipe(key=key, **changed)) + b"\n" for key in keys]
    path.write_bytes(b"".join([FORMAT_LINE, *lines]))
    return keys


def stored(root: Path, key: str) -> Path:
    """Have an entry of that key in a store, as far as a look at its manifest tells."""
    entry = root / "gpucache/v1/store" / key[:2] / key
    entry.mkdir(parents=True)
    (entry / "__entry__.json").write_text("{}")
    return entry
