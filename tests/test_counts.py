"""Sums stay in bounds by giving up detail, never a count."""

from __future__ import annotations

import json

import pytest

from gpucache.store import counts
from gpucache.store.counts import Sums, Where, bounded, device_label, encoded, parsed

NOW = 500_000


def total(sums: Sums) -> float:
    return sum(values.get("hits", 0) for values in sums.values())


def always(_: Sums) -> bool:
    return True


@pytest.mark.parametrize(
    ("directory", "label"),
    [
        ("/r/triton/0", "0"),
        ("/r/triton/1.2", "1.2"),
        ("/r", "."),
        ("/r/triton", "triton"),
        ("/r/triton/0/deeper", "/r/triton/0/deeper"),
        ("/r/triton2/0", "/r/triton2/0"),
        ("/a/cache", "/a/cache"),
        ("/b/cache", "/b/cache"),
    ],
)
def test_a_directory_in_the_root_has_its_name_and_any_other_its_path(directory, label):
    assert device_label("/r", directory) == label


def test_what_is_encoded_is_parsed_alike():
    sums = {Where("h", "0", 7): {"hits": 1.0}, Where("", "/a/b"): {"saved_s": 0.5}}
    assert parsed(json.loads(json.dumps(encoded(sums)))) == sums


class TestBounds:
    def test_hours_of_fourteen_days_are_kept_and_older_ones_are_one(self):
        sums: Sums = {Where("h", "0", NOW - back): {"hits": 1} for back in range(1000)}
        kept = bounded(sums, NOW, always)
        assert len(kept) == counts.HOURS_KEPT + 1
        assert kept[Where("h", "0", counts.ANY_TIME)] == {"hits": 1000 - counts.HOURS_KEPT}
        assert total(kept) == 1000

    def test_an_hour_of_a_clock_that_goes_wrong_is_none(self):
        sums: Sums = {Where("h", "0", NOW + ahead): {"hits": 1} for ahead in (24, 25, 10**8)}
        kept = bounded(sums, NOW, always)
        assert sorted(where.hour for where in kept) == [counts.ANY_TIME, NOW + 24]
        assert total(kept) == 3

    @pytest.mark.parametrize("most", [400, 100, 50, 2, 1])
    def test_whatever_has_to_fit_no_count_is_lost(self, most):
        sums: Sums = {}
        for number in range(400):
            sums[Where(f"pod{number}", "0")] = {"hits": 1}
            sums[Where("h", f"/jobs/{number}")] = {"hits": 1}
            sums[Where("h", str(number % 8), NOW - number)] = {"hits": 1}
        kept = bounded(sums, NOW, lambda some: len(some) <= most)
        assert len(kept) <= most
        assert total(kept) == 1200

    def test_what_has_counted_nothing_for_long_gives_way_first(self):
        sums: Sums = {Where(f"pod{number}", "0"): {"hits": 1} for number in range(100)}
        sums |= {Where("pod5", f"/jobs/{number}"): {"hits": 1} for number in range(100)}
        sums[Where("pod5", "0", NOW)] = {"hits": 1}
        sums[Where("pod5", "/jobs/3", NOW)] = {"hits": 1}
        kept = bounded(sums, NOW, lambda some: len(some) <= 6)
        assert kept == {
            Where(counts.ANY_HOST, "0"): {"hits": 99},
            Where("pod5", "0"): {"hits": 1},
            Where("pod5", "0", NOW): {"hits": 1},
            Where("pod5", "/jobs/3"): {"hits": 1},
            Where("pod5", "/jobs/3", NOW): {"hits": 1},
            Where("pod5", counts.ELSEWHERE): {"hits": 99},
        }


@pytest.mark.parametrize("said", [-1, "x", "9" * 5000, 10**400, None, [], 1.5, "\u0663", " 5"])
def test_an_hour_that_makes_no_sense_is_none(said):
    assert counts.parsed_hour(said) == counts.ANY_TIME
