"""What one rank of the demo executes: it imports Triton, waits for the others, and compiles one kernel after another.

It says what it does in a pipe of its own, since whatever a Python imports may print: each line is one JSON value,
``"ready"``, after the first line on stdin an object for each kernel, and in the end one for all. A rank ends with
whoever started it, when its stdin is closed.
"""

from __future__ import annotations

import inspect
import json
import os
import resource
import sys
import threading
import time
import warnings
from typing import Any

warnings.simplefilter("ignore")  # Triton has no driver here, which is the point

import triton  # noqa: E402
from triton.backends import backends  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from gpucache.configuration import places  # noqa: E402
from gpucache.demo.kernels import KERNELS  # noqa: E402

_TARGETS = {"nvidia": ("cuda", 90, 32), "amd": ("hip", "gfx942", 64)}
"""For which GPU is compiled, by the backends that a Triton may have: the first that is there."""


class _Source(ASTSource):  # type: ignore[misc]
    """A kernel that notices whether it is compiled: only then Triton asks for its first stage (3.2 to 3.9)."""

    is_compiled = False

    def make_ir(self, *words: Any, **named: Any) -> Any:
        """As of `ASTSource`."""
        self.is_compiled = True
        return super().make_ir(*words, **named)


def main() -> None:
    """Do as the module says; the words of the command line are the numbers of kernels, and of the pipe's descriptor."""
    count, out = map(int, sys.argv[1:])
    # A remote that the system's file names would be asked, and would get what the demo compiles.
    places.SYSTEM_FILE = f"{os.devnull}/none"
    name, target = next((name, _TARGETS[name]) for name in _TARGETS if name in backends)
    _say(out, "ready")
    sys.stdin.readline()
    threading.Thread(target=_end_with_starter, daemon=True).start()
    before, began = _cpu_s(), time.monotonic()
    for function, types, constants in KERNELS[:count]:
        source = _source(function, types.split(), constants)
        asked = time.monotonic()
        triton.compile(source, target=GPUTarget(*target))
        seconds = round(time.monotonic() - asked, 4)
        _say(out, {"kernel": function.__name__, "compiled": source.is_compiled, "seconds": seconds})
    arch = f"sm_{target[1]}" if name == "nvidia" else str(target[1])
    wall_s = time.monotonic() - began
    cpu_s = _cpu_s() - before
    _say(out, {"target": arch, "triton": triton.__version__, "wall_s": wall_s, "cpu_s": cpu_s})


def _source(function: Any, types: list[str], constants: dict[str, int]) -> _Source:
    """What Triton compiles, as its versions want that to be said."""
    signature = dict(zip(function.arg_names, types, strict=False))
    if "constexprs" not in inspect.signature(ASTSource.__init__).parameters:  # until 3.2
        return _Source(fn=function, signature=signature, constants=constants)
    signature |= dict.fromkeys(constants, "constexpr")
    return _Source(fn=function, signature=signature, constexprs=constants)


def _cpu_s() -> float:
    """The processor time of this process and of the assemblers that it has started, in seconds."""
    used = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        spent = resource.getrusage(who)
        used += spent.ru_utime + spent.ru_stime
    return used


def _say(out: int, value: object) -> None:
    line = json.dumps(value) + "\n"
    os.write(out, line.encode())


def _end_with_starter() -> None:
    """End at once when whoever started this process is gone."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
