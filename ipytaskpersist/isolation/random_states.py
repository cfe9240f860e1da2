"""The global states of `random` and numpy, if they were seeded.

A seeded notebook gives in a process what it gives in a cell: its state goes along, and comes back
advanced by what the task has drawn. Without a seed, each task draws its own numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ipytaskpersist.base.patches import Patches

_seeded: set[str] = set()
"""The modules whose state was set on purpose."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the state of `random` as it is, whatever is drawn meanwhile."""
    state, was_seeded = random.getstate(), "random" in _seeded
    try:
        yield
    finally:
        random.setstate(state)
        if not was_seeded:
            _seeded.discard("random")


def install(patches: Patches) -> None:
    """Notice from now on when `random` is seeded."""
    patches.replace(random, "seed", _noticing_seed)
    patches.replace(random, "setstate", _noticing_state)


def _noticing_seed(plain: Callable[..., None]) -> Callable[..., None]:
    def seed(a: Any = None, version: int = 2) -> None:
        plain(a, version)
        _seeded.discard("random") if a is None else _seeded.add("random")

    return seed


def _noticing_state(plain: Callable[..., None]) -> Callable[..., None]:
    def setstate(state: Any) -> None:
        plain(state)
        _seeded.add("random")

    return setstate


def read_random(_random: Any) -> dict[str, Any]:
    """Return the state of `random`, if it was seeded."""
    return {"state": random.getstate()} if "random" in _seeded else {}


def write_random(_random: Any, settings: dict[str, Any]) -> None:
    """Set the state of `random`."""
    random.setstate(settings["state"])
    _seeded.add("random")


def read_numpy(numpy_random: Any) -> dict[str, Any]:
    """Return numpy's global state, if it was seeded."""
    is_seeded = numpy_random.get_bit_generator().seed_seq is None
    if not is_seeded and "numpy" not in _seeded:
        return {}
    name, keys, *rest = numpy_random.get_state()
    return {"state": (name, keys.tobytes(), str(keys.dtype), *rest)}


def write_numpy(numpy_random: Any, settings: dict[str, Any]) -> None:
    """Set numpy's global state."""
    import numpy

    name, keys, dtype, *rest = settings["state"]
    numpy_random.set_state((name, numpy.frombuffer(keys, dtype), *rest))
    _seeded.add("numpy")
