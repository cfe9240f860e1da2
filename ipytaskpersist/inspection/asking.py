"""Ask other processes what they do now: those that have said that they can be asked."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ipytaskpersist.base import process_tree
from ipytaskpersist.base.process_tree import PROC, Process
from ipytaskpersist.inspection import dumps, listening
from ipytaskpersist.inspection.listening import (
    ANSWERS,
    CAN_BE_ASKED,
    DUMP,
    TELL,
    THREADS,
    name_of,
)
from ipytaskpersist.inspection.stacks import Stack

TELL_S = 0.012
"""Time for an answer in Python. A process that needs longer is in a C call, and is asked again."""
DUMP_S = 0.1
"""Time for the dumps of all processes, each of which takes some milliseconds, and for an answer in
Python from a process whose dump shows no code of its own: it may wait for its coroutines."""
QUIET_S = 0.002
"""Time without another byte after which a dump is at its end: it has no mark of that."""
LOOK_S = 0.0005
YOUNG_S = 0.1
TICKS = os.sysconf("SC_CLK_TCK")
LARGE_BYTES = 1_000_000
"""Size of the old answers at which they are removed."""
IN_C = "its main thread is in a call in C, so the names of the other threads are unknown"
CUT = "; only the hundred latest are shown, and not the main one"
Answer = tuple[list[Stack], str]
"""The stacks of a process, and a note on what is missing."""


class AnswersFile:
    """The file of the answers of a process, while it is locked."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._begun = self._start = self._size = os.fstat(file).st_size
        self._grew_at = time.monotonic()

    def told(self) -> Answer | None:
        """Return the answer in Python if it has come."""
        for line in self._read(self._begun).splitlines():
            with suppress(ValueError, TypeError, KeyError):  # not an answer, or not all of it
                return [Stack.from_message(each) for each in json.loads(line)], ""
        return None

    def dump(self, process: Process, deadline: float) -> Answer | None:
        """Have a process dump its stacks, and return them; None if it does not."""
        self._start = self._size = os.fstat(self._file).st_size
        _send(process, DUMP)
        while not self._is_whole():
            if time.monotonic() > deadline:
                return None
            time.sleep(LOOK_S)
        text = self._read(self._start).decode("utf-8", "replace")
        return dumps.parse(text), f"{IN_C}{CUT}" if dumps.is_cut(text) else IN_C

    def _is_whole(self) -> bool:
        """Return whether a dump has come, and nothing more for a while."""
        size, now = os.fstat(self._file).st_size, time.monotonic()
        if size != self._size:
            self._size, self._grew_at = size, now
        return size > self._start and now - self._grew_at > QUIET_S

    def _read(self, start: int) -> bytes:
        return os.pread(self._file, os.fstat(self._file).st_size - start, start)


def ask(processes: Iterable[Process]) -> dict[int, Answer]:
    """Return the answers of those of these processes that answer, by their ids.

    Takes at most `TELL_S` and `DUMP_S` together, however many they are.
    """
    listeners = [each for each in processes if CAN_BE_ASKED and _listens(each)]
    answers: dict[int, Answer] = {}
    with _files_of(listeners) as files:
        asked = [each for each in listeners if each.pid in files]
        for process in asked:
            _send(process, TELL)
        deadline = time.monotonic() + TELL_S
        while len(answers) < len(asked) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            _take_told(answers, files)
        deadline = time.monotonic() + DUMP_S
        for process in asked:
            if process.pid not in answers and (said := files[process.pid].dump(process, deadline)):
                answers[process.pid] = said
        _take_told(answers, files)  # some take a little longer
        while not all(stacks for stacks, _note in answers.values()) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            _take_told(answers, files)
    return answers


def _take_told(answers: dict[int, Answer], files: dict[int, AnswersFile]) -> None:
    for pid, file in files.items():
        if (told := file.told()) is not None:
            answers[pid] = told


@contextmanager
def _files_of(processes: Iterable[Process]) -> Iterator[dict[int, AnswersFile]]:
    """Lock the files of the answers of processes, and return them by the processes' ids.

    Those that another process just asks, or that end, are left out.
    """
    opened: list[int] = []
    files: dict[int, AnswersFile] = {}
    try:
        for process in processes:
            with suppress(OSError):
                path = _find(process.pid, ANSWERS)
                opened.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
                # Under the lock, which the end of listening waits for, it is still there.
                if listening.locked(opened[-1]) and path.samefile(_find(process.pid, ANSWERS)):
                    files[process.pid] = AnswersFile(opened[-1])
        yield files
    finally:
        for file in opened:
            _close(file)


def _close(file: int) -> None:
    if os.fstat(file).st_size > LARGE_BYTES:
        os.ftruncate(file, 0)
    os.close(file)


def tasks_of_threads(kernel: int) -> dict[int, str]:
    """Return the ids of the tasks that a kernel's threads work for, by the threads' identifiers."""
    with suppress(OSError, ValueError):
        written = json.loads(_find(kernel, THREADS).read_bytes())
        return {int(ident): task_id for ident, task_id in written.items()}
    return {}


def _listens(process: Process) -> bool:
    """Return whether a process can be asked. A fork may become another program at once."""
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(process.start) / TICKS
    with suppress(OSError):
        return age_s > YOUNG_S and _find(process.pid, ANSWERS).exists()
    return False


def _find(pid: int, name: str) -> Path:
    """Return the path of a process's open file in memory. Raises `OSError` without one."""
    wanted = f"/memfd:{name_of(name, pid)} "
    for descriptor in (PROC / str(pid) / "fd").iterdir():
        with suppress(OSError):
            if str(descriptor.readlink()).startswith(wanted):
                return descriptor
    raise FileNotFoundError(f"process {pid} cannot be asked")


def _send(process: Process, number: int) -> None:
    """Send a signal to a process that handles it: it would end any other one."""
    with suppress(OSError):
        if _handles(process.pid, number):
            process_tree.send(process, number)


def _handles(pid: int, number: int) -> bool:
    status = (PROC / str(pid) / "status").read_text(encoding="ascii", errors="replace")
    caught = next((each for each in status.splitlines() if each.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
