"""What the holder of a lock says of itself is what those who wait are told."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpucache.disk import locks
from gpucache.disk.door import HOLDER_BYTES


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(what=st.none() | st.text(max_size=300), host=st.text(max_size=64))
def test_what_a_holder_writes_is_what_a_waiter_reads(what, host, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "host_name", lambda: host)
        said = locks.signature(what)
    assert len(said) <= HOLDER_BYTES
    (tmp_path / "holder").write_bytes(said)
    told = locks.holder(str(tmp_path / "holder"))
    assert told.startswith(f"process {os.getpid()} on {host} since ")
    assert told.endswith("Z" if what is None else f" for {what}")


def test_a_file_that_was_given_the_name_of_a_holder_is_not_written_to(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("another user's")
    os.link(precious, tmp_path / "x.lock.holder")
    with locks.locked(str(tmp_path / "x.lock"), timeout_s=60):
        assert precious.read_text() == "another user's"
