"""What leaves a store comes into another as it was, once; and no file harms a store."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.records import (
    STREAM_KINDS,
    Options,
    OutputKind,
    Progress,
    ResultRecord,
    TaskRecord,
    TaskState,
)
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.history import exporting, importing
from ipytaskpersist.history.export_page import page
from ipytaskpersist.history.exporting import Export
from ipytaskpersist.history.importing import Report
from ipytaskpersist.output.recorder import Recorder
from ipytaskpersist.output.recording import Recording
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.processes import NewProcess
from ipytaskpersist.store.tasks import NewTask, Selection
from properties.model import Known, imported
from properties.profiles import tried
from properties.test_output_round_trips import Event, histories
from properties.texts import any_text
from properties.world import Templates, as_told, folder, observed

count = itertools.count()
words = st.text(max_size=12)
shown = any_text.map(lambda text: text[:200])


class Place:
    """A state directory with a manager of its own."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("IPYTASKPERSIST_DIR", str(root))
        patch.setenv("IPYTHONDIR", str(root / "ipython"))
        Templates.state_directory(root)
        self.root = root
        self.manager = BackgroundTasks(None, notebook=str(root / "a.ipynb"))
        self.store = self.manager.store.open()

    def export(self, form: Callable[[Export], Iterator[bytes]]) -> bytes:
        """All tasks, archived or not, as a file."""
        selection = Selection()
        tasks = [
            *self.manager.tasks.select_archived(selection),
            *self.store.tasks.select(selection),
        ]
        return b"".join(form(Export(self.manager.archives, self.manager.payloads, tasks)))

    def take(self, content: bytes) -> Report:
        """Import a file."""
        file = self.root / "import.jsonl"
        file.write_bytes(content)
        manager = self.manager
        return importing.import_file(file, self.store, manager.archives.all, manager.payloads)

    def is_whole(self) -> bool:
        return bool(self.store.database.row("PRAGMA integrity_check") == ("ok",)) and (
            self.store.database.rows("PRAGMA foreign_key_check") == []
        )


class Places:
    """The state directories of one example, and their end."""

    def __init__(self) -> None:
        self._cleanup = ExitStack()
        self._root = self._cleanup.enter_context(folder())
        self._patch = self._cleanup.enter_context(pytest.MonkeyPatch.context())

    def __enter__(self) -> Places:
        return self

    def __exit__(self, *_details: object) -> None:
        self._cleanup.close()

    def new(self) -> Place:
        place = Place(self._root / f"place-{next(count)}", self._patch)
        self._cleanup.callback(place.manager.close)
        return place


# Tasks of any kind.

ends = st.sampled_from(
    [
        (TaskState.COMPLETED, 0),
        (TaskState.FAILED, 1),
        (TaskState.FAILED, -9),
        (TaskState.FAILED, None),
        (TaskState.CANCELLED, None),
        (TaskState.CANCELLED, 130),
        (TaskState.INTERRUPTED, None),
        (TaskState.RUNNING, None),
        (TaskState.PENDING, None),
    ]
)
tasks = st.fixed_dictionaries(
    {
        "name": shown,
        "source": any_text,
        "tags": st.lists(st.sampled_from(["keep", "größer", "a/b", "日"]), max_size=2, unique=True),
        "cell_id": st.none() | words,
        "execution_count": st.none() | st.integers(0, 10**6),
        "is_call": st.booleans(),
        "max_output_bytes": st.none() | st.integers(1, 10**9),
        "provenance": st.dictionaries(
            st.sampled_from(["python", "host", "cwd", "x"]), words, max_size=2
        ),
        "end": ends,
        "reason": st.none() | shown,
        "events": histories,
        "progress": st.none()
        | st.builds(Progress, st.floats(0, 1e18), st.none() | st.floats(0, 1e18), words),
        "result": st.none() | st.integers() | st.text(max_size=9),
        "is_process": st.booleans(),
        "is_archived": st.booleans(),
        "is_cleared": st.booleans(),
    }
)
histories_of_tasks = st.lists(tasks, min_size=1, max_size=3)


def make(place: Place, described: list[dict[str, Any]]) -> None:
    """Run tasks as they are described."""
    store, number = place.store, next(count)
    session = store.sessions.begin(
        SessionIdentity(
            f"{number:08x}-e", "kernel", str(place.root / "a.ipynb"), True, f"kernel-{number}",
            ProcessIdentity.own(),
        )
    )  # fmt: skip
    recorder = Recorder(store, warn=pytest.fail, heartbeat=lambda: None, quiet_wait_s=0)
    recorder.start()
    try:
        for each in described:
            _make(place, recorder, session.id, session.notebook_key, each)
    finally:
        recorder.stop(60)
    if any(each["is_cleared"] for each in described):
        store.tasks.clear(session.notebook_key)


def _make(
    place: Place, recorder: Recorder, session: str, notebook: int, each: dict[str, Any]
) -> None:
    store, (state, code) = place.store, each["end"]
    process = NewProcess(
        ["sh", "-c", "true"], "/tmp", 5.0, Options(env={"A": "é"}, timeout_s=1.5), {"B": None},
        script=None if each["is_call"] else each["source"],
        script_as=None if each["is_call"] else "stdin",
    )  # fmt: skip
    names = ("name", "source", "tags", "cell_id", "execution_count", "is_call", "max_output_bytes")
    known = {name: each[name] for name in (*names, "provenance")}
    runner = "process" if each["is_process"] else "thread"
    new = NewTask(notebook, session, kind="python", runner=runner, **known)

    def complete(connection: Any, key: int, _id: str) -> None:
        if each["is_process"]:
            process.insert(connection, key)

    task = store.tasks.insert(new, complete)
    if state is TaskState.PENDING:
        return
    at = task.created_at.timestamp() + 1
    store.tasks.start(task.key, at)
    recording = Recording(recorder, task.key)
    _print(recording, recorder, each["events"])
    if each["progress"] is not None:
        recording.progress(each["progress"])
    assert recorder.change(recording.finish, 60)
    recorder.discard(recording)
    if state is TaskState.RUNNING:
        return
    if each["result"] is not None:
        store.results.save(task.key, _result(place, task, each["result"]))
    store.tasks.end(task.key, state, each["reason"], code, at + 1)
    found = store.tasks.get(task.key)
    assert found is not None
    if each["is_archived"]:
        place.manager.archives.archive([found])


def _print(recording: Recording, recorder: Recorder, events: list[Event]) -> None:
    for event in events:
        if event is None:
            assert recorder.change(lambda _store: None, 60)
        elif event[0] in STREAM_KINDS:
            recording.write(*event)
        else:
            recording.add(*event)


def _result(place: Place, task: TaskRecord, value: Any) -> ResultRecord:
    return place.manager.payloads.save(task.id, "", value, repr(value))


def known_of(place: Place) -> dict[str, Known]:
    """All that a store and its archives know."""
    found: dict[str, Known] = {}
    for store in (*place.manager.archives.all(), place.store):
        found.update(observed(store))
    return found


FORMS = st.sampled_from([Export.lines, Export.document])


@tried(15)
@given(described=histories_of_tasks, form=FORMS)
def test_what_is_exported_and_imported_is_what_it_was(
    described: list[dict[str, Any]], form: Any
) -> None:
    """A second import adds nothing, and a second export gives the same bytes."""
    with Places() as places:
        first = places.new()
        make(first, described)
        exported = first.export(form)
        known = known_of(first)
        second = places.new()
        report = second.take(exported)
        assert report.invalid == []
        assert sorted(report.ids) == sorted(known)
        assert known_of(second) == {key: imported(task) for key, task in known.items()}
        again = second.take(exported)
        assert (again.ids, again.skipped, again.invalid) == ([], len(known), [])
        # What was alive is not any more, so the second and the third are the same.
        once_more = second.export(form)
        third = places.new()
        assert third.take(once_more).invalid == []
        assert third.export(form) == once_more
        assert second.is_whole()


@tried(15)
@given(described=histories_of_tasks)
def test_an_exported_notebook_is_one_and_a_page_is_whole(described: list[dict[str, Any]]) -> None:
    with Places() as places:
        place = places.new()
        make(place, described)
        notebook = json.loads(place.export(Export.notebook))
        nbformat.validate(notebook)
        assert len(notebook["cells"]) == 2 * len(described)
        html = place.export(page).decode("utf-8", "strict")
        assert html.count("<html") == html.count("</html>") == 1


# Files that are not what they should be.


@pytest.fixture(scope="module")
def good_file() -> bytes:
    """The export of two tasks."""
    with Places() as places:
        place = places.new()
        each = {
            "name": "a", "source": "1", "tags": ["keep"], "cell_id": "c", "execution_count": 1,
            "is_call": False, "max_output_bytes": None, "provenance": {"host": "h"},
            "end": (TaskState.FAILED, 1), "reason": "why", "progress": Progress(1.0, 2.0, "x"),
            "events": [(OutputKind.STDOUT, "text\n"),
                       (OutputKind.DISPLAY_DATA, {"data": {"text/plain": "1"}, "metadata": {}})],
            "result": 1, "is_process": True, "is_archived": False, "is_cleared": False,
        }  # fmt: skip
        make(place, [each, {**each, "end": (TaskState.COMPLETED, 0), "is_process": False}])
        with pytest.MonkeyPatch.context() as patch:
            # So that these small tasks, too, go on in further lines.
            patch.setattr(exporting, "LINE_OUTPUT_BYTES", 4)
            return place.export(Export.lines)


@tried(30)
@given(at=st.integers(0, 10**6))
def test_a_file_that_was_cut_off_brings_only_whole_tasks(good_file: bytes, at: int) -> None:
    """The rest comes with the whole file, and nothing twice."""
    with Places() as places:
        whole, place = places.new(), places.new()
        assert whole.take(good_file).invalid == []
        known = observed(whole.store)
        part = good_file[: at % len(good_file.rstrip())]
        with suppress(InvalidRequest):
            assert place.take(part).invalid
        found = observed(place.store)
        assert found.items() <= known.items()
        assert place.take(good_file).skipped == len(found)
        assert observed(place.store) == known


changes = st.lists(
    st.tuples(
        st.sampled_from(["cut", "drop", "insert", "value", "swap"]),
        st.integers(0, 10**6),
        st.binary(max_size=4)
        | st.sampled_from([b"null", b"-1", b"1e999", b'"\\ud800"', b"[[", b"{}"]),
    ),
    min_size=1,
    max_size=3,
)


def changed(content: bytes, how: str, place: int, data: bytes) -> bytes:
    """A file that somebody has changed."""
    at = place % (len(content) + 1)
    if how == "cut":
        return content[:at]
    if how == "insert":
        return content[:at] + data + content[at:]
    if how == "swap":
        lines = content.splitlines(keepends=True)
        here, there = place % (len(lines) or 1), place // 7 % (len(lines) or 1)
        if lines:
            lines[here], lines[there] = lines[there], lines[here]
        return b"".join(lines)
    end = content.find(b",", at)
    if how == "drop" and end >= 0:
        return content[:at] + content[end + 1 :]
    start = content.find(b":", at)
    stop = content.find(b",", start)
    return content[: start + 1] + data + content[stop:] if 0 <= start < stop else content


@tried(40)
@given(how=changes)
def test_a_file_that_was_changed_brings_whole_tasks_or_says_why_not(
    good_file: bytes, how: list[tuple[str, int, bytes]]
) -> None:
    """When a task has ended, and why, is what the file says."""
    content = good_file
    for each in how:
        content = changed(content, *each)
    with Places() as places:
        place = places.new()
        try:
            report = place.take(content)
        except InvalidRequest:
            assert as_told(place.store) == {}
            return
        assert place.is_whole()
        found = as_told(place.store)
        assert sorted(found) == sorted(report.ids)
        assert all(not task.is_live and task.is_imported for task in found.values())
        # What came is whole: it can leave again, and come back.
        other = places.new()
        assert other.take(place.export(Export.lines)).invalid == []
        assert as_told(other.store) == found
        again = place.take(content)
        assert again.ids == []


@tried(30)
@given(st.binary(max_size=200) | any_text.map(lambda text: text.encode("utf-8", "replace")))
def test_a_file_that_is_none_is_refused(content: bytes) -> None:
    with Places() as places:
        place = places.new()
        with suppress(InvalidRequest):
            assert place.take(content).ids == []
        assert observed(place.store) == {}
