"""Convert values to bytes, and back where they find the notebook's variables and its shell.

A function of the notebook is pickled by value. Its global variables are those of the notebook that
loads it, and IPython's shell is the one that runs there.
"""

from __future__ import annotations

import io
import pickle  # what is not signed is never loaded  # nosec B403
import pickletools  # it only counts  # nosec B403
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ipytaskpersist.errors import StoreError
from ipytaskpersist.running.interruption import is_from_outside
from ipytaskpersist.values import cell_sources
from ipytaskpersist.values.cell_sources import Source
from ipytaskpersist.values.persistent_ids import (
    FUNCTIONS,
    GIVEN_ID,
    GLOBALS_ID,
    NAMESPACE_ID,
    SHELL_ID,
    SOURCE_ID,
    running_shell,
)

Namespace = dict[str, Any] | None
PickleBuffer = pickle.PickleBuffer
UnpicklingError = pickle.UnpicklingError
CONTENT = {
    4: (pickle.BINBYTES, pickle.BINUNICODE),
    8: (pickle.BINBYTES8, pickle.BYTEARRAY8, pickle.BINUNICODE8),
}
"""Codes that are followed by a length, in 4 or 8 bytes, and by as many bytes of text or data."""
HEADER_BYTES = 9
"""Size of such a code with its length, at most."""
TakeBuffer = Callable[[pickle.PickleBuffer], bool]


class Writer(Protocol):
    """A file of pickles."""

    def write(self, data: Any) -> int:
        """Write. Raises `StoreError` when the disk takes no more."""


def be_ready() -> None:
    """Import what pickling the first value needs: at a task's end it might be gone."""
    from ipytaskpersist.values import notebook_pickler  # noqa: F401


def pickler(file: Writer, namespace: Namespace, take_buffer: TakeBuffer | None = None) -> Any:
    """Return a pickler of successive values, which writes what they share once.

    `take_buffer` is given each buffer, and returns False for one that is to be passed along with
    the pickle instead of being in it.

    Functions whose globals are `namespace` refer to them by name, all others by value. An object
    that pickle would refer to by a name that no other process finds is pickled by value, or
    refused.
    """
    from ipytaskpersist.values.notebook_pickler import Pickler

    return Pickler(file, namespace, take_buffer)


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
        if kind in FUNCTIONS:
            return FUNCTIONS[kind]
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
