"""The environment variables that are part of Triton's key, as they were when a recipe was recorded.

Only those are set that the running Triton itself says are in its key (`get_cache_invalidating_env_vars` of libtriton,
3.2.0 to 3.9.0: a fixed list in its C++, of which it gives those that are set), and none that names a file: two of them
load code. Who wants one of these sets the variable himself.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

from gpucache.environment import USE_IR_LOC
from gpucache.errors import GpuCacheError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Listed = Callable[[], Mapping[str, str]]
    """Asks Triton for the variables in the key that are set now, and their values in Triton's form."""

_NAMES_A_FILE = ("_PATH", "_PATHS", "_DIR", "_FILE", "_MIR", USE_IR_LOC.name)
"""How the names end: `LLVM_PASS_PLUGIN_PATH` and `TRITON_PLUGIN_PATHS` are loaded, `MLIR_DUMP_PATH` and
`TRITON_DUMP_MIR` written, and with `USE_IR_LOC` a kernel refers to files of the cache."""


class VariableError(GpuCacheError):
    """A recorded variable ``name`` has another value here, or none, and is set for no recipe; ``why`` says why not."""

    def __init__(self, name: str, value: str | None, why: str) -> None:
        problem = f"the variable {name} {why}, and is not changed for a recipe"
        hint = f"unset {name}" if value is None else f"set {name}={value!r} yourself"
        super().__init__(problem, hint, name, value, why)
        self.name = name
        self.value = value
        self.why = why


def why_refused(name: str, value: str) -> str:
    """Why a variable is set for no recipe; ``""`` where it is."""
    if name.endswith(_NAMES_A_FILE) or "/" in value:
        return "names a file"
    if name == "DISABLE_LLVM_OPT" and value not in _WORDS:
        # `lib/Target/LLVMIR` of Triton turns them on for the process, and never off
        return "names flags of LLVM, which stay set"
    return ""


@contextmanager
def as_recorded(recorded: Mapping[str, str], listed: Listed) -> Iterator[None]:
    """Have the variables in the key as a recipe says, and all other variables as they are, until the end of the block.

    For a process with one thread: the environment is that of the whole process.

    Raises:
        VariableError: a variable would have to be changed that is set for no recipe.
    """
    here = dict(listed())
    names = sorted(recorded.keys() | here.keys())
    for name in names:
        value = recorded.get(name, here.get(name, ""))
        why = why_refused(name, value)
        if why and recorded.get(name) != here.get(name):
            raise VariableError(name, recorded.get(name), why)
    before = {name: os.environ.get(name) for name in names}
    try:
        _change(recorded, here, listed)
        yield
    finally:
        for name, text in before.items():
            _put(name, text)


def _change(recorded: Mapping[str, str], here: Mapping[str, str], listed: Listed) -> None:
    for name in here.keys() - recorded.keys():
        _put(name, None)
    for name, value in recorded.items():
        if here.get(name) == value:
            continue
        was = os.environ.get(name)
        _put(name, _WORDS.get(value, value))
        if name not in listed():  # this Triton does not have it in its key
            _put(name, was)


_WORDS = {"true": "1", "false": "0"}
"""Python code of Triton 3.2 compares with ``"0"`` and ``"1"``; its C++ makes these of both."""


def _put(name: str, text: str | None) -> None:
    if text is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = text
