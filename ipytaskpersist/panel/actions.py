"""The actions of the panel's buttons. Each makes one call and answers with one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.errors import BackgroundError, InvalidRequest, TaskNotFound
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.text import formatting

REMEMBERED = 200


class Actions:
    """Performs what a page requests, each request once."""

    def __init__(self, manager: BackgroundTasks) -> None:
        self._manager = manager
        self._answers: dict[str, dict[str, Any]] = {}

    def do(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a request: what was done, or why not."""
        ask = str(request.get("ask"))
        if ask not in self._answers:
            self._answers[ask] = {"kind": "answer", "ask": ask, **self._answer(request)}
            for old in [*self._answers][:-REMEMBERED]:
                del self._answers[old]
        return self._answers[ask]

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return {"ok": True, "text": self._do(request)}
        except BackgroundError as error:
            return {"ok": False, "text": formatting.shorten(legible(str(error)), 400)}
        except Exception as error:  # without an answer the page would wait forever
            said = f"that went wrong: {type(error).__name__}: {error}"
            return {"ok": False, "text": formatting.shorten(legible(said), 400)}

    def _do(self, request: Mapping[str, Any]) -> str:
        verb = str(request.get("verb"))
        if verb == "clear":
            return self._clear()
        verbs: dict[str, Callable[[TaskRecord, Mapping[str, Any]], str]] = {
            "cancel": self._cancel,
            "rerun": self._rerun,
            "resume": self._resume,
            "pause": self._pause,
            "continue": self._go_on,
        }
        if verb not in verbs:
            raise InvalidRequest(f"the panel has no action '{verb}'")
        task_id = str(request.get("task"))
        task = self._manager.store.tasks.by_id(task_id)
        if task is None:
            raise TaskNotFound(f"there is no task {task_id} any more")
        return verbs[verb](task, request)

    def _cancel(self, task: TaskRecord, request: Mapping[str, Any]) -> str:
        if not self._manager.tasks.is_own(task) and not request.get("sure"):
            raise InvalidRequest(f"task {task.id} is another notebook's; confirm to cancel it")
        if not self._manager.changes.cancel(task):
            return formatting.had_ended(task, self._manager.changes.end_left(task))
        return f"task {task.label}: cancellation requested"

    @staticmethod
    def _refuse_imported(task: TaskRecord) -> None:
        if task.is_imported:
            raise InvalidRequest(
                f"task {task.label} was imported; read it with %bg_show {task.number}, and "
                f"%bg_rerun {task.number} --yes runs it"
            )

    def _rerun(self, task: TaskRecord, request: Mapping[str, Any]) -> str:
        self._refuse_imported(task)
        if not task.state.is_final:
            raise InvalidRequest(f"task {task.label} is {task.state.value}; cancel it first")
        # The page may be out of date: a second click must not run the task a second time.
        again = task.provenance.get("rerun_as")
        if again != request.get("again"):
            raise InvalidRequest(f"task {task.label} has been run again meanwhile, as {again}")
        new = self._manager.launcher.rerun(task)
        return f"task {task.label} runs again as {new.number}"

    def _resume(self, task: TaskRecord, _request: Mapping[str, Any]) -> str:
        self._refuse_imported(task)
        if task.state.value != "interrupted" and not task.can_go_on:
            raise InvalidRequest(f"task {task.label} is {task.state.value}, not interrupted")
        new = self._manager.launcher.rerun(task, once=True)
        return f"task {task.label} resumed as {new.number}"

    def _pause(self, task: TaskRecord, _request: Mapping[str, Any]) -> str:
        is_paused = self._manager.queueing.pause(task, keep_slot=False)
        return f"task {task.label} is paused" if is_paused else formatting.had_ended(task, 0)

    def _go_on(self, task: TaskRecord, _request: Mapping[str, Any]) -> str:
        goes_on = self._manager.queueing.go_on(task)
        return f"task {task.label} goes on" if goes_on else formatting.had_ended(task, 0)

    def _clear(self) -> str:
        key = self._manager.session.notebook_key()
        self._manager.store.require_writable()
        cleared = 0 if key is None else self._manager.store.tasks.clear(key)
        took = formatting.counted(cleared, "ended task")
        return f"took {took} off the list; %bg_list --cleared shows"
