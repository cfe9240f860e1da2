"""State that Python keeps for the whole process, and that each task has for itself.

``sys.argv`` and the attributes of ``warnings`` are asked for through classes that look at the
calling context, as the streams do. What code in C reads of ``sys.argv`` is the foreground's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from ipytaskpersist.base.patches import Patches
from ipytaskpersist.running.running_task import redirects

arguments: ContextVar[Any] = ContextVar("ipytaskpersist_arguments", default=None)
"""The ``sys.argv`` of a task."""
script: ContextVar[ModuleType | None] = ContextVar("ipytaskpersist_script", default=None)
"""The module ``__main__`` of the script that a task runs."""
caught_warnings: ContextVar[Any] = ContextVar("ipytaskpersist_warnings", default=None)
"""What holds for the block of ``warnings.catch_warnings`` that a task is in."""
OWN: frozenset[ContextVar[Any]] = frozenset((arguments, script, caught_warnings))
CARRIED: tuple[ContextVar[Any], ...] = (*OWN, redirects)
"""What holds in the threads, too, that a task starts, and for the work that it hands over."""


def install(patches: Patches) -> None:
    """Give each task its own ``sys.argv`` from now on."""
    give_class(sys, {"argv": attribute("argv", arguments.get, _set_arguments)}, patches)


def _set_arguments(value: Any) -> bool:
    has_own = arguments.get() is not None
    if has_own:
        arguments.set(value)
    return has_own


def attribute(name: str, own: Callable[[], Any], set_own: Callable[[Any], bool]) -> property:
    """An attribute of a module's class that a context may have a value of its own for.

    `own` returns None, and `set_own` False, in a context for which the module's value holds.
    """

    def get(module: Any) -> Any:
        value = own()
        return vars(module)[name] if value is None else value

    def put(module: Any, value: Any) -> None:
        if not set_own(value):
            vars(module)[name] = value

    def delete(module: Any) -> None:
        del vars(module)[name]

    return property(get, put, delete)


class _LikeModule(type):
    """Classes of modules that pass for ``ModuleType``, which many programs call ``type(sys)``.

    They compare as it, have the same instances, and when called make a plain module. Only ``is``
    sees the difference.
    """

    def __eq__(cls, other: object) -> bool:
        return other is ModuleType or type.__eq__(cls, other)

    def __hash__(cls) -> int:
        return hash(ModuleType)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return ModuleType(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, ModuleType)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, ModuleType)


def give_class(module: ModuleType, attributes: dict[str, Any], patches: Patches) -> None:
    """Give a module a class with these attributes."""
    name = module.__name__

    def __reduce__(_self: Any) -> Any:
        return importlib.import_module, (name,)

    plain: type = type(module)
    content = {**attributes, "__module__": "builtins", "__reduce__": __reduce__}
    routed: type = _LikeModule("module", (plain,), content)
    module.__class__ = routed

    def undo() -> None:
        if type(module) is routed:
            module.__class__ = plain

    patches.on_undo(undo)
