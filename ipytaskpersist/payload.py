"""Values in files: pickled, signed with the user's key, and loaded only when the signature holds.

A pickle runs code when it is loaded. So each is signed with a key that only its owner can read,
as Jupyter signs notebooks, together with the task and the name that it belongs to: neither a
changed file nor one that was moved from another task is ever unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import io
import os
import pickle  # what is not signed is never loaded  # nosec B403
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from ipytaskpersist.errors import ResultUnavailable, StoreFull
from ipytaskpersist.paths import StateDirectory, is_folder, make_private, new_private, open_own
from ipytaskpersist.records import ResultRecord, TaskRecord

TEXT_CHARACTERS = 4000
LINE_CHARACTERS = 200
KEY_BYTES = 32
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INPUTS = "<inputs>"
"""The name of what a Python process task is given; no variable can have it."""
NAMESPACE_ID = "namespace"
Namespace = dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A pickle that is written, and that no task has yet."""

    path: Path
    size_bytes: int
    digest: str

    def discard(self) -> None:
        """Remove it, if no task has taken it."""
        self.path.unlink(missing_ok=True)


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
        except Exception as error:  # whatever a class raises when it is pickled
            problem = f"{type(error).__name__}: {error}".splitlines()[0][:500]
            return ResultRecord(name, None, None, None, None, _shortened(text), problem)

    def prepare(self, values: Iterable[Any], namespace: Namespace = None) -> Prepared:
        """Pickle values, one after the other, into a file that belongs to no task yet.

        Raises `StoreFull`, and whatever a class raises when it is pickled.
        """
        self._directory.create()
        folder = make_private(self._directory.payloads)
        temporary = folder / f".{secrets.token_hex(8)}.part"
        try:
            with new_private(temporary) as file:
                writer = _Hashing(file)
                pickler = _pickler(writer, namespace)
                for value in values:
                    pickler.dump(value)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise StoreFull(
                    f"no room is left for the pickle of a value in {folder} ({error.strerror}); "
                    "make room on its disk, or %bg_delete tasks"
                ) from error
            raise
        return Prepared(temporary, writer.size, writer.digest)

    def adopt(
        self, task_id: str, name: str, prepared: Prepared, text: str, signature: str = ""
    ) -> ResultRecord:
        """Give a prepared file to a task, under its final name, and sign it.

        With the `signature` of somebody else it is kept, but never loaded with this user's key.
        """
        try:
            signature = signature or self._sign(task_id, name, prepared.digest)
            path = self._directory.payload(task_id, prepared.digest)
            make_private(path.parent)
            prepared.path.replace(path)
        finally:
            prepared.path.unlink(missing_ok=True)
        relative = str(path.relative_to(self._directory.root))
        shown = _shortened(text)
        return ResultRecord(
            name, relative, prepared.size_bytes, prepared.digest, signature, shown, None
        )

    def is_signed(self, task_id: str, name: str, data: bytes, signature: str) -> bool:
        """Whether a pickle that comes from elsewhere carries this user's signature."""
        own = self._sign(task_id, name, hashlib.sha256(data).hexdigest())
        # As bytes, because of texts it compares only those of ASCII.
        return hmac.compare_digest(own.encode(), signature.encode("utf-8", "replace"))

    def read(self, task: TaskRecord, result: ResultRecord) -> bytes:
        """The pickle as it was written, whoever has signed it. Raises `ResultUnavailable`."""
        data = self._content(task, result)
        if hashlib.sha256(data).hexdigest() != result.digest:
            raise ResultUnavailable(f"{_where(task, result)} has been changed ({result.path})")
        return data

    def copy(self, task: TaskRecord, result: ResultRecord) -> Prepared:
        """A task's file once more, for another task. Raises `ResultUnavailable`."""
        return self.write(self._trusted(task, result))

    def write(self, data: bytes) -> Prepared:
        """A file with this pickle, which belongs to no task yet."""
        folder = make_private(self._directory.payloads)
        temporary = folder / f".{secrets.token_hex(8)}.part"
        with new_private(temporary) as file:
            file.write(data)
        return Prepared(temporary, len(data), hashlib.sha256(data).hexdigest())

    def load(self, task: TaskRecord, result: ResultRecord, namespace: Namespace = None) -> Any:
        """The value. Raises `ResultUnavailable` when there is none or it cannot be trusted.

        Names that `namespace` has keep their values, whatever a loaded function brings along.
        """
        known = dict(namespace or {})
        try:
            return self.unpickler(task, result, {} if namespace is None else namespace).load()
        except ResultUnavailable:
            raise
        except Exception as error:  # whatever a class raises when it is unpickled
            raise ResultUnavailable(
                f"{_where(task, result)} cannot be unpickled here ({type(error).__name__}: "
                f"{error}); {_text_form(result)}"
            ) from error
        finally:
            if namespace is not None:
                namespace.update(known)

    def unpickler(
        self, task: TaskRecord, result: ResultRecord, namespace: dict[str, Any]
    ) -> pickle.Unpickler:
        """What loads the values of a file one after the other. Raises `ResultUnavailable`."""
        return _Unpickler(io.BytesIO(self._trusted(task, result)), namespace)

    def _trusted(self, task: TaskRecord, result: ResultRecord) -> bytes:
        """The content of a file that carries the user's signature."""
        data = self._content(task, result)
        if not self.is_signed(task.id, result.name, data, result.signature or ""):
            why = "it was imported, and" if task.is_imported else "its file"
            changed = "" if task.is_imported else ", so it may have been changed"
            raise ResultUnavailable(
                f"{_where(task, result)} was not loaded: {why} does not carry your signature"
                f"{changed} ({result.path}); {_text_form(result)}"
            )
        return data

    def _content(self, task: TaskRecord, result: ResultRecord) -> bytes:
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
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            with new_private(temporary) as file:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            try:
                # Unlike a rename, a link never replaces a key that another process has made.
                os.link(temporary, path)
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
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


def _pickler(file: Any, namespace: Namespace) -> Any:
    """A pickler that takes functions of the notebook by value, and their globals by name."""
    import cloudpickle

    if namespace is None:
        return cloudpickle.Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
    globals_of_functions: dict[str, Any] = {"__name__": "__main__"}

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, value: Any) -> str | None:
            return NAMESPACE_ID if value is globals_of_functions else None

    pickler = Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
    # What cloudpickle makes the globals of every function whose globals these are.
    pickler.globals_ref[id(namespace)] = globals_of_functions
    return pickler


class _Unpickler(pickle.Unpickler):
    """Gives loaded functions a namespace for their globals."""

    def __init__(self, file: BinaryIO, namespace: dict[str, Any]) -> None:
        super().__init__(file)
        self._namespace = namespace

    def persistent_load(self, pid: Any) -> Any:
        if pid != NAMESPACE_ID:
            raise pickle.UnpicklingError(f"unknown persistent id {pid!r}")
        return self._namespace


class _Hashing:
    """A file that is hashed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.size += memoryview(data).nbytes
        return self._file.write(data)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()
