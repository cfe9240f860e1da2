"""Read the files of values: nothing is unpickled before its signature has matched."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import PurePath
from typing import Any

from ipytaskpersist.base.foreign_errors import describe
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import open_own
from ipytaskpersist.base.records import ResultRecord, TaskRecord
from ipytaskpersist.errors import PlaceNotTrusted, ResultUnavailable
from ipytaskpersist.values.buffers import BufferFiles, DamagedBuffers
from ipytaskpersist.values.bundles import Bundle, is_bundle
from ipytaskpersist.values.originals import Present
from ipytaskpersist.values.pickling import Failed, Unpickler, load
from ipytaskpersist.values.result_records import text_form, where
from ipytaskpersist.values.returned import Returned, returned
from ipytaskpersist.values.signatures import Signatures


def not_trusted(task: TaskRecord, result: ResultRecord) -> PlaceNotTrusted:
    """Return the error for a value from a place that is not trusted."""
    place = legible(task.place)
    why = (
        f"loading what comes from {place} could run its code here; %bg_places --trust {place} "
        f"allows it, then %bg_load {task.number}"
    )
    named = where(task, result)
    return PlaceNotTrusted(f"{named} was not loaded: {why}; {text_form(result)}", why)


class SignedFiles:
    """The files of values in one state directory, and whether the user has signed them."""

    def __init__(
        self, directory: StateDirectory, buffers: BufferFiles, signatures: Signatures
    ) -> None:
        self._directory = directory
        self._buffers = buffers
        self._signatures = signatures

    def trusted(self, task: TaskRecord, result: ResultRecord) -> bytes:
        """Return the content of a file that has the user's signature."""
        data = self.content(task, result)
        self.require_signature(task, result, hashlib.sha256(data).hexdigest())
        return data

    def require_signature(self, task: TaskRecord, result: ResultRecord, digest: str) -> None:
        """Raise `ResultUnavailable` unless the user has signed these bytes for this value."""
        if not self._signatures.is_signed(task.id, result.name, digest, result.signature or ""):
            if task.place and digest == result.digest and not task.is_imported:
                raise not_trusted(task, result)
            why = "it was imported, and" if task.is_imported else "its file"
            changed = "" if task.is_imported else ", so it may have been changed"
            raise ResultUnavailable(
                f"{where(task, result)} was not loaded: {why} does not carry your signature"
                f"{changed} ({result.path}); {text_form(result)}"
            )

    def content(self, task: TaskRecord, result: ResultRecord) -> bytes:
        """Return the bytes of a file, which may be another user's. Raises `ResultUnavailable`."""
        named = where(task, result)
        if result.path is None or result.digest is None:
            problem = f"could not be kept ({result.problem})"
            raise ResultUnavailable(f"{named} {problem}; {text_form(result)}")
        # A path not made here, for this task and digest, could lead anywhere.
        path = self._directory.payload(task.id, result.digest)
        expected = (self._directory.values, task.id, path.name)
        if PurePath(result.path).parts != expected or ".." in expected:
            raise ResultUnavailable(
                f"{named} was not loaded: its file is said to be where none of this task's is; "
                f"{text_form(result)}"
            )
        try:
            with open_own(path) as file:
                return file.read()
        except OSError as error:
            raise ResultUnavailable(
                f"{named} cannot be read ({error.strerror}: {result.path}); {text_form(result)}"
            ) from error

    def bundle(self, task: TaskRecord, data: bytes, namespace: dict[str, Any]) -> Bundle:
        """Return the values in a file of a task."""
        return Bundle(data, partial(self._buffers.open, task.id), namespace)


class LoadedFiles:
    """The files of one task's values while they are loaded: each is read and hashed once."""

    def __init__(
        self,
        files: SignedFiles,
        task: TaskRecord,
        namespace: dict[str, Any],
        present: Callable[[], Present],
    ) -> None:
        self._files = files
        self._task = task
        self._namespace = namespace
        self._present = present
        self._data: dict[str | None, tuple[str, bytes]] = {}
        self._together: dict[str, Returned] = {}

    def value(self, result: ResultRecord) -> Any:
        """Return one value. Raises `ResultUnavailable`."""
        if result.digest not in self._data:
            data = self._files.content(self._task, result)
            self._data[result.digest] = hashlib.sha256(data).hexdigest(), data
        digest, data = self._data[result.digest]
        self._files.require_signature(self._task, result, digest)
        value = self._loaded(result.name, digest, data)
        if isinstance(value, Failed):
            error, named = value.error, where(self._task, result)
            why = f"{named} cannot be unpickled here ({describe(error)})"
            if isinstance(error, DamagedBuffers):
                why = f"{named} was not loaded: {error}"
            raise ResultUnavailable(f"{why}; {text_form(result)}") from error
        return value

    def _loaded(self, name: str, digest: str, data: bytes) -> Any:
        if is_bundle(data):
            if digest not in self._together:
                bundle = self._files.bundle(self._task, data, self._namespace)
                self._together[digest] = returned(bundle, self._present)
            return self._together[digest].values[name]
        return load(Unpickler(io.BytesIO(data), self._namespace))

    def returned(self, values: Mapping[str, Any]) -> Returned:
        """Return these values with what the files say of their changes."""
        files = [*self._together.values()]
        return Returned(
            values,
            {name: how for each in files for name, how in each.changes.items() if name in values},
            frozenset(key for each in files for key in each.filled),
            frozenset(name for each in files for name in each.found),
        )
