"""`wait` waits, and no longer than it is told to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from kernels import until
from programs import environment
from typed import Notebook


def test_wait_gives_up_after_its_timeout(notebook: Notebook) -> None:
    with notebook.running("slow") as task:
        in_notebook = notebook.underscored("wait", "slow", "--timeout", "0.1")
        checked = notebook.underscored("wait", "slow", "--timeout", "0.1", "--check")
        in_terminal = notebook.in_terminal("wait", "slow", "--timeout", "0.1")
        every = notebook.underscored("wait", "--all", "--timeout", "0.1")
    assert "running" in every.text
    assert notebook.underscored("wait", "--all").stdout == "nothing to wait for\n"
    assert not in_notebook.failed
    assert "running" in in_notebook.text
    message = f"still running after 0.1 s: {task['number']} (slow)"
    assert checked.stderr == f"UsageError: {message}\n"
    assert in_terminal.status == 1
    assert in_terminal.stderr.splitlines()[-1] == f"jupyter bg: {message}"


@pytest.mark.parametrize(
    ("source", "status"),
    [("1", 0), ("raise SystemExit(3)", 3), ("1 / 0", 1), ("raise SystemExit('no')", 1)],
)
def test_wait_in_a_terminal_has_the_exit_status_of_the_task(
    notebook: Notebook, source: str, status: int
) -> None:
    task = notebook.launch(source)
    assert notebook.in_terminal("wait", task["id"]).status == status


def test_wait_in_a_terminal_fails_for_a_cancelled_task(notebook: Notebook) -> None:
    with notebook.running() as task:
        notebook.underscored("cancel", task["id"])
        assert notebook.in_terminal("wait", task["id"]).status == 1


def test_wait_makes_a_failed_task_an_error_only_with_check(notebook: Notebook) -> None:
    task = notebook.launch("1 / 0", "wrong")
    assert not notebook.underscored("wait", "wrong").failed
    checked = notebook.underscored("wait", "--check", "wrong")
    assert checked.stderr.startswith(
        f"UsageError: task {task['number']} (wrong) failed (ZeroDivisionError: division by zero); "
    )
    assert checked.stderr.count("\n") == 1
    good = notebook.finish("1")
    assert not notebook.underscored("wait", "--check", good["id"]).failed


def test_wait_takes_several_tasks_and_check_reports_the_one_that_failed(
    notebook: Notebook,
) -> None:
    tasks = [notebook.launch(source) for source in ("1", "1 / 0", "2")]
    checked = notebook.underscored("wait", "--check", *(task["id"] for task in tasks))
    assert f"task {tasks[1]['number']} failed" in checked.stderr


def test_the_stop_button_ends_the_waiting_and_not_the_task(notebook: Notebook) -> None:
    with notebook.running("patient") as task:
        waiting = notebook.kernel.start("%bg_wait patient")
        notebook.kernel.take_until(lambda: "running" in waiting.text, 30, "the card")
        notebook.kernel.interrupt()
        waiting.wait(check=False)
        assert f"no longer waiting; {task['number']} (patient) runs on" in waiting.text
        assert notebook.show("patient")["state"] == "running"
    assert notebook.ended(task)["state"] == "completed"


@pytest.mark.parametrize("command", ["wait", "output --follow"])
def test_who_waits_in_a_terminal_notices_that_the_kernel_has_died(
    make_notebook: Callable[..., Notebook], command: str
) -> None:
    own = make_notebook()
    task = own.launch("print('begun')\nimport time\nwhile True: time.sleep(0.01)")
    until(lambda: own.show()["last_line"] == "begun")
    arguments = [sys.executable, "-m", "ipytaskpersist", *command.split(), task["id"]]
    with subprocess.Popen(
        arguments, env=environment(own.state_dir), stdout=subprocess.PIPE, text=True
    ) as waiting:
        try:
            if "--follow" in command:
                assert waiting.stdout is not None
                assert waiting.stdout.readline() == "begun\n"
            own.kernel.kill()
            assert waiting.wait(30) == (1 if command == "wait" else 0)
        finally:
            waiting.kill()
    ended = own.in_terminal("show", task["id"], "--json").json()
    assert (ended["state"], ended["reason"]) == ("interrupted", "kernel died")
