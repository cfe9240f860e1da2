"""A summary of the variables where a cell failed, which survives the kernel.

No code of the notebook runs for it. A value whose ``repr`` is defined by its own class is shown by
its type, with shape and columns if it has them. All sizes are bounded. Values with the name of a
secret are left out.
"""

from __future__ import annotations

import datetime
import decimal
import linecache
import pathlib
import re
import reprlib
import uuid
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import islice
from types import FrameType, FunctionType, ModuleType, TracebackType
from typing import Any

from ipytaskpersist.base.foreign_errors import class_name
from ipytaskpersist.base.redaction import is_secret
from ipytaskpersist.running.interruption import is_from_outside

FIRST_FRAMES, LAST_FRAMES = 4, 4
"""How many frames of a long traceback are kept at its beginning and at its end."""
VARIABLES = 20
TEXT_CHARACTERS = 160
CODE_CHARACTERS = 200
NAME_CHARACTERS = 100
COLUMNS = 6
BYTES = 40
PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(@)")
"""A password in a URL such as ``postgresql://ada:secret@example.com``."""
LOOKED_AT = 10_000
"""How many characters of a text are examined. Far fewer are shown."""
ALL = slice(None)
MACHINERY = ("IPython", "ipykernel", "ipytaskpersist")
"""Packages whose frames only run the cell."""
HIDDEN = "(hidden: its name looks like a secret's)"
PLAIN_TYPES = frozenset(
    (
        *(bool, int, float, complex, str, bytes, bytearray, range, type(None), type(...)),
        *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone),
        *(decimal.Decimal, Fraction, uuid.UUID, pathlib.PosixPath, pathlib.WindowsPath),
    )
)
"""Types with a short ``repr`` that runs no other code."""
CONTAINERS = frozenset((list, tuple, dict, set, frozenset))


def of_error(
    error: BaseException, cells: Mapping[str, int], own_cell: int | None
) -> dict[str, Any]:
    """Return the frames of an error with their variables, in the form kept by the store.

    `cells` maps file names to the numbers of cells. `own_cell` is the number of the cell that
    failed. Returns ``{"frames": [{"place", "function", "code", "variables": [{"name", "type",
    "text"}], "left_out"}], "left_out"}``. All values are texts, except ``left_out``, which counts
    omissions.
    """
    steps = list(_steps(error.__traceback__))
    kept = steps
    if len(steps) > FIRST_FRAMES + LAST_FRAMES:
        kept = [*steps[:FIRST_FRAMES], *steps[-LAST_FRAMES:]]
    frames = [_frame(step.tb_frame, step.tb_lineno, cells, own_cell) for step in kept]
    return {"frames": frames, "left_out": len(steps) - len(kept)}


def _steps(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        frame = traceback.tb_frame
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if "__tracebackhide__" not in frame.f_locals and package not in MACHINERY:
            yield traceback
        traceback = traceback.tb_next


def _frame(
    frame: FrameType, line: int, cells: Mapping[str, int], own_cell: int | None
) -> dict[str, Any]:
    code = frame.f_code
    found = dict(_variables(frame))
    shown = [_variable(*each) for each in islice(found.items(), VARIABLES)]
    return {
        "place": f"{_file(code.co_filename, cells, own_cell)} line {line}",
        "function": code.co_qualname[:NAME_CHARACTERS],
        "code": linecache.getline(code.co_filename, line).strip()[:CODE_CHARACTERS],
        "variables": shown,
        "left_out": len(found) - len(shown),
    }


def _variable(name: str, value: Any) -> dict[str, str]:
    return {
        "name": name[:NAME_CHARACTERS],
        "type": class_name(value)[:NAME_CHARACTERS],
        "text": HIDDEN if _is_secret(name, value) else summary(value),
    }


def _file(name: str, cells: Mapping[str, int], own_cell: int | None) -> str:
    number = cells.get(name)
    if number is not None:
        return "cell" if number == own_cell else f"cell In [{number}]"
    return name.rpartition("site-packages/")[2][-NAME_CHARACTERS:]


def _variables(frame: FrameType) -> Iterator[tuple[str, Any]]:
    """Yield the variables of a function, or those that a cell's failing statement uses."""
    values = frame.f_locals
    names = frame.f_code.co_names if values is frame.f_globals else list(values)
    for name in names:
        if name in values and name != "get_ipython" and not name.startswith("__"):
            value = values[name]
            # Do not use isinstance, which asks the value itself.
            if not issubclass(type(value), (ModuleType, FunctionType, type)):
                yield name, value


def _is_secret(name: Any, value: Any) -> bool:
    if type(name) is bytes:
        name = name[:NAME_CHARACTERS].decode("latin-1")
    says_nothing = value is None or type(value) is bool
    # Do not use isinstance, which asks the name itself. An enumeration member may be a str too.
    is_text = issubclass(type(name), str)
    return is_text and not says_nothing and is_secret(str.__getitem__(name, ALL))


class _Summary(reprlib.Repr):
    """A short `repr` that calls nothing defined by the notebook's classes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = TEXT_CHARACTERS // 2

    def repr1(self, value: Any, level: int) -> str:
        kind = type(value)
        if kind in (bytes, bytearray) and len(value) > TEXT_CHARACTERS:
            return f"{kind.__name__} of {len(value):,} bytes, {bytes(value[:BYTES])!r}…"
        if kind in PLAIN_TYPES or kind in CONTAINERS:
            return super().repr1(value, level)
        return f"<{class_name(value)}{_shape(value)}>"

    def repr_tuple(self, value: tuple[Any, ...], level: int) -> str:
        # A header or a dictionary item.
        if level > 0 and len(value) == 2 and _is_secret(*value):
            return f"({self.repr1(value[0], level - 1)}, {HIDDEN!r})"
        return super().repr_tuple(value, level)

    def repr_str(self, value: str, level: int) -> str:
        if len(value) > LOOKED_AT:
            value = value[: LOOKED_AT // 2] + value[-LOOKED_AT // 2 :]
        return super().repr_str(PASSWORD.sub(r"\1***\2", value), level)

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:
        # The base class would sort the keys and thereby compare them.
        if level <= 0 and value:
            return "{...}"
        pieces = [
            f"{self.repr1(key, level - 1)}: "
            + (repr(HIDDEN) if _is_secret(key, each) else self.repr1(each, level - 1))
            for key, each in islice(value.items(), self.maxdict)
        ]
        pieces += ["..."] if len(value) > self.maxdict else []
        return f"{{{', '.join(pieces)}}}"

    def repr_set(self, value: set[Any], level: int) -> str:
        # The base class would sort the elements and thereby compare them.
        return self._elements(value, "{", level) if value else "set()"

    def repr_frozenset(self, value: frozenset[Any], level: int) -> str:
        return f"frozenset({self._elements(value, '{', level)})" if value else "frozenset()"

    def _elements(self, value: Any, opening: str, level: int) -> str:
        if level <= 0:
            return f"{opening}...}}"
        pieces = [self.repr1(each, level - 1) for each in islice(value, self.maxset)]
        pieces += ["..."] if len(value) > self.maxset else []
        return f"{opening}{', '.join(pieces)}}}"


_short = _Summary()


def summary(value: Any) -> str:
    """Return a value as one short line."""
    try:
        kind = type(value)
        if kind in CONTAINERS and len(value) > _short.maxlist:
            text = f"{len(value):,} items: {_short.repr(value)}"
        elif kind in PLAIN_TYPES or kind in CONTAINERS:
            text = _short.repr(value)
        else:
            text = _shape(value).strip() or f"<{class_name(value)}>"
    except BaseException as error:  # an attribute may raise anything
        if is_from_outside(error):
            raise
        text = f"(could not be looked at: {class_name(error)})"
    line = " ".join(text.split())
    return line if len(line) <= TEXT_CHARACTERS else line[: TEXT_CHARACTERS - 1] + "…"


LIBRARIES = (
    "numpy",
    "pandas",
    "polars",
    "torch",
    "tensorflow",
    "jax",
    "scipy",
    "xarray",
    "pyarrow",
)
"""Libraries whose arrays and tables know their size without computing anything."""


def _shape(value: Any) -> str:
    """Return `` 1,204 × 8: customer, amount`` for a table. Empty for a value without a shape."""
    if type(value).__module__.split(".", maxsplit=1)[0].removesuffix("lib") not in LIBRARIES:
        return ""
    shape = getattr(value, "shape", None)
    if not shape or not all(isinstance(size, int) for size in shape):
        return ""
    text = " " + " × ".join(f"{size:,}" for size in shape)
    columns = getattr(value, "columns", None)
    if columns is not None and len(shape) == 2:
        names = [_short.repr(each).strip("'\"") for each in islice(columns, COLUMNS)]
        return f"{text}: {', '.join(names)}{', …' if shape[1] > COLUMNS else ''}"
    dtype = getattr(value, "dtype", None)
    return f"{text} of {dtype}" if dtype is not None else text
