"""What a process leaves, with its references to the objects that it was given.

An object that came from the notebook is mentioned by its key, and its content follows: in the
notebook, the object itself is filled with it, so that all who hold it see the change. Elsewhere, an
empty one is made and filled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ipytaskpersist.values.bundles import Bundle, BundleWriter
from ipytaskpersist.values.changeable import FUNCTION, fits, kind_of, kind_of_made, make
from ipytaskpersist.values.originals import Changed, Present
from ipytaskpersist.values.persistent_ids import OWN_VIEW
from ipytaskpersist.values.pickling import (
    Failed,
    Namespace,
    Unpicklable,
    from_bytes,
    to_bytes,
)

MADE, CONTENTS = "\0made", "\0contents "
"""Names in a file of what is no variable: how objects are made, and what they are filled with."""


class ReturnWriter:
    """Writes the variables that a process leaves."""

    def __init__(self, writer: BundleWriter, changed: Changed, namespace: Namespace) -> None:
        self._writer = writer
        self._changed = changed
        self._namespace = namespace
        self._met: list[Any] = []
        self._classes: dict[type, int] = {}
        self._made: dict[Any, tuple[int, bytes]] = {}
        writer.pickler.refer(((each, key) for key, each in changed.objects.items()), self._meet)
        writer.pickler.refer_to_views((each, key) for key, each in changed.views.items())

    def _meet(self, key: Any, value: Any) -> None:
        if key not in self._made:
            self._met.append(key)
            number = self._classes.setdefault(type(value), len(self._classes))
            kind = kind_of(value)
            # A function cannot be made empty, so it is its own argument.
            own = (value,) if kind is FUNCTION else kind.arguments(value) if kind else ()
            self._made[key] = number, to_bytes(own, self._namespace) if own else b""

    def add(self, name: str, value: Any) -> None:
        """Write a variable and the content of what it leads to. Raises `Unpicklable`."""
        self._writer.add(name, value, self._changed.names.get(name, ""))
        wave = 0
        while self._met:
            met, self._met = self._met, []
            contents = [(key, self._content(key)) for key in met]
            try:
                self._writer.add(f"{CONTENTS}{wave} {name}", contents)
            except Unpicklable as error:
                raise Unpicklable(name, error.cause) from error.cause
            wave += 1

    def _content(self, key: Any) -> Any:
        value = self._changed.objects[key]
        kind = kind_of(value)
        assert kind is not None, "only objects that can be filled are mentioned"
        return kind.content(value)

    def finish(self) -> None:
        """Write how the mentioned objects are made."""
        if self._made:
            classes = [to_bytes(each, self._namespace) for each in self._classes]
            changed = [key for key in self._made if key in self._changed.keys]
            made = [(key, *how) for key, how in self._made.items()]
            self._writer.add_alone(MADE, (classes, made, changed))


@dataclass(frozen=True, slots=True)
class Returned:
    """The variables of a file."""

    values: Mapping[str, Any]
    """With a `Failed` in place of each that cannot be loaded."""
    changes: Mapping[str, str]
    """The variables that were given and changed, each with how."""
    filled: frozenset[int] = frozenset()
    """The `id` of each object of the notebook that has other content now."""
    found: frozenset[str] = frozenset()
    """The changed variables whose object is the notebook's."""


def returned(bundle: Bundle, present: Callable[[], Present]) -> Returned:
    """Load the variables of a file. What is `present` is filled, and stays itself."""
    changes = {entry.name: entry.change for entry in bundle.entries if entry.change}
    made = bundle.alone(MADE)
    if made is None:
        if changes:
            present()  # before loading, which fills the classes that the notebook has
        return Returned(dict(bundle), changes)
    if isinstance(made, Failed):
        return Returned(dict.fromkeys((name for name, _value in bundle), made), changes)
    return _Reader(bundle, present(), *made).read(changes)


class _Reader:
    def __init__(
        self,
        bundle: Bundle,
        present: Present,
        classes: list[bytes],
        made: list[tuple[Any, int, bytes]],
        changed: list[Any],
    ) -> None:
        self._bundle = bundle
        self._classes = [from_bytes(each, bundle.namespace) for each in classes]
        self._made = {key: (number, arguments) for key, number, arguments in made}
        self._changed = set(changed)
        self._own: dict[Any, Any] = {}
        """The notebook's objects."""
        self._others: dict[Any, Any] = {}
        """The objects that were made here."""
        self._present = present
        self._take_present(present)
        bundle.find_elsewhere = self._find

    def _take_present(self, present: Present) -> None:
        for key in self._made:
            if key in present.objects and self._fits(key, present.objects[key]):
                self._own[key] = present.objects[key]

    def _fits(self, key: Any, target: Any) -> bool:
        its_type, arguments = self._how(key)
        return not isinstance(its_type, Failed) and fits(target, its_type, arguments)

    def _how(self, key: Any) -> tuple[Any, Any]:
        number, arguments = self._made[key]
        return self._classes[number], from_bytes(arguments, {}) if arguments else ()

    def _find(self, key: Any) -> Any:
        """Return a mentioned object. Raises what its class raised when it was loaded."""
        if key[0] == OWN_VIEW:
            return self._present.objects.get(key[1])
        if key in self._own:
            return self._own[key]
        if key not in self._others:
            its_type, arguments = self._how(key)
            if isinstance(its_type, Failed):
                raise its_type.error
            self._others[key] = make(its_type, arguments)
        return self._others[key]

    def read(self, changes: Mapping[str, str]) -> Returned:
        values, contents = dict[str, Any](), dict[str, list[Any]]()
        for name, value in self._bundle:
            if name == MADE:
                continue
            if not name.startswith(CONTENTS):
                values[name] = value
            elif isinstance(value, Failed):
                values[name.removeprefix(CONTENTS).partition(" ")[2]] = value
            else:
                root = name.removeprefix(CONTENTS).partition(" ")[2]
                contents.setdefault(root, []).extend(value)
        for name, each in contents.items():
            if not isinstance(values[name], Failed):
                values[name] = self._filled(values[name], each)
        filled = frozenset(id(each) for key, each in self._own.items() if key in self._changed)
        own = {id(each) for each in self._own.values()}
        found = frozenset(name for name in changes if id(values.get(name)) in own)
        return Returned(values, changes, filled, found)

    def _filled(self, value: Any, contents: list[tuple[Any, Any]]) -> Any:
        """Fill the objects that a value leads to. Returns the value, or a `Failed`."""
        try:
            # Parts first: a class may copy what its state holds.
            for key, content in reversed(contents):
                target = self._find(key)
                if key in self._others or key in self._changed:
                    its_type = self._classes[self._made[key][0]]
                    if type(target) is not its_type:
                        target.__class__ = its_type
                    kind_of_made(target).fill(target, content)
        except Exception as error:  # a class may raise anything when its state is set
            return Failed(error)
        return value
