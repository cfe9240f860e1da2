"""Values in files: pickled, signed with the user's key, and loaded only when the signature matches.

What is written here is what `signed_files` reads.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import is_folder
from ipytaskpersist.base.records import ResultRecord, TaskRecord
from ipytaskpersist.errors import BackgroundError, ResultUnavailable
from ipytaskpersist.running.interruption import is_from_outside
from ipytaskpersist.values.buffers import BufferFiles, DamagedBuffers, Linked, discarded_on_error
from ipytaskpersist.values.bundles import Bundle, BundleWriter, entries_of, is_bundle
from ipytaskpersist.values.originals import Changed, Originals, Present, present_of
from ipytaskpersist.values.pickle_files import Hashing, PickleFiles, Prepared
from ipytaskpersist.values.pickling import Namespace, Unpicklable, Unpickler, be_ready, load
from ipytaskpersist.values.result_records import not_kept, shortened, where
from ipytaskpersist.values.returned import Returned, ReturnWriter
from ipytaskpersist.values.signatures import Signatures
from ipytaskpersist.values.signed_files import LoadedFiles, SignedFiles

SETTING, GIVEN = "<setting>", "<given>"
"""What stands before the variables among the inputs: a cell's dependencies besides them, and what
the variables are. No variable can have these names."""
SETTINGS = "<settings>"
"""Name of what a Python process task has imported, and changed in libraries' settings."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a process task was given."""

    values: Iterator[tuple[str, Any]]
    """One value after the other, each with its name, or with a `Failed` in its place."""
    bundle: Bundle | None = None
    """The values' file; None for one of an earlier version."""
    again: Callable[[], Bundle] | None = None
    """Returns the same file, to be loaded once more."""

    def originals(self) -> Originals | None:
        """Return what will be compared when the cell has ended, once all values are loaded."""
        return None if self.bundle is None else Originals(self.bundle)


class Payloads:
    """The pickled values of one state directory."""

    def __init__(self, directory: StateDirectory, *, is_durable: bool = False) -> None:
        """With `is_durable`, what is kept is on the disk, safe from a power loss."""
        self._directory = directory
        self._buffers = BufferFiles(directory, is_durable=is_durable)
        self._files = PickleFiles(directory, is_durable=is_durable)
        self._signatures = Signatures(directory)
        self._signed = SignedFiles(directory, self._buffers, self._signatures)

    def save(
        self, task_id: str, name: str, value: Any, text: str, namespace: Namespace = None
    ) -> ResultRecord:
        """Pickle and sign one value. `text` is its text form, always kept.

        Functions whose global variables are `namespace` use the namespace into which they are
        loaded.
        """
        try:
            prepared = self.prepare(name, value, namespace)
            return self.adopt(task_id, name, prepared, text)
        except BaseException as error:  # a class may raise anything when it is pickled
            if is_from_outside(error):
                raise
            return not_kept(name, text, error.cause if isinstance(error, Unpicklable) else error)

    def prepare(self, name: str, value: Any, namespace: Namespace = None) -> Prepared:
        """Pickle one value, into files that no task owns yet.

        Raises `StoreError` and `Unpicklable`.
        """
        return self._write_values({name: value}, namespace, Changed())

    def save_together(
        self,
        task_id: str,
        values: Mapping[str, Any],
        texts: Mapping[str, str],
        namespace: Namespace,
        changed: Changed | None = None,
    ) -> list[ResultRecord]:
        """Pickle and sign named values in one file, which stores objects that they share once.

        A value that cannot be pickled does not affect the others; its record says why. Objects that
        the process was given, and has `changed` or not, are referred to.
        """
        left, kept = dict(values), dict[str, ResultRecord]()
        while left:
            try:
                prepared = self._write_values(left, namespace, changed or Changed())
            except Unpicklable as error:
                # Start over without it: the part written may include objects that others share.
                kept[error.name] = not_kept(error.name, texts[error.name], error.cause)
                del left[error.name]
            except BackgroundError as error:
                return [kept.get(name) or not_kept(name, texts[name], error) for name in values]
            else:
                kept |= self._adopt_together(task_id, prepared, texts)
                break
        return [kept[name] for name in values]

    def _adopt_together(
        self, task_id: str, prepared: Prepared, texts: Mapping[str, str]
    ) -> dict[str, ResultRecord]:
        """Give a file with several values to a task, signed for each of them."""
        sizes = self._adopt_buffers(task_id, prepared)
        path = self._files.name(task_id, prepared)
        return {
            entry.name: ResultRecord(
                entry.name,
                path,
                entry.size + sum(sizes.pop(part.file, 0) for part in entry.parts),
                prepared.digest,
                self._signatures.sign(task_id, entry.name, prepared.digest),
                shortened(texts[entry.name]),
                None,
            )
            for entry in prepared.entries
            if entry.name in texts
        }

    def _adopt_buffers(self, task_id: str, prepared: Prepared) -> dict[str, int]:
        """Give files of buffers to a task. Return how much each adds to what it has, in bytes."""
        try:
            return {file.name: self._buffers.adopt(task_id, file) for file in prepared.linked}
        except BaseException:
            prepared.discard()
            raise

    def be_ready(self) -> None:
        """Import what the first value needs: when a task ends, the package may be gone."""
        be_ready()

    def prepare_inputs(
        self, about: Mapping[str, Any], values: Mapping[str, Any], namespace: Namespace
    ) -> Prepared:
        """Pickle what a task is given, into files that no task owns yet.

        The values come after what is said about them, and are compared when the task ends. Raises
        `StoreError` and `Unpicklable`.
        """

        def fill(writer: BundleWriter) -> None:
            for name, value in about.items():
                writer.add(name, value)
            for name, value in values.items():
                writer.add_given(name, value)

        return self._write_bundle(fill, namespace, values.values())

    def _write_values(
        self, values: Mapping[str, Any], namespace: Namespace, changed: Changed
    ) -> Prepared:
        def fill(writer: BundleWriter) -> None:
            returning = ReturnWriter(writer, changed, namespace)
            for name, value in values.items():
                returning.add(name, value)
            returning.finish()

        return self._write_bundle(fill, namespace, values.values())

    def _write_bundle(
        self,
        fill: Callable[[BundleWriter], None],
        namespace: Namespace,
        sharing: Iterable[Any],
    ) -> Prepared:
        """Create a file of values with `fill`. Raises `StoreError` and `Unpicklable`."""

        def write(file: Hashing) -> BundleWriter:
            writer = BundleWriter(file, self._buffers, namespace, sharing)
            try:
                fill(writer)
                writer.finish()
            except BaseException:
                writer.discard()
                raise
            return writer

        prepared, writer = self._files.create(write)
        return replace(prepared, entries=writer.entries, linked=[*writer.linked.values()])

    def adopt(
        self, task_id: str, name: str, prepared: Prepared, text: str, signature: str = ""
    ) -> ResultRecord:
        """Give a prepared file to a task, under its final name, and sign it.

        With another user's `signature`, it is kept but never loaded with this user's key.
        """
        signature = signature or self._signatures.sign(task_id, name, prepared.digest)
        size = prepared.size_bytes + sum(self._adopt_buffers(task_id, prepared).values())
        path, shown = self._files.name(task_id, prepared), shortened(text)
        return ResultRecord(name, path, size, prepared.digest, signature, shown, None)

    def path_of(self, task_id: str, digest: str) -> str:
        """Return the path, in the state directory, of a task's pickle with this digest."""
        path = self._directory.payload(task_id, digest)
        return str(path.relative_to(self._directory.root))

    def is_signed(self, task_id: str, name: str, digest: str, signature: str) -> bool:
        """Return whether this is the user's signature for a value whose pickle has this digest."""
        return self._signatures.is_signed(task_id, name, digest, signature)

    def read(self, task: TaskRecord, result: ResultRecord) -> bytes:
        """Return the pickle as written, whatever its signature. Raises `ResultUnavailable`."""
        data = self._signed.content(task, result)
        if hashlib.sha256(data).hexdigest() != result.digest:
            raise ResultUnavailable(f"{where(task, result)} has been changed ({result.path})")
        return data

    def buffers_size(self, task: TaskRecord, data: bytes) -> int:
        """Return the size of the files of buffers that a pickle refers to, in bytes.

        Raises `ResultUnavailable`.
        """
        with _incomplete(task):
            return sum(self._buffers.size(task.id, name) for name in _files_of(data))

    def read_buffers(self, task: TaskRecord, data: bytes) -> dict[str, bytes]:
        """Return the files of buffers that a pickle refers to. Raises `ResultUnavailable`."""
        with _incomplete(task):
            return {name: self._buffers.read(task.id, name) for name in _files_of(data)}

    def copy(self, task: TaskRecord, result: ResultRecord) -> Prepared:
        """Copy a task's file for another task. Raises `ResultUnavailable`."""
        data = self._signed.trusted(task, result)
        try:
            linked = self._buffers.take(task.id, _files_of(data))
        except DamagedBuffers as error:
            raise ResultUnavailable(f"{where(task, result)} was not copied: {error}") from error
        with discarded_on_error(linked):
            return replace(self.write(data), linked=linked)

    def write(self, data: bytes, buffers: Mapping[str, bytes] | None = None) -> Prepared:
        """Write this pickle, and its files of buffers by name, to files that no task owns yet."""
        linked: list[Linked] = []
        with discarded_on_error(linked):
            for name, each in (buffers or {}).items():
                linked.append(self._buffers.import_file(name, each))
            return replace(self._files.create(lambda file: file.write(data))[0], linked=linked)

    def once_more(self, prepared: Prepared) -> Prepared:
        """Link a prepared file under another name, to be given to another value."""
        path = prepared.path.with_name(f".{secrets.token_hex(8)}.part")
        os.link(prepared.path, path)
        return replace(prepared, path=path, linked=())

    def load(self, task: TaskRecord, result: ResultRecord, namespace: Namespace = None) -> Any:
        """Return the value. Raises `ResultUnavailable` if there is none or it cannot be trusted.

        Names that `namespace` has keep their values, whatever a loaded function brings along.
        """
        value = self.load_all(task, [result], namespace).values[result.name]
        if isinstance(value, ResultUnavailable):
            if value.__cause__ is not None and is_from_outside(value.__cause__):
                raise value.__cause__
            raise value
        return value

    def load_all(
        self,
        task: TaskRecord,
        results: Sequence[ResultRecord],
        namespace: Namespace = None,
        present: Callable[[], Present] = Present,
    ) -> Returned:
        """Return values by name, with a `ResultUnavailable` in place of each missing one.

        An object shared by values that were pickled together is one object again. `present` is
        called if they refer to what the task was given.
        """
        files = LoadedFiles(self._signed, task, {} if namespace is None else namespace, present)
        values = dict[str, Any]()
        known = dict(namespace or {})
        for result in results:
            try:
                values[result.name] = files.value(result)
            except ResultUnavailable as error:
                values[result.name] = error
        if namespace is not None:
            namespace.update(known)
        return files.returned(values)

    def present(self, task: TaskRecord, inputs: ResultRecord, namespace: dict[str, Any]) -> Present:
        """Return what a namespace still has of what a task was given."""
        try:
            data = self._signed.trusted(task, inputs)
        except ResultUnavailable:
            return Present()
        given = {entry.name: entry.digest for entry in entries_of(data) if entry.digest}
        return present_of(given, namespace) if is_bundle(data) else Present()

    def inputs(self, task: TaskRecord, result: ResultRecord, namespace: dict[str, Any]) -> Inputs:
        """Return what a task was given. Raises `ResultUnavailable`."""
        data = self._signed.trusted(task, result)
        if not is_bundle(data):  # pickles of an earlier version
            loading = Unpickler(io.BytesIO(data), namespace)
            return Inputs(("", load(loading)) for _value in itertools.repeat(None))
        bundle = self._signed.bundle(task, data, namespace)

        def again() -> Bundle:
            return self._signed.bundle(task, self._signed.trusted(task, result), {})

        return Inputs(iter(bundle), bundle, again)

    def delete(self, task_id: str) -> None:
        """Remove all values of a task."""
        folder = self._directory.payloads / task_id
        if folder.parent == self._directory.payloads and is_folder(folder):
            names = [file.name for file in self._buffers.of_task(task_id)]
            for file in folder.iterdir():
                file.unlink(missing_ok=True)
            folder.rmdir()
            self._buffers.forget(names)


@contextmanager
def _incomplete(task: TaskRecord) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the pickle may be another user's
        raise ResultUnavailable(f"what task {task.label} has kept is incomplete") from error


def _files_of(data: bytes) -> list[str]:
    """Return the names of the files of buffers that a pickle refers to."""
    entries = entries_of(data) if is_bundle(data) else []
    return [*dict.fromkeys(part.file for entry in entries for part in entry.parts)]
