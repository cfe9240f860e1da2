"""A value that cannot be pickled is named with the part that keeps it from that."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from ipytaskpersist.values.pickling import require_picklable
from ipytaskpersist.values.unpicklable_parts import unpicklable_part


def refusal(value: Any) -> BaseException | None:
    try:
        require_picklable(value, None)
    except TypeError as error:
        return error
    return None


LOCK = threading.Lock()
IN_ITSELF: list[Any] = [1]
IN_ITSELF += [IN_ITSELF, LOCK]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (LOCK, "x"),
        ([1, {"a": (2, LOCK)}], "x[1]['a'][1]"),
        (SimpleNamespace(callbacks=[SimpleNamespace(lock=LOCK)]), "x.callbacks[0].lock"),
        ({(1, 2): LOCK}, "x[…]"),
        (IN_ITSELF, "x[2]"),
    ],
)
def test_the_part_is_named_with_where_it_is_held(value: Any, path: str) -> None:
    assert unpicklable_part("x", value, refusal) == (path, LOCK)
