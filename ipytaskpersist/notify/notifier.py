"""The process that sends notifications through apprise, and exits when it has, or cannot."""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from ipytaskpersist.base.detached import remove_empty
from ipytaskpersist.base.notify_target import HIDDEN, masked
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import STREAM_KINDS, TaskRecord, TaskState
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.notify.targets import INSTALL, Wanted, address
from ipytaskpersist.store import problems
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text import formatting
from ipytaskpersist.text.search_words import as_shown

PAUSES_S = (2.0, 6.0, 15.0)
"""Delay before each retry."""
DEADLINE_S = 60.0
"""Time after which a place that does not answer is given up."""
LINES = 8
LINE_CHARACTERS = 200
OUTPUT_BYTES = 64 * 1024
TITLE_CHARACTERS = 120
SECRET_CHARACTERS = 3
"""Shortest part of an address that is removed from apprise's messages."""


@dataclass(frozen=True, slots=True)
class Message:
    """A notification about the end of a task, as plain text."""

    label: str
    """The task's name in messages."""
    title: str
    body: str
    is_success: bool


def message_about(store: TaskStore, task: TaskRecord) -> Message:
    """Return the notification about a task that has ended."""
    look = formatting.STATE_STYLES[task.state]
    name = task.name or f"task {task.number}"
    time_taken = formatting.duration(task.elapsed_s(formatting.utc_now()))
    title = f"{look.glyph} {task.state.value}: {formatting.shorten(name, 60)} ({time_taken})"
    host = task.provenance.get("host")
    where = f"{formatting.notebook_name(task.notebook)}{f' on {host}' if host else ''}"
    code = formatting.exit_text(task)
    why = task.reason if task.reason and not task.reason.startswith("exit status") else ""
    facts = [where, f"task {task.number}", "" if why.startswith("killed by") else code, why]
    parts = [
        formatting.shorten(" · ".join(fact for fact in facts if fact), 2 * LINE_CHARACTERS),
        "\n".join(last_lines(store, task)),
        formatting.next_commands(task),
    ]
    body = "\n\n".join(part for part in map(plain, parts) if part)
    is_success = task.state is TaskState.COMPLETED
    return Message(plain(task.label), plain(title)[:TITLE_CHARACTERS], body, is_success)


def last_lines(store: TaskStore, task: TaskRecord) -> list[str]:
    """Return the last few lines of a task's output, as a terminal would show them."""
    pieces: list[bytes] = []
    for record in store.outputs.backwards(task.key, kinds=STREAM_KINDS):
        pieces.insert(0, record.data)
        if sum(map(len, pieces)) >= OUTPUT_BYTES or b"".join(pieces).count(b"\n") > LINES:
            break
    text = as_shown(b"".join(pieces)[-OUTPUT_BYTES:].decode("utf-8", "replace"))
    lines = [line.rstrip() for line in text.splitlines() if line.strip()][-LINES:]
    return [
        line if len(line) <= LINE_CHARACTERS else f"{line[:LINE_CHARACTERS]}…" for line in lines
    ]


def plain(text: str) -> str:
    """Return the text without control characters and direction overrides."""
    return "".join(c for c in text if c == "\n" or unicodedata.category(c)[0] != "C")


# Sending.


def deliver(place: str, message: Message, pauses_s: Sequence[float] = PAUSES_S) -> str | None:
    """Send a message to a place, with retries. Return why it failed; None on success."""
    try:
        import apprise
    except ImportError:
        return f"apprise is not installed; {INSTALL}"
    asset = apprise.AppriseAsset(app_id="ipytaskpersist", secure_logging=True)
    target = apprise.Apprise(asset=asset)
    kind = apprise.NotifyType.SUCCESS if message.is_success else apprise.NotifyType.FAILURE
    with Complaints() as heard:
        if not target.add(address(place)):
            return "apprise does not take this address"
        for pause_s in (0.0, *pauses_s):
            time.sleep(pause_s)
            if target.notify(
                message.body, message.title, kind, body_format=apprise.NotifyFormat.TEXT
            ):
                return None
    return without_secrets(heard.last or "it was refused", place)


class Complaints(logging.Handler):
    """Captures apprise's complaints in this thread, and keeps them out of the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        self._thread = threading.get_ident()
        self._logger = logging.getLogger("apprise")

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.last = " ".join(record.getMessage().split())

    def __enter__(self) -> Complaints:
        self._logger.propagate = False
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_error: object) -> None:
        self._logger.removeHandler(self)


def without_secrets(text: str, place: str) -> str:
    """Return text about a place without the parts of its address that may be secret."""
    shown = masked(place)
    found = re.split(r"[/:@?&=#,\s]+", place.partition("://")[2])
    parts = {part for each in found for part in (each, unquote(each))}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= SECRET_CHARACTERS and part not in shown:
            text = text.replace(part, HIDDEN)
    return text


def notify_all(
    directory: StateDirectory,
    messages: Sequence[tuple[Message, str]],
    pauses_s: Sequence[float] = PAUSES_S,
    deadline_s: float = DEADLINE_S,
) -> None:
    """Send each message to its place, all concurrently, and record failures."""
    telling = [_Telling(message, place, pauses_s) for message, place in messages]
    for each in telling:
        each.start()
    until = time.monotonic() + deadline_s
    for each in telling:
        each.join(max(0.0, until - time.monotonic()))
        problem = f"no answer in {deadline_s:g} s" if each.is_alive() else each.problem
        if problem is not None:
            problems.record(
                directory,
                f"the end of task {each.message.label} could not be told at {masked(each.place)}: "
                f"{problem}",
            )


class _Telling(threading.Thread):
    """One message being sent. A daemon, so that a place that never answers keeps nothing alive."""

    def __init__(self, message: Message, place: str, pauses_s: Sequence[float]) -> None:
        super().__init__(daemon=True)
        self.message = message
        self.place = place
        self.problem: str | None = None
        self._pauses_s = pauses_s

    def run(self) -> None:
        try:
            self.problem = deliver(self.place, self.message, self._pauses_s)
        except Exception as error:  # a plugin may raise anything
            self.problem = without_secrets(f"{type(error).__name__}: {error}", self.place)


def take(store: TaskStore, reference: str) -> list[tuple[Message, str]]:
    """Take over an ended task's notifications, and return them with their places."""
    key, _colon, task_id = reference.partition(":")
    task = store.tasks.get(int(key))
    if task is None or task.id != task_id:
        return []
    places = Wanted.of(store.tasks.take_notify(task.key)).places
    return [(message_about(store, task), place) for place in places]


def be_ready() -> None:
    """Import everything needed to send. A message taken from the store has no other sender."""
    with suppress(ImportError):  # reported for each place
        from apprise.manager_plugins import NotificationManager

        NotificationManager().load_modules()  # type: ignore[no-untyped-call]


def main() -> None:
    """Send the notifications for the ``key:id`` arguments that follow the state directory."""
    root, *references = sys.argv[1:]
    directory = StateDirectory(Path(root))
    store = TaskStore(directory)
    messages: list[tuple[Message, str]] = []
    be_ready()
    try:
        for reference in references:
            messages += _take(store, reference)
    finally:
        store.close()
    notify_all(directory, messages)
    remove_empty(directory.notifier_log)


def _take(store: TaskStore, reference: str) -> list[tuple[Message, str]]:
    try:
        return [] if not store.exists or store.open().read_only else take(store, reference)
    except BackgroundError as error:
        problems.record(store.directory, f"notifications: {error}")
    except Exception as error:  # one task must not prevent the others' notifications
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        problems.record(store.directory, f"notifications: {type(error).__name__}: {error}")
    return []
