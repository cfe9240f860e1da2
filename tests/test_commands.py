"""Each verb does the same on each of its surfaces, and what is typed wrong is said in one line."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kernels import Cell, NotebookKernel, end_processes_of, until
from programs import environment, run_command

from ipytaskpersist import references
from ipytaskpersist.commands import every_verb
from ipytaskpersist.errors import AmbiguousReference, InvalidRequest, TaskNotFound
from ipytaskpersist.identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.paths import StateDirectory
from ipytaskpersist.records import TaskRecord
from ipytaskpersist.store import NewTask, Selection, TaskStore
from ipytaskpersist.store.transfer import remove_tasks

Document = dict[str, Any]
MakeKernel = Callable[..., NotebookKernel]

TASK_KEYS = {
    "id", "number", "name", "notebook", "session", "kind", "runner", "state", "reason", "exit_code",
    "created_at", "started_at", "ended_at", "elapsed_s", "last_line",
}  # fmt: skip
SESSION_KEYS = {
    "id", "notebook", "front_end", "host", "pid", "started_at", "heartbeat_at", "ended_at",
    "end_reason", "tasks",
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What a command gave, on whichever surface."""

    stdout: str
    stderr: str
    failed: bool
    status: int | None = None
    """The exit status, in a terminal."""
    cell: Cell | None = None

    @property
    def text(self) -> str:
        """Everything that a person would read."""
        return (self.cell.text if self.cell else self.stdout) + self.stderr

    def json(self) -> Any:
        assert not self.failed, self.stderr
        return json.loads(self.stdout)


class Notebook:
    """A kernel with the extension loaded, and the terminal beside it."""

    def __init__(self, kernel: NotebookKernel, state_dir: Path, path: Path) -> None:
        self.kernel = kernel
        self.state_dir = state_dir
        self.path = path

    def type(self, source: str) -> Answer:
        """Run a cell, which may fail."""
        cell = self.kernel.run(source, check=False)
        return Answer(cell.stream("stdout"), cell.stream("stderr"), bool(cell.error), cell=cell)

    def underscored(self, verb: str, *arguments: str) -> Answer:
        return self.type(f"%bg_{verb} {shlex.join(arguments)}")

    def spaced(self, verb: str, *arguments: str) -> Answer:
        return self.type(f"%bg {verb} {shlex.join(arguments)}")

    def in_terminal(self, verb: str, *arguments: str) -> Answer:
        ended = run_command(self.state_dir, verb, *arguments, notebook=self.path)
        return Answer(ended.stdout, ended.stderr, ended.returncode != 0, ended.returncode)

    def launch(self, source: str, name: str = "") -> Document:
        """Launch a task and return what `show` says of it."""
        self.kernel.run(f"%%background {shlex.quote(name) if name else ''}\n{source}")
        return self.show()

    def finish(self, source: str, name: str = "") -> Document:
        """Launch a task and return what `show` says of it after its end."""
        task = self.launch(source, name)
        return self.ended(task)

    def ended(self, task: Document) -> Document:
        return until(lambda: (now := self.show(task["id"]))["ended_at"] and now)

    def show(self, *reference: str) -> Document:
        return self.underscored("show", *reference, "--json").json()

    @contextmanager
    def running(self, name: str = "", before: str = "", after: str = "") -> Iterator[Document]:
        """A task that has done `before` and runs until the block is left, then does `after`."""
        gate, begun = (self.state_dir.parent / uuid.uuid4().hex for _ in range(2))
        task = self.launch(
            f"import pathlib, time\n{before}\npathlib.Path({str(begun)!r}).touch()\n"
            f"while not pathlib.Path({str(gate)!r}).exists():\n    time.sleep(0.01)\n{after}",
            name,
        )
        try:
            until(begun.exists)
            task["gate"] = gate
            yield task
        finally:
            gate.touch()
            self.ended(task)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    """One kernel for the tests that only need their own tasks."""
    folder = tmp_path_factory.mktemp("commands")
    path = folder / "shared.ipynb"
    try:
        with NotebookKernel(folder / "state", notebook=path) as kernel:
            kernel.run("%load_ext ipytaskpersist")
            yield Notebook(kernel, folder / "state", path)
    finally:
        end_processes_of(folder / "state")


@pytest.fixture
def make_notebook(make_kernel: MakeKernel, state_dir: Path) -> Callable[..., Notebook]:
    """Kernels for the tests that need one to themselves."""

    def make(name: str = "own.ipynb", **options: Any) -> Notebook:
        path = state_dir.parent / name
        return Notebook(make_kernel(notebook=path, **options), state_dir, path)

    return make


SURFACES = ("underscored", "spaced", "in_terminal")
Run = Callable[..., Answer]


@pytest.fixture(params=SURFACES)
def run(request: pytest.FixtureRequest, notebook: Notebook) -> Run:
    """Run a verb on each surface."""
    return getattr(notebook, request.param)


# Every verb on every surface.


def test_list_tells_number_name_state_and_last_line(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("print('first')\nprint('last words')", "listed")
    answer = run("list")
    (line,) = [
        line for line in answer.text.splitlines() if line.split()[:1] == [str(task["number"])]
    ]
    assert line.split()[1:] == ["listed", "✓", "completed", "0:00", "exit", "0", "last", "words"]
    assert not answer.failed


def test_list_gives_the_documented_json(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("print('out')\n1 / 0", "divides")
    document = run("list", "--json").json()
    assert document.keys() == {"tasks", "count"}
    assert document["count"] == len(document["tasks"])
    (listed,) = [each for each in document["tasks"] if each["id"] == task["id"]]
    assert listed.keys() >= TASK_KEYS
    expected = {
        "number": task["number"],
        "name": "divides",
        "notebook": str(notebook.path),
        "kind": "python",
        "runner": "thread",
        "state": "failed",
        "reason": "ZeroDivisionError: division by zero",
        "exit_code": 1,
        "last_line": "out",
    }
    assert {key: listed[key] for key in expected} == expected
    assert listed["id"] == f"{listed['session'][:8]}-{listed['number']}"


def test_output_separates_the_streams_and_shows_results(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7")
    answer = run("output", task["id"])
    assert answer.stderr == "err\n"
    assert "out\n" in answer.stdout
    assert "42" in answer.text
    assert not answer.failed


def test_show_tells_the_facts_the_history_and_the_source(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("print('1234')\n'a value'", "shown")
    answer = run("show", "shown")
    for fact in (
        task["id"], "completed", "shown", "1 line, 5 bytes", "'a value'", "pending", "running",
        "print('1234')",
    ):  # fmt: skip
        assert fact in answer.stdout
    document = run("show", "shown", "--json").json()
    assert document["streams"]["stdout"] == {"bytes": 5, "lines": 1}
    assert document["result"]["text"] == "'a value'"
    states = [event["state"] for event in document["history"]]
    assert states == ["pending", "running", "completed"]


def test_wait_returns_when_the_tasks_have_ended(notebook: Notebook, run: Run) -> None:
    tasks = [notebook.launch("import time\ntime.sleep(0.2)"), notebook.launch("1")]
    answer = run("wait", *(task["id"] for task in tasks))
    assert [notebook.show(task["id"])["state"] for task in tasks] == ["completed", "completed"]
    assert not answer.failed
    assert answer.text.count("completed") == 2


def test_cancel_ends_a_running_task(notebook: Notebook, run: Run) -> None:
    with notebook.running("cancelled") as task:
        answer = run("cancel", "cancelled")
        ended = notebook.ended(task)
    assert (ended["state"], ended["reason"], ended["exit_code"]) == ("cancelled", "cancelled", None)
    assert answer.stdout == f"task {task['number']} (cancelled): cancelled\n"


def test_cancel_says_that_a_task_had_ended(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("1")
    answer = run("cancel", task["id"])
    assert answer.stdout == f"task {task['number']} had ended: completed\n"
    assert notebook.show(task["id"])["state"] == "completed"


def test_cancelling_a_call_of_c_code_says_that_it_takes_effect_when_the_call_returns(
    notebook: Notebook, run: Run
) -> None:
    notebook.kernel.run("import os\nreading, writing = os.pipe()")
    task = notebook.launch("print('begun')\nos.read(reading, 1)\nprint('never')", "stuck")
    until(lambda: notebook.show("stuck")["last_line"] == "begun")
    answer = run("cancel", "stuck")
    assert not answer.failed
    assert f"task {task['number']} (stuck): cancellation requested; it runs on" in answer.stdout
    assert notebook.show("stuck")["state"] == "running"
    notebook.kernel.run("os.write(writing, b'x')")
    assert notebook.ended(task)["state"] == "cancelled"
    assert notebook.underscored("output", "stuck").text == "begun\n"


def test_result_gives_the_value(notebook: Notebook, run: Run) -> None:
    notebook.finish("{'answer': 42}", "valued")
    assert run("result", "valued").text.strip() == "{'answer': 42}"


def test_delete_removes_a_task_for_good(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("print('x' * 1000)\nlist(range(100))", "doomed")
    payloads = notebook.state_dir / "payloads" / task["id"]
    assert list(payloads.iterdir())
    answer = run("delete", "doomed", "--yes")
    assert answer.stdout == f"deleted {task['number']} (doomed)\n"
    assert run("show", task["id"]).failed
    assert not payloads.exists()


def test_sessions_tells_how_each_stands(notebook: Notebook, run: Run) -> None:
    notebook.finish("1")
    session = notebook.show()["session"]
    assert f"{session[:8]}  shared.ipynb" in run("sessions").text
    document = run("sessions", "--json").json()
    assert document.keys() == {"sessions", "count"}
    (known,) = document["sessions"]
    assert document["count"] == 1
    assert known.keys() >= SESSION_KEYS
    assert (known["id"], known["ended_at"]) == (session, None)
    assert known["pid"] == notebook.kernel.pid
    assert known["tasks"]["completed"] >= 1


@pytest.mark.parametrize("surface", SURFACES)
def test_clear_takes_ended_tasks_off_the_list_and_deletes_nothing(
    make_notebook: Callable[..., Notebook], surface: str
) -> None:
    own = make_notebook()
    task = own.finish("1", "over")
    run = getattr(own, surface)
    assert "took 1 off the list" in run("clear").stdout
    assert run("list", "--json").json() == {"tasks": [], "count": 0}
    assert run("list", "--json", "--cleared").json()["tasks"][0]["id"] == task["id"]
    assert run("show", "over", "--json").json()["id"] == task["id"]


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("verb", every_verb())
def test_every_verb_explains_itself_in_ipython(notebook: Notebook, verb: str, flag: str) -> None:
    for run in (notebook.underscored, notebook.spaced):
        answer = run(verb, flag)
        assert not answer.failed, answer.stderr
        assert f"Usage: %bg_{verb}" in answer.stdout or f"Usage: %bg {verb}" in answer.stdout
        summary = str(every_verb()[verb].help).split(".")[0]
        assert " ".join(summary.split()) in " ".join(answer.stdout.split())


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_the_command_line_lists_its_verbs(state_dir: Path, arguments: list[str]) -> None:
    answer = run_command(state_dir, *arguments)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert [verb for verb in every_verb() if f"\n  {verb} " not in answer.stdout] == []
    assert not state_dir.exists()


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_a_verb_explains_itself_in_a_terminal(state_dir: Path, flag: str) -> None:
    answer = run_command(state_dir, "output", flag)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("Usage: jupyter bg output ")
    assert "--follow" in answer.stdout


@pytest.mark.parametrize("magic", ["%bg_list", "%bg_output", "%bg", "%%background"])
def test_a_question_mark_shows_the_help_of_the_command(notebook: Notebook, magic: str) -> None:
    answer = notebook.type(
        f"get_ipython().run_line_magic('pinfo', {magic!r})\n"
        "for page in get_ipython().payload_manager.read_payload():\n"
        "    print(page['data']['text/plain'])"
    )
    assert f"Usage: {magic.replace('%%', '%')} " in answer.stdout
    assert "--help" in answer.stdout


# Naming a task.


def record(
    store: TaskStore, *names: str, path: str = "/a.ipynb", session: str = "a1b2c3d4-x"
) -> list[TaskRecord]:
    """Tasks of a session that is alive, as long as these tests are."""
    identity = SessionIdentity(session, "program", path, True, None, ProcessIdentity.own())
    begun = store.sessions.begin(identity)
    return [
        store.tasks.insert(NewTask(begun.notebook_key, begun.id, name, "python", "thread", "1"))
        for name in names
    ]


def found(store: TaskStore, task: TaskRecord, reference: str | int | None) -> int:
    return references.find(store, task.notebook_key, reference).number


def test_a_reference_is_a_number_a_name_an_id_or_counted_back(store: TaskStore) -> None:
    tasks = record(store, "build", "train", "", "train", "")
    for reference, number in {
        1: 1, "1": 1, " 3 ": 3, "build": 1, "train": 4, "a1b2c3d4-2": 2, None: 5, -1: 5, "-1": 5,
        "-2": 4, "-5": 1, "a1b2c3d4-": None,
    }.items():  # fmt: skip
        if number is not None:
            assert found(store, tasks[0], reference) == number, reference


@pytest.mark.parametrize(
    "reference", ["0", "6", "-6", "-0", "nope", "", "a1b2c3d4-6", "１", "1.0", "\udcff"]
)
def test_what_names_no_task_is_an_error_that_names_the_latest(
    store: TaskStore, reference: str
) -> None:
    tasks = record(store, "build", "train", "", "", "test")
    with pytest.raises(TaskNotFound, match=r"no task '.*' in this notebook; .* 5 test, 4, 3, 2 tr"):
        references.find(store, tasks[0].notebook_key, reference)


def test_bytes_that_are_no_text_name_no_tag_and_no_session(store: TaskStore) -> None:
    """A terminal hands them over as halves of surrogate pairs, which no store has."""
    record(store, "build")
    assert store.tasks.select(Selection(tags=["\udcff"], session_prefix="\udcff")) == []
    with pytest.raises(InvalidRequest, match="no session"):
        references.find_session(store, "\udcff")
    assert store.sessions.beginning("\udcff", 5) == []


@pytest.mark.parametrize("prefix", ["b", "b1b2", "b1b2c3d4", "b1b2c3d4-"])
def test_the_beginning_of_an_id_is_enough_where_it_is_unique(store: TaskStore, prefix: str) -> None:
    record(store, "", "")
    (wanted,) = record(store, "", session="b1b2c3d4-x")
    assert found(store, wanted, prefix) == 3


def test_the_beginning_of_an_id_may_be_digits_where_no_number_is_in_its_way(
    store: TaskStore,
) -> None:
    """Of 44 sessions one has an id that begins with eight digits."""
    (wanted,) = record(store, "", session="12345678-x")
    assert found(store, wanted, "12345678") == 1


def test_an_ambiguous_beginning_is_an_error_that_names_the_candidates(store: TaskStore) -> None:
    tasks = record(store, "", "")
    with pytest.raises(AmbiguousReference, match=r"a1b2c3d4-1, a1b2c3d4-2.*type more of it"):
        references.find(store, tasks[0].notebook_key, "a1b2")


def test_an_ambiguous_beginning_is_one_line(notebook: Notebook, run: Run) -> None:
    ids = [notebook.finish(source)["id"] for source in ("1", "2")]
    answer = run("output", ids[0].partition("-")[0] + "-")
    assert answer.failed
    assert ids[1] in answer.stderr
    assert "type more of it" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_number_goes_before_a_name_and_a_name_before_an_id(store: TaskStore) -> None:
    tasks = record(store, "", "1", "a1b2", "7")
    assert found(store, tasks[0], "1") == 1
    assert found(store, tasks[0], "7") == 4
    assert found(store, tasks[0], "a1b2") == 3


def test_only_a_full_id_reaches_another_notebook(store: TaskStore) -> None:
    (mine,) = record(store, "mine")
    theirs = record(store, "first", "theirs", path="/b.ipynb", session="b1b2c3d4-x")[1]
    for reference in ("2", "theirs", "-2", "b1b2c3d4", "b1b2c3d4-"):
        with pytest.raises(TaskNotFound):
            references.find(store, mine.notebook_key, reference)
    assert references.find(store, mine.notebook_key, theirs.id) == theirs
    assert references.find(store, None, theirs.id) == theirs


def test_the_error_in_an_empty_notebook_says_how_to_begin(state_dir: Path) -> None:
    with pytest.raises(TaskNotFound, match=r"put %%background above a cell"):
        references.find(TaskStore(StateDirectory(state_dir)), None, None)


def test_references_are_typed_alike_everywhere(notebook: Notebook, run: Run) -> None:
    older = notebook.finish("1", "older one")
    newer = notebook.finish("2", "newer")
    for reference, task in (
        (["older one"], older), (["newer"], newer), ([], newer), (["-1"], newer), (["-2"], older),
        ([str(older["number"])], older), ([newer["id"]], newer),
    ):  # fmt: skip
        assert run("show", *reference, "--json").json()["id"] == task["id"], reference


def test_what_is_counted_back_may_stand_after_the_end_of_the_options(notebook: Notebook) -> None:
    task = notebook.finish("1")
    answer = notebook.type("%bg_show --json -- -1")
    assert answer.json()["id"] == task["id"]


def test_the_latest_of_several_tasks_with_one_name_is_meant(notebook: Notebook) -> None:
    for number in (1, 2, 3):
        notebook.finish(f"print('run {number}')", "same")
    assert notebook.underscored("output", "same").stdout == "run 3\n"


def test_a_name_may_be_any_text(notebook: Notebook, run: Run) -> None:
    for name in ("Größe 日本 🚀", "two words", "100%", "$HOME {x}", "a/b\\c"):
        notebook.kernel.run(f"name = {name!r}")
        task = notebook.launch("1", name)
        assert task["name"] == name
        assert run("show", name, "--json").json()["id"] == task["id"]


# Other notebooks.


@pytest.fixture
def elsewhere(notebook: Notebook) -> Iterator[TaskRecord]:
    """A live task of another notebook, with a name and a number that this one does not have."""
    with closing(TaskStore(StateDirectory(notebook.state_dir)).open()) as store:
        session = uuid.uuid4().hex
        (first,) = record(store, "first", path=f"/{session}.ipynb", session=session)
        store.database.execute(
            "UPDATE notebooks SET last_number = 9000 WHERE key = ?", (first.notebook_key,)
        )
        (task,) = record(store, "elsewhere", path=f"/{session}.ipynb", session=session)
        yield task
        for each in (first, task):
            remove_tasks(store.database, [each.id])


def test_another_notebooks_task_is_listed_and_found_only_on_purpose(
    notebook: Notebook, elsewhere: TaskRecord, run: Run
) -> None:
    def listed(*options: str) -> bool:
        tasks = run("list", "--json", *options).json()["tasks"]
        return elsewhere.id in [task["id"] for task in tasks]

    assert not listed()
    assert listed("--all")
    for reference in (str(elsewhere.number), elsewhere.name, elsewhere.id[:-1]):
        assert run("show", reference).failed
    assert run("show", elsewhere.id, "--json").json()["id"] == elsewhere.id


def test_another_notebooks_task_is_cancelled_only_on_purpose(
    notebook: Notebook, elsewhere: TaskRecord, run: Run
) -> None:
    refused = run("cancel", elsewhere.id)
    assert refused.failed
    assert f"nothing was changed: {elsewhere.id} belongs to another notebook" in refused.stderr
    assert "--yes" in refused.stderr
    with closing(TaskStore(StateDirectory(notebook.state_dir)).open()) as store:
        untouched = store.tasks.get(elsewhere.key)
        assert untouched == elsewhere
        assert not run("cancel", elsewhere.id, "--yes").failed
        asked = store.tasks.get(elsewhere.key)
        assert asked is not None
        assert asked.cancel_requested_at is not None


def test_cancel_all_leaves_other_notebooks_alone(
    make_notebook: Callable[..., Notebook], store: TaskStore
) -> None:
    (theirs,) = record(store, "theirs")
    own = make_notebook()
    with own.running("one") as one, own.running("two") as two:
        answer = own.underscored("cancel", "--all")
        assert answer.stdout.count(": cancelled\n") == 2
        assert {own.ended(task)["state"] for task in (one, two)} == {"cancelled"}
    assert store.tasks.get(theirs.key) == theirs


def test_delete_needs_a_yes(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("1", "kept")
    refused = run("delete", "kept")
    assert refused.failed
    assert f"add --yes to delete {task['number']} (kept) for good" in refused.stderr
    assert run("show", task["id"], "--json").json()["id"] == task["id"]


# Lists.


def test_a_list_is_narrowed_by_state_session_and_number(notebook: Notebook) -> None:
    good, bad = notebook.finish("1"), notebook.finish("1 / 0")

    def numbers(*options: str) -> list[int]:
        tasks = notebook.underscored("list", "--json", *options).json()["tasks"]
        return [task["number"] for task in tasks]

    assert numbers()[-2:] == [good["number"], bad["number"]]
    assert numbers("--limit", "1") == [bad["number"]]
    assert numbers("--state", "failed", "--limit", "1") == [bad["number"]]
    assert numbers("--state", "completed")[-1] == good["number"]
    either = numbers("--state", "completed", "--state", "failed")
    assert either[-2:] == [good["number"], bad["number"]]
    assert numbers("--session", good["session"][:8]) == numbers("--cleared")


def test_times_in_json_are_iso_8601_in_utc_and_durations_are_numbers(notebook: Notebook) -> None:
    task = notebook.finish("import time\ntime.sleep(0.2)")
    created, started, ended = (
        datetime.fromisoformat(task[key]) for key in ("created_at", "started_at", "ended_at")
    )
    assert {at.utcoffset() for at in (created, started, ended)} == {timedelta(0)}
    assert created <= started <= ended <= datetime.now(UTC)
    assert task["elapsed_s"] == pytest.approx((ended - started).total_seconds())
    assert 0.2 <= task["elapsed_s"] < 30
    with notebook.running() as live:
        assert (live["ended_at"], live["exit_code"], live["reason"]) == (None, None, None)
        assert isinstance(notebook.show()["elapsed_s"], float)


def test_a_table_shows_the_newest_and_says_what_it_leaves_out(
    store: TaskStore, state_dir: Path
) -> None:
    record(store, *(f"task-{number}" for number in range(1, 36)))
    short, long = (
        run_command(state_dir, "list", *options, notebook="/a.ipynb").stdout
        for options in ([], ["--limit", "40"])
    )
    assert "5 earlier tasks are not shown; --limit N shows more" in short
    assert "task-6 " in short
    assert "task-5 " not in short
    assert "task-5 " in long
    assert "not shown" not in long


def test_an_empty_list_says_so(state_dir: Path) -> None:
    answer = run_command(state_dir, "list")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "no background tasks\n", "")
    assert not state_dir.exists()


def test_a_tables_lines_are_not_broken_by_what_tasks_print(notebook: Notebook, run: Run) -> None:
    task = notebook.finish("print('a\\tb\\x1b[31mred\\x1b[0m \\x07\\x9b31m' + 'x' * 500)", "wild")
    begins = [str(task["number"]), "wild"]
    lines = [line for line in run("list").text.splitlines() if line.split()[:2] == begins]
    assert len(lines) == 1
    card = run("wait", "wild").text
    assert not set(lines[0] + card) & {"\x1b", "\x07", "\x9b", "\t"}


# Waiting.


def test_wait_gives_up_after_its_timeout(notebook: Notebook) -> None:
    with notebook.running("slow") as task:
        in_notebook = notebook.underscored("wait", "slow", "--timeout", "0.1")
        checked = notebook.underscored("wait", "slow", "--timeout", "0.1", "--check")
        in_terminal = notebook.in_terminal("wait", "slow", "--timeout", "0.1")
    assert not in_notebook.failed
    assert "running" in in_notebook.text
    message = f"still running after 0.1 s: {task['number']} (slow)"
    assert checked.stderr == f"UsageError: {message}\n"
    assert in_terminal.status == 1
    assert in_terminal.stderr.splitlines()[-1] == f"jupyter bg: {message}"


@pytest.mark.parametrize(
    ("source", "status"),
    [("1", 0), ("raise SystemExit(3)", 3), ("1 / 0", 1), ("raise SystemExit('no')", 1)],
)
def test_wait_in_a_terminal_has_the_exit_status_of_the_task(
    notebook: Notebook, source: str, status: int
) -> None:
    task = notebook.launch(source)
    assert notebook.in_terminal("wait", task["id"]).status == status


def test_wait_in_a_terminal_fails_for_a_cancelled_task(notebook: Notebook) -> None:
    with notebook.running() as task:
        notebook.underscored("cancel", task["id"])
        assert notebook.in_terminal("wait", task["id"]).status == 1


def test_wait_makes_a_failed_task_an_error_only_with_check(notebook: Notebook) -> None:
    task = notebook.launch("1 / 0", "wrong")
    assert not notebook.underscored("wait", "wrong").failed
    checked = notebook.underscored("wait", "--check", "wrong")
    assert checked.stderr.startswith(
        f"UsageError: task {task['number']} (wrong) failed (ZeroDivisionError: division by zero); "
    )
    assert checked.stderr.count("\n") == 1
    good = notebook.finish("1")
    assert not notebook.underscored("wait", "--check", good["id"]).failed


def test_wait_takes_several_tasks_and_check_reports_the_one_that_failed(
    notebook: Notebook,
) -> None:
    tasks = [notebook.launch(source) for source in ("1", "1 / 0", "2")]
    checked = notebook.underscored("wait", "--check", *(task["id"] for task in tasks))
    assert f"task {tasks[1]['number']} failed" in checked.stderr


def test_the_stop_button_ends_the_waiting_and_not_the_task(notebook: Notebook) -> None:
    with notebook.running("patient") as task:
        waiting = notebook.kernel.start("%bg_wait patient")
        notebook.kernel.take_until(lambda: "running" in waiting.text, 30, "the card")
        notebook.kernel.interrupt()
        waiting.wait(check=False)
        assert f"no longer waiting; {task['number']} (patient) runs on" in waiting.text
        assert notebook.show("patient")["state"] == "running"
    assert notebook.ended(task)["state"] == "completed"


@pytest.mark.parametrize("command", ["wait", "output --follow"])
def test_who_waits_in_a_terminal_notices_that_the_kernel_has_died(
    make_notebook: Callable[..., Notebook], command: str
) -> None:
    own = make_notebook()
    task = own.launch("print('begun')\nimport time\nwhile True: time.sleep(0.01)")
    until(lambda: own.show()["last_line"] == "begun")
    arguments = [sys.executable, "-m", "ipytaskpersist", *command.split(), task["id"]]
    with subprocess.Popen(
        arguments, env=environment(own.state_dir), stdout=subprocess.PIPE, text=True
    ) as waiting:
        try:
            if "--follow" in command:
                assert waiting.stdout is not None
                assert waiting.stdout.readline() == "begun\n"
            own.kernel.kill()
            assert waiting.wait(30) == (1 if command == "wait" else 0)
        finally:
            waiting.kill()
    ended = own.in_terminal("show", task["id"], "--json").json()
    assert (ended["state"], ended["reason"]) == ("interrupted", "kernel died")


# Outputs.

MIXED = """
import sys
print('one')
print('two')
print('oops', file=sys.stderr)
from IPython.display import HTML, display
display(HTML('<b>bold</b>'))
print('three')
'the value'
"""


def kinds(outputs: Sequence[Document]) -> list[str]:
    return [output.get("name") or output["output_type"] for output in outputs]


def test_output_in_a_notebook_is_what_the_cell_itself_would_have_given(notebook: Notebook) -> None:
    plain = notebook.type(MIXED)
    notebook.finish(MIXED, "mixed")
    replayed = notebook.underscored("output", "mixed")
    assert replayed.cell is not None
    assert plain.cell is not None
    assert kinds(replayed.cell.outputs) == [
        "stdout", "stderr", "display_data", "stdout", "execute_result",
    ]  # fmt: skip
    for expected, given in zip(plain.cell.outputs[-3:], replayed.cell.outputs[-3:], strict=True):
        assert given.get("data", given.get("text")) == expected.get("data", expected.get("text"))


def test_output_gives_nbformat_outputs_as_json(notebook: Notebook, run: Run) -> None:
    notebook.finish(MIXED, "mixed")
    document = run("output", "mixed", "--json").json()
    assert kinds(document) == ["stdout", "stderr", "display_data", "stdout", "execute_result"]
    assert document[0] == {"output_type": "stream", "name": "stdout", "text": "one\ntwo\n"}
    assert document[2]["data"]["text/html"] == "<b>bold</b>"
    assert document[-1]["data"] == {"text/plain": "'the value'"}


@pytest.mark.parametrize(
    ("options", "stdout", "stderr"),
    [
        (["--stdout"], "one\ntwo\nthree\n", ""),
        (["--stderr"], "", "oops\n"),
        (["--stdout", "--stderr"], "one\ntwo\nthree\n", "oops\n"),
        (["--head", "1"], "one\n", ""),
        (["--head", "3"], "one\ntwo\n", "oops\n"),
        (["--stdout", "--head", "2"], "one\ntwo\n", ""),
        (["--stdout", "--tail", "2"], "two\nthree\n", ""),
        (["--tail", "0"], "", ""),
        (["--head", "0"], "", ""),
        (["--raw", "--stdout"], "one\ntwo\nthree\n", ""),
        (["--raw", "--stdout", "--tail", "1"], "three\n", ""),
        (["--raw", "--stdout", "--head", "1"], "one\n", ""),
    ],
)
def test_output_is_narrowed_by_stream_and_by_line(
    notebook: Notebook, options: list[str], stdout: str, stderr: str
) -> None:
    notebook.finish(MIXED, "mixed")
    answer = notebook.underscored("output", "mixed", *options)
    assert not answer.failed, answer.stderr
    assert (answer.stdout, answer.stderr) == (stdout, stderr)


LINES = "print(*range(1, 6), sep='\\n')\n"
CLEARED = "from IPython.display import clear_output\nprint('gone\\n' * 3)\nclear_output()\n" + LINES
UPDATED = f"handle = display('old', display_id=True)\n{LINES}for n in range(9): handle.update(n)\n"


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        (CLEARED, ["--head", "2"], "1\n2\n"),
        (CLEARED, ["--tail", "2"], "4\n5\n"),
        (CLEARED, ["--tail", "9"], "1\n2\n3\n4\n5\n"),
        (UPDATED, ["--head", "1"], "8\n"),
        (UPDATED, ["--head", "2"], "8\n1\n"),
        (UPDATED, ["--tail", "1"], "5\n"),
        (UPDATED, ["--tail", "9"], "8\n1\n2\n3\n4\n5\n"),
    ],
)
def test_lines_are_counted_in_what_is_shown(
    notebook: Notebook, source: str, options: list[str], expected: str
) -> None:
    """Not in what was cleared or updated since: ten updates of a progress bar are one display."""
    task = notebook.finish(source)
    answer = notebook.underscored("output", task["id"], "--json", *options)
    texts = [
        output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"] + "\n"
        for output in answer.json()
    ]
    assert "".join(texts) == expected


BYTES = "import sys, os\nos.system(r\"printf 'a\\000b\\377\\303\\251\\n'\")\nprint('é')"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no printf")
def test_output_gives_the_very_bytes_raw_and_saved(notebook: Notebook) -> None:
    task = notebook.finish(BYTES)
    expected = b"a\0b\xff\xc3\xa9\n\xc3\xa9\n"
    raw = subprocess.run(
        [sys.executable, "-m", "ipytaskpersist", "output", "--raw", task["id"]],
        env=environment(notebook.state_dir), capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert raw.stdout == expected
    saved = notebook.state_dir.parent / f"{task['id']}.txt"
    answer = notebook.underscored("output", task["id"], "--save", str(saved))
    assert answer.stdout == f"task {task['number']}: 10 bytes written to {saved}\n"
    assert saved.read_bytes() == expected


def test_output_that_cannot_be_saved_is_one_line(notebook: Notebook) -> None:
    notebook.finish("print(1)")
    answer = notebook.underscored("output", "--save", "/no/such/file")
    assert answer.stderr == "UsageError: cannot write /no/such/file: No such file or directory\n"


def test_output_follows_a_task_to_its_end_in_a_notebook(notebook: Notebook) -> None:
    with notebook.running(before="print('before')", after="print('after')") as task:
        following = notebook.kernel.start(f"%bg_output --follow {task['id']}")
        notebook.kernel.take_until(lambda: "before\n" in following.text, 30, "the first line")
        assert not following.done
        task["gate"].touch()
        assert following.wait().text == "before\nafter\n"


def test_output_follows_a_task_to_its_end_in_a_terminal(notebook: Notebook) -> None:
    with notebook.running(before="print('before')", after="print('after')") as task:
        arguments = [sys.executable, "-m", "ipytaskpersist", "output", "--follow", task["id"]]
        with subprocess.Popen(
            arguments, env=environment(notebook.state_dir), stdout=subprocess.PIPE, text=True
        ) as following:
            try:
                assert following.stdout is not None
                assert following.stdout.readline() == "before\n"
                assert following.poll() is None
                task["gate"].touch()
                assert following.stdout.read() == "after\n"
                assert following.wait(30) == 0
            finally:
                following.kill()


def test_the_stop_button_ends_the_following_and_not_the_task(notebook: Notebook) -> None:
    with notebook.running(before="print('before')") as task:
        following = notebook.kernel.start(f"%bg_output --follow {task['id']}")
        notebook.kernel.take_until(lambda: "before\n" in following.text, 30, "the first line")
        notebook.kernel.interrupt()
        following.wait(check=False)
        assert f"no longer following; task {task['number']} runs on" in following.stream("stderr")
        assert notebook.show(task["id"])["state"] == "running"


def test_following_shows_updates_and_clearing_as_they_happen(notebook: Notebook) -> None:
    task = notebook.finish(
        "from IPython.display import clear_output\nprint('gone')\nclear_output()\n"
        "handle = display('old', display_id=True)\nhandle.update('new')\nprint('end')"
    )
    following = notebook.underscored("output", "--follow", task["id"])
    assert following.text == "'new'end\n"


def test_following_does_not_split_a_character(notebook: Notebook) -> None:
    """A stream is kept in pieces of 256 KiB, whose edge may be in the middle of a character."""
    task = notebook.finish("print('x' + 'é' * 400_000)")
    answer = notebook.underscored("output", "--follow", task["id"])
    assert answer.stdout == "x" + "é" * 400_000 + "\n"


# What a task shows.


def test_a_card_is_updated_in_place_to_the_end_of_its_task(notebook: Notebook) -> None:
    with notebook.running("carded", after="print('the end')") as task:
        number = task["number"]
    cell = notebook.kernel.start("%%background quick\n1")
    cell.wait()
    notebook.kernel.take_until(lambda: "completed" in cell.text, 30, "the end on the card")
    (card,) = cell.outputs
    assert "quick" in card.data["text/html"]
    assert f"{number + 1} (quick)" in card.data["text/plain"]
    assert "exit 0" in card.data["text/html"]


WILD = "<script>alert('x')</script>"


def test_nothing_that_a_task_is_called_or_says_becomes_html(
    make_notebook: Callable[..., Notebook],
) -> None:
    own = make_notebook("<i>notebook.ipynb")
    with own.running(WILD, before=f"print({WILD!r})"):
        shown = [own.type("%bg_wait --timeout 0.05"), own.type("%bg_list")]
    own.finish(f"print('<u>said</u>')\nraise ValueError({WILD!r})", WILD)
    launched = own.type(f"%%background {shlex.quote(WILD)}\n1")
    shown += [launched, own.type("%bg_wait"), own.type("%bg_wait -2")]
    shown += [own.type("%bg_list"), own.type("%bg_list --all")]
    for answer in shown:
        assert answer.cell is not None
        html = "".join(output.data["text/html"] for output in answer.cell.outputs)
        assert "&lt;script&gt;" in html
        for tag in ("<script", "<u>", "<i>"):
            assert tag not in html


def test_the_text_of_a_failed_task_names_the_error_and_the_next_step(notebook: Notebook) -> None:
    task = notebook.finish("undefined_name", "typo")
    assert (task["state"], task["exit_code"]) == ("failed", 1)
    assert task["reason"] == "NameError: name 'undefined_name' is not defined"
    answer = notebook.underscored("result", "typo")
    assert answer.stderr == (
        f"UsageError: task {task['number']} (typo) failed (NameError: name 'undefined_name' is not "
        f"defined); %bg_output {task['number']} shows the rest\n"
    )


@pytest.mark.parametrize(
    ("source", "reason", "exit_code"),
    [
        ("raise ValueError", "ValueError", 1),
        ("raise ValueError('a\\nb')", "ValueError: a", 1),
        ("raise ValueError('\\udc80')", "ValueError: ", 1),
        ("raise SystemExit(2**70)", "exit status 255", 255),
        ("raise SystemExit(True)", "exit status 1", 1),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", 1),
        ("raise GeneratorExit", "GeneratorExit", 1),
        ("%time raise ValueError", "ValueError", 1),
    ],
)
def test_whatever_a_cell_raises_its_task_has_failed_and_says_why(
    notebook: Notebook, source: str, reason: str, exit_code: int
) -> None:
    task = notebook.finish(source)
    assert (task["state"], task["exit_code"]) == ("failed", exit_code)
    assert task["reason"].startswith(reason)
    assert "\n" not in task["reason"]
    assert notebook.finish("1")["state"] == "completed"


def test_what_utf_8_cannot_hold_can_be_shown(notebook: Notebook, run: Run) -> None:
    """A lone half of a surrogate pair, as file names and broken texts have them."""
    task = notebook.finish(
        "display({'text/plain': '\\ud800'}, raw=True)\nprint('\\ud800')\n"
        "class Broken:\n    def __repr__(self): return '\\udfff'\nBroken()"
    )
    assert task["state"] == "completed"
    for options in ([], ["--json"]):
        answer = run("output", task["id"], *options)
        assert not answer.failed, answer.stderr
        assert answer.stderr == ""
        assert "\\ud800" in answer.text


# Results and restarts.


def test_everything_is_there_after_a_restart(make_notebook: Callable[..., Notebook]) -> None:
    own = make_notebook()
    done = own.finish("print('printed')\n[1, 'two', {3.0}]", "done")
    live = own.launch("print('begun')\nimport time\nwhile True: time.sleep(0.01)", "live")
    until(lambda: own.show("live")["last_line"] == "begun")
    own.kernel.restart()
    greeting = own.type("%load_ext ipytaskpersist")
    assert greeting.stdout == (
        "While you were away: 1 task was interrupted.\n"
        "  ◐ interrupted 2 (live) · kernel restarted   %bg_resume 2\n"
    )
    for before in (done, live):
        assert own.show(before["name"])["id"] == before["id"]
    assert own.underscored("output", "done", "--stdout").stdout == "printed\n"
    assert own.underscored("output", "live").stdout == "begun\n"
    assert own.underscored("result", "done").text == "[1, 'two', {3.0}]"
    interrupted = own.show("live")
    assert interrupted["state"] == "interrupted"
    assert interrupted["reason"] == "kernel restarted"
    assert interrupted["exit_code"] is None
    assert own.launch("1")["number"] == 3
    sessions = own.underscored("sessions", "--json").json()["sessions"]
    assert [each["end_reason"] for each in sessions] == [None, "kernel restarted"]


def test_a_value_that_cannot_be_kept_leaves_its_text(
    make_notebook: Callable[..., Notebook],
) -> None:
    own = make_notebook()
    own.finish("import threading\nclass Guard:\n    lock = 1\n(x for x in 'abc')", "lazy")
    assert "generator object" in own.underscored("result", "lazy").text
    own.kernel.restart()
    own.type("%load_ext ipytaskpersist")
    answer = own.underscored("result", "lazy")
    assert answer.failed
    assert answer.stderr.startswith(
        "UsageError: the value of task 1 (lazy) could not be kept (TypeError: cannot pickle"
    )
    assert "its text form: <generator object" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_long_text_form_does_not_make_an_error_of_many_lines(
    make_notebook: Callable[..., Notebook],
) -> None:
    own = make_notebook()
    own.finish("gen = (x for x in 'abc')\n[gen] + ['x' * 50] * 500", "long")
    own.kernel.restart()
    own.type("%load_ext ipytaskpersist")
    answer = own.underscored("result", "long")
    assert answer.failed
    assert answer.stderr.count("\n") == 1


def test_a_task_without_a_value_has_the_result_none(notebook: Notebook, run: Run) -> None:
    notebook.finish("x = 1", "valueless")
    answer = run("result", "valueless")
    assert (answer.text, answer.failed) == ("", False)


def test_result_of_a_running_task_says_what_to_wait_for(notebook: Notebook, run: Run) -> None:
    with notebook.running("busy") as task:
        answer = run("result", "busy")
    assert answer.failed
    assert f"task {task['number']} (busy) is running, so it has no result yet" in answer.stderr
    assert "waits for it" in answer.stderr


def test_a_result_is_the_value_of_the_cell_that_asks_for_it(notebook: Notebook) -> None:
    notebook.finish("shared = [1]\nshared", "object")
    answer = notebook.type("value = %bg_result object\nprint(value is shared)")
    assert answer.stdout == "True\n"


# Clearing and deleting.


def test_clear_cancels_what_this_session_runs(make_notebook: Callable[..., Notebook]) -> None:
    own = make_notebook()
    own.finish("1")
    with own.running("live") as live:
        answer = own.underscored("clear")
        assert answer.stdout.startswith("cancelled 1, took 2 off the list")
        assert own.show(live["id"])["state"] == "cancelled"
    assert own.underscored("list", "--json").json()["count"] == 0


def test_a_live_task_is_not_deleted(notebook: Notebook, run: Run) -> None:
    with notebook.running("alive") as task:
        answer = run("delete", "alive", "--yes")
        assert answer.failed
        assert f"task {task['number']} (alive) is running; cancel it first: " in answer.stderr
        assert notebook.show("alive")["state"] == "running"


def test_delete_deletes_all_or_none(notebook: Notebook) -> None:
    task = notebook.finish("1")
    with notebook.running() as live:
        assert notebook.underscored("delete", task["id"], live["id"], "--yes").failed
    assert notebook.show(task["id"])["id"] == task["id"]
    assert notebook.underscored("delete", task["id"], "no such", "--yes").failed
    assert notebook.show(task["id"])["id"] == task["id"]


def test_the_number_of_a_deleted_task_is_not_used_again(notebook: Notebook) -> None:
    task = notebook.finish("1")
    notebook.underscored("delete", str(task["number"]), "--yes")
    assert notebook.launch("1")["number"] == task["number"] + 1


# What is typed wrong.


@pytest.mark.parametrize(
    ("typed", "next_step"),
    [
        ("%%background\n   \n", "write the code to run in the background below %%background"),
        ("%%background\n# only a remark", None),
        ("%background", "write the code"),
        ("%%background --wrongly\n1", "%%background --help"),
        ("%%background it's\n1", "quotation"),
        ("%bg_list --nope", "%bg_list --help"),
        ("%bg_list --sate failed", "--state"),
        ("%bg_list --state lost", "interrupted"),
        ("%bg_list --limit 0", "1"),
        ("%bg_list --limit many", "integer"),
        ("%bg_list --limit -5", "1"),
        ("%bg_list --session nope", "the most recent are"),
        ("%bg_list unexpected", "%bg_list --help"),
        ("%bg lst", "did you mean 'list'?"),
        ("%bg frobnicate", "there are archive, backup"),
        ("%bg_output nope", "in this notebook"),
        ("%bg_output 1 2", "%bg_output --help"),
        ("%bg_output --head 1 --tail 1", "give one of them"),
        ("%bg_output --tail -1", "0"),
        ("%bg_output --follow --save x", "one of them"),
        ("%bg_output 99999", "in this notebook"),
        ("%bg_wait --timeout soon", "float"),
        ("%bg_wait nope", "in this notebook"),
        ("%bg_cancel nope", "in this notebook"),
        ("%bg_result nope", "in this notebook"),
        ("%bg_delete", "%bg_delete 3"),
        ("%bg_delete nope --yes", "in this notebook"),
        ("%bg_show 'unfinished", "quotation"),
    ],
)
def test_what_is_typed_wrong_is_one_line_with_the_next_step(
    notebook: Notebook, typed: str, next_step: str | None
) -> None:
    latest = notebook.finish("1")
    answer = notebook.type(typed)
    assert answer.cell is not None
    if next_step is None:
        assert not answer.failed
        return
    assert answer.cell.error is not None
    assert answer.cell.error[0] == "UsageError"
    assert kinds(answer.cell.outputs) == ["stderr"]
    assert answer.stderr.startswith("UsageError: ")
    assert answer.stderr.count("\n") == 1
    assert next_step in answer.stderr
    assert notebook.show()["id"] == latest["id"]


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("def (:", "SyntaxError"),
        ("x = 1\n   y = 2", "IndentationError"),
        ("print('a", "SyntaxError"),
        ("return 1", "SyntaxError"),
    ],
)
def test_a_cell_that_does_not_compile_is_a_syntax_error_and_no_task(
    notebook: Notebook, typed: str, name: str
) -> None:
    latest = notebook.finish("1")
    answer = notebook.type(f"%%background wrong\n{typed}")
    assert answer.cell is not None
    assert answer.cell.error is not None
    ename, _evalue, traceback = answer.cell.error
    assert ename == name
    shown = "\n".join(traceback)
    assert "Cell" in shown
    assert "ipytaskpersist" not in shown
    assert notebook.show()["id"] == latest["id"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["show", "nope"], 1, "jupyter bg: no task 'nope' in this notebook"),
        (["output", "--head", "1", "--tail", "1"], 1, "jupyter bg: --head, --tail and --follow"),
        (["list", "--session", "nope"], 1, "jupyter bg: no session 'nope'"),
        (["list", "--nope"], 2, "Error: No such option"),
        (["lst"], 2, "Error: No verb 'lst'; did you mean 'list'?"),
        (["list", "--limit", "0"], 2, "Error: Invalid value for '--limit'"),
    ],
)
def test_what_is_typed_wrong_in_a_terminal_is_said_on_stderr(
    state_dir: Path, arguments: list[str], status: int, message: str
) -> None:
    answer = run_command(state_dir, *arguments)
    assert (answer.returncode, answer.stdout) == (status, "")
    *before, last = answer.stderr.splitlines()
    assert last.startswith(message)
    assert "%bg" not in last
    assert len(before) == (0 if status == 1 else 3)
    assert not state_dir.exists()


def test_a_state_directory_that_cannot_be_made_is_one_line(
    make_kernel: MakeKernel, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    broken = tmp_path / "file" / "state"
    kernel = make_kernel(load=False, env={"IPYTASKPERSIST_DIR": str(broken)})
    notebook = Notebook(kernel, broken, tmp_path / "a.ipynb")
    loaded = notebook.type("%load_ext ipytaskpersist")
    assert not loaded.failed
    assert loaded.text.count("\n") <= 1
    launched = notebook.type("%%background\n1")
    assert launched.failed
    assert launched.stderr == (
        f"UsageError: cannot make the state directory {broken}: Not a directory; "
        "set IPYTASKPERSIST_DIR to a folder that you can write\n"
    )
    listed = notebook.type("%bg_list --json")
    assert listed.json() == {"tasks": [], "count": 0}
    shown = run_command(broken, "show", "1")
    assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
    assert not notebook.type("print('the foreground goes on')").failed


def test_an_error_of_a_command_does_not_stop_the_tasks(notebook: Notebook) -> None:
    with notebook.running("steady", after="print('finished')") as task:
        assert notebook.type("%bg_show nope").failed
        assert notebook.type("%%background\ndef (:").failed
    assert notebook.ended(task)["last_line"] == "finished"


def test_numbers_follow_the_order_in_which_cells_are_run(notebook: Notebook) -> None:
    notebook.kernel.run(
        "for n in range(100):\n"
        "    get_ipython().run_cell_magic('background', f'n{n}', f'print({n})')"
    )
    tasks = notebook.underscored("list", "--json", "--limit", "100").json()["tasks"]
    assert [task["name"] for task in tasks] == [f"n{n}" for n in range(100)]
    numbers = [task["number"] for task in tasks]
    assert numbers == list(range(numbers[0], numbers[0] + 100))
    assert not notebook.underscored("wait", *map(str, numbers), "--check").failed
