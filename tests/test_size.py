"""The total in `stats/size` is what was written there, whatever is counted and whenever."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpucache.layout import paths
from gpucache.store.size import set_total, total_bytes, updated

ANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@ANY
@given(st.integers(0, 2**59), st.floats(1.0, 1e18), st.integers(-(2**60), 2**58), st.booleans())
def test_what_is_written_is_read(tmp_path, size, now, change, draining):
    root = str(tmp_path)
    assert set_total(root, size, now) is not None
    assert total_bytes(root) == size
    total = updated(root, change, draining=draining)
    assert total is not None
    most = 2**60 - 1  # no store is larger
    assert total_bytes(root) == total.size_bytes == min(max(0, size + change), most)
    assert (total.draining, total.counted) == (draining, now)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[1152921504606846976, 0, 1]",
        "[1e999, 0, 1]",
        "[1, 2, 3, 4]",
        "x" * 97,
        '["a", 0, 1]',
    ],
)
def test_what_makes_no_sense_is_what_nobody_has_counted(text, tmp_path):
    assert set_total(str(tmp_path), 5, 1.0) is not None
    with open(paths.ours(str(tmp_path), "stats", "size"), "w") as file:
        file.write(text)
    assert total_bytes(str(tmp_path)) is None
