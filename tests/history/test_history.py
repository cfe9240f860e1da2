"""A long history is listed by session, tagged, measured, and kept within its limits."""

from __future__ import annotations

import json
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from histories import DAY_S, add_task, add_tasks, begin_session, everything, open_store
from kernels import NotebookKernel, until
from programs import Finished, run_command

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.history.upkeep import Limits, enforce, start
from ipytaskpersist.session.provenance import git_state
from ipytaskpersist.store.search_index import SearchIndex
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.store.transfer import copy_tasks
from ipytaskpersist.values.payloads import Payloads

NOTEBOOK = "/home/ada/a.ipynb"
SESSION = "a7k3m9x2-0123456789abcdef01234567"


def run(state_dir: Path, *arguments: str) -> Finished:
    return run_command(state_dir, *arguments, notebook=NOTEBOOK)


def run_json(state_dir: Path, *arguments: str) -> dict[str, object]:
    ended = run(state_dir, *arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    document: dict[str, object] = json.loads(ended.stdout)
    return document


# Sessions.


def test_sessions_tell_when_how_and_what_newest_first(store: TaskStore, state_dir: Path) -> None:
    old = begin_session(store, NOTEBOOK, id=SESSION)
    store.tasks.end(
        add_task(store, old, state=TaskState.PENDING).key, TaskState.CANCELLED, "cancelled", None, 0
    )
    add_tasks(store, old, 2)
    store.sessions.end(old.id, "kernel restarted")
    new = begin_session(store, NOTEBOOK)
    begin_session(store, "/home/ada/other.ipynb")
    listed = run_json(state_dir, "sessions")["sessions"]
    assert [each["id"] for each in listed] == [new.id, old.id]
    assert listed[1]["tasks"] == {"cancelled": 1, "completed": 2}
    assert listed[1]["first_line"] == "print(1)"
    assert listed[1]["end_reason"] == "kernel restarted"
    assert run_json(state_dir, "sessions", "--all")["count"] == 3
    text = run(state_dir, "sessions").stdout.splitlines()
    assert text[1].split()[0] == new.id[:8]
    assert "a.ipynb" in text[2]
    assert "kernel restarted at" in text[2]
    assert "1 cancelled, 2 completed" in text[2]
    assert text[2].endswith("print(1)")


def test_a_limit_says_how_many_sessions_are_not_shown(store: TaskStore, state_dir: Path) -> None:
    for _ in range(4):
        begin_session(store, NOTEBOOK)
    shown = run(state_dir, "sessions", "--limit", "3").stdout
    assert len(shown.splitlines()) == 5
    assert "1 earlier sessions are not shown; --limit N shows more" in shown
    elsewhere = run_command(state_dir, "sessions", notebook="/x").stdout
    assert elsewhere == "no sessions of this notebook yet\n"


def test_eight_characters_name_a_session(store: TaskStore, state_dir: Path) -> None:
    task = add_task(store, begin_session(store, NOTEBOOK, id=SESSION), name="mine")
    add_task(store, begin_session(store, NOTEBOOK), name="theirs")
    shown = run(state_dir, "show", "a7k3m9x2").stdout
    assert shown.startswith(f"session   {SESSION}\n")
    assert "mine" in shown
    assert "theirs" not in shown
    document = run_json(state_dir, "show", "a7k3m9x2")
    assert document["id"] == SESSION
    assert [each["id"] for each in document["tasks"]] == [task.id]
    listed = run_json(state_dir, "list", "--session", "a7k3m9x2")
    assert [each["name"] for each in listed["tasks"]] == ["mine"]
    assert run_json(state_dir, "show", task.id)["number"] == 1


@pytest.mark.parametrize("typed", [("list", "--session", "zzz"), ("delete", "--session", "zzz")])
def test_an_unknown_session_is_one_line_with_the_five_most_recent(
    store: TaskStore, state_dir: Path, typed: tuple[str, ...]
) -> None:
    recent = [begin_session(store, NOTEBOOK).id[:8] for _ in range(6)]
    ended = run(state_dir, *typed)
    assert ended.returncode == 1
    known = ", ".join(recent[:0:-1])
    assert ended.stderr == f"jupyter bg: no session 'zzz'; the most recent are {known}\n"
    assert not ended.stdout


def test_a_session_is_deleted_with_all_that_it_did_and_nothing_else(
    store: TaskStore, archives: Archives, state_dir: Path
) -> None:
    session = begin_session(store, NOTEBOOK, id=SESSION)
    tasks = add_tasks(store, session, 11)
    archives.archive([add_task(store, session, age_days=50)])
    store.sessions.end(session.id, "kernel shut down")
    left = add_task(store, begin_session(store, NOTEBOOK))
    refused = run(state_dir, "delete", "--session", "a7k3m9x2")
    assert refused.returncode == 1
    assert "add --yes to delete session a7k3m9x2 (12 tasks, last active " in refused.stderr
    done = run(state_dir, "delete", "--session", "a7k3m9x2", "--yes")
    assert done.stdout == "deleted session a7k3m9x2 with 12 tasks\n"
    assert everything(state_dir).keys() == {left.id}
    assert "a7k3m9x2" not in run(state_dir, "sessions").stdout
    assert run(state_dir, "show", tasks[0].id).returncode == 1


def test_a_session_with_a_live_task_is_not_deleted(store: TaskStore, state_dir: Path) -> None:
    session = begin_session(store, NOTEBOOK, id=SESSION)
    add_task(store, session, state=TaskState.RUNNING)
    ended = run(state_dir, "delete", "--session", "a7k3m9x2", "--yes")
    assert ended.returncode == 1
    assert "has tasks that have not ended (1); cancel them first" in ended.stderr
    both = run(state_dir, "delete", "1", "--session", "a7k3m9x2")
    assert "--session and references exclude each other" in both.stderr


# Tags.


def test_tags_are_given_found_and_taken_away(store: TaskStore, state_dir: Path) -> None:
    session = begin_session(store, NOTEBOOK)
    add_task(store, session, name="first", tags=["gpu"])
    add_task(store, session, name="second")
    assert (
        run(state_dir, "tag", "2", "gpu", "baseline").stdout == "task 2 (second): baseline, gpu\n"
    )

    def listed(*tags: str) -> list[str]:
        options = [word for tag in tags for word in ("--tag", tag)]
        tasks = run_json(state_dir, "list", *options)["tasks"]
        return [each["name"] for each in tasks]

    assert listed("gpu") == ["first", "second"]
    assert listed("gpu", "baseline") == ["second"]
    assert listed("nothing") == []
    assert run(state_dir, "tag", "2", "--remove", "gpu").stdout == "task 2 (second): baseline\n"
    assert listed("gpu") == ["first"]
    assert run(state_dir, "tag", "first").stdout == "task 1 (first): gpu\n"
    assert run_json(state_dir, "show", "2")["tags"] == ["baseline"]


@pytest.mark.parametrize("tag", ["", "two words", "a,b", "x" * 65, "tab\t", "\x1b[31m"])
def test_what_cannot_be_a_tag_is_refused(store: TaskStore, state_dir: Path, tag: str) -> None:
    add_task(store, begin_session(store, NOTEBOOK))
    ended = run(state_dir, "tag", "1", tag)
    assert ended.returncode == 1
    assert "cannot be a tag: a tag is one word" in ended.stderr


def test_a_cell_is_tagged_at_its_launch_and_a_rerun_has_the_same(kernel: NotebookKernel) -> None:
    kernel.run("%%background train --tag gpu --tag baseline\n1")
    kernel.run("%bg_wait")
    kernel.run("%bg_rerun train")
    kernel.run("%bg_wait")
    shown = json.loads(kernel.run("%bg_show -1 --json").stream("stdout"))
    assert shown["tags"] == ["baseline", "gpu"]
    assert shown["provenance"]["rerun_of"] == shown["rerun_of"] == f"{shown['session'][:8]}-1"
    refused = kernel.run("%%background --tag 'a b'\n1", check=False)
    assert "cannot be a tag" in refused.stream("stderr")


# Where tasks come from.


def git(folder: Path, *arguments: str) -> str:
    known = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    ended = subprocess.run(
        ["git", *known, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return ended.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "inner").mkdir(parents=True)
    (folder / "file").write_text("one")
    git(folder, "init", "--quiet", "--initial-branch=work")
    return folder


def test_git_tells_commit_branch_and_changes(repository: Path) -> None:
    assert git_state(repository) == {
        "root": str(repository), "commit": None, "branch": "work", "is_dirty": False,
    }  # fmt: skip
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message=first")
    commit = git(repository, "rev-parse", "HEAD")
    expected = {"root": str(repository), "commit": commit, "branch": "work", "is_dirty": False}
    assert git_state(repository / "inner") == expected
    (repository / "untracked").touch()
    assert git_state(repository) == expected
    (repository / "file").write_text("two")
    assert git_state(repository) == {**expected, "is_dirty": True}
    git(repository, "checkout", "--quiet", "--detach")
    assert git_state(repository) == {**expected, "is_dirty": True, "branch": None}


def test_asking_git_runs_nothing_that_the_repository_names(
    repository: Path, tmp_path: Path
) -> None:
    witness = tmp_path / "witness"
    program = tmp_path / "monitor"
    program.write_text(f"#!/bin/sh\ntouch {witness}\n")
    program.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(program))
    assert git_state(repository) is not None
    assert not witness.exists()


def test_a_task_knows_where_it_comes_from(kernel: NotebookKernel, repository: Path) -> None:
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message=first")
    kernel.run(f"%cd -q {repository}")
    kernel.run("%%background --shell\ntrue")
    kernel.run("%%background\n1")

    def shown(number: int) -> dict[str, object]:
        document = json.loads(kernel.run(f"%bg_show {number} --json").stream("stdout"))
        provenance: dict[str, object] = document["provenance"]
        return provenance

    for number in (1, 2):
        found = until(lambda number=number: (now := shown(number)).get("git") and now)
        assert found["directory"] == str(repository)
        assert found["git"] == git_state(repository)
        assert found["python"]
        assert found["host"]
    text = kernel.run("%bg_show 1").stream("stdout")
    facts = [line.split(maxsplit=1) for line in text.splitlines() if line]
    assert ["git", f"{git(repository, 'rev-parse', 'HEAD')[:12]} on work"] in facts
    assert ["directory", str(repository)] in facts


# How much there is.


def test_stats_count_what_there_is(store: TaskStore, archives: Archives, state_dir: Path) -> None:
    session = begin_session(store, NOTEBOOK)
    add_task(store, session, name="large", printed=b"x" * 100_000)
    add_task(store, session, state=TaskState.FAILED, age_days=1, printed=b"y" * 10)
    add_task(store, session, state=TaskState.RUNNING, printed=b"z" * 5)
    archives.archive(add_tasks(store, session, 2, age_days=40))
    store.back_up()
    found = run_json(state_dir, "stats")
    assert found["tasks"]["total"] == 3
    by_state = found["tasks"]["by_state"]
    assert {name: count for name, count in by_state.items() if count} == {
        "completed": 1, "failed": 1, "running": 1,
    }  # fmt: skip
    assert found["tasks"]["archived"] == 2
    assert found["sessions"] == {"active": 1, "ended": 0}
    assert found["output_bytes"] == 100_015
    assert found["largest"][0] == {
        "id": f"{session.id[:8]}-1",
        "name": "large",
        "output_bytes": 100_000,
    }
    assert [day["tasks"] for day in found["days"]] == [2, 1]
    assert sum(day["output_bytes"] for day in found["days"]) == 100_015
    disk = found["disk_bytes"]
    assert disk["store"] > 0
    assert disk["archives"] > 0
    assert disk["backups"] > 0
    assert disk["total"] >= disk["store"] + disk["archives"] + disk["backups"]
    assert 0 < found["write_latency_s"] < 10
    text = run(state_dir, "stats").stdout
    assert "3: 1 running, 1 completed, 1 failed" in text
    assert "100 kB" in text


def test_stats_of_nothing_make_no_store(state_dir: Path) -> None:
    assert "no background tasks yet" in run(state_dir, "stats").stdout
    assert run_json(state_dir, "stats")["tasks"] == {"total": 0}
    assert not state_dir.exists()


# Limits.

LIMITED = "%config BackgroundTasks.max_output_bytes = {}"
MARK = "\n[more than {} bytes: what follows is counted, not kept; see max_output_bytes]\n"


@pytest.mark.parametrize("where", ["", "--process"])
def test_output_beyond_a_limit_is_counted_and_marked(kernel: NotebookKernel, where: str) -> None:
    kernel.run(LIMITED.format(1_000))
    kernel.run(
        f"%%background {where}\nfor n in range(1000): print(f'{{n:099}}')\n"
        "display({'text/plain': 'a picture'}, raw=True)\n1 / 0"
    )
    kernel.run("%bg_wait")
    shown = json.loads(kernel.run("%bg_show --json").stream("stdout"))
    cell = kernel.run("%bg_output")
    kept = "".join(f"{n:099}\n" for n in range(10))
    assert cell.stream("stdout") == kept
    assert cell.stream("stderr") == MARK.format("1,000")
    dropped = 100 * 990 + len('{"data": {"text/plain": "a picture"}, "metadata": {}}')
    assert abs(shown["dropped_bytes"] - dropped) < 40
    assert "ZeroDivisionError" in [each.get("ename") for each in cell.outputs]
    told = kernel.run("%bg_show").stream("stdout")
    assert f"{shown['dropped_bytes']:,} bytes of its output" in told
    kernel.run(LIMITED.format(None))
    kernel.run("%%background\nprint('x' * 5000)")
    kernel.run("%bg_wait")
    assert kernel.run("%bg_output").stream("stdout") == "x" * 5000 + "\n"


def test_a_picture_that_does_not_fit_is_not_cut(kernel: NotebookKernel) -> None:
    kernel.run(LIMITED.format(500))
    kernel.run(
        "%%background\nprint('before')\ndisplay({'text/plain': 'small'}, raw=True)\n"
        "display({'text/plain': 'x' * 5000}, raw=True)\nprint('after')\n6 * 7"
    )
    kernel.run("%bg_wait")
    cell = kernel.run("%bg_output")
    assert "small" in cell.text
    assert "xxx" not in cell.text
    assert cell.stream("stdout") == "before\n"
    assert "42" in cell.text


def test_a_limit_on_the_store_deletes_what_ended_first_and_is_not_kept(
    store: TaskStore, archives: Archives, state_dir: Path
) -> None:
    session = begin_session(store)
    old = [big(store, session, age_days=50 - n) for n in range(10)]
    new = [big(store, session, age_days=2 - n / 10) for n in range(10)]
    kept = big(store, session, age_days=60, tags=["keep"])
    live = add_task(store, session, state=TaskState.RUNNING)
    archives.archive([*old, kept])
    Payloads(store.directory).save(new[-1].id, "", 42, "42")
    used = sum(place.upkeep.used_bytes() for place in [store, *archives.all()])
    assert enforce(store, archives, Limits(None, used, "keep")) == []
    limit = used - 300_000
    deleted = enforce(store, archives, Limits(None, limit, "keep"))
    assert deleted == [task.id for task in old]
    left = everything(state_dir).keys()
    assert left == {kept.id, live.id, *(task.id for task in new)}
    assert sum(place.upkeep.used_bytes() for place in [store, *archives.all()]) <= limit
    enforce(store, archives, Limits(None, 1, "keep"))
    assert everything(state_dir).keys() == {kept.id, live.id}
    assert not list((state_dir / "payloads").glob("*"))


def test_a_limit_leaves_what_a_cut_off_move_has_left_in_both_places(
    store: TaskStore, archives: Archives, state_dir: Path
) -> None:
    kept = big(store, begin_session(store), tags=["keep"])
    archive = archives.open(f"{kept.created_at:%Y-%m}")
    copy_tasks(archive.database, store.database.path, [kept.id])
    archive.tasks.tag(1, [], ["keep"])
    store.results.save(kept.key, Payloads(store.directory).save(kept.id, "", 42, "42"))
    assert enforce(store, archives, Limits(None, 1, "keep")) == []
    assert list((state_dir / "payloads").rglob("*.pickle"))


def test_a_notebook_goes_on_counting_after_its_only_session_was_deleted(
    store: TaskStore, archives: Archives
) -> None:
    session = begin_session(store, NOTEBOOK)
    archives.delete([add_task(store, session)])
    store.sessions.delete(session.id)
    assert add_task(store, begin_session(store, NOTEBOOK)).number == 2


def big(store: TaskStore, session: object, **known: object) -> TaskRecord:
    """A task that takes 40 KB however well they are compressed."""
    import random

    return add_task(store, session, printed=random.randbytes(40_000), **known)  # type: ignore[arg-type]


def test_upkeep_archives_what_is_old_and_takes_turns(
    store: TaskStore, archives: Archives, state_dir: Path
) -> None:
    session = begin_session(store)
    old = add_task(store, session, age_days=31)
    kept = add_task(store, session, age_days=31, tags=["keep"])
    young = add_task(store, session, age_days=29)
    before = everything(state_dir)
    stale = state_dir / ".tasks.db.0.part"
    stale.touch()
    limits = Limits(30, None, "keep")
    for _ in range(2):
        assert start(StateDirectory(state_dir), limits).wait(30) == 0
    assert {task.id for task in store.tasks.select(Selection())} == {kept.id, young.id}
    assert everything(state_dir) == before
    assert not list((state_dir / "logs").iterdir())
    for place in (store, archives.open(f"{old.created_at:%Y-%m}")):
        with closing(SearchIndex(place)) as index:
            assert index.count() == place.statistics.count()
    assert stale.exists()  # it may be somebody's who is just writing it
    assert store.upkeep.claim("upkeep", 0)
    again = add_task(store, session, age_days=31)
    store.upkeep.claim("upkeep", 0)
    assert start(StateDirectory(state_dir), limits).wait(30) == 0
    assert store.tasks.by_id(again.id) is not None  # somebody has just had a turn
    assert old.id not in {task.id for task in store.tasks.select(Selection())}


def test_a_kernel_starts_the_upkeep_by_itself(kernel: NotebookKernel, state_dir: Path) -> None:
    with closing(open_store(state_dir)) as store:
        old = add_task(store, begin_session(store), age_days=31)
        kernel.run("import ipytaskpersist.history.upkeep as u; u.SOON_S = u.BEGIN_S = 0.05")
        kernel.run("get_ipython().run_line_magic('reload_ext', 'ipytaskpersist')")
        kernel.run("%%background\n1")
        until(lambda: store.tasks.by_id(old.id) is None)


def test_upkeep_by_never_archives_nothing(store: TaskStore, state_dir: Path) -> None:
    task = add_task(store, begin_session(store), age_days=400)
    assert start(StateDirectory(state_dir), Limits(None, None, "keep")).wait(30) == 0
    assert store.tasks.by_id(task.id) is not None


def test_a_turn_is_taken_by_one_and_a_clock_that_was_put_back_stops_nobody(
    store: TaskStore,
) -> None:
    assert store.upkeep.claim("x", DAY_S)
    assert not store.upkeep.claim("x", DAY_S)
    store.database.execute("UPDATE upkeep SET at = at + ?", (2 * DAY_S,))
    assert store.upkeep.claim("x", DAY_S)
