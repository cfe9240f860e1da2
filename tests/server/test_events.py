"""A page that stays open is told what is new, at once, and costs nothing while nothing is."""

from __future__ import annotations

import socket
import sqlite3
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from histories import add_task, begin_session, open_store
from kernels import until
from plain_servers import Events, PlainServer
from programs import run_command, run_python

from ipytaskpersist.base import output_marks
from ipytaskpersist.base.records import OutputKind, TaskState
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore

WAIT_S = 60
CELL = "%%background --shell\n"


@pytest.fixture
def kept(server: PlainServer, directory: Path) -> Iterator[TaskStore]:
    with closing(open_store(directory)) as store:
        yield store


def launch(server: PlainServer, directory: Path, command: str, name: str) -> str:
    """Run a shell command in the background, as a cell of a notebook; return the task's id."""
    made = run_python(
        "import sys, ipytaskpersist as bg\nprint(bg.background(sys.argv[1], 'x', shell=True).id)",
        directory, command, env={"IPYTASKPERSIST_NOTEBOOK": str(server.root / name)},
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def write(store: TaskStore, key: int, text: str) -> None:
    data = text.encode()
    size = store.outputs.stream_size(key, OutputKind.STDOUT)
    lines, last_line = text.count("\n"), text.rstrip("\n") or None
    row = NewOutput(
        key, OutputKind.STDOUT, time.time(), data, size.size_bytes, size.lines, lines, last_line
    )
    store.outputs.append([row.as_row()])


def state_of(page: Events, task: str) -> str:
    """What the card of a task says."""
    outputs = page.outputs.get(task) or [{"data": {"text/plain": ""}}]
    return str(outputs[0]["data"]["text/plain"])


def test_a_page_shows_a_running_task_as_if_it_had_always_been_open(
    server: PlainServer, directory: Path, tmp_path: Path
) -> None:
    """From its launch to its end, also after the connection or the server is gone for a while."""
    notebook, go = "a.ipynb", tmp_path / "go"
    early = server.events(paths=[notebook], seen=0, list={"notebook": notebook})
    wait = f"until [ -e {go} ]; do sleep 0.05; done"
    body = f"for n in 1 2 3; do echo line $n; sleep 0.2; done; echo a >&2; {wait}; echo end; exit 3"
    task = launch(server, directory, body, notebook)
    until(lambda: early.launched == [task], WAIT_S, "the news of a launch")
    until(lambda: task in early.tasks, WAIT_S, "the task on the list")
    cell = {"id": "c", "source": CELL + body}
    page = server.open_page(notebook, cell)
    page_of_list = server.events(list={"notebook": None})
    until(lambda: page.text(task) == "line 1\nline 2\nline 3\na\n", WAIT_S, "what it has printed")
    assert "running" in state_of(page, task)
    assert output_marks.task_of(page.outputs[task][0], "card") == task

    clocks = {state_of(page, task)}
    until(lambda: clocks.add(state_of(page, task)) or len(clocks) > 2, WAIT_S, "a clock that moves")

    page = server.come_back(page, paths=[notebook])
    server.stop()
    server.start()
    page = server.come_back(page, paths=[notebook], list={"notebook": None})
    go.touch()
    until(lambda: "failed" in state_of(page, task), WAIT_S, "the end")
    assert page.text(task) == "line 1\nline 2\nline 3\na\nend\n"
    kinds = [out.get("name", out["output_type"]) for out in page.outputs[task]]
    assert kinds == ["display_data", "stdout", "stderr", "stdout"]
    assert page.outputs[task] == server.cells(notebook, cell)["cells"]["c"]["outputs"]
    until(lambda: page.tasks.get(task, {}).get("state") == "failed", WAIT_S, "the list")
    assert page.tasks[task]["glyph"] == "✕"
    assert page_of_list.launched == []

    quiet = server.come_back(page, paths=[notebook])
    other = launch(server, directory, "true", notebook)
    until(lambda: quiet.launched == [other], WAIT_S, "another task")
    assert [message for message in quiet.messages if "edits" in message] == [], "it had all"


def test_what_is_launched_between_two_requests_is_not_missed(
    server: PlainServer, kept: TaskStore
) -> None:
    session = begin_session(kept, str(server.root / "between.ipynb"))
    seen = server.cells("between.ipynb", {"id": "c", "source": CELL})["seen"]
    task = add_task(kept, session, cell_id="c")
    other = add_task(kept, begin_session(kept, str(server.root / "folder" / "other.ipynb")))
    page = server.events(paths=["between.ipynb"], seen=seen)
    both = server.events(paths=["between.ipynb", "folder/other.ipynb"], seen=seen)
    until(lambda: page.launched == [task.id], WAIT_S, "the news")
    until(lambda: both.launched == [task.id, other.id], WAIT_S, "the news of both")
    assert both.launched_in == ["between.ipynb", "folder/other.ipynb"]


def test_a_print_is_on_the_page_at_once(server: PlainServer, kept: TaskStore) -> None:
    session = begin_session(kept, str(server.root / "print.ipynb"))
    task = add_task(kept, session, state=TaskState.RUNNING, printed=b"", cell_id="c")
    page = server.open_page("print.ipynb", {"id": "c", "source": "%%background\nprint(1)"})
    took = []
    for turn in range(15):
        begun = time.monotonic()
        write(kept, task.key, f"{turn}\n")
        while f"{turn}\n" not in page.text(task.id):
            assert time.monotonic() - begun < WAIT_S
            time.sleep(0.002)
        took.append(time.monotonic() - begun)
        time.sleep(0.15)  # as a task does that has something to do
    # The goal is 0.1 s, which the benchmark measures on a machine that does nothing else.
    assert statistics.median(took) < 0.3, took


def test_a_list_is_sent_once_and_then_what_has_changed(
    server: PlainServer, kept: TaskStore
) -> None:
    session = begin_session(kept, str(server.root / "list.ipynb"))
    tasks = [add_task(kept, session) for _ in range(450)]
    running = add_task(kept, session, state=TaskState.RUNNING, printed=b"")
    page = server.events(list={"notebook": "list.ipynb"})
    until(lambda: len(page.tasks) == 451, WAIT_S, "the list")
    assert max(len(m.get("tasks", m.get("changed", ()))) for m in page.messages) <= 200
    assert page.messages[0]["running"] == 1
    page.messages.clear()
    begun = time.monotonic()
    while time.monotonic() - begun < 1.5:
        write(kept, running.key, f"{time.monotonic()}\n")
        time.sleep(0.01)
    write(kept, running.key, "x\n")
    until(lambda: page.tasks[running.id]["line"] == "x", WAIT_S, "what it printed")
    assert 1 <= len(page.messages) <= 5, "twice a second"
    assert all([row["id"] for row in m["changed"]] == [running.id] for m in page.messages)
    kept.database.execute("DELETE FROM tasks WHERE key = ?", (tasks[0].key,))
    kept.tasks.end(running.key, TaskState.COMPLETED, None, 0, time.time())
    until(lambda: tasks[0].id not in page.tasks, WAIT_S, "the task off the list")
    until(lambda: page.messages[-1]["running"] == 0, WAIT_S, "the number of running tasks")
    latest = server.events(list={"notebook": "list.ipynb", "limit": 3})
    until(lambda: len(latest.tasks) == 3, WAIT_S, "the latest three")
    new = add_task(kept, session)
    until(lambda: new.id in latest.tasks, WAIT_S, "a new one")
    assert len(latest.tasks) == 3
    kept.tasks.clear(session.notebook_key)
    until(lambda: page.tasks == latest.tasks == {}, WAIT_S, "an empty list")


def test_a_page_that_does_not_read_costs_no_memory_and_holds_up_no_other(
    server: PlainServer, kept: TaskStore
) -> None:
    session = begin_session(kept, str(server.root / "slow.ipynb"))
    task = add_task(kept, session, state=TaskState.RUNNING, printed=b"", cell_id="c")
    cell = {"id": "c", "source": "%%background\nprint(1)"}
    slow = socket.create_connection(("127.0.0.1", server.port))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    body = f'{{"paths": ["slow.ipynb"], "follow": {{"{task.id}": "0"}}}}'
    slow.sendall(
        f"POST /user/ada/ipytaskpersist/api/events HTTP/1.1\r\nHost: localhost:{server.port}\r\n"
        f"Authorization: token {server.token}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    page = server.open_page("slow.ipynb", cell)
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    line = "x" * 99 + "\n"
    for turn in range(60):
        write(kept, task.key, line * 10_000 + f"turn {turn}\n")
        until(lambda turn=turn: f"turn {turn}\n" in page.text(task.id), WAIT_S, "the other page")  # type: ignore[misc]
    assert process.memory_info().rss - before < 60_000_000, "of 60 MB that were written"
    slow.close()


def threads_of(server: PlainServer) -> int:
    return psutil.Process(server.pid).num_threads()


def test_pages_that_go_away_leave_nothing_behind_and_quiet_ones_cost_nothing(
    server: PlainServer, kept: TaskStore
) -> None:
    session = begin_session(kept, str(server.root / "quiet.ipynb"))
    for _ in range(5):
        add_task(kept, session, state=TaskState.COMPLETED, cell_id="c")
    cell = {"id": "c", "source": "%%background\nprint(1)"}
    pages = [
        server.open_page("quiet.ipynb", cell, list={"notebook": "quiet.ipynb"}) for _ in range(20)
    ]
    until(lambda: all(len(page.tasks) == 5 for page in pages), WAIT_S, "all lists")
    process = psutil.Process(server.pid)
    files, threads = process.num_fds(), process.num_threads()
    begun, used = time.monotonic(), sum(process.cpu_times()[:2])
    time.sleep(3)
    share = (sum(process.cpu_times()[:2]) - used) / (time.monotonic() - begun)
    assert share < 0.1, "the benchmark measures it more closely"
    for page in pages:
        page.close()
    until(lambda: process.num_fds() <= files - 20, WAIT_S, "closed connections")
    assert process.num_threads() <= threads
    again = server.open_page("quiet.ipynb", cell)
    task = add_task(kept, session, cell_id="c")
    until(lambda: again.launched == [task.id], WAIT_S, "news, after a time without any page")


def test_a_dead_kernel_s_tasks_are_interrupted_on_the_page(
    server: PlainServer, directory: Path
) -> None:
    """Nobody types a command, and no other process looks."""
    made = run_python(
        "import os, signal, sys\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "shell.run_line_magic('load_ext', 'ipytaskpersist')\n"
        "import ipytaskpersist as bg\n"
        "task = bg.background('import time; time.sleep(600)')\n"
        "print(task.id, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        directory,
        env={"IPYTASKPERSIST_NOTEBOOK": str(server.root / "dead.ipynb")},
    )
    task = made.stdout.strip()
    page = server.events(paths=["dead.ipynb"], follow={task: "0"})
    until(lambda: "interrupted" in state_of(page, task), WAIT_S, "the end of the task")


# Stores that cannot be read.


def test_a_store_may_come_late_be_locked_damaged_or_replaced(tmp_path: Path) -> None:
    """The page is told in one line what hinders, and goes on when nothing does any more."""
    directory = tmp_path / "state"
    with PlainServer(tmp_path / "server", directory) as server:
        cell = {"id": "c", "source": "%%background\nprint(1)"}
        assert server.cells("a.ipynb", cell) == {"cells": {}, "seen": 0}
        assert server.listed() == {"tasks": [], "running": 0}
        assert not directory.exists(), "no store is made by looking"
        page = server.events(paths=["a.ipynb"], seen=0, list={"notebook": "a.ipynb"})
        task = _first_task(directory, server.root / "a.ipynb")
        until(lambda: page.launched == [task], WAIT_S, "the first task of all")
        until(lambda: task in page.tasks, WAIT_S, "the list")

        _damage(directory / "tasks.db")
        answers = {server.ask("POST", "notebook", _asked("a.ipynb", cell)).status}
        until(lambda: page.problem, WAIT_S, "the problem")
        assert answers <= {200, 503}
        assert "\n" not in str(page.problem)
        until(lambda: page.problem is None, WAIT_S, "a repaired store")
        until(
            lambda: server.ask("POST", "notebook", _asked("a.ipynb", cell)).status == 200,
            WAIT_S, "an answer",
        )  # fmt: skip
        assert run_command(directory, "list", "--all").returncode == 0
        page = server.events(paths=["a.ipynb"], seen=0)
        other = _first_task(directory, server.root / "a.ipynb")
        until(lambda: other in page.launched, WAIT_S, "a task of the repaired store")

        with closing(sqlite3.connect(directory / "tasks.db", isolation_level=None)) as other_one:
            other_one.execute("BEGIN IMMEDIATE")
            assert server.ask("POST", "notebook", _asked("a.ipynb", cell)).status == 200
    assert "Traceback" not in server.log


def _asked(path: str, *cells: Any) -> Any:
    return {"path": path, "cells": cells}


def _first_task(directory: Path, notebook: Path) -> str:
    with closing(open_store(directory)) as store:
        return add_task(store, begin_session(store, str(notebook)), cell_id="c").id


def _damage(store: Path) -> None:
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(store.read_bytes())
    content[4096 * 2 :] = b"\xa5" * (len(content) - 4096 * 2)
    store.write_bytes(content)
