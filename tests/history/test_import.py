"""What is imported is whole, there once, and never believed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import pytest
from kernels import NotebookKernel, end_processes_of, until
from programs import environment, run_command
from stores import (
    HOSTILE,
    NOT_UTF_8,
    archive_some,
    command,
    copied,
    make_store,
    of_same_user,
    opened,
)

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.commands.moving import FORMATS
from ipytaskpersist.errors import InvalidRequest, ResultUnavailable
from ipytaskpersist.history import fields, import_reading
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.history.exporting import Export
from ipytaskpersist.history.foreign_formats import time_of
from ipytaskpersist.history.importing import Report, import_file
from ipytaskpersist.output.replay import stream_bytes
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection
from ipytaskpersist.values.payloads import Payloads
from ipytaskpersist.values.signatures import Signatures

Document = dict[str, Any]
SHAPES = Path(__file__).parent / "imports"
KILLS = 20


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A state directory with tasks of every kind, for reading only."""
    folder = tmp_path_factory.mktemp("full")
    make_store(folder / "state", folder / "analysis.ipynb")
    yield folder / "state"
    end_processes_of(folder / "state")


@pytest.fixture(scope="module")
def exported(full: Path) -> Path:
    """What `export --all` writes."""
    target = full.parent / "all.jsonl"
    command(full, "export", "--all", "--output", target)
    return target


@pytest.fixture
def lines(exported: Path) -> list[Document]:
    """The same, read."""
    return [json.loads(line) for line in exported.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def importing_into(store: TaskStore, path: Path, **options: Any) -> Report:
    archives = Archives(store)
    try:
        return import_file(path, store, archives.all, Payloads(store.directory), **options)
    finally:
        archives.close()


def tasks_in(store: TaskStore) -> list[TaskRecord]:
    """The tasks in the order in which they came in."""
    return sorted(store.tasks.select(Selection()), key=lambda task: task.key)


def export_of(directory: Path) -> str:
    return str(command(directory, "export", "--all").stdout)


# There and back.


def test_what_was_exported_and_imported_is_exported_byte_for_byte(
    full: Path, exported: Path, tmp_path: Path
) -> None:
    directory = of_same_user(full, tmp_path / "other")
    said = command(directory, "import", exported).stdout
    assert said == "imported 7 tasks of 1 notebook\n"
    assert export_of(directory).encode() == exported.read_bytes()


def test_one_document_is_imported_as_lines_are(full: Path, exported: Path, tmp_path: Path) -> None:
    directory = of_same_user(full, tmp_path / "other")
    command(full, "export", "--all", "--format", "json", "--output", tmp_path / "all.json")
    command(directory, "import", tmp_path / "all.json")
    assert export_of(directory).encode() == exported.read_bytes()


def test_importing_again_changes_nothing(full: Path, exported: Path, tmp_path: Path) -> None:
    directory = of_same_user(full, tmp_path / "other")
    command(directory, "import", exported)
    again = command(directory, "import", exported).stdout
    assert again == "imported 0 tasks of 0 notebooks; 7 were there already\n"
    assert export_of(directory).encode() == exported.read_bytes()
    assert "7 were there already" in command(full, "import", exported).stdout


def test_what_was_archived_meanwhile_is_there_already(
    full: Path, exported: Path, tmp_path: Path
) -> None:
    directory = copied(full, tmp_path / "state")
    archive_some(directory)
    assert "7 were there already" in command(directory, "import", exported).stdout


def test_every_verb_shows_an_imported_task_as_its_own(
    full: Path, exported: Path, tmp_path: Path, lines: list[Document]
) -> None:
    directory = of_same_user(full, tmp_path / "other")
    command(directory, "import", exported)
    ids = {line["name"]: line["id"] for line in reversed(lines) if line["type"] == "task"}
    assert command(directory, "result", ids["first"]).stdout == "{'answer': 42}\n"
    with opened(directory) as store:
        task = store.tasks.by_id(ids["bytes"])
        assert task is not None
        assert b"".join(stream_bytes(store, task.key)) == NOT_UTF_8 + "é\n".encode()
        assert task.last_line == "é"
        assert (task.output_bytes, task.exit_code) == (len(NOT_UTF_8) + 3, 3)
        process = store.processes.get(task.key)
        assert process is not None
        assert process.options.env == {"COLOUR": "blue"}
        again = store.tasks.by_number(task.notebook_key, 6)
        assert again is not None
        assert again.rerun_of == store.tasks.by_id(ids["first"]).key  # type: ignore[union-attr]
        assert again.tags == ("größer", "nightly")


def test_a_dry_run_says_the_same_and_makes_no_store(state_dir: Path, exported: Path) -> None:
    said = command(state_dir, "import", exported, "--dry-run").stdout
    assert said == "would import 7 tasks of 1 notebook\n"
    assert not state_dir.exists()


def test_the_report_as_json_has_the_documented_members(state_dir: Path, exported: Path) -> None:
    report = json.loads(command(state_dir, "import", exported, "--json").stdout)
    assert (report["imported"], report["skipped"], report["invalid"]) == (7, 0, [])
    with opened(state_dir) as store:
        assert report["tasks"] == [task.id for task in tasks_in(store)]


# Results of others.


def test_a_pickle_of_another_user_is_kept_and_never_loaded(
    full: Path, state_dir: Path, exported: Path, lines: list[Document]
) -> None:
    """With that user's key it can be: they may be the same person."""
    command(state_dir, "import", exported)
    first = next(line["id"] for line in lines if line.get("name") == "first")
    refused = command(state_dir, "result", first, status=1).stderr
    assert "was not loaded: it was imported, and does not carry your signature" in refused
    assert "{'answer': 42}" in refused
    assert export_of(state_dir).encode() == exported.read_bytes()
    (state_dir / "signing.key").unlink()
    of_same_user(full, state_dir)
    assert command(state_dir, "result", first).stdout == "{'answer': 42}\n"


def test_a_pickle_without_a_signature_is_left_out(
    tmp_path: Path, state_dir: Path, lines: list[Document]
) -> None:
    first = next(line for line in lines if line.get("name") == "first")
    del first["results"][0]["signature"]
    command(state_dir, "import", write_lines(tmp_path / "unsigned.jsonl", lines))
    refused = command(state_dir, "result", first["id"], status=1).stderr
    assert "its pickle is not in the imported file, or is not signed" in refused
    assert list((state_dir / "payloads").glob(f"{first['id']}/*")) == []


def test_a_pickle_is_bound_to_its_task_and_name(
    full: Path, tmp_path: Path, lines: list[Document]
) -> None:
    """A signed pickle that a file gives to another task or name is not loaded."""
    first, again = (line for line in lines if line.get("name") == "first")
    again["results"] = first["results"]
    first["results"] = [{**first["results"][0], "name": "other"}]
    directory = of_same_user(full, tmp_path / "other")
    command(directory, "import", write_lines(tmp_path / "swapped.jsonl", lines))
    with opened(directory) as store:
        for line, name in ((first, "other"), (again, "")):
            task = store.tasks.by_id(line["id"])
            assert task is not None
            kept = store.results.get(task.key, name)
            assert kept is not None
            with pytest.raises(ResultUnavailable, match="does not carry your signature"):
                Payloads(store.directory).load(task, kept)


# Numbers, ids and notebooks.


def known_session(store: TaskStore, line: Document, **changes: Any) -> Any:
    """A session that this machine has had at the path of an exported one."""
    identity = SessionIdentity(
        **{
            "id": "11111111-own",
            "front_end": "kernel",
            "path": line["path"],
            "has_path": True,
            "kernel_uuid": None,
            "process": ProcessIdentity.own(),
            **changes,
        }
    )
    return store.sessions.begin(identity)


def new_task(store: TaskStore, session: Any, name: str = "own") -> TaskRecord:
    return store.tasks.insert(
        NewTask(session.notebook_key, session.id, name, "python", "thread", "1")
    )


def test_a_number_that_is_taken_is_replaced_and_the_old_one_kept(
    state_dir: Path, exported: Path, lines: list[Document]
) -> None:
    """At the same path of the same host it is the same notebook, and its own tasks stay."""
    with opened(state_dir) as store:
        own = new_task(store, known_session(store, lines[1]))
        report = importing_into(store, exported)
        tasks = tasks_in(store)
        assert {task.notebook_key for task in tasks} == {own.notebook_key}
        assert [task.number for task in tasks] == [1, 8, 2, 3, 4, 5, 6, 7]
        assert tasks[0].name == "own"
        assert [task.id for task in tasks[1:]] == report.ids
        moved, again = tasks[1], tasks[6]
        assert moved.provenance["original_number"] == 1
        assert moved.id == lines[2]["id"]
        assert again.rerun_of == moved.key
        assert new_task(store, known_session(store, lines[1])).number == 9
        assert importing_into(store, exported).skipped == 7


def test_an_id_that_is_taken_is_replaced_and_the_old_one_kept(
    state_dir: Path, exported: Path, lines: list[Document], tmp_path: Path
) -> None:
    with opened(state_dir) as store:
        elsewhere = known_session(store, lines[1], id=lines[1]["id"][:8] + "-other", path="/else")
        taken = new_task(store, elsewhere)
        assert taken.id == lines[2]["id"]
        importing_into(store, exported)
        tasks = tasks_in(store)
        assert len({task.id for task in tasks}) == 8
        moved = tasks[1]
        assert moved.provenance["original_id"] == taken.id
        assert tasks[6].provenance["rerun_of"] == moved.id
        assert tasks[6].rerun_of == moved.key
        assert importing_into(store, exported).skipped == 7
    back = tmp_path / "back.jsonl"
    command(state_dir, "export", "--session", lines[1]["id"], "--output", back)
    other = tmp_path / "other"
    command(other, "import", exported)
    assert "7 were there already" in command(other, "import", back).stdout


def test_two_notebooks_stay_two_though_one_has_the_name_that_the_other_had(
    state_dir: Path, tmp_path: Path
) -> None:
    """The kernel of one went on when it was renamed to the path of the other."""
    host = ProcessIdentity.own()
    sessions = [("1", "a", "first"), ("2", "b", "second"), ("3", "a", "second")]
    with opened(state_dir) as store:
        for number, name, kernel in sessions:
            at = f"/home/ada/{name}.ipynb"
            session = store.sessions.begin(
                SessionIdentity(f"{number * 8}-x", "kernel", at, True, kernel, host)
            )
            task = new_task(store, session)
            store.tasks.start(task.key, time.time())
            store.tasks.end(task.key, TaskState.COMPLETED, None, 0, time.time())
        assert [task.number for task in tasks_in(store)] == [1, 1, 2]
    file = tmp_path / "both.jsonl"
    command(state_dir, "export", "--all", "--output", file)
    other, again = tmp_path / "other", tmp_path / "again.jsonl"
    command(other, "import", file)
    with opened(other) as store:
        assert [task.number for task in tasks_in(store)] == [1, 1, 2]
        assert len({task.notebook_key for task in tasks_in(store)}) == 2
    command(other, "export", "--all", "--output", again)
    told = ("id", "notebook", "path", "has_path")
    sent, returned = (
        [
            [line[name] for name in told]
            for line in map(json.loads, each.read_text(encoding="utf-8").splitlines())
            if line["type"] == "session"
        ]
        for each in (file, again)
    )
    assert returned == sent


def test_numbers_and_ids_in_an_archive_are_taken_too(
    state_dir: Path, exported: Path, lines: list[Document]
) -> None:
    with opened(state_dir) as store:
        session = known_session(store, lines[1])
        task = new_task(store, session)
        store.tasks.start(task.key, time.time())
        store.tasks.end(task.key, TaskState.COMPLETED, None, 0, time.time())
        archives = Archives(store)
        archives.archive(tasks_in(store))
        archives.close()
        importing_into(store, exported)
        assert sorted(task.number for task in tasks_in(store)) == [*range(2, 9)]


def test_at_the_path_of_another_hosts_notebook_ones_own_notebook_stays(
    state_dir: Path, lines: list[Document], tmp_path: Path
) -> None:
    """The next kernel there belongs to the notebook of this host, not to the imported one."""
    lines[1]["host"] = "elsewhere"
    with opened(state_dir) as store:
        own = known_session(store, lines[1])
        importing_into(store, write_lines(tmp_path / "elsewhere.jsonl", lines))
        assert {task.notebook_key for task in tasks_in(store)} != {own.notebook_key}
        later = known_session(store, lines[1], id="22222222-own")
        assert later.notebook_key == own.notebook_key


def test_on_a_new_machine_the_notebook_goes_on_with_its_numbers(
    state_dir: Path, exported: Path, lines: list[Document]
) -> None:
    with opened(state_dir) as store:
        importing_into(store, exported)
        assert new_task(store, known_session(store, lines[1])).number == 8


# Live tasks, and what is never run.


def test_what_ran_when_it_was_exported_is_interrupted(
    state_dir: Path, lines: list[Document], tmp_path: Path
) -> None:
    running, waiting = lines[2], lines[3]
    running.update(state="running", ended_at=None, exit_code=None)
    running["history"].pop()
    waiting.update(state="pending", started_at=None, ended_at=None, exit_code=None, reason=None)
    waiting["history"] = waiting["history"][:1]
    lines[1].update(ended_at=None, end_reason=None)
    with opened(state_dir) as store:
        importing_into(store, write_lines(tmp_path / "live.jsonl", lines))
        for task in tasks_in(store)[:2]:
            reason = "was running when it was exported"
            assert (task.state, task.reason) == (TaskState.INTERRUPTED, reason)
            assert store.tasks.history(task.key)[-1].state is TaskState.INTERRUPTED
            assert task.ended_at is not None
            assert task.ended_at >= task.created_at
        (session,) = store.sessions.select(None)
        assert session.end_reason == "was active when it was exported"


@pytest.fixture
def imported(make_kernel: Callable[..., NotebookKernel], state_dir: Path, exported: Path) -> Any:
    """A kernel of the very notebook whose tasks were imported."""
    command(state_dir, "import", exported)
    notebook = exported.with_name("analysis.ipynb")
    return make_kernel(notebook=notebook)


def test_nothing_imported_is_run_or_acts_by_itself(
    imported: NotebookKernel, lines: list[Document]
) -> None:
    """Not resumed with all others, not as a process, and no script reaches the notebook."""
    ids = {line["name"]: line["id"] for line in reversed(lines) if line["type"] == "task"}
    assert "nothing to resume" in imported.run("%bg_resume --all").text
    assert "was imported" in imported.run(f"%bg_resume {ids['endless']}", check=False).text
    assert "was imported" in imported.run(f"%bg_rerun {ids['bytes']}", check=False).text
    for verb in ("%bg_output", "%bg_output --follow"):
        shown = imported.run(f"{verb} {ids[HOSTILE]}").outputs
        assert shown
        assert "<script>" not in json.dumps(shown)
    assert "<table>" in imported.run(f"%bg_output {ids[HOSTILE]}").outputs[0].data["text/html"]


# Older shapes.


def by_name(store: TaskStore) -> dict[str, TaskRecord]:
    return {task.name or str(task.provenance["original_id"]): task for task in tasks_in(store)}


@pytest.fixture
def shape(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a file in an older shape, whose path is the test's own."""
    return lambda name: (
        Path(tmp_path / name).write_bytes((SHAPES / name).read_bytes()) and (tmp_path / name)
    )


def test_a_to_do_list(store: TaskStore, shape: Callable[[str], Path]) -> None:
    report = importing_into(store, shape("todo.json"))
    assert [(each.position, each.reason) for each in report.invalid] == [
        ("[3].text", "is not a text")
    ]
    done, *others = tasks_in(store)
    assert (done.name, done.source, done.state) == ("Load the data", "Load the data", "completed")
    assert [(each.state, each.reason) for each in others] == [
        ("interrupted", "was not completed")
    ] * 2
    assert importing_into(store, shape("todo.json")).skipped == 3


def test_tasks_with_logs(store: TaskStore, shape: Callable[[str], Path]) -> None:
    report = importing_into(store, shape("tasks_with_logs.json"))
    assert [each.position for each in report.invalid] == ["[3].status", "[4].createdAt"]
    tasks = by_name(store)
    build = tasks["build"]
    assert b"".join(stream_bytes(store, build.key)) == b"compiling\nwarning: unused\n"
    assert build.created_at.isoformat() == "2024-05-01T10:00:00+00:00"
    assert build.ended_at is not None
    assert build.ended_at.isoformat() == "2024-05-01T10:01:30.250000+00:00"
    assert build.provenance["original_id"] == "8f14e45f"
    assert tasks["test"].reason == "was running when it was exported"
    assert tasks["test"].created_at == tasks["upload"].created_at == build.created_at
    assert (tasks["upload"].state, tasks["upload"].reason) == ("failed", "no route to host")
    assert importing_into(store, shape("tasks_with_logs.json")).skipped == 3


def test_a_session_file(store: TaskStore, shape: Callable[[str], Path]) -> None:
    assert importing_into(store, shape("session.json")).invalid == []
    (session,) = store.sessions.select(None)
    assert session.id == "0b0c7a52-7a4a-4d5c-9f3e-1d2c3b4a5e6f"
    tasks = by_name(store)
    done = tasks["Summarise the table"]
    assert done.source == "Summarise\nthe table"
    assert done.elapsed_s(done.created_at) == 7.5
    kept = store.results.get(done.key)
    assert kept is not None
    assert kept.text == '{"rows": 3}'
    assert kept.problem
    assert [tasks[name].state.value for name in ("Plot it", "Stop it")] == [
        *("interrupted", "cancelled")
    ]
    assert importing_into(store, shape("session.json")).skipped == 3


def test_tasks_by_sessions(store: TaskStore, shape: Callable[[str], Path]) -> None:
    report = importing_into(store, shape("tasks.json"))
    assert [(each.position, each.reason) for each in report.invalid] == [
        ("kernel-1.bg_10", "is not an object")
    ]
    tasks = by_name(store)
    make = tasks["bg_1a2b"]
    assert (make.kind, make.source, make.exit_code) == ("shell", "make -j8", 0)
    assert make.session == "5d1f0c3a-1111-4222-8333-944455556666"
    assert b"".join(stream_bytes(store, make.key)) == b"ok\n"
    assert tasks["wait"].session != make.session
    assert not any(task.id.startswith("bg_") for task in tasks.values())
    assert importing_into(store, shape("tasks.json")).skipped == 3


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("2024-05-01T10:00:00Z", 1714557600.0),
        ("2024-05-01T10:00:00.250+02:00", 1714550400.25),
        (1714557600, 1714557600.0),
        (1714557600250, 1714557600.25),
        ("1714557600.5", 1714557600.5),
        ("1714557600500", 1714557600.5),
        (None, None),
        ("", None),
    ],
)
def test_times_are_read_in_many_forms(given: Any, seconds: float | None) -> None:
    assert time_of(given) == seconds


@pytest.mark.parametrize("given", ["soon", True, -1, 0, 1e300, [], "99999-01-01", 10**400])
def test_what_is_no_time_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"time|1970"):
        time_of(given)


# Invalid and hostile files.

CHANGES: list[tuple[str, Any, str]] = [
    ("state", "victorious", "state"),
    ("state", 1, "state"),
    ("state", "pending", "ended_at"),
    ("exit_code", 7, "exit_code"),
    ("exit_code", 10**400, "exit_code"),
    ("number", 0, "number"),
    ("number", 2**62, "number"),
    ("number", True, "number"),
    ("created_at", -1, "created_at"),
    ("created_at", 1e300, "created_at"),
    ("created_at", "yesterday", "created_at"),
    ("started_at", None, "started_at"),
    ("name", "x" * 2000, "name"),
    ("source", None, "source"),
    ("kind", "binary", "kind"),
    ("runner", "../../x", "runner"),
    ("session", "nobody", "session"),
    ("tags", ["a\nb"], "tags[0]"),
    ("tags", "a", "tags"),
    ("provenance", {"git": 1}, "provenance.git"),
    ("provenance", {"host": ["a"]}, "provenance.host"),
    ("provenance", {"x": "y" * 70_000}, "provenance"),
    ("history", [{"state": "completed", "at": 1.0}, {"state": "running", "at": 1.0}], "history"),
    ("history", [{"state": "failed", "at": 1.0}], "history"),
    ("outputs", [{"kind": "stdout", "at": 1.0}], "outputs[0].text"),
    ("outputs", [{"kind": "stdout", "at": 1.0, "base64": "?"}], "outputs[0].base64"),
    ("outputs", [{"kind": "sound", "at": 1.0, "text": ""}], "outputs[0].kind"),
    ("outputs", [{"kind": "stdout", "at": 1.0, "text": "\udc80"}], "outputs[0].text"),
    ("outputs", [{"kind": "display_data", "at": 1.0, "content": {}}], "outputs[0].content.data"),
    ("outputs", [{"kind": "error", "at": 1.0, "text": "nonsense"}], "outputs[0].text"),
    ("results", [{"name": "", "text": 1}], "results[0].text"),
    ("results", [{"name": "", "text": "a"}] * 2, "the store refuses"),
    ("process", {"command": "rm -rf /"}, "process.command"),
]


@pytest.mark.parametrize(("member", "value", "named"), CHANGES)
def test_a_wrong_record_is_named_and_does_not_stop_the_others(
    store: TaskStore, tmp_path: Path, lines: list[Document], member: str, value: Any, named: str
) -> None:
    lines[2][member] = value
    report = importing_into(store, write_lines(tmp_path / "wrong.jsonl", lines))
    (invalid,) = report.invalid
    assert invalid.position == "line 3"
    assert named in invalid.reason
    assert len(tasks_in(store)) == len(report.ids) == 6


def test_a_wrong_member_of_a_document_is_named_by_its_path(
    full: Path, state_dir: Path, tmp_path: Path
) -> None:
    document = json.loads(command(full, "export", "--all", "--format", "json").stdout)
    document["tasks"][3]["state"] = "victorious"
    (tmp_path / "wrong.json").write_text(json.dumps(document))
    ended = command(state_dir, "import", tmp_path / "wrong.json", "--json", status=1)
    (invalid,) = json.loads(ended.stdout)["invalid"]
    assert invalid["position"] == "tasks[3].state"
    assert "victorious" in invalid["reason"]
    assert ended.stderr.count("\n") == 1
    plain = command(tmp_path / "other", "import", tmp_path / "wrong.json", status=1)
    assert plain.stdout == "imported 6 tasks of 1 notebook; 1 invalid\n"


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 200_000,
        b"{" * 100,
        b'{"type": "task", "number": NaN}',
        b'{"type": "task", "number": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe",
        b"[]",
        b'{"type": "poem"}',
        b'{"type": "task"}',
        b'{"type": "session", "id": "../../etc"}',
    ],
)
def test_a_line_that_is_no_record_is_named(
    store: TaskStore, exported: Path, tmp_path: Path, line: bytes
) -> None:
    header, rest = exported.read_bytes().split(b"\n", maxsplit=1)
    path = tmp_path / "wrong.jsonl"
    path.write_bytes(header + b"\n" + line + b"\n" + rest)
    report = importing_into(store, path)
    assert [each.position for each in report.invalid] == ["line 2"]
    assert len(report.ids) == 7


def test_a_line_that_is_too_long_is_skipped(
    store: TaskStore, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a smaller limit, so that the test needs no large file."""
    monkeypatch.setattr(import_reading, "LINE_BYTES", 2_000_000)
    header, rest = exported.read_bytes().split(b"\n", maxsplit=1)
    path = tmp_path / "long.jsonl"
    path.write_bytes(header + b"\n" + b"x" * 5_000_000 + b"\n" + rest)
    report = importing_into(store, path)
    assert [each.position for each in report.invalid] == ["line 2"]
    assert "longer" in report.invalid[0].reason
    assert len(report.ids) == 7


def test_many_values_in_little_text_are_refused_before_they_fill_the_memory() -> None:
    with pytest.raises(fields.InvalidRecord, match="values"):
        fields.parsed(b"[" + b"[]," * fields.VALUES_AT_MOST + b"[]]")


def test_displays_that_are_nested_too_deeply_are_refused(
    store: TaskStore, tmp_path: Path, lines: list[Document]
) -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    content = {"data": {"application/json": deep}, "metadata": {}}
    lines[2]["outputs"] = [{"kind": "display_data", "at": 1.0, "content": content}]
    report = importing_into(store, write_lines(tmp_path / "deep.jsonl", lines))
    assert "levels deep" in report.invalid[0].reason


NONSENSE: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        2**63,
        10**400,
        0.5,
        1e308,
        "",
        "\0",
        "\udc80",
        "../x",
        "a" * 5000,
        "running",
    ),
    *([], {}, [None], [{}], {"": {}}, {"a": 1}, ["a"]),
]


def members_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every member and entry inside a document."""
    inside = value if isinstance(value, dict) else range(len(value) if type(value) is list else 0)
    for name in inside:
        yield (*path, name)
        yield from members_of(value[name], (*path, name))


def with_nonsense(document: Any, chance: random.Random) -> Any:
    """A copy in which something else stands in one place."""
    document = json.loads(json.dumps(document))
    *path, last = chance.choice([*members_of(document)])
    place = document
    for name in path:
        place = place[name]
    place[last] = chance.choice(NONSENSE)
    return document


def test_nonsense_anywhere_is_reported_or_harmless(
    store: TaskStore, manager: BackgroundTasks, tmp_path: Path, lines: list[Document]
) -> None:
    """Whatever stands in whatever place: no error but a report, and what is taken can be shown."""
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    chance = random.Random(seed)
    invalid = 0
    small = [line for line in lines if len(json.dumps(line)) < 20_000]
    shapes = [json.loads(shape.read_bytes()) for shape in sorted(SHAPES.glob("*.json"))]
    for turn in range(150):
        path = tmp_path / f"{turn % 10}.jsonl"
        if turn % 3:
            for line in small:
                if line["type"] == "task":
                    line["created_at"] += 1.0
            write_lines(path, [small[0], *(with_nonsense(line, chance) for line in small[1:])])
        else:
            path.write_text(json.dumps(with_nonsense(chance.choice(shapes), chance)))
        with suppress(InvalidRequest):
            invalid += len(importing_into(store, path).invalid)
    assert invalid
    tasks = manager.tasks.select(Selection())
    assert tasks
    for pieces in FORMATS.values():
        assert b"".join(pieces(Export(manager.archives, manager.payloads, tasks)))
    notebook = b"".join(Export(manager.archives, manager.payloads, tasks).notebook()).decode()
    nbformat.validate(nbformat.reads(notebook, as_version=nbformat.NO_CONVERT))


def test_ids_of_a_file_name_no_folder(
    full: Path, tmp_path: Path, exported: Path, lines: list[Document]
) -> None:
    """A task whose id would lead elsewhere gets another, and everything stays in its directory."""
    directory = of_same_user(full, tmp_path / "other")
    key = Signatures(StateDirectory(directory))
    for line, wrong in zip(lines[2:4], ("../../../escaped-1", "/tmp/escaped-2"), strict=True):
        data = b"\x80\x04K\x01."
        signature = key.sign(wrong, "", hashlib.sha256(data).hexdigest())
        line["id"] = wrong
        line["results"] = [
            {
                "name": "",
                "text": "1",
                "signature": signature,
                "pickle": base64.b64encode(data).decode(),
            }
        ]
    command(directory, "import", write_lines(tmp_path / "escape.jsonl", lines))
    with opened(directory) as store:
        for task in tasks_in(store)[:2]:
            assert re.fullmatch(r"[0-9a-f]{8}-\d+", task.id)
            kept = store.results.get(task.key)
            assert kept is not None
            assert Payloads(StateDirectory(directory)).load(task, kept) == 1
    assert list(tmp_path.rglob("*escaped*")) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\x00" * 100,
        b"[]",
        b"{}",
        b'{"a": 1}',
        b'[{"a": 1}]',
        b"[" * 100_000,
        b'{"cells": [], "nbformat": 4}',
        b'{"format": "ipytaskpersist", "version": 2, "tasks": []}',
        b'{"type": "header", "format": "ipytaskpersist", "version": 99}\n',
    ],
)
def test_a_file_without_tasks_is_one_clear_line(
    state_dir: Path, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with opened(state_dir) as store, pytest.raises(InvalidRequest) as error:
        importing_into(store, path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there_is_one_line(state_dir: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        ended = run_command(state_dir, "import", str(path))
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)


def test_a_file_that_was_cut_off_gives_what_is_whole(
    store: TaskStore, exported: Path, tmp_path: Path
) -> None:
    """Cut in the middle of the task with several lines: those before it are imported."""
    kept = exported.read_bytes().splitlines(keepends=True)
    cut = next(place for place, line in enumerate(kept) if b'"more":true' in line) + 1
    path = tmp_path / "cut.jsonl"
    path.write_bytes(b"".join(kept[:cut]))
    report = importing_into(store, path)
    assert len(report.ids) == cut - 3
    assert [each.position for each in report.invalid] == [f"line {cut}", "the end of the file"]
    path.write_bytes(b"".join(kept))
    assert importing_into(store, path).skipped == cut - 3
    assert len(tasks_in(store)) == 7


# Others at the same time, and sudden ends.


def many_lines(lines: list[Document], path: Path, count: int) -> Path:
    """A file of many small tasks of one session."""
    pattern = lines[2]
    lines[1]["notebook"]["last_number"] = count
    tasks = [
        {
            **pattern,
            "id": f"{lines[1]['id'][:8]}-{number}",
            "number": number,
            "created_at": pattern["created_at"] + number,
            "history": [],
            "results": [],
        }
        for number in range(1, count + 1)
    ]
    end = {"type": "end", "sessions": 1, "tasks": count}
    return write_lines(path, [*lines[:2], *tasks, end])


def test_another_process_writes_meanwhile(
    state_dir: Path, lines: list[Document], tmp_path: Path
) -> None:
    """Its tasks and the imported ones are all there, and no number is given twice."""
    path = many_lines(lines, tmp_path / "many.jsonl", 150)
    words = [sys.executable, "-m", "ipytaskpersist", "import", str(path)]
    with opened(state_dir) as store:
        session = known_session(store, lines[1])
        with subprocess.Popen(words, env=environment(state_dir)) as program:
            own = []
            while program.poll() is None or len(own) < 20:
                own.append(new_task(store, session))
        assert program.returncode == 0
        tasks = tasks_in(store)
        assert len(tasks) == 150 + len(own)
        assert len({task.number for task in tasks}) == len(tasks)
        assert {task.notebook_key for task in tasks} == {session.notebook_key}


def test_two_imports_of_one_file_at_once_import_each_task_once(
    state_dir: Path, lines: list[Document], tmp_path: Path
) -> None:
    path = many_lines(lines, tmp_path / "many.jsonl", 100)
    reports: list[Report] = []
    with opened(state_dir) as store:
        threads = [
            threading.Thread(target=lambda: reports.append(importing_into(store, path)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sum(len(report.ids) for report in reports) == 100
        assert sum(report.skipped for report in reports) == 100
        assert len(tasks_in(store)) == 100


FORKING = """
import os, sys
from ipytaskpersist.history import importing
from ipytaskpersist.output import recorder
from ipytaskpersist.__main__ import main
for _line in sys.stdin:
    pid = os.fork()
    if not pid:
        sys.argv[1:] = ["import", sys.argv[1]]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        main()
        os._exit(0)
    print(pid, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Imports in children that are there at once. It has no other thread, so it may fork."""


def test_an_import_that_is_killed_loses_and_doubles_nothing(
    full: Path, exported: Path, tmp_path: Path
) -> None:
    """Killed at 20 random moments, each time going on where the last one was cut off."""
    directory = of_same_user(full, tmp_path / "other")
    kept = [json.loads(line) for line in exported.read_text(encoding="utf-8").splitlines()]
    path = many_lines(kept, tmp_path / "many.jsonl", 400)
    command(tmp_path / "whole", "import", path)
    expected = export_of(tmp_path / "whole")
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    chance = random.Random(seed)
    killed = 0
    words = [sys.executable, "-c", FORKING, str(path)]
    with (
        opened(directory) as store,
        subprocess.Popen(
            words, env=environment(directory), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as program,
    ):
        assert program.stdin is not None
        assert program.stdout is not None
        for turn in range(KILLS):
            before = store.tasks.count(Selection())
            wanted = min(399, before + chance.randint(0, 2 * 400 // KILLS))
            program.stdin.write(b"import\n")
            program.stdin.flush()
            pid = int(program.stdout.readline())
            until(lambda wanted=wanted: store.tasks.count(Selection()) >= wanted)
            time.sleep(chance.random() / 500)  # any moment will do, and each is another
            os.kill(pid, signal.SIGKILL)  # nobody else can have its pid, which is not reaped yet
            program.stdin.write(b"reap\n")
            program.stdin.flush()
            killed += int(program.stdout.readline()) == -signal.SIGKILL
            assert store.database.row("PRAGMA quick_check")[0] == "ok", turn
        program.stdin.close()
    assert killed, "no import was killed before it ended"
    command(directory, "import", path)
    assert export_of(directory) == expected
    assert not list(directory.rglob("*.part"))
