"""A task's assignments to ``sys.stdout``, ``sys.displayhook`` and their like apply to it alone.

The module ``sys`` gets a class whose properties look at the calling task with each read and each
assignment. C code reads the module's dictionary instead: ``print`` finds its stream there, and the
interpreter its hooks. So the dictionary holds routers, which look at the calling task when used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ipytaskpersist.base.import_hooks import after_import
from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.records import STREAM_KINDS, OutputKind
from ipytaskpersist.base.stand_ins import noted
from ipytaskpersist.capture.streams import RoutedText, is_kernel_stream
from ipytaskpersist.isolation.process_state import give_class
from ipytaskpersist.running.running_task import active_task, redirects

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


_ABSENT = object()


def install(shell: InteractiveShell, patches: Patches) -> None:
    """Keep the assignments of tasks apart from now on."""
    attributes = [
        *(_Stream(kind) for kind in STREAM_KINDS),
        _Attribute("stdin"),
        _Hook("displayhook", lambda: shell.displayhook),
        _Hook("excepthook", lambda: shell.excepthook),
    ]
    for attribute in attributes:
        attribute.stand()
        patches.on_undo(attribute.leave)
    properties = {each.name: property(each.get, each.put, each.delete) for each in attributes}
    give_class(sys, properties, patches)
    names = frozenset(properties)
    after_import({"unittest.mock": partial(_route_mock, names)}, patches)


class _Attribute:
    """An attribute of ``sys`` of which each task may have its own value."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get(self, _module: Any) -> Any:
        """Return the value for the calling code."""
        task = active_task.get()
        if task is None:
            return self._of_foreground()
        value = task.assigned.get(self.name, _ABSENT)
        return self._of_tasks() if value is _ABSENT else value

    def put(self, _module: Any, value: Any) -> None:
        """Assign a value for the calling code."""
        task = active_task.get()
        if task is None:
            self._set_foreground(value)
        elif self._is_of_tasks(value):
            task.assigned.pop(self.name, None)
        else:
            task.assigned[self.name] = value

    def delete(self, _module: Any) -> None:
        """Delete the foreground's value, or let go of what the calling task has assigned."""
        task = active_task.get()
        if task is None:
            self._of_foreground()
            del vars(sys)[self.name]
        else:
            task.assigned.pop(self.name, None)

    def stand(self) -> None:
        """Route what C code reads from the dictionary, from now on."""

    def leave(self) -> None:
        """Put the foreground's value back into the dictionary."""

    def _of_foreground(self) -> Any:
        try:
            return vars(sys)[self.name]
        except KeyError:
            raise AttributeError(f"module 'sys' has no attribute {self.name!r}") from None

    def _set_foreground(self, value: Any) -> None:
        vars(sys)[self.name] = value

    def _of_tasks(self) -> Any:
        """Return the value for a task that has assigned none."""
        return self._of_foreground()

    def _is_of_tasks(self, _value: Any) -> bool:
        """Whether assigning this value ends the task's own."""
        return False


class _Routed(_Attribute):
    """An attribute that C code reads from the dictionary, which holds a router.

    The router stays the same object, and keeps the foreground's value: C code may still use the
    object that it found while another thread assigns.
    """

    def __init__(self, name: str, router: Any) -> None:
        super().__init__(name)
        self._router = router

    def stand(self) -> None:
        if self.name in vars(sys):
            vars(sys)[self.name] = self._router

    def leave(self) -> None:
        if self.name in vars(sys):
            vars(sys)[self.name] = self._of_foreground()

    def _of_foreground(self) -> Any:
        stands = super()._of_foreground()
        return self._router._plain if stands is self._router else stands

    def _set_foreground(self, value: Any) -> None:
        if value is not self._router:
            self._router._plain = value
            vars(sys)[self.name] = self._router

    def _is_of_tasks(self, value: Any) -> bool:
        return value is self._router


class _Stream(_Routed):
    """``sys.stdout`` or ``sys.stderr``. Blocks of ``redirect_stdout`` lie over what is assigned."""

    def __init__(self, kind: OutputKind) -> None:
        self._kind = kind
        self._own = vars(sys).get(kind)
        """Each task starts with this one, whatever the foreground assigns meanwhile."""
        super().__init__(kind.value, RoutedText(self._own, kind))

    def get(self, module: Any) -> Any:
        redirect = redirects.get().get(self._kind)
        return super().get(module) if redirect is None else redirect.target

    def put(self, module: Any, value: Any) -> None:
        redirect = redirects.get().get(self._kind)
        if redirect is None:
            super().put(module, value)
        else:
            # Until the block's end, which puts back what was there at its beginning.
            redirect.target = self._of_tasks() if self._is_of_tasks(value) else value

    def _set_foreground(self, value: Any) -> None:
        super()._set_foreground(value)
        if self._is_of_process(value):
            self._own = value  # it was hidden if the extension was loaded within ``%%capture``

    def _is_of_process(self, stream: Any) -> bool:
        is_of_kernel = is_kernel_stream(stream) and stream.name == self.name
        return is_of_kernel or stream is self._original

    def _of_tasks(self) -> Any:
        return self._own

    def _is_of_tasks(self, value: Any) -> bool:
        """Whether it is the stream that each task starts with, or ``sys.__stdout__``."""
        return any(value is each for each in (self._router, self._own, self._original))

    @property
    def _original(self) -> Any:
        return getattr(sys, f"__{self.name}__", self._own)


class _Hook(_Routed):
    """A function that the interpreter calls. IPython sets its own with each foreground cell."""

    def __init__(self, name: str, own: Callable[[], Any]) -> None:
        super().__init__(name, _RoutedHook(self, vars(sys)[name]))
        self._own = own

    def _of_tasks(self) -> Any:
        return self._own()

    def _is_of_tasks(self, value: Any) -> bool:
        return super()._is_of_tasks(value) or value == self._own()


class _RoutedHook:
    """Calls the hook of the calling code."""

    def __init__(self, attribute: _Hook, plain: Any) -> None:
        self._attribute = attribute
        self._plain = plain

    @noted
    def __call__(self, *args: Any) -> Any:
        hook = self._plain if active_task.get() is None else self._attribute.get(sys)
        return hook(*args)


def _route_mock(names: frozenset[str], mock: Any, patches: Patches) -> None:
    patches.replace(mock._patch, "get_original", partial(_get_original, names))


def _get_original(names: frozenset[str], plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``mock.patch`` restores what it found in the dictionary: give it the caller's value."""

    def get_original(self: Any) -> Any:
        original, is_local = plain(self)
        if is_local and self.attribute in names and self.getter() is sys:
            original = getattr(sys, self.attribute)
        return original, is_local

    return get_original
