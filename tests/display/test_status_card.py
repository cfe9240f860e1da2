"""The status card: right at a glance, true by itself when it is saved, and harmless."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import psutil
import pytest
from histories import add_task, begin_session
from kernels import NotebookKernel

from ipytaskpersist.base.records import OutputKind, Progress, TaskRecord, TaskState
from ipytaskpersist.display.status_card import STYLE, Card, card_html, card_text
from ipytaskpersist.output.replay import last_lines
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore

NOW = datetime(2026, 3, 1, 14, 2, 5, tzinfo=UTC)
STAMP = f"{NOW.astimezone():%Y-%m-%d %H:%M:%S}"


def a_task(state: TaskState, **changed: Any) -> TaskRecord:
    known: dict[str, Any] = {
        "key": 1, "id": "abcdefgh-3", "number": 3, "name": "train", "notebook_key": 1,
        "notebook": "/home/ada/a.ipynb", "session": "abcdefghij", "kind": "python",
        "runner": "thread", "state": state, "reason": None, "exit_code": None, "source": "",
        "cell_id": None, "execution_count": 1, "created_at": NOW,
        "started_at": NOW - timedelta(seconds=761),
        "ended_at": NOW if state.is_final else None,
        "cancel_requested_at": None, "cleared_at": None, "rerun_of": None, "is_call": False,
    }  # fmt: skip
    return TaskRecord(**{**known, **changed})


class Structure(HTMLParser):
    """What a browser would make of a card: its elements and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes.update(name for name, _value in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1:] != ["style"] else ""


@pytest.mark.parametrize("state", list(TaskState))
def test_the_state_is_there_as_a_word_and_the_html_needs_nothing_but_inline_styles(
    state: TaskState,
) -> None:
    card = Card(a_task(state), NOW, also_running=[a_task(TaskState.RUNNING)])
    html = card_html(card).replace(STYLE, "")
    found = Structure(html)
    assert state.value in found.text
    assert found.open == []
    assert found.tags <= {"div", "span", "bdi", "b", "code"}
    assert found.attributes <= {"style", "class", "role", "aria-valuenow", "aria-hidden"}
    assert not re.search(r"var\(|url\(|calc\(|position:", html)


@pytest.mark.parametrize("state", list(TaskState))
def test_a_saved_card_says_as_of_when_unless_its_state_is_final(state: TaskState) -> None:
    card = Card(a_task(state), NOW)
    for shown in (Structure(card_html(card)).text, card_text(card)):
        assert (f"as of {STAMP}" in shown) == (not state.is_final)
    assert (STYLE in card_html(card)) == (not state.is_final)
    hint = f"%bg_show {card.task.id} shows it now"  # a number may mean another task in a copy
    assert (hint in card_html(card)) == (not state.is_final)
    if state.is_final:
        assert STAMP[:-3] in Structure(card_html(card)).text


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</div></div>✓ completed",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07\x1b]52;c;aGk=\x07",
    "a\u202etset\u2066x",
    "line\nbreak\rreturn\x00null\x85next\u2028separator",
    "a\u0301" * 50 + "\U000e0041",
    "x" * 100_000,
    "{{constructor.constructor('alert(1)')()}} ${7*7}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_lines_and_reasons_of_others_are_text_and_nothing_else(text: str) -> None:
    task = a_task(
        TaskState.FAILED, name=text, reason=f"{text}: {text}", exit_code=1,
        progress=Progress(1, 2, text),
    )  # fmt: skip
    live = a_task(TaskState.RUNNING, name=text, progress=Progress(1, 2, text))
    for each in (task, live):
        html = card_html(Card(each, NOW, [text, text], 2, None, text)).replace(STYLE, "")
        found = Structure(html)
        assert found.open == []
        assert found.tags <= {"div", "span", "bdi"}
        assert found.attributes <= {"style", "class", "role", "aria-valuenow"}
        plain = card_text(Card(each, NOW, [text, text], 2, None, text))
        for shown in (found.text, plain.replace("\n  ", " ")):
            steering = [c for c in shown if not c.isprintable() and c not in " \u2002"]
            assert steering == []


def test_progress_and_memory_and_lines_are_shown() -> None:
    task = a_task(TaskState.RUNNING, runner="process", progress=Progress(2, 8))
    card = Card(task, NOW, ["epoch 2"], 1204, 512_000_000)
    shown = Structure(card_html(card)).text
    for part in ("25 %", "epoch 2", "1,204 lines", "512 MB", "outlives the kernel", "12:41"):
        assert part in shown
    assert "width:25.0%" in card_html(card)
    unknown = a_task(TaskState.RUNNING, progress=Progress(1234, None, "reading"))
    assert "1,234" in Structure(card_html(Card(unknown, NOW))).text
    assert "reading" in card_text(Card(unknown, NOW))


# The last lines.


def put(store: TaskStore, key: int, *pieces: tuple[OutputKind, bytes]) -> list[str]:
    store.outputs.append([NewOutput(key, kind, 1.0, data).as_row() for kind, data in pieces])
    return last_lines(store, key, 3)


def test_the_last_lines_are_those_that_a_terminal_would_show(store: TaskStore) -> None:
    key = add_task(store, begin_session(store), state=TaskState.PENDING).key
    out, err = OutputKind.STDOUT, OutputKind.STDERR
    assert last_lines(store, key, 3) == []
    assert put(store, key, (out, b"one\ntwo\nthree\nfour\n\n")) == ["two", "three", "four"]
    assert put(store, key, (err, b"10%\r20%"), (err, b"\r30%")) == ["three", "four", "30%"]
    bar = ((err, b"\r40%"), (out, b"five\n"), (err, b"\r50%"), (out, b"six\n"))
    assert put(store, key, *bar) == ["five", "50%", "six"]
    assert put(store, key, (out, b"\n" + b"x" * 9000 + b"\nend\n"))[-1] == "end"
    value = b'{"data": {"text/plain": "0.93"}, "metadata": {}, "execution_count": 1}'
    assert put(store, key, (OutputKind.EXECUTE_RESULT, value))[-2:] == ["end", "0.93"]
    assert put(store, key, (OutputKind.CLEAR_OUTPUT, b'{"wait": true}'), (out, b"new")) == ["new"]
    # As far to the right as a terminal reaches, wherever that is.
    assert put(store, key, (out, b"\n\x1b[999999Gat the edge\n"))[-1] == "at the edge"


# In a real kernel.


def test_the_card_of_a_process_shows_what_it_prints_and_its_memory(kernel: NotebookKernel) -> None:
    cell = kernel.run(
        "%%background --process\nimport time\n"
        "for n in range(5): print('epoch', n, flush=True)\ntime.sleep(60)"
    )

    def shown() -> str:
        return Structure(cell.outputs[0].data["text/html"]).text

    kernel.take_until(
        lambda: "epoch 4" in shown() and re.search(r"\d MB", shown()), 30, "lines and memory"
    )
    assert "epoch 2" in shown()
    assert "epoch 1" not in shown()
    kernel.run("%bg_cancel")
    kernel.take_until(lambda: "cancelled at" in shown(), 30, "the end")
    assert "as of" not in shown()


def test_a_failed_task_s_card_names_the_line_of_its_cell(kernel: NotebookKernel) -> None:
    cell = kernel.run("%%background\ndef inner():\n    return {}['customer_id']\n\ninner()")
    kernel.take_until(
        lambda: "cell line 2" in cell.outputs[0].data["text/html"], 30, "the failing line"
    )
    assert "KeyError" in cell.outputs[0].data["text/plain"]


def test_a_running_card_is_updated_though_nothing_changes_so_that_it_looks_live(
    kernel: NotebookKernel,
) -> None:
    cell = kernel.run("%%background\nimport time; time.sleep(60)")
    seen: set[str] = set()

    def stamps() -> int:
        seen.update(re.findall(r"as of ([\d: -]+)", cell.outputs[0].data["text/plain"]))
        return len(seen)

    kernel.take_until(lambda: stamps() >= 3, 30, "three times")
    kernel.run("%bg_cancel")


def test_a_card_shows_by_itself_that_its_tasks_supervisor_was_killed(
    kernel: NotebookKernel, store: TaskStore
) -> None:
    cell = kernel.run("%%background --shell\nsleep 600")
    kernel.take_until(lambda: "running" in cell.text, 30, "its start")
    (supervisor,) = store.supervisors.unfinished()
    psutil.Process(supervisor.pid).kill()
    kernel.take_until(lambda: "supervisor died" in cell.text, 30, "its end")
    assert "interrupted" in cell.text
    said = "the supervisor died: 1 task interrupted; %bg_resume --all runs it again"
    assert said in kernel.run("%bg_list").text
    assert said not in kernel.run("%bg_list").text
