"""How many examples each property is tried with.

``make test`` tries a few, and always the same ones, so that it never fails by chance. With
``IPYTASKPERSIST_EXAMPLES=10000`` each property is tried with so many new ones.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = "IPYTASKPERSIST_EXAMPLES"
IGNORED = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)
"""A machine that does something else at the same time is no error; and what fixtures give is used
by all examples on purpose: making it anew would take longer than all else."""

settings.register_profile(
    "small", derandomize=True, deadline=None, print_blob=True, suppress_health_check=IGNORED
)
settings.register_profile(
    "thorough",
    deadline=None,
    print_blob=True,
    suppress_health_check=IGNORED,
    max_examples=int(os.environ.get(EXAMPLES) or 1),
)


def tried(few: int, *, steps: int = 50) -> settings:
    """The settings of a property that ``make test`` tries with so few examples."""
    if is_thorough():
        return settings(settings.get_profile("thorough"), stateful_step_count=steps)
    small = settings.get_profile("small")
    return settings(small, max_examples=few, stateful_step_count=steps)


def is_thorough() -> bool:
    """Whether somebody has asked for a number of examples."""
    return bool(os.environ.get(EXAMPLES))
