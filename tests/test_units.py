from __future__ import annotations

import pytest

from gpucache.units import age, parse_duration, parse_size, size


class TestParseSize:
    @pytest.mark.parametrize(
        ("text", "count"),
        [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("1K", 2**10),
            ("1k", 2**10),
            ("1KiB", 2**10),
            ("1KB", 1000),
            ("2M", 2 * 2**20),
            ("2MiB", 2 * 2**20),
            ("500MB", 500 * 10**6),
            ("20GiB", 20 * 2**30),
            ("20g", 20 * 2**30),
            ("20GB", 20 * 10**9),
            ("1.5G", 3 * 2**29),
            ("0.5TiB", 2**39),
            ("3TB", 3 * 10**12),
            (" 20 GiB ", 20 * 2**30),
            ("999999999999999", 999_999_999_999_999),
        ],
    )
    def test_sizes_as_people_write_them(self, text, count):
        assert parse_size(text) == count

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "",
                "GiB",
                "-1",
                "+1",
                "1e9",
                "1,5G",
                ".5G",
                "5.G",
                "10%",
                "0x10",
                "inf",
                "nan",
                "20 Gb",
                "20PiB",
                "1 G B",
            ),
            *("1\n2", "٣", "1_000", "9" * 16, "1.1234567"),
        ],
    )
    def test_anything_else_is_refused_by_its_text(self, text):
        with pytest.raises(ValueError) as refused:
            parse_size(text)
        assert str(refused.value) == f"{text!r} is not a size like 20GiB, 500MB or 4096"


class TestParseDuration:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("0", 0.0),
            ("0.0", 0.0),
            ("90s", 90.0),
            ("5m", 300.0),
            ("15min", 900.0),
            ("12h", 43_200.0),
            ("1.5h", 5400.0),
            ("30d", 2_592_000.0),
            ("2w", 1_209_600.0),
            (" 2 w ", 1_209_600.0),
            ("0d", 0.0),
        ],
    )
    def test_times_as_people_write_them(self, text, seconds):
        assert parse_duration(text) == seconds

    @pytest.mark.parametrize(
        "text", ["", "d", "30", "0.1", "-1d", "30D", "1e3s", "0x", "0 parsecs", "1y", "٣d", "1d 2h"]
    )
    def test_anything_else_is_refused_by_its_text(self, text):
        with pytest.raises(ValueError) as refused:
            parse_duration(text)
        assert str(refused.value) == f"{text!r} is not a time like 30d, 12h, 15min or 90s"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (39_117, "38.2 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**20 - 60, "1023.9 KiB"),
        (2**30 - 1, "1.0 GiB"),
        (1_503_238_553, "1.4 GiB"),
        (2**40 - 1, "1.0 TiB"),
        (5000 * 2**40, "5000.0 TiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_a_size_is_shown_in_the_unit_that_leaves_the_shortest_number(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5.0, "now"),
        (0.0, "now"),
        (0.99, "now"),
        (1.0, "1 s"),
        (59.9, "59 s"),
        (60.0, "1 min"),
        (3599.0, "59 min"),
        (3600.0, "1 h"),
        (86_399.0, "23 h"),
        (3.9 * 86_400.0, "3 d"),
        (4000 * 86_400.0, "4000 d"),
    ],
)
def test_a_time_span_is_shown_in_its_largest_whole_unit(seconds, text):
    assert age(seconds) == text


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 2**20, 2**30, 3 * 2**40])
def test_what_is_shown_of_a_whole_number_of_units_reads_back(count):
    assert parse_size(size(count)) == count
