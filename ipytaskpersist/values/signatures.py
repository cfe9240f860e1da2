"""The user's key, and what it signs.

Loading a pickle runs code. So each is signed with a key that only its owner can read, as Jupyter
signs notebooks, together with its task and name: neither a changed file nor one that was moved from
another task is ever unpickled.

A task at a place has a key of its own, which is made of the user's and is sent there. So what comes
back from there can be told from what was changed on the way, and from what the user has signed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import new_private, open_own, remove
from ipytaskpersist.errors import ResultUnavailable
from ipytaskpersist.places import trust

KEY_BYTES = 32


class Signatures:
    """The signatures of one user, whose key is in the state directory."""

    def __init__(self, directory: StateDirectory) -> None:
        self._directory = directory

    def sign(self, task_id: str, name: str, digest: str) -> str:
        """Return the user's signature for a value whose pickle has this digest."""
        return _signature(self._key(), task_id, name, digest)

    def sign_for(self, place: Mapping[str, Any], task_id: str, name: str, digest: str) -> str:
        """Return the same with the key that the task has at a place."""
        return _signature(self.key_at(trust.identity_of(place), task_id), task_id, name, digest)

    def is_signed(self, task_id: str, name: str, digest: str, signature: str) -> bool:
        """Return whether a value whose pickle has this digest may be loaded.

        The user has signed it, or a place that the user trusts has, with the key of this task.
        """
        signed = (task_id, name, digest)
        return _is(_signature(self._key(), *signed), signature) or any(
            _is(_signature(self.key_at(place, task_id), *signed), signature)
            for place in trust.trusted(self._directory)
        )

    def is_signed_at(
        self, place: Mapping[str, Any], task_id: str, name: str, digest: str, signature: str
    ) -> bool:
        """Return whether this signature was made with the key that the task has at a place."""
        return _is(self.sign_for(place, task_id, name, digest), signature)

    def key_at(self, place: str, task_id: str) -> bytes:
        """Return the key of a task at the place with this identity.

        No value has such a message, because no task's id begins with a null character.
        """
        message = "\0".join(("\0place", place, task_id)).encode()
        return hmac.new(self._key(), message, hashlib.sha256).digest()

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


def _signature(key: bytes, task_id: str, name: str, digest: str) -> str:
    message = "\0".join((task_id, name, digest)).encode()
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def _is(own: str, signature: str) -> bool:
    # As bytes: `compare_digest` accepts only ASCII strings.
    return hmac.compare_digest(own.encode(), signature.encode("utf-8", "replace"))


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
