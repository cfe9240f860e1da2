"""Values in files: pickled, signed with the user's key, and loaded only when the signature matches.

Loading a pickle runs code. So each is signed with a key that only its owner can read, as Jupyter
signs notebooks, together with its task and name: neither a changed file nor one that was moved from
another task is ever unpickled.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import itertools
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any, TypeVar

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.foreign_errors import describe
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import (
    is_folder,
    make_durable,
    make_private,
    new_private,
    open_own,
    remove,
)
from ipytaskpersist.base.records import INPUTS, ResultRecord, TaskRecord
from ipytaskpersist.errors import BackgroundError, ResultUnavailable, StoreError
from ipytaskpersist.running.interruption import is_from_outside
from ipytaskpersist.values.buffers import (
    BufferFiles,
    DamagedBuffers,
    Linked,
    discarded_on_error,
)
from ipytaskpersist.values.bundles import Bundle, BundleWriter, Entry, entries_of, is_bundle
from ipytaskpersist.values.originals import Changed, Originals, Present, present_of
from ipytaskpersist.values.pickling import (
    Failed,
    Namespace,
    Unpicklable,
    Unpickler,
    be_ready,
    load,
)
from ipytaskpersist.values.returned import Returned, ReturnWriter, returned

TEXT_CHARACTERS = 4000
LINE_CHARACTERS = 200
PROBLEM_CHARACTERS = 500
KEY_BYTES = 32
SETTING, GIVEN = "<setting>", "<given>"
"""What stands before the variables among the inputs: a cell's dependencies besides them, and what
the variables are. No variable can have these names."""
SETTINGS = "<settings>"
"""Name of what a Python process task has imported, and changed in libraries' settings."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prepared:
    """Written values that no task owns yet."""

    path: Path
    size_bytes: int
    """Size of the pickle, without its buffers."""
    digest: str
    entries: Sequence[Entry] = ()
    linked: Sequence[Linked] = ()
    """Files of buffers."""

    def discard(self) -> None:
        """Remove the files, unless a task has adopted them."""
        remove(self.path)
        for file in self.linked:
            file.discard()


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
        self._is_durable = is_durable
        self._buffers = BufferFiles(directory, is_durable=is_durable)

    def save(
        self, task_id: str, name: str, value: Any, text: str, namespace: Namespace = None
    ) -> ResultRecord:
        """Pickle and sign one value. `text` is its text form, always kept.

        Functions whose global variables are `namespace` use the namespace into which they are
        loaded.
        """
        try:
            prepared = self._write_values({name: value}, namespace, Changed())
            return self.adopt(task_id, name, prepared, text)
        except BaseException as error:  # a class may raise anything when it is pickled
            if is_from_outside(error):
                raise
            return not_kept(name, text, error.cause if isinstance(error, Unpicklable) else error)

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
        path = self._name(task_id, prepared)
        return {
            entry.name: ResultRecord(
                entry.name,
                path,
                entry.size + sum(sizes.pop(part.file, 0) for part in entry.parts),
                prepared.digest,
                self._sign(task_id, entry.name, prepared.digest),
                _shortened(texts[entry.name]),
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

        def write(file: _Hashing) -> BundleWriter:
            writer = BundleWriter(file, self._buffers, namespace, sharing)
            try:
                fill(writer)
                writer.finish()
            except BaseException:
                writer.discard()
                raise
            return writer

        prepared, writer = self._write(write)
        return replace(prepared, entries=writer.entries, linked=[*writer.linked.values()])

    def _write(self, fill: Callable[[_Hashing], T]) -> tuple[Prepared, T]:
        """Create a file with `fill`, and return it with `fill`'s result. Raises `StoreError`."""
        self._directory.create()
        temporary = make_private(self._directory.payloads) / f".{secrets.token_hex(8)}.part"
        try:
            with _Hashing(temporary, is_durable=self._is_durable) as writer:
                given = fill(writer)
        except BaseException:
            remove(temporary)
            raise
        return Prepared(temporary, writer.size, writer.digest), given

    def adopt(
        self, task_id: str, name: str, prepared: Prepared, text: str, signature: str = ""
    ) -> ResultRecord:
        """Give a prepared file to a task, under its final name, and sign it.

        With another user's `signature`, it is kept but never loaded with this user's key.
        """
        signature = signature or self._sign(task_id, name, prepared.digest)
        size = prepared.size_bytes + sum(self._adopt_buffers(task_id, prepared).values())
        path, shown = self._name(task_id, prepared), _shortened(text)
        return ResultRecord(name, path, size, prepared.digest, signature, shown, None)

    def _name(self, task_id: str, prepared: Prepared) -> str:
        """Give a prepared file its final name. Return its path in the state directory."""
        try:
            path = self._directory.payload(task_id, prepared.digest)
            with disk_errors.writing(f"the pickle {path}", path):
                make_private(path.parent)
                prepared.path.replace(path)
                if self._is_durable:
                    make_durable(path.parent)
                    make_durable(path.parent.parent)
        finally:
            prepared.discard()
        return str(path.relative_to(self._directory.root))

    def is_signed(self, task_id: str, name: str, digest: str, signature: str) -> bool:
        """Return whether this is the user's signature for a value whose pickle has this digest."""
        own = self._sign(task_id, name, digest)
        # As bytes: `compare_digest` accepts only ASCII strings.
        return hmac.compare_digest(own.encode(), signature.encode("utf-8", "replace"))

    def read(self, task: TaskRecord, result: ResultRecord) -> bytes:
        """Return the pickle as written, whatever its signature. Raises `ResultUnavailable`."""
        data = self.content(task, result)
        if hashlib.sha256(data).hexdigest() != result.digest:
            raise ResultUnavailable(f"{_where(task, result)} has been changed ({result.path})")
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
        data = self._trusted(task, result)
        try:
            linked = self._buffers.take(task.id, _files_of(data))
        except DamagedBuffers as error:
            raise ResultUnavailable(f"{_where(task, result)} was not copied: {error}") from error
        with discarded_on_error(linked):
            return replace(self.write(data), linked=linked)

    def write(self, data: bytes, buffers: Mapping[str, bytes] | None = None) -> Prepared:
        """Write this pickle, and its files of buffers by name, to files that no task owns yet."""
        linked: list[Linked] = []
        with discarded_on_error(linked):
            for name, each in (buffers or {}).items():
                linked.append(self._buffers.import_file(name, each))
            return replace(self._write(lambda file: file.write(data))[0], linked=linked)

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
        files = _Files(self, task, {} if namespace is None else namespace, present)
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
            data = self._trusted(task, inputs)
        except ResultUnavailable:
            return Present()
        given = {entry.name: entry.digest for entry in entries_of(data) if entry.digest}
        return present_of(given, namespace) if is_bundle(data) else Present()

    def inputs(self, task: TaskRecord, result: ResultRecord, namespace: dict[str, Any]) -> Inputs:
        """Return what a task was given. Raises `ResultUnavailable`."""
        data = self._trusted(task, result)
        if not is_bundle(data):  # pickles of an earlier version
            loading = Unpickler(io.BytesIO(data), namespace)
            return Inputs(("", load(loading)) for _value in itertools.repeat(None))
        bundle = self.bundle(task, data, namespace)
        return Inputs(
            iter(bundle), bundle, lambda: self.bundle(task, self._trusted(task, result), {})
        )

    def bundle(self, task: TaskRecord, data: bytes, namespace: dict[str, Any]) -> Bundle:
        """Return the values in a file of a task."""
        return Bundle(data, partial(self._buffers.open, task.id), namespace)

    def _trusted(self, task: TaskRecord, result: ResultRecord) -> bytes:
        """Return the content of a file that has the user's signature."""
        data = self.content(task, result)
        self.require_signature(task, result, hashlib.sha256(data).hexdigest())
        return data

    def require_signature(self, task: TaskRecord, result: ResultRecord, digest: str) -> None:
        """Raise `ResultUnavailable` unless the user has signed these bytes for this value."""
        if not self.is_signed(task.id, result.name, digest, result.signature or ""):
            why = "it was imported, and" if task.is_imported else "its file"
            changed = "" if task.is_imported else ", so it may have been changed"
            raise ResultUnavailable(
                f"{_where(task, result)} was not loaded: {why} does not carry your signature"
                f"{changed} ({result.path}); {_text_form(result)}"
            )

    def content(self, task: TaskRecord, result: ResultRecord) -> bytes:
        """Return the bytes of a file, which may be another user's. Raises `ResultUnavailable`."""
        where = _where(task, result)
        if result.path is None or result.digest is None:
            problem = f"could not be kept ({result.problem})"
            raise ResultUnavailable(f"{where} {problem}; {_text_form(result)}")
        # A path not made here, for this task and digest, could lead anywhere.
        path = self._directory.payload(task.id, result.digest)
        expected = ("payloads", task.id, path.name)
        if PurePath(result.path).parts != expected or ".." in expected:
            raise ResultUnavailable(
                f"{where} was not loaded: its file is said to be where none of this task's is; "
                f"{_text_form(result)}"
            )
        try:
            with open_own(path) as file:
                return file.read()
        except OSError as error:
            raise ResultUnavailable(
                f"{where} cannot be read ({error.strerror}: {result.path}); {_text_form(result)}"
            ) from error

    def delete(self, task_id: str) -> None:
        """Remove all values of a task."""
        folder = self._directory.payloads / task_id
        if folder.parent == self._directory.payloads and is_folder(folder):
            names = [file.name for file in self._buffers.of_task(task_id)]
            for file in folder.iterdir():
                file.unlink(missing_ok=True)
            folder.rmdir()
            self._buffers.forget(names)

    def _sign(self, task_id: str, name: str, digest: str) -> str:
        message = "\0".join((task_id, name, digest)).encode()
        return hmac.new(self._key(), message, hashlib.sha256).hexdigest()

    def _key(self) -> bytes:
        """Return the user's key. On first use create it, completely or not at all."""
        path = self._directory.key
        if not path.exists():
            self._directory.create()
            with disk_errors.writing(f"the key that signs your results ({path})", path):
                _make_key(path)
        key = self._read_key(path)
        if len(key) != KEY_BYTES:
            raise ResultUnavailable(
                f"the key that signs your results is damaged ({path}); delete it, and a new one is "
                "made. Results that the old one has signed are then only there as text"
            )
        return key

    @staticmethod
    def _read_key(path: Path) -> bytes:
        try:
            with open_own(path) as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                if os.name == "posix" and mode & 0o077:
                    raise ResultUnavailable(
                        f"others could read the key that signs your results ({path}); type "
                        f"'chmod 600 {path}' if none of them has, else delete it: a new one is "
                        "made"
                    )
                return file.read(KEY_BYTES + 1)
        except OSError as error:
            raise ResultUnavailable(
                f"the key that signs your results cannot be used ({path}: {error.strerror}); "
                "move it away, and a new one is made"
            ) from error


def _make_key(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with new_private(temporary) as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            # Unlike a rename, a link never replaces a key that another process has created.
            os.link(temporary, path)
    finally:
        remove(temporary)


@contextmanager
def _incomplete(task: TaskRecord) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the pickle may be another user's
        raise ResultUnavailable(f"what task {task.label} has kept is incomplete") from error


def _where(task: TaskRecord, result: ResultRecord) -> str:
    if result.name == INPUTS:
        return f"what task {task.label} was given"
    return f"{result.name or 'the value'} of task {task.label}"


def _text_form(result: ResultRecord) -> str:
    text = " ".join(result.text.split())
    return "its text form: " + (
        text if len(text) <= LINE_CHARACTERS else text[:LINE_CHARACTERS] + " …"
    )


def _shortened(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else text[:TEXT_CHARACTERS] + " …"


def _files_of(data: bytes) -> list[str]:
    """Return the names of the files of buffers that a pickle refers to."""
    entries = entries_of(data) if is_bundle(data) else []
    return [*dict.fromkeys(part.file for entry in entries for part in entry.parts)]


def not_kept(name: str, text: str, error: BaseException) -> ResultRecord:
    """Return the record of a value that could not be kept: its text form and the reason."""
    is_disk = issubclass(type(error), StoreError)
    said = str(error).partition("\n")[0] if is_disk else describe(error)
    problem = said[:PROBLEM_CHARACTERS]
    return ResultRecord(name, None, None, None, None, _shortened(text), problem)


class _Files:
    """The files of one task's values while they are loaded: each is read and hashed once."""

    def __init__(
        self,
        payloads: Payloads,
        task: TaskRecord,
        namespace: dict[str, Any],
        present: Callable[[], Present],
    ) -> None:
        self._payloads = payloads
        self._task = task
        self._namespace = namespace
        self._present = present
        self._data: dict[str | None, tuple[str, bytes]] = {}
        self._together: dict[str, Returned] = {}

    def value(self, result: ResultRecord) -> Any:
        """Return one value. Raises `ResultUnavailable`."""
        if result.digest not in self._data:
            data = self._payloads.content(self._task, result)
            self._data[result.digest] = hashlib.sha256(data).hexdigest(), data
        digest, data = self._data[result.digest]
        self._payloads.require_signature(self._task, result, digest)
        value = self._loaded(result.name, digest, data)
        if isinstance(value, Failed):
            error, where = value.error, _where(self._task, result)
            why = f"{where} cannot be unpickled here ({describe(error)})"
            if isinstance(error, DamagedBuffers):
                why = f"{where} was not loaded: {error}"
            raise ResultUnavailable(f"{why}; {_text_form(result)}") from error
        return value

    def _loaded(self, name: str, digest: str, data: bytes) -> Any:
        if is_bundle(data):
            if digest not in self._together:
                bundle = self._payloads.bundle(self._task, data, self._namespace)
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


class _Hashing:
    """A new file that is hashed while it is written. Raises `StoreError` when writing fails."""

    def __init__(self, path: Path, *, is_durable: bool) -> None:
        self._path = path
        self._is_durable = is_durable
        self._hash = hashlib.sha256()
        self.size = 0
        with self._refusals():
            self._file = new_private(path)

    def __enter__(self) -> _Hashing:
        return self

    def __exit__(self, *_exception: object) -> None:
        with self._refusals(), self._file:
            self._file.flush()
            if self._is_durable:
                os.fsync(self._file.fileno())

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.size += memoryview(data).nbytes
        with self._refusals():
            return int(self._file.write(data))

    def _refusals(self) -> AbstractContextManager[None]:
        # Kept apart from what a pickled class raises meanwhile.
        folder = self._path.parent
        return disk_errors.writing(f"the pickle of a value in {folder}", folder)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()
