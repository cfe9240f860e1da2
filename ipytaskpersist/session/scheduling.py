"""What the user says about the times at which a task runs again and again."""

from __future__ import annotations

import time

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.schedules import (
    LEAST_S,
    MISSED,
    MOST_S,
    RUN,
    BadCron,
    Schedule,
    next_by_cron,
    span,
)
from ipytaskpersist.base.time_zones import UnknownZone, local_zone_name
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.text.durations import is_age, parse_age

EXAMPLES = (
    '"0 22 * * 1-5" is 22:00 on weekdays, "*/15 * * * *" each quarter of an hour, "30 6 1 * *" '
    "6:30 on the first of the month"
)


def schedule_of(every: str, cron: str, missed: str) -> Schedule | None:
    """Return the rule of a task's times, as the user says it; None for a task that runs once.

    Raise `InvalidRequest` for a rule that cannot be read, or that never comes.
    """
    if every and cron:
        raise InvalidRequest("--every and --cron exclude each other; give one of them")
    if not every and not cron:
        if missed:
            raise InvalidRequest("--missed needs a rule: --every 1d, or --cron")
        return None
    missed = missed or RUN
    if missed not in MISSED:
        raise InvalidRequest(f"--missed knows no '{legible(missed)}'; it knows {', '.join(MISSED)}")
    zone = _zone()
    if every:
        return Schedule(every_s=_seconds(every), zone=zone, missed=missed)
    rule = " ".join(cron.split())
    _require_to_come(rule, zone)
    return Schedule(cron=rule, zone=zone, missed=missed)


def _seconds(every: str) -> float:
    if not is_age(every):
        raise InvalidRequest(
            f"--every {legible(every)} is no time span; give a number and a unit: 90s, "
            "30m (minutes), 2h, 1d, 1w, 1h30m"
        )
    seconds = parse_age(every)
    if not LEAST_S <= seconds <= MOST_S:
        raise InvalidRequest(
            f"--every is at least {span(LEAST_S)} and at most {span(MOST_S)}, not {every.strip()}"
        )
    return seconds


def _zone() -> str:
    try:
        return local_zone_name()
    except UnknownZone as error:
        raise InvalidRequest(
            f"TZ={legible(str(error))} is no time zone of this machine, and the rule needs one; "
            "set TZ to a name such as Europe/Berlin"
        ) from None


def _require_to_come(rule: str, zone: str) -> None:
    try:
        comes = next_by_cron(rule, zone, time.time()) is not None
    except BadCron as error:
        # The library takes a day that none of the months has for a mistake.
        if not _fits_other_months(rule, zone):
            raise InvalidRequest(
                f"--cron '{legible(rule)}' is no rule: {error}. The fields are minute, hour, day "
                f"of the month, month, day of the week: {EXAMPLES}"
            ) from None
        comes = False
    if not comes:
        raise InvalidRequest(
            f"--cron '{legible(rule)}' never comes: no day fits it. Rules that do: {EXAMPLES}"
        )


def _fits_other_months(rule: str, zone: str) -> bool:
    fields = rule.split()
    in_any_month = " ".join((*fields[:3], "*", *fields[4:]))
    try:
        next_by_cron(" ".join(("0 0 1", *fields[3:])), zone, time.time())
        next_by_cron(in_any_month, zone, time.time())
    except BadCron:
        return False
    return True


def begun(schedule: Schedule, due_at: float | None) -> tuple[Schedule, float | None]:
    """Return the schedule of a new task, and the time before which that does not start.

    `due_at` is the time that the user has given for the first run. Without it, a cron rule says
    when that is, and otherwise it is now.
    """
    now = time.time()
    if due_at is None and schedule.cron is not None:
        due_at = schedule.next_after(now)
    return schedule.begun(now if due_at is None else due_at), due_at
