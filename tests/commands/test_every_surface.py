"""Each verb does the same on each of its surfaces."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from kernels import until
from programs import run_command
from typed import SURFACES, Notebook, Run

from ipytaskpersist.commands.definition import every_verb

TASK_KEYS = {
    "id", "number", "name", "notebook", "session", "kind", "runner", "state", "reason", "exit_code",
    "created_at", "started_at", "ended_at", "elapsed_s", "last_line",
}  # fmt: skip
SESSION_KEYS = {
    "id", "notebook", "front_end", "host", "pid", "started_at", "heartbeat_at", "ended_at",
    "end_reason", "tasks",
}  # fmt: skip


def test_list_tells_number_name_state_and_last_line(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("print('first')\nprint('last words')", "listed")
    answer = run("list")
    (line,) = [
        line for line in answer.text.splitlines() if line.split()[:1] == [str(task["number"])]
    ]
    name, glyph, state, _started, *rest = line.split()[1:]
    assert [name, glyph, state, *rest] == [
        *("listed", "✓", "completed", "0:00", "last", "words", "2", "lines")
    ]
    assert not answer.failed


def test_list_gives_the_documented_json(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("print('out')\n1 / 0", "divides")
    document = run("list", "--json").json()
    assert document.keys() == {"tasks", "count"}
    assert document["count"] == len(document["tasks"])
    (listed,) = [each for each in document["tasks"] if each["id"] == task["id"]]
    assert listed.keys() >= TASK_KEYS
    expected = {
        "number": task["number"],
        "name": "divides",
        "notebook": str(notebook.path),
        "kind": "python",
        "runner": "thread",
        "state": "failed",
        "reason": "ZeroDivisionError: division by zero",
        "exit_code": 1,
        "last_line": "out",
    }
    assert {key: listed[key] for key in expected} == expected
    assert listed["id"] == f"{listed['session'][:8]}-{listed['number']}"


def test_output_separates_the_streams_and_shows_results(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7")
    answer = run("output", task["id"])
    assert answer.stderr == "err\n"
    assert "out\n" in answer.stdout
    assert "42" in answer.text
    assert not answer.failed


def test_show_tells_the_facts_the_history_and_the_source(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("print('1234')\n'a value'", "shown")
    answer = run("show", "shown")
    for fact in (
        task["id"], "completed", "shown", "1 line, 5 bytes", "'a value'", "pending", "running",
        "print('1234')",
    ):  # fmt: skip
        assert fact in answer.stdout
    assert re.search(r"\d\d:\d\d:\d\d\.\d{3} UTC  completed", answer.stdout)
    document = run("show", "shown", "--json").json()
    assert document["streams"]["stdout"] == {"bytes": 5, "lines": 1}
    assert document["result"]["text"] == "'a value'"
    states = [event["state"] for event in document["history"]]
    assert states == ["pending", "running", "completed"]


def test_wait_returns_when_the_tasks_have_ended(notebook: Notebook, run: Run) -> None:
    tasks = [notebook.launch("import time\ntime.sleep(0.2)"), notebook.launch("1")]
    answer = run("wait", *(task["id"] for task in tasks))
    assert [notebook.show(task["id"])["state"] for task in tasks] == ["completed", "completed"]
    assert not answer.failed
    assert answer.text.count("completed") == 2


def test_cancel_ends_a_running_task(notebook: Notebook, run: Run) -> None:
    with notebook.running("cancelled") as task:
        answer = run("cancel", "cancelled")
        ended = notebook.ended(task)
    assert (ended["state"], ended["reason"], ended["exit_code"]) == ("cancelled", "cancelled", None)
    assert answer.stdout == f"task {task['number']} (cancelled): cancelled\n"


def test_cancel_says_that_a_task_had_ended(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("1")
    answer = run("cancel", task["id"])
    assert answer.stdout == f"task {task['number']} had ended: completed\n"
    assert notebook.show(task["id"])["state"] == "completed"


def test_cancelling_a_call_of_c_code_says_that_it_takes_effect_when_the_call_returns(
    notebook: Notebook, run: Run
) -> None:
    notebook.kernel.run("import os\nreading, writing = os.pipe()")
    task = notebook.launch("print('begun')\nos.read(reading, 1)\nprint('never')", "stuck")
    until(lambda: notebook.show("stuck")["last_line"] == "begun")
    answer = run("cancel", "stuck")
    assert not answer.failed
    assert f"task {task['number']} (stuck): cancellation requested; it runs on" in answer.stdout
    assert notebook.show("stuck")["state"] == "running"
    notebook.kernel.run("os.write(writing, b'x')")
    assert notebook.ended(task)["state"] == "cancelled"
    assert notebook.underscored("output", "stuck").text == "begun\n"


def test_result_gives_the_value(notebook: Notebook, run: Run) -> None:
    notebook.finish("{'answer': 42}", "valued")
    assert run("result", "valued").text.strip() == "{'answer': 42}"


def test_delete_removes_a_task_for_good(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("print('x' * 1000)\nlist(range(100))", "doomed")
    payloads = notebook.state_dir / "payloads" / task["id"]
    assert list(payloads.iterdir())
    answer = run("delete", "doomed", "--yes")
    assert answer.stdout == f"deleted {task['number']} (doomed)\n"
    assert run("show", task["id"]).failed
    assert not payloads.exists()


def test_sessions_tells_how_each_stands(notebook: Notebook, run: Run) -> None:
    notebook.finish("1")
    session = notebook.show()["session"]
    assert f"{session[:8]}  shared.ipynb" in run("sessions").text
    document = run("sessions", "--json").json()
    assert document.keys() == {"sessions", "count"}
    (known,) = document["sessions"]
    assert document["count"] == 1
    assert known.keys() >= SESSION_KEYS
    assert (known["id"], known["ended_at"]) == (session, None)
    assert known["pid"] == notebook.kernel.pid
    assert known["tasks"]["completed"] >= 1


@pytest.mark.parametrize("surface", SURFACES)
def test_clear_takes_ended_tasks_off_the_list_and_deletes_nothing(
    make_notebook: Callable[..., Notebook], surface: str
) -> None:
    own = make_notebook()
    task = own.finish("1", "over")
    run = getattr(own, surface)
    assert "took 1 off the list" in run("clear").stdout
    assert run("list", "--json").json() == {"tasks": [], "count": 0}
    assert run("list", "--json", "--cleared").json()["tasks"][0]["id"] == task["id"]
    assert run("show", "over", "--json").json()["id"] == task["id"]


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("verb", every_verb())
def test_every_verb_explains_itself_in_ipython(notebook: Notebook, verb: str, flag: str) -> None:
    for run in (notebook.underscored, notebook.spaced):
        answer = run(verb, flag)
        assert not answer.failed, answer.stderr
        assert f"Usage: %bg_{verb}" in answer.stdout or f"Usage: %bg {verb}" in answer.stdout
        summary = str(every_verb()[verb].help).split(".")[0]
        assert " ".join(summary.split()) in " ".join(answer.stdout.split())


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_the_command_line_lists_its_verbs(state_dir: Path, arguments: list[str]) -> None:
    answer = run_command(state_dir, *arguments)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert [verb for verb in every_verb() if f"\n  {verb} " not in answer.stdout] == []
    assert not state_dir.exists()


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_a_verb_explains_itself_in_a_terminal(state_dir: Path, flag: str) -> None:
    answer = run_command(state_dir, "output", flag)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("Usage: jupyter bg output ")
    assert "--follow" in answer.stdout


@pytest.mark.parametrize("magic", ["%bg_list", "%bg_output", "%bg", "%%background"])
def test_a_question_mark_shows_the_help_of_the_command(notebook: Notebook, magic: str) -> None:
    answer = notebook.type(
        f"get_ipython().run_line_magic('pinfo', {magic!r})\n"
        "for page in get_ipython().payload_manager.read_payload():\n"
        "    print(page['data']['text/plain'])"
    )
    assert f"Usage: {magic.replace('%%', '%')} " in answer.stdout
    assert "--help" in answer.stdout
