"""Lists fit the terminal, and nothing that a task says can break or forge them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from programs import environment, run_command
from wcwidth import wcswidth

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.records import OutputKind, Progress, TaskState
from ipytaskpersist.display.listing import Listing, list_html, produced_by
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection
from ipytaskpersist.text import formatting

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo-terminals of this kind", allow_module_level=True)

from terminals import ANSI, COMMAND, Terminal

NAMES = {
    "train": TaskState.COMPLETED,
    "日本語の名前とても長い名前です": TaskState.FAILED,
    "שלום עולם 12": TaskState.RUNNING,
    "evil\x1b[2K\x1b[9;1H\x1b[32m✓ completed\x07\u202e\u2066": TaskState.FAILED,
    "👨‍👩‍👧 👍🏽 🇩🇪 1️⃣": TaskState.INTERRUPTED,
    "z" + "\u0301" * 200 + "algo": TaskState.CANCELLED,
    "": TaskState.PENDING,
    "a\u200bb\u00a0c\u3164d": TaskState.COMPLETED,
}
LAST_LINES = (
    "loss 0.125",
    "値" * 90,
    "אבג 45",
    "\x1b[1A\x1b[31mred",
    "x" * 300,
    "done",
    "",
    "\u202eevil",
)
LIVE = [3, 7]
WIDTHS = (40, 60, 80, 120, 200)
NASTY = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\x1b", "\x07", "\r"}


@pytest.fixture
def listed(state_dir: Path) -> Iterator[Path]:
    """A store with tasks that would like to break a list; its notebook."""
    notebook = state_dir.parent / "odd.ipynb"
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        own = ProcessIdentity.own()
        identity = SessionIdentity("a1b2c3d4-x", "kernel", str(notebook), True, "u", own)
        session = store.sessions.begin(identity)
        for place, (name, state) in enumerate(NAMES.items()):
            new = NewTask(session.notebook_key, session.id, name, "python", "thread", "source")
            task = store.tasks.insert(new)
            if state is not TaskState.PENDING:
                store.tasks.start(task.key, time.time())
                line = LAST_LINES[place]
                output = NewOutput(
                    task.key, OutputKind.STDOUT, time.time(), b"epoch\n", 0, 0, 1, line
                )
                store.outputs.append([output.as_row()])
            if place == 2:
                store.tasks.progress(task.key, Progress(68, 100))
            if place == 4:
                store.tasks.progress(task.key, Progress(1, 3, "of three"))
            if state.is_final:
                code = 0 if state is TaskState.COMPLETED else None
                reason = None if code == 0 else "ValueError: 値が \x1b]0;title\x07 not what it was"
                store.tasks.end(task.key, state, reason, code, time.time())
        yield notebook


def at_terminal(
    listed: Path, state_dir: Path, width: int, *arguments: str, **more: str
) -> tuple[str, list[str]]:
    """What a command sends to a terminal of this width, and the lines that it shows."""
    env = environment(state_dir, {"IPYTASKPERSIST_NOTEBOOK": str(listed), **more})
    terminal = Terminal([*COMMAND, *arguments], listed.parent, env, width)
    with closing(terminal):
        terminal.end()
        sent = terminal.log.getvalue()
    return sent, ANSI.sub("", sent).split("\n")[:-1]


def cells(text: str) -> int:
    return wcswidth(text.replace("\u200e", ""))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_list_fits_and_keeps_what_matters(listed: Path, state_dir: Path, width: int) -> None:
    sent, lines = at_terminal(listed, state_dir, width, "list")
    assert not NASTY & set(ANSI.sub("", sent))
    assert max(map(cells, lines)) <= width
    head, *rows = lines
    # What is live comes first, and of what has ended the newest.
    order = sorted(range(1, len(NAMES) + 1), key=lambda number: (number not in LIVE, -number))
    order[: len(LIVE)] = LIVE
    assert [int(row.split()[0]) for row in rows] == order
    states = dict(enumerate(NAMES.values(), 1))
    for number, row in zip(order, rows, strict=True):
        shown = f"{formatting.STATE_STYLES[states[number]].glyph} {states[number].value}"
        assert cells(row[: row.rindex(shown)]) == cells(head[: head.index("state")]), row
    shown_rows = dict(zip(order, rows, strict=True))
    assert "0:00" in shown_rows[1]
    for title, least in (("result or l", 60), ("started", 80), ("output", 120)):
        assert width < least or title in head
    if width >= 80:
        assert "68 % · " in shown_rows[3]
        assert "ValueError" in shown_rows[2]
        assert "loss 0.125" in shown_rows[1]
    if width >= 120:
        assert "1 line" in shown_rows[1]


@pytest.mark.parametrize("width", [WIDTHS[0], WIDTHS[-1]])
@pytest.mark.parametrize("command", ["list --all", "search epoch", "sessions --all", "stats"])
def test_other_lists_fit_as_well(listed: Path, state_dir: Path, width: int, command: str) -> None:
    sent, lines = at_terminal(listed, state_dir, width, *command.split())
    assert not NASTY & set(ANSI.sub("", sent))
    assert max(map(cells, lines)) <= width, lines
    text = "\n".join(lines)
    if command == "sessions --all":
        assert "a1b2c3d4" in text
        assert "active" in text or "died" in text
    elif command != "stats":
        assert "✓ completed" in text
        assert "● running" in text or "◐ interrupted" in text


def test_a_pipe_gets_no_colours_and_a_list_of_fixed_width(listed: Path, state_dir: Path) -> None:
    shown = run_command(state_dir, "list", notebook=listed).stdout
    assert "\x1b" not in shown
    assert "loss 0.125" in shown
    assert max(map(cells, shown.splitlines())) <= 110


@pytest.mark.parametrize("more", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_wants_no_colours_gets_none(
    listed: Path, state_dir: Path, more: dict[str, str]
) -> None:
    sent, lines = at_terminal(listed, state_dir, 60, "list", **more)
    assert "\x1b" not in sent
    assert max(map(cells, lines)) <= 60
    assert max(map(cells, lines)) > 50


def test_messages_about_a_task_are_as_harmless(listed: Path, state_dir: Path) -> None:
    for arguments in (("tag", "4"), ("show", "4"), ("wait", "4", "--check"), ("result", "4")):
        ran = run_command(state_dir, *arguments, notebook=listed)
        assert "evil" in ran.stdout + ran.stderr
        assert not NASTY & set(ran.stdout + ran.stderr), arguments


def test_json_is_the_same_wherever_it_goes(listed: Path, state_dir: Path) -> None:
    piped = run_command(state_dir, "list", "--json", notebook=listed).stdout
    document = json.loads(piped)
    for task, name in zip(document["tasks"], NAMES, strict=True):
        assert task["name"] == (name or None)
    assert document["tasks"][2]["progress"] == {"done": 68, "total": 100, "text": ""}
    sent, _lines = at_terminal(
        listed, state_dir, 40, "list", "--json", NO_COLOR="1", FORCE_COLOR="1"
    )
    there = json.loads(sent)
    for mine, other in zip(document["tasks"], there["tasks"], strict=True):
        changing = {"elapsed_s": None}
        assert {**mine, **changing} == {**other, **changing}


def test_a_notebooks_list_has_named_columns_and_all_that_matters(
    listed: Path, state_dir: Path, manager: BackgroundTasks
) -> None:
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        tasks = store.tasks.select(Selection())
    produced = produced_by(manager, tasks)
    html = list_html(Listing(tasks, 116, False, formatting.utc_now(), produced=produced))
    assert not NASTY & set(html)
    assert f'<table aria-label="Background tasks of {listed.name}"' in html
    assert html.count('<th scope="col"') == 7
    assert html.count("<td ") == 7 * len(tasks) + 1
    assert html.count("text-align:left") == 7 * (len(tasks) + 1) + 1
    parts = ["68 %", "running", "ended, newest first", "completed", "loss 0.125", "1 line",
             "108 older tasks: <code>%bg_list --limit 200</code> · times are UTC"]  # fmt: skip
    assert sorted(parts[1:4], key=html.index) == parts[1:4]
    for part in parts:
        assert part in html
    assert html.count('<span aria-hidden="true"') == len(tasks)


@pytest.mark.parametrize("text", [*NAMES, *LAST_LINES])
def test_a_legible_text_has_nothing_that_steers_hides_or_piles_up(text: str) -> None:
    shown = legible(text)
    assert shown.isprintable()
    assert wcswidth(shown) >= 0
    assert "\u0301\u0301\u0301" not in shown
    assert legible(shown) == shown
    assert all(shown.startswith(legible(text[:end])) for end in range(len(text)))


def test_a_plain_text_is_legible_as_it_is() -> None:
    for text in ("train", "größe ≥ 3", "日本語", "שלום", "Tiê\u0301ng", "x 👍"):
        assert legible(text) == text
