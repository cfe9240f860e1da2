"""Loading the extension says what ended while nobody was there, once, and in a few lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from histories import begin_session
from kernels import NotebookKernel, until

from ipytaskpersist.base.records import (
    OutputKind,
    Progress,
    SessionRecord,
    TaskRecord,
    TaskState,
)
from ipytaskpersist.display.greeting_words import as_html, in_words
from ipytaskpersist.display.greetings import Greeting
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask
from ipytaskpersist.text.formatting import short_time

MakeKernel = Callable[..., NotebookKernel]
PATH = "/home/ada/a.ipynb"
HOUR_S = 3600.0


class Past:
    """What happened at a notebook, told in hours before now."""

    def __init__(self, store: TaskStore) -> None:
        self.store = store
        self.now = time.time()

    def visit(
        self, began: float, ended: float | None, reason: str = "kernel shut down", **more: object
    ) -> SessionRecord:
        """A session; `ended` None for one that is open."""
        session = begin_session(self.store, PATH)
        values = {
            "started_at": self.at(began),
            "heartbeat_at": self.at(began),
            "ended_at": None if ended is None else self.at(ended),
            "end_reason": None if ended is None else reason,
            **more,
        }
        self._set("sessions", values, "id", session.id)
        return session

    def task(
        self,
        session: SessionRecord,
        began: float,
        ended: float | None,
        state: TaskState = TaskState.COMPLETED,
        reason: str | None = None,
        name: str = "",
        runner: str = "process",
        printed: bytes = b"",
    ) -> TaskRecord:
        """A task; `ended` None for one that runs."""
        new = NewTask(session.notebook_key, session.id, name, "python", runner, "1")
        task = self.store.tasks.insert(new)
        self._set("tasks", {"created_at": self.at(began)}, "key", task.key)
        self.store.tasks.start(task.key, self.at(began))
        if printed:
            output = NewOutput(task.key, OutputKind.STDOUT, self.at(began), printed, lines=1)
            self.store.outputs.append([output.as_row()])
        if ended is not None:
            code = {TaskState.COMPLETED: 0, TaskState.FAILED: 1}.get(state)
            self.store.tasks.end(task.key, state, reason, code, self.at(ended))
        return task

    def at(self, hours: float) -> float:
        return self.now - hours * HOUR_S

    def _set(self, table: str, values: Mapping[str, object], key: str, row: object) -> None:
        names = ", ".join(f"{name} = ?" for name in values)
        self.store.database.execute(
            f"UPDATE {table} SET {names} WHERE {key} = ?", (*values.values(), row)
        )


@pytest.fixture
def past(store: TaskStore) -> Past:
    return Past(store)


@pytest.fixture
def html() -> list[str]:
    """What was said as HTML, each time that the notebook was loaded."""
    return []


@pytest.fixture
def load(state_dir: Path, html: list[str]) -> Callable[..., list[str]]:
    """Come back to the notebook, and see what is said. Twice is loading anew."""

    def come_back(resumed: Mapping[str, TaskRecord] | None = None) -> list[str]:
        manager = BackgroundTasks(notebook=PATH)
        manager.store.open()
        with closing(manager):
            news = Greeting(manager).news(resumed or {})
            html.append(as_html(news))
            return in_words(news).splitlines()

    return come_back


Load = Callable[..., list[str]]


def test_what_ended_since_the_last_session_is_said_failures_first_below_what_runs(
    past: Past, load: Load, html: list[str]
) -> None:
    last = past.visit(10, 8)
    past.task(last, 9.5, 9, name="seen")
    past.task(last, 9, 7, name="build", printed=b"building\n")
    past.task(last, 9, 6, TaskState.FAILED, "KeyError: 'customer_id'", "load frame")
    past.task(last, 9, 5, name="report")
    past.task(last, 9, 4, TaskState.CANCELLED, "cancelled", "sweep")
    server = past.task(last, 9, None, name="server")
    past.store.tasks.progress(server.key, Progress(1, 4))
    now = datetime.now(UTC)
    since = short_time(datetime.fromtimestamp(past.at(8), UTC), now, UTC)
    assert load() == [
        "While you were away: 2 tasks finished, 1 failed, 1 was cancelled; 1 is still running.",
        "  ● running     6 (server) · 25 %, about 27:00:00 left   %bg_wait 6",
        "  ✕ failed      3 (load frame) · KeyError: 'customer_id'   %bg_show 3",
        "  ⊘ cancelled   5 (sweep) · took 5:00:00   %bg_output 5",
        "  ✓ completed   4 (report) · took 4:00:00   %bg_output 4",
        "  ✓ completed   2 (build) · 1 line, took 2:00:00   %bg_output 2",
    ]
    shown = html[0]
    assert f"since {since} UTC, when this kernel was shut down" in shown
    assert '<section role="group" aria-label="While you were away"' in shown
    rows = ["still running", "failed", "cancelled", "completed"]
    assert sorted(rows, key=shown.index) == rows
    for part in ("<bdi>server</bdi></b>", "#6", "about 27:00:00 left", "%bg_wait 6", "%bg_show 3",
                 "KeyError: &#x27;customer_id&#x27;"):  # fmt: skip
        assert part in shown
    assert last.id[:8] not in shown  # an id says nothing to a person


def test_nothing_new_leaves_the_line_about_earlier_tasks_and_names_what_runs(
    past: Past, load: Load, html: list[str]
) -> None:
    last = past.visit(10, 8)
    past.task(last, 9.5, 9)
    past.task(last, 9, None, name="server")
    assert load() == [
        "2 tasks from before, 1 running, 1 completed. %bg_list shows them",
        "  ● running     2 (server) · 9:00:00   %bg_wait 2",
    ]
    assert "1 running, 1 completed · %bg_list shows them" in html[0]


def test_nothing_is_said_where_there_are_no_tasks(past: Past, load: Load) -> None:
    past.visit(10, 8)
    assert load() == []


def test_many_are_cut_to_a_few_lines(past: Past, load: Load) -> None:
    last = past.visit(10, 8)
    for _each in range(7):
        past.task(last, 9, 7)
    lines = load()
    assert lines[0] == "While you were away: 7 tasks finished."
    assert lines[-1] == "  and 3 more; %bg_list shows them all"
    assert len(lines) == 6


def test_what_names_and_reasons_hold_cannot_steer_the_terminal(past: Past, load: Load) -> None:
    last = past.visit(10, 8)
    past.task(last, 9, 7, TaskState.FAILED, "E: \x1b[2J\n" + "x" * 500, "a\x1b]0;title\x07\nb" * 40)
    header, line = load()
    assert header.endswith("1 task failed.")
    assert line.isprintable()
    assert len(line) < 160


def test_a_task_that_ended_with_its_kernel_is_news(past: Past, load: Load) -> None:
    """A kernel that is shut down interrupts its tasks a moment before it says that it ended."""
    last = past.visit(10, 8)
    past.task(last, 9, 8, TaskState.INTERRUPTED, "kernel shut down", "long", runner="thread")
    past.task(last, 9.5, 9, TaskState.INTERRUPTED, "extension unloaded", runner="thread")
    assert load() == [
        "While you were away: 1 task was interrupted.",
        "  ◐ interrupted 1 (long) · kernel shut down   %bg_output 1 · %bg_resume 1",
    ]


def test_it_is_not_said_again_by_the_session_after_the_next(past: Past, load: Load) -> None:
    first = past.visit(10, 8)
    past.task(first, 9, 8, TaskState.INTERRUPTED, "kernel shut down", "long", runner="thread")
    past.task(first, 9, 7)
    past.visit(6, 5)
    (line,) = load()
    assert "from before" in line


def test_a_kernel_found_dead_now_has_its_tasks_told_whenever_it_died(
    past: Past, load: Load
) -> None:
    """What the store knows of its death is a heartbeat, which may be older than the next visit."""
    dead = past.visit(10, None, boot_id="another boot")
    past.task(dead, 9.9, None, name="lost", runner="thread")
    past.visit(6, 5)
    lines = load()
    assert lines[0] == "While you were away: 1 task was interrupted."
    assert "(lost) · machine rebooted" in lines[1]


def test_what_ended_while_the_latest_session_is_open_was_seen_there(past: Past, load: Load) -> None:
    first = past.visit(10, 8)
    past.visit(7, None)
    past.task(first, 9, 6)
    (line,) = load()
    assert "from before" in line


def test_a_session_that_somebody_left_open_long_ago_hides_nothing(past: Past, load: Load) -> None:
    past.visit(100, None)
    last = past.visit(10, 8)
    past.task(last, 9, 7)
    assert load()[0] == "While you were away: 1 task finished."


def test_a_session_of_a_machine_that_is_gone_ends_with_what_was_heard_of_it(
    past: Past, load: Load
) -> None:
    last = past.visit(10, None, host="container-1")
    past.task(last, 9, 8)
    assert load()[0] == "While you were away: 1 task finished."


def test_a_killed_kernel_was_alive_when_it_last_launched_a_task(past: Past, load: Load) -> None:
    last = past.visit(10, 10, "kernel died")
    past.task(last, 9.9, 9, name="seen")
    past.task(last, 8, 7, name="not seen")
    lines = load()
    assert lines[0] == "While you were away: 1 task finished."
    assert "not seen" in lines[1]


def test_a_script_is_nobody_who_sees_anything(past: Past, load: Load) -> None:
    last = past.visit(10, 8)
    past.task(last, 9, 7)
    past.visit(6, 5, front_end="program")
    assert load()[0] == "While you were away: 1 task finished."


def test_what_was_cleared_or_imported_is_no_news(past: Past, load: Load) -> None:
    last = past.visit(10, 8)
    past.task(last, 9, 7)
    past.store.tasks.clear(last.notebook_key)
    imported = past.task(last, 9, 6)
    past.store.tasks.add_provenance([imported.key], {"imported_at": "2026-01-01"})
    past.visit(9, 7.5)
    (line,) = load()
    assert "1 task from before" in line


def test_an_imported_session_is_no_visit(past: Past, load: Load) -> None:
    last = past.visit(10, 8)
    past.task(last, 9, 7)
    other = past.visit(6, 5)
    imported = past.task(other, 6, 5.5)
    past.store.tasks.add_provenance([imported.key], {"imported_at": "2026-01-01"})
    assert load()[0] == "While you were away: 1 task finished."


def test_loading_anew_tells_only_what_ended_since_it_was_unloaded(past: Past, load: Load) -> None:
    last = past.visit(10, 8)
    past.task(last, 9, 7)
    assert load()[0] == "While you were away: 1 task finished."
    (line,) = load()
    assert "from before" in line
    past.task(last, 1, -1, name="meanwhile")
    assert "(meanwhile)" in load()[1]


def test_what_was_run_again_is_said_in_the_same_lines(past: Past, load: Load) -> None:
    last = past.visit(10, 8)
    lost = past.task(last, 9, 8, TaskState.INTERRUPTED, "kernel died", "long", runner="thread")
    older = past.task(last, 10, 9, TaskState.INTERRUPTED, "kernel died", "old", runner="thread")
    again = replace(past.task(last, 0, None), name="long")
    assert load({lost.id: again, older.id: replace(again, number=4, name="old")}) == [
        "While you were away: 1 task was interrupted; 2 run again; 1 is still running.",
        "  ● running     3 · 0:00   %bg_wait 3",
        "  ◐ interrupted 1 (long) · kernel died · runs again as 3   %bg_output 3",
        "  run again: 2 as 4 (old)",
    ]


def test_a_notebook_says_what_ended_between_two_kernels(
    make_kernel: MakeKernel, store: TaskStore, tmp_path: Path
) -> None:
    """A real command goes on while no kernel is there, and fails."""
    notebook, go = tmp_path / "a.ipynb", tmp_path / "go"
    kernel = make_kernel(notebook=notebook)
    kernel.run(f"%%background --shell build\nuntil test -e {go}; do sleep 0.02; done; exit 3")
    kernel.run("import time as clock")
    kernel.run("%%background train\nwhile True: clock.sleep(0.01)")
    kernel.kill()
    go.touch()
    (task,) = until(
        lambda: [each for each in store.tasks.of_session(_session(store)) if _over(each)]
    )
    kernel.revive()
    first, *lines = kernel.run("%load_ext ipytaskpersist").text.splitlines()
    assert first == "While you were away: 1 task failed, 1 was interrupted."
    assert lines[:2] == [
        "  ✕ failed      1 (build) · exit status 3   %bg_output 1",
        "  ◐ interrupted 2 (train) · kernel died   %bg_output 2 · %bg_resume 2",
    ]
    assert lines[2].startswith("  before %bg_resume 2, run cell [3] first: it makes clock")
    assert task.exit_code == 3
    again = kernel.run("%reload_ext ipytaskpersist").text
    assert "2 tasks from before, 1 failed, 1 interrupted" in again


def _session(store: TaskStore) -> str:
    return store.sessions.select(None)[-1].id


def _over(task: TaskRecord) -> bool:
    return task.state.is_final
