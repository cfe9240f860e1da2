"""An age is a number and a unit, and anything else is refused with the units."""

from __future__ import annotations

import pytest

from ipytaskpersist.durations import parse_age
from ipytaskpersist.errors import InvalidRequest


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
    ],
)
def test_an_age_is_a_number_of_seconds(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "45", "d", "-3d", "3y", "1d2h", "1e3s", "٣d", "3 days", "nan"]
)
def test_anything_else_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{text}' is no age; .* 90s, 30m .*, 12h, 7d, 2w"):
        parse_age(text)
