"""Warp compiles one kernel for the processor, and says whether it did."""

import contextlib
import io
import json

import numpy as np
import warp as wp


@wp.kernel
def double_in_a_test(values: wp.array(dtype=float)):
    at = wp.tid()
    values[at] = values[at] * 2.0


said = io.StringIO()
with contextlib.redirect_stdout(said):
    array = wp.array(np.ones(4, dtype=np.float32), device="cpu")
    wp.launch(double_in_a_test, dim=4, inputs=[array], device="cpu")
    assert array.numpy().tolist() == [2.0] * 4
text = said.getvalue()
assert "(compiled)" in text or "(cached)" in text, text
print(json.dumps({"compiled": text.count("(compiled)")}))
