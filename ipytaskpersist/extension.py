"""Load the extension into a shell, and unload it: unloading restores everything it changed."""

from __future__ import annotations

import sys
from typing import Any

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.commands import tab_completion
from ipytaskpersist.commands.magics import BackgroundMagics, command_of
from ipytaskpersist.display import greetings
from ipytaskpersist.errors import AlreadyRunAgain, BackgroundError, StoreError
from ipytaskpersist.isolation import random_states
from ipytaskpersist.session import awaited_names, renamed_notebooks
from ipytaskpersist.session.manager import BackgroundTasks, set_current
from ipytaskpersist.store import problems
from ipytaskpersist.store.tasks import Selection


class Extension:
    """The extension as loaded by one shell."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.manager = BackgroundTasks(shell, parent=shell)
        self.magics = BackgroundMagics(shell, self.manager)
        self._patches = Patches()

    def load(self) -> None:
        """Register the magics, and report in a few lines what has happened since the last visit."""
        set_current(self.manager)
        self.manager.say_setting_problems()
        self._say_project()
        self.shell.configurables.append(self.manager)
        self.magics.register()
        random_states.install(self._patches)
        awaited_names.install(self.manager)
        tab_completion.install(self.shell, self.manager, command_of, self._patches)
        kernel = getattr(self.shell, "kernel", None)
        if kernel is None:
            # A terminal's streams can be routed only between two cells.
            self.manager.runners.install_capture()
            if hasattr(self.shell, "_atexit_once"):
                # IPython clears the variables before the interpreter exits. The errors that a
                # running task then raises are not its own.
                self._patches.replace(self.shell, "_atexit_once", self._leave)
        else:
            self._patches.replace(kernel, "do_shutdown", self._shutdown)
        try:
            self._greet()
        except StoreError as error:
            message = f"{error}; new background tasks cannot be recorded"
            problems.say(self.manager.directory, message)
        if kernel is None:
            self._announce()

    def _say_project(self) -> None:
        """Report which project's settings are in effect: a stranger's must not go unnoticed."""
        words = self.manager.project_in_words()
        if words:
            print(legible(words))

    def _announce(self) -> None:
        """Report ended tasks before each prompt of a terminal."""
        if hasattr(self.shell, "prompt_for_code"):
            from ipytaskpersist.display.announcements import Announcements

            Announcements(self.manager).install(self.shell, self._patches)

    def _shutdown(self, plain: Any) -> Any:
        def do_shutdown(restart: bool) -> Any:
            reason = "kernel restarted" if restart else "kernel shut down"
            self.manager.runners.end_process(reason, is_exit=not restart)
            return plain(restart)

        return do_shutdown

    def _leave(self, plain: Any) -> Any:
        def atexit_once() -> Any:
            self.manager.runners.end_process("IPython ended")
            return plain()

        return atexit_once

    def _greet(self) -> None:
        manager = self.manager
        if not manager.store.exists:
            return
        manager.store.open()
        if manager.store.read_only:
            manager.store.require_writable()
        returned = greetings.Greeting(manager)
        resumed = self._resume() if manager.auto_resume else {}
        self._say_news(returned.news(resumed))
        self._offer_to_adopt()

    def _say_news(self, news: greetings.News) -> None:
        if news.is_empty:
            return
        from ipytaskpersist.display import greeting_words

        text = greeting_words.in_words(news)
        if getattr(self.shell, "kernel", None) is None:
            print(text)
        else:
            html = greeting_words.as_html(news)
            self.shell.display_pub.publish({"text/html": html, "text/plain": text})

    def _offer_to_adopt(self) -> None:
        """Say that tasks of a notebook which is gone belong to these cells, if it is new here."""
        store, session = self.manager.store, self.manager.session.record()
        if store.tasks.count(Selection(session.notebook_key)):
            return
        found = renamed_notebooks.gone(store, session)
        if found is not None:
            print(found.offer())

    def _resume(self) -> dict[str, TaskRecord]:
        """Run interrupted tasks again. Return the new tasks by the ids of the old ones."""
        resumed = {}
        for task in self.manager.tasks.resumable():
            try:
                resumed[task.id] = self.manager.launcher.rerun(task, once=True)
            except AlreadyRunAgain:
                continue
            except BackgroundError as error:
                print(legible(f"task {task.label} could not be resumed: {error}"), file=sys.stderr)
        return resumed

    def unload(self) -> None:
        """Restore everything. Running thread tasks are interrupted."""
        self.magics.unregister()
        self._patches.undo()
        self.manager.close()
        if self.manager in self.shell.configurables:
            self.shell.configurables.remove(self.manager)
        set_current(None)
