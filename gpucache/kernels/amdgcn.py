"""What the assembly of an AMD kernel says of it: registers and scratch memory per work-item.

Triton keeps the assembly as ``K.amdgcn`` beside the binary. It ends with the metadata of the code object, in YAML
between ``.amdgpu_metadata`` and ``.end_amdgpu_metadata``, which LLVM writes for the driver (`AMDGPUUsage`, "Code Object
V5 Metadata"): ``.vgpr_count`` and ``.private_segment_fixed_size``, the bytes of scratch memory, into which registers
are spilled. Seen so from Triton 3.6.0 and 3.9.0, for gfx942; 3.2.0 and 3.4.0 need a linker of ROCm's to get there.
"""

from __future__ import annotations

import re

from gpucache.disk import reading
from gpucache.kernels.cubin import Resources

_MOST_BYTES = 16 * 2**20
_BEGINNING = b".amdgpu_metadata"
_REGISTERS = re.compile(rb"^ +\.vgpr_count: +(\d{1,5})$", re.MULTILINE)
_SCRATCH = re.compile(rb"^ +\.private_segment_fixed_size: +(\d{1,9})$", re.MULTILINE)


def resources(path: str) -> Resources | None:
    """What the one kernel in an assembly needs; None for a file that is unreadable, or of another shape."""
    try:
        data = reading.read(path, _MOST_BYTES)
    except OSError:
        return None
    metadata = data[data.rfind(_BEGINNING) :] if _BEGINNING in data else b""
    registers = _REGISTERS.findall(metadata)
    scratch = _SCRATCH.findall(metadata)
    if len(registers) != 1 or len(scratch) != 1:
        return None  # of several kernels nobody knows which is meant
    return Resources(int(registers[0]), int(scratch[0]))
