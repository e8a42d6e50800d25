"""Which entries go first: the one choice that the limit, prune and clean share."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucache.errors import ConfigurationError
from gpucache.store.recency import (
    Limits,
    check_grace,
    is_recent,
    oldest_first,
    over_limits,
    spare_recent,
    stamp_interval,
)

NOW = 1_000_000.0
DAY_S = 86400.0


class Used(NamedTuple):
    used: float
    size_bytes: int = 1


entries_strategy = st.lists(
    st.builds(Used, st.floats(0, 2 * NOW), st.integers(0, 100)), max_size=12
)
limits_strategy = st.builds(
    Limits,
    max_size_bytes=st.none() | st.integers(0, 600),
    max_entries=st.none() | st.integers(0, 12),
    max_age_s=st.none() | st.floats(0, NOW),
)


def beyond(entries: list[Used], limits: Limits) -> list[Used]:
    size = sum(entry.size_bytes for entry in entries)
    freed = Used.size_bytes.__get__
    return over_limits(entries, limits, freed, size_bytes=size, count=len(entries), now=NOW)


def within(entries: list[Used], limits: Limits) -> bool:
    """Whether what is left, oldest first, keeps the limits."""
    size = sum(entry.size_bytes for entry in entries)
    return (
        (limits.max_size_bytes is None or size <= limits.max_size_bytes)
        and (limits.max_entries is None or len(entries) <= limits.max_entries)
        and (limits.max_age_s is None or NOW - entries[0].used <= limits.max_age_s)
    )


class TestRecent:
    def test_a_use_is_recent_for_as_long_as_the_grace(self):
        assert is_recent(NOW - 10, NOW, 10)
        assert not is_recent(NOW - 11, NOW, 10)

    def test_a_clock_that_is_a_little_ahead_is_believed_and_one_that_is_days_ahead_is_not(self):
        assert is_recent(NOW + DAY_S, NOW, 10)
        assert not is_recent(NOW + 2 * DAY_S, NOW, 10)

    def test_an_interval_of_stamps_is_never_longer_than_by_default(self):
        assert stamp_interval({"GPUCACHE_STAMP_S": "10"}) == 10
        assert stamp_interval({"GPUCACHE_STAMP_S": "9999"}) == stamp_interval({}) == 300

    def test_a_grace_shorter_than_two_stamps_is_refused(self):
        check_grace(20, {"GPUCACHE_STAMP_S": "10"})
        with pytest.raises(ConfigurationError, match="at least 20s"):
            check_grace(19, {"GPUCACHE_STAMP_S": "10"})


class TestChoice:
    def test_least_recently_used_goes_first_and_before_it_what_a_wrong_clock_dated(self):
        old, new, ahead = Used(10.0), Used(NOW), Used(NOW + 2 * DAY_S)
        assert oldest_first([new, ahead, old], NOW) == [ahead, old, new]

    @pytest.mark.parametrize(
        ("limits", "count"),
        [
            (Limits(), 0),
            (Limits(max_size_bytes=2), 1),
            (Limits(max_entries=1), 2),
            (Limits(max_age_s=15.0), 1),
            (Limits(max_age_s=5.0), 2),
            (Limits(max_size_bytes=0), 3),
            (Limits(max_size_bytes=2, max_entries=1), 2),
        ],
        ids=str,
    )
    def test_as_much_goes_as_the_limits_want(self, limits, count):
        entries = [Used(NOW - 20), Used(NOW - 10), Used(NOW)]
        assert beyond(entries, limits) == entries[:count]

    @given(entries_strategy, limits_strategy)
    def test_what_stays_is_within_the_limits_and_nothing_goes_for_nothing(self, entries, limits):
        entries = [entry for entry in entries if entry.used <= NOW]
        ordered = oldest_first(entries, NOW)
        going = beyond(ordered, limits)
        assert ordered[: len(going)] == going
        staying = ordered[len(going) :]
        assert not staying or within(staying, limits)
        if going:
            assert not within(ordered[len(going) - 1 :], limits)

    @given(entries_strategy, st.floats(0, NOW))
    def test_what_was_used_in_the_grace_stays(self, entries, grace_s):
        going, staying = spare_recent(entries, grace_s, NOW)
        assert sorted(going + staying) == sorted(entries)
        assert all(is_recent(entry.used, NOW, grace_s) for entry in staying)
        assert not any(is_recent(entry.used, NOW, grace_s) for entry in going)

    def test_limits_are_true_where_one_is_set(self):
        assert Limits(max_entries=0)
        assert not Limits()
