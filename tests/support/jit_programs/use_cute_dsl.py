"""The CuTe DSL compiles one function for the host, and its log tells of hits and misses of the directory."""

import json
import logging
import os

os.environ["CUTE_DSL_LOG_TO_CONSOLE"] = "1"
os.environ["CUTE_DSL_LOG_LEVEL"] = "20"
import cutlass.cute as cute


class Told(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@cute.jit
def of_a_test():
    cute.printf("of a test\n")


told = Told()
logging.getLogger("CUTE_DSL").addHandler(told)
of_a_test()
misses = [line for line in told.lines if "JIT cache miss" in line]
hits = [line for line in told.lines if "JIT cache hit" in line]
assert len(misses) + len(hits) > 0, told.lines
print(json.dumps({"compiled": len(misses)}))
