"""What Triton and its tools say where a kernel cannot be compiled for an architecture, as opposed to a failure.

There is no type for that, only texts (seen in 3.9.0: `triton/backends/*/compiler.py`, `triton/language/semantic.py`,
ptxas of CUDA 12.9 and 13, the assembler of AMD's LLVM). What says something else for another architecture of the same
maker counts as failed, though it may be a refusal too: ``PassManager::run failed`` says nothing.
"""

from __future__ import annotations

import re

_REFUSALS = re.compile(
    r"requires NVIDIA SM|num_ctas > 1 (?:requires|not supported)"
    r"|not supported (?:in|on) this architecture"
    r"|requires \.target '?sm_|not supported on \.target"
    r"|target doesn't provide conversion"
    r"|assembler rejected"
)
_COMPILING = (
    "CompilationError",
    "PTXASError",
    "RuntimeError",
    "ValueError",
    "AssertionError",
    "NotImplementedError",
)
"""What Triton raises while it compiles; not what it raises where a file or a tool is missing."""


def is_refusal(error: BaseException, is_other_maker: bool) -> bool:
    """Whether an exception says that the architecture lacks what the kernel needs.

    ``is_other_maker`` is whether the recipe is one for GPUs of another maker: then everything that Triton raises while
    it compiles is a refusal, since the kernel was compiled for its own.
    """
    if is_other_maker and type(error).__name__ in _COMPILING:
        return True
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if _REFUSALS.search(str(found)):
            return True
        found = found.__cause__ or found.__context__
    return False


_FILES = ("-o", "--output-file", "-optf", "--options-file")
_WORD = re.compile(r"[A-Za-z0-9_.,=+:-]+")


def are_harmless(options: object) -> bool:
    """Whether options for ptxas name no file: it would write or read that."""
    if options is None:
        return True
    if type(options) is not str:
        return False
    words = options.split()
    return all(_WORD.fullmatch(word) and not word.startswith(_FILES) for word in words)
