"""A summary, in a few lines, of what became of a notebook's tasks since the last visit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.process_identity import host_name
from ipytaskpersist.base.records import LIVE_STATES, SessionRecord, TaskRecord, TaskState
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.tasks import Absence

VISITS = 8
"""Number of latest sessions that are examined; more are never open side by side."""
SHOWN = 4
NAME_CHARACTERS = 32
REASON_CHARACTERS = 60
URGENCY = (
    TaskState.FAILED,
    TaskState.INTERRUPTED,
    TaskState.CANCELLED,
    TaskState.COMPLETED,
)
"""Order in which tasks are reported."""
VERBS = {
    TaskState.COMPLETED: ("finished", "finished"),
    TaskState.FAILED: ("failed", "failed"),
    TaskState.CANCELLED: ("was cancelled", "were cancelled"),
    TaskState.INTERRUPTED: ("was interrupted", "were interrupted"),
}
"""Wording of the first line, for one task and for several, in this order."""


@dataclass(frozen=True, slots=True)
class News:
    """What has happened in the meantime."""

    counts: Mapping[TaskState, int]
    """Number of tasks that ended in each state."""
    ended: Sequence[TaskRecord]
    """The first few of them, the most urgent first."""
    running: int
    """Number of tasks that are still running."""


class Greeting:
    """The greeting when the extension is loaded."""

    def __init__(self, manager: BackgroundTasks) -> None:
        """Record what reconciling changes, and begin the session. Raise `StoreError`."""
        self._manager = manager
        # Read this before the session goes on, which erases how it had ended.
        self._earlier = manager.store.sessions.get(manager.session.identity.id)
        self._session = manager.session.record()
        self._absence = self._reconcile()

    def _reconcile(self) -> Absence | None:
        """Bring the store up to date; return None if there was no absence."""
        tasks, key = self._manager.store.tasks, self._session.notebook_key
        live = tasks.live(key)
        self._manager.runners.reconcile()
        visits = self._visits()
        since = left_at(visits, datetime.now(UTC))
        if since is None:
            return None
        return Absence(key, since.timestamp(), just_lost=[*live], cut_off=cut_off(visits))

    def _visits(self) -> list[SessionRecord]:
        """Return the earlier sessions, latest first. A reloaded session has only itself."""
        if self._earlier is not None:
            return [self._earlier]
        sessions = self._manager.store.sessions
        return sessions.visits(self._session.notebook_key, self._session.id, VISITS)

    def news(self) -> News | None:
        """Return what has ended in the meantime; None if nothing has."""
        if self._absence is None:
            return None
        tasks = self._manager.store.tasks
        ended = tasks.ended_in(self._absence)
        if not ended:
            return None
        ended.sort(key=lambda each: URGENCY.index(each[1]))
        shown = [task for key, _state in ended[:SHOWN] if (task := tasks.get(key)) is not None]
        counts = self._counts()
        running = sum(counts.get(state, 0) for state in LIVE_STATES)
        return News(Counter(state for _key, state in ended), shown, running)

    def _counts(self) -> dict[TaskState, int]:
        """Return how many tasks of other sessions are in each state."""
        tasks, session = self._manager.store.tasks, self._session
        return tasks.counts(session.notebook_key, except_session=session.id)

    def greeting(self, resumed: Mapping[str, TaskRecord]) -> str:
        """Return the text to print; empty if there is nothing to report.

        `resumed` are the tasks that were just run again, each with the id of the old task.
        """
        news = self.news()
        if news is not None:
            return in_words(news, resumed)
        lines = [self._line_about_earlier(self._counts()), *_resumed(resumed, ())]
        return "\n".join(filter(None, lines))

    def _line_about_earlier(self, counts: Mapping[TaskState, int]) -> str:
        if not counts:
            return ""
        from ipytaskpersist.text.formatting import counted

        parts = ", ".join(f"{counts[state]} {state}" for state in TaskState if state in counts)
        total = sum(counts.values())
        tasks = counted(total, "task")
        session = self._manager.store.sessions.short(self._session.id)
        return f"session {session}: {tasks} from before, {parts}. %bg_list shows them"


def left_at(visits: Sequence[SessionRecord], now: datetime) -> datetime | None:
    """Return the time of the last visit; now, if the latest earlier session is still running.

    None if there was no visit. An older session that was left open says nothing about a visit. A
    session on another machine says only when it was last heard of: a container that is thrown away
    does not report its end.
    """
    if not visits:
        return None
    if _is_open(visits[0]):
        return now
    return max(
        max(visit.heartbeat_at, visit.ended_at or visit.heartbeat_at)
        for visit in visits
        if not _is_open(visit)
    )


def _is_open(session: SessionRecord) -> bool:
    return session.ended_at is None and session.host == host_name()


def cut_off(visits: Sequence[SessionRecord]) -> list[str]:
    """Return the sessions whose end interrupted tasks that no later session has reported."""
    last_begun = max(visit.started_at for visit in visits) if visits else None
    return [
        visit.id
        for visit in visits
        if visit.ended_at is not None and last_begun is not None and visit.ended_at >= last_begun
    ]


# Wording.


def in_words(news: News, resumed: Mapping[str, TaskRecord]) -> str:
    """Return the news as a few lines."""
    more = sum(news.counts.values()) - len(news.ended)
    lines = [_first_line(news, len(resumed))]
    lines.extend(_line(task, resumed.get(task.id)) for task in news.ended)
    if more:
        lines.append(f"  and {more} more; %bg_list shows them all")
    lines.extend(_resumed(resumed, [task.id for task in news.ended]))
    return "\n".join(lines)


def _resumed(resumed: Mapping[str, TaskRecord], told: Sequence[str]) -> list[str]:
    """Return one line about tasks that were run again and are not reported yet."""
    from ipytaskpersist.text import formatting

    pairs = [
        f"{before.rpartition('-')[2]} as " + legible(formatting.shorten(again.label, 40))
        for before, again in resumed.items()
        if before not in told
    ]
    more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    return [f"  run again: {', '.join(pairs[:SHOWN])}{more}"] if pairs else []


def _first_line(news: News, resumed: int) -> str:
    parts: list[str] = []
    for state, verbs in VERBS.items():
        count = news.counts.get(state, 0)
        if count:
            noun = "" if parts else " task" if count == 1 else " tasks"
            parts.append(f"{count}{noun} {verbs[count != 1]}")
    line = f"While you were away: {', '.join(parts)}"
    if resumed:
        line += f"; {resumed} {'runs' if resumed == 1 else 'run'} again"
    if news.running:
        line += f"; {news.running} {'is' if news.running == 1 else 'are'} still running"
    return f"{line}."


def _line(task: TaskRecord, again: TaskRecord | None) -> str:
    from ipytaskpersist.text import formatting

    name = f" ({formatting.shorten(task.name, NAME_CHARACTERS)})" if task.name else ""
    parts = [f"{task.number}{name}", *_evidence(task)]
    if again is not None:
        parts.append(f"runs again as {again.number}")
    look = formatting.STATE_STYLES[task.state]
    text = legible(" · ".join(parts))
    return f"  {look.glyph} {task.state.value:<11} {text}   {_next_command(task, again)}"


def _evidence(task: TaskRecord) -> list[str]:
    """Return why a task ended so, or how long it took."""
    from ipytaskpersist.text import formatting

    if task.state in (TaskState.COMPLETED, TaskState.CANCELLED):
        return [formatting.duration(task.elapsed_s(formatting.utc_now()))]
    reason = formatting.shorten(task.reason or "", REASON_CHARACTERS)
    says_code = reason.startswith(("exit status", "killed by")) or task.exit_code is None
    return [each for each in ("" if says_code else f"exit {task.exit_code}", reason) if each]


def _next_command(task: TaskRecord, again: TaskRecord | None) -> str:
    from ipytaskpersist.text import formatting

    if again is not None:
        return f"%bg_output {again.number}"
    verbs = formatting.next_verbs(task)
    # An interrupted task may have little output, and something left to do.
    verb = verbs[-1] if task.state is TaskState.INTERRUPTED else verbs[0]
    return f"%bg_{verb} {task.number}"
