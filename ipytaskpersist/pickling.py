"""How values become bytes: with cloudpickle, and what belongs to a notebook by its name.

A function of the notebook is pickled by value. Its global variables are those of the notebook
that loads it, and IPython's shell is the one that runs there.
"""

from __future__ import annotations

import io
import json
import pickle  # what is not signed is never loaded  # nosec B403
import pickletools  # it only counts  # nosec B403
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ipytaskpersist import progress
from ipytaskpersist.errors import StoreError
from ipytaskpersist.interruption import is_from_outside

Namespace = dict[str, Any] | None
NAMESPACE_ID, SHELL_ID = "namespace", "shell"
TOGETHER = b"\0values\n"
"""How a file of several values begins. No pickle does, so that neither is taken for the other."""
LENGTH_BYTES = 8


class Writer(Protocol):
    """A file that knows how much has been written to it."""

    size: int

    def write(self, data: Any) -> int:
        """Write. Raises `StoreError` where the disk takes no more."""


def be_ready() -> None:
    """Import what the first value needs that is pickled: at a task's end it might be gone."""
    import cloudpickle  # noqa: F401


def pickler(file: Writer, namespace: Namespace) -> Any:
    """What pickles values one after the other. What they share is there once.

    Functions whose globals are `namespace` take them by name, all others by value.
    """
    import cloudpickle

    globals_of_functions: dict[str, Any] = {"__name__": "__main__"}
    shell = running_shell()

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, value: Any) -> str | None:
            if value is globals_of_functions:
                return NAMESPACE_ID
            return SHELL_ID if value is shell and shell is not None else None

        def reducer_override(self, value: Any) -> Any:
            reduced = progress.reduced(value)
            return super().reducer_override(value) if reduced is NotImplemented else reduced

    made = Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
    if namespace is not None:
        # What cloudpickle makes the globals of every function whose globals these are.
        made.globals_ref[id(namespace)] = globals_of_functions
    return made


class _OfNotebook:
    """Gives loaded functions a namespace for their globals, and the shell that runs here."""

    def __init__(self, file: io.BytesIO, namespace: dict[str, Any]) -> None:
        super().__init__(file)  # type: ignore[call-arg]
        self._namespace = namespace

    def persistent_load(self, pid: Any) -> Any:
        """What belongs to the notebook that loads."""
        if pid == NAMESPACE_ID:
            return self._namespace
        if pid != SHELL_ID:
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
