"""What `list` shows."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from histories import add_task, begin_session
from programs import run_command
from typed import Notebook, Run

from ipytaskpersist.base.records import TaskState
from ipytaskpersist.store.task_store import TaskStore


def test_a_list_is_narrowed_by_state_session_and_number(notebook: Notebook) -> None:
    good, bad = notebook.finish("1"), notebook.finish("1 / 0")

    def numbers(*options: str) -> list[int]:
        tasks = notebook.underscored("list", "--json", *options).json()["tasks"]
        return [task["number"] for task in tasks]

    assert numbers()[-2:] == [good["number"], bad["number"]]
    assert numbers("--limit", "1") == [bad["number"]]
    assert numbers("--state", "failed", "--limit", "1") == [bad["number"]]
    assert numbers("--state", "completed")[-1] == good["number"]
    either = numbers("--state", "completed", "--state", "failed")
    assert either[-2:] == [good["number"], bad["number"]]
    assert numbers("--session", good["session"][:8]) == numbers("--cleared")


def test_times_in_json_are_iso_8601_in_utc_and_durations_are_numbers(notebook: Notebook) -> None:
    task = notebook.finish("import time\ntime.sleep(0.2)")
    created, started, ended = (
        datetime.fromisoformat(task[key]) for key in ("created_at", "started_at", "ended_at")
    )
    assert {at.utcoffset() for at in (created, started, ended)} == {timedelta(0)}
    assert created <= started <= ended <= datetime.now(UTC)
    assert task["elapsed_s"] == pytest.approx((ended - started).total_seconds())
    assert 0.2 <= task["elapsed_s"] < 30
    with notebook.running() as live:
        assert (live["ended_at"], live["exit_code"], live["reason"]) == (None, None, None)
        assert isinstance(notebook.show()["elapsed_s"], float)


def test_a_table_shows_what_is_live_and_the_newest_and_says_what_it_leaves_out(
    store: TaskStore, state_dir: Path
) -> None:
    session = begin_session(store, "/a.ipynb")
    add_task(store, session, name="live", state=TaskState.PENDING)
    for number in range(1, 36):
        add_task(store, session, name=f"task-{number}", printed=b"")
    short, long = (
        run_command(state_dir, "list", *options, notebook="/a.ipynb").stdout
        for options in ([], ["--limit", "40"])
    )
    assert short.splitlines()[1].split()[:2] == ["1", "live"]
    assert short.splitlines()[2].split()[:2] == ["36", "task-35"]
    assert "5 older tasks are not shown; --limit 100 shows them" in short
    assert "task-6 " in short
    assert "task-5 " not in short
    assert "task-5 " in long
    assert "not shown" not in long
    listed = run_command(state_dir, "list", "--limit", "1", "--json", notebook="/a.ipynb").stdout
    assert [task["name"] for task in json.loads(listed)["tasks"]] == ["live", "task-35"]


def test_an_empty_list_says_so(state_dir: Path) -> None:
    answer = run_command(state_dir, "list")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "no background tasks\n", "")
    assert not state_dir.exists()


def test_a_tables_lines_are_not_broken_by_what_tasks_print(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("print('a\\tb\\x1b[31mred\\x1b[0m \\x07\\x9b31m' + 'x' * 500)", "wild")
    begins = [str(task["number"]), "wild"]
    lines = [line for line in run("list").text.splitlines() if line.split()[:2] == begins]
    assert len(lines) == 1
    card = run("wait", "wild").text
    assert not set(lines[0] + card) & {"\x1b", "\x07", "\x9b", "\t"}
