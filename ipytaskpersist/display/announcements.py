"""Report ended tasks before the next prompt of IPython's terminal, as a shell reports its jobs.

Nothing is ever printed into a line that is being typed. A notebook has cards instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ipytaskpersist.base.legible import encodable, kept_apart, legible
from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.display import console
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store import problems
from ipytaskpersist.text import formatting

AT_MOST = 10
"""Number of ends that are reported one by one."""
LEAST_REASON = 12


class Announcements:
    """The ended tasks of this notebook, each reported once."""

    def __init__(self, manager: BackgroundTasks) -> None:
        self._manager = manager
        self._live: set[int] = set()
        self._latest = 0
        """Highest key at the last check."""
        self._told: set[str] = set()
        self._begun_at = time.time()
        self._mark: tuple[int, int] | None = None

    def install(self, shell: Any, patches: Patches) -> None:
        """Announce ends before each prompt of this shell, simple or not, from now on."""
        with suppress(BackgroundError):
            self._begin()
        patches.replace(shell, "prompt_for_code", self._announcing)

    def _announcing(self, plain: Callable[[], Any]) -> Callable[[], Any]:
        def prompt_for_code() -> Any:
            self.announce()
            return plain()

        return prompt_for_code

    def announce(self) -> None:
        """Print what has ended since the last time, unless a command has shown it."""
        # The next command reports errors: the prompt is no place for them.
        try:
            ended = self._ended()
            if ended:
                print(encodable(in_words(ended), sys.stdout))
        except BackgroundError:
            pass
        except Exception as error:  # at the prompt it would end the whole shell
            what = f"the ends of tasks could not be announced ({type(error).__name__}: {error})"
            problems.record(self._manager.directory, what)

    def _begin(self) -> None:
        """Treat existing tasks as known. Without a store there are none."""
        notebook_key = self._manager.session.notebook_key()
        if notebook_key is not None:
            tasks = self._manager.store.tasks
            self._latest, self._live = tasks.latest_key(), tasks.live(notebook_key)

    def _ended(self) -> list[TaskRecord]:
        """Return the tasks that have ended since the last check; fast if nothing has changed."""
        manager = self._manager
        shown, manager.ends_shown = manager.ends_shown, set()
        notebook_key = manager.session.notebook_key()
        if notebook_key is None:
            return []
        tasks, mark = manager.store.tasks, manager.store.database.change_mark
        if mark == self._mark:
            return []
        found = tasks.watched(notebook_key, [*self._live], self._latest)
        self._mark = mark
        self._latest = max([self._latest, *found])
        self._live = {key for key, state in found.items() if not state.is_final}
        records = map(tasks.get, found.keys() - self._live)
        ended = [task for task in records if task is not None and self._is_news(task)]
        self._told.update(task.id for task in ended)
        return [task for task in ended if task.key not in shown]

    def _is_news(self, task: TaskRecord) -> bool:
        """Return False for tasks that another terminal ran itself, or that only came back."""
        has_just_ended = task.ended_at is not None and task.ended_at.timestamp() >= self._begun_at
        is_own = task.session == self._manager.session.identity.id
        return (
            has_just_ended
            and (is_own or task.runner == "process")
            and task.id not in self._told
            and not task.is_imported
        )


def in_words(ended: Sequence[TaskRecord]) -> str:
    """Return one line for each task, as wide as the terminal."""
    from ipytaskpersist.display.drawing import Text
    from ipytaskpersist.display.tables import render

    shown = sorted(ended, key=lambda task: task.ended_at or task.created_at)[-AT_MOST:]
    lines = [_line(task, console.width(sys.stdout)) for task in shown]
    more = len(ended) - len(shown)
    if more:
        lines.insert(0, Text(f"{more:,} other tasks have ended; %bg_list shows them"))
    return render(*lines)


def _line(task: TaskRecord, width: int) -> Any:
    """``✓ completed · 3 (train) · 12:41   %bg_output 3``, with the reason if it did not."""
    from ipytaskpersist.display.drawing import Text, cell_len
    from ipytaskpersist.display.tables import fit

    look = formatting.STATE_STYLES[task.state]
    commands = f"   {formatting.next_commands(task)}"
    label = kept_apart(fit(legible(task.label), max(8, width // 3)))
    parts = [
        "",
        label,
        *([formatting.duration(task.elapsed_s(formatting.utc_now()))] * bool(task.started_at)),
    ]
    line = Text(f"{look.glyph} {task.state.value}", style=look.style, no_wrap=True)
    line.append(" · ".join(parts), "default")
    left = width - line.cell_len
    reason = "" if task.state is TaskState.COMPLETED else legible(task.reason or "")
    if reason and reason != task.state.value:
        room = left - len(commands) - 3
        room = room if room >= min(LEAST_REASON, cell_len(reason)) else left - 3
        if room >= min(LEAST_REASON, cell_len(reason)):
            line.append(f" · {kept_apart(fit(reason, room))}", "default")
    if line.cell_len + len(commands) <= width:
        line.append(commands, "dim")
    line.overflow = "ellipsis"
    return line
