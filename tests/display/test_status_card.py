"""The status card: right at a glance, true by itself when it is saved, and harmless."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import psutil
import pytest
from histories import add_task, begin_session
from kernels import Cell, Message, NotebookKernel

from ipytaskpersist.base.records import OutputKind, Progress, TaskRecord, TaskState
from ipytaskpersist.display import card_output
from ipytaskpersist.display.card_content import Card, CardReader
from ipytaskpersist.display.card_output import CardOutput
from ipytaskpersist.display.status_card import STYLE, card_html, card_text
from ipytaskpersist.output.counts import OutputCounts
from ipytaskpersist.output.replay import last_lines
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

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
        if tag != "img":
            self.open.append(tag)
        self.tags.add(tag)
        self.attributes.update(name for name, _value in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1:] != ["style"] else ""


KEPT_TAGS = {
    "code",
    "section",
    "div",
    "span",
    "bdi",
    "b",
    "img",
    "details",
    "summary",
    "table",
    "tr",
    "td",
}
KEPT_ATTRIBUTES = {
    "style", "class", "role", "aria-label", "aria-hidden", "aria-valuemin", "aria-valuemax",
    "aria-valuenow", "alt", "src",
}  # fmt: skip


def structure_of(card: Card) -> Structure:
    """The structure of a card, which is whole and inert."""
    html = card_html(card).replace(STYLE, "")
    found = Structure(html)
    assert found.open == []
    assert found.tags <= KEPT_TAGS
    assert found.attributes <= KEPT_ATTRIBUTES
    assert not re.search(r"var\(|url\(|calc\(|position:", html)
    return found


@pytest.mark.parametrize("state", list(TaskState))
def test_a_card_says_its_state_and_when_that_was_whatever_a_page_keeps_of_its_style(
    state: TaskState,
) -> None:
    earlier = [a_task(TaskState.RUNNING)]
    card = Card(a_task(state, runner="process"), NOW, also_running=earlier)
    found, text = structure_of(card), card_text(card)
    assert state.value in found.text
    assert state.value in text
    is_live = not state.is_final
    for shown, part in (
        (found.text, f"last seen {state}"),
        (found.text, "A picture from 14:02:05 UTC. It no longer follows the task."),
        (found.text, "at 14:02:05 UTC, 1 Mar 2026"),
        (found.text, "updated 14:02:05 UTC"),
        (found.text, "%bg_output abcdefgh-3 shows all of it"),
        (text, "updated 14:02:05 UTC, 1 Mar 2026"),
        (card_html(card), STYLE),
    ):
        assert (part in shown) is is_live, part
    if not is_live:
        assert "took 12:41 · ended 14:02:05 UTC" in found.text
        assert "on 1 Mar 2026" in found.text
        assert "%bg_output abcdefgh-3" in found.text or "%bg_show abcdefgh-3" in found.text
        assert "abcdefgh" not in text, "a terminal is of one notebook"
    title = f"Background task 3, train{f', {state}' if state.is_final else ''}"
    assert f'role="group" aria-label="{title}"' in card_html(card)
    assert "#2f7de1" not in card_html(card).partition("</style>")[2]  # nothing is blue


def test_an_exit_code_is_shown_of_a_process_only() -> None:
    for runner, codes in (("process", True), ("thread", False)):
        for state, code in ((TaskState.COMPLETED, 0), (TaskState.FAILED, 1)):
            card = Card(a_task(state, runner=runner, exit_code=code), NOW)
            for shown in (structure_of(card).text, card_text(card)):
                assert (f"exit {code}" in shown) is codes


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
    shown_html = {"output_type": "display_data", "data": {"text/html": text}}
    pieces = [html for html, _lines in card_output._pieces_backwards(
        [{"output_type": "stream", "name": "stdout", "text": text}, shown_html], {}
    )]  # fmt: skip
    output = CardOutput([], pieces * 4, 1)
    for each in (task, live):
        card = Card(
            each, NOW, [text, text], OutputCounts(2, tables=1), None, text, text, output=output
        )
        plain = card_text(card)
        for shown in (structure_of(card).text, plain.replace("\n  ", " ")):
            steering = [c for c in shown if not c.isprintable() and c not in " \u2002\n"]
            assert steering == []


def test_progress_and_time_left_and_memory_and_amounts_are_shown() -> None:
    task = a_task(TaskState.RUNNING, runner="process", progress=Progress(2, 8))
    card = Card(task, NOW, ["epoch 2"], OutputCounts(1204, 2, 1), 512_000_000)
    shown = structure_of(card).text
    for part in ("25 % · 12:41 · about 38:03 left", "epoch 2", "1,204 lines, 2 figures, 1 table",
                 "512 MB", "outlives the kernel"):  # fmt: skip
        assert part in shown
    assert "about 38:03 left" in card_text(card)
    assert "width:25.0%" in card_html(card)
    assert 'role="progressbar" aria-label="progress"' in card_html(card)
    unknown = a_task(TaskState.RUNNING, progress=Progress(1234, None, "reading"))
    assert "1,234" in structure_of(Card(unknown, NOW)).text
    assert "reading" in card_text(Card(unknown, NOW))


# The output of an ended task.


def test_an_ended_card_carries_its_output_and_says_what_it_leaves_out(
    store: TaskStore, manager: BackgroundTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = base64.b64encode(b"a picture").decode()

    def show(key: int, kind: OutputKind, **data: Any) -> None:
        values = {name.replace("_", "/"): value for name, value in data.items()}
        content = {"data": values, "metadata": {}}
        store.outputs.append([NewOutput(key, kind, 1.0, json.dumps(content).encode()).as_row()])

    def fill(key: int, lines: int = 40) -> None:
        for number in range(lines):
            line = f"epoch {number} <b>\x1b[31mred\x1b[0m\n".encode()
            piece = NewOutput(key, OutputKind.STDOUT, 1.0, line, 0, number, 1)
            store.outputs.append([piece.as_row()])
        for _each in range(2):
            show(key, OutputKind.DISPLAY_DATA, text_plain="<Figure>", image_png=picture)
        show(key, OutputKind.DISPLAY_DATA, text_html="<table onclick=x><tr><td>0.93</table>")
        show(key, OutputKind.EXECUTE_RESULT, text_plain="only a value")

    session = begin_session(store)
    task = add_task(store, session, printed=b"", shown=fill)
    card = CardReader(manager).read(task, NOW)
    html, text = card_html(card), structure_of(card).text
    assert "All output: 40 lines, 2 figures, 1 table" in text
    for part in ("epoch 0 <b>red", "epoch 39 <b>red", "[figure 1]", "[figure 2]", "0.93",
                 "only a value"):  # fmt: skip
        assert part in text
    assert html.count(f'alt="figure 2" src="data:image/png;base64,{picture}"') == 1
    assert html.count("<img ") == 2
    assert "onclick" not in html
    assert "40 lines, 2 figures, 1 table" in card_text(card)
    # Where the output itself stands below the card, the card has only its amounts.
    bare = card_html(CardReader(manager, carries_output=False).read(task, NOW))
    assert "<details" not in bare
    assert "<img" not in bare
    assert "40 lines, 2 figures, 1 table" in bare
    # A live one shows its last figure, at no more than its share of what is sent each second.
    live = add_task(store, session, printed=b"", shown=fill, state=TaskState.RUNNING)
    assert card_html(CardReader(manager).read(live, NOW)).count("<img ") == 1
    assert "<img " not in card_html(CardReader(manager).read(live, NOW, cards=10_000))
    # And what does not fit is named.
    monkeypatch.setattr(card_output, "LINES", 10)
    monkeypatch.setattr(card_output, "FIGURES", 1)
    big = CardReader(manager).read(task, NOW)
    assert "The end of its output: 6 of 40 lines, 1 of 2 figures" in structure_of(big).text
    assert f"%bg_output {task.id} shows all of it" in structure_of(big).text
    assert len(card_html(big)) < len(html)
    # What fits on the card anyway is not there twice.
    short = add_task(store, session, printed=b"one\ntwo\n")
    assert "<details" not in card_html(CardReader(manager).read(short, NOW))


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
    kernel.take_until(lambda: "cancelled" in shown(), 30, "the end")
    assert "updated" not in shown()


def test_a_card_and_each_update_of_it_carry_the_id_of_their_task(
    kernel: NotebookKernel, store: TaskStore
) -> None:
    for how in ("--thread", "--process", "--shell"):
        cell = kernel.run(f"%%background {how}\nexit")
        task = store.tasks.select(Selection())[-1]
        mark = {"ipytaskpersist": {"task": task.id, "part": "card"}}
        assert cell.outputs[0].metadata == mark
        kernel.take_until(lambda cell=cell: "completed" in cell.text, 30, "the end")  # type: ignore[misc]
        assert cell.outputs[0].metadata == mark
    assert kernel.run("%bg_wait").outputs[0].metadata == {}, "it launched nothing"


def test_a_card_goes_on_with_the_latest_try(
    kernel: NotebookKernel, store: TaskStore, tmp_path: Path
) -> None:
    file = tmp_path / "runs"
    cell = kernel.run(
        "%%background --shell --retries 2 --delay 2s flaky\n"
        f"echo run >> {file}; echo run $(wc -l < {file}); [ $(wc -l < {file}) -ge 2 ] || exit 7"
    )

    def shown() -> str:
        return str(cell.outputs[0].data["text/plain"])

    def marked() -> str:
        return str(cell.outputs[0].metadata["ipytaskpersist"]["task"])

    kernel.take_until(lambda: "(flaky) · try 2" in shown(), 30, "the second try")
    _first, second = store.tasks.select(Selection())
    assert "pending · 2 (flaky) · try 2 of 3 of task 1, after exit status 7 · starts at" in shown()
    assert "%bg_cancel 2" in shown()
    assert marked() == second.id
    kernel.take_until(lambda: "completed" in shown(), 30, "its end")
    assert "try 2 of 3 of task 1" in shown()
    assert "run 2" in shown()
    assert marked() == second.id
    assert len(cell.outputs) == 1


class PageWithCards(NotebookKernel):
    """A page that was loaded with cards, and asks for what became of their tasks."""

    comm = ""
    received: Sequence[Message] = ()

    def _take_output(self, cell: Cell | None, message: Message) -> None:
        content = message["content"]
        if message["msg_type"] == "comm_open":
            is_it = "const CARD" in content["data"]["state"].get("_esm", "")
            self.comm = content["comm_id"] if is_it else self.comm
        elif message["msg_type"] == "comm_msg" and content["comm_id"] == self.comm:
            self.received = [*self.received, content["data"]["content"]]
        super()._take_output(cell, message)

    def ask(self, *task_ids: str) -> None:
        data = {"method": "custom", "content": {"tasks": task_ids}}
        message = {"comm_id": self.comm, "data": data}
        self._connected.shell_channel.send(self._connected.session.msg("comm_msg", message))

    def html_for(self, task_id: str) -> str:
        """The latest card that it has in the place of this task's."""
        found = [each["html"] for each in self.received if each["task"] == task_id]
        return str(found[-1]) if found else ""


def test_a_page_with_the_card_of_an_earlier_try_receives_that_of_the_latest(
    store: TaskStore, state_dir: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    body = f"while [ ! -e {gate} ]; do sleep 0.05; done; echo run >> {gate}; "
    body += f"[ $(wc -l < {gate}) -ge 2 ] && sleep 600; exit 7"
    with PageWithCards(state_dir) as page:
        page.run("%load_ext ipytaskpersist")
        page.run(f"%%background --shell --retries 3 --delay 1s flaky\n{body}")
        page.take_until(lambda: page.comm, 30, "the comm of loaded pages")
        (first,) = store.tasks.select(Selection())
        page.ask(first.id)
        page.take_until(lambda: "running" in page.html_for(first.id), 30, "the first try")
        gate.touch()
        page.take_until(lambda: "try 2 of 4" in page.html_for(first.id), 30, "the second try")
        second = store.tasks.last_try(first)
        assert f"ipytaskpersist-of-{second.id}" in page.html_for(first.id)
        page.take_until(lambda: "running" in page.html_for(second.id), 30, "its updates")
        sent = len([each for each in page.received if each["task"] == first.id])
        page.ask(first.id)  # another page, with the notebook as it was saved
        page.take_until(
            lambda: len([each for each in page.received if each["task"] == first.id]) > sent,
            30,
            "the card for another page",
        )
        page.run("%bg_cancel flaky --yes")


def test_the_card_of_a_run_says_when_the_next_one_is_due(kernel: NotebookKernel) -> None:
    cell = kernel.run("%%background --shell --every 1h nightly\ntrue")
    kernel.take_until(lambda: "completed" in cell.text, 30, "the end of the first run")
    for shown in cell.outputs[0].data.values():
        assert re.search(r"every 1h, next at [\d:]+ UTC, \d+ \w+ \d+ \(task 2\)", shown)
    kernel.run("%bg_cancel 2")


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
        seen.update(re.findall(r"updated ([\d:]+ UTC)", cell.outputs[0].data["text/plain"]))
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
