"""When a task with a schedule runs next: over changes of the clocks, suspends, and wrong clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from ipytaskpersist.base import time_zones
from ipytaskpersist.base.schedules import BadCron, Schedule, next_by_cron, span
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.session.scheduling import schedule_of

BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"


def at(text: str, zone: str, *, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def times(schedule: Schedule, count: int) -> list[str]:
    """The next times, as the clock on the wall shows them, each seen as soon as it comes."""
    found, zone = [], ZoneInfo(schedule.zone)
    for _ in range(count):
        following = schedule.following("s-1", schedule.due_at)
        assert following is not None
        assert following.due_at > schedule.due_at
        schedule = following
        found.append(datetime.fromtimestamp(schedule.due_at, zone).strftime("%d %H:%M"))
    return found


@pytest.mark.parametrize(
    ("zone", "spring", "autumn"),
    [
        (BERLIN, ("2026-03-28T", "29"), ("2026-10-24T", "25")),
        (NEW_YORK, ("2026-03-07T", "08"), ("2026-10-31T", "01")),
    ],
)
def test_changes_of_the_clocks_neither_lose_nor_double_a_run(
    zone: str, spring: tuple[str, str], autumn: tuple[str, str]
) -> None:
    night, twice = ("02:30", "02:30") if zone == BERLIN else ("02:30", "01:30")
    minute, hour = night[3:], night[:2]
    after_spring = f"{int(spring[1]) + 1:02} {night}"
    after_autumn = f"{int(autumn[1]) + 1:02} {twice}"

    # In spring this time is not there. Cron takes the next one that is, every as long after.
    cron = Schedule(cron=f"{minute} {hour} * * *", zone=zone).begun(at(spring[0] + night, zone))
    assert times(cron, 2) == [f"{spring[1]} 03:00", after_spring]
    daily = Schedule(every_s=86_400, zone=zone).begun(at(spring[0] + night, zone))
    assert times(daily, 2) == [f"{spring[1]} 03:30", after_spring]
    exact = Schedule(every_s=3600, zone=zone).begun(at(spring[0] + "23:30", zone))
    assert times(exact, 4)[-2:] == [f"{spring[1]} 03:30", f"{spring[1]} 04:30"]

    # In autumn it is there twice, and the first one counts.
    cron = Schedule(cron=f"{twice[3:]} {twice[:2]} * * *", zone=zone)
    cron = cron.begun(at(autumn[0] + twice, zone))
    assert times(cron, 2) == [f"{autumn[1]} {twice}", after_autumn]
    daily = Schedule(every_s=86_400, zone=zone).begun(at(autumn[0] + twice, zone))
    assert times(daily, 2) == [f"{autumn[1]} {twice}", after_autumn]
    month = "10" if zone == BERLIN else "11"
    again = at(f"2026-{month}-{autumn[1]}T{twice[:2]}:10", zone, fold=1)
    late = cron.following("s-1", again)  # seen in the hour that comes a second time
    assert late is not None
    assert late.due_at == at(f"2026-{month}-{int(autumn[1]) + 1:02}T{twice}", zone)

    # Each hour goes on through the hour that comes twice.
    hourly = Schedule(cron="30 * * * *", zone=zone).begun(at(autumn[0] + "23:30", zone))
    assert len({*times(hourly, 5)}) == 4


def test_what_was_missed_is_made_up_for_once_or_left_out() -> None:
    start = at("2026-11-30T22:00", BERLIN)
    run = Schedule(every_s=3600, zone=BERLIN).begun(start)
    following = run.following("s-1", start + 8 * 3600 + 120)  # asleep for eight hours
    assert following is not None
    assert following.due_at == start + 9 * 3600
    assert following.first_task == "s-1"
    assert not run.is_missed(start + 8 * 3600)
    skip = Schedule(every_s=3600, zone=BERLIN, missed="skip").begun(start)
    assert not skip.is_missed(start + 30)
    assert skip.is_missed(start + 120)

    # Does not drift, however late each one is seen, and follows no clock that was set back.
    later = following.following("s-2", following.due_at + 17)
    assert later is not None
    assert (later.due_at, later.first_task) == (start + 10 * 3600, "s-1")
    back = later.following("s-3", start - 50_000)
    assert back is not None
    assert back.due_at == start + 11 * 3600
    seconds = Schedule(every_s=0.1 + 1, zone=BERLIN).begun(start)
    for _ in range(1000):
        following = seconds.following("s-1", seconds.due_at)
        assert following is not None
        assert 1 < following.due_at - seconds.due_at < 1.2
        seconds = following
    assert Schedule.from_json(seconds.as_json()) == seconds


def test_a_rule_is_refused_with_examples_of_good_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", BERLIN)
    weekly = schedule_of("", " 0  22 * * 1-5 ", "skip")
    assert weekly == Schedule(cron="0 22 * * 1-5", zone=BERLIN, missed="skip")
    assert weekly.in_words() == "cron 0 22 * * 1-5 (Europe/Berlin)"
    assert schedule_of("", "", "") is None
    for every, cron, missed, said in (
        ("tomorrow", "", "", r"--every tomorrow is no time span; .*90s.*1d"),
        ("0.5s", "", "", r"at least 1s"),
        ("999999w", "", "", r"at most 3660d"),
        ("1d", "* * * * *", "", r"exclude each other"),
        ("", "", "run", r"--missed needs a rule: --every 1d"),
        ("1d", "", "twice", r"it knows run, skip"),
        ("", "0 25 * * *", "", r"bad hour\. The fields are.*weekdays"),
        ("", "0 22 * *", "", r"a rule has 5 fields, and this has 4\. .*\*/15"),
        ("", "@daily", "", r"and this has 1"),
        ("", "0 0 1 13 *", "", r"is no rule: bad month"),
        ("", "0 0 30 2 *", "", r"never comes: no day fits it"),
        ("", "0 0 31 2,4 *", "", r"never comes: no day fits it"),
        ("", "0 0 32 * *", "", r"bad day-of-month"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            schedule_of(every, cron, missed)
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    with pytest.raises(InvalidRequest, match="set TZ to a name such as Europe/Berlin"):
        schedule_of("1d", "", "")
    with pytest.raises(BadCron):
        next_by_cron("1 2 3", BERLIN, 0)
    spans = {1.0: "1s", 90.0: "1m30s", 5400.0: "1h30m", 86_400.0: "1d", 2.5: "2.5s"}
    assert {seconds: span(seconds) for seconds in spans} == spans


def test_the_zone_is_that_of_the_environment_or_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    local = tmp_path / "localtime"
    monkeypatch.setattr(time_zones, "LOCAL_TIME", local)
    monkeypatch.delenv("TZ", raising=False)
    moment = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert time_zones.local_zone_name() == ""  # the machine has no zone, so its time is UTC
    assert moment.astimezone(time_zones.zone_of("")).utcoffset() == timedelta()
    local.symlink_to(f"/usr/share/zoneinfo/{NEW_YORK}")
    assert time_zones.local_zone_name() == NEW_YORK
    monkeypatch.setenv("TZ", f":/usr/share/zoneinfo/{BERLIN}")
    assert time_zones.local_zone_name() == BERLIN
    # A zone that was lost since the launch: the machine's own.
    lost = moment.astimezone(time_zones.zone_of("Europe/Atlantis")).utcoffset()
    assert lost == timedelta(hours=-4 if local.exists() else 0)
