"""Values in files: pickled, signed with the user's key, and loaded only when the signature holds.

A pickle runs code when it is loaded. So each is signed with a key that only its owner can read,
as Jupyter signs notebooks, together with the task and the name that it belongs to: neither a
changed file nor one that was moved from another task is ever unpickled.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import pickle
import secrets
from pathlib import Path
from typing import Any, BinaryIO

from ipytaskpersist.errors import ResultUnavailable
from ipytaskpersist.paths import StateDirectory, make_private
from ipytaskpersist.records import ResultRecord, TaskRecord

TEXT_CHARACTERS = 4000
LINE_CHARACTERS = 200
KEY_BYTES = 32


class Payloads:
    """The pickled values of one state directory."""

    def __init__(self, directory: StateDirectory) -> None:
        self._directory = directory

    def save(self, task_id: str, name: str, value: Any, text: str) -> ResultRecord:
        """Pickle and sign one value. `text` is its text form, kept in any case."""
        shown = text if len(text) <= TEXT_CHARACTERS else text[:TEXT_CHARACTERS] + " …"
        try:
            path, size, digest = self._write(task_id, value)
            signature = self._sign(task_id, name, digest)
        except Exception as error:  # whatever a class raises when it is pickled
            problem = f"{type(error).__name__}: {error}".splitlines()[0][:500]
            return ResultRecord(name, None, None, None, None, shown, problem)
        relative = str(path.relative_to(self._directory.root))
        return ResultRecord(name, relative, size, digest, signature, shown, None)

    def _write(self, task_id: str, value: Any) -> tuple[Path, int, str]:
        import cloudpickle

        self._directory.create()
        make_private(self._directory.payloads)
        folder = make_private(self._directory.payloads / task_id)
        temporary = folder / f".{secrets.token_hex(8)}.part"
        try:
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with open(descriptor, "wb") as file:
                writer = _Hashing(file)
                cloudpickle.dump(value, writer, protocol=pickle.HIGHEST_PROTOCOL)
            path = self._directory.payload(task_id, writer.digest)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path, writer.size, writer.digest

    def load(self, task: TaskRecord, result: ResultRecord) -> Any:
        """The value. Raises `ResultUnavailable` when there is none or it cannot be trusted."""
        where = f"the value of task {task.label}"
        text = " ".join(result.text.split())
        if len(text) > LINE_CHARACTERS:
            text = text[:LINE_CHARACTERS] + " …"
        text = f"its text form: {text}"
        if result.path is None or result.digest is None:
            raise ResultUnavailable(f"{where} could not be kept ({result.problem}); {text}")
        try:
            data = (self._directory.root / result.path).read_bytes()
        except OSError as error:
            raise ResultUnavailable(
                f"{where} cannot be read ({error.strerror}: {result.path}); {text}"
            ) from error
        digest = hashlib.sha256(data).hexdigest()
        signature = self._sign(task.id, result.name, digest)
        if not hmac.compare_digest(signature, result.signature or ""):
            raise ResultUnavailable(
                f"{where} was not loaded: its file does not carry your signature, so it may have "
                f"been changed ({result.path}); {text}"
            )
        try:
            return pickle.loads(data)
        except Exception as error:  # whatever a class raises when it is unpickled
            raise ResultUnavailable(
                f"{where} cannot be unpickled here ({type(error).__name__}: {error}); {text}"
            ) from error

    def delete(self, task_id: str) -> None:
        """Remove all values of a task."""
        folder = self._directory.payloads / task_id
        if folder.is_dir():
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
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with open(descriptor, "wb") as file:
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
        key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise ResultUnavailable(
                f"the key that signs your results is damaged ({path}); delete it, and a new one is "
                "made. Results that the old one has signed are then only there as text"
            )
        return key


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
