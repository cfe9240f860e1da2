"""Tasks as jobs of a Slurm cluster: a real controller, and a node that is this machine."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from engines import Link, Slurm
from kernels import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Slurm runs on Linux")

Connect = Callable[..., Link]
ENDLESS = "exec sleep 600"
WHOLE = ["--exclusive"]


@pytest.fixture(autouse=True)
def quiet(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test finds the cluster idle, and leaves it so."""
    monkeypatch.setenv("SLURM_CONF", str(slurm.config))
    yield
    slurm.run("scancel", "--user", str(os.getuid()))
    until(slurm.is_ready, 60, "an idle node")


def place_of(slurm: Slurm, tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {**slurm.spec, "folder": str(tmp_path / "tasks"), **more}


def folder_of(tmp_path: Path, number: int = 1) -> str:
    return str(tmp_path / "tasks" / f"größer %j {number}")


def numbers(file: Path) -> str:
    """A script that notes in a file that it was started, and prints numbers for two seconds."""
    return (
        f"echo started >> '{file}'; i=0; "
        "while [ $i -lt 200 ]; do echo $i; i=$((i+1)); sleep 0.01; done"
    )


ALL_NUMBERS = b"".join(b"%d\n" % number for number in range(200))


def test_a_task_runs_as_a_job_and_is_read_to_its_end(
    link: Connect, slurm: Slurm, tmp_path: Path
) -> None:
    far = link(place_of(slurm, tmp_path))
    assert far.ask("hello")[0]["python"].startswith("3.")
    folder = folder_of(tmp_path)
    started = far.start(folder, "echo begun $SLURM_JOB_ID; sleep 0.2; echo ended >&2; exit 3")
    number = started["job"]
    assert started == {"started": True, "job": number}
    assert far.start(folder, "echo again")["job"] == number
    end = far.end_of(folder)
    assert (end.status, end.reason) == (3, None)
    assert far.printed(folder) == f"begun {number}\n".encode()
    assert far.printed(folder, b"e") == b"ended\n"
    until(lambda: far.state_of(folder) == "ended")
    assert not (Path(folder) / "brief").exists()
    assert far.ask("forget", folders=[folder])[0] == {"kept": {}}
    assert not Path(folder).exists()


def test_a_job_that_waits_says_for_what_and_can_be_cancelled(
    link: Connect, slurm: Slurm, tmp_path: Path
) -> None:
    far = link(place_of(slurm, tmp_path, options=WHOLE))
    first, second, third = (folder_of(tmp_path, each) for each in range(3))
    far.start(first, ENDLESS)
    until(lambda: far.state_of(first) == "running")
    for folder in (second, third):
        far.start(folder, "echo done")
    look = until(lambda: (look := far.look(second))["why"] and look)
    assert look["state"] == "pending"
    until(
        lambda: far.look(second)["why"] == "not enough nodes, CPUs or memory are free (Resources)"
    )
    far.ask("signal", folder=second, what="end")
    end = far.end_of(second)
    assert (end.status, end.reason) == (None, "asked")
    until(lambda: look["job"] not in slurm.run("squeue", "--noheader", "--format=%i").split())
    far.ask("signal", folder=first, what="end")
    assert far.end_of(first).reason == "asked"
    assert far.end_of(third).status == 0
    assert far.printed(third) == b"done\n"
    until(lambda: far.state_of(second) == "ended")
    assert far.ask("forget", folders=[second])[0] == {"kept": {}}
    assert not Path(second).exists()


def test_that_a_waiting_job_was_cancelled_elsewhere_is_news(
    link: Connect, slurm: Slurm, tmp_path: Path
) -> None:
    far = link(place_of(slurm, tmp_path, options=["--hold"]))
    folder = folder_of(tmp_path)
    number = far.start(folder, "echo done")["job"]
    assert far.look(folder)["why"] == ("you hold it; 'scontrol release' lets it go (JobHeldUser)")
    far.send("read", tasks=[[folder, 0]], wait_s=60.0)
    slurm.run("scancel", number)
    ((size, look),) = far.receive()[0]["tasks"]
    assert size == 0
    assert (look["state"], look["job"]) == ("lost", number)
    assert look["why"] == f"job {number} is over: it was cancelled, and never started the task"
    assert far.ask("forget", folders=[folder])[0] == {"kept": {}}
    assert not Path(folder).exists()


def test_scancel_lets_a_task_end_and_its_end_is_recorded(
    link: Connect, slurm: Slurm, tmp_path: Path
) -> None:
    far = link(place_of(slurm, tmp_path))
    folder = folder_of(tmp_path)
    number = far.start(
        folder, "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    )["job"]
    until(lambda: far.read_on(folder) and far.printed(folder))
    slurm.run("scancel", number)
    end = far.end_of(folder)
    assert (end.status, end.reason) == (5, "terminated")
    assert far.printed(folder) == b"ready\nbye\n"


def test_a_keeper_that_was_killed_is_lost_and_what_is_left_can_be_ended(
    link: Connect, slurm: Slurm, tmp_path: Path
) -> None:
    far = link(place_of(slurm, tmp_path))
    folder = folder_of(tmp_path)
    number = far.start(folder, "echo ready; exec sleep 600")["job"]
    until(lambda: far.read_on(folder) and far.printed(folder))
    keeper, task = (far.look(folder)[name] for name in ("pid", "task_pid"))
    os.kill(keeper, signal.SIGKILL)
    look = until(lambda: (look := far.look(folder))["state"] == "lost" and "why" in look and look)
    assert look["why"].startswith(f"job {number} is over: ")
    assert far.printed(folder) == b"ready\n"
    assert look["left"] == [task]  # with control groups, Slurm itself would have ended it
    far.ask("signal", folder=folder, what="kill")
    until(lambda: not psutil.pid_exists(task), message="the task's end")


def test_nothing_is_missing_after_the_connection_was_killed(
    link: Connect, slurm: Slurm, tmp_path: Path
) -> None:
    first = link(place_of(slurm, tmp_path))
    folder, file = folder_of(tmp_path), tmp_path / "started"
    number = first.start(folder, numbers(file))["job"]
    until(lambda: first.read_on(folder))
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    second = link(place_of(slurm, tmp_path))
    assert second.start(folder, numbers(file))["job"] == number
    second.end_of(folder)
    assert second.printed(folder) == ALL_NUMBERS
    assert file.read_text() == "started\n"


def test_two_jobs_of_a_task_start_it_once(link: Connect, slurm: Slurm, tmp_path: Path) -> None:
    """The bridge may die between the submission and its note of it."""
    far = link(place_of(slurm, tmp_path))
    folder, file = folder_of(tmp_path), tmp_path / "started"
    first = far.start(folder, numbers(file))["job"]
    (Path(folder) / "job").unlink()
    second = link(place_of(slurm, tmp_path)).start(folder, numbers(file)).get("job")
    assert second != first
    far.end_of(folder)
    assert far.printed(folder) == ALL_NUMBERS
    assert file.read_text() == "started\n"


def test_what_slurm_refuses_is_said_and_nothing_secret_stays(
    link: Connect, slurm: Slurm, tmp_path: Path
) -> None:
    far = link(place_of(slurm, tmp_path, partition="nowhere"))
    folder = folder_of(tmp_path)
    answer = far.start(folder, "true", environment={"TOKEN": "secret"})
    assert answer == {"error": "Slurm refused the task: Invalid partition name specified"}
    assert not (Path(folder) / "brief").exists()
    assert far.state_of(folder) == "absent"


def test_a_controller_that_is_away_is_said_and_the_output_is_read_on(
    link: Connect, slurm: Slurm, tmp_path: Path
) -> None:
    far = link(place_of(slurm, tmp_path))
    folder, file = folder_of(tmp_path), tmp_path / "started"
    far.start(folder, numbers(file))
    until(lambda: far.read_on(folder))
    slurm.stop("slurmctld")
    try:
        answer, _ = far.ask("start", folder=folder_of(tmp_path, 2), brief=far.brief("true"))
        assert answer["unreachable"]
        assert answer["error"].startswith("Slurm does not answer (")
        far.end_of(folder)
        assert far.printed(folder) == ALL_NUMBERS
    finally:
        slurm.start_controller()
    until(lambda: "error" not in far.ask("hello")[0], 60)
    assert far.start(folder_of(tmp_path, 2), "echo later")["started"]
    far.end_of(folder_of(tmp_path, 2))


def test_a_machine_without_slurm_is_said(
    link: Connect, slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    answer, _ = link(place_of(slurm, tmp_path)).ask("hello")
    assert answer["error"] == (
        "there is no program 'squeue' here; a place of kind slurm needs a machine from which jobs "
        "can be submitted"
    )
