"""When waiting tasks will probably start, as `groups` and `show` say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from histories import add_task, add_tasks
from programs import run_command

from ipytaskpersist.base.records import TaskState
from ipytaskpersist.panel.feed import Feed
from ipytaskpersist.session.estimates import simulate, starts_in
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.store.queue import Admission
from ipytaskpersist.store.task_store import TaskStore

NEVER = math.inf


@pytest.mark.parametrize(
    ("slots", "durations", "starts"),
    [
        ([0.0], [5.0, 5.0, 5.0], [0.0, 5.0, 10.0]),
        ([0.0, 0.0], [5.0, 3.0, 4.0], [0.0, 0.0, 3.0]),
        ([7.0, 2.0], [1.0, 9.0, 1.0], [2.0, 3.0, 7.0]),
        ([1.0], [NEVER, 1.0], [1.0, NEVER]),
        ([1.0, 4.0], [NEVER, 1.0, 1.0], [1.0, 4.0, 5.0]),
        ([NEVER], [1.0], [NEVER]),
    ],
)
def test_the_next_task_takes_the_slot_that_is_free_first(
    slots: list[float], durations: list[float], starts: list[float]
) -> None:
    assert simulate(slots, durations) == starts


def test_a_waiting_task_says_its_place_and_when_it_starts(store: TaskStore) -> None:
    session = store.sessions.begin(replace(session_identity(None), path="sweep.ipynb"))
    add_tasks(store, session, 3, name="train")  # of one second each
    store.queue.set_width("gpu", 1)
    gpu = Admission("gpu")
    add_task(store, session, name="train", state=TaskState.RUNNING, admission=gpu)
    waiting = [
        add_task(store, session, name=name, state=TaskState.PENDING, admission=gpu)
        for name in ("train", "train", "new", "train")
    ]
    (group,) = [each for each in store.queue.groups() if each.name == "gpu"]
    found = starts_in(store, group, [store.tasks.get(task.key) or task for task in waiting])
    first, second, third = (found[task.key] for task in waiting[:3])
    assert 0 <= first <= 1
    assert second == pytest.approx(first + 1)
    assert third == pytest.approx(first + 2)
    assert waiting[3].key not in found  # behind one without an earlier run

    table = run_command(store.directory.root, "groups").stdout
    assert "any moment" in table
    assert "in about 0:0" in table
    assert "gpu: 1 of 1 running, 4 waiting" in run_command(store.directory.root, "stats").stdout
    listed = run_command(store.directory.root, "list", "--all").stdout
    assert "group gpu is full: 1 of 1 · in about 0" in listed
    feed = Feed(BackgroundTasks(), lambda _message: None, everywhere=True)
    lines = {row["id"]: row["line"] for row in feed.everything()["tasks"]}
    assert "group gpu is full: 1 of 1 · in about 0" in lines[waiting[1].id]
    shown = run_command(store.directory.root, "show", waiting[1].id).stdout
    assert "1 task of its group first" in " ".join(shown.split())
    assert "usually takes" in shown
    assert "0:01" in shown
