"""Places of kind slurm: each task is a job, whose process is the task's keeper.

The folder of the tasks is one that this machine shares with the nodes. So the agent answers in this
process, and Slurm is only asked what a folder cannot tell: whether a job still waits, and why; and
whether it is over without its keeper having recorded an end. A job may be submitted twice, or run
twice by Slurm: the keeper's claim lets one of them start the task.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from ipytaskpersist.places import agent
from ipytaskpersist.places.bridge import (
    Json,
    Message,
    Unreachable,
    arguments,
    serve,
    unreachable,
)
from ipytaskpersist.places.far.files import place, read_json, write_json
from ipytaskpersist.places.messages import agent_text
from ipytaskpersist.places.slurm_queue import SlurmQueue

LOOK_S = 2.0
"""How often the jobs of tasks without news are looked at while news are waited for."""
SILENT_S = 60.0
"""A keeper is gone when it has been silent for so long, and its job is forgotten."""


class SlurmBridge:
    """Answers requests from the folders of the tasks, and from Slurm's queue."""

    def __init__(self, spec: Json) -> None:
        self._queue = SlurmQueue(spec)
        self._numbers: dict[str, str] = {}
        """The job of each task, by its folder."""
        self._verbs: dict[str, Callable[[Json], Json]] = {
            "hello": self._hello,
            "start": self._start,
            "look": self._look,
            "signal": self._signal,
            "forget": self._forget,
        }

    def answer(self, request: Json, data: bytes, pause: agent.Pause) -> Message:
        """Answer a request. What cannot be done is an ``error`` in words."""
        verb = str(request.get("verb"))
        try:
            if verb == "read":
                return self._read(request, pause)
            if verb in self._verbs:
                return self._verbs[verb](request), b""
            return agent.answer(request, data)
        except Unreachable as error:
            return unreachable(str(error))
        except KeyError as missing:
            return {"error": f"the request lacks {missing}"}, b""
        except (OSError, ValueError) as error:
            return {"error": str(error)}, b""

    def _agent(self, verb: str, **request: object) -> Json:
        """Return what the agent answers to a request."""
        content, _ = agent.answer({"verb": verb, **request}, b"")
        return content

    def _hello(self, request: Json) -> Json:
        self._queue.jobs()  # says whether Slurm can be asked
        found = self._agent(**request)
        # The packages of this machine are not those of the nodes.
        return {name: value for name, value in found.items() if name != "packages"}

    # A task's start.

    def _start(self, request: Json) -> Json:
        folder = place(request["folder"])
        found = self._agent("start", folder=str(folder), brief=request["brief"], detach=False)
        if "error" in found or "pid" in found or self._number(folder):
            number = self._number(folder)
            return {**found, "job": number} if number else found
        return {"started": True, "job": self._submit(folder, request["brief"]["task_id"])}

    def _submit(self, folder: Path, name: str) -> str:
        program = folder / "agent.py"
        program.write_text(agent_text(), encoding="utf-8")
        try:
            number = self._queue.submit(name, folder, program)
        except ValueError as refused:
            # What is stored may be secret, and no keeper will come to remove it.
            (folder / "brief").unlink(missing_ok=True)
            raise ValueError(f"Slurm refused the task: {refused}") from None
        write_json(folder / "job", {"number": number})
        self._numbers[str(folder)] = number
        return number

    def _number(self, folder: Path) -> str:
        """Return the number of a task's job, empty if it has none."""
        if str(folder) not in self._numbers:
            found = read_json(folder / "job")
            if not found:
                return ""
            self._numbers[str(folder)] = str(found["number"])
        return self._numbers[str(folder)]

    # Its state.

    def _judge(self, folder: Path) -> Json:
        """Return what is known of a task, from its folder and its job.

        The job comes first: when it is over, nothing is added to the folder any more.
        """
        number = self._number(folder)
        job = self._queue.jobs().get(number)
        (look,) = self._agent("look", folders=[str(folder)])["looks"]
        if not number or look["state"] in ("ended", "absent", "unknown"):
            return dict(look)
        found = {**look, "job": number}
        has_keeper = "pid" in look
        if job is None:
            if has_keeper and look["silent_s"] < SILENT_S and look["state"] != "lost":
                return found
            why = self._queue.past(number)
        elif job.is_over or look["state"] == "lost":
            why = job.how_ended()
        elif has_keeper:
            return found
        else:
            return {**found, "state": "pending", "why": job.why_waiting()}
        never = "" if has_keeper else ", and never started the task"
        return {**found, "state": "lost", "why": f"job {number} is over: {why}{never}"}

    def _look(self, request: Json) -> Json:
        return {"looks": [self._judge(place(each)) for each in request["folders"]]}

    def _read(self, request: Json, pause: agent.Pause) -> Message:
        """Return news, among them that a job is over without an end of its task."""
        ends_at = time.monotonic() + float(request.get("wait_s") or 0.0)
        is_asked = False

        def wait(seconds: float) -> bool:
            nonlocal is_asked
            is_asked = bool(pause(seconds))
            return is_asked

        while True:
            left_s = max(0.0, ends_at - time.monotonic())
            asked = {**request, "wait_s": min(left_s, LOOK_S)}
            content, data = agent.answer(asked, b"", wait)
            if "error" in content:
                return content, data
            self._add_lost(request["tasks"], content["tasks"])
            if data or is_asked or left_s <= LOOK_S or any(look for _, look in content["tasks"]):
                return content, data

    def _add_lost(self, tasks: list[list[object]], answers: list[list[object]]) -> None:
        for (folder, _offset), task in zip(tasks, answers, strict=True):
            path = place(str(folder))
            if task[1] is None and self._may_be_lost(path):
                look = self._judge(path)
                task[1] = look if look["state"] == "lost" else None

    def _may_be_lost(self, folder: Path) -> bool:
        number = self._number(folder)
        job = self._queue.jobs().get(number)
        return bool(number) and (job is None or job.is_over)

    # Its end.

    def _signal(self, request: Json) -> Json:
        """Ask the keeper, and cancel a job that has none yet, or one that is silent."""
        folder = place(request["folder"])
        found = self._agent(**request)
        number = self._number(folder)
        if number and request["what"] in ("end", "kill"):
            job = self._queue.jobs().get(number)
            is_silent = found.get("state") == "running" and found["silent_s"] > SILENT_S
            if job is not None and (job.is_waiting or (is_silent and not job.is_over)):
                self._queue.cancel(number)
        return found

    def _forget(self, request: Json) -> Json:
        kept: Json = {}
        for each in request["folders"]:
            folder = place(each)
            look = self._judge(folder)
            # The agent knows of no job, and takes a task whose job is over for one that waits.
            if look["state"] == "lost" and not look.get("left"):
                shutil.rmtree(folder)
            else:
                kept.update(self._agent("forget", folders=[each])["kept"])
            self._numbers.pop(str(folder), None)
        return {"kept": kept}


def main() -> None:
    """Connect the standard streams with the tasks of a Slurm cluster."""
    spec, _state_directory = arguments()
    serve(SlurmBridge(spec).answer)
