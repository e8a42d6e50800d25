"""The counters by level, as values and as `gpucache stats` prints them."""

from __future__ import annotations

from gpucache.layout import paths
from gpucache.store.levels import levels
from gpucache.store.stats import REMOTE, Stats

LEVELS = ["own", "store", "fallback", "remote", "compiled"]


def test_what_the_remote_gave_is_a_miss_of_the_store_and_of_the_directory():
    """The store counts it as a hit from then on, so that nothing is a hit of two levels."""
    counted = {"hits": 7, "shared_hits": 5, "misses": 3, "remote_hits": 2, "remote_misses": 3}
    by_level = levels(counted)
    assert (by_level["own"].hits, by_level["own"].misses) == (7, 8)
    assert (by_level["store"].hits, by_level["store"].misses) == (3, 5)
    assert (by_level["remote"].hits, by_level["remote"].misses) == (2, 3)


def test_what_was_refused_is_an_error_of_the_remote():
    by_level = levels({"remote_errors": 2, "remote_bad": 3, "remote_bytes": 9, "remote_s": 0.5})
    assert by_level["remote"] == (0, 0, 5, 9, 0.5)


def test_a_remote_hit_that_another_rank_has_adopted_is_no_negative_number():
    assert levels({"remote_hits": 2, "shared_hits": 1})["store"].hits == 0


def test_levels_are_shown_where_there_is_something_of_a_remote(here, tmp_path):
    root = str(tmp_path)
    directory = paths.ours(root, "stats")
    Stats(directory, "0").add("hits", now=True)
    bare = here("stats", "--root", root)
    assert [row[0] for row in bare.rows] == ["0", "all"]
    Stats(directory, "0").add("remote_hits", now=True)
    moved = Stats(directory, REMOTE)
    moved.add("pushed", 4)
    moved.add("pushed_bytes", 2048, now=True)
    moved.add("push_errors", 1, now=True)
    said = here("stats", "--root", root)
    assert [row[0] for row in said.rows] == ["0", "all", *LEVELS]
    assert said.rows[-2] == ["remote", "1", "0", "0", "0", "0.0"]
    assert said.err.splitlines() == ["pushed 4 (2.0 KiB), failed 1 time"]
    as_json = here("stats", "--root", root, "--json").json
    assert (list(as_json["devices"]), as_json["all"]["pushed"]) == (["0"], 4)


def test_what_no_trusted_key_has_signed_is_told(here, tmp_path):
    Stats(paths.ours(str(tmp_path), "stats"), "0").add("remote_bad", 3, now=True)
    said = here("stats", "--root", str(tmp_path))
    assert "3 times the remote gave what no trusted key has signed" in said.err
