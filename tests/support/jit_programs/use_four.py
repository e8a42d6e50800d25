"""One program with four JIT compilers: tvm-ffi, Warp, Numba and JAX; says what they said, added up."""

import contextlib
import io
import json
import runpy
from pathlib import Path

HERE = Path(__file__).parent
compiled = 0
for name in ("tvm_ffi", "warp", "numba", "jax"):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runpy.run_path(str(HERE / f"use_{name}.py"), run_name=f"use_{name}")
    compiled += json.loads(said.getvalue().splitlines()[-1]).get("compiled", 0)
print(json.dumps({"compiled": compiled}))
