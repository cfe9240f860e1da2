"""The session of this process, and the notebook to which it belongs."""

from __future__ import annotations

import os
import sys

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.process_identity import SessionIdentity
from ipytaskpersist.base.records import SessionRecord
from ipytaskpersist.errors import ForkedProcess
from ipytaskpersist.history.upkeep import UpkeepTimer
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.session.task_settings import TaskSettings
from ipytaskpersist.store.task_store import TaskStore


class OwnSession:
    """The session of this process. It is recorded together with its first task."""

    def __init__(self, settings: TaskSettings, store: TaskStore, upkeep: UpkeepTimer) -> None:
        self._settings = settings
        self._store = store
        self._upkeep = upkeep
        self._pid = os.getpid()
        self._identity: SessionIdentity | None = None
        self._record: SessionRecord | None = None
        self._replacements = 0
        """Number of times the store had been replaced when the session was recorded."""

    @property
    def identity(self) -> SessionIdentity:
        """Session and notebook of this process."""
        if self._identity is None:
            self._identity = session_identity(self._settings.shell, self._settings.notebook)
        return self._identity

    @property
    def is_recorded(self) -> bool:
        """Whether this very process has recorded the session; a forked child has not."""
        return self._record is not None and self._pid == os.getpid()

    def record(self) -> SessionRecord:
        """Return the session in the store. Record it, and create the store, if missing.

        Raise `ForkedProcess` in a forked child, which is not part of its parent's session.
        """
        if self._pid != os.getpid():
            raise ForkedProcess
        self._store.keep_up()
        if self._record is None:
            self._record = self._begin()
            self._upkeep.begin()
        elif self._replacements != self._store.replacements:
            self._record = self._begin()
        return self._record

    def _begin(self) -> SessionRecord:
        self._store.open().require_writable()
        if self._store.notice:
            print(legible(self._store.notice), file=sys.stderr)
        session = self._store.sessions.begin(self.identity)
        self._store.session_id, self._replacements = session.id, self._store.replacements
        return session

    def notebook_key(self) -> int | None:
        """Return this notebook's key in the store; None if the store does not know it."""
        if self._record is not None:
            return self.record().notebook_key
        if not self._store.exists:
            return None
        notebook = self._store.open().sessions.find_notebook(self.identity)
        return notebook.key if notebook else None
