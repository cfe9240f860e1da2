"""What pages cost the Jupyter server, and how soon they show what tasks have printed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks import stores
from benchmarks.bench import Bench
from benchmarks.jupyter_server import Server, running_server, wait_until
from benchmarks.results import Row
from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.records import OutputKind, SessionRecord, TaskRecord, TaskState
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask

PAGES = 20
TASKS = 1_000
RUNNING = 5
CELLS = 200
BIG_BYTES = 50_000_000
TURNS = 3
PRINTS = 50
BETWEEN_S = 0.15
LINE = b"x" * 99 + b"\n"


def page(bench: Bench) -> list[Row]:
    """The server's processor time with pages and without, what opening takes, and the delay."""
    state = bench.new_state()
    bench.say(f"{PAGES} pages of a Jupyter server, {TASKS:,} tasks")
    root = bench.new_file()
    root.mkdir()
    with stores.opened(state) as store:
        session = _session(store, root / "many.ipynb")
        tasks = [_task(store, session, number) for number in range(TASKS)]
        running = tasks[-RUNNING:]
        for task in tasks[:-RUNNING]:
            _print(store, task, LINE * 10)
            store.tasks.end(task.key, TaskState.COMPLETED, None, 0, time.time())
        _fill_big(store, root / "big.ipynb")
        with running_server(state, root) as server:
            return _measured(bench, store, server, running)


def _measured(
    bench: Bench, store: TaskStore, server: Server, running: list[TaskRecord]
) -> list[Row]:
    cells = [_cell(TASKS - number - 1) for number in range(CELLS)]
    alone = [server.share_percent(bench.scale.idle_s)]
    pages = [server.open_page("many.ipynb", cells) for _ in range(PAGES)]
    wait_until(lambda: all(len(each.listed) == TASKS for each in pages), "the lists of all pages")
    live = [server.share_percent(bench.scale.idle_s) for _ in range(TURNS)]
    delays = []
    for turn in range(PRINTS):
        begun = time.monotonic()
        _print(store, running[0], f"{turn}\n".encode())
        wait_until(lambda turn=turn: f"{turn}\n" in pages[0].text(running[0].id), "a print")  # type: ignore[misc]
        delays.append(1000 * (time.monotonic() - begun))
        time.sleep(BETWEEN_S)
    for task in running:
        store.tasks.end(task.key, TaskState.COMPLETED, None, 0, time.time())
    time.sleep(1.0)
    quiet = [server.share_percent(bench.scale.idle_s) for _ in range(TURNS)]
    for each in pages:
        each.close()
    opened = []
    for _ in range(TURNS):
        begun = time.monotonic()
        big = server.open_page("big.ipynb", [_cell(number) for number in range(CELLS)])
        wait_until(lambda big=big: all(len(each) > 1 for each in big.outputs.values()), "all")  # type: ignore[misc]
        opened.append(time.monotonic() - begun)
        big.close()
    about = f"{PAGES} pages that follow {CELLS} cells and list {TASKS:,} tasks"
    return [
        Row("page", "share of a core of the Jupyter server without a page", "%", (*alone,)),
        Row("page", f"the same with {about}, none of which runs", "%", (*quiet,)).at_most(3),
        Row("page", f"the same, {RUNNING} of which run", "%", (*live,)).at_most(3),
        Row("page", "from a task's print until a page is told", "ms", (*delays,)).at_most(100),
        Row(
            "page",
            f"opening a notebook with {CELLS} tasks and {BIG_BYTES // 10**6} MB of output, until a "
            "page has all that it shows",
            "s",
            (*opened,),
        ),
    ]


def _session(store: TaskStore, notebook: Path) -> SessionRecord:
    process = ProcessIdentity.own()
    identity = SessionIdentity(
        f"{notebook.stem}-session", "kernel", str(notebook), True, None, process
    )
    return store.sessions.begin(identity)


def _cell(number: int) -> dict[str, Any]:
    return {"id": f"cell-{number}", "source": "%%background\nfit()"}


def _task(store: TaskStore, session: SessionRecord, number: int) -> TaskRecord:
    """A running task, launched by the cell of this number."""
    task = store.tasks.insert(
        NewTask(
            session.notebook_key, session.id, f"fit-{number}", "python", "thread", "fit()",
            cell_id=f"cell-{number}",
        )
    )  # fmt: skip
    store.tasks.start(task.key, time.time())
    return task


def _print(store: TaskStore, task: TaskRecord, data: bytes) -> None:
    before = store.outputs.stream_size(task.key, OutputKind.STDOUT)
    output = NewOutput(
        task.key, OutputKind.STDOUT, time.time(), data, before.size_bytes, before.lines,
        data.count(b"\n"), "fit",
    )  # fmt: skip
    store.outputs.append([output.as_row()])


def _fill_big(store: TaskStore, notebook: Path) -> None:
    session = _session(store, notebook)
    for number in range(CELLS):
        task = _task(store, session, number)
        _print(store, task, LINE * (BIG_BYTES // CELLS // len(LINE)))
        store.tasks.end(task.key, TaskState.COMPLETED, None, 0, time.time())
