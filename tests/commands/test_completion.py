"""Tab offers what a command takes, from its definition, and what the store knows; nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kernels import NotebookKernel
from programs import environment, run_python

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.base.vocabulary import VERBS
from ipytaskpersist.commands import command_line
from ipytaskpersist.commands.definition import every_verb
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask

SESSION = "a1b2c3d4-0000-4000-8000-000000000000"
NAMES = ("train", "build it", "", "名前", "train", "-odd", "two\nlines")


def fill(state_dir: Path, notebook: Path | str, count: int = 0) -> None:
    """Tasks of these names in a notebook, and so many more."""
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        identity = SessionIdentity(
            SESSION, "terminal", str(notebook), True, None, ProcessIdentity.own()
        )
        session = store.sessions.begin(identity)
        for name in (*NAMES, *(f"more{n}" for n in range(count))):
            new = NewTask(session.notebook_key, session.id, name, "python", "thread", "x")
            task = store.tasks.insert(new)
            store.tasks.tag(task.key, ["good", "best"] if name == "train" else [])
            store.tasks.start(task.key, time.time())
            store.tasks.end(task.key, TaskState.COMPLETED, None, 0, time.time())


@pytest.fixture
def notebook(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = state_dir.parent / "work.ipynb"
    monkeypatch.setenv("IPYTASKPERSIST_NOTEBOOK", str(path))
    fill(state_dir, path)
    return path


ASK = """
import json, sys
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "ipytaskpersist")
shell.user_ns.update(frame=1, frames=2)
def ask(text):
    with provisionalcompleter():
        found = list(shell.Completer.completions(text, len(text)))
    return [[each.text, text[each.start:each.end]] for each in found]
answers = [ask(text) for text in json.loads(sys.argv[1])]
shell.run_line_magic("unload_ext", "ipytaskpersist")
print(json.dumps([answers, len(shell.Completer.custom_matchers)]))
"""


def asked(state_dir: Path, *texts: str, cwd: Path | None = None, env: Any = None) -> list[Any]:
    """What IPython offers for each of these texts: the completions, and what they replace."""
    ran = run_python(ASK, state_dir, json.dumps(texts), cwd=cwd, env=env)
    assert (ran.returncode, ran.stderr) == (0, "")
    *_greeting, last = ran.stdout.splitlines()
    answers, matchers_left = json.loads(last)
    assert matchers_left == 0
    return list(answers)


def here(notebook: Path) -> dict[str, str]:
    return {"IPYTASKPERSIST_NOTEBOOK": str(notebook)}


def test_everything_that_a_command_takes_is_offered(state_dir: Path, notebook: Path) -> None:
    folder = state_dir.parent / "files"
    (folder / "a folder").mkdir(parents=True)
    (folder / "backup.db").touch()
    states = [state.value for state in TaskState]
    expected = {
        "%bg_output t": ["train"],
        "%bg_output 'bui": ["'build it'"],
        "%bg_output 名": ["名前"],
        "%bg output b": ["'build it'"],
        "x = %bg_result tr": ["train"],
        "  %bg_wait 1 tr": ["train"],
        "bg_wait tr": ["train"],
        "%bg_show a1b2c3d4-1": ["a1b2c3d4-1"],
        "%bg_list --session a1": ["a1b2c3d4"],
        "%bg_delete --session=a1": ["a1b2c3d4"],
        "%bg_list --state ": states,
        "%bg_list --state=co": ["completed"],
        "%bg_list --tag ": ["best", "good"],
        "%bg_tag 1 be": ["best"],
        "%bg_list --st": ["--state"],
        "%bg ": list(VERBS),
        "%bg se": ["search", "service", "sessions"],
        "%%background --pr": ["--process", "--priority"],
        "%%background --in fr": ["frame", "frames"],
        "%%background --in frame,fr": ["frame,frame", "frame,frames"],
        "%%background --cwd ": ["'a folder/'"],
        "%%background\n%bg_list --arch": ["--archived"],
        "%bg_restore ba": ["backup.db"],
        "%bg_backup 'a": ["'a folder/'"],
        "%bg_export --format ": ["jsonl", "json", "ipynb", "html"],
        "%bg_config archive": ["archive_after_days"],
        "%bg_search --notebook ": ["work.ipynb"],
    }
    answers = asked(state_dir, *expected, cwd=folder, env=here(notebook))
    shown = [[text for text, _replaced in answer] for answer in answers]
    assert dict(zip(expected, shown, strict=True)) == expected
    for text, answer in zip(expected, answers, strict=True):
        for _new, replaced in answer:
            assert text.endswith(replaced)


def test_tasks_are_offered_by_name_and_number_the_newest_first(
    state_dir: Path, notebook: Path
) -> None:
    (answer,) = asked(state_dir, "%bg_output ", env=here(notebook))
    assert [text for text, _replaced in answer] == [
        *("train", "名前", "'build it'"), *map(str, range(7, 0, -1)),
    ]  # fmt: skip


def test_where_nothing_fits_nothing_is_offered(state_dir: Path, notebook: Path) -> None:
    texts = ["%bg_output nothing", "%bg nonsense ", "%bg_list --state pri", "%bg_search pri"]
    assert asked(state_dir, *texts, env=here(notebook)) == [[]] * len(texts)


def test_other_lines_are_completed_as_ever(state_dir: Path, notebook: Path) -> None:
    texts = ["%%background\nimport operat", "%bg_outp", "fra", "%%background fr\nframe"]
    answers = asked(state_dir, *texts, env=here(notebook))
    assert [sorted(text for text, _replaced in answer) for answer in answers] == [
        ["operator"], ["%bg_output"], ["frame", "frames", "frozenset"][:2], ["frame", "frames"],
    ]  # fmt: skip


def test_without_a_store_there_is_nothing_and_none_is_made(state_dir: Path) -> None:
    texts = ["%bg_output ", "%bg_list --session ", "%bg_list --tag "]
    assert asked(state_dir, *texts) == [[]] * 3
    assert not state_dir.exists()


def test_a_store_of_an_older_version_is_left_as_it_is(state_dir: Path, notebook: Path) -> None:
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        store.database.execute("PRAGMA user_version = 3")
    shown = complete_in_shell(state_dir, notebook, "jupyter-bg output ")
    assert (shown.stdout.strip(), shown.stderr) == ("", "")
    assert not (state_dir / "backups").exists()


def test_a_kernel_completes_as_well(make_kernel: Callable[..., NotebookKernel]) -> None:
    kernel = make_kernel()
    kernel.run("%%background train\n1")
    kernel.run("%bg_wait")
    for code, matches in {
        "%bg_output tr": ["train"],
        "import os\n%bg_list --state com": ["completed"],
        "%bg_output nothing": [],
        "%%background --proc": ["--process"],
    }.items():
        reply = kernel.complete(code)
        assert reply["matches"] == matches
        if matches:
            assert matches[0].startswith(code[reply["cursor_start"] : reply["cursor_end"]])


# In the system's shell.


def complete_in_shell(
    state_dir: Path, notebook: Path, line: str
) -> subprocess.CompletedProcess[str]:
    """What bash would be told of this line."""
    words = line.split(" ")
    more = {
        "_JUPYTER_BG_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        **here(notebook),
    }
    return subprocess.run(
        [sys.executable, "-m", "ipytaskpersist"], env=environment(state_dir, more),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_shell_asks_the_same_definitions(state_dir: Path, notebook: Path) -> None:
    for line, expected in {
        "jupyter-bg ou": "plain,output",
        "jupyter-bg output tr": "plain,train",
        "jupyter-bg list --state can": "plain,cancelled",
        "jupyter-bg list --session a": "plain,a1b2c3d4",
        "jupyter-bg restore ": "file,",
        "jupyter-bg nonsense ": "",
        "jupyter-bg output 'unclosed": "",
    }.items():
        shown = complete_in_shell(state_dir, notebook, line)
        assert (shown.stdout.strip(), shown.stderr) == (expected, ""), line


def test_a_shell_gets_the_script_that_asks(state_dir: Path) -> None:
    env = environment(state_dir, {"_JUPYTER_BG_COMPLETE": "zsh_source"})
    shown = subprocess.run(
        [sys.executable, "-m", "ipytaskpersist"], env=env, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert shown.returncode == 0
    assert "#compdef jupyter-bg" in shown.stdout
    assert not state_dir.exists()


# The definitions.


def test_every_parameter_that_names_a_task_or_session_can_be_completed() -> None:
    for verb, command in every_verb().items():
        for parameter in command.params:
            if parameter.name in ("ref", "refs", "session", "tags"):
                assert parameter._custom_shell_complete is not None, (verb, parameter.name)


# Lines.


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("3 # the third", ["3"]),
        ("# nothing", []),
        ("#3 run#4", ["#3", "run#4"]),
        ("'a # b' c", ["a # b", "c"]),
        ("\"it's # b\" # don't", ["it's # b"]),
        (r"a\ # b", ["a #", "b"]),
        ("a '#' b", ["a", "#", "b"]),
    ],
)
def test_a_hash_by_itself_begins_a_comment(line: str, words: list[str]) -> None:
    assert command_line.words(line) == words


def test_a_comment_after_a_command_is_ignored(kernel: NotebookKernel) -> None:
    kernel.run("%%background train # the first one\n1 + 1")
    kernel.run("%bg_wait train # not for long")
    assert "train" in kernel.run("%bg_list  # don't ask").text
    (record,) = json.loads(kernel.run("%bg_list --json # all").text)["tasks"]
    assert record["name"] == "train"
