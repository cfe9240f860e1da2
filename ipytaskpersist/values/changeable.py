"""Objects that can be given other content in place, so that all who hold them see it.

Their content is shallow: what they hold is not copied.
"""

from __future__ import annotations

import copyreg
import dis
import io
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from ipytaskpersist.base.imported_modules import imported
from ipytaskpersist.values.array_views import is_array, memory_of
from ipytaskpersist.values.by_value import is_plain
from ipytaskpersist.values.importable import MAIN
from ipytaskpersist.values.pickling import PickleBuffer

NEW = copyreg.__newobj__  # type: ignore[attr-defined]
"""What pickle makes an instance with, from nothing but its class."""
OF_CODE = (type, ModuleType)
"""What is found again by its name, or made from code."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How objects of one kind are made, read and filled."""

    content: Callable[[Any], Any]
    """Returns an object's content, in a new object."""
    fill: Callable[[Any, Any], None]
    """Gives an object this content, instead of its own."""
    arguments: Callable[[Any], tuple[Any, ...]] = lambda _value: ()
    """Returns what its class is called with to make an empty one."""


def _fill_list(target: Any, content: Any) -> None:
    target[:] = content


def _fill_dict(target: dict[Any, Any], content: Any) -> None:
    target.clear()
    target.update(content)


def _fill_set(target: set[Any], content: Any) -> None:
    target.clear()
    target.update(content)


def _fill_deque(target: deque[Any], content: Any) -> None:
    target.clear()
    target.extend(content)


def _function_content(function: Any) -> Any:
    """Return what a function keeps, and what of the notebook's variables it can change."""
    cells = [_cell_content(cell) for cell in function.__closure__ or ()]
    there = function.__globals__
    used = [there[name] for name in _global_names(function.__code__) if name in there]
    changeable = [each for each in used if each is not function and kind_of(each) is not None]
    own = dict(vars(function)), cells, function.__defaults__, function.__kwdefaults__
    return (*own, changeable)


@lru_cache(maxsize=1000)
def _global_names(code: CodeType) -> tuple[str, ...]:
    """Return the global variables that code uses, also in the functions that it defines."""
    found = dict.fromkeys(
        each.argval for each in dis.get_instructions(code) if each.opname.endswith("_GLOBAL")
    )
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= dict.fromkeys(_global_names(constant))
    return tuple(found)


def _cell_content(cell: CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()  # it has no value yet


def _fill_function(function: Any, content: Any) -> None:
    attributes, cells, function.__defaults__, function.__kwdefaults__, _used = content
    _fill_dict(vars(function), attributes)
    for cell, values in zip(function.__closure__ or (), cells, strict=True):
        if values:
            cell.cell_contents = values[0]


def _array_arguments(array: Any) -> tuple[Any, ...]:
    return array.shape, array.dtype, "F" if array.flags.fnc else "C"


def _array_content(array: Any) -> tuple[Any, bool]:
    """Return an array's memory, which is no view of another array, and whether it is writable."""
    is_plain_memory = is_array(array) and array.flags.forc
    memory = PickleBuffer(memory_of(array)) if is_plain_memory else array.view()
    return memory, bool(array.flags.writeable)


def _fill_array(target: Any, content: Any) -> None:
    numpy: Any = sys.modules["numpy"]
    memory, is_writable = content
    if not isinstance(memory, numpy.ndarray):
        order = "F" if target.flags.fnc else "C"
        memory = numpy.frombuffer(memory, target.dtype).reshape(target.shape, order=order)
    target.flags.writeable = True
    target[...] = memory
    target.flags.writeable = is_writable


def _may_be_written(array: Any) -> bool:
    return bool(array.flags.writeable or (array.base is None and array.flags.owndata))


def _fill_generator(generator: Any, content: Any) -> None:
    generator.bit_generator.state = content


def _bits(generator: Any) -> tuple[Any, ...]:
    return (type(generator.bit_generator),)


def _state(value: Any) -> Any:
    """Return an instance's state as pickle takes it, with what it holds as a list or a dict."""
    reduced = value.__reduce_ex__(2)
    state, items, pairs = (*reduced[2:5], None, None, None)[:3]
    return (
        dict(state) if state is not None and state is vars_of(value) else state,
        None if items is None else list(items),
        None if pairs is None else list(pairs),
    )


def vars_of(value: Any) -> Any:
    """Return an instance's attributes; None if it has no dict of them."""
    return getattr(value, "__dict__", None)


def _fill_instance(target: Any, content: Any) -> None:
    """Give an instance another state, as pickle does, instead of its own.

    Raises what its class raises. The instance then has its own state again.
    """
    attributes = vars_of(target)
    before = dict(attributes or {})
    if attributes is not None:
        attributes.clear()
    try:
        _set_state(target, attributes, *content)
    except BaseException:
        if attributes is not None:
            _fill_dict(attributes, before)
        raise


def _set_state(target: Any, attributes: Any, state: Any, items: Any, pairs: Any) -> None:
    set_state = getattr(target, "__setstate__", None)
    if set_state is not None:
        set_state(state)
    else:
        own, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        if attributes is not None and own:
            attributes.update(own)
        for name, each in (slots or {}).items():
            setattr(target, name, each)
    if items is not None:
        target[:] = items
    if pairs is not None:
        _fill_dict(target, pairs)


KINDS: dict[type, Kind] = {
    list: Kind(list, _fill_list),
    dict: Kind(dict, _fill_dict),
    set: Kind(set, _fill_set),
    bytearray: Kind(bytes, _fill_list),
    deque: Kind(list, _fill_deque, lambda value: ((), value.maxlen)),
    OrderedDict: Kind(dict, _fill_dict),
    Counter: Kind(dict, _fill_dict),
    defaultdict: Kind(dict, _fill_dict, lambda value: (value.default_factory,)),
}
DRAWING: dict[tuple[str, str], Kind] = {
    ("random", "Random"): Kind(lambda value: value.getstate(), lambda value, c: value.setstate(c)),
    ("numpy.random._generator", "Generator"): Kind(
        lambda value: value.bit_generator.state, _fill_generator, _bits
    ),
}
"""Generators of random numbers, by the module and the name of their class."""
ARRAY = Kind(_array_content, _fill_array, _array_arguments)
FUNCTION = Kind(_function_content, _fill_function)
INSTANCE = Kind(_state, _fill_instance)
HEAP_TYPE = 1 << 9
"""Flag of a class that was made by a ``class`` statement; see Py_TPFLAGS_HEAPTYPE."""
NEVER = ("matplotlib", "IPython", "ipywidgets", "threading", "logging", "tqdm")
"""Packages whose objects belong to their process."""


def kind_of(value: Any) -> Kind | None:
    """Return the kind of an object that can be filled in place; None for all others.

    What is found in sets and dicts by its content is copied: it could not be found there while it
    is empty.
    """
    its_type = type(value)
    known = KINDS.get(its_type)
    if known is not None:
        return known
    if its_type is FunctionType:
        return FUNCTION if value.__module__ == MAIN else None
    if issubclass(its_type, OF_CODE):
        return None
    numpy = imported("numpy")
    if numpy is not None and its_type is numpy.ndarray:
        return ARRAY
    drawing = _drawing(its_type)
    if drawing is not None:
        return drawing
    if not is_plain(its_type) or _is_found_by_content(its_type) or _is_part_of_frame(its_type):
        return None
    if belongs_to_process(value):
        return None
    return INSTANCE if _is_made_empty(value) else None


def _drawing(its_type: type) -> Kind | None:
    name = its_type.__name__
    return DRAWING.get((its_type.__module__, name)) if name in ("Random", "Generator") else None


def _is_found_by_content(its_type: Any) -> bool:
    return its_type.__hash__ is not None and its_type.__hash__ is not object.__hash__


def _is_part_of_frame(its_type: Any) -> bool:
    """Return whether it is a class of pandas that its own code uses before it is filled."""
    return not _is_frame(its_type) and _package(its_type) == "pandas"


def _is_frame(its_type: Any) -> bool:
    pandas: Any = imported("pandas")
    return pandas is not None and its_type in (pandas.DataFrame, pandas.Series)


def _package(its_type: Any) -> str:
    module = getattr(its_type, "__module__", "")
    return module.partition(".")[0] if isinstance(module, str) else ""


def arrays_of_frames(values: Iterable[Any]) -> set[int]:
    """Return the `id` of each array that pandas objects are made of.

    Other frames may share an array until one of them is written: it is never filled in place.
    """
    frames = [each for each in values if _is_frame(type(each))]
    blocks = [block.values for each in frames for block in each._mgr.blocks]
    return {id(part) for each in blocks for part in (each, getattr(each, "_ndarray", None))}


def _is_made_empty(value: Any) -> bool:
    """Return whether unpickling makes an instance with nothing but its class."""
    try:
        maker, arguments, *_rest = value.__reduce_ex__(2)
    except Exception:  # it may refuse to be pickled
        return False
    return maker is NEW and len(arguments) == 1


def belongs_to_process(value: Any) -> bool:
    """Return whether an object is of use only in the process that made it."""
    return _package(type(value)) in NEVER


def look_the_same(one: Any, other: Any) -> bool:
    """Return whether two figures, or parts of figures, are drawn alike; False for other objects."""
    figures: list[Any] = [getattr(each, "figure", None) for each in (one, other)]
    if "matplotlib.figure" not in sys.modules or None in figures:
        return False
    drawn = []
    for figure in figures:
        file = io.BytesIO()
        figure.savefig(file, format="rgba")
        drawn.append(file.getvalue())
    return drawn[0] == drawn[1]


def make(its_type: type, arguments: tuple[Any, ...]) -> Any:
    """Make an object without content. Raises what its class raises."""
    numpy: Any = imported("numpy")
    if its_type is FunctionType:
        return arguments[0]
    if numpy is not None and its_type is numpy.ndarray:
        return numpy.empty(*arguments)
    if arguments and _drawing(its_type) is not None:
        return its_type(arguments[0]())
    return its_type(*arguments) if its_type in KINDS else NEW(its_type)


def kind_of_made(value: Any) -> Kind:
    """Return the kind of an object that `make` has made: an empty one may refuse to be asked."""
    numpy: Any = imported("numpy")
    its_type = type(value)
    if numpy is not None and its_type is numpy.ndarray:
        return ARRAY
    if its_type is FunctionType:
        return FUNCTION
    return _drawing(its_type) or KINDS.get(its_type, INSTANCE)


def fits(target: Any, its_type: Any, arguments: tuple[Any, ...]) -> bool:
    """Return whether an object can be filled with the content of one that is made like this."""
    kind = kind_of(target)
    if type(target) is not its_type:
        return kind is INSTANCE and _is_of_instances(its_type)
    if kind is not ARRAY:
        return kind is not None
    shape, dtype, _order = arguments
    return target.shape == shape and target.dtype == dtype and _may_be_written(target)


def _is_of_instances(its_type: Any) -> bool:
    """Return whether instances of another class may become instances of this one."""
    return isinstance(its_type, type) and bool(its_type.__flags__ & HEAP_TYPE)


def is_equal(one: Any, other: Any) -> bool:
    """Return whether two pandas objects have the same content; False for all other objects.

    Reading a data frame may arrange its blocks anew, which changes its pickle, and nothing else.
    """
    if type(one) is not type(other) or not _is_frame(type(one)):
        return False
    same_names = [axis.names for axis in one.axes] == [axis.names for axis in other.axes]
    return same_names and one.attrs == other.attrs and bool(one.equals(other))
