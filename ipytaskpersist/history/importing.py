"""Import tasks from a file into the store: whole, once, and without trusting the file.

The file may come from another machine, another program or a stranger. An invalid record is
reported, and the others are imported. Nothing in a file is run, and no path in it is used.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ipytaskpersist.base.records import STREAM_KINDS, ResultRecord, TaskState
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.history.fields import Document, InvalidRecord
from ipytaskpersist.history.import_reading import (
    Complain,
    Incoming,
    Invalid,
    Part,
    invalid,
    read,
)
from ipytaskpersist.history.output_reading import PortableResult
from ipytaskpersist.output.recording import Stream
from ipytaskpersist.store.importing import Importer, Placed
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.portable import (
    PortableEvent,
    PortableOutput,
    PortableTask,
)
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.values.payloads import Payloads
from ipytaskpersist.values.pickle_files import Prepared

OTHER_TASKS = ("rerun_of", "try_of")
"""Provenance that is the id of another task."""
LIVE_REASON = "was running when it was exported"


@dataclass(slots=True)
class Report:
    """The outcome of an import."""

    ids: list[str] = field(default_factory=list)
    """Ids in this store of the imported tasks."""
    skipped: int = 0
    """Number of tasks that were already there."""
    invalid: list[Invalid] = field(default_factory=list)
    notebooks: set[str] = field(default_factory=set)
    """Notebooks of the imported tasks."""

    def as_json(self) -> Document:
        """Return the document of ``import --json``."""
        return {
            "imported": len(self.ids),
            "skipped": self.skipped,
            "invalid": [
                {"position": each.position, "reason": each.reason} for each in self.invalid
            ],
            "tasks": self.ids,
        }


def import_file(
    path: Path,
    store: TaskStore,
    archives: Callable[[], list[TaskStore]],
    payloads: Payloads,
    *,
    dry_run: bool = False,
    complain: Complain = lambda invalid: None,
) -> Report:
    """Import the tasks of a file, and report the outcome.

    `complain` is called with each invalid record as it is found. Raise `InvalidRequest` for a file
    without tasks in a known format.
    """
    report = Report()

    def note(invalid: Invalid) -> None:
        report.invalid.append(invalid)
        complain(invalid)

    taker = _Taker(store, archives, payloads, report, note, dry_run=dry_run)
    try:
        with open(path, "rb", opener=_ordinary) as file:
            for incoming in read(file, path, note):
                taker.take(incoming)
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from error
    except MemoryError:
        raise InvalidRequest(
            f"{path} needs more memory than there is; {len(report.ids)} of its tasks were imported"
        ) from None
    finally:
        taker.close()
    return report


def _ordinary(path: str, flags: int) -> int:
    """Open a file without waiting at a pipe or reading a device forever."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not an ordinary file")
    return descriptor


# Inserting.


class _Taker:
    """Inserts tasks into the store, one after the other."""

    def __init__(
        self,
        store: TaskStore,
        archives: Callable[[], list[TaskStore]],
        payloads: Payloads,
        report: Report,
        complain: Complain,
        *,
        dry_run: bool,
    ) -> None:
        # A dry run creates no store.
        missing = dry_run and not store.exists
        self._importer = None if missing else Importer(store.open(), archives)
        self._is_writing = not dry_run
        if self._is_writing:
            store.require_own_version()
        self._payloads = payloads
        self._report = report
        self._complain = complain
        self._renamed: dict[str, str] = {}
        """New ids of tasks, by their old ids."""

    def close(self) -> None:
        """Close the store."""
        if self._importer is not None:
            self._importer.close()

    def take(self, incoming: Incoming) -> None:
        """Import a task, or report why not."""
        try:
            placed = self._placed(incoming)
        except InvalidRecord as error:
            self._complain(invalid(incoming.position, error))
        except (ValueError, OverflowError, RecursionError) as error:
            self._complain(Invalid(incoming.position, str(error).splitlines()[0]))
        else:
            self._note(incoming.task, placed)

    def _note(self, task: PortableTask, placed: Placed) -> None:
        if task.id and placed.id != task.id:
            self._renamed[task.id] = placed.id
        if placed.is_new:
            self._report.ids.append(placed.id)
            self._report.notebooks.add(placed.notebook)
        else:
            self._report.skipped += 1

    def _placed(self, incoming: Incoming) -> Placed:
        task = self._with_new_ids(incoming.task)
        found = None if self._importer is None else self._importer.find(task)
        if found is not None:
            return found
        if self._importer is None or not self._is_writing:
            for _part in incoming.parts:
                pass  # read only to validate them
            return Placed(task.id, incoming.session.notebook.uid or "", is_new=True)
        return self._insert(self._importer, replace(incoming, task=task))

    def _insert(self, importer: Importer, incoming: Incoming) -> Placed:
        taken = _Taken(self._payloads, incoming.task)
        importer.forget_outputs()
        try:
            for part in incoming.parts:
                importer.add_outputs(taken.rows(part))
                taken.add_results(part)
            return importer.insert(incoming.session, taken.ended(), time.time(), taken.results)
        finally:
            taken.discard()
            importer.forget_outputs()

    def _with_new_ids(self, task: PortableTask) -> PortableTask:
        """Return the task with its references to other tasks changed to their new ids."""
        provenance = {
            name: self._renamed.get(value, value) if name in OTHER_TASKS else value
            for name, value in task.provenance.items()
        }
        schedule = task.schedule
        if schedule is not None and schedule.first_task is not None:
            first = self._renamed.get(schedule.first_task, schedule.first_task)
            schedule = replace(schedule, first_task=first)
        return replace(task, provenance=provenance, schedule=schedule)


class _Taken:
    """The parts of one task that have been read."""

    def __init__(self, payloads: Payloads, task: PortableTask) -> None:
        self._payloads = payloads
        self._task = task
        self._streams = {kind: Stream() for kind in STREAM_KINDS}
        self._last_at = 0.0
        self._results: list[tuple[PortableResult, Prepared | None]] = []

    def rows(self, part: Part) -> list[NewOutput]:
        """Return the outputs of a part as the store keeps them."""
        return [self._row(output) for output in part.outputs]

    def _row(self, output: PortableOutput) -> NewOutput:
        self._last_at = max(self._last_at, output.at)
        stream = self._streams.get(output.kind)
        if stream is None:
            return NewOutput(0, output.kind, output.at, output.data)
        last = stream.last_line.feed(stream.decode_end(output.data)) or None
        return stream.row(0, output.kind, output.at, output.data, last)

    def add_results(self, part: Part) -> None:
        """Keep the results of a part, with foreign signatures unchanged."""
        for result in part.results:
            prepared, signature = self._prepared(result), result.signature
            if prepared is not None and self._payloads.is_signed(
                self._task.id, result.name, prepared.digest, signature
            ):
                signature = ""  # sign it again, for the id that the task has here
            kept = replace(result, pickled=None, signature=signature)
            self._results.append((kept, prepared))

    def _prepared(self, result: PortableResult) -> Prepared | None:
        """Return the file of a value: its own, or an earlier value's that contains it."""
        if not result.signature:
            return None
        if result.pickled is not None:
            return self._payloads.write(result.pickled, result.buffers)
        for earlier, prepared in self._results:
            if earlier.name == result.pickle_of and prepared is not None:
                return self._payloads.once_more(prepared)
        return None

    def results(self, task_id: str) -> list[ResultRecord]:
        """Return the results as the store keeps them, with their files under the final names."""
        return [self._kept(task_id, result, prepared) for result, prepared in self._results]

    def _kept(
        self, task_id: str, result: PortableResult, prepared: Prepared | None
    ) -> ResultRecord:
        if prepared is None:
            why = _why_none(result)
            return ResultRecord(result.name, None, None, None, None, result.text, why)
        kept = self._payloads.adopt(task_id, result.name, prepared, result.text, result.signature)
        return kept if result.size_bytes is None else replace(kept, size_bytes=result.size_bytes)

    def discard(self) -> None:
        """Remove files that no task uses."""
        for _result, prepared in self._results:
            if prepared is not None:
                prepared.discard()

    def ended(self) -> PortableTask:
        """Return the task as an ended one: a task that ran elsewhere does not run here."""
        task = self._task
        if task.state.is_final:
            return task
        known = (task.created_at, task.started_at or 0.0, *(event.at for event in task.history))
        at = max(self._last_at, *known)
        event = PortableEvent(TaskState.INTERRUPTED, LIVE_REASON, at)
        return replace(
            task,
            state=TaskState.INTERRUPTED,
            reason=LIVE_REASON,
            ended_at=at,
            history=(*task.history, event) if task.history else (),
        )


def _why_none(result: PortableResult) -> str:
    return result.problem or "its pickle is not in the imported file, or is not signed"
