"""The commands as tools for agents: each tool is made from the definition of its command."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any
from uuid import uuid4

import click

from ipytaskpersist.agents.bounding import bounded, brief, without_empty
from ipytaskpersist.agents.captured_prints import captured_prints
from ipytaskpersist.agents.tools import Answer, CallEnded, Picture, Progress, Tool
from ipytaskpersist.base.foreign_errors import describe
from ipytaskpersist.commands.agent_arguments import first_sentence, line_of, name_of, schema_of
from ipytaskpersist.commands.agent_surface import AgentSurface
from ipytaskpersist.commands.definition import json_text, run, verbs
from ipytaskpersist.commands.launching import background
from ipytaskpersist.errors import BackgroundError, InvalidRequest
from ipytaskpersist.output.window import newest_shown
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.text.formatting import short_size
from ipytaskpersist.text.pictures import SVG, picture_source
from ipytaskpersist.text.screen import visible_lines

Arguments = Mapping[str, Any]

ANSWER_BYTES = 4_000
"""Size of an answer for which no other was asked."""
WAIT_S = 50.0
"""How long a call waits at most: clients give up after a minute."""
LISTED = 20
FIGURE_BYTES = 4_000_000

READING = ("list", "output", "result", "search", "show", "stack", "top", "wait")
"""Verbs that change nothing."""
CHANGING = ("cancel",)
"""Verbs that change something and that agents may be allowed to use, besides ``%%background``."""
FOR_PEOPLE = (
    *("adopt", "archive", "backup", "clear", "config", "continue", "delete", "doctor", "export"),
    *("fill", "group", "groups", "import", "keep", "load", "mcp", "move", "panel", "pause"),
    *("places", "rerun", "restore", "resume", "run", "service", "sessions", "stats"),
    *("tag", "unarchive"),
)
"""Verbs that are no tools: they delete, move or set up something, or are not about tasks. Each tool
takes room in what an agent reads. A new verb is listed here or above; `run` is the notebook's."""
HIDDEN = (
    *("as_json", "yes", "check", "follow", "save", "raw", "head", "archived", "cleared"),
    *("session", "times", "every"),
)
"""Options that have no use in a call, make it long, or take what only a person may decide."""
OF_RUN = (
    *("shell", "process", "notebook", "parameters", "named", "key", "cwd", "env", "timeout"),
    *("after", "cpus", "memory", "gpus", "retries", "tags"),
)
"""The options of ``%%background`` that are most useful to an agent."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a person has allowed agents to do."""

    changes: bool = False
    """Whether to launch and cancel tasks."""
    kernels: bool = False
    """Whether to launch tasks in open notebooks, with their variables."""


def tools_of(manager: BackgroundTasks, allowed: Allowed) -> list[Tool]:
    """Return the tools for what is allowed."""
    reading, changing = _offered()
    calls: list[Call] = [VerbCall(manager, command, is_reading=True) for command in reading]
    if allowed.changes:
        calls += [VerbCall(manager, command, is_reading=False) for command in changing]
        calls.append(LaunchCall(manager, allowed))
    return [each.tool() for each in calls]


def _offered() -> tuple[list[click.Command], list[click.Command]]:
    """Return the commands that read, and those that change something."""
    context = click.Context(verbs)
    reading, changing = (
        [found for name in names if (found := verbs.get_command(context, name)) is not None]
        for names in (READING, CHANGING)
    )
    return reading, changing


def _prints_json(command: click.Command) -> bool:
    return any(param.name == "as_json" for param in command.params)


class Call:
    """A tool made from a command."""

    more: Mapping[str, Any] = {}
    """Arguments that only agents have, with their schemas."""

    def __init__(
        self, manager: BackgroundTasks, name: str, params: Sequence[click.Parameter], said: str
    ) -> None:
        self.manager = manager
        self.name = name
        self.params = {name_of(param): param for param in params}
        self.said = said

    is_reading = False

    def tool(self) -> Tool:
        """Return the tool."""
        properties = {name: schema_of(param) for name, param in self.params.items()}
        schema = {"type": "object", "properties": {**properties, **self.more}}
        return Tool(self.name, self.said, schema, self.is_reading, self.call)

    def call(self, arguments: Arguments, progress: Progress) -> Answer:
        """Run the command. Whatever goes wrong is an answer of one line."""
        surface = AgentSurface(self.manager, progress)
        with captured_prints() as (printed, noted):
            try:
                self._refuse_unknown(arguments)
                return self._run(surface, arguments, printed, noted)
            except CallEnded:
                raise
            except click.ClickException as error:
                said = error.format_message()
            except BackgroundError as error:
                said = str(error)
            except Exception as error:  # a traceback would be of no use to an agent
                said = describe(error)
        text = _encoded(bounded({"error": surface.in_words(said)}, ANSWER_BYTES, _encoded))
        return Answer(text, is_error=True)

    def _refuse_unknown(self, arguments: Arguments) -> None:
        known = [*self.params, *self.more]
        unknown = [name for name in arguments if name not in known]
        if unknown:
            raise InvalidRequest(
                f"{self.name} has no argument {unknown[0]!r}; it has {', '.join(known)}"
            )

    def _run(
        self, surface: AgentSurface, arguments: Arguments, printed: StringIO, noted: StringIO
    ) -> Answer:
        raise NotImplementedError

    def line(self, arguments: Arguments) -> list[str]:
        """Return the words of the command line that the arguments mean."""
        return line_of(self.params, arguments)

    def answer(
        self, surface: AgentSurface, noted: StringIO, at_most: int, **more: Any
    ) -> dict[str, Any]:
        """Return what was shown, with what was said about it."""
        document = {**surface.answer, **more}
        notes = surface.in_words("\n".join(visible_lines(noted.getvalue()))).strip()
        if notes:
            document["notes"] = notes
        found: dict[str, Any] = bounded(document, at_most, _encoded)
        return found


class VerbCall(Call):
    """A verb as a tool."""

    def __init__(
        self, manager: BackgroundTasks, command: click.Command, *, is_reading: bool
    ) -> None:
        self._command = command
        self._prints_json = _prints_json(command)
        self.is_reading = is_reading
        params = [param for param in command.params if param.name not in HIDDEN]
        super().__init__(manager, str(command.name), params, _said(command))
        if self.name == "output":  # a part of one task's text at a time
            del self.params["refs"], self.params["all"]
            self.more = {"ref": {"type": "string"}, "figures": OF_FIGURES}

    def _run(
        self, surface: AgentSurface, arguments: Arguments, printed: StringIO, noted: StringIO
    ) -> Answer:
        if self.name == "output":
            return self._output(surface, arguments, printed, noted)
        self._run_line(surface, self.usual(arguments))
        more = self._document(surface, printed.getvalue())
        return Answer(_encoded(self.answer(surface, noted, ANSWER_BYTES, **more)))

    def usual(self, arguments: Arguments) -> dict[str, Any]:
        """Return the arguments with what an agent gets if it asks for nothing else."""
        given = dict(arguments)
        if self.name == "list":
            given.setdefault("limit", LISTED)
        if self.name == "wait":
            timeout = given.get("timeout", WAIT_S)
            given["timeout"] = min(timeout, WAIT_S) if isinstance(timeout, (int, float)) else WAIT_S
        return given

    def _run_line(
        self, surface: AgentSurface, arguments: Arguments, refs: Sequence[str] = ()
    ) -> None:
        as_json = ["--json"] if self._prints_json else []
        run([*as_json, *self.line(arguments), *refs], surface, self._command)

    def _document(self, surface: AgentSurface, printed: str) -> dict[str, Any]:
        if not self._prints_json:
            said = surface.in_words("\n".join(visible_lines(printed))).strip()
            return {"said": said} if said else {}
        document = json.loads(printed)
        if self.name in ("list", "search"):
            document["tasks"] = [brief(task) for task in document["tasks"]]
        known: dict[str, Any] = without_empty(
            document if isinstance(document, dict) else {self.name: document}
        )
        return known

    def _output(
        self, surface: AgentSurface, arguments: Arguments, printed: StringIO, noted: StringIO
    ) -> Answer:
        """Answer with a part of a task's text, which is never cut once its end is said."""
        given = {name: value for name, value in arguments.items() if name not in self.more}
        refs = [str(ref)] if (ref := arguments.get("ref")) is not None else []
        sizes = [given["at_most"]] if "at_most" in given else [3_000, 1_500, 600, 200]
        for at_most in sizes:
            printed.seek(0)
            printed.truncate()
            self._run_line(surface, {**given, "at_most": at_most}, refs)
            document = json.loads(printed.getvalue())
            shown = document.pop("shown")
            more = bounded({"shown": shown}, 800, _encoded) if shown else {}
            document |= more
            if len(_encoded(document).encode()) <= ANSWER_BYTES:
                break
        # A few bytes that move the cursor may make a long line.
        pictures, left_out = self._pictures(document["id"], arguments.get("figures") or 0)
        if left_out:
            document["figures_left_out"] = (
                f"{left_out}: SVG, or more than {short_size(FIGURE_BYTES)}"
            )
        text = _encoded(bounded(document, max(ANSWER_BYTES, 4 * at_most), _encoded))
        return Answer(text, pictures)

    def _pictures(self, task_id: str, count: int) -> tuple[list[Picture], int]:
        """Return the last figures of a task, and how many of these are none that a client shows."""
        if count <= 0:
            return [], 0
        task = self.manager.tasks.find(task_id)
        shown = newest_shown(self.manager.tasks.store_of(task), task.key)
        sources = [picture_source(each.data).removeprefix("data:") for each in shown]
        newest = [source for source in sources if source][-count:]
        found = [
            Picture(*source.split(";base64,", 1))
            for source in newest
            if len(source) <= FIGURE_BYTES and not source.startswith(SVG)
        ]
        return found, len(newest) - len(found)


OF_FIGURES = {"type": "integer", "description": "The last N figures as images. Default: none"}


class LaunchCall(Call):
    """``%%background`` as a tool."""

    def __init__(self, manager: BackgroundTasks, allowed: Allowed) -> None:
        params = [param for param in background.params if param.name in OF_RUN]
        super().__init__(manager, "run", params, RUNS)
        self._lock = threading.Lock()
        self.more = {
            "code": {"type": "string"},
            **({"kernel": OF_KERNEL} if allowed.kernels else {}),
        }

    def _run(
        self, surface: AgentSurface, arguments: Arguments, printed: StringIO, noted: StringIO
    ) -> Answer:
        kernel, code = arguments.get("kernel"), str(arguments.get("code") or "")
        if kernel is not None:
            self._launch_there(surface, arguments, str(kernel), code)
        else:
            with self._lock:
                self._launch_here(surface, arguments, code)
        return Answer(_encoded(self.answer(surface, noted, ANSWER_BYTES)))

    def _launch_here(self, surface: AgentSurface, arguments: Arguments, code: str) -> None:
        is_python = not (arguments.get("shell") or arguments.get("notebook"))
        given = {**arguments, "process": True} if is_python else arguments
        line = [*(["--fresh"] if is_python else []), *self.line(given)]
        with background.make_context("run", line, obj=surface) as context:
            request = background.invoke(context)
        surface.come_to(self.manager.launcher.launch(code, request), code)

    def _launch_there(
        self, surface: AgentSurface, arguments: Arguments, kernel: str, code: str
    ) -> None:
        if not code.strip() or arguments.get("notebook"):
            raise InvalidRequest("kernel takes code to run, not a whole notebook")
        from ipytaskpersist.agents import open_kernels

        key = str(arguments.get("key") or uuid4().hex)
        words = self.line({**arguments, "key": key})
        store = self.manager.store
        session = open_kernels.find_session(store, kernel)
        surface.come_to(open_kernels.launch(store, session, words[:-1], key, code), code)


OF_KERNEL = {
    "type": "string",
    "description": "Path of an open notebook: run the code there, with its variables",
}
RUNS = (
    "Run Python code in a process of its own, a shell command, or a whole notebook, in the "
    "background. Returns at once. Give a key: a repeated call with it starts nothing"
)


def _said(command: click.Command) -> str:
    """Return what a tool does, in one sentence."""
    return first_sentence((command.help or "").split("\n\n")[0].replace("\n", " "))


def _encoded(document: Any) -> str:
    return json_text(document, indent=None)
