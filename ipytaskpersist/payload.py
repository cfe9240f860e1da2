"""Values in files: pickled, signed with the user's key, and loaded only when the signature holds.

A pickle runs code when it is loaded. So each is signed with a key that only its owner can read,
as Jupyter signs notebooks, together with the task and the name that it belongs to: neither a
changed file nor one that was moved from another task is ever unpickled.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, TypeVar

from ipytaskpersist import disks
from ipytaskpersist.errors import BackgroundError, ResultUnavailable, StoreError
from ipytaskpersist.interruption import is_from_outside
from ipytaskpersist.mishaps import describe
from ipytaskpersist.paths import (
    StateDirectory,
    is_folder,
    make_private,
    new_private,
    open_own,
    remove,
)
from ipytaskpersist.pickling import (
    Failed,
    Namespace,
    Unpicklable,
    Unpickler,
    are_together,
    be_ready,
    dump,
    load,
    pickler,
    read_together,
    write_together,
)
from ipytaskpersist.records import ResultRecord, TaskRecord

TEXT_CHARACTERS = 4000
LINE_CHARACTERS = 200
PROBLEM_CHARACTERS = 500
KEY_BYTES = 32
INPUTS = "<inputs>"
"""The name of what a Python process task is given; no variable can have it."""
SETTINGS = "<settings>"
"""The name of what a Python process task has set in libraries, and imported."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A pickle that is written, and that no task has yet."""

    path: Path
    size_bytes: int
    digest: str

    def discard(self) -> None:
        """Remove it, if no task has taken it."""
        remove(self.path)


class Payloads:
    """The pickled values of one state directory."""

    def __init__(self, directory: StateDirectory) -> None:
        self._directory = directory

    def save(
        self, task_id: str, name: str, value: Any, text: str, namespace: Namespace = None
    ) -> ResultRecord:
        """Pickle and sign one value. `text` is its text form, kept in any case.

        Functions whose global variables are `namespace` find them, once loaded, in the namespace
        into which they are loaded.
        """
        try:
            return self.adopt(task_id, name, self.prepare([value], namespace), text)
        except BaseException as error:  # whatever a class raises when it is pickled
            if is_from_outside(error):
                raise
            return not_kept(name, text, error)

    def save_together(
        self,
        task_id: str,
        values: Mapping[str, Any],
        texts: Mapping[str, str],
        namespace: Namespace,
    ) -> list[ResultRecord]:
        """Pickle and sign named values in one file, in which what several share is there once.

        One that cannot be pickled does not lose the others; its record says why.
        """
        left, kept = dict(values), dict[str, ResultRecord]()
        while left:
            try:
                prepared, sizes = self._write(lambda file: write_together(file, left, namespace))
            except Unpicklable as error:
                # Once more without it: what is written of it is also what the others share.
                kept[error.name] = not_kept(error.name, texts[error.name], error.cause)
                del left[error.name]
            except BackgroundError as error:
                return [kept.get(name) or not_kept(name, texts[name], error) for name in values]
            else:
                kept |= self._adopt_together(task_id, prepared, sizes, texts)
                break
        return [kept[name] for name in values]

    def _adopt_together(
        self, task_id: str, prepared: Prepared, sizes: Mapping[str, int], texts: Mapping[str, str]
    ) -> dict[str, ResultRecord]:
        """Give a file of several values to a task: it is signed for each of them."""
        path = self._name(task_id, prepared)
        return {
            name: ResultRecord(
                name,
                path,
                size,
                prepared.digest,
                self._sign(task_id, name, prepared.digest),
                _shortened(texts[name]),
                None,
            )
            for name, size in sizes.items()
        }

    def be_ready(self) -> None:
        """Import what the first value needs: at the end of a task the package may be gone."""
        be_ready()

    def prepare(self, values: Iterable[Any], namespace: Namespace = None) -> Prepared:
        """Pickle values, one after the other, into a file that belongs to no task yet.

        Raises `StoreError`, and whatever a class raises when it is pickled.
        """

        def fill(file: _Hashing) -> None:
            made = pickler(file, namespace)
            for value in values:
                dump(made, "", value)

        try:
            return self._write(fill)[0]
        except Unpicklable as error:
            raise error.cause from None

    def _write(self, fill: Callable[[_Hashing], T]) -> tuple[Prepared, T]:
        """A new file that `fill` has written, and what that gave. Raises `StoreError`."""
        self._directory.create()
        temporary = make_private(self._directory.payloads) / f".{secrets.token_hex(8)}.part"
        try:
            with _Hashing(temporary) as writer:
                given = fill(writer)
        except BaseException:
            remove(temporary)
            raise
        return Prepared(temporary, writer.size, writer.digest), given

    def adopt(
        self, task_id: str, name: str, prepared: Prepared, text: str, signature: str = ""
    ) -> ResultRecord:
        """Give a prepared file to a task, under its final name, and sign it.

        With the `signature` of somebody else it is kept, but never loaded with this user's key.
        """
        signature = signature or self._sign(task_id, name, prepared.digest)
        path, shown = self._name(task_id, prepared), _shortened(text)
        return ResultRecord(
            name, path, prepared.size_bytes, prepared.digest, signature, shown, None
        )

    def _name(self, task_id: str, prepared: Prepared) -> str:
        """Give a prepared file its final name. Returns its path in the state directory."""
        try:
            path = self._directory.payload(task_id, prepared.digest)
            with disks.writing(f"the pickle {path}", path):
                make_private(path.parent)
                prepared.path.replace(path)
        finally:
            prepared.discard()
        return str(path.relative_to(self._directory.root))

    def is_signed(self, task_id: str, name: str, digest: str, signature: str) -> bool:
        """Whether this is the user's signature for a value whose pickle has this digest."""
        own = self._sign(task_id, name, digest)
        # As bytes, because of texts it compares only those of ASCII.
        return hmac.compare_digest(own.encode(), signature.encode("utf-8", "replace"))

    def read(self, task: TaskRecord, result: ResultRecord) -> bytes:
        """The pickle as it was written, whoever has signed it. Raises `ResultUnavailable`."""
        data = self.content(task, result)
        if hashlib.sha256(data).hexdigest() != result.digest:
            raise ResultUnavailable(f"{_where(task, result)} has been changed ({result.path})")
        return data

    def copy(self, task: TaskRecord, result: ResultRecord) -> Prepared:
        """A task's file once more, for another task. Raises `ResultUnavailable`."""
        return self.write(self._trusted(task, result))

    def write(self, data: bytes) -> Prepared:
        """A file with this pickle, which belongs to no task yet."""
        return self._write(lambda file: file.write(data))[0]

    def once_more(self, prepared: Prepared) -> Prepared:
        """A prepared file under another name, to be given to another value."""
        path = prepared.path.with_name(f".{secrets.token_hex(8)}.part")
        os.link(prepared.path, path)
        return replace(prepared, path=path)

    def load(self, task: TaskRecord, result: ResultRecord, namespace: Namespace = None) -> Any:
        """The value. Raises `ResultUnavailable` when there is none or it cannot be trusted.

        Names that `namespace` has keep their values, whatever a loaded function brings along.
        """
        value = self.load_all(task, [result], namespace)[result.name]
        if isinstance(value, ResultUnavailable):
            if value.__cause__ is not None and is_from_outside(value.__cause__):
                raise value.__cause__
            raise value
        return value

    def load_all(
        self, task: TaskRecord, results: Sequence[ResultRecord], namespace: Namespace = None
    ) -> dict[str, Any]:
        """Values by their names; a `ResultUnavailable` in place of one that there is none of.

        What several of them share is one object, where they were pickled together.
        """
        files, values = _Files(self, task, {} if namespace is None else namespace), {}
        known = dict(namespace or {})
        for result in results:
            try:
                values[result.name] = files.value(result)
            except ResultUnavailable as error:
                values[result.name] = error
        if namespace is not None:
            namespace.update(known)
        return values

    def unpickler(
        self, task: TaskRecord, result: ResultRecord, namespace: dict[str, Any]
    ) -> Unpickler:
        """What loads the values of a file one after the other. Raises `ResultUnavailable`."""
        return Unpickler(io.BytesIO(self._trusted(task, result)), namespace)

    def _trusted(self, task: TaskRecord, result: ResultRecord) -> bytes:
        """The content of a file that carries the user's signature."""
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
        """The bytes of a file, which may be anybody's. Raises `ResultUnavailable`."""
        where = _where(task, result)
        if result.path is None or result.digest is None:
            problem = f"could not be kept ({result.problem})"
            raise ResultUnavailable(f"{where} {problem}; {_text_form(result)}")
        # A path that was not made here, for this task and digest, leads nobody knows where.
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
            for file in folder.iterdir():
                file.unlink(missing_ok=True)
            folder.rmdir()

    def _sign(self, task_id: str, name: str, digest: str) -> str:
        message = "\0".join((task_id, name, digest)).encode()
        return hmac.new(self._key(), message, hashlib.sha256).hexdigest()

    def _key(self) -> bytes:
        """The user's key, made at its first use, whole or not at all."""
        path = self._directory.key
        if not path.exists():
            self._directory.create()
            with disks.writing(f"the key that signs your results ({path})", path):
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
                        f"'chmod 600 {path}' when nobody has, else delete it, and a new one is made"
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
            # Unlike a rename, a link never replaces a key that another process has made.
            os.link(temporary, path)
    finally:
        remove(temporary)


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


def not_kept(name: str, text: str, error: BaseException) -> ResultRecord:
    """What is known of a value that could not be kept: its text form, and why."""
    is_disk = issubclass(type(error), StoreError)
    said = str(error).partition("\n")[0] if is_disk else describe(error)
    problem = said[:PROBLEM_CHARACTERS]
    return ResultRecord(name, None, None, None, None, _shortened(text), problem)


class _Files:
    """The files of one task's values while these are loaded: each is read and hashed once."""

    def __init__(self, payloads: Payloads, task: TaskRecord, namespace: dict[str, Any]) -> None:
        self._payloads = payloads
        self._task = task
        self._namespace = namespace
        self._data: dict[str | None, tuple[str, bytes]] = {}
        self._together: dict[str, dict[str, Any]] = {}

    def value(self, result: ResultRecord) -> Any:
        """One value. Raises `ResultUnavailable`."""
        if result.digest not in self._data:
            data = self._payloads.content(self._task, result)
            self._data[result.digest] = hashlib.sha256(data).hexdigest(), data
        digest, data = self._data[result.digest]
        self._payloads.require_signature(self._task, result, digest)
        value = self._loaded(result.name, digest, data)
        if isinstance(value, Failed):
            error = value.error
            raise ResultUnavailable(
                f"{_where(self._task, result)} cannot be unpickled here ({describe(error)}); "
                f"{_text_form(result)}"
            ) from error
        return value

    def _loaded(self, name: str, digest: str, data: bytes) -> Any:
        if are_together(data):
            if digest not in self._together:
                self._together[digest] = dict(read_together(data, self._namespace))
            return self._together[digest][name]
        return load(Unpickler(io.BytesIO(data), self._namespace))


class _Hashing:
    """A new file that is hashed while it is written. Raises `StoreError` where it cannot be."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = hashlib.sha256()
        self.size = 0
        with self._refusals():
            self._file = new_private(path)

    def __enter__(self) -> _Hashing:
        return self

    def __exit__(self, *_exception: object) -> None:
        with self._refusals():
            self._file.close()  # which writes what is left

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.size += memoryview(data).nbytes
        with self._refusals():
            return int(self._file.write(data))

    def _refusals(self) -> AbstractContextManager[None]:
        # Apart from what a class raises that is pickled meanwhile.
        folder = self._path.parent
        return disks.writing(f"the pickle of a value in {folder}", folder)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()
