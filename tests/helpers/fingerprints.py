"""What a notebook's variables hold, as text that two kernels can be compared by.

Imported by kernels under test. A fingerprint is equal where a person would call the values equal:
it follows containers, attributes, arrays, frames, functions and generators, and it leaves out
addresses. Objects that are shared are told by the paths on which they are found.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import PurePath
from typing import Any

from IPython.core.getipython import get_ipython

MARK = "fingerprints:"
"""Begins the line that `show` prints."""
DEEPEST = 60
TEXT_CHARACTERS = 100
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), range, slice)
CODE = (types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType)
IGNORED = (types.ModuleType, types.FrameType, types.CodeType)


def show() -> None:
    """Print the fingerprints of the notebook's variables, and what they share, as JSON."""
    shell: Any = get_ipython()
    hidden = {"In", "Out", "exit", "quit", "open", "get_ipython"}
    values = {
        name: value
        for name, value in sorted(shell.user_ns.items())
        if not name.startswith("_")
        and name not in hidden
        and not isinstance(value, types.ModuleType)
    }
    walk = Walk()
    found = {name: walk.fingerprint(name, value) for name, value in values.items()}
    print(MARK, json.dumps({"values": found, "shared": walk.shared()}))


class Walk:
    """One look at all variables."""

    def __init__(self) -> None:
        self._paths: dict[int, list[str]] = {}
        self._views: dict[int, list[tuple[str, Any]]] = {}
        """Arrays by the array whose memory they show."""
        self._kept: list[object] = []
        """Keeps what was looked at alive: an id may not be another object's meanwhile."""
        self._seen: dict[int, int] = {}

    def fingerprint(self, name: str, value: object) -> list[str]:
        """Type, digest and the beginning of the text of one variable."""
        self._seen = {}
        digest = hashlib.sha256()
        for part in self._parts(value, name, 0):
            digest.update(f"{len(part)}:{part}".encode("utf-8", "surrogatepass"))
        return [_name(type(value)), digest.hexdigest()[:16], _text(value)]

    def shared(self) -> list[list[str]]:
        """The paths on which each object that two variables share is found."""
        groups = [sorted(set(paths)) for paths in self._paths.values()]
        return sorted(each for each in [*groups, *self._overlaps()] if len(_variables(each)) > 1)

    def _overlaps(self) -> Iterator[list[str]]:
        """The paths of each two arrays that show the same memory."""
        for views in self._views.values():
            for (one, first), (other, second) in combinations(views, 2):
                if first is not second and sys.modules["numpy"].may_share_memory(first, second):
                    yield sorted([one, other])

    def _parts(self, value: object, path: str, depth: int) -> Iterator[str]:
        kind = type(value)
        yield _name(kind)
        if kind in PLAIN:
            yield repr(value)
        elif isinstance(value, IGNORED) or kind in CODE:
            yield str(getattr(value, "__qualname__", getattr(value, "__name__", "")))
        elif id(value) in self._seen:
            yield f"the {self._seen[id(value)]}th"
        elif depth > DEEPEST:
            yield "deeper"
        else:
            self._note(value, path)
            for name, part in _inside(value):
                if isinstance(part, Text):
                    yield part
                else:
                    yield name
                    yield from self._parts(part, f"{path}.{name}", depth + 1)

    def _note(self, value: Any, path: str) -> None:
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        kind: Any = type(value)
        if isinstance(value, type):
            if value.__module__ == "__main__":
                self._paths.setdefault(id(value), []).append(path)
        elif not isinstance(value, (types.FunctionType, types.MethodType, tuple, frozenset)):
            self._paths.setdefault(id(value), []).append(path)
        if _is_array(value):
            self._views.setdefault(id(_root(value)), []).append((path, value))
        if kind.__module__ == "__main__":
            self._paths.setdefault(id(kind), []).append(f"{path}.__class__")


class Text(str):
    """A part that is its own fingerprint."""


Parts = Iterable[tuple[str, object]]


def _inside(value: Any) -> Parts:
    """The parts of a value with names that a person understands."""
    for look in (_of_array, _of_frame, _of_figure, _of_file, _of_container, _of_code):
        parts = look(value)
        if parts is not None:
            return parts
    return _of_object(value)


def _of_container(value: Any) -> Parts | None:
    if isinstance(value, dict):
        items = [(f"[{key!r}]", each) for key, each in value.items()]
        return [*items, *_attributes(value)]
    if isinstance(value, (list, tuple, deque)):
        return [*((f"[{place}]", each) for place, each in enumerate(value)), *_attributes(value)]
    if isinstance(value, (set, frozenset)):
        return [("[]", Text(each)) for each in sorted(map(repr, value))]
    return None


def _of_array(value: Any) -> Parts | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.ndarray, numpy.generic)):
        return None
    about = [("dtype", Text(f"{value.dtype} {value.shape} {_flags(value)}"))]
    if value.dtype.hasobject:
        return [*about, ("values", value.tolist())]
    return [*about, ("bytes", Text(hashlib.sha256(value.tobytes()).hexdigest()))]


def _flags(value: Any) -> str:
    return "writable" if value.flags.writeable else "read-only"


def _of_frame(value: Any) -> Parts | None:
    pandas = sys.modules.get("pandas")
    if pandas is None:
        return None
    if isinstance(value, pandas.DataFrame):
        # By place: two columns may have one name.
        columns = [value.iloc[:, place] for place in range(value.shape[1])]
        contents = [(f"[{each.name!r}]", _column(each)) for each in columns]
        about = Text(f"{list(value.columns)!r} {value.attrs!r}")
        return [("columns", about), ("index", _column(value.index)), *contents]
    if isinstance(value, (pandas.Series, pandas.Index)):
        return [("values", _column(value))]
    return None


def _column(column: Any) -> Text:
    values = column.astype(object).tolist()
    text = f"{column.dtype} {column.name!r} {values!r} {getattr(column, 'attrs', '')}"
    index = column.index.tolist() if hasattr(column, "index") and hasattr(column, "iloc") else ""
    return Text(hashlib.sha256(f"{text} {index}".encode("utf-8", "surrogatepass")).hexdigest())


def _of_file(value: Any) -> Parts | None:
    if isinstance(value, PurePath):  # which remembers what it was asked for
        return [("path", Text(str(value)))]
    if not isinstance(value, io.IOBase):
        return None
    about = f"{getattr(value, 'name', '')} {'closed' if value.closed else 'open'}"
    if not value.closed and isinstance(value, (io.StringIO, io.BytesIO)):
        about += f" {value.tell()} {value.getvalue()!r}"
    return [("stream", Text(about))]


def _of_figure(value: Any) -> Parts | None:
    artist = sys.modules.get("matplotlib.artist")
    if artist is None or not isinstance(value, artist.Artist):
        return None
    figure = value.get_figure()
    if figure is None:
        return [("figure", Text("none"))]
    place = figure.axes.index(value) if value in figure.axes else -1
    return [("figure", Text(f"{place} {_pixels(figure)}"))]


def _pixels(figure: Any) -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="rgba", dpi=40)
    return hashlib.sha256(drawn.getvalue()).hexdigest()


def _of_code(value: Any) -> Parts | None:
    if isinstance(value, types.FunctionType):
        cells = [_in_cell(cell) for cell in value.__closure__ or ()]
        code = Text(f"{value.__qualname__} {value.__code__.co_code.hex()} {_constants(value)}")
        return [("code", code), ("defaults", (value.__defaults__, cells)), *_attributes(value)]
    if isinstance(value, types.MethodType):
        return [("method", Text(value.__func__.__qualname__)), ("of", value.__self__)]
    if isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        return [("at", Text(str(frame and frame.f_lasti))), ("has", frame and dict(frame.f_locals))]
    if isinstance(value, type):
        if value.__module__ != "__main__":
            return [("class", Text(_name(value)))]
        own = {name: each for name, each in vars(value).items() if not name.startswith("__")}
        return [("class", Text(_name(value))), ("has", own), ("of", value.__bases__)]
    return None


def _in_cell(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _constants(function: types.FunctionType) -> str:
    return repr([each for each in function.__code__.co_consts if type(each) in PLAIN])


def _of_object(value: Any) -> Parts:
    attributes = _attributes(value)
    if attributes:
        return attributes
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:
        return [("opaque", Text(_name(type(value))))]
    if isinstance(reduced, str):
        return [("global", Text(reduced))]
    if reduced[0] is iter:  # one that has come to its end has no place any more
        items, *place = (*reduced[1], *reduced[2:])
        return [("left", list(items)[place[0] if place else 0 :])]
    # Its fourth and fifth parts are iterators over what it holds.
    return [(f"({place})", list(part) if place > 2 else part) for place, part in enumerate(reduced)]


def _attributes(value: Any) -> list[tuple[str, object]]:
    own = getattr(value, "__dict__", None) or {}
    slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
    named = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return sorted((named | dict(own)).items()) if own or named else []


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    slots = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in slots if name not in {"__dict__", "__weakref__"}]


def _variables(paths: Iterable[str]) -> set[str]:
    return {path.split(".")[0] for path in paths}


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _root(value: Any) -> Any:
    """The array whose memory this one shows."""
    while _is_array(value.base):
        value = value.base
    return value


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _text(value: object) -> str:
    try:
        return repr(value)[:TEXT_CHARACTERS]
    except Exception as error:
        return f"<{type(error).__name__}>"
