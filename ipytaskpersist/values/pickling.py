"""Convert values to bytes with cloudpickle, and what belongs to a notebook by its name.

A function of the notebook is pickled by value. Its global variables are those of the notebook that
loads it, and IPython's shell is the one that runs there.
"""

from __future__ import annotations

import copyreg
import io
import pickle  # what is not signed is never loaded  # nosec B403
import pickletools  # it only counts  # nosec B403
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from types import CodeType, FunctionType, ModuleType
from typing import Any, Protocol

from ipytaskpersist.capture import progress
from ipytaskpersist.errors import StoreError
from ipytaskpersist.running.interruption import is_from_outside
from ipytaskpersist.values import array_views, cell_sources, object_arrays
from ipytaskpersist.values.array_views import Hosts
from ipytaskpersist.values.by_value import BY_NAME, NOT_AT_ALL
from ipytaskpersist.values.cell_sources import Source
from ipytaskpersist.values.importable import MAIN, FromFile, Modules, is_in

Namespace = dict[str, Any] | None
NAMESPACE_ID, SHELL_ID, SOURCE_ID = "namespace", "shell", "source"
GLOBALS_ID, IMPORT_ID = "globals", "import"
NEW_MODULE_ID, FILL_MODULE_ID = "new module", "fill module"
OWN_VIEW = "own view"
"""Beginning of the key of an array that is a view, which may be missing."""
SLOT_NAMES = "__slotnames__"
"""Cached in a class when one of its instances is pickled."""
GIVEN_ID = "given object"
"""Stands for an object that is elsewhere: in another pickle, or in the notebook that gave it."""
FILE_NAME = 10
"""Position of the file name among the arguments of a code object, in all versions since 3.11."""


PickleBuffer = pickle.PickleBuffer
UnpicklingError = pickle.UnpicklingError
CONTENT = {
    4: (pickle.BINBYTES, pickle.BINUNICODE),
    8: (pickle.BINBYTES8, pickle.BYTEARRAY8, pickle.BINUNICODE8),
}
"""Codes that are followed by a length, in 4 or 8 bytes, and by as many bytes of text or data."""
HEADER_BYTES = 9
"""Size of such a code with its length, at most."""
Met = Callable[[Any, Any], None]
TakeBuffer = Callable[[pickle.PickleBuffer], bool]


class Writer(Protocol):
    """A file of pickles."""

    def write(self, data: Any) -> int:
        """Write. Raises `StoreError` when the disk takes no more."""


def be_ready() -> None:
    """Import what pickling the first value needs: at a task's end it might be gone."""
    _pickler_class()


def pickler(file: Writer, namespace: Namespace, take_buffer: TakeBuffer | None = None) -> Any:
    """Return a pickler of successive values, which writes what they share once.

    `take_buffer` is given each buffer, and returns False for one that is to be passed along with
    the pickle instead of being in it.

    Functions whose globals are `namespace` refer to them by name, all others by value. An object
    that pickle would refer to by a name that no other process finds is pickled by value, or
    refused.
    """
    return _pickler_class()(file, namespace, take_buffer)


@cache
def _pickler_class() -> Any:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def __init__(self, file: Writer, namespace: Namespace, take: TakeBuffer | None) -> None:
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
            for pid, function in _FUNCTIONS.items():
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
            marked = self._marked.get(id(value))
            if marked is None:
                return None
            pid = marked[1]
            if self._met is not None and pid[0] == GIVEN_ID and pid[1][0] != OWN_VIEW:
                self._met(pid[1], value)
            return pid

        def dump(self, value: Any) -> None:
            try:
                super().dump(value)
            finally:
                while self._by_value:
                    cloudpickle.unregister_pickle_by_value(self._by_value.pop())

        def reducer_override(self, value: Any) -> Any:
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
                return _import_file, (place.name, place.top, place.path, place.folders)
            self._take_by_value(module)
            state = {k: v for k, v in vars(module).items() if k != "__builtins__"}
            is_known = sys.modules.get(name) is module
            return _new_module, (name, is_known), state, None, None, _fill_module

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
                f"it is pickled by its name alone, {module_name}.{name}, which no other process "
                "finds"
            )

    return Pickler


def is_plain(kind: type) -> bool:
    """Return whether instances of a class are pickled as an object with its attributes."""
    methods: Any = kind
    return (
        methods.__reduce_ex__ is object.__reduce_ex__
        and methods.__reduce__ is object.__reduce__
        and kind not in copyreg.dispatch_table
    )


def _module_name(value: Any) -> str:
    try:
        name = value.__module__
    except Exception:  # a class may have a metaclass of its own
        return ""
    return name if isinstance(name, str) else ""


def _new_module(name: str, is_known: bool) -> ModuleType:
    """Return an empty module, or the existing one with this name."""
    if not is_known:
        return ModuleType(name)
    return sys.modules.setdefault(name, ModuleType(name))


def _fill_module(module: ModuleType, content: dict[str, Any]) -> None:
    """Add missing content to a module: one that existed before stays as it is."""
    for name, value in content.items():
        if vars(module).get(name) is None:
            vars(module)[name] = value


def _import_file(*place: Any) -> ModuleType:
    return FromFile(*place).load()


_FUNCTIONS: dict[Any, Any] = {
    IMPORT_ID: _import_file, NEW_MODULE_ID: _new_module, FILL_MODULE_ID: _fill_module
}  # fmt: skip


MOVED = {
    "byvalue": "values.by_value",
    "cellsources": "values.cell_sources",
    "elsewhere": "values.importable",
    "handle": "api",
    "libraries": "isolation.library_settings",
    "librarysettings": "isolation.carried_settings",
    "notebookmagics": "cells.notebook_magics",
    "pickling": "values.pickling",
    "progress": "capture.progress",
    "records": "base.records",
}
"""Former modules of this package whose classes and functions stored pickles name."""


class _OfNotebook:
    """Gives loaded functions a namespace for their globals, and the local shell."""

    def __init__(self, file: Any, namespace: dict[str, Any], buffers: Any = ()) -> None:
        super().__init__(file, buffers=buffers)  # type: ignore[call-arg]
        self._namespace = namespace
        self.find_given: Callable[[Any], Any] | None = None
        """Returns an object that a pickle refers to by its key."""

    def find_class(self, module: str, name: str) -> Any:
        """Find what a pickle names, also where this package has moved it since."""
        package, _dot, rest = module.partition(".")
        if package == "ipytaskpersist" and rest in MOVED:
            module = f"{package}.{MOVED[rest]}"
        return super().find_class(module, name)  # type: ignore[misc]

    def persistent_load(self, pid: Any) -> Any:
        """Return what belongs to the loading notebook or process."""
        kind, *given = (pid,) if isinstance(pid, str) else pid
        if kind == NAMESPACE_ID:
            return self._namespace
        if kind == SOURCE_ID:
            return cell_sources.have_here(Source(*given), running_shell())
        if kind == GLOBALS_ID:
            return vars(*given)
        if kind == GIVEN_ID and self.find_given is not None:
            return self.find_given(*given)
        if kind in _FUNCTIONS:
            return _FUNCTIONS[kind]
        if kind != SHELL_ID:
            raise pickle.UnpicklingError(f"unknown persistent id {pid!r}")
        shell = running_shell()
        if shell is None:
            raise pickle.UnpicklingError("it uses IPython's shell, and none runs here")
        return shell


class Unpickler(_OfNotebook, pickle.Unpickler):
    """Loads values one after the other."""


class UnpicklerWithMemo(_OfNotebook, pickle._Unpickler):
    """Continues after a value that could not be loaded. Written in Python: its memo is a dict."""

    def __init__(
        self, file: Any, namespace: dict[str, Any], buffers: Any, memo: dict[int, Any]
    ) -> None:
        super().__init__(file, namespace, buffers)
        self.memo = memo


def running_shell() -> Any:
    """Return IPython's shell in this process; None when there is none."""
    module: Any = sys.modules.get("IPython.core.getipython")
    return None if module is None else module.get_ipython()


@dataclass(frozen=True, slots=True)
class Failed:
    """Substitute for a value that cannot be loaded."""

    error: BaseException


class Unpicklable(Exception):
    """A value cannot be pickled."""

    def __init__(self, name: str, cause: BaseException) -> None:
        super().__init__(name)
        self.name = name
        self.cause = cause


def to_bytes(value: Any, namespace: Namespace) -> bytes:
    """Return the pickle of a value. Raises whatever a class raises when it is pickled."""
    file = io.BytesIO()
    pickler(file, namespace).dump(value)
    return file.getvalue()


def from_bytes(data: bytes, namespace: dict[str, Any]) -> Any:
    """Return the value of a pickle from `to_bytes`; a `Failed` when its class raises."""
    return load(Unpickler(io.BytesIO(data), namespace))


def require_picklable(value: Any, namespace: Namespace) -> None:
    """Pickle a value to nowhere. Raises whatever a class raises when it is pickled."""
    pickler(Nowhere(), namespace, lambda _buffer: False).dump(value)


@dataclass(frozen=True, slots=True)
class _Own:
    """Stands for an object that is the notebook's own, if it still has it."""

    view: Any


class Nowhere:
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        """Take a piece."""
        return memoryview(data).nbytes


def dump(made: Any, name: str, value: Any) -> None:
    """Pickle a value. Raises `Unpicklable`, and the file's own `StoreError`."""
    try:
        made.dump(value)
    except BaseException as error:  # a class may raise anything when it is pickled
        if issubclass(type(error), StoreError) or is_from_outside(error):
            raise
        raise Unpicklable(name, error) from error


TEXTS = frozenset(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"))
PUTS = frozenset(("MEMOIZE",))
GETS = frozenset(("BINGET", "LONG_BINGET"))
OF_FORM = frozenset(("PROTO", "FRAME"))


def steps_of(data: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the steps of a pickle, whichever of its equal texts are one object.

    That depends on where texts have come from, and is no difference between two values.
    """
    memo: list[tuple[str, Any]] = []
    step, objects = ("", None), 0
    for operation, argument, _place in pickletools.genops(data):
        name = operation.name
        if name in GETS:
            yield memo[int(argument or 0)]
        elif name in PUTS:
            is_text = step[0] in TEXTS
            memo.append(("text", step[1]) if is_text else ("object", objects))
            objects += not is_text
        elif name not in OF_FORM:
            step = name, argument
            yield ("text", argument) if name in TEXTS else step


def is_content(before: bytes, data: memoryview) -> bool:
    """Return whether a written piece of a pickle is text or data, and so no code.

    It then follows on a code with its length, and is no frame, which pickle writes in one piece as
    well.
    """
    is_announced = any(
        before[-size - 1 : -size] in codes
        and int.from_bytes(before[-size:], "little") == data.nbytes
        for size, codes in CONTENT.items()
    )
    return is_announced and bytes(data[:1]) not in (pickle.FRAME, pickle.PROTO)


def count_memoized(file: Any, is_at_end: Callable[[], bool]) -> int:
    """Return the number of objects in the memo after the pickles in a file."""
    count = 0
    while not is_at_end():
        count += sum(operation.name == "MEMOIZE" for operation, *_ in pickletools.genops(file))
    return count


def load(loading: Unpickler | UnpicklerWithMemo) -> Any:
    """Return the next value; a `Failed` when its class raises."""
    try:
        return loading.load()
    except BaseException as error:  # a class may raise anything when it is unpickled
        # The stop button ends the loading of this value, and loses no other.
        if is_from_outside(error) and not issubclass(type(error), KeyboardInterrupt):
            raise
        return Failed(error)
