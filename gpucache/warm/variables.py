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


class FileVariableError(GpuCacheError):
    """A recorded variable ``name`` names a file, and has another value here, or none."""

    def __init__(self, name: str, value: str) -> None:
        problem = f"the variable {name} names a file, and is not set for a recipe"
        super().__init__(problem, f"set {name}={value!r} yourself", name, value)
        self.name = name
        self.value = value


def names_a_file(name: str, value: str) -> bool:
    """Whether a variable names a file to load or to write."""
    return name.endswith(_NAMES_A_FILE) or "/" in value


@contextmanager
def as_recorded(recorded: Mapping[str, str], listed: Listed) -> Iterator[None]:
    """Have the variables in the key as a recipe says, and all other variables as they are, until the end of the block.

    For a process with one thread: the environment is that of the whole process.

    Raises:
        FileVariableError: a variable that names a file would have to be changed.
    """
    here = dict(listed())
    for name in recorded.keys() | here.keys():
        value = recorded.get(name, here.get(name, ""))
        if names_a_file(name, value) and recorded.get(name) != here.get(name):
            raise FileVariableError(name, recorded.get(name, ""))
    before = {name: os.environ.get(name) for name in recorded.keys() | here.keys()}
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
