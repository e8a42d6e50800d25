"""Which instructions this node's processor has, as far as compiled code depends on them.

TorchInductor compiles for the very processor (``-march=native``, torch 2.13.0 `_inductor/cpp_builder.py`
`_get_cpu_arch_cflags`), and writes C++ for the width of its vectors; neither the key of a library nor that of a graph
says which that was (`_inductor/codecache.py` `FxGraphHashDetails`). On another processor such a library dies of an
illegal instruction. A graph that was made for AVX2 and hit where torch compiles for AVX-512 wrote beyond its buffers,
and ended the process (``free(): invalid next size``; run with torch 2.13.0).

Limit: ``ATEN_CPU_CAPABILITY`` has torch compile for less than the processor has; in one root torch itself does not tell
that apart, and neither does a pack.
"""

from __future__ import annotations

import hashlib
import platform
import re
from functools import lru_cache

from gpucache.disk.door import read_head

_FLAGS = re.compile(r"^(?:flags|Features)\s*:(.*)$", re.MULTILINE)
_COUNTING = (
    *("sse", "ssse", "avx", "fma", "f16c", "bmi", "abm", "popcnt", "movbe", "adx", "xop", "tbm"),
    *("aes", "pclmul", "vaes", "vpclmul", "gfni", "sha", "amx"),
)
"""How the names of flags of x86 begin that a compiler heeds; others differ with the kernel and the hypervisor."""
_MOST_BYTES = 2**16


@lru_cache(maxsize=1)
def instructions() -> str:
    """A digest that is equal on processors with the same instructions; empty where the system does not tell."""
    try:
        said = read_head("/proc/cpuinfo", _MOST_BYTES).decode("ascii", "replace")
    except OSError:
        return ""
    return digest_of(platform.machine(), said)


def digest_of(machine: str, said: str) -> str:
    """The digest for a kind of machine and the text of its ``/proc/cpuinfo``; empty where that names no flags."""
    match = _FLAGS.search(said)
    if match is None:
        return ""
    flags = sorted(set(match[1].split()))
    if machine == "x86_64":
        flags = [flag for flag in flags if flag.startswith(_COUNTING)]
    counting = " ".join([machine, *flags])
    return hashlib.sha256(counting.encode()).hexdigest()[:16]
