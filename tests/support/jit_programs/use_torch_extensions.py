"""PyTorch builds an extension of one line of C++, which the compilers count."""

import pathlib
import sys

import torch.utils.cpp_extension

source = pathlib.Path(sys.argv[1]) / "of_a_test.cpp"
if not source.exists():
    source.write_text('extern "C" int of_a_test() { return 3; }\n')
torch.utils.cpp_extension.load("of_a_test", [str(source)], is_python_module=False)
print("{}")
