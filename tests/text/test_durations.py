"""An age is a number and a unit, and anything else is refused with the units."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.text.durations import parse_age, parse_since


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("12h", 43_200),
        ("30d", 2_592_000),
        ("2w", 1_209_600),
        ("1.5h", 5400),
        (" 7 D ", 604_800),
        ("0s", 0),
        ("1h30m", 5400),
    ],
)
def test_an_age_is_a_number_of_seconds(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "45", "d", "-3d", "3y", "1d2", "1e3s", "٣d", "3 days", "nan"])
def test_anything_else_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{text}' is no age; .* 90s, 30m .*, 12h, 7d, 2w"):
        parse_age(text)


NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_since_is_an_age_before_now_or_a_date() -> None:
    assert parse_since("36h", NOW) == NOW - timedelta(hours=36)
    assert parse_since("2026-01-30T10:00+02:00", NOW) == datetime(2026, 1, 30, 8, tzinfo=UTC)
    assert parse_since("2026-01-30", NOW) == datetime(2026, 1, 30).astimezone()


@pytest.mark.parametrize(
    "text", ["", "45", "yesterday", "2026-13-01", "999999999w", "0001-01-01x", "9999-12"]
)
def test_any_other_since_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{text}' is neither an age .*90s.* nor a date"):
        parse_since(text, NOW)
