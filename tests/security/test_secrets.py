"""What looks like a secret by its name is in no file that is kept, shown or handed on."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from enum import StrEnum
from pathlib import Path

import pytest
from histories import add_task, begin_session
from kernels import NotebookKernel, until

from ipytaskpersist.base import redaction
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import Options
from ipytaskpersist.capture import post_mortem
from ipytaskpersist.doctor import report
from ipytaskpersist.history.documents import task_document
from ipytaskpersist.history.export_page import page
from ipytaskpersist.history.exporting import Export
from ipytaskpersist.history.fields import parsed
from ipytaskpersist.history.task_reading import task_of
from ipytaskpersist.runners.reconciling import forget_environments
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store import environments
from ipytaskpersist.store.exporting import task as portable
from ipytaskpersist.store.processes import NewProcess
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection
from ipytaskpersist.store.transfer import remove_tasks

VALUE = "hunter2-" + "z9" * 12
"""No text of this project, so whatever file has it has got it from the test."""


@pytest.fixture(autouse=True)
def usual_names() -> Iterator[None]:
    yield
    redaction.use(())


def files_with(value: str, *folders: Path) -> list[str]:
    """The files that hold a text, as it is or as JSON or UTF-16 would write it."""
    forms = (value.encode(), value.encode("utf-16-le"))
    return [
        str(file.relative_to(folder))
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file() and any(form in file.read_bytes() for form in forms)
    ]


# Which names.


@pytest.mark.parametrize(
    "name",
    ["API_TOKEN", "token", "PGPASSWORD", "db_passwd", "MY_SECRET_THING", "AWS_ACCESS_KEY_ID", "Key",
     "client_credentials", "Authorization", "COOKIE_JAR", "bearer", "private_pem", "PASSPHRASE"],
)  # fmt: skip
def test_a_name_of_a_secret_is_known_as_one(name: str) -> None:
    assert redaction.is_secret(name)


@pytest.mark.parametrize("name", ["PATH", "HOME", "model", "epochs", "", "t o k e n"])
def test_another_name_is_none(name: str) -> None:
    assert not redaction.is_secret(name)


def test_a_person_adds_patterns_and_nobody_takes_any_away(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's pyproject.toml may be a stranger's: it can only make more names secret."""
    (tmp_path / "pyproject.toml").write_text('[tool.ipytaskpersist]\nsecret_names = ["*_dsn"]\n')
    monkeypatch.chdir(tmp_path)
    manager = BackgroundTasks()
    assert manager.setting_problems == []
    assert redaction.is_secret("SENTRY_DSN")
    assert redaction.is_secret("api_token")
    manager.secret_names = []
    assert not redaction.is_secret("SENTRY_DSN")
    assert redaction.is_secret("api_token")


@pytest.mark.parametrize("given", ["[1]", '[""]', "true"])
def test_what_is_no_list_of_patterns_is_said(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.ipytaskpersist]\nsecret_names = {given}\n")
    monkeypatch.chdir(tmp_path)
    (problem,) = BackgroundTasks().setting_problems
    assert "must be a list of texts, each a pattern" in problem


# Environments.

CONFIGURE = """
import os
c, address = get_ipython().config, f"mailto://ada:{os.environ['THE_TOKEN']}@example.com"
c.BackgroundTasks.notify = [address]
c.Session.key = os.environ['THE_TOKEN'].encode()
%load_ext ipytaskpersist
%config BackgroundTasks.notify = [address]
%config BackgroundTasks.secret_names = ['*_dsn']
import ipytaskpersist as bg
"""
SAY = "echo got:${#GIVEN_TOKEN}:${#LATER_TOKEN}:$COLOUR; sleep 60"
FAIL = """
import os
def f(sentry_dsn, my_token, colour="blue"):
    1 / 0
{wait}
f(*[os.environ["THE_TOKEN"]] * 2)
"""


@pytest.fixture
def kernel(make_kernel: Callable[..., NotebookKernel], tmp_path: Path) -> NotebookKernel:
    """One that has a secret in its environment and in IPython's configuration."""
    kernel = make_kernel(notebook=tmp_path / "a.ipynb", load=False, env={"THE_TOKEN": VALUE})
    kernel.run(CONFIGURE)
    kernel.run("%%background --shell first\ntrue")  # its supervisor begins with what is there now
    kernel.run("%bg_wait 1")
    return kernel


def test_the_environment_of_a_process_is_in_no_file_that_is_kept(
    kernel: NotebookKernel, state_dir: Path, tmp_path: Path
) -> None:
    """Neither while the task runs nor afterwards: not in the store's free pages, nor its log, nor
    backup, archive, export; and it has got it, the values and all."""
    kernel.run("os.environ['LATER_TOKEN'] = os.environ['THE_TOKEN']")
    kernel.run(
        f"bg.background({SAY!r}, 'secret', shell=True, "
        "env={'GIVEN_TOKEN': os.environ['LATER_TOKEN'], 'COLOUR': 'blue'})"
    )
    said = f"got:{len(VALUE)}:{len(VALUE)}:blue"
    until(lambda: said in kernel.run("%bg_output secret").text)
    assert files_with(VALUE, state_dir) == []
    kernel.run("%bg_cancel secret")
    kernel.run("%bg_wait secret")
    kernel.run("%bg_backup")
    kernel.run(f"%bg_export --all --output {tmp_path / 'all.jsonl'}")
    shown = kernel.run("%bg_show secret --json").text
    assert json.loads(shown)["process"]["env"] == {"GIVEN_TOKEN": None, "COLOUR": "blue"}
    assert VALUE not in (tmp_path / "all.jsonl").read_text()
    # Run again with what is set now, or not at all.
    refused = kernel.run("%bg_rerun secret", check=False).text
    assert "GIVEN_TOKEN" in refused
    assert "not kept" in refused
    kernel.run("os.environ['GIVEN_TOKEN'] = 'new'\n%bg_rerun secret")
    until(lambda: f"got:3:{len(VALUE)}:blue" in kernel.run("%bg_output").text)
    kernel.run("%bg_cancel")
    kernel.run("%bg_archive 1 2")
    assert files_with(VALUE, state_dir) == []


def test_what_runs_and_fails_keeps_its_secrets(
    kernel: NotebookKernel, state_dir: Path, tmp_path: Path
) -> None:
    """No command line has what the environment has, which everybody on the machine can read; no
    summary of variables has the value of a name that is, or was made, that of a secret; and no
    export has what a process was given: IPython's configuration, and other cells."""
    kernel.run("mark = 'of another cell'; given = 'of a variable'")
    wait = (
        "import time\nwhile not os.path.exists('go'):\n    time.sleep(0.01)\nkept = given.upper()"
    )
    kernel.run(f"%%background --process failing\n{FAIL.format(wait=wait)}")
    kernel.run(f"%%background failing_too\n{FAIL.format(wait='')}")
    until(lambda: b"runners.child" in command_lines(state_dir))
    commands = command_lines(state_dir)
    assert b"runners.supervisor" in commands
    assert VALUE.encode() not in commands
    kernel.run("open('go', 'w').close()\n%bg_wait failing failing_too")
    for name in ("failing", "failing_too"):
        shown = kernel.run(f"%bg_show {name}").text
        assert "'blue'" in shown
        assert shown.count("hidden") == 2
    assert files_with(VALUE, state_dir) == []
    for form in ("jsonl", "json"):
        target = tmp_path / f"one.{form}"
        kernel.run(f"%bg_export failing --format {form} --output {target}")
        pickles = re.findall(r'"pickle":"([^"]+)"', target.read_text())
        data = b"".join(map(base64.b64decode, pickles))
        assert b"OF A VARIABLE" in data
        assert b"of another cell" not in data
        assert b"of a variable" not in data
        assert "<inputs>" not in target.read_text()


def command_lines(state_dir: Path) -> bytes:
    """The command lines of all processes that use a state directory."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(state_dir).encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes())
    return b"\n".join(found)


def new_process(state_dir: Path, store: TaskStore) -> NewTask:
    session = begin_session(store)
    return NewTask(session.notebook_key, session.id, "", "shell", "process", "true")


def test_an_environment_waits_for_its_task_alone(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there once, and not after the task was cancelled or its kernel has died."""
    directory = StateDirectory(state_dir)
    with closing(TaskStore(directory).open()) as store:
        new = new_process(state_dir, store)
        process = NewProcess(["true"], "/", 1, Options())
        waiting = store.tasks.insert(new, lambda c, key, _id: process.insert(c, key))
        gone = store.tasks.insert(new, lambda c, key, _id: process.insert(c, key))
        store.tasks.interrupt_pending(new.session_id, "kernel died", time.time())
        waiting = store.tasks.insert(new, lambda c, key, _id: process.insert(c, key))
        environments.put(directory, waiting.id, {"A": VALUE})
        for task_id in (gone.id, "ffffffff-1"):
            environments.put(directory, task_id, {"A": VALUE}, same_as=waiting.id)
        os.utime(directory.environment("ffffffff-1"), (0, 0))  # a link has the age of its file
        forget_environments(store)
        left = environments.kept(directory)
        assert left == {waiting.id, "ffffffff-1"}, "one is being made, and one waits"
        # The time at which a link was made cannot be set back.
        monkeypatch.setattr(environments, "BEING_MADE_S", 0)
        forget_environments(store)
        assert environments.kept(directory) == {waiting.id}
        assert environments.take(directory, waiting.id) == {"A": VALUE}
        assert environments.take(directory, waiting.id) is None


def test_a_value_that_a_file_or_an_older_store_has_is_not_handed_on(state_dir: Path) -> None:
    directory = StateDirectory(state_dir)
    with closing(TaskStore(directory).open()) as store:
        new = new_process(state_dir, store)
        options = Options(env={"API_TOKEN": VALUE, "COLOUR": "blue"})
        process = NewProcess(["true"], "/", 1, options)
        key = store.tasks.insert(new, lambda c, key, _id: process.insert(c, key)).key
        found = portable(store.database, key)
        assert found is not None
        document = task_document(found)
        assert document["process"]["options"]["env"] == {"API_TOKEN": None, "COLOUR": "blue"}
        document["process"]["options"]["env"]["API_TOKEN"] = VALUE
        read = task_of(parsed(json.dumps(document).encode()))
        assert read.process is not None
        assert read.process.options["env"] == {"API_TOKEN": None, "COLOUR": "blue"}


def test_what_is_deleted_is_written_over(state_dir: Path) -> None:
    """In the store's file, and in its log once that is empty."""
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        task = add_task(store, begin_session(store), printed=VALUE.encode(), name=VALUE)
        assert files_with(VALUE, state_dir) != []
        remove_tasks(store.database, [task.id])
    assert files_with(VALUE, state_dir) == []


# Where a task has failed.


class Header(StrEnum):
    AUTHORIZATION = "authorization"


@pytest.mark.parametrize(
    "value",
    [
        {"password": VALUE}, {b"api_key": VALUE}, {"db": {"Password": VALUE}},
        [{"token": VALUE}], ("Authorization", VALUE), [("Cookie", VALUE)],
        {Header.AUTHORIZATION: VALUE}, f"postgresql://ada:{VALUE}@db.example.com/x",
        {"dsn": f"amqp://ada:{VALUE}@mq"}, type("Account", (), {"__repr__": lambda _: VALUE})(),
    ],
    ids=lambda value: repr(value)[:24],
)  # fmt: skip
def test_a_summary_of_variables_has_no_value_of_a_secret(value: object) -> None:
    assert VALUE not in post_mortem.summary(value)


def test_the_key_is_in_nothing_that_is_handed_on(state_dir: Path, tmp_path: Path) -> None:
    """Not in an export, a backup, a log, a message of the doctor or a list of problems."""
    manager = BackgroundTasks()
    store = manager.store.open()
    task = add_task(store, begin_session(store))
    store.results.save(task.key, manager.payloads.save(task.id, "", [1], "[1]"))
    store.back_up(tmp_path / "copy.db")
    tasks = manager.tasks.select(Selection())
    for make in (Export.lines, Export.document, Export.notebook, page):
        (tmp_path / f"export-{make.__name__}").write_bytes(
            b"".join(make(Export(manager.archives, manager.payloads, tasks)))
        )
    said = report.as_text(report.examine(manager.directory))
    (tmp_path / "doctor").write_text(said)
    store.close()
    key = (state_dir / "signing.key").read_bytes()
    forms = (key, key.hex().encode(), base64.b64encode(key)[:-2])
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "signing.key"]
    assert len(files) > 6
    for file in files:
        data = file.read_bytes()
        assert not any(form in data for form in forms), file
