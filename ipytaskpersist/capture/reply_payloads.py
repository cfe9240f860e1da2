"""Payloads of a cell's reply: pages for the pager and texts for the next cell.

A task's payload would travel with the reply of the foreground cell that is running, and a pager
would open beside the wrong cell. So a task shows pages and texts as displays of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from IPython.core.error import TryNext

from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.capture.displays import clean, record_display
from ipytaskpersist.running.running_task import RunningTask, active_task

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

Payload = dict[str, Any]
BEFORE_ALL = -1
"""Priority of a hook that is called before IPython's and ipykernel's own."""
ASKED = {"edit_magic": "opening a file in the editor", "ask_exit": "ending the kernel"}
"""Descriptions of a payload's request to the front end, by its source."""


def install(shell: InteractiveShell, patches: Patches) -> None:
    """Keep the payloads of tasks out of the replies from now on."""
    manager: Any = shell.payload_manager
    if manager is not None:
        patches.replace(manager, "write_payload", _write_payload)
    if getattr(shell, "kernel", None) is None:
        # A terminal inserts the text after its next prompt.
        patches.replace(shell, "set_next_input", _set_next_input)
    pagers: Any = shell.hooks.show_in_pager
    pagers.add(_show_in_pager, BEFORE_ALL)
    patches.on_undo(partial(_remove, pagers, _show_in_pager))


def _remove(dispatcher: Any, hook: Callable[..., Any]) -> None:
    dispatcher.chain[:] = [entry for entry in dispatcher.chain if entry[1] is not hook]


def _write_payload(plain: Callable[..., None]) -> Callable[..., None]:
    def write_payload(data: Payload, single: bool = True) -> None:
        task = active_task.get()
        if task is None or not isinstance(data, dict):
            plain(data, single)
        elif data.get("source") == "page":
            _show(task, data.get("data", {}))
        elif data.get("source") == "set_next_input":
            _offer(task, data.get("text", ""))
        else:
            source = str(data.get("source"))
            _refuse(task, ASKED.get(source, f"what {source} asks the front end for"))

    return write_payload


def _set_next_input(plain: Callable[..., None]) -> Callable[..., None]:
    def set_next_input(text: str, replace: bool = False) -> None:
        task = active_task.get()
        if task is None:
            plain(text, replace)
        else:
            _offer(task, text)

    return set_next_input


def _show_in_pager(data: Any, start: int = 0, screen_lines: int = 0) -> None:
    """IPython's hook for paged text, which `page.page` calls first."""
    task = active_task.get()
    if task is None:
        raise TryNext
    _show(task, data)


def _show(task: RunningTask, data: Any) -> None:
    bundle = data if isinstance(data, dict) else {"text/plain": str(data)}
    record_display(task, {"data": clean(bundle), "metadata": {}, "transient": {}})


def _offer(task: RunningTask, text: str) -> None:
    _refuse(task, "putting text into a cell")
    _show(task, text)


def _refuse(task: RunningTask, what: str) -> None:
    message = f"{what} is not possible from background task {task.record.label}"
    task.write(OutputKind.STDERR, f"{message}; run it in a foreground cell\n")
