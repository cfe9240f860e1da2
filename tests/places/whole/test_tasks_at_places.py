"""Tasks of real kernels that run at a place: an ssh server on loopback."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
import pytest
from kernels import NotebookKernel, until
from places_in_use import Far

from ipytaskpersist.base.records import TaskState
from ipytaskpersist.store.tasks import Selection

MakeKernel = Callable[..., NotebookKernel]
COUNTER = """\
%%background --shell --on far counter
number=0
while [ ! -e {stop} ]; do echo line $number; number=$((number + 1)); sleep 0.01; done
echo done
"""


def test_a_command_prints_fails_and_leaves_nothing_there(far: Far, kernel: NotebookKernel) -> None:
    kernel.run(
        "%%background --shell --on far --env NAME=Ünï --cwd / build\n"
        'echo "here is $NAME in $PWD"; echo wrong >&2; exit 3'
    )
    task = far.ended()
    assert (task.state, task.exit_code, task.reason) == (TaskState.FAILED, 3, "exit status 3")
    assert sorted(far.text().splitlines()) == ["here is Ünï in /", "wrong"]
    shown = kernel.run("%bg_show build").text
    assert "shell command on far" in shown
    (listed,) = json.loads(kernel.run("%bg_list --json").text)["tasks"]
    assert (listed["place"], listed["state"]) == ("far", "failed")
    until(lambda: not far.left(), message="the removal of what it has left")
    # Run again, it runs there again.
    kernel.run("%bg_rerun build")
    assert far.ended(2).exit_code == 3
    assert far.task(2).place == "far"


def test_a_task_goes_on_when_kernel_and_supervisor_are_killed(
    far: Far, kernel: NotebookKernel, make_kernel: MakeKernel
) -> None:
    kernel.run(COUNTER.format(stop=far.stop))
    far.counts()
    kernel.kill()
    far.kill_supervisor()
    assert far.task().state is TaskState.RUNNING
    # Another kernel of the notebook finds it, and has a supervisor follow it.
    again = make_kernel(notebook=far.notebook)
    assert "counter" in again.run("%bg_list").text
    far.counts()
    assert far.task().state is TaskState.RUNNING
    far.stop.touch()
    assert far.ended().state is TaskState.COMPLETED
    assert far.is_whole()
    until(lambda: not far.left(), message="the removal of what it has left")


def test_a_supervisor_that_is_killed_again_and_again_loses_no_line_and_repeats_none(
    far: Far, kernel: NotebookKernel
) -> None:
    kernel.run(COUNTER.format(stop=far.stop))
    for _death in range(3):
        far.counts()
        far.kill_supervisor()
        kernel.run("%bg_list")
        until(far.store.supervisors.unfinished, message="another supervisor")
    far.counts()
    far.stop.touch()
    assert far.ended().state is TaskState.COMPLETED
    assert far.is_whole()


def test_a_place_that_cannot_be_reached_is_said_and_nothing_is_lost(
    far: Far, kernel: NotebookKernel
) -> None:
    kernel.run(COUNTER.format(stop=far.stop))
    far.counts()
    far.server.cut()
    far.server.stop()
    until(lambda: far.task().unreachable_since, message="that it is noticed")
    assert far.task().state is TaskState.RUNNING
    until(lambda: "refused" in (far.task().unreachable_why or ""), message="why")
    assert re.search(r"unreachable since [0-9:]+ UTC: ", kernel.run("%bg_list").text)
    far.stop.touch()  # it ends unseen
    far.server.start()
    assert far.ended().state is TaskState.COMPLETED
    assert far.is_whole()


def test_a_task_waits_for_a_place_that_does_not_answer_and_can_be_cancelled(
    far: Far, kernel: NotebookKernel
) -> None:
    far.server.stop()
    kernel.run("%%background --shell --on far never\necho no")
    until(lambda: "waits for far: " in kernel.run("%bg_list").text, message="why it waits")
    assert far.task().state is TaskState.PENDING
    kernel.run("%bg_cancel never")
    assert far.ended().state is TaskState.CANCELLED
    kernel.run("%%background --shell --on far later\necho yes")
    far.server.start()
    assert far.ended(2).state is TaskState.COMPLETED
    assert far.text(2) == "yes\n"


@pytest.mark.parametrize("ends", ["cancel", "timeout"])
def test_it_ends_with_all_its_processes(far: Far, kernel: NotebookKernel, ends: str) -> None:
    timeout = "--timeout 1" if ends == "timeout" else ""
    kernel.run(
        f"%%background --shell --on far {timeout} sleeper\n"
        "setsid sleep 1234 & echo $!; trap '' TERM; sleep 1234"
    )
    pid = int(until(far.text, message="the pid of its child"))
    if ends == "cancel":
        kernel.run("%config BackgroundTasks.cancel_grace_s = 0.2")
        kernel.run("%bg_cancel sleeper")
    task = far.ended()
    expected = (TaskState.CANCELLED, "cancelled")
    if ends == "timeout":
        expected = (TaskState.FAILED, "timed out after 1 s")
    assert (task.state, task.reason) == expected
    until(lambda: has_ended(pid), message="the end of its child")


def test_it_is_paused_and_goes_on(far: Far, kernel: NotebookKernel) -> None:
    kernel.run(COUNTER.format(stop=far.stop))
    far.counts()
    kernel.run("%bg_pause counter")
    (leader,) = processes_with(far.task().id, "stop")
    until(lambda: leader.status() == psutil.STATUS_STOPPED, message="that it stands still")
    kernel.run("%bg_continue counter")
    far.counts()
    far.stop.touch()
    assert far.ended().state is TaskState.COMPLETED
    assert far.is_whole()


def has_ended(pid: int) -> bool:
    """Whether a process has ended, though pid 1 may not have reaped it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def processes_with(task_id: str, word: str) -> list[psutil.Process]:
    """The processes of a task over there, which is here, with a word in their command."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_of_task = process.environ().get("IPYTASKPERSIST_TASK") == task_id
            if is_of_task and word in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_the_width_of_a_group_holds_for_places(far: Far, kernel: NotebookKernel) -> None:
    kernel.run("%bg_group two --width 2")
    for _task in range(4):
        kernel.run(
            "%%background --shell --on far --group two\n"
            f"while [ ! -e {far.stop} ]; do sleep 0.05; done"
        )

    def running() -> list[int]:
        states = {each.number: each.state for each in far.store.tasks.select(Selection())}
        return [number for number, state in states.items() if state is TaskState.RUNNING]

    until(lambda: len(running()) == 2, message="two that run")
    assert "group two is full: 2 of 2" in kernel.run("%bg_list").text
    far.stop.touch()
    for number in range(1, 5):
        assert far.ended(number).state is TaskState.COMPLETED


MISTAKES = {
    "--shell --on fra\nls": "no place 'fra'; did you mean 'far'?",
    "--shell --on far --gpus 1\nls": "--gpus is about this machine",
}


@pytest.mark.parametrize("cell", MISTAKES)
def test_what_a_place_cannot_do_is_said(far: Far, kernel: NotebookKernel, cell: str) -> None:
    said = kernel.run(f"%%background {cell}", check=False)
    assert MISTAKES[cell] in said.stream("stderr")


def test_places_are_listed_with_what_they_answer(far: Far, kernel: NotebookKernel) -> None:
    places: dict[str, Any] = {
        "far": far.spec,
        "gone": {"kind": "ssh", "host": "127.0.0.1", "port": 9},
    }
    kernel.run(f"%config BackgroundTasks.places = {places!r}")
    found = {
        each["name"]: each for each in json.loads(kernel.run("%bg_places --json").text)["places"]
    }
    assert found["far"]["answers"]
    assert not found["gone"]["answers"]
    assert "refused" in found["gone"]["problem"]
    text = kernel.run("%bg_places").text
    assert "yes, after" in text
    assert "no: " in text
    said = kernel.run("%config BackgroundTasks.places = {'x': {'kind': 'shh'}}", check=False)
    assert "'shh' is no kind of place" in said.stream("stderr") + said.text + str(said.error)


def test_a_task_whose_keeper_is_gone_is_interrupted(far: Far, kernel: NotebookKernel) -> None:
    kernel.run(COUNTER.format(stop=far.stop))
    far.counts()
    until(lambda: far.process().far.get("pid"), message="the keeper's pid")
    psutil.Process(int(far.process().far["pid"])).kill()
    task = far.ended()
    assert task.state is TaskState.INTERRUPTED
    assert (task.reason or "").startswith("lost at far: ")
    lines = far.text().splitlines()
    assert lines == [f"line {number}" for number in range(len(lines))]


def test_it_is_archived_exported_and_shown_with_its_place(far: Far, kernel: NotebookKernel) -> None:
    kernel.run("%%background --shell --on far once\necho kept")
    far.ended()
    shown = json.loads(kernel.run("%bg_show once --json").text)
    assert shown["process"]["place"]["name"] == "far"
    assert shown["process"]["place"]["task"]["host"]
    kernel.run(f"%bg_export once --output {far.folder}/once.jsonl")
    kernel.run("%bg_archive once")
    assert "kept" in kernel.run("%bg_output once").text
    assert "shell command on far" in kernel.run("%bg_show once").text
    kernel.run("%bg_rerun once")
    until(lambda: "completed" in kernel.run("%bg_list").text, message="its second run")
