"""The live panel as a page gets it from a real kernel: what it is told, and what its buttons do."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import histories
import ipykernel
import pytest
from kernels import Cell, Message, NotebookKernel, until
from programs import run_command
from stores import HOSTILE, PIXEL

from ipytaskpersist.base.paths import SERVED
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.output.counts import OutputCounter
from ipytaskpersist.panel import rows, selected
from ipytaskpersist.panel.reach import reach_pages
from ipytaskpersist.panel.selected import Tail, stream_lines
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.task_store import TaskStore

HAS_SUBSHELLS = ipykernel.version_info[:2] >= (7, 1)
ABC = '<div class="stdout">abc</div>'
ENDLESS = "import time\nwhile True: time.sleep(0.01)"


class Notebook(NotebookKernel):
    """A notebook with a panel in it, as its page: it keeps what the kernel says to its widgets."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.said_to: dict[str, list[Message]] = {}
        """What the kernel has said to each panel, as far as no test has taken it."""
        self.model = ""
        self.first: Message = {}

    def _take_output(self, cell: Cell | None, message: Message) -> None:
        content = message["content"]
        if message["msg_type"] == "comm_open":
            state = content["data"]["state"]
            if "snapshot_name" in state:  # a panel
                self.model, self.first = content["comm_id"], json.loads(state["first"])
                self.said_to[self.model] = []
        elif message["msg_type"] == "comm_msg" and content["comm_id"] in self.said_to:
            said = content["data"].get("content")  # none where a trait is another
            self.said_to[content["comm_id"]].extend([said] if said else [])
        super()._take_output(cell, message)

    def open_panel(self, line: str = "%bg_panel") -> Cell:
        """Run the command, and say that the page shows the panel."""
        cell = self.run(line)
        assert self.model, cell.text
        self.send({"kind": "open"})
        self.next("all")
        return cell

    def send(self, content: dict[str, Any], subshell: str | None = None) -> None:
        """Say something to the panel, as its page does."""
        data = {"method": "custom", "content": {"view": "a page", **content}}
        session = self._connected.session
        message = session.msg("comm_msg", {"comm_id": self.model, "data": data})
        if subshell is not None:
            message["header"]["subshell_id"] = subshell
        self._connected.shell_channel.send(message)

    def next(
        self, kind: str, wanted: Callable[[Message], object] = lambda _message: True
    ) -> Message:
        """The first message of this kind that is as wanted, from now on and until now."""

        said = self.said_to[self.model]

        def found() -> Message | None:
            return next((m for m in said if m["kind"] == kind and wanted(m)), None)

        message = self.take_until(found, 20, f"a message '{kind}'")
        assert message is not None
        del said[: said.index(message) + 1]
        return message

    def act(
        self, verb: str, task: str = "", *, subshell: str | None = None, **more: Any
    ) -> Message:
        """Press a button, and wait for the answer."""
        ask = more.pop("ask", f"{verb} {task} {time.monotonic()}")
        self.send({"kind": "do", "ask": ask, "verb": verb, "task": task, **more}, subshell)
        return self.next("answer", lambda answer: answer["ask"] == ask)

    def row(self, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first change of a row that is as wanted."""
        message = self.next("changes", lambda said: any(map(wanted, said["tasks"])))
        return next(row for row in message["tasks"] if wanted(row))

    def new_subshell(self) -> str:
        """A subshell of the kernel, as JupyterLab makes one for widgets."""
        channel = self._connected.control_channel
        channel.send(self._connected.session.msg("create_subshell_request", {}))
        while True:
            reply = channel.get_msg(timeout=20)
            if reply["msg_type"] == "create_subshell_reply":
                return str(reply["content"]["subshell_id"])


@pytest.fixture
def notebook(state_dir: Path) -> Iterator[Notebook]:
    """A kernel with the extension loaded, and a page that can show a panel."""
    with Notebook(state_dir) as kernel:
        kernel.run("%load_ext ipytaskpersist")
        yield kernel


# What a page is told.


def test_a_panel_begins_with_the_tasks_and_tells_what_becomes_of_them(notebook: Notebook) -> None:
    notebook.run("import threading; go = threading.Event()")
    notebook.run(f"%%background train\ngo.wait()\nprint('ready')\n{ENDLESS}")
    notebook.open_panel()
    assert [row["name"] for row in notebook.first["tasks"]] == ["train"]
    notebook.run("go.set()")
    assert notebook.row(lambda row: row["line"] == "ready")["state"] == "running"
    notebook.run("%%background other\nprint('done')")
    assert notebook.row(lambda row: row["name"] == "other" and row["ended"])["line"] == "done"
    notebook.run("%bg_cancel train")
    assert notebook.row(lambda row: row["state"] == "cancelled")["name"] == "train"


def test_a_task_of_another_process_appears_where_all_notebooks_are_shown(
    notebook: Notebook, store: TaskStore
) -> None:
    notebook.open_panel()
    session = histories.begin_session(store, "/home/ada/other.ipynb")
    histories.add_task(store, session, name="elsewhere")
    notebook.send({"kind": "scope", "everywhere": True})
    (row,) = notebook.next("all", lambda said: said["everywhere"])["tasks"]
    assert (row["name"], row["notebook"], row["own"]) == ("elsewhere", "other.ipynb", False)
    histories.add_task(store, session, name="later")
    notebook.row(lambda row: row["name"] == "later")


def test_only_what_has_changed_is_told(notebook: Notebook, store: TaskStore) -> None:
    notebook.run("%%background first\npass")
    session = store.sessions.select(None)[0]
    histories.add_tasks(store, session, 40, name="old")
    notebook.open_panel()
    notebook.run("%%background second\nprint('printed')")
    message = notebook.next("changes", lambda said: any(row["ended"] for row in said["tasks"]))
    assert {row["name"] for row in message["tasks"]} == {"second"}


def test_deleted_and_cleared_tasks_leave_the_list(notebook: Notebook) -> None:
    notebook.run("%%background one\npass")
    notebook.run("%%background two\npass")
    notebook.run("%bg_wait one two")
    notebook.open_panel()
    ids = {row["name"]: row["id"] for row in notebook.first["tasks"]}
    notebook.run("%bg_delete one --yes")
    assert notebook.next("changes", lambda said: said["gone"])["gone"] == [ids["one"]]
    assert "1 ended task" in notebook.act("clear")["text"]
    assert notebook.next("changes", lambda said: said["gone"])["gone"] == [ids["two"]]


def test_the_selected_task_s_output_arrives_and_goes_on(notebook: Notebook) -> None:
    notebook.run("import threading; go = threading.Event()")
    notebook.run("%%background\nprint('\\x1b[31mone\\x1b[0m')\ngo.wait()\nprint('two')")
    notebook.open_panel()
    notebook.send({"kind": "select", "task": notebook.first["tasks"][0]["id"]})
    message = notebook.next("output", lambda said: said.get("add"))
    assert message["add"] == ['<div class="stdout"><span class="red">one</span></div>']
    assert dict(message["facts"])["runs in"] == "a thread of this kernel"
    notebook.run("go.set()")
    message = notebook.next("output", lambda said: said.get("add"))
    assert (message["drop"], message["keep"]) == (0, 1)
    assert message["add"] == ['<div class="stdout">two</div>']


def test_a_heartbeat_comes_while_a_cell_runs_and_a_restart_ends_it(notebook: Notebook) -> None:
    notebook.open_panel()
    cell = notebook.start("import time\nfor _ in range(100_000): time.sleep(0.01)")
    notebook.next("beat")
    notebook.next("beat")
    notebook.interrupt()
    cell.wait(check=False)
    notebook.restart()
    old = notebook.said_to[notebook.model]
    old.clear()
    notebook.run("%load_ext ipytaskpersist")
    hear_two_beats_of_another_panel(notebook)
    assert old == []  # a page that hears nothing knows that its kernel is gone


def hear_two_beats_of_another_panel(notebook: Notebook) -> None:
    notebook.open_panel()
    notebook.next("beat")
    notebook.next("beat")


def test_a_panel_that_nobody_shows_is_told_nothing(notebook: Notebook) -> None:
    notebook.open_panel()
    notebook.next("beat")
    notebook.send({"kind": "close"})
    notebook.run("pass")  # the message before it has been handled
    old = notebook.said_to[notebook.model]
    old.clear()
    notebook.run("%%background\npass")
    hear_two_beats_of_another_panel(notebook)
    assert old == []


def test_unloading_the_extension_ends_what_feeds_panels(notebook: Notebook) -> None:
    notebook.open_panel()
    names = "import threading; print([thread.name for thread in threading.enumerate()])"
    assert "ipytaskpersist-panel" in notebook.run(names).text
    notebook.run("%unload_ext ipytaskpersist")
    assert "ipytaskpersist-panel" not in notebook.run(names).text


def test_words_are_found_in_the_whole_output(notebook: Notebook) -> None:
    notebook.run("%%background\nprint('a needle')\nfor _ in range(500): print('hay')")
    notebook.run("%bg_wait -1")
    notebook.open_panel()
    notebook.send({"kind": "search", "text": "need"})
    assert notebook.next("found")["tasks"] == [notebook.first["tasks"][0]["id"]]


# The buttons.


def test_cancel_rerun_and_resume_answer_and_do_what_the_commands_do(notebook: Notebook) -> None:
    notebook.run(f"%%background train\n{ENDLESS}")
    notebook.open_panel()
    task = notebook.first["tasks"][0]["id"]
    assert notebook.act("cancel", task)["ok"]
    assert notebook.row(lambda row: row["state"] == "cancelled")["action"] == "rerun"
    answer = notebook.act("rerun", task, again=None)
    assert answer["text"] == "task 1 (train) runs again as 2"
    assert notebook.row(lambda row: row["number"] == 2 and row["state"] == "running")
    assert not notebook.act("resume", task)["ok"]
    assert "not interrupted" in notebook.act("resume", task)["text"]


def test_a_process_is_paused_and_goes_on(notebook: Notebook) -> None:
    notebook.run("%%background --shell sleeper\necho begun; sleep 600")
    until(lambda: "begun\n" in notebook.run("%bg_output --raw").text, 20, "the task's first line")
    notebook.open_panel()
    (row,) = notebook.first["tasks"]
    assert (row["state"], row["pause"]) == ("running", "pause")
    assert notebook.act("pause", row["id"])["text"] == "task 1 (sleeper) is paused"
    paused = notebook.row(lambda row: "paused since" in row["line"])
    assert paused["pause"] == "continue"
    assert notebook.act("continue", row["id"])["text"] == "task 1 (sleeper) goes on"
    notebook.row(lambda row: row["pause"] == "pause" and "paused" not in row["line"])
    assert notebook.act("cancel", row["id"])["ok"]


def test_a_request_is_done_once_however_often_it_arrives(notebook: Notebook) -> None:
    notebook.run("%%background train\npass")
    notebook.run("%bg_wait train")
    notebook.open_panel()
    task = notebook.first["tasks"][0]["id"]
    first = notebook.act("rerun", task, ask="the same", again=None)
    assert notebook.act("rerun", task, ask="the same", again=None) == first
    # A second click on the same row, made before the page knew of the first one's effect.
    late = notebook.act("rerun", task, again=None)
    assert not late["ok"]
    assert "has been run again meanwhile" in late["text"]
    assert json.loads(notebook.run("%bg_list --json").text)["count"] == 2


def test_another_notebook_s_task_is_cancelled_only_when_that_is_confirmed(
    notebook: Notebook, store: TaskStore
) -> None:
    session = histories.begin_session(store, "/home/ada/other.ipynb")
    task = histories.add_task(store, session, name="far", state=TaskState.RUNNING)
    notebook.open_panel("%bg_panel --all")
    assert "confirm" in notebook.act("cancel", task.id)["text"]
    assert notebook.act("cancel", task.id, sure=True)["ok"]
    found = store.tasks.get(task.key)
    assert found is not None
    assert found.cancel_requested_at is not None


def test_what_cannot_be_done_is_said_in_one_line(notebook: Notebook) -> None:
    notebook.open_panel()
    answer = notebook.act("rerun", "00000000-1")
    assert (answer["ok"], answer["text"]) == (False, "there is no task 00000000-1 any more")
    assert "no action 'format'" in notebook.act("format", "00000000-1")["text"]


@pytest.mark.skipif(not HAS_SUBSHELLS, reason="this ipykernel has no subshells")
def test_buttons_work_while_a_foreground_cell_runs_and_leave_it_alone(notebook: Notebook) -> None:
    notebook.run(f"%%background train\n{ENDLESS}")
    notebook.open_panel()
    task = notebook.first["tasks"][0]["id"]
    subshell = notebook.new_subshell()
    # Among others the running cell's figures are shown when a cell is said to have ended.
    notebook.run(
        "import threading, time, pathlib; printed = threading.Event(); fired = []\n"
        "get_ipython().events.register('post_execute', lambda: fired.append(1))"
    )
    cell = notebook.start(
        "def late():\n"
        "    while not pathlib.Path('go').exists(): time.sleep(0.01)\n"
        "    print('from a thread'); printed.set()\n"
        "threading.Thread(target=late).start()\n"
        "print('begun', flush=True); fired.clear()\n"
        "while not printed.is_set(): time.sleep(0.01)\n"
        "print('the end', fired)"
    )
    notebook.take_until(lambda: "begun" in cell.text, 20, "the cell to run")
    assert notebook.act("cancel", task, subshell=subshell)["ok"]
    notebook.row(lambda row: row["state"] == "cancelled")
    again = notebook.act("rerun", task, subshell=subshell, again=None)
    assert again["text"] == "task 1 (train) runs again as 2"
    notebook.row(lambda row: row["number"] == 2 and row["state"] == "running")
    assert not cell.done
    (notebook.cwd / "go").touch()
    cell.wait()
    assert [out["output_type"] for out in cell.outputs] == ["stream"]
    assert cell.text.splitlines() == ["begun", "from a thread", "the end []"]


@pytest.mark.skipif(HAS_SUBSHELLS, reason="with subshells it is done at once")
def test_without_subshells_a_button_s_wish_is_done_when_the_cell_ends(notebook: Notebook) -> None:
    notebook.run(f"%%background train\n{ENDLESS}")
    notebook.open_panel()
    cell = notebook.start("import time; print('begun', flush=True); time.sleep(1)")
    notebook.take_until(lambda: "begun" in cell.text, 20, "the cell to run")
    assert notebook.act("cancel", notebook.first["tasks"][0]["id"])["ok"]
    assert cell.done


# Where it is shown.


def test_a_saved_panel_has_a_list_that_says_of_when_it_is(notebook: Notebook) -> None:
    notebook.run("%%background train\nprint('printed')")
    notebook.run("%bg_wait train")
    panel, snapshot = (output.data for output in notebook.open_panel().outputs)
    assert "application/vnd.jupyter.widget-view+json" in panel
    for mime in ("text/html", "text/plain"):
        assert "live while its kernel runs" in panel[mime]
        assert "Background tasks at " in snapshot[mime]
        assert "completed" in snapshot[mime]
    assert "<script" not in snapshot["text/html"]


def test_elsewhere_than_in_a_notebook_the_error_names_what_shows_the_tasks(state_dir: Path) -> None:
    ended = run_command(state_dir, "panel")
    assert ended.returncode != 0
    assert ended.stderr.strip().endswith(
        "the panel needs a notebook; here jupyter bg list shows the tasks"
    )


def test_pages_are_left_to_a_server_that_reads_the_same_store(
    manager: BackgroundTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SERVED, str(manager.directory.root))
    assert reach_pages(manager, manager.shell, lambda _task_ids: None) is None


def test_without_anywidget_the_error_is_the_command_that_installs_it(
    make_kernel: Callable[..., NotebookKernel],
) -> None:
    kernel = make_kernel()
    kernel.run("import sys; sys.modules['anywidget'] = None")
    said = kernel.run("%bg_panel", check=False).stream("stderr").strip()
    assert "pip install 'ipytaskpersist[panel]'" in said
    assert "\n" not in said


# Harmless.


def test_nothing_that_a_task_says_steers_the_page(notebook: Notebook) -> None:
    bidi = "\u202egnol\u202c"
    notebook.run("from IPython.display import HTML")
    source = f"""
display(HTML("<b onclick='x()'>bold</b><img src=x onerror='x()'>{HOSTILE}"))
display({{"image/svg+xml": "<svg xmlns='http://www.w3.org/2000/svg' onload='x()'/>"}}, raw=True)
display({{"image/png": "{PIXEL}"}}, raw=True)
display({{"application/javascript": "alert(1)", "text/plain": "<i>a script</i>"}}, raw=True)
print({HOSTILE!r}, {bidi!r}, "\\x1b]8;;javascript:x()\\x07link")
raise ValueError({HOSTILE!r})
"""
    notebook.run(f'%%background "{HOSTILE} {bidi}"\n{source}')
    notebook.run("%bg_wait -1")
    notebook.open_panel()
    (row,) = notebook.first["tasks"]
    assert "\u202e" not in json.dumps(row, ensure_ascii=False)
    notebook.send({"kind": "select", "task": row["id"]})
    html = "".join(notebook.next("output", lambda said: said.get("add"))["add"])
    assert "<b>bold</b>" in html
    assert html.count("<img ") == html.count('<img alt="" ') == 2
    assert not {"\u202e", "\x1b"} & {*html}
    tags = Tags()
    tags.feed(html)
    assert tags.attributes <= {"class", "src", "alt", "style"}
    assert re.findall(r' style="(?!(background-)?color:#[0-9a-f]{6}")', html) == []
    assert tags.names <= {"div", "b", "img", "pre", "span"}
    assert all(source.startswith("data:image/") for source in tags.sources)


class Tags(HTMLParser):
    """Which tags a page has, and with which attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes.update(name for name, _value in attrs)
        self.sources.extend(value or "" for name, value in attrs if name == "src")


def test_a_line_that_is_written_over_shows_what_stands_at_last_in_its_colour() -> None:
    assert stream_lines("10%\r\x1b[32m20%\x1b[0m\nend\n") == [
        '<span class="green">20%</span>',
        "end",
    ]
    nested = "outer 0\ninner 0\x1b[A\router 1\n\rinner 1"
    assert stream_lines(nested) == ["outer 1", "inner 1"]
    assert stream_lines("a\r\nb\r\n") == ["a", "b"]


def test_a_page_that_follows_the_changes_of_a_tail_shows_the_tail() -> None:
    tail, shown = Tail(), list[str]()
    for pieces in (
        ["a"],
        ["a", "b"],
        ["a", "b", "c"],
        ["b", "c", "d"],
        ["c", "d!"],
        ["x"],
        [],
        ["y"],
    ):
        change = tail.change(pieces)
        assert change is not None
        shown = shown[change["drop"] :][: change["keep"]] + change["add"]
        assert shown == pieces
    assert tail.change(["y"]) is None


def test_only_the_end_of_a_long_output_is_read(store: TaskStore) -> None:
    session = histories.begin_session(store)
    line = b"x" * 99 + b"\n"
    task = histories.add_task(store, session, printed=line * 20_000)
    shown = selected.shown_of(store, task, OutputCounter())
    assert len(shown.pieces) == selected.LINES
    assert shown.left_out == f"{20_000 - selected.LINES:,} lines"
    no_end = histories.add_task(store, session, printed=b"\rabc" * 1_000_000)
    assert selected.shown_of(store, no_end, OutputCounter()).pieces == [ABC]


def test_a_task_has_the_button_that_makes_sense_for_it(store: TaskStore) -> None:
    session = histories.begin_session(store)
    for state, action in (
        (TaskState.PENDING, "cancel"),
        (TaskState.RUNNING, "cancel"),
        (TaskState.COMPLETED, "rerun"),
        (TaskState.INTERRUPTED, "resume"),
    ):
        task = histories.add_task(store, session, state=state)
        assert rows.row_of(task, session.notebook_key)["action"] == action


# What has changed in the store.


def test_what_has_changed_since_a_position_is_told_once(store: TaskStore) -> None:
    session = histories.begin_session(store)
    position = store.changes.now()
    task = histories.add_task(store, session, state=TaskState.RUNNING)
    changed = store.changes.since(position)
    assert (changed.states, changed.outputs) == ({task.key}, {task.key})
    assert store.changes.since(changed.position).tasks == set()
    assert store.tasks.request_cancel(task.key)
    assert store.changes.since(changed.position).states == {task.key}


def test_after_a_deletion_new_changes_are_not_taken_for_old_ones(
    store: TaskStore, archives: Archives
) -> None:
    session = histories.begin_session(store)
    histories.add_task(store, session)
    last = histories.add_task(store, session)
    position = store.changes.now()
    archives.delete([last])
    changed = store.changes.since(position)
    again = histories.add_task(store, session)
    assert again.key in store.changes.since(changed.position).states
