"""Load into a shell, and unload: everything that is changed is put back."""

from __future__ import annotations

import sys
from typing import Any

from ipytaskpersist import away, matcher
from ipytaskpersist.errors import AlreadyRunAgain, BackgroundError, StoreError
from ipytaskpersist.magics import BackgroundMagics, command_of
from ipytaskpersist.manager import BackgroundTasks, set_current
from ipytaskpersist.patches import Patches
from ipytaskpersist.records import TaskRecord
from ipytaskpersist.safetext import legible


class Extension:
    """The extension as one shell has loaded it."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.manager = BackgroundTasks(shell, parent=shell)
        self.magics = BackgroundMagics(shell, self.manager)
        self._patches = Patches()

    def load(self) -> None:
        """Register the magics, and say in a few lines what has happened since somebody was here."""
        set_current(self.manager)
        self.manager.say_setting_problems()
        self._say_project()
        self.shell.configurables.append(self.manager)
        self.magics.register()
        matcher.install(self.shell, self.manager, command_of, self._patches)
        kernel = getattr(self.shell, "kernel", None)
        if kernel is None:
            # A terminal's streams can only be routed from between two cells.
            self.manager.install_capture()
        else:
            self._patches.replace(kernel, "do_shutdown", self._shutdown)
        try:
            self._greet()
        except StoreError as error:
            self.manager.warn(f"{error}; new background tasks cannot be recorded")
        if kernel is None:
            self._announce()

    def _say_project(self) -> None:
        """Say which project's settings are in effect, so that a stranger's are noticed."""
        words = self.manager.project_in_words()
        if words:
            print(legible(words))

    def _announce(self) -> None:
        """Say before each prompt of a terminal what has ended."""
        if hasattr(self.shell, "prompt_for_code"):
            from ipytaskpersist.announcements import Announcements

            Announcements(self.manager).install(self.shell, self._patches)

    def _shutdown(self, plain: Any) -> Any:
        def do_shutdown(restart: bool) -> Any:
            self.manager.end_process("kernel restarted" if restart else "kernel shut down")
            return plain(restart)

        return do_shutdown

    def _greet(self) -> None:
        manager = self.manager
        if not manager.store.exists:
            return
        manager.store.open()
        if manager.store.read_only:
            manager.store.require_writable()
        returned = away.Return(manager)
        resumed = self._resume() if manager.auto_resume else {}
        greeting = returned.greeting(resumed)
        if greeting:
            print(greeting)

    def _resume(self) -> dict[str, TaskRecord]:
        """Run what was interrupted again: the new tasks, by the ids of those before."""
        resumed = {}
        for task in self.manager.resumable():
            try:
                resumed[task.id] = self.manager.launcher.rerun(task, once=True)
            except AlreadyRunAgain:
                continue
            except BackgroundError as error:
                print(legible(f"task {task.label} could not be resumed: {error}"), file=sys.stderr)
        return resumed

    def unload(self) -> None:
        """Put everything back. Running thread tasks are interrupted."""
        self.magics.unregister()
        self._patches.undo()
        self.manager.close()
        if self.manager in self.shell.configurables:
            self.shell.configurables.remove(self.manager)
        set_current(None)
