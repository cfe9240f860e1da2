"""`BackgroundTasks`: the settings of this process, and the parts that work for it."""

from __future__ import annotations

import atexit
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from ipytaskpersist.base import checkpoint_folders
from ipytaskpersist.base.checkpoint_folders import Latest
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.history.upkeep import UpkeepTimer
from ipytaskpersist.session.changing import TaskChanges
from ipytaskpersist.session.finding import TaskFinder
from ipytaskpersist.session.inspecting import Inspecting
from ipytaskpersist.session.own_session import OwnSession
from ipytaskpersist.session.provenance import GitWatch
from ipytaskpersist.session.queueing import Queueing
from ipytaskpersist.session.runners import Runners
from ipytaskpersist.session.task_settings import TaskSettings
from ipytaskpersist.session.waiting import Waiting
from ipytaskpersist.store import problems
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.values.payloads import Payloads

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ipytaskpersist.session.launcher import Launcher
    from ipytaskpersist.session.results import Results


class BackgroundTasks(TaskSettings):
    """The background tasks of this process and, through the store, of all others."""

    def __init__(
        self,
        shell: InteractiveShell | None = None,
        store: TaskStore | None = None,
        **options: Any,
    ) -> None:
        """`store` is this user's own, unless given."""
        super().__init__(shell, **options)
        self.store = store or TaskStore(
            StateDirectory(default_directory()),
            synchronous=self.synchronous,
            backups_kept=self.backups_kept,
        )
        self.directory = self.store.directory
        self.store.say = partial(problems.say, self.directory)
        self.archives = Archives(self.store)
        self.payloads = Payloads(self.directory, is_durable=self.synchronous == "full")
        self.git = GitWatch(self.store)
        self.upkeep = UpkeepTimer(self.store, self)
        self.session = OwnSession(self, self.store, self.upkeep)
        self.runners = Runners(self, self.store, self.payloads, self.session, self.git)
        self.tasks = TaskFinder(self.store, self.archives, self.session, self.runners)
        self.inspecting = Inspecting(self.store, self.tasks)
        self.waiting = Waiting(self.store, self.tasks, self.runners)
        self.changes = TaskChanges(
            self.store,
            self.archives,
            self.payloads,
            self.upkeep,
            self.session,
            self.tasks,
            self.waiting,
            self.runners,
        )
        self.queueing = Queueing(self, self.store, self.tasks)
        self.ends_shown: set[int] = set()
        """Keys of tasks whose end a command has just shown, so it need not be announced."""
        self._results: Results | None = None
        if shell is None:
            atexit.register(self.runners.end_session, "program ended")

    @property
    def results(self) -> Results:
        """What tasks have left."""
        if self._results is None:
            from ipytaskpersist.session.results import Results

            self._results = Results(
                self.shell, self.store, self.archives, self.payloads, self.runners
            )
        return self._results

    @property
    def launcher(self) -> Launcher:
        """The launcher of tasks in this process."""
        from ipytaskpersist.session.cell_runs import CellRuns
        from ipytaskpersist.session.launcher import Launcher

        return Launcher(
            self,
            self.store,
            self.archives,
            self.payloads,
            self.session,
            self.runners,
            self.results,
            self.git,
            self.upkeep,
            CellRuns(self, self.store, self.session, self.runners, self.changes, self.waiting),
            self.queueing,
        )

    def checkpoint(self, task: TaskRecord) -> Latest | None:
        """Return the latest checkpoint of a task, or of one from which it goes on."""
        return checkpoint_folders.latest(self.directory, task.checkpoint_place, task.kind)

    def close(self) -> None:
        """Undo all changes and release the store. Running tasks are interrupted."""
        self.runners.close()
        self.upkeep.stop()
        self.archives.close()
        self.store.close()


_current: BackgroundTasks | None = None


def current() -> BackgroundTasks:
    """Return the manager of this process: the loaded extension's, or else one that only reads."""
    global _current
    if _current is None:
        shell = _shell()
        _current = BackgroundTasks(shell, parent=shell)
        _current.say_setting_problems()
    return _current


def set_current(manager: BackgroundTasks | None) -> None:
    """Make this the manager of the process."""
    global _current
    _current = manager


def _shell() -> InteractiveShell | None:
    module: Any = sys.modules.get("IPython.core.getipython")
    return module.get_ipython() if module is not None else None
