"""Find the part of a value that keeps it from being pickled, and where it is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

DEPTH = 20
PARTS_AT_MOST = 1000
"""How many parts of one object are tried."""


def unpicklable_part(
    name: str, value: Any, refusal: Callable[[Any], BaseException | None]
) -> tuple[str, Any]:
    """Return the smallest part that cannot be pickled, and its path: ``model.callbacks[0].lock``.

    `refusal` returns what pickling an object raises.
    """
    path, seen = name, {id(value)}
    for _level in range(DEPTH):
        parts = ((step, each) for step, each in _parts(value) if id(each) not in seen)
        found = next(((step, each) for step, each in parts if refusal(each)), None)
        if found is None:
            break
        path, value = path + found[0], found[1]
        seen.add(id(value))
    return path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a value holds, each with the step that leads there."""
    kind = type(value)
    if issubclass(kind, dict):
        items = islice(dict.items(value), PARTS_AT_MOST)
        yield from ((f"[{_key(key)}]", each) for key, each in items)
    elif issubclass(kind, list | tuple):
        yield from ((f"[{n}]", each) for n, each in enumerate(islice(value, PARTS_AT_MOST)))
    if not issubclass(kind, type):
        attributes: Any = getattr(value, "__dict__", None)
        if issubclass(type(attributes), dict):
            named = islice(attributes.items(), PARTS_AT_MOST)
            yield from ((f".{name}", each) for name, each in named)


def _key(key: Any) -> str:
    return repr(key) if type(key) in (str, int, bytes, bool, float) else "…"
