"""A search finds what tasks are called, what they ran and what they printed, and nothing else."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from kernels import NotebookKernel, until
from programs import environment, run_command, run_python

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.records import OutputKind, TaskRecord, TaskState
from ipytaskpersist.commands.definition import run
from ipytaskpersist.commands.surfaces import Surface
from ipytaskpersist.display.search_results import marked
from ipytaskpersist.errors import BackgroundError, InvalidRequest
from ipytaskpersist.history import search_query, text_search
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.history.search_query import Scope
from ipytaskpersist.history.text_search import Found, Snippet
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store import search_index as index_module
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.search_index import SearchIndex
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask
from ipytaskpersist.store.transfer import remove_tasks
from ipytaskpersist.text.search_words import as_shown, distinct_words, fold, words

NOTEBOOK = "/work/analysis.ipynb"
_numbers = itertools.count(1)


class Past:
    """A store, and tasks put into it."""

    def __init__(self, store: TaskStore, archives: Archives) -> None:
        self.store = store
        self.archives = archives

    def begin(
        self, name: str = "", source: str = "pass", *, notebook: str = NOTEBOOK
    ) -> TaskRecord:
        """A task that runs."""
        identity = SessionIdentity(
            f"{next(_numbers):08}-x", "program", notebook, True, None, ProcessIdentity.own()
        )
        session = self.store.sessions.begin(identity)
        new = NewTask(session.notebook_key, session.id, name, "python", "thread", source)
        task = self.store.tasks.insert(new)
        self.store.tasks.start(task.key, time.time())
        return task

    def print(
        self, task: TaskRecord, text: str | bytes, kind: OutputKind = OutputKind.STDOUT
    ) -> None:
        """Output that the task adds, as the recorder stores it."""
        data = text if isinstance(text, bytes) else text.encode()
        size = self.store.outputs.stream_size(task.key, kind)
        new = NewOutput(
            task.key, kind, time.time(), data, size.size_bytes, size.lines, data.count(b"\n")
        )
        self.store.outputs.append([new.as_row()])

    def display(self, task: TaskRecord, kind: OutputKind, **content: Any) -> None:
        """A display, a result or an error that the task adds."""
        self.store.outputs.append(
            [NewOutput(task.key, kind, time.time(), json.dumps(content).encode()).as_row()]
        )

    def end(self, task: TaskRecord, state: TaskState = TaskState.COMPLETED) -> TaskRecord:
        code = {TaskState.COMPLETED: 0, TaskState.FAILED: 1}.get(state)
        self.store.tasks.end(task.key, state, "because", code, time.time())
        ended = self.store.tasks.get(task.key)
        assert ended is not None
        return ended

    def add(
        self,
        stdout: str | bytes = "",
        *,
        name: str = "",
        source: str = "pass",
        stderr: str = "",
        state: TaskState = TaskState.COMPLETED,
        notebook: str = NOTEBOOK,
    ) -> TaskRecord:
        """A task that has ended."""
        task = self.begin(name, source, notebook=notebook)
        if stdout:
            self.print(task, stdout)
        if stderr:
            self.print(task, stderr, OutputKind.STDERR)
        return self.end(task, state)

    def search(self, *typed: str, **scope: Any) -> Found:
        return text_search.search(
            self.store,
            self.archives,
            search_query.parse(typed),
            Scope(**scope),
            lambda *_bytes: None,
        )

    def find(self, *typed: str, **scope: Any) -> list[str]:
        """The ids of the tasks that a search finds, the best first."""
        return [hit.task.id for hit in self.search(*typed, **scope).hits]

    def lines(self, *typed: str, **scope: Any) -> list[tuple[str, int, str]]:
        """The lines of the one task that a search finds."""
        (hit,) = self.search(*typed, **scope).hits
        return [(snippet.place, snippet.line, snippet.text) for snippet in hit.snippets]


@pytest.fixture
def past(store: TaskStore, archives: Archives) -> Past:
    return Past(store, archives)


# What is found.


def test_names_sources_streams_displays_results_and_errors_are_searched(past: Past) -> None:
    named = past.add(name="gather-evidence")
    sourced = past.add(source="model.fit(evidence)")
    printed = past.add("some evidence\n")
    warned = past.add(stderr="evidence!\n")
    shown = past.begin()
    past.display(shown, OutputKind.DISPLAY_DATA, data={"text/plain": "<evidence>"}, metadata={})
    past.end(shown)
    gave = past.begin()
    past.display(gave, OutputKind.EXECUTE_RESULT, data={"text/plain": "Evidence()"}, metadata={})
    past.end(gave)
    failed = past.begin()
    traceback = ["\x1b[31mNameError\x1b[0m: no \x1b[1mevi\x1b[0mdence"]
    past.display(failed, OutputKind.ERROR, ename="NameError", evalue="", traceback=traceback)
    past.end(failed, TaskState.FAILED)
    past.add("nothing of the kind", name="other")
    found = past.find("EVIDENCE")
    assert found[:2] == [named.id, sourced.id]
    assert set(found[2:]) == {task.id for task in (printed, warned, shown, gave, failed)}


def test_markup_and_pictures_are_not_searched(past: Past) -> None:
    task = past.begin()
    data = {"text/html": "<b>hidden</b>", "image/png": "hidden", "text/plain": "seen"}
    past.display(task, OutputKind.DISPLAY_DATA, data=data, metadata={})
    past.end(task)
    assert past.find("seen") == [task.id]
    assert past.find("hidden") == []


def test_all_words_must_be_in_the_task_wherever(past: Past) -> None:
    both = past.add("the loss is\n", name="training", stderr="diverged\n")
    past.add("the loss is low\n")
    past.add("training diverged\n")
    assert past.find("loss", "training", "diverged") == [both.id]


def test_a_word_is_a_whole_word_unless_a_star_ends_it(past: Past) -> None:
    task = past.add("checkpoint written\n")
    assert past.find("check") == []
    assert past.find("check*") == [task.id]
    ((_place, _line, text),) = past.lines("check*")
    (hit,) = past.search("check*").hits
    ((begin, end),) = hit.snippets[0].matches
    assert text[begin:end] == "checkpoint"


@pytest.mark.parametrize(
    "typed", [["out of memory"], ['"out of memory"'], ['killed "out of mem"*']]
)
def test_a_phrase_is_its_words_next_to_each_other(past: Past, typed: list[str]) -> None:
    right = past.add("killed: Out-of memory\n")
    past.add("killed; memory ran out of sight, out of mind, memory\n")
    assert past.find(*typed) == [right.id]


def test_a_word_with_marks_inside_is_a_phrase(past: Past) -> None:
    right = past.add("val_loss=0.125\n")
    past.add("loss val 125 0\n")
    assert past.find("val_loss") == [right.id]
    assert past.find("0.125") == [right.id]
    assert past.find("loss=0.12") == []
    assert past.find("loss=0.12*") == [right.id]
    assert past.find("0.12*") == [right.id]


def test_accents_case_and_the_way_in_which_they_are_written_do_not_matter(past: Past) -> None:
    task = past.add("Le CAFE\u0301 est fermé, ΣΊΣΥΦΟΣ, 東京\n")
    for word in ("café", "cafe", "CAFÉ", "ferme", "σισυφος", "東京"):
        assert past.find(word) == [task.id], word
    assert past.find("est ferme") == [task.id]


def test_bytes_that_are_no_text_do_no_harm(past: Past) -> None:
    task = past.add(b"before \xff\xfe\x00 after\xf0\x9f\n")
    assert past.find("before", "after") == [task.id]


def test_colours_are_no_part_of_a_word_and_what_was_drawn_over_is_gone(past: Past) -> None:
    task = past.add("\x1b[1;31mERR\x1b[0mOR here\n 10% old\r100% new\nspin |\b/\b-\n")
    assert past.lines("error") == [("stdout", 1, "ERROR here")]
    assert past.lines("new") == [("stdout", 2, "100% new")]
    assert past.find("old") == []
    assert past.find("error", "new", "spin") == [task.id]


def test_names_come_before_sources_and_these_before_outputs(past: Past) -> None:
    printed = past.add("zebra\n")
    named = past.add(name="zebra")
    sourced = past.add(source="zebra()")
    assert past.find("zebra") == [named.id, sourced.id, printed.id]


def test_of_equals_the_newer_comes_first(past: Past) -> None:
    tasks = [past.add("zebra\n") for _ in range(4)]
    assert past.find("zebra") == [task.id for task in reversed(tasks)]


def test_rare_words_count_more_than_common_ones(past: Past) -> None:
    for _ in range(5):
        past.add("common\n", name="x")
    past.add("rare\n", source="common", name="x")
    twice = past.add("common\n", source="rare", name="x")
    assert past.find("common", "rare")[0] == twice.id


# Lines.


def test_lines_are_those_that_show_all_words_with_their_numbers(past: Past) -> None:
    text = "".join(f"step {n}\n" for n in range(1, 100)) + "alpha\n" + "step\n" * 9 + "omega beta\n"
    past.add(text)
    assert past.lines("alpha", "beta") == [("stdout", 100, "alpha"), ("stdout", 110, "omega beta")]


def test_at_most_three_lines_are_shown(past: Past) -> None:
    past.add("again and again\n" * 50)
    (hit,) = past.search("again").hits
    assert [snippet.line for snippet in hit.snippets] == [1, 2, 3]
    assert hit.snippets[0].matches == ((0, 5), (10, 15))


def test_a_long_line_is_cut_around_the_match(past: Past) -> None:
    past.add("x " * 5000 + "needle" + " y" * 5000 + "\n")
    (hit,) = past.search("needle").hits
    (snippet,) = hit.snippets
    ((begin, end),) = snippet.matches
    assert snippet.text[begin:end] == "needle"
    assert snippet.text.startswith("…")
    assert snippet.text.endswith("…")
    assert len(snippet.text) < 200


def test_words_and_lines_are_whole_where_the_store_cuts_them(past: Past) -> None:
    """A stream's pieces end anywhere, a document with one of them."""
    task = past.begin()
    filling = "filling of a line\n" * 60_000
    past.print(task, filling)
    past.print(task, "start of wat")
    past.print(task, filling)
    past.print(task, "and wat")
    past.print(task, "ermelon end\n")
    past.end(task)
    assert past.find("wat") == []
    assert past.lines("watermelon") == [("stdout", 120_001, "and watermelon end")]


def test_what_a_document_holds_together_with_the_next_one_is_found(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "DOCUMENT_BYTES", 20)
    task = past.begin()
    for piece in ("line one is long enough\nbroken wa", "termelon", " here\nlast li", "ne\n"):
        past.print(task, piece)
    past.end(task)
    assert past.lines("broken watermelon") == [("stdout", 2, "broken watermelon here")]
    assert past.lines("last line") == [("stdout", 3, "last line")]


# Where is searched.


def test_a_search_can_be_confined(past: Past) -> None:
    failed = past.add("zebra", state=TaskState.FAILED)
    cancelled = past.add("zebra", state=TaskState.CANCELLED)
    other = past.add("zebra", notebook="/elsewhere/other.ipynb")
    in_source = past.add(source="zebra")
    named = past.add(name="zebra")
    warned = past.add(stderr="zebra")
    states = [TaskState.FAILED, TaskState.CANCELLED]
    assert set(past.find("zebra", states=states)) == {failed.id, cancelled.id}
    for called in ("/elsewhere/other.ipynb", "other.ipynb", "other"):
        assert past.find("zebra", notebook=called) == [other.id]
    assert past.find("zebra", columns=("name", "source")) == [named.id, in_source.id]
    assert set(past.find("zebra", columns=("stdout",))) == {failed.id, cancelled.id, other.id}
    assert warned.id in past.find("zebra")
    assert past.find("zebra", since=time.time() + 60) == []
    assert past.search("zebra", limit=2).has_more
    assert not past.search("zebra", limit=6).has_more


def test_a_notebook_that_is_not_known_is_said_with_those_that_are(past: Past) -> None:
    past.add("zebra")
    with pytest.raises(InvalidRequest, match=r"no notebook 'nowhere'; there are analysis.ipynb"):
        past.find("zebra", notebook="nowhere")


def test_archived_tasks_are_found_when_they_are_asked_for(past: Past) -> None:
    task, kept = past.add("zebra"), past.add("zebra")
    assert len(past.find("zebra")) == 2
    past.archives.archive([task])
    assert past.find("zebra") == [kept.id]
    assert past.search("zebra").archives_left_out == 1
    hits = past.search("zebra", archived=True).hits
    assert [(hit.task.id, hit.task.archive != "") for hit in hits] == [
        (kept.id, False),
        (task.id, True),
    ]
    assert hits[1].snippets[0].text == "zebra"
    past.archives.unarchive([hits[1].task])
    assert past.find("zebra", archived=True) == [task.id, kept.id]


# Keeping up.


def test_a_task_that_prints_is_found_by_what_it_has_printed_so_far(past: Past) -> None:
    task = past.begin()
    past.print(task, "first\nhalf wo")
    assert past.find("first") == [task.id]
    past.print(task, "rd\nsecond\n")
    assert past.find("first", "second", "half word") == [task.id]
    assert past.lines("second") == [("stdout", 3, "second")]
    assert past.find("wo") == []
    past.end(task)
    past.find("first")
    assert past.find("second") == [task.id]


def test_a_deleted_task_is_never_shown_again(past: Past) -> None:
    gone, kept = past.add("zebra", name="gone"), past.add("zebra")
    assert len(past.find("zebra")) == 2
    remove_tasks(past.store.database, [gone.id])
    assert past.find("zebra") == [kept.id]
    assert past.find("gone") == []
    with closing(SearchIndex(past.store)) as index:
        assert index.catch_up()
        assert index.count() == 1


def test_nothing_is_shown_of_tasks_that_went_after_the_index_caught_up(past: Past) -> None:
    gone = past.add("zebra")
    past.find("zebra")
    remove_tasks(past.store.database, [gone.id])
    with closing(SearchIndex(past.store)) as index:
        index.catch_up(should_stop=lambda: True)
        assert index.count() == 1, "the document is still there"
    place = text_search._SearchedStore(past.store, search_query.parse(["zebra"]), Scope())
    place.index.catch_up(should_stop=lambda: True)
    assert place.ranked(0) == []
    place.index.close()


def test_an_index_of_another_store_is_made_anew(past: Past, tmp_path: Path) -> None:
    """A damaged store is replaced by a backup, and then numbers its rows as the lost one did."""
    past.add("zebra")
    past.find("zebra")
    with ExitStack() as opened:
        store = opened.enter_context(closing(TaskStore(StateDirectory(tmp_path / "other")).open()))
        other = Past(store, opened.enter_context(closing(Archives(store))))
        other.add("giraffe")
        other.add("giraffe")
        past.store.directory.search_index.replace(store.directory.search_index)
        assert other.find("zebra") == []
        assert len(other.find("giraffe")) == 2


def test_a_deleted_index_is_made_anew(past: Past) -> None:
    task = past.add("zebra")
    past.find("zebra")
    past.store.directory.search_index.unlink()
    assert past.find("zebra") == [task.id]


def overwritten(content: bytes) -> bytes:
    return content[:4096] + os.urandom(len(content) - 4096)


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"garbage" * 999, lambda content: content[: len(content) // 2], overwritten],
)
def test_a_damaged_index_is_made_anew(past: Past, damage: Callable[[bytes], bytes]) -> None:
    """And the store is not taken for damaged."""
    task = past.add("zebra " + " ".join(map(str, range(20_000))))
    past.find("zebra")
    index = past.store.directory.search_index
    index.write_bytes(damage(index.read_bytes()))
    assert past.find("zebra") == [task.id]
    assert past.find("zebra") == [task.id]
    assert not past.store.directory.damage_mark.exists()
    assert past.lines("19999")[0][0] == "stdout"


def test_an_index_of_an_older_form_is_made_anew(past: Past) -> None:
    task = past.add("zebra")
    past.find("zebra")
    past.store.directory.search_index.write_bytes(b"")
    assert past.find("zebra") == [task.id]


def test_whoever_only_writes_makes_no_index(past: Past) -> None:
    past.add("zebra")
    assert not past.store.directory.search_index.exists()
    past.find("zebra")
    mode = past.store.directory.search_index.stat().st_mode
    assert mode & 0o077 == 0


def test_catching_up_can_be_stopped_and_goes_on_later(past: Past) -> None:
    tasks = [past.add("zebra\n" + "filling\n" * 200_000) for _ in range(3)]
    looks = iter([False, False, True])
    with closing(SearchIndex(past.store)) as index:
        assert not index.catch_up(should_stop=lambda: next(looks, True))
        assert 0 < index.count() < 3
        told: list[tuple[int, int]] = []
        assert index.catch_up(progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    assert len(past.find("zebra")) == len(tasks)


CATCH_UP = """
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store import search_index as search
search.TURN_BYTES = 1
store = TaskStore(StateDirectory(default_directory())).open()
def progress(done, total):
    print(done, flush=True)
search.SearchIndex(store).catch_up(progress=progress)
print("caught up", flush=True)
"""


def start(code: str, state_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment(state_dir), stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("turns", [1, 4, 9])
def test_an_index_whose_maker_was_killed_is_completed(
    past: Past, state_dir: Path, turns: int
) -> None:
    for number in range(30):
        past.add(f"zebra number{number}\n" + " ".join(map(str, range(5_000))))
    with start(CATCH_UP, state_dir) as program:
        assert program.stdout is not None
        for _ in range(turns):
            assert program.stdout.readline().strip().isdecimal()
        program.send_signal(signal.SIGKILL)
    assert len(past.find("zebra", limit=100)) == 30
    for number in range(30):
        assert len(past.find(f"number{number}")) == 1


def test_several_processes_make_one_index(past: Past, state_dir: Path) -> None:
    tasks = [past.add(f"zebra number{number}\n") for number in range(40)]
    programs = [start(CATCH_UP, state_dir) for _ in range(3)]
    for program in programs:
        with program:
            out, _err = program.communicate(timeout=60)
            assert out.splitlines()[-1] == "caught up"
    found = past.find("zebra", limit=100)
    assert sorted(found) == sorted(task.id for task in tasks)


WRITE = """
import sys, time
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
store = TaskStore(StateDirectory(default_directory())).open()
key = int(sys.argv[1]) if len(sys.argv) > 1 else KEY
for n in range(300):
    data = f"word{n}\\n".encode()
    store.outputs.append([NewOutput(key, OutputKind.STDOUT, time.time(), data, lines=1).as_row()])
    if n == 20:
        print("writing", flush=True)
"""


def test_what_another_process_writes_meanwhile_is_found(past: Past, state_dir: Path) -> None:
    task = past.begin()
    with start(WRITE.replace("KEY", str(task.key)), state_dir) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "writing\n"
        assert past.find("word10") == [task.id]
        until(lambda: past.find("word299") == [task.id])
    past.end(task)
    for number in range(0, 300, 23):
        assert past.find(f"word{number}") == [task.id]


PYTHONS_OWN_SQLITE = """
import sys
sys.modules["pysqlite3"] = None
from ipytaskpersist.__main__ import main
sys.argv = ["jupyter-bg", "search", *sys.argv[1:]]
main()
"""


def test_a_sqlite_that_cannot_take_words_out_shows_none_that_are_gone(
    past: Past, state_dir: Path
) -> None:
    """Python's own SQLite, where it is old, keeps the words of a document that was replaced."""

    def find(word: str) -> str:
        ended = run_python(PYTHONS_OWN_SQLITE, state_dir, word, "--json")
        assert ended.returncode == 0, ended.stderr
        return str([task["id"] for task in json.loads(ended.stdout)["tasks"]])

    task, gone = past.begin(), past.add("giraffe")
    past.print(task, "10% zebra\r")
    assert (find("10 zebra"), find("giraffe")) == (f"['{task.id}']", f"['{gone.id}']")
    past.print(task, "20% zebra\n")
    remove_tasks(past.store.database, [gone.id])
    assert (find("10"), find("giraffe")) == ("[]", "[]")
    assert find("20 zebra") == f"['{task.id}']"
    past.end(task)


# What a person types.


HOSTILE = (
    "-", "(", ")", '"', '""', "*", "***", ":", "^", "a:b", "name:", "NEAR(a b)", "a OR", "NOT",
    "a AND", "-a", "+a", "{a}", "a''b", "' OR 1=1 --", "a\x00b", "a;DROP TABLE tasks", "😀", "a*b*",
    '"a', 'a"b"c', "\\", "%", "_", "\ud800", "é*", "٣", "x" * 5000, "꩜", "ª²", "a\u0301\u0302",
    "a\U0001e900b",
)  # fmt: skip


@pytest.mark.parametrize("typed", HOSTILE)
def test_no_character_is_syntax(past: Past, typed: str) -> None:
    """Whatever is typed is words or is refused in one line."""
    past.add("some words here a b c\n")
    past.add(f"{typed} words\n".encode("utf-8", "replace"))
    for query in ([typed], ["words", typed]):
        with suppress(InvalidRequest):
            past.find(*query)


@pytest.mark.parametrize("typed", ["OR", "AND", "NOT", "NEAR"])
def test_operators_are_words(past: Past, typed: str) -> None:
    task = past.add(f"this {typed} that\n")
    past.add("this that\n")
    assert past.find("this", typed, "that") == [task.id]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "search for what"),
        (["  "], "search for what"),
        (["(", "--"], "has no letters or digits"),
        (["a*"], "type at least 2 characters"),
    ],
)
def test_a_query_that_asks_for_nothing_is_refused(typed: Sequence[str], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        search_query.parse(typed)


def test_the_index_and_the_lines_agree_on_what_a_word_is() -> None:
    text = "Ünïcode MiXed_case-99 tab\there\x1b[0m\r\nline\n"
    assert set(fold(distinct_words(text.encode())).split()) == {
        *("unicode", "mixed", "case", "99", "tab", "here", "line")
    }
    assert as_shown(text).count("\n") == text.count("\n")


def test_a_title_that_is_never_ended_takes_no_line_with_it() -> None:
    """The numbers of all lines after it would be wrong."""
    assert as_shown("\x1b]0;a title\nfound\n") == "\nfound\n"


def test_matches_are_marked_and_everything_is_escaped() -> None:
    text = "<b>&amp; x</b>"
    assert marked(text, [(0, 3)]) == "<mark>&lt;b&gt;</mark>&amp;amp; x&lt;/b&gt;"
    assert marked(text, []) == "&lt;b&gt;&amp;amp; x&lt;/b&gt;"


def test_a_snippet_says_where_and_which() -> None:
    snippet = Snippet("stdout", 12, "a loss b", ((2, 6),))
    assert snippet.as_json() == {
        "in": "stdout",
        "line": 12,
        "text": "a loss b",
        "matches": [[2, 6]],
    }


# In a terminal and in a notebook.


def in_terminal(state_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command(state_dir, "search", *arguments, notebook=NOTEBOOK)


def test_a_terminal_shows_own_tasks_by_number_and_others_by_id(past: Past, state_dir: Path) -> None:
    past.add("a zebra here\n", name="own")
    other = past.add("a zebra there\n", name="foreign", notebook="/x/other.ipynb")
    ended = in_terminal(state_dir, "zebra")
    assert ended.returncode == 0, ended.stderr
    heads = [line for line in ended.stdout.splitlines() if not line.startswith(" ")]
    assert heads[0].split()[:4] == [other.id, "foreign", "✓", "completed"]
    assert "other.ipynb" in heads[0]
    assert heads[1].split()[:4] == ["1", "own", "✓", "completed"]
    assert "stdout:1  a zebra here" in ended.stdout


@pytest.fixture
def surface(manager: BackgroundTasks) -> Surface:
    """What a terminal's command has."""
    return Surface(manager)


def test_every_option_does_what_it_says(
    past: Past, surface: Surface, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = past.add("zebra", state=TaskState.FAILED)
    warned = past.add(stderr="zebra")
    sourced = past.add(source="zebra", notebook="/x/other.ipynb")
    archived = past.add("zebra")
    past.archives.archive([archived])

    def ids(*options: str) -> set[str]:
        run(["search", "zebra", "--json", *options], surface)
        document = json.loads(capsys.readouterr().out)
        assert document["count"] == len(document["tasks"])
        return {task["id"] for task in document["tasks"]}

    assert ids() == {failed.id, warned.id, sourced.id}
    assert ids("--state", "failed", "--state", "cancelled") == {failed.id}
    assert ids("--stdout") == {failed.id}
    assert ids("--source") == {sourced.id}
    assert ids("--notebook", "other") == {sourced.id}
    assert ids("--since", "1h") == {failed.id, warned.id, sourced.id}
    assert ids("--since", (datetime.now(UTC) + timedelta(days=2)).date().isoformat()) == set()
    assert ids("--archived") == {failed.id, warned.id, sourced.id, archived.id}
    assert len(ids("--limit", "1")) == 1


def test_the_json_is_as_documented(past: Past, state_dir: Path) -> None:
    task = past.add("first\nthe loss is nan\n", name="training")
    document = json.loads(in_terminal(state_dir, "loss is", "nan", "--json").stdout)
    assert document.keys() == {"query", "tasks", "count"}
    assert (document["query"], document["count"]) == ('"loss is" nan', 1)
    (found,) = document["tasks"]
    assert found.keys() >= {"id", "number", "name", "notebook", "state", "score", "snippets"}
    assert (found["id"], found["name"]) == (task.id, "training")
    assert found["score"] > 0
    assert found["snippets"] == [
        {"in": "stdout", "line": 2, "text": "the loss is nan", "matches": [[4, 11], [12, 15]]}
    ]


WRONG = (
    ((), "search for what?"),
    (("?!",), "no letters or digits"),
    (("x", "--state", "gone"), "gone"),
    (("x", "--since", "yesterday"), "'yesterday' is neither an age"),
    (("x", "--since", "45"), "90s, 30m for minutes, 12h, 7d, 2w"),
    (("x", "--notebook", "nowhere"), "no notebook 'nowhere'"),
    (("x", "--limit", "0"), "0"),
    (("x", "--stdout", "--source"), "exclude each other"),
)


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_what_is_typed_wrong_is_said(
    past: Past, surface: Surface, arguments: Sequence[str], message: str
) -> None:
    past.add("x")
    with pytest.raises((BackgroundError, click.UsageError)) as caught:
        run(["search", *arguments], surface)
    assert message in str(getattr(caught.value, "message", caught.value))


def test_an_error_in_a_terminal_is_one_line_that_says_what_to_type(state_dir: Path) -> None:
    ended = in_terminal(state_dir)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1
    assert "jupyter bg search loss nan" in ended.stderr


def test_when_nothing_is_found_one_line_says_what_was_searched(past: Past, state_dir: Path) -> None:
    past.add("lion")
    task = past.add("zebra")
    past.archives.archive([task])
    ended = in_terminal(state_dir, "zebra", "stripes")
    assert ended.returncode == 0
    assert ended.stdout == (
        "nothing has zebra stripes; 1 task searched · 1 archive not searched; add --archived\n"
    )


def test_without_a_store_nothing_is_found_and_nothing_is_made(state_dir: Path) -> None:
    ended = in_terminal(state_dir, "zebra")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "nothing has zebra; 0 tasks searched\n"
    assert not (state_dir / "tasks.search").exists()


WITH_PROGRESS = """
import sys
from ipytaskpersist.__main__ import main
from ipytaskpersist.commands import searching
searching.SHOW_PROGRESS_S = 0
sys.argv = ["jupyter-bg", "search", "zebra"]
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pseudo-terminals")
def test_a_terminal_sees_how_far_the_indexing_is_and_the_matches_in_colour(
    past: Past, state_dir: Path
) -> None:
    import pexpect

    past.add("zebra\n" * 400_000)
    env = environment(state_dir, {"IPYTASKPERSIST_NOTEBOOK": NOTEBOOK})
    program = pexpect.spawn(
        sys.executable, ["-c", WITH_PROGRESS], env=env, encoding="utf-8", timeout=60
    )
    with closing(program):
        program.expect_exact("indexed 2 of 2 MB")
        program.expect_exact("\r\x1b[K")
        program.expect_exact("\x1b[1;33mzebra\x1b[0m")
        program.expect(pexpect.EOF)


def test_a_notebook_shows_html_that_is_escaped_and_marked(kernel: NotebookKernel) -> None:
    kernel.run("%%background <i>name</i>\nprint('<script>alert(1)</script> zebra')")
    kernel.run("%bg_wait")
    (output,) = kernel.run("%bg_search zebra --stdout").outputs
    html = output["data"]["text/html"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt; <mark>zebra</mark>" in html
    assert "<script>" not in html
    assert "<i>" not in html
    assert "<script>alert(1)</script> zebra" in output["data"]["text/plain"]
    assert "zebra" in kernel.run('%bg search "alert 1" --json').stream("stdout")


# What a word is.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("val_loss=0.125.", {"val", "loss", "0.125"}),
        ("v1.2.3-rc 3.11.7", {"v1", "2.3", "rc", "3.11.7"}),
        ("10.0.0.1:8080 .5 5. 1..2", {"10.0.0.1", "8080", "5", "1", "2"}),
        ("train.py 1.5x e1.5", {"train", "py", "1", "5x", "e1", "5"}),
        ("größer–0.5 ٣.٤", {"größer", "0.5", "٣", "٤"}),
    ],
)
def test_a_number_with_points_is_one_word(text: str, expected: set[str]) -> None:
    assert set(words(text)) == {fold(word) for word in expected}
    assert set(distinct_words(text.encode()).split()) == set(words(text))


def test_what_is_indexed_is_what_is_looked_for() -> None:
    """Whatever the text, its words are the same when it is indexed and when it is typed."""
    chance = random.Random(7)
    for _ in range(2_000):
        text = "".join(chance.choices("ab1.9 _-=:/,é–٣.\n", k=chance.randint(0, 40)))
        assert set(distinct_words(text.encode()).split()) == set(words(text)), text


# Erasing.


@pytest.mark.parametrize("can_delete", [True, False])
def test_words_of_deleted_tasks_are_erased_and_all_others_are_found(
    past: Past, monkeypatch: pytest.MonkeyPatch, can_delete: bool
) -> None:
    monkeypatch.setattr(index_module, "CAN_DELETE", can_delete and index_module.CAN_DELETE)
    monkeypatch.setattr(index_module, "ERASED_PAGES", 1)
    tasks = [past.add(" ".join(f"w{number}x{each}" for each in range(2000))) for number in range(6)]
    deleted = past.add("qzjwxkvbnm")
    tasks += [past.add(f"after{number}") for number in range(3)]
    with closing(SearchIndex(past.store)) as index:
        index.catch_up()
        remove_tasks(past.store.database, [deleted.id])
        index.catch_up()
        file = past.store.directory.search_index
        assert b"zjwxkvbnm" in file.read_bytes()
        index.erase()
        assert b"zjwxkvbnm" not in file.read_bytes()
        written = file.stat().st_mtime_ns
        index.erase()
        assert file.stat().st_mtime_ns == written, "there was nothing to erase any more"
    assert past.find("w5x1999") == [tasks[5].id]
    assert past.find("after2") == [tasks[-1].id]
    assert past.find("qzjwxkvbnm") == []
