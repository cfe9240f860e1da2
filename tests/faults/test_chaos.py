"""Whatever is killed or stopped, and whenever: nothing that was acknowledged is lost.

`make chaos N=1000` plays more rounds, each time others.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.__main__ import play_all
from faults.points import POINTS

SEED = "steady"
ROUNDS = 14
TOGETHER = 7
"""Rounds a test."""
AT_ONCE = 2

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes in /proc"),
    pytest.mark.timeout(900),
]


@pytest.mark.parametrize("first", range(0, ROUNDS, TOGETHER))
def test_nothing_is_lost_whatever_is_killed(first: int) -> None:
    """Kernels, sessions, supervisors, commands and tasks, at named points and at random."""
    seeds = [f"{SEED}:{place}" for place in range(first, first + TOGETHER)]
    happened, failures = play_all(seeds, at_once=AT_ONCE)
    assert not failures, failures
    assert sum(count for fault, count in happened.items() if fault != "nothing")


def test_every_point_is_one_of_the_package() -> None:
    """A function that was renamed would be hit no more, and nobody would know."""
    from importlib import import_module

    for name, point in POINTS.items():
        owner = import_module(f"ipytaskpersist.{point.module}")
        for part in point.function.split("."):
            assert hasattr(owner, part), f"{name}: there is no {point.module}.{point.function}"
            owner = getattr(owner, part)
