"""The checkpoints of Python code: values that a later task goes on from.

They are kept as results are: pickled, signed, arrays in files of their own, of which unchanged ones
are not written again. A new one is complete before the index names it, and the one before stays, so
that there is a whole one at every moment.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.checkpoint_folders import (
    INDEX,
    Checkpoint,
    checkpoints_in,
    folder_of,
    write_index,
)
from ipytaskpersist.base.foreign_errors import class_name, describe
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import is_folder
from ipytaskpersist.base.records import CHECKPOINT, ResultRecord, TaskRecord
from ipytaskpersist.errors import InvalidRequest, ResultUnavailable
from ipytaskpersist.running.interruption import is_from_outside
from ipytaskpersist.values.buffers import forget_shared
from ipytaskpersist.values.payloads import Payloads
from ipytaskpersist.values.pickle_files import Prepared
from ipytaskpersist.values.pickling import Namespace, Unpicklable, require_picklable
from ipytaskpersist.values.unpicklable_parts import unpicklable_part

KEPT = 2


class Checkpoints:
    """The checkpoints of one task, and of those that it goes on from."""

    def __init__(
        self,
        directory: StateDirectory,
        task: TaskRecord,
        namespace: Namespace = None,
    ) -> None:
        """`namespace` is that of the notebook's functions."""
        self._directory = directory
        self._place = task.checkpoint_place or task.id
        # Its files are those of the folder, whichever of its tasks has written them.
        self._owner = replace(task, id=self._place)
        self._namespace = namespace
        # Whatever `synchronous` is: both of the last two may be younger than what the disk has.
        self._payloads = Payloads(directory.of_checkpoints, is_durable=True)
        self._lock = threading.Lock()

    @property
    def _folder(self) -> Path:
        return folder_of(self._directory, self._place)

    def keep(self, value: Any) -> float:
        """Keep a value on the disk, and the one before it. Return the time since the epoch in s.

        Raises `StoreError`, and `InvalidRequest` for a value that cannot be pickled.
        """
        try:
            prepared = self._payloads.prepare(CHECKPOINT, value, self._namespace)
        except Unpicklable as error:
            raise self._in_words(value, error.cause) from error.cause
        with self._lock:
            new = self._adopt(prepared, f"<{class_name(value)}>")
            others = [each for each in checkpoints_in(self._folder) if each.digest != new.digest]
            kept = [new, *others][:KEPT]
            with disk_errors.writing(f"the checkpoint in {self._folder}", self._folder):
                write_index(self._folder, kept)
            self._forget_all_but(kept)
        return new.at

    def _in_words(self, value: Any, why: BaseException) -> InvalidRequest:
        path, part = unpicklable_part("value", value, self._refusal)
        return InvalidRequest(
            f"the checkpoint was not kept: {path} ({class_name(part)}) cannot be pickled: "
            f"{describe(why)}; leave it out of the value, and make it anew from what is there"
        )

    def _refusal(self, value: Any) -> BaseException | None:
        """Return what pickling a value raises; None when it can be pickled."""
        try:
            require_picklable(value, self._namespace)
        except BaseException as error:  # pickling may raise anything
            if is_from_outside(error):
                raise
            return error
        return None

    def _adopt(self, prepared: Prepared, text: str) -> Checkpoint:
        arrays = [(file.name, file.size) for file in prepared.linked]
        record = self._payloads.adopt(self._place, CHECKPOINT, prepared, text)
        assert record.path is not None
        assert record.signature is not None
        return Checkpoint(
            time.time(),
            prepared.size_bytes + sum(size for _name, size in arrays),
            prepared.digest,
            record.signature,
            text,
            [Path(record.path).name, *(name for name, _size in arrays)],
        )

    def _forget_all_but(self, kept: Sequence[Checkpoint]) -> None:
        """Remove the files of earlier checkpoints, and what was cut off."""
        needed = {INDEX, *(name for each in kept for name in each.files)}
        with suppress(OSError):
            for file in self._folder.iterdir():
                if file.name not in needed:
                    _remove(self._directory, file)

    def newest(self) -> tuple[Any, str]:
        """Return the value of the newest whole one, and what is wrong with a newer one.

        Raises `LookupError` if there is none, and `ResultUnavailable` if none is whole.
        """
        problem: ResultUnavailable | None = None
        for each in checkpoints_in(self._folder):
            try:
                value = self._payloads.load(self._owner, self._record(each), self._namespace)
            except ResultUnavailable as error:
                problem = problem or error
            else:
                return value, "" if problem is None else str(problem)
        if problem is not None:
            raise problem
        raise LookupError("there is no checkpoint to go on from")

    def _record(self, kept: Checkpoint) -> ResultRecord:
        path = self._payloads.path_of(self._place, kept.digest)
        return ResultRecord(
            CHECKPOINT, path, kept.size_bytes, kept.digest, kept.signature, kept.text, None
        )


def delete(directory: StateDirectory, places: Iterable[str]) -> None:
    """Remove folders of checkpoints with all that is in them."""
    for place in places:
        folder = folder_of(directory, place)
        if folder.parent != directory.checkpoints or not is_folder(folder):
            continue
        for arrays in folder.glob("*.buffers"):
            _remove(directory, arrays)
        shutil.rmtree(folder, ignore_errors=True)


def _remove(directory: StateDirectory, file: Path) -> None:
    with suppress(OSError):
        file.unlink()
    forget_shared(directory.buffers / file.name)
