"""cuda.core compiles one program for two architectures with NVRTC, into a cache whose path the program passes."""

import json
import sys

from cuda.core import Program, ProgramOptions
from cuda.core.utils import FileStreamProgramCache

SOURCE = 'extern "C" __global__ void of_a_test(float *x) { x[0] *= 2; }'
cache = FileStreamProgramCache(path=sys.argv[1])
before = len(cache)
for arch in ("sm_80", "sm_90"):
    program = Program(SOURCE, "c++", ProgramOptions(arch=arch))
    program.compile("cubin", cache=cache)
assert len(cache) == 2
print(json.dumps({"compiled": len(cache) - before}))
