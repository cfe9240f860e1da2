"""A keeper outlives what started it, does what it is asked, and holds its task to its limits."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
from far_ends import FarEnds, FarTask, is_running
from kernels import until

from ipytaskpersist.places.far.files import append_line

COUNT = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i; sleep 0.01; done"
NUMBERS = "".join(f"{number}\n" for number in range(1, 301))
WHOLE = "".join(f"{number}\n" for number in range(1, 1_000_001))
STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
ELSEWHERE = "setsid sleep 100 & echo $!; wait"
"""Starts a process that leaves the session of its task."""


# What a keeper survives.


def test_nothing_is_missing_and_nothing_twice_when_servers_are_killed(far: FarEnds) -> None:
    task = far.start("sh", "-c", COUNT)
    for number in (3, 60, 120, 180, 240):
        task.wait_for(f"\n{number}\n")
        far.kill()
    assert task.end().status == 0
    assert task.text() == NUMBERS


def test_a_keeper_is_the_child_of_nobody_and_holds_nothing_of_its_server(far: FarEnds) -> None:
    task = far.start("sleep", "100")
    keeper = psutil.Process(task.keeper)
    assert keeper.ppid() != far.process.pid
    assert os.getsid(keeper.pid) != far.process.pid
    assert keeper.cwd() == "/"

    def held() -> tuple[set[str], int]:
        opened = []
        for path in Path(f"/proc/{keeper.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it has just been closed
                opened.append(str(path.readlink()))
        files = {path for path in opened if not path.startswith("pipe:")}
        return files, len(opened) - len(files)

    named = {"/dev/null", str(task.folder / "log"), str(task.folder / "spool")}
    # The task's two streams, and both ends of the one for signals. Descriptors 1 and 2 are the log.
    # While it starts the task, it has more.
    until(lambda: held() == (named, 1 + 2 + 2), message="that it holds no more")


def test_a_hangup_is_survived(far: FarEnds) -> None:
    task = far.start("sh", "-c", COUNT)
    task.wait_for("\n10\n")
    for _ in range(5):
        os.kill(task.keeper, signal.SIGHUP)
    assert task.end().status == 0
    assert task.text() == NUMBERS


def test_a_hangup_is_not_ignored_in_the_task(far: FarEnds) -> None:
    assert far.start("sh", "-c", "kill -HUP $$; sleep 1").end().status == -signal.SIGHUP


def test_a_terminated_keeper_lets_its_task_end_and_records_that(far: FarEnds) -> None:
    task = far.start("sh", "-c", "trap 'echo saving; exit 7' TERM; echo ready; sleep 100 & wait")
    task.wait_for("ready")
    os.kill(task.keeper, signal.SIGTERM)
    end = task.end()
    assert (end.status, end.reason) == (7, "terminated")
    assert "saving" in task.text()


def test_a_terminated_keeper_kills_a_task_that_does_not_end(far: FarEnds) -> None:
    task = far.start("sh", "-c", STUBBORN, grace_s=0.2)
    task.wait_for("ready")
    os.kill(task.keeper, signal.SIGTERM)
    end = task.end()
    assert (end.status, end.reason) == (-9, "terminated")
    assert task.processes() == []


def test_a_task_whose_folder_was_removed_ends(far: FarEnds) -> None:
    task = far.start("sleep", "100")
    keeper, processes = task.keeper, task.processes()
    task.folder.rename(far.home / "removed")
    until(lambda: not any(map(is_running, [keeper, *processes])))


def test_a_keeper_belongs_to_no_task(far: FarEnds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server may have been started by one, which ends what it leaves."""
    monkeypatch.setenv("IPYTASKPERSIST_TASK", "outer-1")
    task = far.start("sh", "-c", "echo $IPYTASKPERSIST_TASK; sleep 100")
    task.wait_for("\n")
    assert task.text() == f"{task.folder.name}\n"
    assert psutil.Process(task.keeper).environ()["IPYTASKPERSIST_TASK"] == ""


def test_a_keeper_killed_in_the_midst_of_output_leaves_a_whole_beginning(far: FarEnds) -> None:
    for number in range(1, 6):
        task = far.start("seq", "100000000", name=f"flood-{number}")
        _wait_for_size(task, 300_000 * number)
        psutil.Process(task.keeper).kill()
        _wait_for_state(task, "lost")
        task.signal("kill")
        _pull_all(task)
        assert len(task.text()) > 100_000
        assert WHOLE.startswith(task.text()[: len(WHOLE)])


def _wait_for_size(task: FarTask, size: int) -> None:
    until(lambda: task.look()["size"] > size)


def _wait_for_state(task: FarTask, state: str) -> None:
    until(lambda: task.state() == state)


def _pull_all(task: FarTask) -> None:
    while task.reader.wanted < task.look()["size"]:
        task.pull()


# Signals.


@pytest.mark.parametrize("what", ["end", "kill"])
def test_a_task_is_ended_with_all_its_processes(far: FarEnds, what: str) -> None:
    task = far.start("sh", "-c", ELSEWHERE)
    task.wait_for("\n")
    grandchild = int(task.text())
    until(lambda: len(task.processes()) == 2)
    assert task.signal(what)["state"] in ("running", "ended")
    end = task.end()
    assert end.reason == "asked"
    assert end.status in (-signal.SIGTERM, -signal.SIGKILL)
    assert not is_running(grandchild)


def test_a_task_that_ignores_the_request_is_killed_after_its_time(far: FarEnds) -> None:
    task = far.start("sh", "-c", STUBBORN, grace_s=0.3)
    task.wait_for("ready")
    asked_at = time.monotonic()
    task.signal("end")
    end = task.end()
    assert (end.status, end.reason) == (-9, "asked")
    assert time.monotonic() - asked_at >= 0.3


def test_to_kill_a_task_does_not_wait_for_its_end(far: FarEnds) -> None:
    task = far.start("sh", "-c", STUBBORN, grace_s=1000.0)
    task.wait_for("ready")
    task.signal("end")
    task.signal("kill")
    end = task.end()
    assert (end.status, end.reason) == (-9, "asked")


def test_another_machine_asks_through_the_file_alone(far: FarEnds) -> None:
    task = far.start("sleep", "100")
    append_line(task.folder / "asked", "end")
    assert task.end().reason == "asked"


def test_a_stopped_task_goes_on_where_it_was(far: FarEnds) -> None:
    task = far.start("sh", "-c", f"{ELSEWHERE.replace('wait', COUNT)}; kill $!", timeout_s=60)
    task.wait_for("\n10\n")
    task.signal("stop")
    until(lambda: _statuses(task.processes()) == {psutil.STATUS_STOPPED})
    until(lambda: task.pull(wait_s=1.0) is None)
    before = task.text()
    assert task.pull(wait_s=0.5) is None
    assert task.text() == before
    task.signal("continue")
    assert task.end().status == 0
    assert task.text().partition("\n")[2] == NUMBERS


def _statuses(pids: list[int]) -> set[str]:
    return {psutil.Process(pid).status() for pid in pids if is_running(pid)}


def test_a_stopped_task_can_be_ended(far: FarEnds) -> None:
    task = far.start("sh", "-c", "trap 'exit 7' TERM; echo ready; sleep 100 & wait")
    task.wait_for("ready")
    task.signal("stop")
    until(lambda: _statuses(task.processes()) == {psutil.STATUS_STOPPED})
    task.signal("end")
    assert task.end().status == 7


def test_a_signal_that_there_is_not_is_refused(far: FarEnds) -> None:
    task = far.start("true")
    folder = str(task.folder)
    assert "no signal 'dance'" in far.refusal("signal", folder=folder, what="dance")
    assert "no task in" in far.refusal("signal", folder=str(far.folder / "x"), what="end")
    until(lambda: task.state() == "ended")
    assert task.signal("end")["end"]["reason"] is None


# Limits.


def test_a_task_may_run_for_so_long(far: FarEnds) -> None:
    end = far.start("sleep", "100", timeout_s=0.5).end()
    assert (end.status, end.reason) == (-signal.SIGTERM, "timeout")


def test_time_for_which_a_task_was_stopped_does_not_count(far: FarEnds) -> None:
    task = far.start("sh", "-c", "echo ready; sleep 1; echo done", timeout_s=6.0)
    task.wait_for("ready")
    task.signal("stop")
    until(lambda: _statuses(task.processes()) == {psutil.STATUS_STOPPED})
    stopped_at = time.monotonic()
    while time.monotonic() < stopped_at + 7.0:
        assert task.pull(wait_s=1.0) is None, task.frames
    task.signal("continue")
    assert task.end().status == 0


def test_a_task_may_use_so_much_memory_with_all_its_processes(far: FarEnds) -> None:
    use = f"{sys.executable} -c 'import time; x = b\"x\" * 80_000_000; time.sleep(100)'"
    task = far.start("sh", "-c", f"{use} & {use} & wait", memory_bytes=120_000_000)
    end = task.end()
    assert end.reason == "memory"
    assert end.used_bytes is not None
    assert end.peak_memory_bytes is not None
    assert end.peak_memory_bytes >= end.used_bytes > 120_000_000
    assert task.processes() == []


def test_a_task_within_its_memory_is_left_alone(far: FarEnds) -> None:
    """Pages that a fork shares with its parent count once."""
    code = (
        "import os, time; x = b'x' * 60_000_000; pids = [os.fork() for _ in range(2)];"
        "time.sleep(1.5)"
    )
    end = far.start(sys.executable, "-c", code, memory_bytes=150_000_000).end()
    assert (end.status, end.reason) == (0, None)


# Its output.


def test_output_is_kept_until_the_last_process_has_closed_it(far: FarEnds) -> None:
    task = far.start("sh", "-c", "(sleep 0.7; echo late) & echo early; exit 3")
    end = task.end()
    assert end.status == 3
    assert task.text() == "early\nlate\n"


def test_output_that_another_program_holds_does_not_hold_up_an_end(
    far: FarEnds, tmp_path: Path
) -> None:
    """One without the task's mark, which nothing tells from a service."""
    script = f"env -i setsid sleep 100 & echo $! > {tmp_path}/pid; wait"
    code = "import subprocess, sys; subprocess.run(['sh', '-c', sys.argv[1]])"
    task = far.start(sys.executable, "-c", code, script)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    task.signal("end")
    assert task.end().reason == "asked"
    psutil.Process(pid).kill() if is_running(pid) else None


def test_a_slow_line_is_there_at_once(far: FarEnds) -> None:
    code = (
        "import time\nfor _ in range(60): print(time.time(), flush=True); time.sleep(0.02)\n"
        "time.sleep(60)"
    )
    task = far.start(sys.executable, "-c", code)
    delays: list[float] = []
    while len(delays) < 60:
        task.pull(wait_s=10.0)
        lines = task.text().splitlines()
        delays += [time.time() - float(line) for line in lines[len(delays) :]]
    assert sorted(delays)[len(delays) // 2] < 0.1


def test_a_quarter_of_a_gigabyte_passes_in_a_moment(far: FarEnds) -> None:
    task = far.start("sh", "-c", "seq 30000000; sleep 100")
    until(lambda: task.look()["size"] > 258_888_897, timeout=60)
    used = psutil.Process(task.keeper).cpu_times()
    task.signal("kill")
    assert used.user + used.system < 2.0
    task.end()
    assert len(task.data()) == 258_888_897
    assert all(len(frame.data) <= 256 * 1024 for frame in task.frames)


def test_the_keeper_of_an_idle_task_costs_nothing(far: FarEnds) -> None:
    task = far.start("sleep", "100")
    keeper = psutil.Process(task.keeper)
    before = sum(keeper.cpu_times()[:2])
    assert task.pull(wait_s=4.0) is None
    assert sum(keeper.cpu_times()[:2]) - before < 0.1


def test_two_servers_know_the_same(far: FarEnds) -> None:
    task = far.start("sh", "-c", "echo hello; sleep 100")
    with closing(FarEnds(far.home)) as other:
        seen = other.task()
        seen.wait_for("hello")
        seen.signal("kill")
        assert task.end() == seen.end()
