"""Values on their way to a place and back: as the files that they are, for the key of one task.

What comes back is data from another machine: its record is checked, a file is hashed while it
arrives, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.buffer_names import NAME
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import make_private, new_private, remove
from ipytaskpersist.base.records import CHECKPOINT, INPUTS, ResultRecord, TaskRecord
from ipytaskpersist.errors import ResultUnavailable
from ipytaskpersist.places import trust
from ipytaskpersist.places.far.keeper import PYTHON_FOLDER
from ipytaskpersist.values.bundles import buffer_files_of
from ipytaskpersist.values.result_records import PROBLEM_CHARACTERS, shortened, where
from ipytaskpersist.values.signatures import Signatures

HEXADECIMAL = re.compile(r"[0-9a-f]{64}")
NAME_CHARACTERS = 1000
DAMAGED = "it did not arrive as it was written there"


# On the way there.


@dataclass(frozen=True, slots=True)
class FileToSend:
    """A file that a task is to find over there."""

    name: str
    """Its path in the folder of the task."""
    path: Path | None = None
    """The file here; None for one that is made for the task."""
    content: bytes = b""
    """What that holds."""
    is_shared: bool = False
    """Whether its name says what it holds, so that tasks over there can share it."""
    is_executable: bool = False

    @property
    def size(self) -> int:
        """In bytes. Raises `OSError`."""
        return len(self.content) if self.path is None else self.path.stat().st_size

    def open(self) -> BinaryIO:
        """Open the file here. Raises `OSError`."""
        assert self.path is not None, "what is made for the task has no file"
        return self.path.open("rb")


def inputs_there(
    directory: StateDirectory, place: Mapping[str, Any], task: TaskRecord, inputs: ResultRecord,
    inputs_of: TaskRecord,
) -> tuple[ResultRecord, list[FileToSend]]:  # fmt: skip
    """Return the record that a task has of its inputs over there, and the files to send.

    `inputs` belong to the task `inputs_of` here. Raises `ResultUnavailable`.
    """
    signatures, digest = Signatures(directory), inputs.digest or ""
    if not signatures.is_signed(inputs_of.id, INPUTS, digest, inputs.signature or ""):
        raise ResultUnavailable(f"{where(inputs_of, inputs)} does not carry your signature")
    pickle = directory.payload(inputs_of.id, digest)
    try:
        names = buffer_files_of(pickle)
    except (OSError, ValueError) as error:
        raise ResultUnavailable(f"{where(inputs_of, inputs)} cannot be read ({error})") from error
    there = StateDirectory(Path())
    key = signatures.key_at(trust.identity_of(place), task.id)
    path = there.payload(task.id, digest)
    buffers = [(path.with_name(name), pickle.with_name(name)) for name in names]
    signature = signatures.sign_for(place, task.id, INPUTS, digest)
    return replace(inputs, path=str(path), signature=signature), [
        FileToSend(f"{PYTHON_FOLDER}/{there.key}", content=key),
        FileToSend(f"{PYTHON_FOLDER}/{path}", pickle),
        *(FileToSend(f"{PYTHON_FOLDER}/{theirs}", own, is_shared=True) for theirs, own in buffers),
    ]


# On the way back.


def far_record(
    directory: StateDirectory, place: Mapping[str, Any], task_id: str, data: bytes
) -> ResultRecord | None:
    """Return the record of a value that a task at a place has sent; None if it is no such record.

    A value whose signature is not that of this task there has no file.
    """
    try:
        known = ResultRecord(**json.loads(data))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (known.name, known.text)
    is_valid = all(isinstance(each, str) for each in texts) and known.name not in (
        INPUTS,
        CHECKPOINT,
    )
    if not is_valid or len(known.name) > NAME_CHARACTERS:
        return None
    problem = None if known.problem is None else str(known.problem)[:PROBLEM_CHARACTERS]
    bare = ResultRecord(known.name, None, None, None, None, shortened(known.text), problem)
    if known.digest is None:
        return bare
    digest, signature = str(known.digest), str(known.signature)
    if HEXADECIMAL.fullmatch(digest) is None or type(known.size_bytes) is not int:
        return replace(bare, problem=DAMAGED)
    if not Signatures(directory).is_signed_at(place, task_id, known.name, digest, signature):
        return replace(bare, problem=f"{DAMAGED}: its signature is not that of this task")
    path = str(directory.payload(task_id, digest).relative_to(directory.root))
    return replace(bare, path=path, size_bytes=known.size_bytes, digest=digest, signature=signature)


def as_post_mortem(data: bytes) -> dict[str, Any] | None:
    """Return the variables of the frames in which a task failed; None for what is malformed."""
    try:
        frames = json.loads(data)["frames"]
        return {"frames": [_frame(each) for each in frames]}
    except (ValueError, TypeError, LookupError, RecursionError):
        return None


def _frame(known: dict[str, Any]) -> dict[str, Any]:
    texts = {name: str(known[name]) for name in ("place", "function", "code")}
    variables = [
        {name: str(each[name]) for name in ("name", "type", "text")} for each in known["variables"]
    ]
    return {**texts, "variables": variables, "left_out": int(known["left_out"])}


def without_file(record: ResultRecord, problem: str) -> ResultRecord:
    """Return the record of a value whose file has not come back."""
    return ResultRecord(record.name, None, None, None, None, record.text, problem)


class Damaged(Exception):
    """A file has not arrived as it was written."""


class Arriving:
    """A file of a task that arrives piece by piece, and has its name once it is complete."""

    def __init__(
        self, directory: StateDirectory, task_id: str, name: str, digest: str = ""
    ) -> None:
        """`digest` is the SHA-256 of a pickle; a file of buffers says its size in its name.

        Raises `StoreError`.
        """
        self._path = directory.payloads / task_id / name
        self._digest, self._size = digest, NAME.fullmatch(name)
        self._hash, self.size = hashlib.sha256(), 0
        with self._refusals():
            make_private(self._path.parent)
            self._temporary = directory.payloads / f".{secrets.token_hex(8)}.part"
            self._file = new_private(self._temporary)

    def _refusals(self) -> Any:
        return disk_errors.writing(
            f"what a task has left in {self._path.parent}", self._path.parent
        )

    def add(self, data: bytes) -> None:
        """Add a piece. Raises `StoreError`."""
        self.size += len(data)
        if self._digest:
            self._hash.update(data)
        with self._refusals():
            self._file.write(data)

    def finish(self) -> Path:
        """Give the file its name.

        Raises `StoreError`, and `Damaged` if its content is not what it is to be.
        """
        is_whole = self.size == int(self._size[1]) if self._size else True
        if not is_whole or (self._digest and self._hash.hexdigest() != self._digest):
            raise Damaged(DAMAGED)
        with self._refusals():
            self._file.close()
            self._temporary.chmod(0o400 if self._size else 0o600)
            self._temporary.replace(self._path)
        # Other tasks do not find a file of buffers: whether it holds what its name says is only
        # known when a value is loaded from it.
        return self._path

    def discard(self) -> None:
        """Remove what has arrived, unless it is complete."""
        with suppress(OSError):
            self._file.close()
        remove(self._temporary)


def buffers_to_fetch(directory: StateDirectory, task_id: str, pickle: Path) -> Iterator[str]:
    """Yield the files of buffers of a pickle that are not here yet.

    Those that other tasks have here are linked. Raises `Damaged`.
    """
    try:
        names = buffer_files_of(pickle)
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(DAMAGED) from error
    for name in names:
        if NAME.fullmatch(name) is None:
            raise Damaged(DAMAGED)
        own = directory.payloads / task_id / name
        if not own.exists():
            try:
                os.link(directory.buffers / name, own)
            except OSError:
                yield name
