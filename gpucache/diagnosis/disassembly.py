"""`disassemble`: the instructions in a cubin (SASS), by the disassembler that ships inside Triton, or CUDA's own.

``nvdisasm`` and ``cuobjdump`` lie in ``backends/nvidia/bin`` of the wheels of Triton 3.2.0, 3.4.0, 3.6.0 and 3.9.0.
They are found without importing Triton, also where the Python of the shell is another one than gpucache's.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import tempfile
from collections.abc import Iterator, Mapping

from gpucache.directories.jit_python import python_of, this_python, which
from gpucache.disk.reading import read
from gpucache.environment import TOOLKITS
from gpucache.errors import GpuCacheError

_TOOLS = {"nvdisasm": ("-c",), "cuobjdump": ("-sass",)}
"""The programs, and what each is asked for; the first makes labels of jumps, which the second leaves as numbers."""
_BESIDE_TRITON = "triton/backends/nvidia/bin"
_LIMIT_S = 120.0
_MOST_BYTES = 512 * 2**20
_INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE
)
_ADDRESS = re.compile(r"/\*[0-9a-f]{4,}\*/")
_ENCODING = re.compile(r"\s*/\* 0x[0-9a-f]{16} \*/")


def disassembler(environ: Mapping[str, str]) -> str | None:
    """The path of a disassembler: the one that Triton was told of, that beside Triton, or CUDA's; None without one."""
    for name in _TOOLS:
        for path in _candidates(name, environ):
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path
    return None


def _candidates(name: str, environ: Mapping[str, str]) -> Iterator[str]:
    told = environ.get(f"TRITON_{name.upper()}_PATH")  # as Triton's own knob
    if told:
        yield told
    for directory in (*python_of("python", environ).path, *this_python().path):
        if os.path.isabs(directory):
            yield f"{directory}/{_BESIDE_TRITON}/{name}"
    on_path = which(name, environ)
    if on_path is not None:
        yield on_path
    for variable in TOOLKITS:
        if environ.get(variable):
            yield f"{environ[variable]}/bin/{name}"
    yield f"/usr/local/cuda/bin/{name}"


def disassemble(cubin: bytes, environ: Mapping[str, str]) -> str:
    """The instructions in a cubin, as the disassembler prints them.

    The cubin may be anybody's: the program works on a copy, within two minutes, and is given no more room than any
    kernel needs.

    Raises:
        GpuCacheError: there is no disassembler, or it refuses the cubin.
    """
    program = disassembler(environ)
    if program is None:
        raise GpuCacheError(
            "no nvdisasm and no cuobjdump are found beside Triton, on PATH, or in CUDA_HOME",
            "install triton in this environment, which ships both, or set TRITON_NVDISASM_PATH",
        )
    with tempfile.TemporaryDirectory(prefix="gpucache-") as work:
        return _disassembled(program, cubin, work)


def _disassembled(program: str, cubin: bytes, work: str) -> str:
    path = f"{work}/kernel.cubin"
    with open(path, "wb") as file:
        file.write(cubin)
    words = _TOOLS.get(os.path.basename(program), _TOOLS["nvdisasm"])
    with open(f"{work}/out", "wb") as out, open(f"{work}/err", "wb") as err:
        try:
            code = subprocess.run(
                [program, *words, path],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=_LIMIT_S,
                preexec_fn=_bounded,
                check=False,
            ).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            raise GpuCacheError(f"{program} did not disassemble it: {error}", _OTHER) from None
    said = _text(f"{work}/err")
    text = _text(f"{work}/out")
    if code != 0 or not text.strip():
        first = said.strip().splitlines() or [f"it ended with {code}"]
        raise GpuCacheError(f"{program} refuses the cubin: {first[0]}", _OTHER)
    return text


_OTHER = "set TRITON_NVDISASM_PATH to that of another CUDA, which may know the architecture"


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_BYTES, _MOST_BYTES))


def _text(path: str) -> str:
    return read(path, _MOST_BYTES).decode(errors="replace")


def instruction_count(sass: str) -> int:
    """How many instructions a disassembly has, without those that do nothing."""
    return sum(name != "NOP" for name in _INSTRUCTION.findall(sass))


def without_addresses(sass: str) -> str:
    """A disassembly without addresses and encodings, which differ from the first inserted instruction on."""
    return _ADDRESS.sub("", _ENCODING.sub("", sass))
