"""tvm-ffi builds a library of C++, which the compilers count."""

import tvm_ffi.cpp

SOURCE = "int add_in_a_test(int a, int b) { return a + b; }"
module = tvm_ffi.cpp.load_inline(name="of_a_test", cpp_sources=SOURCE, functions="add_in_a_test")
assert module.add_in_a_test(1, 2) == 3
print("{}")
