"""The views of the store say to plain SQL what the records say, wherever the store has been."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from histories import add_task, begin_session, open_store
from kernels import end_processes_of
from pages import ROOT, blocks
from programs import environment
from stores import HOSTILE, command, make_store, of_same_user

from ipytaskpersist.base.records import (
    OutputKind,
    Progress,
    ResultRecord,
    SessionRecord,
    TaskRecord,
    TaskState,
)
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.store.file import database, repair
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.restoring import restore
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

Row = dict[str, Any]
SCHEMAS = Path(__file__).parent / "schemas"
PAGE = ROOT / "docs" / "how-to" / "ask-with-sql.md"
VIEWS = ("task_list", "task_text_output")
MULTIBYTE = "Größe 5 µm → 12 €, 終了 😀\n"
AT = 1_795_266_612.5


def rows(file: Path, view: str) -> list[Row]:
    """The rows of a view, read by Python's own sqlite3 and nothing of the package."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {view}")]


def both(file: Path) -> dict[str, list[Row]]:
    """The rows of both views."""
    return {view: rows(file, view) for view in VIEWS}


def asked(file: Path, *arguments: str) -> Any:
    """What the command line of sqlite-utils gives."""
    ended = subprocess.run(
        [sys.executable, "-m", "sqlite_utils", *arguments[:1], str(file), *arguments[1:]],
        env=environment(file.parent), capture_output=True, text=True, encoding="utf-8",
        timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


# What the records say.


def add_text(store: TaskStore, key: int, data: bytes, kind: OutputKind = OutputKind.STDOUT) -> None:
    """A piece of output as it is."""
    output = NewOutput(key, kind, AT, data, lines=data.count(b"\n"), last_line="the last line")
    store.outputs.append([output.as_row()])


@pytest.fixture
def session(store: TaskStore) -> SessionRecord:
    return begin_session(store, "/home/ada/Größe.ipynb")


@pytest.fixture
def tasks(store: TaskStore, session: SessionRecord) -> list[TaskRecord]:
    """Tasks in every state, with all that a task can have."""
    made = [
        add_task(store, session, name=f"größer {state}", state=state, tags=["paper", "keep"])
        for state in TaskState
    ]
    made.append(add_task(store, session, printed=MULTIBYTE.encode()))
    store.tasks.progress(made[1].key, Progress(1, 3, "epochs"))
    store.tasks.progress(made[2].key, Progress(5))
    store.tasks.progress(made[3].key, Progress(12, 10))
    store.results.save(made[-1].key, ResultRecord("", None, 5, None, None, "'größer'", "no room"))
    store.tasks.clear(session.notebook_key)
    return store.tasks.select(Selection())


def assert_says(row: Row, task: TaskRecord, store: TaskStore) -> None:
    """The row of a task says what its record says."""
    document = task.as_json(datetime.now(UTC))
    for name in ("id", "notebook", "number", "name", "state", "reason", "exit_code", "kind",
                 "runner", "session", "source", "last_line"):  # fmt: skip
        assert row[name] == document[name], name
    for name in ("created_at", "started_at", "ended_at", "cleared_at"):
        assert_same_time(row[name], getattr(task, name))
    assert row["elapsed_s"] == pytest.approx(document["elapsed_s"], abs=0.5)
    fraction = task.progress and task.progress.fraction
    assert row["percent_done"] == (None if fraction is None else round(100 * fraction, 1))
    assert row["tags"] == (", ".join(task.tags) or None)
    assert row["output_bytes"] == task.output_bytes
    result = store.results.get(task.key)
    assert row["result"] == (None if result is None else result.text)
    session = store.sessions.get(task.session)
    assert session is not None
    assert row["host"] == session.host


def assert_same_time(text: str | None, at: datetime | None) -> None:
    """A time of a view is ISO 8601 in UTC, to the millisecond."""
    if text is None or at is None:
        assert text is at
    else:
        assert text.endswith("Z")
        assert abs(datetime.fromisoformat(text) - at) <= timedelta(milliseconds=1)


def test_the_list_says_what_the_records_say(store: TaskStore, tasks: list[TaskRecord]) -> None:
    found = {row["id"]: row for row in rows(store.database.path, "task_list")}
    assert found.keys() == {task.id for task in tasks}
    for task in tasks:
        record = store.tasks.get(task.key)
        assert record is not None
        assert_says(found[task.id], record, store)


def test_the_newest_task_comes_first(store: TaskStore, session: SessionRecord) -> None:
    for name, age_days in (("old", 9.0), ("new", 0.0), ("older", 30.0)):
        add_task(store, session, name=name, age_days=age_days)
    names = [row["name"] for row in rows(store.database.path, "task_list")]
    assert names == ["new", "old", "older"]


def test_no_column_is_a_blob(store: TaskStore, tasks: list[TaskRecord]) -> None:
    found = both(store.database.path)
    assert tasks
    values = [value for each in found.values() for row in each for value in row.values()]
    assert {type(value) for value in values} == {str, int, float, type(None)}


PIECES = [
    b"", b"ascii\n", MULTIBYTE.encode(), "°»µé".encode(), b"\x1b[31mred\x1b[0m\n",
    # What commands print that is not UTF-8, and what a piece cuts in two.
    b"caf\xe9 \xe9t\xe9\n", b"\xff\xfe", b"\x82\xac and", "and €".encode()[:-1], "😀".encode()[:2],
    b"one\0two", b"\0", "é\0é".encode(), "\ufefftext".encode(),
]  # fmt: skip


def test_what_was_printed_is_text_whatever_its_bytes_are(
    store: TaskStore, session: SessionRecord
) -> None:
    task = add_task(store, session, state=TaskState.RUNNING, printed=b"")
    for data in PIECES:
        add_text(store, task.key, data)
    _first, *found = rows(store.database.path, "task_text_output")
    decoded = [data.decode("utf-8", "replace") for data in PIECES]
    # A zero byte would end the text for tools that are written in C.
    assert [row["text"] for row in found] == [text.replace("\0", "\ufffd") for text in decoded]
    assert {row["at"] for row in found} == {"2026-11-21T13:10:12.500Z"}


@pytest.mark.parametrize(
    "data", [b"\xc0\x80x", b"\xed\xa0\x80x", b"\xf5\x80\x80\x80x", b"\xc3\xa9\x82x"]
)
def test_what_no_text_has_can_be_read(
    store: TaskStore, session: SessionRecord, data: bytes
) -> None:
    """Encodings that are too long or too high, halves of pairs, and one byte too many."""
    task = add_task(store, session, state=TaskState.RUNNING, printed=data)
    (row,) = rows(store.database.path, "task_text_output")
    assert (row["id"], row["text"]) == (task.id, "\ufffdx")


def test_what_is_compressed_has_its_size_and_last_line_and_no_text(
    store: TaskStore, session: SessionRecord
) -> None:
    add_task(store, session, printed=MULTIBYTE.encode() * 100)
    (row,) = rows(store.database.path, "task_text_output")
    assert (row["text"], row["compression"], row["lines"]) == (None, "zstd", 100)
    assert row["size_bytes"] == len(MULTIBYTE.encode()) * 100
    assert row["last_line"] == "last"


def test_displays_results_and_errors_have_their_text(
    store: TaskStore, session: SessionRecord
) -> None:
    given = [
        (OutputKind.DISPLAY_DATA, {"data": {"text/plain": "größer", "text/html": "<b>"}}),
        (OutputKind.EXECUTE_RESULT, {"data": {"text/plain": "42"}}),
        (OutputKind.UPDATE_DISPLAY_DATA, {"data": {"image/png": "iVBORw0KGgo="}}),
        (OutputKind.CLEAR_OUTPUT, {"wait": True}),
        (OutputKind.ERROR, {"ename": "KeyError", "evalue": "'größer'", "traceback": ["…"]}),
        (OutputKind.DISPLAY_DATA, {"data": {"text/plain": "half \ud800 of a pair"}}),
    ]
    task = add_task(store, session, state=TaskState.RUNNING, printed=b"")
    for kind, content in given:
        add_text(store, task.key, json.dumps(content).encode(), kind)
    add_text(store, task.key, b"{damaged", OutputKind.DISPLAY_DATA)
    _first, *found = rows(store.database.path, "task_text_output")
    assert [row["kind"] for row in found[:-1]] == [kind.value for kind, _content in given]
    assert [row["text"] for row in found] == [
        "größer", "42", None, None, "KeyError: 'größer'", "half \ufffd of a pair", None,
    ]  # fmt: skip


def test_the_output_of_a_deleted_task_is_not_shown(
    store: TaskStore, archives: Archives, tasks: list[TaskRecord]
) -> None:
    archives.delete(tasks[2:])
    found = both(store.database.path)
    assert {row["id"] for row in found["task_list"]} == {task.id for task in tasks[:2]}
    assert {row["id"] for row in found["task_text_output"]} == {tasks[1].id}


# As other tools read them.


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state directory with real tasks of every kind, for reading only."""
    folder = tmp_path_factory.mktemp("full")
    make_store(folder / "state", folder / "analysis.ipynb")
    yield folder / "state"
    end_processes_of(folder / "state")


def test_sqlite_utils_lists_what_the_command_lists(full: Path) -> None:
    listed = json.loads(command(full, "list", "--all", "--json").stdout)["tasks"]
    found = {row["id"]: row for row in asked(full / "tasks.db", "rows", "task_list")}
    assert found.keys() == {task["id"] for task in listed}
    for task in listed:
        row = found[task["id"]]
        same = ("number", "name", "notebook", "state", "reason", "exit_code", "last_line", "source")
        assert {name: row[name] for name in same} == {name: task[name] for name in same}
    assert found[listed[0]["id"]]["result"] == "{'answer': 42}"


def test_sqlite_utils_shows_what_tasks_have_printed(full: Path) -> None:
    found = asked(full / "tasks.db", "rows", "task_text_output")
    texts = {(row["name"], row["kind"]): row["text"] for row in found}
    assert texts["first", "stdout"] == "a \x1b[31mred\x1b[0m line\n"
    assert texts["bytes", "stdout"] == "\ufffd\ufffd caf\ufffd \ufffd end\n"
    assert texts["bytes", "stderr"] == "é\n"
    assert texts["first", "execute_result"] == "{'answer': 42}"
    assert (HOSTILE, "display_data") in texts


def test_compressed_output_is_read_in_datasette_by_the_plugin_of_the_page(
    store: TaskStore, session: SessionRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Datasette is not installed with the package: a module with its decorator stands for it."""
    files = {block.file: block.text for block in blocks(PAGE)}
    datasette = SimpleNamespace(hookimpl=lambda function: function)
    monkeypatch.setitem(sys.modules, "datasette", datasette)  # type: ignore[arg-type]
    plugin: dict[str, Any] = {}
    exec(files["output_text.py"] + files["plugins/output_text.py"], plugin)
    add_task(store, session, printed=MULTIBYTE.encode() * 100)
    with closing(sqlite3.connect(store.database.path)) as connection:
        plugin["prepare_connection"](connection)
        found = connection.execute("SELECT output_text(compression, data) FROM outputs").fetchall()
    assert found == [(MULTIBYTE * 100,)]


def test_the_page_names_every_column(store: TaskStore) -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## The columns")[2]
    for view in VIEWS:
        found = store.database.rows("SELECT name FROM pragma_table_info(?)", (view,))
        assert [name for (name,) in found if f"`{name}`" not in text] == []


# Wherever the store has been.


def ended(file: Path) -> dict[str, list[Row]]:
    """Both views of ended tasks, in an order that does not depend on the file."""
    return {view: sorted(found, key=repr) for view, found in both(file).items()}


@pytest.fixture
def whole(store: TaskStore, tasks: list[TaskRecord]) -> dict[str, list[Row]]:
    """Both views of a store in which every task has ended."""
    for task in tasks:
        store.tasks.end(task.key, TaskState.CANCELLED, "cancelled", None, AT)
    return ended(store.database.path)


def test_an_archive_has_the_views_and_so_have_tasks_that_come_back(
    store: TaskStore, archives: Archives, whole: dict[str, list[Row]]
) -> None:
    archives.archive(store.tasks.select(Selection()))
    (file,) = store.directory.archives.glob("*.db")
    assert ended(file) == whole
    assert both(store.database.path) == {view: [] for view in VIEWS}
    archives.unarchive(archives.select(Selection()))
    assert ended(store.database.path) == whole
    assert both(file) == {view: [] for view in VIEWS}


def test_a_backup_has_the_views_and_so_has_a_restored_store(
    store: TaskStore, archives: Archives, whole: dict[str, list[Row]]
) -> None:
    backup = store.back_up()
    assert ended(backup) == whole
    archives.delete(store.tasks.select(Selection()))
    restore(store, backup)
    assert ended(store.database.path) == whole


def test_a_repaired_store_has_the_views(
    store: TaskStore, whole: dict[str, list[Row]], state_dir: Path
) -> None:
    store.back_up()
    store.close()
    (state_dir / "tasks.db").write_bytes(b"garbage" * 1000)
    with closing(open_store(state_dir)) as repaired:
        assert "from the backup" in repaired.notice
    assert ended(state_dir / "tasks.db") == whole


def test_what_was_imported_is_shown(full: Path, tmp_path: Path) -> None:
    exported = tmp_path / "all.jsonl"
    command(full, "export", "--all", "--output", exported)
    other = of_same_user(full, tmp_path / "other")
    command(other, "import", exported)
    was, now = ended(full / "tasks.db"), ended(other / "tasks.db")
    assert now["task_list"] == was["task_list"]
    assert said(now) == said(was)


def said(views: dict[str, list[Row]]) -> list[list[Any]]:
    """The texts of a store, without the last lines within a long line, which an import counts."""
    names = ("id", "at", "kind", "text", "compression")
    return [[row[name] for name in names] for row in views["task_text_output"]]


def test_an_archive_of_an_earlier_version_gets_the_views_when_it_is_listed(state_dir: Path) -> None:
    with closing(open_store(state_dir)) as store:
        store.directory.archives.mkdir()
        archive = store.directory.archive("2026-11").store
    shutil.copy(SCHEMAS / "schema-7.db", archive)
    command(state_dir, "list", "--all", "--archived")
    assert "train" in {row["name"] for row in rows(archive, "task_list")}


@pytest.mark.parametrize("schema", sorted(file.stem for file in SCHEMAS.glob("*.db")))
def test_a_store_of_every_schema_gets_the_views(state_dir: Path, schema: str) -> None:
    state_dir.mkdir()
    shutil.copy(SCHEMAS / f"{schema}.db", state_dir / "tasks.db")
    with closing(open_store(state_dir)) as store:
        records = store.tasks.select(Selection())
        found = {row["id"]: row for row in rows(state_dir / "tasks.db", "task_list")}
        assert found.keys() == {task.id for task in records}
        for task in records:
            record = store.tasks.get(task.key)
            assert record is not None
            assert_says(found[task.id], record, store)
    printed = [
        row["text"]
        for row in rows(state_dir / "tasks.db", "task_text_output")
        if (row["name"], row["kind"]) == ("train", "stdout")
    ]
    assert "".join(printed) == "".join(f"epoch {n} loss={1 / (n + 1):.4f}\n" for n in range(5))


def test_a_view_that_a_person_has_made_before_stays(state_dir: Path) -> None:
    state_dir.mkdir()
    shutil.copy(SCHEMAS / "schema-7.db", state_dir / "tasks.db")
    with closing(sqlite3.connect(state_dir / "tasks.db")) as connection:
        connection.execute("CREATE VIEW task_list AS SELECT name FROM tasks")
    open_store(state_dir).close()
    found = both(state_dir / "tasks.db")
    assert {"name": "train"} in found["task_list"]
    assert found["task_text_output"]


def test_a_store_without_a_view_is_whole(store: TaskStore, tasks: list[TaskRecord]) -> None:
    store.database.execute("DROP VIEW task_list")
    backup = store.back_up()
    assert repair.is_whole(backup)
    for task in tasks:
        store.tasks.end(task.key, TaskState.CANCELLED, "cancelled", None, AT)
    assert restore(store, backup).tasks == len(tasks)


def findings(module: Any, file: Path, copy: Path) -> list[str]:
    """What a SQLite says of a copy with one page more, which belongs to nothing."""
    content = bytearray(file.read_bytes())
    pages = int.from_bytes(content[28:32], "big")
    content[28:32] = (pages + 1).to_bytes(4, "big")
    copy.write_bytes(content + bytes(int.from_bytes(content[16:18], "big")))
    with closing(module.connect(f"{copy.as_uri()}?immutable=1", uri=True)) as connection:
        return [str(text) for (text,) in connection.execute("PRAGMA integrity_check")]


@pytest.mark.parametrize("module", [sqlite3, database.sqlite3], ids=["own", "package's"])
def test_the_views_make_no_integrity_check_partial(
    state_dir: Path, tmp_path: Path, module: Any
) -> None:
    """Where a view is the first in SQLite's list, it says "ok" of pages that it has not seen.

    Another name of the view puts it elsewhere.
    """
    copy = tmp_path / "copy.db"
    for earlier in (None, *SCHEMAS.glob("*.db")):
        shutil.rmtree(state_dir, ignore_errors=True)
        state_dir.mkdir(mode=0o700)
        if earlier:
            shutil.copy(earlier, state_dir / "tasks.db")
        with closing(open_store(state_dir)) as store, closing(Archives(store)) as archives:
            task = add_task(store, begin_session(store))
            files = [store.back_up()]
            archives.archive([task])
            files += store.directory.archives.glob("*.db")
        for file in [*files, state_dir / "tasks.db"]:
            assert "never used" in findings(module, file, copy)[0], (earlier, file.name)
