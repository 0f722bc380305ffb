from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.cli import values


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("1m30s", 90_000_000_000),
        ("1.5h", 5_400_000_000_000),
        ("250ms", 250_000_000),
        ("-3s", -3_000_000_000),
        ("1us1ns", 1_001),
        (".5s", 500_000_000),
    ],
)
def test_durations_read_as_go_reads_them(text: str, nanoseconds: int) -> None:
    assert values.parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x", 'time: invalid duration "x"'),
        ("", 'time: invalid duration ""'),
        ("5", 'time: missing unit in duration "5"'),
        ("5d", 'time: unknown unit "d" in duration "5d"'),
        ("300000000h", 'time: invalid duration "300000000h"'),
    ],
)
def test_wrong_durations_are_refused_in_gos_words(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match="time") as raised:
        values.parse_duration(text)

    assert str(raised.value) == reason


@given(st.integers(min_value=-(2**63) + 1, max_value=2**63 - 1))
def test_a_printed_duration_reads_back_the_same(nanoseconds: int) -> None:
    assert values.parse_duration(values.format_duration(nanoseconds)) == nanoseconds


@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        parsed = values.parse_duration(text)
    except ValueError:
        return

    assert abs(parsed) < 2**63


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [(0, "0s"), (1, "1ns"), (1_500, "1.5µs"), (5_000_000_000, "5s"), (3_600_000_000_000, "1h0m0s")],
)
def test_durations_print_as_go_prints_them(nanoseconds: int, text: str) -> None:
    assert values.format_duration(nanoseconds) == text


@given(st.integers(min_value=0, max_value=2**20), st.sampled_from(["", "k", "M", "g", "Ki", "mb", "GiB"]))
def test_sizes_are_binary_whatever_the_unit_is_called(number: int, unit: str) -> None:
    power = {"": 0, "k": 1, "m": 2, "g": 3}[unit[:1].lower()]

    if unit == "Ki":
        with pytest.raises(ValueError, match="invalid size"):
            values.parse_bytes(f"{number}{unit}")
    else:
        assert values.parse_bytes(f"{number}{unit}") == number * 1024**power


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        size = values.parse_bytes(text)
    except ValueError as error:
        assert str(error) == f"invalid size: '{text}'"
    else:
        assert 0 <= size < 2**63


@pytest.mark.parametrize(("text", "nano"), [("0.5", 500_000_000), ("2", 2_000_000_000), ("1/4", 250_000_000)])
def test_cpus_are_exact(text: str, nano: int) -> None:
    assert values.parse_cpus(text) == nano


def test_more_digits_of_a_cpu_than_a_billionth_are_refused() -> None:
    with pytest.raises(ValueError, match="too precise"):
        values.parse_cpus("0.0000000001")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "Less than a second"),
        (0.4, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (150, "2 minutes"),
        (3600, "About an hour"),
        (3600 * 47, "47 hours"),
        (3600 * 49, "2 days"),
        (86400 * 15, "2 weeks"),
        (86400 * 90, "3 months"),
        (86400 * 365 * 3, "3 years"),
    ],
)
def test_ages_are_told_in_dockers_words(seconds: float, words: str) -> None:
    assert values.human_duration(seconds) == words


def test_since_takes_ages_dates_and_unix_seconds() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)

    assert values.parse_moment("42m", now) == now - timedelta(minutes=42)
    assert values.parse_moment("2013-01-02T13:23:37Z", now) == datetime(2013, 1, 2, 13, 23, 37, tzinfo=UTC)
    assert values.parse_moment("1700000000", now) == datetime.fromtimestamp(1_700_000_000, UTC)
    with pytest.raises(ValueError, match="yesterday"):
        values.parse_moment("yesterday", now)


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        ("nginx:1@sha256:abc", "nginx:1"),
        ("docker.io/library/nginx:1", "nginx:1"),
        ("docker.io/me/app:1", "me/app:1"),
        ("localhost:5000/app:2@sha256:abc", "localhost:5000/app:2"),
        ("localhost:5000/app", "localhost:5000/app"),
    ],
)
def test_images_are_shown_as_people_write_them(image: str, shown: str) -> None:
    assert values.familiar_image(image) == shown
