"""The total in `stats/size` is what was written there, whatever is counted and whenever."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpucache.layout import paths
from gpucache.store.size import count_anew_later, set_total, total_bytes, updated

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


def test_a_file_that_was_given_the_name_of_the_total_is_not_written_to(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("another user's")
    place = tmp_path / "gpucache/v1/stats"
    place.mkdir(parents=True)
    os.link(precious, place / "size")
    count_anew_later(str(tmp_path))
    assert precious.read_text() == "another user's"
    updated(str(tmp_path), 5)
    assert precious.read_text() == "another user's"
