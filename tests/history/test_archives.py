"""Old tasks leave the store for an archive, whole, and everything still finds them."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from histories import (
    DAY_S,
    add_task,
    add_tasks,
    begin_session,
    everything,
    kill_in_the_middle,
)
from kernels import NotebookKernel, until
from locks import WRITING, held
from programs import environment, run_command

from ipytaskpersist.base.records import TaskState
from ipytaskpersist.errors import AlreadyRunAgain, TaskNotFound
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.session import finding
from ipytaskpersist.store.file import database
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

NOTEBOOK = "/home/ada/a.ipynb"


def test_archived_tasks_are_whole_and_come_back_whole(
    store: TaskStore, archives: Archives, state_dir: Path
) -> None:
    session = begin_session(store)
    tasks = [
        *add_tasks(store, session, 3, age_days=70, name="old"),
        *add_tasks(store, session, 3, age_days=35),
        *add_tasks(store, session, 2),
    ]
    store.tasks.tag(tasks[0].key, ["baseline"])
    before = everything(state_dir)
    moved = archives.archive(tasks[:6])
    assert sum(moved.values()) == 6
    assert sorted(moved) == sorted({f"{task.created_at:%Y-%m}" for task in tasks[:6]})
    assert everything(state_dir) == before
    assert [task.id for task in store.tasks.select(Selection())] == [task.id for task in tasks[6:]]
    archived = archives.select(Selection())
    assert [task.id for task in archived] == [task.id for task in tasks[:6]]
    archives.unarchive(archived)
    assert everything(state_dir) == before
    assert store.statistics.count() == 8


def test_unarchiving_waits_for_as_long_as_another_program_writes(
    store: TaskStore, archives: Archives, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = add_tasks(store, begin_session(store), 3, age_days=40)
    archives.archive(tasks)
    before = everything(state_dir)
    waits: list[None] = []
    monkeypatch.setattr(database, "let_through", lambda: waits.append(None))
    with ThreadPoolExecutor(1) as pool:
        with held(state_dir, WRITING):
            done = pool.submit(lambda: archives.unarchive(archives.select(Selection())))
            until(lambda: len(waits) > 1 or done.done(), message="SQLite's own patience has ended")
        done.result(timeout=30)
    assert everything(state_dir) == before
    assert store.statistics.count() == 3


def test_the_beginning_of_an_id_must_not_mean_an_archived_task_as_well(
    store: TaskStore, archives: Archives, state_dir: Path
) -> None:
    session = begin_session(store, id="facade00-1")  # what begins it is no number
    tasks = add_tasks(store, session, 3, age_days=40)
    archives.archive(tasks[:2])
    beginning = tasks[0].id[:7]
    shown = run_command(state_dir, "show", beginning, notebook=NOTEBOOK)
    assert f"'{beginning}' is the beginning of 3 tasks' ids" in shown.stderr
    archives.archive(tasks[2:])
    shown = run_command(state_dir, "show", beginning, notebook=NOTEBOOK)
    assert "is the beginning of 3 tasks' ids" in shown.stderr
    assert run_command(state_dir, "show", tasks[1].id, notebook=NOTEBOOK).returncode == 0


def test_archiving_by_age_leaves_live_kept_and_younger_tasks(
    store: TaskStore, archives: Archives
) -> None:
    session = begin_session(store)
    old, kept, live = (
        add_task(store, session, age_days=40),
        add_task(store, session, age_days=40, tags=["keep"]),
        add_task(store, session, age_days=40, state=TaskState.RUNNING),
    )
    add_task(store, session, age_days=20)
    assert [task.id for task in archives.older_than(30 * DAY_S, "keep")] == [old.id]
    found = {task.id for task in archives.older_than(30 * DAY_S, "another tag")}
    assert found == {old.id, kept.id}
    assert live.id not in found


def test_a_rerun_finds_what_it_ran_again_when_both_are_back(
    store: TaskStore, archives: Archives
) -> None:
    session = begin_session(store)
    first = add_task(store, session, age_days=40)
    provenance = {"rerun_of": first.id}
    again = add_task(store, session, rerun_of=first.key, provenance=provenance)
    archives.archive([first])
    now = store.tasks.by_id(again.id)
    assert now is not None
    assert now.rerun_of is None
    assert now.provenance["rerun_of"] == first.id
    archives.unarchive(archives.select(Selection()))
    back, now = store.tasks.by_id(first.id), store.tasks.by_id(again.id)
    assert back is not None
    assert now is not None
    assert now.rerun_of == back.key


def test_two_who_archive_the_same_task_move_it_once(
    store: TaskStore, archives: Archives, state_dir: Path
) -> None:
    """Both have chosen it before one of them had its turn."""
    tasks = add_tasks(store, begin_session(store), 3)
    before = everything(state_dir)
    assert sum(archives.archive(tasks).values()) == 3
    with closing(Archives(store)) as others:
        assert others.archive(tasks) == {}
    assert everything(state_dir) == before


def test_a_whole_id_never_means_another_task(store: TaskStore, archives: Archives) -> None:
    session = begin_session(store, NOTEBOOK)
    tasks = add_tasks(store, session, 10)
    archives.archive(tasks[:9])
    assert finding.find_archived(archives.all()[0], None, tasks[0].id) is not None
    with pytest.raises(TaskNotFound):
        finding.find(store, session.notebook_key, tasks[0].id)
    ended = run_command(store.directory.root, "delete", tasks[0].id, "--yes", notebook=NOTEBOOK)
    assert ended.stdout == "deleted 1\n"
    assert store.tasks.by_id(tasks[9].id) is not None


def test_an_archive_that_was_removed_is_made_anew(
    store: TaskStore, archives: Archives, state_dir: Path
) -> None:
    session = begin_session(store)
    archives.archive([add_task(store, session)])
    (file,) = (state_dir / "archive").glob("*.db")
    for each in (state_dir / "archive").iterdir():
        each.unlink()
    task = add_task(store, session)
    archives.archive([task])
    assert file.exists()
    assert everything(state_dir).keys() == {task.id}


def test_a_task_that_was_moved_meanwhile_is_deleted_where_it_is(
    store: TaskStore, archives: Archives, state_dir: Path
) -> None:
    task = add_task(store, begin_session(store))
    archives.archive([task])
    archived = archives.select(Selection())
    archives.unarchive(archived)
    archives.delete(archived)
    assert everything(state_dir) == {}


def test_tasks_of_all_notebooks_are_listed_by_when_they_were_made(
    store: TaskStore, archives: Archives
) -> None:
    session = begin_session(store)
    old, new = add_task(store, session, age_days=40), add_task(store, session)
    archives.archive([old])
    archives.unarchive(archives.select(Selection()))
    assert [task.id for task in store.tasks.select(Selection(limit=1))] == [new.id]


def test_what_was_run_again_is_not_resumed_after_its_rerun_was_archived(
    store: TaskStore, archives: Archives
) -> None:
    session = begin_session(store)
    first = add_task(store, session, state=TaskState.INTERRUPTED, tags=["keep"])
    assert [task.id for task in store.tasks.interrupted(session.notebook_key)] == [first.id]
    provenance = {"rerun_of": first.id}
    again = add_task(store, session, rerun_of=first.key, provenance=provenance)
    assert store.tasks.interrupted(session.notebook_key) == []
    archives.archive([again])
    assert store.tasks.interrupted(session.notebook_key) == []
    with pytest.raises(AlreadyRunAgain):
        add_task(store, session, rerun_of=first.key, once=True)


def test_a_number_is_not_used_again_after_its_task_was_archived(
    store: TaskStore, archives: Archives
) -> None:
    session = begin_session(store)
    archives.archive(add_tasks(store, session, 3))
    assert add_task(store, session).number == 4


def test_a_key_is_not_used_again_after_its_task_was_removed(
    store: TaskStore, archives: Archives
) -> None:
    """A kernel remembers its tasks by their keys, and what they printed is removed bit by bit."""
    session = begin_session(store)
    removed = add_tasks(store, session, 3)
    archives.delete(removed)
    first = add_task(store, session)
    archives.archive([first])
    archives.unarchive(archives.select(Selection()))
    back, second = store.tasks.by_id(first.id), add_task(store, session)
    assert back is not None
    assert len({*(task.key for task in removed), first.key, back.key, second.key}) == 6


ARCHIVE_ALL = """
tasks = store.tasks.select(Selection())
archives.archive(tasks)
"""
OPENED = """
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.session import finding as references
from ipytaskpersist.errors import AlreadyRunAgain, TaskNotFound
from ipytaskpersist.store.tasks import Selection
archives = Archives(store.open())
"""


def test_a_task_that_prints_meanwhile_loses_nothing(store: TaskStore, state_dir: Path) -> None:
    add_tasks(store, begin_session(store), 300, age_days=40)
    numbers = "".join(f"{number}\n" for number in range(1, 200_001)).encode()
    program = subprocess.run(
        [sys.executable, "-c", PRINT_AND_ARCHIVE],
        env=environment(state_dir), capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert program.stdout == numbers
    with closing(Archives(store)) as archives:
        assert len(archives.select(Selection())) == 300


PRINT_AND_ARCHIVE = """
import sys
import ipytaskpersist
from ipytaskpersist.session.manager import current
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.output.replay import Cut, stream_bytes
from ipytaskpersist.base.records import OutputKind, TaskState
task = ipytaskpersist.background("seq 1 100000; sleep 0.1; seq 100001 200000", shell=True)
manager = current()
old = manager.store.tasks.select(Selection(states=[TaskState.COMPLETED]))
manager.archives.archive(old)
task.wait()
key = manager.tasks.find(task.id).key
for piece in stream_bytes(manager.store, key, Cut((OutputKind.STDOUT,))):
    sys.stdout.buffer.write(piece)
"""


def test_a_kill_while_archiving_leaves_every_task_in_one_place(
    store: TaskStore, archives: Archives, state_dir: Path
) -> None:
    add_tasks(store, begin_session(store), 250, age_days=1)
    before = everything(state_dir)

    def back() -> None:
        archives.unarchive(archives.select(Selection()))
        assert store.statistics.count() == 250

    def check() -> None:
        assert everything(state_dir) == before

    kill_in_the_middle(OPENED, ARCHIVE_ALL, state_dir, check, prepare=back)


def test_a_kill_while_unarchiving_leaves_every_task_in_one_place(
    store: TaskStore, archives: Archives, state_dir: Path
) -> None:
    add_tasks(store, begin_session(store), 250, age_days=1)
    before = everything(state_dir)

    def away() -> None:
        archives.archive(store.tasks.select(Selection()))

    def check() -> None:
        assert everything(state_dir) == before

    work = "archives.unarchive(archives.select(Selection()))"
    kill_in_the_middle(OPENED, work, state_dir, check, prepare=away)


# As it is typed.


def test_archived_tasks_are_found_by_every_verb(store: TaskStore, state_dir: Path) -> None:
    session = begin_session(store, NOTEBOOK)
    task = add_task(store, session, name="old", age_days=40, printed=b"one\ntwo\n")
    add_task(store, session, name="young")

    def run(*arguments: str) -> str:
        ended = run_command(state_dir, *arguments, notebook=NOTEBOOK)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert run("archive", "--older-than", "30d").startswith("moved 1 task to ")
    listed = json.loads(run("list", "--json"))["tasks"]
    assert [each["name"] for each in listed] == ["young"]
    listed = json.loads(run("list", "--archived", "--json"))["tasks"]
    assert [each["name"] for each in listed] == ["old"]
    assert listed[0]["archive"] == f"{task.created_at:%Y-%m}"
    for reference in ("1", "old", task.id):
        assert run("output", reference) == "one\ntwo\n"
    assert f"in the archive of {task.created_at:%Y-%m}" in run("show", "old")
    assert run("tag", "old", "baseline") == "task 1 (old): baseline\n"
    assert run("unarchive", "1") == "moved 1 task back: 1 (old)\n"
    assert json.loads(run("show", "1", "--json"))["tags"] == ["baseline", "keep"]
    assert run("archive", "old", "young").startswith("moved ")
    assert run("delete", "old", "--yes") == "deleted 1 (old)\n"
    assert "young" in run("list", "--archived")
    assert run_command(state_dir, "show", "old", notebook=NOTEBOOK).returncode == 1


def test_an_archived_task_is_run_again_loaded_and_held_on_to(
    kernel: NotebookKernel, state_dir: Path
) -> None:
    kernel.run("factor = 7")
    kernel.run("%%background --process sweep\nbest = factor * 6\nprint(best)\nbest")
    kernel.run("import ipytaskpersist as bg; task = bg.task(); task.wait()")
    kernel.run("del best, factor")
    kernel.run("%bg_archive sweep")
    assert kernel.run("task.stdout, task.result(), len(task.history)").text == "('42\\n', 42, 3)"
    kernel.run("%bg_load sweep")
    assert kernel.run("best").text == "42"
    kernel.run("%%background live\nimport time\nwhile True: time.sleep(0.01)")
    assert "task 1 (sweep) had ended: completed" in kernel.run("%bg_cancel 1").text
    kernel.run("%bg_cancel live")
    kernel.run("%bg_rerun sweep")
    kernel.run("%bg_wait")
    again = json.loads(kernel.run("%bg_show --json").stream("stdout"))
    assert again["state"] == "completed"
    assert again["rerun_of"].endswith("-1")
    assert kernel.run("%bg_result").text == "42"
    kernel.run("%bg_unarchive 1")
    shown = kernel.run("task.stdout, task.result(), len(task.history)").text
    assert shown.endswith("('42\\n', 42, 3)")


def test_what_a_cut_off_move_has_left_does_not_come_back_after_delete(
    store: TaskStore, archives: Archives, state_dir: Path
) -> None:
    from ipytaskpersist.store.transfer import copy_tasks

    task = add_task(store, begin_session(store, NOTEBOOK), name="twice")
    archive = archives.open(f"{task.created_at:%Y-%m}")
    copy_tasks(archive.database, store.database.path, [task.id])
    assert len(everything(state_dir)) == 1
    assert run_command(state_dir, "delete", "1", "--yes", notebook=NOTEBOOK).returncode == 0
    assert everything(state_dir) == {}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("archive",), "which tasks? archive takes either their references or an age"),
        (("archive", "1", "--older-than", "3d"), "which tasks? archive takes either"),
        (("archive", "--older-than", "soon"), "'soon' is no age; give a number and a unit"),
        (("archive", "2"), "task 2 (live) is running; it can be archived when it has ended"),
        (("unarchive",), "which task? jupyter bg list --archived shows those that can come back"),
        (("unarchive", "1"), "task 1 is not archived"),
    ],
)
def test_what_is_typed_wrong_is_one_line(
    store: TaskStore, state_dir: Path, typed: tuple[str, ...], said: str
) -> None:
    session = begin_session(store, NOTEBOOK)
    add_task(store, session)
    add_task(store, session, name="live", state=TaskState.RUNNING)
    ended = run_command(state_dir, *typed, notebook=NOTEBOOK)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


VERBS_WITH_FEW_DESCRIPTORS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
from ipytaskpersist.__main__ import main
for line in sys.argv[1:]:
    sys.argv[1:] = line.split()
    try:
        main()
    except SystemExit as end:
        assert not end.code, line
"""


def test_the_archives_of_many_years_need_few_descriptors(
    store: TaskStore, archives: Archives, state_dir: Path, tmp_path: Path
) -> None:
    session = begin_session(store)
    archives.archive(add_tasks(store, session, 2, age_days=70, name="old"))
    (month,) = store.directory.months()
    archives.close()
    content = store.directory.archive(month).store.read_bytes()
    for number in range(72):
        other = store.directory.archive(f"{2010 + number // 12}-{number % 12 + 1:02}").store
        other.write_bytes(content)
        other.chmod(0o600)
    lines = [
        "search old --archived",
        "list --all --archived",
        "stats",
        "sessions --all",
        "show old",
    ]
    ran = subprocess.run(
        [sys.executable, "-c", VERBS_WITH_FEW_DESCRIPTORS, *lines],
        env=environment(state_dir, {"IPYTASKPERSIST_NOTEBOOK": NOTEBOOK}),
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("archived") >= 2
