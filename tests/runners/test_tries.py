"""Tasks that are tried again, after errors, kills and the death of those who watch over them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kernels import NotebookKernel, until

from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.base.retries import CAUSES, Retries, causes_of
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

COUNTS = "echo run >> {file}; [ $(wc -l < {file}) -ge {needed} ] {rest}"


def counts(file: Path, needed: int, rest: str = "|| exit 7") -> str:
    """A command that writes a line with each run, and completes in the run of this number."""
    return COUNTS.format(file=file, needed=needed, rest=rest)


def runs(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


def chain(store: TaskStore, name: str) -> list[TaskRecord]:
    """The tries of a task, the first one first."""
    return [task for task in store.tasks.select(Selection()) if task.name == name]


def ended(store: TaskStore, name: str) -> list[TaskRecord]:
    tries = chain(store, name)
    return tries if tries and all(task.state.is_final for task in tries) else []


def test_tries_take_over_what_belongs_to_the_task(
    make_kernel: Callable[..., NotebookKernel], store: TaskStore, tmp_path: Path
) -> None:
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")

    def say(line: str) -> str:
        return kernel.run(line, check=False).text

    say("import os; os.environ['TRIES_TEST'] = 'from the notebook'; rows = [1, 2]")
    file, shown = tmp_path / "runs", tmp_path / "shown"
    body = f"echo $TRIES_TEST >> {shown}; {counts(file, 3)}"
    assert "'200ms' is no age" in say(f"%%background --shell --retries 3 --delay 200ms bad\n{body}")
    say(f"%%background --shell --retries 3 --delay 0.2s --tag night flaky\n{body}")
    say("%%background --shell --after flaky after\ntrue")
    waited = say("%bg_wait flaky")
    first, second, third = ended(store, "flaky")
    assert "completed" in waited
    assert first.reason == f"exit status 7; task {second.number} tries again"
    assert first.cleared_at is not None
    assert third.cleared_at is None
    assert [task.state for task in (second, third)] == [TaskState.FAILED, TaskState.COMPLETED]
    assert third.created_at >= second.ended_at  # type: ignore[operator]
    assert third.tags == ("night",)
    until(lambda: chain(store, "after")[0].state is TaskState.COMPLETED, 30, "the one after it")
    assert shown.read_text() == "from the notebook\n" * 3
    assert [task["number"] for task in json.loads(say("%bg_list --json"))["tasks"]] == [2, 4]
    assert f"try 3 of 4 of task {first.number}" in say(f"%bg_show {third.number}")
    assert json.loads(say(f"%bg_show {second.number} --json"))["try"] == {
        "number": 2, "of": 4, "first_task": first.number, "causes": list(CAUSES),
    }  # fmt: skip

    _says_which_try_it_shows(kernel)

    # Variables come back from the try that has completed, which is given them again.
    python = tmp_path / "python"
    say(
        "%%background --process --retries 1 --on-cause error adds\n"
        f"count = open({str(python)!r}, 'a+').write('run\\n'); rows.append(3)\n"
        f"assert len(open({str(python)!r}).readlines()) == 2"
    )
    until(lambda: len(ended(store, "adds")) == 2, 60, "both tries")
    assert kernel.run("rows").text.splitlines()[-1] == "[1, 2, 3]"

    # A cause that is not named, a cancellation, and a thread.
    say("%%background --shell --retries 3 --on-cause oom,signal other\nexit 3")
    say("%%background --shell --retries 3 --delay 1h cancelled\nexit 3")
    say("%bg_wait other")
    assert len(chain(store, "other")) == 1
    until(lambda: len(chain(store, "cancelled")) == 2, 30, "the second try, which waits")
    waiting = chain(store, "cancelled")[1]
    assert f"try 2 of 4 of task {chain(store, 'cancelled')[0].number}, starts at" in say("%bg_list")
    number = chain(store, "cancelled")[0].number
    assert f"is tried again as task {waiting.label}" in say(f"%bg_delete {number} --yes")
    said = say(f"%bg_cancel {number}")
    assert f"task {waiting.label}: cancelled" in said
    assert len(ended(store, "cancelled")) == 2
    assert "--retries needs a process" in say("%%background --thread --retries 3\n1")
    assert "need --retries N" in say("%%background --shell --delay 3s\ntrue")
    assert "it knows oom, reboot" in say("%%background --shell --retries 1 --on-cause rain\ntrue")
    until(lambda: not [*store.directory.environments.iterdir()], 30, "no environment is left")


def _says_which_try_it_shows(kernel: NotebookKernel) -> None:
    said = kernel.run("%bg_output 1").stream("stderr").splitlines()
    assert said == [
        "task 1 (flaky) was try 1 of 4; the latest is task 4 (completed): %bg_output 4 shows its "
        "output"
    ]
    assert kernel.run("%bg_output flaky").stream("stderr") == ""
    assert "task 4 (flaky) is a shell command" in kernel.run("%bg_result 1", check=False).text


def test_following_goes_on_with_the_next_try(
    make_kernel: Callable[..., NotebookKernel], tmp_path: Path
) -> None:
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")
    body = f"echo run $(($(cat {tmp_path}/runs | wc -l) + 1)); {counts(tmp_path / 'runs', 2)}"
    kernel.run(f"%%background --shell --retries 2 --delay 0.5s flaky\n{body}")
    followed = kernel.run("%bg_output flaky --follow")
    assert followed.stream("stdout") == "run 1\nrun 2\n"
    said = "task 1 (flaky) failed: exit status 7; task 2 tries again (try 2 of 3 of task 1"
    assert said in followed.stream("stderr")
    offered = kernel.run("%bg_list --cleared").text
    assert "%bg_rerun 1" not in offered


@pytest.mark.parametrize("lost", ["supervisor", "kernel", "machine"])
def test_a_killed_supervisor_and_a_killed_task_are_followed_by_one_try_each(
    make_kernel: Callable[..., NotebookKernel],
    store: TaskStore,
    manager: BackgroundTasks,
    tmp_path: Path,
    lost: str,
) -> None:
    kernel = make_kernel(notebook=tmp_path / "a.ipynb", env={"TRIES_TEST": "from the kernel"})
    file, shown = tmp_path / "runs", tmp_path / "shown"
    body = f"echo $TRIES_TEST >> {shown}; {counts(file, 3, '|| exec sleep 600')}"
    causes = "signal,reboot" if lost == "machine" else "signal,supervisor"
    kernel.run(f"%%background --shell --retries 5 --on-cause {causes} job\n{body}")
    kernel.run("%%background --shell --retries 1 --after job waits\ntrue")
    kernel.run("%%background --shell --after job gone\ntrue")
    until(lambda: runs(file) == 1, 30, "the first try")

    (first,) = chain(store, "job")
    until(lambda: _pid(store, first) is not None, 30, "its process is recorded")
    os.kill(_pid(store, first) or 0, signal.SIGKILL)
    until(lambda: runs(file) == 2, 30, "the second try")
    (supervisor,) = store.supervisors.unfinished()
    if lost != "supervisor":
        kernel.kill()
    os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: ProcessIdentity.of(supervisor.pid) is None, 30, "the death of the supervisor")
    if lost == "machine":  # the boot that the store remembers is another one
        store.database.execute("UPDATE supervisors SET boot_id = 'of an earlier boot'")
        store.database.execute("UPDATE sessions SET boot_id = 'of an earlier boot'")

    def reconciled() -> list[TaskRecord]:
        if lost != "supervisor":
            manager.runners.reconcile()
        return ended(store, "job")

    tries = until(reconciled, 60, "the third try")
    assert [task.try_number for task in tries] == [1, 2, 3]
    assert tries[0].reason == f"killed by SIGKILL; task {tries[1].number} tries again"
    why = "machine rebooted" if lost == "machine" else "supervisor died"
    assert tries[1].reason == f"{why}; task {tries[2].number} tries again"
    assert tries[2].state is TaskState.COMPLETED
    assert runs(file) == 3
    assert shown.read_text() == "from the kernel\n" * 3
    until(lambda: ended(store, "waits"), 30, "what waited, and may be tried again")
    assert ended(store, "waits")[0].state is TaskState.COMPLETED
    (gone,) = until(lambda: ended(store, "gone"), 30, "what waited, and is not tried again")
    assert gone.state is TaskState.COMPLETED
    assert store.tasks.interrupted(tries[0].notebook_key) == []


def _pid(store: TaskStore, task: TaskRecord) -> int | None:
    process = store.processes.get(task.key)
    return None if process is None else process.pid


@pytest.mark.parametrize(
    ("end", "causes"),
    [
        (("completed", None, 0), ()),
        (("cancelled", "cancelled", -15), ()),
        (("failed", "timed out after 3 s", -15), ("timeout",)),
        (("failed", "killed by SIGKILL (out of memory)", -9), ("oom",)),
        (("failed", "killed by SIGSEGV", -11), ("signal",)),
        (("failed", "ValueError: timed out after 3 s", 1), ("error",)),
        (("failed", "could not be started: no such file", None), ("error",)),
        (("interrupted", "machine rebooted", None), ("reboot",)),
        (("interrupted", "supervisor stopped", None), ("supervisor", "reboot")),
        (("interrupted", "supervisor died", None), ("supervisor",)),
    ],
)
def test_each_end_has_its_cause(end: tuple[Any, ...], causes: tuple[str, ...]) -> None:
    assert causes_of(*end) == causes
    assert Retries(1).follow(1, causes) is bool(causes)
    assert not Retries(1).follow(2, causes)


def test_the_delay_doubles_up_to_a_limit() -> None:
    retries = Retries(5, delay_s=10, max_delay_s=35)
    assert [retries.delay_after(number) for number in (1, 2, 3, 4000)] == [10, 20, 35, 35]
    assert Retries.from_json(retries.as_json()) == Retries(5, [*CAUSES], 10, 35)
