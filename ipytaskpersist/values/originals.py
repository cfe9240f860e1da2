"""What a process was given, compared when its cell has ended: which of it has the cell changed?

Changes are found by comparing pickles, not by guessing from the cell's text. A value whose pickle
is as it was when it was given is unchanged. If it differs, the given pickle is loaded once more:
what loading alone changes about a pickle is then no change either.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import xxhash

from ipytaskpersist.base.foreign_errors import class_name, describe
from ipytaskpersist.values import changeable
from ipytaskpersist.values.array_views import Hosts
from ipytaskpersist.values.buffers import known_digest
from ipytaskpersist.values.bundles import (
    INSIDE,
    ITSELF,
    Bundle,
    BundleWriter,
    HashedBuffers,
)
from ipytaskpersist.values.changeable import FUNCTION, kind_of
from ipytaskpersist.values.pickling import (
    Namespace,
    Nowhere,
    PickleBuffer,
    Unpicklable,
    dump,
    pickler,
    steps_of,
)

OBJECTS_AT_MOST = 20_000
"""Above this number, only the variables themselves are compared as objects, not what they hold."""
STEPS_BYTES = 16 * 1024 * 1024
"""Above this size, pickles are compared byte by byte."""
NEVER_THE_SAME = "its pickle is never twice the same"
Load = Callable[[], Bundle]


@dataclass(frozen=True, slots=True)
class Changed:
    """What a cell has changed of what it was given."""

    names: Mapping[str, str] = field(default_factory=dict)
    """The changed variables: the value `ITSELF` is another one, or only what is `INSIDE` it."""
    keys: frozenset[Any] = frozenset()
    """The objects with other content, by key."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Variables that cannot be compared or brought back, each with the reason."""
    objects: Mapping[Any, Any] = field(default_factory=dict)
    """All objects that were given and can be filled in place, by key."""
    views: Mapping[Any, Any] = field(default_factory=dict)
    """The arrays among them that are views of others, by key."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The changed variables' values."""

    def without(self, assigned: Container[str]) -> Changed:
        """Return the same without variables that the cell has assigned, which come back anyway."""
        names = {name: how for name, how in self.names.items() if name not in assigned}
        values = {name: each for name, each in self.values.items() if name in names}
        return replace(self, names=names, values=values)


@dataclass(frozen=True, slots=True)
class Present:
    """What a notebook still has of what it gave to a process."""

    objects: Mapping[Any, Any] = field(default_factory=dict)
    """The objects as they were given, by key."""
    same: frozenset[str] = frozenset()
    """The variables whose content is the same."""
    other: frozenset[str] = frozenset()
    """The variables that are gone, or have other content."""


def present_of(given: Mapping[str, str], namespace: dict[str, Any]) -> Present:
    """Return what a namespace still has of given variables, each with the digest that it had."""
    sharing = [namespace[name] for name in given if name in namespace]
    writer = BundleWriter(Nowhere(), HashedBuffers(), namespace, sharing)
    same = set[str]()
    groups = dict[int, bool]()
    for name, digest in given.items():
        is_same = False
        if name in namespace:
            with suppress(Unpicklable):
                is_same = writer.add_given(name, namespace[name]).digest == digest
        else:
            writer.skip_given()
        groups[writer.group] = groups.get(writer.group, True) and is_same
        if is_same:
            same.add(name)
    objects = {
        key: each
        for key, each in writer.objects.items()
        if (key in same if isinstance(key, str) else groups[key[0]])
    }
    return Present(objects, frozenset(same), frozenset(given.keys() - same))


class Originals:
    """The values and objects that a process was given."""

    def __init__(self, bundle: Bundle) -> None:
        """`bundle` has been loaded."""
        self._digests = {entry.name: entry.digest for entry in bundle.entries if entry.digest}
        self._held = {key: _hold(each) for key, each in bundle.objects.items()}

    def _living(self) -> dict[Any, Any]:
        found = {key: reference() for key, reference in self._held.items()}
        return {key: each for key, each in found.items() if each is not None}

    def compare(self, namespace: dict[str, Any], load_again: Load) -> Changed:
        """Return what has changed. `load_again` returns the bundle anew."""
        objects = self._living()
        values = {name: objects[name] for name in self._digests if name in objects}
        now, problems = _digests(values, namespace)
        suspects = [name for name in now if now[name] != self._digests[name]]
        if suspects:
            return _Comparison(values, objects, namespace, load_again).changed(suspects, problems)
        return Changed(problems=problems, objects=_changeable(objects), views=_views(objects))


def _hold(value: Any) -> Callable[[], Any]:
    """Hold an object without keeping it alive, if possible: a cell that deletes it expects that."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


def _digests(
    values: Mapping[str, Any], namespace: Namespace
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the digests of values, and why the others have none."""
    writer = BundleWriter(Nowhere(), HashedBuffers(), namespace, values.values())
    digests, problems = dict[str, str](), dict[str, str]()
    for name, value in values.items():
        try:
            digests[name] = writer.add_given(name, value).digest
        except Unpicklable as error:
            problems[name] = describe(error.cause)
    return digests, problems


def _changeable(objects: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the objects that can be filled in place, each under one key."""
    if len(objects) > OBJECTS_AT_MOST:
        objects = {key: each for key, each in objects.items() if isinstance(key, str)}
    known = {key: each for key, each in objects.items() if kind_of(each) is not None}
    inner = changeable.arrays_of_frames(known.values())
    hosts = Hosts(each for each in objects.values() if id(each) not in inner)
    by_id = {
        id(each): (key, each)
        for key, each in known.items()
        if id(each) not in inner and hosts.find(each) is None
    }
    return dict(by_id.values())


def _views(objects: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the arrays that are views of others, by key."""
    hosts = Hosts(objects.values())
    return {key: each for key, each in objects.items() if hosts.find(each) is not None}


class _Comparison:
    """The values of a process beside the same ones loaded again."""

    def __init__(
        self,
        values: Mapping[str, Any],
        objects: Mapping[Any, Any],
        namespace: dict[str, Any],
        load_again: Load,
    ) -> None:
        self._other_classes = _OtherClasses()
        with self._other_classes:
            again = load_again()
            for _name, _value in again:
                pass
        self._values = values
        self._before = {name: again.objects[name] for name in values}
        self._namespace = namespace
        self._objects = _changeable(objects)
        self._views = _views(objects)
        there = {key: again.objects[key] for key in self._objects if key in again.objects}
        self._shallow = _Shallow(self._objects, namespace)
        self._shallow_before = _Shallow(there, again.namespace, self._other_classes)
        self._namespace_before = again.namespace

    def changed(self, suspects: list[str], problems: dict[str, str]) -> Changed:
        """Return what has changed of the suspects, in addition to these problems."""
        found, keys = dict[str, str](), dict[Any, None]()
        differing = self._differing(suspects, problems)
        self._examine(differing, found, keys, problems)
        if ITSELF in found.values():
            # Their pickles mention the variables that are other objects now by key only.
            rest = [name for name in self._values if name not in {*differing, *problems}]
            self._examine(rest, found, keys, problems)
        values = {name: self._value(name) for name in found}
        return Changed(found, frozenset(keys), problems, self._objects, self._views, values)

    def _examine(
        self,
        names: list[str],
        found: dict[str, str],
        keys: dict[Any, None],
        problems: dict[str, str],
    ) -> None:
        for name in names:
            try:
                inside = self._inside(name)
                is_itself = self._is_other(name)
            except Unpicklable as error:
                problems[name] = describe(error.cause)
                continue
            if is_itself:
                found[name] = ITSELF
            elif inside:
                found |= dict.fromkeys(self._names_of(name, inside), INSIDE)
            keys |= dict.fromkeys(inside)

    def _differing(self, suspects: list[str], problems: dict[str, str]) -> list[str]:
        """Return the suspects whose pickles are certainly others. Note those that never agree."""
        able = {name: each for name, each in self._values.items() if name not in problems}
        now, _refused = _digests(able, self._namespace)
        again, _refused = _digests(able, self._namespace)
        with self._other_classes:
            before, _refused = _digests(
                {name: self._before[name] for name in able}, self._namespace_before
            )
        differing = []
        for name in suspects:
            if self._stays(name, problems) or now.get(name) == before.get(name):
                continue
            if now.get(name) != again.get(name):
                problems[name] = NEVER_THE_SAME
            else:
                differing.append(name)
        return differing

    def _stays(self, name: str, problems: dict[str, str]) -> bool:
        """Return whether a value belongs to its process. Note it, if it looks different."""
        value = self._values[name]
        if not changeable.belongs_to_process(value):
            return False
        if not changeable.look_the_same(value, self._before[name]):
            problems[name] = f"{class_name(value)} objects stay in their process"
        return True

    def _is_other(self, name: str) -> bool:
        return self._shallow.digest(self._values[name]) != self._shallow_before.digest(
            self._before[name]
        )

    def _inside(self, name: str) -> list[Any]:
        """Return the keys of the objects with other content that a value leads to."""
        value = self._values[name]
        if not any(map(self._is_other_content, self._shallow.reached(value))):
            return []
        reached = self._shallow.reached(value, self._is_equal)
        return [key for key in reached if self._is_other_content(key) and not self._is_equal(key)]

    def _is_other_content(self, key: Any) -> bool:
        return self._shallow.content(key) != self._shallow_before.content(key)

    def _is_equal(self, key: Any) -> bool:
        before = self._shallow_before.objects.get(key)
        return changeable.is_equal(self._objects[key], before)

    def _names_of(self, name: str, inside: list[Any]) -> list[str]:
        """Return the variables to which a change inside a value belongs.

        A function only leads to what it uses: the change is that of the variables it uses.
        """
        if kind_of(self._values[name]) not in (None, FUNCTION):
            return [name]
        direct = {
            id(each): its_name
            for its_name, each in [*self._namespace.items(), *self._values.items()]
            if type(its_name) is str and not its_name.startswith("_")
        }
        return [direct.get(id(self._objects[key]), name) for key in inside]

    def _value(self, name: str) -> Any:
        return self._values[name] if name in self._values else self._namespace[name]


class _Shallow:
    """Digests of objects in whose content other objects are only mentioned."""

    def __init__(
        self,
        objects: Mapping[Any, Any],
        namespace: dict[str, Any],
        context: AbstractContextManager[Any] | None = None,
    ) -> None:
        """`context` is entered for each pickle."""
        self.objects = objects
        self._context = context or nullcontext()
        self._data = bytearray()
        self._buffers: list[memoryview] = []
        self._pickler = pickler(self, namespace, self._take)
        self._pickler.refer(((each, key) for key, each in objects.items()), self._meet)
        self._met: list[Any] = []
        """The objects that the last pickle mentions."""
        self._contents: dict[Any, tuple[str, list[Any]]] = {}

    def write(self, data: Any) -> int:
        """Take a piece of a pickle."""
        self._data += data
        return len(data)

    def _take(self, buffer: PickleBuffer) -> bool:
        self._buffers.append(buffer.raw())
        return False

    def _meet(self, key: Any, _value: Any) -> None:
        self._met.append(key)

    def digest(self, value: Any) -> str:
        """Return the digest of a value. Raises `Unpicklable`."""
        self._met, self._buffers = [], []
        self._data.clear()
        self._pickler.clear_memo()
        with self._context:
            dump(self._pickler, "", value)
        hashed = xxhash.xxh3_128()
        for step in self._steps():
            hashed.update(step)
        for buffer in self._buffers:
            hashed.update(known_digest(buffer).encode())
        self._buffers = []
        return hashed.hexdigest()

    def _steps(self) -> Iterator[bytes]:
        """Yield what is compared of a pickle: its steps, if they are not too many."""
        if len(self._data) > STEPS_BYTES:
            yield bytes(self._data)
        else:
            for step in steps_of(bytes(self._data)):
                yield repr(step).encode("utf-8", "backslashreplace")

    def content(self, key: Any) -> str:
        """Return the digest of an object's content; empty when there is no such object."""
        return self._content(key)[0]

    def _content(self, key: Any) -> tuple[str, list[Any]]:
        if key not in self._contents:
            value = self.objects.get(key)
            kind = kind_of(value)
            if kind is None:
                self._contents[key] = "", []
            else:
                digest = self.digest(kind.content(value))
                its_class = f"{type(value).__module__}.{type(value).__qualname__}"
                self._contents[key] = f"{digest} {its_class}", self._met
        return self._contents[key]

    def reached(
        self, value: Any, is_closed: Callable[[Any], bool] = lambda _key: False
    ) -> list[Any]:
        """Return the keys of the objects that a value leads to. Raises `Unpicklable`.

        What is only in objects that are closed is left out.
        """
        self.digest(value)
        found, waiting = dict[Any, None](), deque(self._met)
        while waiting:
            key = waiting.popleft()
            if key not in found:
                found[key] = None
                waiting.extend(() if is_closed(key) else self._content(key)[1])
        return [*found]


class _OtherClasses:
    """Within it, classes that are loaded are new: cloudpickle would fill the existing ones."""

    NAMES = ("_DYNAMIC_CLASS_TRACKER_BY_CLASS", "_DYNAMIC_CLASS_TRACKER_BY_ID")

    def __init__(self) -> None:
        self._module = sys.modules["cloudpickle.cloudpickle"]
        there = {name: getattr(self._module, name, None) for name in self.NAMES}
        self._other = {name: type(each)() for name, each in there.items() if each is not None}

    def _exchange(self) -> None:
        for name, other in self._other.items():
            self._other[name] = getattr(self._module, name)
            setattr(self._module, name, other)

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *_exception: object) -> None:
        self._exchange()
