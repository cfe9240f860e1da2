"""Tasks that wait for a group, for other tasks, or for a time; and tasks that are paused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from kernels import NotebookKernel, until

from ipytaskpersist.base import process_tree

WAITS = "while not pathlib.Path({!r}).exists(): time.sleep(0.01)"


class Queued:
    """A kernel whose tasks wait until the test lets them end."""

    def __init__(self, kernel: NotebookKernel, folder: Path) -> None:
        self.kernel = kernel
        self.folder = folder

    def say(self, line: str) -> str:
        """What a command shows, or why it is refused."""
        return self.kernel.run(line, check=False).text

    def launch(self, name: str, flags: str = "--shell") -> str:
        """Launch a task that ends once there is a file of its name."""
        file = self.folder / name
        body = f"until [ -e {file} ]; do sleep 0.01; done"
        if "--shell" not in flags:
            body = f"import pathlib, time\n{WAITS.format(str(file))}"
        return self.say(f"%%background {flags} {name}\n{body}")

    def end(self, *names: str) -> None:
        """Let tasks end."""
        for name in names:
            (self.folder / name).touch()

    def tasks(self) -> dict[str, dict[str, Any]]:
        """All tasks by name."""
        listed = json.loads(self.say("%bg_list --all --json --limit 1000"))
        return {task["name"]: task for task in listed["tasks"]}

    def states(self, *names: str) -> list[str]:
        tasks = self.tasks()
        return [tasks[name]["state"] for name in names]

    def await_states(self, **wanted: str) -> None:
        """Wait until tasks have these states."""
        until(lambda: self.states(*wanted) == [*wanted.values()], 30, f"{wanted}")


@pytest.fixture
def queued(make_kernel: Callable[..., NotebookKernel], tmp_path: Path) -> Queued:
    return Queued(make_kernel(notebook=tmp_path / "a.ipynb"), tmp_path)


def test_a_width_holds_for_processes_and_threads_and_a_free_slot_is_taken(queued: Queued) -> None:
    queued.say("%bg_group gpu --width 2")
    queued.launch("one", "--shell --group gpu")
    queued.launch("two", "--thread --group gpu")
    queued.await_states(one="running", two="running")
    shown = queued.launch("three", "--thread --group gpu")
    assert "pending" in shown
    assert "group gpu is full: 2 of 2" in shown
    queued.launch("four", "--shell --group gpu")
    queued.launch("free")
    queued.await_states(free="running", three="pending", four="pending")
    assert queued.tasks()["three"]["waiting"]["running"] == 2
    queued.end("one")
    queued.await_states(one="completed", three="running", four="pending")
    queued.end("two")
    queued.await_states(two="completed", four="running")
    queued.end("three", "four", "free")
    queued.await_states(three="completed", four="completed", free="completed")


def test_priority_and_moves_decide_who_is_next(queued: Queued) -> None:
    queued.say("%bg_group one --width 1")
    queued.launch("runs", "--shell --group one")
    queued.await_states(runs="running")
    for name, flags in (("a", ""), ("b", "--priority 5"), ("c", ""), ("d", "")):
        queued.launch(name, f"--shell --group one {flags}")
    assert "task 5 (d) is now first in group one" in queued.say("%bg_move d --first")
    queued.say("%bg_move c --before a")
    groups = json.loads(queued.say("%bg_group one --json"))
    assert [task["name"] for task in groups["tasks"]] == ["d", "b", "c", "a"]
    assert "only a task that waits can be moved" in queued.say("%bg_move runs --last")
    order = ["runs", "d", "b", "c", "a"]
    for ended, begun in pairwise(order):
        queued.end(ended)
        queued.await_states(**{ended: "completed", begun: "running"})
    queued.end("a")


def test_a_task_waits_for_others_and_is_cancelled_with_the_one_that_failed(
    queued: Queued,
) -> None:
    queued.launch("first")
    queued.say("%%background --shell --after first fails\nexit 3")
    queued.launch("both", "--thread --after first --after any:fails")
    queued.say("%%background --thread --after fails lost\n1")
    queued.say("%%background --shell --after lost too\necho 1")
    queued.say("%%background --shell --after failed:fails cleanup\necho cleaned")
    tasks = queued.tasks()
    assert tasks["both"]["waiting"]["after"] == ["1 (first)", "2 (fails)"]
    queued.end("first", "both")
    queued.await_states(
        first="completed", fails="failed", both="completed",
        lost="cancelled", too="cancelled", cleanup="completed",
    )  # fmt: skip
    tasks = queued.tasks()
    assert tasks["lost"]["reason"] == "task 2 (fails) failed"
    assert tasks["too"]["reason"] == "task 4 (lost) was cancelled"
    refused = queued.say("%%background --after fails late\n1")
    assert "task 2 (fails) has ended (failed), so it never completes" in refused
    assert "--after any:2" in refused
    assert "late" not in queued.tasks()


def test_what_can_never_start_is_refused_where_it_is_launched(queued: Queued) -> None:
    queued.say("%bg_group gpu --width 2")
    for line, said in {
        "--group gpo": "there is no group 'gpo'; 'gpu' is one; %bg_group gpo --width 2 makes it",
        "--after 99": "no task",
        "--at 25:00": "'25:00' is no time to start at; examples: 22:00",
        "--at 2020-01-01T10:00": "2020-01-01T10:00 is in the past",
        "--at 22:00 --in 2h": "exclude each other",
        "--in 2x": "'2x' is no age; give a number and a unit: 90s",
    }.items():
        assert said in queued.say(f"%%background --shell {line} x\ntrue")
    assert "not in the range" in queued.say("%bg_group gpu --width 0")
    assert queued.tasks() == {}
    queued.say("%bg_group gpu --pause")
    shown = queued.launch("waits", "--shell --group gpu")
    assert "group gpu is paused, so the task waits; %bg_group gpu --continue" in shown
    queued.say("%bg_group gpu --continue")
    queued.await_states(waits="running")
    queued.say("%bg_group default --pause")
    assert "group default is paused, so the task waits" in queued.launch("usual", "--thread")
    assert "group default is paused, so the task waits" in queued.launch("other")
    queued.say("%bg_group default --continue")
    queued.await_states(usual="running", other="running")
    queued.end("waits", "usual", "other")


def test_a_delay_is_waited_for_and_the_supervisor_outlives_the_kernel_meanwhile(
    queued: Queued, make_kernel: Callable[..., NotebookKernel], tmp_path: Path
) -> None:
    queued.say("%%background --thread --in 1s thread\nprint('in time')")
    queued.say("%%background --shell --in 12s process\necho in time")
    assert "starts at" in queued.say("%bg_list")
    queued.await_states(thread="completed", process="pending")
    queued.kernel.kill()
    again = Queued(make_kernel(notebook=tmp_path / "a.ipynb"), tmp_path)
    again.await_states(process="completed")
    assert again.say("%bg_output process --raw") == "in time\n"


def test_the_slot_of_a_killed_supervisor_is_free_again(
    queued: Queued, make_kernel: Callable[..., NotebookKernel], tmp_path: Path
) -> None:
    """Found by the supervisor of the other notebook: no command is typed."""
    queued.say("%bg_group one --width 1")
    queued.launch("holds", "--shell --group one")
    queued.await_states(holds="running")
    other = Queued(make_kernel(notebook=tmp_path / "b.ipynb"), tmp_path)
    other.launch("waits", "--shell --group one")
    supervisor = int(queued.say(
        "from ipytaskpersist.session.manager import current\n"
        "manager = current(); own = manager.session.identity.id\n"
        "found = {each.session: each.pid for each in manager.store.supervisors.unfinished()}\n"
        "print(found[own])"
    ))  # fmt: skip
    queued.kernel.kill()
    os.kill(supervisor, signal.SIGKILL)
    file = tmp_path / "begun"
    other.say(f"%%background --shell --after waits after\ntouch {file}")
    other.end("waits")
    until(file.exists, 60, "the task that waited for the slot, and the one after it")


TREE = """import os, subprocess, sys, time
sleep = [sys.executable, '-c', 'import time; time.sleep(600)']
for apart in (False, True): subprocess.Popen(sleep, start_new_session=apart)
open('spawned', 'w').close()
while True: print(time.time(), flush=True); time.sleep(0.01)
"""


def test_a_pause_stops_the_whole_tree_and_frees_the_slot(queued: Queued) -> None:
    queued.say("%bg_group one --width 1")
    queued.say(
        f"%%background --process --group one --timeout 300 --cwd {queued.folder} tree\n{TREE}"
    )
    until((queued.folder / "spawned").exists, 30, "the whole tree")
    queued.launch("next", "--shell --group one")
    task = queued.tasks()["tree"]
    assert "is paused" in queued.say("%bg_pause tree")
    queued.await_states(next="running")
    until(lambda: queued.tasks()["tree"]["paused_at"], 10, "the pause")
    snapshot = process_tree.Snapshot()
    processes = [each for each in snapshot.all if process_tree.mark_of(each.pid) == task["id"]]
    assert len(processes) == 3
    assert all(process_tree.is_stopped(each.pid) for each in processes)
    assert "paused since" in queued.say("%bg_list")
    queued.say("%bg_continue tree")
    assert "goes on when group one has room" in queued.say("%bg_list")
    queued.end("next")
    until(lambda: not queued.tasks()["tree"]["paused_at"], 10, "the end of the pause")

    def has_stopped() -> bool:
        return any(process_tree.is_stopped(each.pid) for each in processes)

    until(lambda: not has_stopped(), 10, "all processes to go on")
    queued.say("%bg_pause tree --keep-slot")
    until(lambda: queued.tasks()["tree"]["paused_at"], 10, "the pause")
    queued.launch("blocked", "--shell --group one")
    assert queued.states("blocked") == ["pending"]
    queued.say("%bg_cancel tree")
    queued.await_states(tree="cancelled", blocked="running")
    assert queued.tasks()["tree"]["paused_s"] > 0
    queued.end("blocked")


def test_a_thread_and_a_waiting_task_cannot_be_paused(queued: Queued) -> None:
    queued.launch("thread", "--thread")
    assert "runs in a thread of its kernel, which cannot be paused" in queued.say(
        "%bg_pause thread"
    )
    queued.launch("waits", "--shell --after thread")
    assert "%bg_group default --pause" in queued.say("%bg_pause waits")
    assert "is not paused" in queued.say("%bg_continue thread")
    queued.end("thread", "waits")


def test_a_waiting_task_in_a_thread_is_cancelled(queued: Queued) -> None:
    queued.launch("runs", "--thread")
    queued.launch("waits", "--thread --after runs")
    assert "cancelled" in queued.say("%bg_cancel waits")
    queued.await_states(waits="cancelled", runs="running")
    queued.end("runs")


def test_an_end_that_waits_for_tasks_waits_for_those_that_wait_too(
    make_kernel: Callable[..., NotebookKernel], tmp_path: Path
) -> None:
    env = {"IPYTASKPERSIST_WAIT_AT_EXIT": "30"}
    kernel = make_kernel(notebook=tmp_path / "a.ipynb", env=env)
    kernel.run("%%background first\nimport time; time.sleep(1)")
    kernel.run("%%background --after first second\nprint('both')")
    kernel.shutdown()
    again = Queued(make_kernel(notebook=tmp_path / "a.ipynb"), tmp_path)
    assert again.states("first", "second") == ["completed", "completed"]


def test_the_width_of_the_usual_group_is_a_setting(queued: Queued) -> None:
    queued.say("%bg_config max_running 1")
    queued.launch("a", "--shell")
    queued.launch("b", "--thread")
    queued.await_states(a="running", b="pending")
    queued.end("a", "b")
    queued.await_states(a="completed", b="completed")


def test_programs_say_what_a_task_waits_for(queued: Queued) -> None:
    queued.say("import ipytaskpersist as bg")
    queued.launch("first")
    queued.say("second = bg.background('print(2)', 'second', after=['first'])")
    queued.say("third = bg.submit(print, 3, name='third', after=[second], process=True)")
    queued.await_states(second="pending", third="pending")
    queued.end("first")
    queued.await_states(second="completed", third="completed")
    third = queued.tasks()["third"]
    assert third["created_at"] < third["started_at"]
