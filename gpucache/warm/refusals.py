"""What Triton and ptxas say where a kernel cannot be compiled for an architecture, as opposed to a failure."""

from __future__ import annotations

import re

_REFUSALS = re.compile(
    r"requires NVIDIA SM|num_ctas > 1 (?:requires|not supported)"
    r"|not supported in this architecture|is not supported on this architecture"
    r"|requires \.target '?sm_|not supported on \.target"
)


def is_refusal(error: BaseException) -> bool:
    """Whether an exception says that the architecture lacks what the kernel needs."""
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
