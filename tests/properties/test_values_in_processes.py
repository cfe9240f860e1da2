"""Values that go into a process and back are the same, and what has changed in them is found."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import INPUTS, TaskRecord, TaskState
from ipytaskpersist.values.buffers import SMALLEST_BYTES
from ipytaskpersist.values.originals import Changed
from ipytaskpersist.values.payloads import Payloads
from properties.profiles import tried
from properties.world import folder

NOW = datetime(2026, 11, 1, tzinfo=UTC)
TASK = TaskRecord(
    key=1, id="a1b2c3d4-1", number=1, name="train", notebook_key=1, notebook="/a.ipynb",
    session="a1b2c3d4-x", kind="python", runner="process", state=TaskState.COMPLETED, reason=None,
    exit_code=0, source="", cell_id=None, execution_count=None, created_at=NOW, started_at=NOW,
    ended_at=NOW, cancel_requested_at=None, cleared_at=None, rerun_of=None, is_call=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def payloads() -> Iterator[Payloads]:
    with folder() as root:
        yield Payloads(StateDirectory(root))


# Random values.

DTYPES = ("f8", "i4", "u1", "?", "c16", "M8[us]", "U3", "S5", "O", [("a", "i2"), ("b", "f8")])
SIZES = (0, 1, 7, 1000, SMALLEST_BYTES - 1, SMALLEST_BYTES, SMALLEST_BYTES + 1)
"""Of texts and arrays, in bytes."""


class Thing:
    """An instance of a class that is found by its name."""


def an_array(chance: random.Random) -> Any:
    dtype = np.dtype(chance.choice(DTYPES))
    count = max(chance.choice(SIZES) // max(dtype.itemsize, 1), 1)
    if dtype.hasobject:
        made = np.empty(min(count, 50), dtype=object)
        made[:] = [chance.choice((None, 1, "text")) for _place in made]
        return made
    made = (np.arange(count) % 7 if dtype.fields is None else np.zeros(count)).astype(dtype)
    if count % 2 == 0:
        made = made.reshape(2, -1)
    ways: list[Callable[[Any], Any]] = [
        lambda array: array, np.asfortranarray, lambda array: array[..., ::2],
        lambda array: array.T,
    ]  # fmt: skip
    return chance.choice(ways)(made)


def a_leaf(chance: random.Random) -> Any:
    size = chance.choice(SIZES)
    leaves: list[Callable[[], Any]] = [
        lambda: chance.randint(-9, 2**70), lambda: None, lambda: 0.5, lambda: "é" * (size // 2),
        lambda: "a" * size, lambda: chance.randbytes(size), lambda: bytearray(size),
        lambda: an_array(chance), lambda: an_array(chance),
    ]  # fmt: skip
    return chance.choice(leaves)()


def a_graph(seed: int) -> dict[str, Any]:
    """Return a few named values whose parts are shared, and may lead back to themselves."""
    chance = random.Random(seed)
    made: list[Any] = [[], {}]
    for _step in range(chance.randint(3, 25)):
        parts = [chance.choice(made) if chance.random() < 0.5 else a_leaf(chance) for _ in range(3)]
        made.append(_holder(chance, parts))
        if chance.random() < 0.3:  # later objects in earlier ones make circles
            _put(chance.choice(made), chance, made[-1])
    return {f"name{place}": each for place, each in enumerate(chance.sample(made, 3))}


def _holder(chance: random.Random, parts: list[Any]) -> Any:
    thing = Thing()
    thing.__dict__.update(zip("abc", parts, strict=True))
    holders = [parts, (*parts,), dict(zip("abc", parts, strict=True)), thing, {1, "a", b"b"}]
    return chance.choice([*holders, parts[0]])


def _put(holder: Any, chance: random.Random, value: Any) -> bool:
    """Put a value into a holder, if it takes any. Return whether it is another one now."""
    if type(holder) is list:
        holder.insert(chance.randint(0, len(holder)), value)
    elif type(holder) is dict:
        holder[chance.randint(100, 10**9)] = value
    elif type(holder) is Thing:
        setattr(holder, f"more{chance.randint(100, 10**9)}", value)
    elif type(holder) is set:
        holder.add(chance.randint(100, 10**9))
    elif type(holder) is bytearray and holder:
        holder[chance.randrange(len(holder))] += 1
    elif type(holder) is np.ndarray and holder.dtype.kind in "fiu" and holder.size:
        holder[(*(chance.randrange(length) for length in holder.shape),)] += 1
    else:
        return False
    return True


seeds = st.integers(0, 2**63)


# Comparing values with what they share.


def shape(value: Any) -> Any:
    """Return a value's content, in which each object that it meets again is a number."""
    return _shape(value, {}, [])


def _shape(value: Any, met: dict[int, int], alive: list[Any]) -> Any:
    if type(value) in (int, float, str, bytes, type(None)):
        return type(value).__name__, value
    if id(value) in met:
        return met[id(value)]
    met[id(value)] = len(met)
    alive.append(value)
    inside = {
        list: lambda: [_shape(each, met, alive) for each in value],
        tuple: lambda: [_shape(each, met, alive) for each in value],
        dict: lambda: [(key, _shape(each, met, alive)) for key, each in value.items()],
        Thing: lambda: [(name, _shape(each, met, alive)) for name, each in vars(value).items()],
        set: lambda: sorted(map(repr, value)),
        bytearray: lambda: bytes(value),
        np.ndarray: lambda: (value.dtype.descr, value.shape, value.tolist()),
    }[type(value)]()
    return type(value).__name__, inside


def holders_in(values: dict[str, Any]) -> list[Any]:
    """Return all objects in values, each once, in an order that depends on the values alone."""
    alive: list[Any] = []
    _shape(values, {}, alive)
    return alive[1:]


# The properties.


@tried(60)
@given(seed=seeds)
def test_what_is_kept_together_comes_back_with_what_it_shares(
    payloads: Payloads, seed: int
) -> None:
    values = a_graph(seed)
    kept = payloads.save_together(TASK.id, values, dict.fromkeys(values, ""), {})
    assert [record.problem for record in kept] == [None] * len(values)
    assert shape(dict(payloads.load_all(TASK, kept).values)) == shape(values)
    payloads.delete(TASK.id)


class Given:
    """Values that a process was given, in this one."""

    def __init__(self, payloads: Payloads, values: dict[str, Any]) -> None:
        prepared = payloads.prepare_inputs({}, values, values)
        kept = payloads.adopt(TASK.id, INPUTS, prepared, "")
        self.namespace: dict[str, Any] = {}
        inputs = payloads.inputs(TASK, kept, self.namespace)
        self.namespace |= dict(inputs.values)
        self._inputs, self._originals = inputs, inputs.originals()

    def changed(self) -> Changed:
        """Return what has changed in them since."""
        assert self._originals is not None
        assert self._inputs.again is not None
        return self._originals.compare(self.namespace, self._inputs.again)


@tried(60)
@given(seed=seeds)
def test_what_is_given_arrives_and_is_not_changed(payloads: Payloads, seed: int) -> None:
    values = a_graph(seed)
    there = Given(payloads, values)
    assert shape(there.namespace) == shape(values)
    shape(there.namespace)
    pickle.dumps(there.namespace)
    found = there.changed()
    assert (dict(found.names), found.keys, dict(found.problems)) == ({}, frozenset(), {})
    payloads.delete(TASK.id)


@tried(60)
@given(seed=seeds, which=st.integers(0, 2**31))
def test_one_change_in_place_is_found_and_comes_back(
    payloads: Payloads, seed: int, which: int
) -> None:
    values = a_graph(seed)
    there, chance = Given(payloads, values), random.Random(which)
    candidates = holders_in(there.namespace)
    chance.shuffle(candidates)
    is_changed = any(_put(each, chance, "new") for each in candidates)
    found = there.changed()
    assert bool(found.names) == is_changed
    assert not found.problems
    kept = payloads.save_together(
        TASK.id, dict(found.values), dict.fromkeys(found.values, ""), there.namespace, found
    )
    before = {name: there.namespace[name] for name in found.names}
    assert shape(dict(payloads.load_all(TASK, kept).values)) == shape(before)
    payloads.delete(TASK.id)
