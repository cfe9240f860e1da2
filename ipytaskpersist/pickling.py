"""How values become bytes: with cloudpickle, and what belongs to a notebook by its name.

A function of the notebook is pickled by value. Its global variables are those of the notebook
that loads it, and IPython's shell is the one that runs there.
"""

from __future__ import annotations

import copyreg
import io
import json
import pickle  # what is not signed is never loaded  # nosec B403
import pickletools  # it only counts  # nosec B403
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from types import CodeType, FunctionType, ModuleType
from typing import Any, Protocol

from ipytaskpersist import cellsources, progress
from ipytaskpersist.byvalue import BY_NAME, NOT_AT_ALL
from ipytaskpersist.cellsources import Source
from ipytaskpersist.elsewhere import MAIN, FromFile, Modules, is_in
from ipytaskpersist.errors import StoreError
from ipytaskpersist.interruption import is_from_outside

Namespace = dict[str, Any] | None
NAMESPACE_ID, SHELL_ID, SOURCE_ID = "namespace", "shell", "source"
GLOBALS_ID, IMPORT_ID = "globals", "import"
NEW_MODULE_ID, FILL_MODULE_ID = "new module", "fill module"
TOGETHER = b"\0values\n"
"""How a file of several values begins. No pickle does, so that neither is taken for the other."""
LENGTH_BYTES = 8
FILE_NAME = 10
"""Where the file name is among the arguments of a code object, in all versions since 3.11."""


class Writer(Protocol):
    """A file that knows how much has been written to it."""

    size: int

    def write(self, data: Any) -> int:
        """Write. Raises `StoreError` where the disk takes no more."""


def be_ready() -> None:
    """Import what the first value needs that is pickled: at a task's end it might be gone."""
    _pickler_class()


def pickler(file: Writer, namespace: Namespace) -> Any:
    """What pickles values one after the other. What they share is there once.

    Functions whose globals are `namespace` take them by name, all others by value. What pickle
    would take by a name that no other process finds is taken by value, or refused.
    """
    return _pickler_class()(file, namespace)


@cache
def _pickler_class() -> Any:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def __init__(self, file: Writer, namespace: Namespace) -> None:
            super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
            self._shell = running_shell()
            self._modules = Modules()
            self._sources: dict[str, Any] = {}
            self._marked: dict[int, tuple[Any, Any]] = {}
            """What has a persistent id, by its `id`, with that of pickle's."""
            self._by_value: list[ModuleType] = []
            self._contents: set[int] = set()
            """Each is the `id` of the content of a module that is taken by value."""
            if self._shell is not None:
                self._mark(self._shell, SHELL_ID)
            for pid, function in _FUNCTIONS.items():
                self._mark(function, pid)
            if namespace is not None:
                self._share_globals(namespace, MAIN, NAMESPACE_ID)

        def _mark(self, value: Any, pid: Any) -> Any:
            self._marked[id(value)] = value, pid
            return value

        def _share_globals(self, namespace: dict[str, Any], name: str, pid: Any) -> None:
            # What cloudpickle makes the globals of every function whose globals these are.
            stand_in = self._mark({"__name__": name}, pid)
            self.globals_ref[id(namespace)] = stand_in

        def persistent_id(self, value: Any) -> Any:
            marked = self._marked.get(id(value))
            return None if marked is None else marked[1]

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
            if kind in NOT_AT_ALL:
                return NOT_AT_ALL[kind](value)
            if _is_plain(kind):
                return progress.reduced(value)
            reduce = self.dispatch_table.get(kind)
            reduced = value.__reduce_ex__(self.proto) if reduce is None else reduce(value)
            return self._named(value, reduced) if isinstance(reduced, str) else reduced

        def _code(self, code: CodeType) -> Any:
            made, given = self.dispatch_table[CodeType](code)
            name = code.co_filename
            if name not in self._sources:
                source = cellsources.of_code(name, self._shell)
                self._sources[name] = (
                    name
                    if source is None
                    else self._mark(source, (SOURCE_ID, source.name, source.text, source.number))
                )
            return made, (*given[:FILE_NAME], self._sources[name], *given[FILE_NAME + 1 :])

        def _module(self, module: ModuleType) -> Any:
            """A module that no other process finds: by its file, or with all that is in it."""
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
            """How to get what is in a module that no other process finds; None for all others."""
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
            """A function without its globals, where these are the content of a module: that goes
            along by itself, and is not changed where there is such a module."""
            is_shared = type(value) is FunctionType and id(value.__globals__) in self._contents
            if is_shared and isinstance(reduced, tuple):
                _attributes, slots = reduced[2]
                slots["__globals__"] = {}
            return reduced

        def _named(self, value: Any, name: str) -> Any:
            """What reduces to its name."""
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


def _is_plain(kind: type) -> bool:
    """Whether instances of a class are pickled as an object with its attributes."""
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
    """An empty module; that of this name where one is there."""
    if not is_known:
        return ModuleType(name)
    return sys.modules.setdefault(name, ModuleType(name))


def _fill_module(module: ModuleType, content: dict[str, Any]) -> None:
    """Give a module what it has not got: one that was there before stays as it is."""
    for name, value in content.items():
        if vars(module).get(name) is None:
            vars(module)[name] = value


def _import_file(*place: Any) -> ModuleType:
    return FromFile(*place).load()


_FUNCTIONS: dict[Any, Any] = {
    IMPORT_ID: _import_file, NEW_MODULE_ID: _new_module, FILL_MODULE_ID: _fill_module
}  # fmt: skip


class _OfNotebook:
    """Gives loaded functions a namespace for their globals, and the shell that runs here."""

    def __init__(self, file: io.BytesIO, namespace: dict[str, Any]) -> None:
        super().__init__(file)  # type: ignore[call-arg]
        self._namespace = namespace

    def persistent_load(self, pid: Any) -> Any:
        """What belongs to the notebook or the process that loads."""
        kind, *given = (pid,) if isinstance(pid, str) else pid
        if kind == NAMESPACE_ID:
            return self._namespace
        if kind == SOURCE_ID:
            return cellsources.have_here(Source(*given), running_shell())
        if kind == GLOBALS_ID:
            return vars(*given)
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


class _Resumed(_OfNotebook, pickle._Unpickler):
    """Goes on behind a value that could not be loaded. In Python, its memo is a dictionary."""

    def __init__(self, file: io.BytesIO, namespace: dict[str, Any], memo: dict[int, Any]) -> None:
        super().__init__(file, namespace)
        self.memo = memo


def running_shell() -> Any:
    """IPython's shell in this process; None where there is none."""
    module: Any = sys.modules.get("IPython.core.getipython")
    return None if module is None else module.get_ipython()


@dataclass(frozen=True, slots=True)
class Failed:
    """Stands in the place of a value that cannot be loaded."""

    error: BaseException


class Unpicklable(Exception):
    """A value cannot be pickled."""

    def __init__(self, name: str, cause: BaseException) -> None:
        super().__init__(name)
        self.name = name
        self.cause = cause


def write_together(file: Writer, values: Mapping[str, Any], namespace: Namespace) -> dict[str, int]:
    """Write named values with one memo. Returns the size of each in bytes.

    Raises `Unpicklable`, which leaves the file unusable, and `StoreError`.
    """
    file.write(TOGETHER)
    made, sizes = pickler(file, namespace), dict[str, int]()
    for name, value in values.items():
        before = file.size
        dump(made, name, value)
        sizes[name] = file.size - before
    index = json.dumps(sizes).encode()
    file.write(index + len(index).to_bytes(LENGTH_BYTES, "little"))
    return sizes


class _Memory(io.BytesIO):
    """A file in memory."""

    size = 0


def to_bytes(value: Any, namespace: Namespace) -> bytes:
    """The pickle of a value. Raises whatever a class raises when it is pickled."""
    file = _Memory()
    pickler(file, namespace).dump(value)
    return file.getvalue()


def dump(made: Any, name: str, value: Any) -> None:
    """Pickle a value. Raises `Unpicklable`, and the file's own `StoreError`."""
    try:
        made.dump(value)
    except BaseException as error:  # whatever a class raises when it is pickled
        if issubclass(type(error), StoreError) or is_from_outside(error):
            raise
        raise Unpicklable(name, error) from error


def are_together(data: bytes) -> bool:
    """Whether these are the bytes of several values."""
    return data.startswith(TOGETHER)


def read_together(data: bytes, namespace: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values in their order, each with its name; a `Failed` in place of one that fails.

    What comes after such a one is there, unless it shares what could not be loaded.
    """
    end = len(data) - LENGTH_BYTES
    index = end - int.from_bytes(data[end:], "little")
    file, at = io.BytesIO(data), len(TOGETHER)
    file.seek(at)
    loading: Unpickler | _Resumed = Unpickler(file, namespace)
    missing = _Missing()
    for name, size in json.loads(data[index:end]).items():
        uses = sys.getrefcount(missing)
        value = load(loading)
        if sys.getrefcount(missing) > uses:
            value = Failed(pickle.UnpicklingError(SHARES))
        yield name, value
        at += size
        if isinstance(value, Failed):
            file.seek(at)
            # An object's number in the memo is how many are in it: there must be so many.
            numbers = range(_count_memoized(data[len(TOGETHER) : at]))
            loading = _Resumed(file, namespace, dict.fromkeys(numbers, missing) | _memo(loading))


def _memo(loading: Any) -> dict[int, Any]:
    memo: dict[int, Any] = loading.memo.copy()
    return memo


SHARES = "it shares what could not be loaded"


class _Missing:
    """Stands in a memo for what could not be loaded, and does not let anything use it."""

    def __getattribute__(self, name: str) -> Any:
        raise pickle.UnpicklingError(SHARES)

    def _refuse(self, *_arguments: Any) -> Any:
        raise pickle.UnpicklingError(SHARES)

    __repr__ = __str__ = __hash__ = __eq__ = __bool__ = __len__ = __iter__ = __call__ = _refuse


def _count_memoized(pickles: bytes) -> int:
    """How many objects are in the memo after these pickles."""
    file, count = io.BytesIO(pickles), 0
    while file.tell() < len(pickles):
        count += sum(operation.name == "MEMOIZE" for operation, *_ in pickletools.genops(file))
    return count


def load(loading: Unpickler | _Resumed) -> Any:
    """The next value; a `Failed` where its class raises something."""
    try:
        return loading.load()
    except BaseException as error:  # whatever a class raises when it is unpickled
        # A stop button ends the loading of this value, and loses no other.
        if is_from_outside(error) and not issubclass(type(error), KeyboardInterrupt):
            raise
        return Failed(error)
