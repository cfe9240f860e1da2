"""Displays and results: recorded for the task that makes them."""

from __future__ import annotations

import base64
import builtins
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from IPython.core.builtin_trap import BuiltinUndefined
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import CapturingDisplayPublisher

from ipytaskpersist.base import widget_marks
from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.records import OutputKind, OutputRecord
from ipytaskpersist.capture import kept_widgets
from ipytaskpersist.running.running_task import RunningTask, active_task, redirects

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_displayed_by: dict[str, RunningTask] = {}
"""Which task showed the last display with each id. All updates go there, except those of a task
that has shown a display with this id itself."""
_of_foreground: dict[str, None] = {}
"""The ids of the foreground's displays, the latest last."""
AT_MOST = 1000
"""How many of them are known."""


def install(shell: InteractiveShell, patches: Patches) -> None:
    """Route what is displayed from now on."""
    _route_displays(shell, patches)
    _route_results(shell, patches)


def _route_displays(shell: InteractiveShell, patches: Patches) -> None:
    publisher: Any = shell.display_pub
    # A process task's shell is a kernel's, but no front end is there.
    is_alone = getattr(publisher, "session", publisher) is None
    patches.replace(publisher, "publish", partial(_publish, is_alone=is_alone))
    patches.replace(publisher, "clear_output", _clear_output)
    # The foreground's %%capture puts one of these in the publisher's place.
    capturing: Any = CapturingDisplayPublisher
    patches.replace(capturing, "publish", _publish_of_class)
    patches.replace(capturing, "clear_output", _clear_output_of_class)
    patches.on_undo(_displayed_by.clear)
    patches.on_undo(_of_foreground.clear)


def _publish(plain: Callable[..., None], *, is_alone: bool) -> Callable[..., None]:
    def publish(data: Any, metadata: Any = None, *args: Any, **options: Any) -> None:
        if is_alone and options.get("update"):
            options["update"] = _is_shown(options)
        if not publish_for_task(data, metadata, options):
            plain(data, metadata, *args, **options)

    return publish


def _is_shown(options: dict[str, Any]) -> bool:
    """Whether a display was shown here that an update is meant for.

    In a process of its own the first update of a display of the notebook shows it.
    """
    return _owner(active_task.get(), (options.get("transient") or {}).get("display_id")) is not None


def pass_on(record: OutputRecord, publish: Callable[..., None]) -> None:
    """Update the foreground's display that a task of another process has shown as its own."""
    content = json.loads(record.data)
    transient = content.get("transient") or {}
    if transient.get("display_id") in _of_foreground:
        publish(content["data"], content["metadata"], transient=transient, update=True)


def has_displays() -> bool:
    """Whether the foreground has shown a display that can be updated."""
    return bool(_of_foreground)


def _note_of_foreground(display_id: str) -> None:
    _displayed_by.pop(display_id, None)  # it is the foreground's from now on
    _of_foreground.pop(display_id, None)
    _of_foreground[display_id] = None
    while len(_of_foreground) > AT_MOST:
        del _of_foreground[next(iter(_of_foreground))]


def _publish_of_class(plain: Callable[..., None]) -> Callable[..., None]:
    def publish(self: Any, data: Any, metadata: Any = None, *args: Any, **options: Any) -> None:
        if not publish_for_task(data, metadata, options):
            plain(self, data, metadata, *args, **options)

    return publish


def _clear_output(plain: Callable[..., None]) -> Callable[..., None]:
    def clear_output(wait: bool = False) -> None:
        if not _clear_for_task(wait):
            plain(wait)

    return clear_output


def _clear_output_of_class(plain: Callable[..., None]) -> Callable[..., None]:
    def clear_output(self: Any, wait: bool = False) -> None:
        if not _clear_for_task(wait):
            plain(self, wait)

    return clear_output


def publish_for_task(data: Any, metadata: Any, options: dict[str, Any]) -> bool:
    """Record a display for the task that it belongs to. Returns False when the front end gets it.

    A display belongs to the task that shows it, also where an earlier one had the same id. An
    update belongs to the calling task where that has shown such a display, else to the task that
    showed the last one. A task that updates a display of the foreground names it by its id, and
    means it.
    """
    task = active_task.get()
    transient = options.get("transient") or {}
    display_id, update = transient.get("display_id"), bool(options.get("update"))
    if task is None and not update:
        if display_id:
            _note_of_foreground(str(display_id))
        return False
    owner = _owner(task, display_id) if update else task
    if owner is None:
        return False
    content = {"data": clean(data), "metadata": metadata or {}, "transient": transient}
    captured = redirects.get().get(OutputKind.DISPLAY_DATA)
    if task is not None and captured is not None:
        captured.append({**content, "update": update})
        return True
    if display_id and not update:
        _displayed_by[display_id] = owner
        owner.displays.add(display_id)
    record_display(owner, content, update=update)
    return task is not None


def _owner(task: RunningTask | None, display_id: Any) -> RunningTask | None:
    """The task to whose outputs an update belongs; None for a display of the foreground.

    What an ended task has shown stays as it was: an update goes to the page alone.
    """
    if task is not None and display_id in task.displays:
        return task
    owner = _displayed_by.get(display_id)
    return None if owner is None or owner.has_ended else owner


def record_display(task: RunningTask, content: dict[str, Any], *, update: bool = False) -> None:
    """Record a display, after what the task's children have printed before it."""
    task.children.drain()
    kind = OutputKind.UPDATE_DISPLAY_DATA if update else OutputKind.DISPLAY_DATA
    task.recording.add(kind, content)
    kept_widgets.shown(task, content["data"])


def _clear_for_task(wait: bool) -> bool:
    task = active_task.get()
    if task is None:
        return False
    content = widget_marks.clearing(task.widgets.innermost, wait=wait)
    task.recording.add(OutputKind.CLEAR_OUTPUT, content)
    return True


def clean(data: Any) -> dict[str, Any]:
    """A MIME bundle as JSON can hold it: bytes become base64, as in a notebook file."""
    return {
        mime: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for mime, value in dict(data).items()
    }


def _route_results(shell: InteractiveShell, patches: Patches) -> None:
    """Make IPython's display hook, and with it ``sys.displayhook``, show a task's values to it."""
    classes: list[Any] = [DisplayHook]
    if "ipykernel.displayhook" in sys.modules:
        # What a kernel has in `sys.displayhook` while no cell runs.
        classes.append(sys.modules["ipykernel.displayhook"].ZMQDisplayHook)
    for hook_class in classes:
        patches.replace(hook_class, "__call__", partial(_display_hook, shell))
    _keep_get_ipython(shell, patches)


def _keep_get_ipython(shell: InteractiveShell, patches: Patches) -> None:
    """Have `get_ipython` without an import for tasks, too, which run while no cell does.

    The shell's trap puts it into `builtins` for each cell, and then puts back what was there: a
    cell that runs now does so with what the trap has kept. The trap itself is not held open,
    because it hides `exit` and `quit`, which other threads may call between two cells.
    """
    trap = shell.builtin_trap

    def outside() -> dict[str, Any]:
        return trap._orig_builtins if trap._nested_level else vars(builtins)

    before = outside().get("get_ipython", BuiltinUndefined)
    outside()["get_ipython"] = shell.get_ipython

    def undo() -> None:
        if before is not BuiltinUndefined or trap._nested_level:
            outside()["get_ipython"] = before
        else:
            del vars(builtins)["get_ipython"]

    patches.on_undo(undo)


def _display_hook(shell: InteractiveShell, plain: Callable[..., None]) -> Callable[..., None]:
    def __call__(self: Any, value: Any = None) -> None:
        task = active_task.get()
        if task is None:
            plain(self, value)
        else:
            show_result(shell, task, value)

    return __call__


def show_result(shell: Any, task: RunningTask, value: Any) -> str | None:
    """Record a value as a cell's result is shown. Returns its text form; None for no value."""
    if value is None:
        return None
    shown_before = task.shown_error
    data, metadata = shell.display_formatter.format(value)
    # A value whose repr fails shows that, but its cell has not failed.
    task.shown_error = shown_before
    if not data:
        return ""
    content = {"data": clean(data), "metadata": metadata}
    captured = redirects.get().get(OutputKind.DISPLAY_DATA)
    if captured is not None:
        captured.append(content)
    else:
        task.children.drain()
        content["execution_count"] = task.record.execution_count
        task.recording.add(OutputKind.EXECUTE_RESULT, content)
        kept_widgets.shown(task, data)
    return str(data.get("text/plain", ""))
