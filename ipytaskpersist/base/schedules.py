"""At which times a task runs again and again: every so often, or by a cron rule."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from ipytaskpersist.base.time_zones import zone_of

RUN, SKIP = MISSED = ("run", "skip")
"""What becomes of a time that nothing was there to see: it is made up for once, or left out."""
LATE_S = 60.0
"""From how much delay on a time counts as missed, in seconds."""
DAY_S = 86_400
LEAST_S = 1.0
MOST_S = 10 * 366 * DAY_S
UNITS = {"d": DAY_S, "h": 3600, "m": 60}
CRON_FIELDS = 5


class BadCron(ValueError):
    """A cron rule cannot be read, or no time ever fits it. The message says which."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The rule by which a task runs again and again, and where one of its runs stands in it."""

    every_s: float | None = None
    """Seconds from one time to the next; whole days keep the time of day. None with `cron`."""
    cron: str | None = None
    """A cron rule of five fields."""
    zone: str = ""
    """Name of the time zone in which the rule is meant; empty for the machine's own."""
    missed: str = RUN
    """One of `MISSED`."""
    first_at: float = 0.0
    """The first time of all, in seconds since the epoch."""
    due_at: float = 0.0
    """The time for which this run is planned."""
    first_task: str | None = None
    """Id of the first run, which has the inputs and the environment of all; None in that itself."""

    def next_after(self, moment: float) -> float | None:
        """Return the first time of the rule after a moment; None if none will come."""
        if self.cron is not None:
            return next_by_cron(self.cron, self.zone, moment)
        assert self.every_s is not None
        if self.every_s % DAY_S == 0:
            return self._next_day_after(moment, int(self.every_s // DAY_S))
        count = max(0, math.floor((moment - self.first_at) / self.every_s))
        while self.first_at + count * self.every_s <= moment:
            count += 1
        return self.first_at + count * self.every_s

    def _next_day_after(self, moment: float, days: int) -> float:
        """Return the next time at the same time of day as the first one."""
        zone = zone_of(self.zone)
        first = datetime.fromtimestamp(self.first_at, zone).replace(tzinfo=None)
        # One less than it seems: a day on which the clocks change has 23 or 25 hours.
        count = max(0, int((moment - self.first_at) / (days * DAY_S)) - 1)
        while True:
            at = (first + timedelta(days=count * days)).replace(tzinfo=zone).timestamp()
            if at > moment:
                return at
            count += 1

    def begun(self, at: float) -> Schedule:
        """Return this with its first time."""
        return replace(self, first_at=at, due_at=at)

    def following(self, task_id: str, now: float) -> Schedule | None:
        """Return the schedule of the run after this one, which is the task of that id.

        Its time is after both the present one and now: times that have passed meanwhile are left
        out, and a clock that was set back brings none twice.
        """
        at = self.next_after(max(self.due_at, now))
        if at is None:
            return None
        return replace(self, due_at=at, first_task=self.first_task or task_id)

    def is_missed(self, now: float) -> bool:
        """Return whether its time has passed so long ago that it is to be left out."""
        return self.missed == SKIP and now - self.due_at > LATE_S

    def in_words(self) -> str:
        """Return ``every 1h30m``, or ``cron 0 22 * * 1-5 (Europe/Berlin)``."""
        if self.cron is None:
            assert self.every_s is not None
            return f"every {span(self.every_s)}"
        return f"cron {self.cron} ({self.zone})" if self.zone else f"cron {self.cron}"

    def as_json(self) -> str:
        """Return this as the store keeps it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None) -> Schedule | None:
        """Return what `as_json` wrote; None for None."""
        return None if text is None else cls(**json.loads(text))


def next_by_cron(cron: str, zone: str, moment: float) -> float | None:
    """Return the first time of a cron rule after a moment; None if none comes in fifty years.

    Raises `BadCron` if the rule cannot be read.
    """
    # Imported late: few tasks have a schedule.
    from cronsim import CronSim, CronSimError

    if len(cron.split()) != CRON_FIELDS:
        raise BadCron(f"a rule has {CRON_FIELDS} fields, and this has {len(cron.split())}")
    try:
        times: Any = CronSim(cron, datetime.fromtimestamp(moment, zone_of(zone)))
    except CronSimError as error:
        raise BadCron(str(error)[:1].lower() + str(error)[1:]) from None
    # In the hour that is there twice, the library begins with the time that has passed.
    return next((at for at in (time.timestamp() for time in times) if at > moment), None)


def span(seconds: float) -> str:
    """Return ``1d``, ``1h30m`` or ``2.5s``: a duration as it is typed."""
    shown = ""
    for unit, size_s in UNITS.items():
        count, seconds = divmod(seconds, size_s)
        shown += f"{count:.0f}{unit}" if count else ""
    return f"{shown}{seconds:.9g}s" if seconds or not shown else shown
