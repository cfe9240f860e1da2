"""The queue of a Slurm cluster, through Slurm's own programs."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ipytaskpersist.base.legible import legible
from ipytaskpersist.places.bridge import Json, Unreachable, last_line

PROGRAM_S = 60.0
JOBS_S = 1.5
"""How long a list of the jobs is valid."""
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
"""States of a job that has not begun."""
ACTIVE = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
"""States in which a job may have processes."""
ENDS = {
    "BOOT_FAIL": "its node did not boot",
    "CANCELLED": "it was cancelled",
    "DEADLINE": "its deadline passed",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "it used more memory than Slurm allowed it",
    "PREEMPTED": "it had to make room for another job",
    "TIMEOUT": "it reached its time limit",
}
REASONS = {
    "BeginTime": "its begin time has not come",
    "Dependency": "it depends on another job",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "you hold it; 'scontrol release' lets it go",
    "Priority": "other jobs have a higher priority",
    "Resources": "not enough nodes, CPUs or memory are free",
}
UNCONTACTED = ("Unable to contact", "Connection refused", "timed out", "Zero Bytes", "fetch config")
"""What Slurm's programs say when the controller does not answer."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the controller knows it."""

    state: str
    reason: str
    """Why it waits, or why it ended, in Slurm's word."""

    @property
    def is_waiting(self) -> bool:
        """Whether it has not begun."""
        return self.state in WAITING

    @property
    def is_over(self) -> bool:
        """Whether it has no process any more, and will have none."""
        return not self.is_waiting and self.state not in ACTIVE

    def why_waiting(self) -> str:
        """Return why it has not begun, in words."""
        if self.state != "PENDING":
            return "its node is getting ready"
        words = REASONS.get(self.reason)
        return f"{words} ({self.reason})" if words else self.reason

    def how_ended(self) -> str:
        """Return how it ended, in words."""
        words = ENDS.get(self.state, "it ended without a record of the task's end")
        # One that was cancelled while it waited still has the reason of that.
        has_reason = self.reason not in ("", "None") and self.state != "CANCELLED"
        return f"{words} ({self.reason})" if has_reason else words


class SlurmQueue:
    """Submits jobs, looks at those of this user, and cancels them."""

    def __init__(self, spec: Json) -> None:
        self._spec = spec
        self._jobs: dict[str, Job] = {}
        self._jobs_at = float("-inf")

    def submit(self, name: str, folder: Path, program: Path) -> str:
        """Have a Python program run with a folder as its argument. Returns the job's number.

        Raises `ValueError` when Slurm refuses, and `Unreachable` when it cannot be asked.
        """
        words = [shlex.quote(str(word)) for word in (program, "keep", folder)]
        # The keeper in the place of the shell gets the signals that are meant for the job.
        script = f"#!/bin/sh\nexec {self._spec['python']} {' '.join(words)}\n"
        # A percent sign begins a pattern of sbatch's.
        log = str(folder / "job.log").replace("%", "%%")
        partition = self._spec["partition"]
        options = [f"--partition={partition}"] if partition else []
        # Requeued, it would find its task started, and end.
        own = [f"--job-name={name}", f"--output={log}", "--chdir=/", "--no-requeue"]
        command = ["sbatch", "--parsable", *own, *options, *self._spec["options"]]
        number = self._run(command, script).strip().partition(";")[0]
        self._jobs_at = float("-inf")
        return number

    def jobs(self) -> dict[str, Job]:
        """Return this user's jobs by their numbers, those that ended lately as well."""
        if time.monotonic() >= self._jobs_at + JOBS_S:
            asked = ["squeue", "--noheader", f"--user={os.getuid()}", "--states=all"]
            lines = self._run([*asked, "--format=%i|%T|%r"]).splitlines()
            found = (line.strip().split("|", 2) for line in lines if line.count("|") >= 2)
            self._jobs = {number: Job(state, legible(reason)) for number, state, reason in found}
            self._jobs_at = time.monotonic()
        return self._jobs

    def past(self, number: str) -> str:
        """Return how a job ended that the controller has forgotten, if the accounting knows it."""
        command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={number}"]
        try:
            lines = self._run([*command, "--format=State,Reason"]).splitlines()
            state, _bar, reason = lines[0].partition("|")
            return Job(state.split()[0], legible(reason)).how_ended()
        except (Unreachable, ValueError, IndexError):
            return "Slurm has forgotten it"

    def cancel(self, number: str) -> None:
        """Cancel a job. Raises `ValueError`, `Unreachable`."""
        self._jobs_at = float("-inf")
        self._run(["scancel", number])

    def _run(self, command: Sequence[str], given: str = "") -> str:
        program = shutil.which(command[0])
        if program is None:
            raise Unreachable(
                f"there is no program {command[0]!r} here; a place of kind slurm needs a machine "
                "from which jobs can be submitted"
            )
        try:
            ended = subprocess.run(
                [program, *command[1:]],
                input=given,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PROGRAM_S,
                env={**os.environ, "LC_ALL": "C"},
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unreachable(f"{command[0]} did not work: {error}") from None
        if ended.returncode == 0:
            return ended.stdout
        said = last_line(ended.stderr).removeprefix(f"{command[0]}: ").removeprefix("error: ")
        if any(words in ended.stderr for words in UNCONTACTED):
            raise Unreachable(f"Slurm does not answer ({command[0]}: {said})")
        raise ValueError(said.removeprefix("Batch job submission failed: "))
