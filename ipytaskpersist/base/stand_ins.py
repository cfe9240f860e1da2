"""Replace foreign functions so that they look unchanged to all other code.

A Python function keeps its identity, name, signature, source and pickle, because only its code is
exchanged, for code with the same parameters that calls the replacement. A C function has no code to
exchange. An object takes its place that looks, copies and pickles like it. Meanwhile the function
itself, which other code may have imported earlier, is pickled by its name, too.
"""

from __future__ import annotations

import ast
import copyreg
import pkgutil
import sys
from collections.abc import Callable
from functools import cache
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, CO_VARARGS, CO_VARKEYWORDS
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar
from weakref import WeakSet

Make = Callable[[Any], Callable[..., Any]]
"""Makes the replacement of the callable that is passed to it."""
Undo = Callable[[], None]
T = TypeVar("T", bound=Callable[..., Any])


# Python functions.


def function_behind(value: Any) -> FunctionType | None:
    """Return the function whose code runs when a value is called, if that can be exchanged."""
    function = getattr(value, "__func__", value)
    if type(function) is not FunctionType or function.__code__.co_flags & CO_ASYNC_GENERATOR:
        return None
    return function


def exchange(function: FunctionType, value: Any, make: Make, owner: type | None) -> Undo:
    """Make a function call a replacement. Return what reverts this.

    value: the function, or a method of it: then calls with other objects are unaffected.
    owner: the class to whose objects the replacement is restricted; None for all.
    """
    plain_code, plain = function.__code__, _copy(function)
    # Where a function is pickled by value, as cloudpickle may, it is the plain one.
    code = _calling(plain_code, stand_in(plain, _replacement(value, plain, make, owner)))
    function.__code__ = code
    _ENTRANCES.add(code)

    def undo() -> None:
        if function.__code__ is code:  # otherwise changed after us, and kept
            function.__code__ = plain_code

    return undo


def _replacement(value: Any, plain: Any, make: Make, owner: type | None) -> Callable[..., Any]:
    if isinstance(value, MethodType):
        receiver = value.__self__
        ours = noted(make(MethodType(plain, receiver)))

        def call(this: Any, /, *args: Any, **options: Any) -> Any:
            if this is receiver:
                return ours(*args, **options)
            return plain(this, *args, **options)

        return noted(call)
    ours = noted(make(plain))
    if owner is None:
        return ours

    def call_of_class(this: Any, /, *args: Any, **options: Any) -> Any:
        return (ours if isinstance(this, owner) else plain)(this, *args, **options)

    return noted(call_of_class)


def noted(replacement: T) -> T:
    """Have tracebacks of the foreground leave out the frames of a replacement."""
    if isinstance(replacement, FunctionType):
        _REPLACEMENTS.add(replacement.__code__)
    return replacement


def _copy(function: FunctionType) -> FunctionType:
    copied = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    copied.__qualname__ = function.__qualname__
    return copied


_REPLACEMENT = "the replacement"
_ENTRANCES: WeakSet[CodeType] = WeakSet()
"""Code of functions while they are replaced."""
_REPLACEMENTS: set[CodeType] = set()
"""Code of the replacements."""


def _calling(plain: CodeType, replacement: StandIn) -> CodeType:
    """Return code with the parameters, name and location of `plain` that calls the replacement."""
    code = _template(plain)
    return code.replace(
        co_consts=tuple(replacement if each == _REPLACEMENT else each for each in code.co_consts)
    )


@cache
def _template(plain: CodeType) -> CodeType:
    """Return the same with a constant in the replacement's place."""
    parameters, arguments = _parameters(plain)
    call = f"_replacement({arguments})"
    define, call = {
        CO_COROUTINE: ("async def", f"await {call}"),
        CO_GENERATOR: ("def", f"(yield from {call})"),
    }.get(plain.co_flags & (CO_COROUTINE | CO_GENERATOR), ("def", call))
    # A function's cells are bound to it. Any code of it must have as many.
    free = ", ".join((*plain.co_freevars, ""))
    tree = ast.parse(
        f"def bound({free}):\n"
        f" {define} function({parameters}):\n"
        f"  _replacement = {_REPLACEMENT!r}\n"
        f"  return {call}\n"
        f"  {free or None}"
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt | ast.expr | ast.arg):
            node.lineno = node.end_lineno = plain.co_firstlineno
            node.col_offset = node.end_col_offset = -1
    (bound,) = _codes(compile(tree, plain.co_filename, "exec", dont_inherit=True))
    (code,) = _codes(bound)
    return code.replace(co_name=plain.co_name, co_qualname=plain.co_qualname)


def _codes(code: CodeType) -> list[CodeType]:
    return [each for each in code.co_consts if isinstance(each, CodeType)]


def _parameters(code: CodeType) -> tuple[str, str]:
    """Return the parameters of a function's code, and the arguments that pass all of them on."""
    names = iter(code.co_varnames)
    positional = [next(names) for _ in range(code.co_argcount)]
    keywords = [next(names) for _ in range(code.co_kwonlyargcount)]
    parameters, arguments = [*positional], [*positional]
    if code.co_posonlyargcount:
        parameters.insert(code.co_posonlyargcount, "/")
    if code.co_flags & CO_VARARGS:
        rest = f"*{next(names)}"
        parameters.append(rest)
        arguments.append(rest)
    elif keywords:
        parameters.append("*")
    parameters += keywords
    arguments += [f"{name}={name}" for name in keywords]
    if code.co_flags & CO_VARKEYWORDS:
        options = f"**{next(names)}"
        parameters.append(options)
        arguments.append(options)
    return ", ".join(parameters), ", ".join(arguments)


def calling_frame() -> FrameType | None:
    """Return the frame that called the function, from within its replacement."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code not in _ENTRANCES:
        frame = frame.f_back
    return None if frame is None else frame.f_back


def is_of_replacement(code: CodeType) -> bool:
    """Return whether this code runs only because a function is replaced."""
    return code in _REPLACEMENTS or code in _ENTRANCES


# Everything else.


class StandIn:
    """Takes the place of a callable, and looks like it."""

    __slots__ = ("__call__", "__weakref__", "_plain")

    def __init__(self, plain: Any, replacement: Callable[..., Any]) -> None:
        self._plain = plain
        self.__call__ = replacement

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._plain.__class__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    def __dir__(self) -> list[str]:
        return dir(self._plain)

    def __repr__(self) -> str:
        return repr(self._plain)

    def __eq__(self, other: object) -> bool:
        return bool(self._plain == plain_of(other))

    def __hash__(self) -> int:
        return hash(self._plain)

    def __copy__(self) -> StandIn:
        return self

    def __deepcopy__(self, _memo: Any) -> StandIn:
        return self

    def __reduce_ex__(self, _protocol: Any) -> Any:
        return _by_name(self, self._plain)

    def retire(self) -> None:
        """Call the original from now on, in all places that have kept this object."""
        self.__call__ = self._plain


def stand_in(plain: Any, replacement: Callable[..., Any], base: Any = StandIn) -> StandIn:
    """Return an object that looks like a callable and calls its replacement."""
    is_method_of_class = hasattr(type(plain), "__get__") and not isinstance(plain, MethodType)
    kind: Any = _class_for(type(plain).__name__, base, is_method_of_class)
    made: StandIn = kind(plain, replacement if replacement is plain else noted(replacement))
    return made


@cache
def _class_for(name: str, base: Any, is_method_of_class: bool) -> type:
    """Return the class of stand-ins for callables whose class has this name."""
    namespace = {
        "__slots__": (),
        "__doc__": property(lambda self: self._plain.__doc__),
        "__module__": property(lambda self: getattr(self._plain, "__module__", None)),
    }
    if is_method_of_class:
        namespace["__get__"] = _bind
    return type(name, (base,), namespace)


def _bind(method: Any, instance: Any, _owner: type | None = None) -> Any:
    return method if instance is None else MethodType(method, instance)


def plain_of(value: Any) -> Any:
    """Return the original of a stand-in; any other value itself."""
    while is_stand_in(value):
        value = value._plain
    return value


def is_stand_in(value: Any) -> bool:
    """Return whether a value is a stand-in."""
    return issubclass(type(value), StandIn)


def _by_name(wanted: Any, plain: Any) -> Any:
    """Return how a pickle refers to a callable or to its stand-in."""
    receiver = getattr(plain, "__self__", None)
    if receiver is not None and not isinstance(receiver, ModuleType):
        return getattr, (receiver, plain.__name__)
    module, name = plain.__module__, plain.__qualname__
    found: Any = sys.modules.get(module)
    for each in name.split("."):
        found = getattr(found, each, None)
    if found is wanted:
        return name
    # Pickle itself rejects what is not, or no longer, found under its own name.
    return pkgutil.resolve_name, (f"{module}:{name}",)


_hidden: list[BuiltinFunctionType] = []
"""C functions that are replaced by stand-ins."""
_plain_reduce: Callable[[Any], Any] | None = None


def hide(function: BuiltinFunctionType) -> Undo:
    """Let pickles refer to a C function by its name although it is not found there."""
    global _plain_reduce
    if not _hidden:
        _plain_reduce = copyreg.dispatch_table.get(BuiltinFunctionType)
        copyreg.dispatch_table[BuiltinFunctionType] = _reduce
    _hidden.append(function)

    def undo() -> None:
        _hidden.remove(function)
        if not _hidden and copyreg.dispatch_table.get(BuiltinFunctionType) is _reduce:
            del copyreg.dispatch_table[BuiltinFunctionType]
            if _plain_reduce is not None:
                copyreg.dispatch_table[BuiltinFunctionType] = _plain_reduce

    return undo


def _reduce(function: Any) -> Any:
    if any(function is each for each in _hidden):
        return _by_name(function, function)
    return function.__reduce__() if _plain_reduce is None else _plain_reduce(function)
