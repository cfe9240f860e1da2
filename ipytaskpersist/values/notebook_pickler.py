"""The pickler: by value what no other process finds, and by an id what belongs to the notebook.

It is imported only when something is pickled, because cloudpickle takes long to import.
"""

from __future__ import annotations

import pickle  # it only writes  # nosec B403
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from types import CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle

from ipytaskpersist.capture import progress
from ipytaskpersist.values import array_views, cell_sources, object_arrays
from ipytaskpersist.values.array_views import Hosts
from ipytaskpersist.values.by_value import BY_NAME, NOT_AT_ALL, is_plain
from ipytaskpersist.values.importable import MAIN, FromFile, Modules, is_in
from ipytaskpersist.values.persistent_ids import (
    FUNCTIONS,
    GIVEN_ID,
    GLOBALS_ID,
    NAMESPACE_ID,
    OWN_VIEW,
    SHELL_ID,
    SOURCE_ID,
    fill_module,
    import_file,
    new_module,
    running_shell,
)

SLOT_NAMES = "__slotnames__"
"""Cached in a class when one of its instances is pickled."""
FILE_NAME = 10
"""Position of the file name among the arguments of a code object, in all versions since 3.11."""

Met = Callable[[Any, Any], None]
TakeBuffer = Callable[[pickle.PickleBuffer], bool]


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Writes successive values, and what they share once."""

    def __init__(
        self, file: Any, namespace: dict[str, Any] | None, take: TakeBuffer | None
    ) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL, buffer_callback=take)
        self._shell = running_shell()
        self._modules = Modules()
        self._sources: dict[str, Any] = {}
        self._marked: dict[int, tuple[Any, Any]] = {}
        """Objects with a persistent id, by their `id`, each with its persistent id."""
        self._met: Met | None = None
        self._hosts = Hosts()
        self._own_views: dict[int, Any] = {}
        """What stands for the loading notebook's own view, by the `id` of a view."""
        self._by_value: list[ModuleType] = []
        self._contents: set[int] = set()
        """The `id` of the content of each module that is pickled by value."""
        if self._shell is not None:
            self._mark(self._shell, SHELL_ID)
        for pid, function in FUNCTIONS.items():
            self._mark(function, pid)
        if namespace is not None:
            self._share_globals(namespace, MAIN, NAMESPACE_ID)

    def _mark(self, value: Any, pid: Any) -> Any:
        self._marked[id(value)] = value, pid
        return value

    def refer(self, objects: Iterable[tuple[Any, Any]], met: Met | None = None) -> None:
        """Refer to these objects from now on, each by its key, instead of pickling them.

        `met` is called with the key and the object at each reference.
        """
        for value, key in objects:
            self._mark(value, (GIVEN_ID, key))
            self._hosts.add(value)
        self._met = met or self._met

    def _share_globals(self, namespace: dict[str, Any], name: str, pid: Any) -> None:
        # cloudpickle uses this as the globals of every function that has these globals.
        stand_in = self._mark({"__name__": name}, pid)
        self.globals_ref[id(namespace)] = stand_in

    def refer_to_views(self, views: Iterable[tuple[Any, Any]]) -> None:
        """Let these views be the notebook's own where it has them, by key."""
        for view, key in views:
            self._own_views[id(view)] = self._mark(_Own(view), (GIVEN_ID, (OWN_VIEW, key)))

    def share_memory(self, values: Iterable[Any]) -> None:
        """Pickle arrays that show a piece of one of these arrays as that."""
        for value in values:
            self._hosts.add(value)

    def persistent_id(self, value: Any) -> Any:
        """Return what stands for an object instead of its pickle; None for most."""
        marked = self._marked.get(id(value))
        if marked is None:
            return None
        pid = marked[1]
        if self._met is not None and pid[0] == GIVEN_ID and pid[1][0] != OWN_VIEW:
            self._met(pid[1], value)
        return pid

    def dump(self, value: Any) -> None:
        """Pickle a value. What it was registered for is forgotten afterwards."""
        try:
            super().dump(value)
        finally:
            while self._by_value:
                cloudpickle.unregister_pickle_by_value(self._by_value.pop())

    def reducer_override(self, value: Any) -> Any:
        """Return how to make a value; NotImplemented for what pickle does itself."""
        kind = type(value)
        if kind is CodeType:
            return self._code(value)
        if kind is ModuleType:
            return self._module(value)
        if kind is FunctionType or issubclass(kind, type):
            name = getattr(value, "__qualname__", "")
            return self._from_file(value, name) or self._of_module(
                value, super().reducer_override(value)
            )
        if object_arrays.is_large(value):
            return object_arrays.reduced(value)
        host = self._hosts.host_for(value)
        if host is not None:
            return array_views.reduced(value, host, self._own_views.get(id(value)))
        if kind in NOT_AT_ALL:
            return NOT_AT_ALL[kind](value)
        if is_plain(kind):
            return progress.reduced(value)
        reduce = self.dispatch_table.get(kind)
        reduced = value.__reduce_ex__(self.proto) if reduce is None else reduce(value)
        return self._named(value, reduced) if isinstance(reduced, str) else reduced

    def _code(self, code: CodeType) -> Any:
        made, given = self.dispatch_table[CodeType](code)
        name = code.co_filename
        if name not in self._sources:
            source = cell_sources.of_code(name, self._shell)
            self._sources[name] = (
                name
                if source is None
                else self._mark(source, (SOURCE_ID, source.name, source.text, source.number))
            )
        return made, (*given[:FILE_NAME], self._sources[name], *given[FILE_NAME + 1 :])

    def _module(self, module: ModuleType) -> Any:
        """Pickle a module that no other process finds: by its file, or with all its content."""
        name = module.__name__
        place = name == MAIN or (name in sys.modules and self._modules.place(name))
        if place is True:
            return NotImplemented
        if isinstance(place, FromFile):
            return import_file, (place.name, place.top, place.path, place.folders)
        self._take_by_value(module)
        state = {k: v for k, v in vars(module).items() if k != "__builtins__"}
        is_known = sys.modules.get(name) is module
        return new_module, (name, is_known), state, None, None, fill_module

    def _take_by_value(self, module: ModuleType) -> None:
        if id(vars(module)) not in self.globals_ref:
            self._share_globals(vars(module), module.__name__, (GLOBALS_ID, module))
            self._contents.add(id(vars(module)))
        if sys.modules.get(module.__name__) is module and module not in self._by_value:
            cloudpickle.register_pickle_by_value(module)
            self._by_value.append(module)

    def _from_file(self, value: Any, name: str) -> Any:
        """Return how to find a value whose module no other process finds; None for others."""
        module = sys.modules.get(_module_name(value) or MAIN)
        if module is None or module.__name__ == MAIN:
            return None
        place = self._modules.place(module.__name__)
        if place is False:
            self._take_by_value(module)
        elif isinstance(place, FromFile) and is_in(module, name, value):
            return attrgetter(name), (module,)
        return None

    def _of_module(self, value: Any, reduced: Any) -> Any:
        """Leave out a function's globals if they are a module's content, and a class's cache.

        The content is pickled separately, and an existing module is not changed.
        """
        if issubclass(type(value), type) and isinstance(reduced, tuple) and len(reduced) > 2:
            reduced[2][0].pop(SLOT_NAMES, None)
        is_shared = type(value) is FunctionType and id(value.__globals__) in self._contents
        if is_shared and isinstance(reduced, tuple):
            _attributes, slots = reduced[2]
            slots["__globals__"] = {}
        return reduced

    def _named(self, value: Any, name: str) -> Any:
        """Handle a value that reduces to its name."""
        module_name = pickle.whichmodule(value, name)  # type: ignore[attr-defined]
        module = sys.modules.get(module_name)
        is_there = module is not None and is_in(module, name, value)
        place = self._modules.place(module_name)
        if is_there and place is True:
            return name
        if is_there and isinstance(place, FromFile):
            return attrgetter(name), (module,)
        if type(value) in BY_NAME:
            return BY_NAME[type(value)](value)
        raise pickle.PicklingError(
            f"it is pickled by its name alone, {module_name}.{name}, which no other process finds"
        )


@dataclass(frozen=True, slots=True)
class _Own:
    """Stands for an object that is the notebook's own, if it still has it."""

    view: Any


def _module_name(value: Any) -> str:
    try:
        name = value.__module__
    except Exception:  # a class may have a metaclass of its own
        return ""
    return name if isinstance(name, str) else ""
