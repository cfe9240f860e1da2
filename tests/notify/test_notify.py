"""The end of a task is told where that was asked for: once, plainly, and with no secret shown."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from histories import add_task, begin_session
from kernels import NotebookKernel, command_of, processes_of, until
from programs import run_command, run_python
from traitlets.config import Config

from ipytaskpersist.base.notify_target import NotifyTarget
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.errors import InvalidRequest, InvalidSetting
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.notify import dispatch, notifier, targets
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store import problems
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

MakeKernel = Callable[..., NotebookKernel]
SECRET = "s3cr3t"


@dataclass
class Inbox:
    """A web server of the test's own that takes messages."""

    address: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)

    def bodies(self) -> dict[str, str]:
        """The messages by their titles without the time that they name."""
        return {
            message["title"].rpartition(" (")[0]: message["message"] for message in self.messages
        }

    def first(self) -> dict[str, Any]:
        return until(lambda: self.messages, message="a message")[0]


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    inbox = Inbox()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            inbox.messages.append(json.loads(self.rfile.read(size)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    inbox.address = f"json://ada:{SECRET}@127.0.0.1:{server.server_port}/hook-{SECRET}"
    yield inbox
    server.shutdown()
    thread.join()
    server.server_close()


def nobody_tells(state_dir: Path) -> bool:
    """Whether no process is left that could still tell something."""
    return not any("notifier" in command_of(process) for process in processes_of(state_dir))


def tasks_of(store: TaskStore) -> dict[str, TaskRecord]:
    return {task.name: task for task in store.tasks.select(Selection())}


# Who tells.


def test_each_end_is_told_exactly_once_whoever_owned_the_task(
    make_kernel: MakeKernel, store: TaskStore, inbox: Inbox, state_dir: Path, tmp_path: Path
) -> None:
    """In a thread and in a process, completed and failed; a cancelled one is not told."""
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")
    kernel.run(f"%config BackgroundTasks.notify = [{inbox.address!r}]")
    kernel.run("%%background --notify in a thread\nprint('the last line')")
    kernel.run("%%background --shell --notify fails\necho broken; exit 3")
    kernel.run("%%background --process --notify raises\n1 / 0")
    kernel.run("%%background --shell --notify endless\nsleep 600")
    kernel.run("%%background not asked\n1")
    kernel.run("%bg_cancel endless\n")
    kernel.run("%bg_wait 1 2 3 4 5")
    until(lambda: len(inbox.messages) == 3, message="three messages")
    kernel.run("%bg_list")
    until(lambda: nobody_tells(state_dir), message="the end of who tells")
    assert len(inbox.messages) == 3
    assert not any(task.notify for task in tasks_of(store).values())
    bodies, where = inbox.bodies(), f"a.ipynb on {socket.gethostname()}"
    assert bodies.keys() == {"✓ completed: in a thread", "✕ failed: fails", "✕ failed: raises"}
    assert bodies["✓ completed: in a thread"] == (
        f"{where} · task 1\n\nthe last line\n\n%bg_output 1"
    )
    assert bodies["✕ failed: fails"] == (
        f"{where} · task 2 · exit 3\n\nbroken\n\n%bg_output 2 · %bg_rerun 2"
    )
    assert "ZeroDivisionError: division by zero" in bodies["✕ failed: raises"]
    assert {message["type"] for message in inbox.messages} == {"success", "failure"}


def test_what_ends_when_no_kernel_is_alive_is_told(
    make_kernel: MakeKernel, inbox: Inbox, state_dir: Path, tmp_path: Path
) -> None:
    """A command by its supervisor; a task that died with its kernel by whoever notices."""
    notebook, go = tmp_path / "a.ipynb", tmp_path / "go"
    kernel = make_kernel(notebook=notebook)
    to = f"--notify-to {inbox.address}"
    kernel.run(f"%%background --shell {to} build\nuntil test -e {go}; do sleep 0.02; done")
    kernel.run(f"%%background {to} lost\nimport time\nprint('begun')\ntime.sleep(600)")
    until(lambda: "begun" in kernel.run("%bg_output lost").text)
    kernel.kill()
    go.touch()
    assert inbox.first()["title"].startswith("✓ completed: build (")
    listed = [run_command(state_dir, "list", notebook=notebook) for _each in range(2)]
    assert [each.returncode for each in listed] == [0, 0]
    until(lambda: len(inbox.messages) == 2, message="the other message")
    until(lambda: nobody_tells(state_dir), message="the end of who tells")
    assert len(inbox.messages) == 2
    assert inbox.bodies().keys() == {"✓ completed: build", "◐ interrupted: lost"}


def test_a_kernel_that_is_restarted_tells_what_that_has_interrupted(
    make_kernel: MakeKernel, inbox: Inbox
) -> None:
    kernel = make_kernel()
    kernel.run(f"%%background --notify-to {inbox.address} long\nimport time\ntime.sleep(600)")
    kernel.restart()
    message = inbox.first()
    assert message["title"].startswith("◐ interrupted: long")
    assert "kernel restarted" in message["message"]


def test_of_several_who_would_tell_one_does(
    store: TaskStore, inbox: Inbox, state_dir: Path
) -> None:
    add_task(store, begin_session(store), notify=[inbox.address])
    for _each in range(4):
        dispatch.notify(store)
    inbox.first()
    until(lambda: nobody_tells(state_dir), message="the end of who tells")
    assert len(inbox.messages) == 1
    dispatch.notify(store)
    assert nobody_tells(state_dir), "there is nothing left to tell"


def test_what_somebody_who_was_killed_should_have_told_is_told_later(
    store: TaskStore, inbox: Inbox
) -> None:
    """Its end is recorded, and nobody has taken it upon himself to tell."""
    add_task(store, begin_session(store), name="just ended", notify=[inbox.address])
    add_task(store, begin_session(store), name="old", age_days=1, notify=[inbox.address])
    dispatch.notify_overdue(store)
    assert inbox.first()["title"].startswith("✓ completed: old")
    assert {name for name, task in tasks_of(store).items() if task.notify} == {"just ended"}


def test_what_a_removed_package_could_not_tell_the_next_command_tells(
    store: TaskStore, inbox: Inbox, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that was to tell cannot import it, and so takes nothing from the store."""
    removed = tmp_path / "ipytaskpersist"
    removed.mkdir()
    (removed / "__init__.py").write_text("raise ImportError('this version was removed')\n")
    task = add_task(store, begin_session(store), name="old", age_days=1, notify=[inbox.address])
    with monkeypatch.context() as changed:
        changed.setenv("PYTHONPATH", str(tmp_path))
        dispatch.notify(store)
    until(lambda: dispatch._started[-1].poll() is not None, message="the end of the notifier")
    assert "this version was removed" in store.directory.notifier_log.read_text()
    (kept,) = store.tasks.to_notify(task.key)
    assert kept.notify
    assert run_command(state_dir, "list", "--all").returncode == 0
    assert inbox.first()["title"].startswith("✓ completed: old")
    assert not tasks_of(store)["old"].notify


@pytest.mark.parametrize(("after_s", "is_told"), [(0.5, True), (5.0, False)])
def test_with_a_threshold_only_long_tasks_are_told(
    store: TaskStore, inbox: Inbox, after_s: float, is_told: bool
) -> None:
    wanted = targets.wanted(False, [], [inbox.address], after_s)
    add_task(store, begin_session(store), notify=wanted.kept())  # it takes a second
    dispatch.notify(store)
    for process in dispatch._started:
        process.wait(60)
    assert len(inbox.messages) == is_told
    assert not any(task.notify for task in tasks_of(store).values())


def test_the_settings_of_a_notebook_and_a_program_can_ask_for_it(
    kernel: NotebookKernel, inbox: Inbox
) -> None:
    kernel.run(f"import ipytaskpersist\nipytaskpersist.background('1', notify=[{inbox.address!r}])")
    assert inbox.first()["title"].startswith("✓ completed: task 1 (")
    kernel.run(f"%config BackgroundTasks.notify = [{inbox.address!r}]")
    kernel.run("%config BackgroundTasks.notify_after_s = 0")
    kernel.run("%background 1 + 1")
    until(lambda: len(inbox.messages) == 2, message="the other message")
    assert inbox.messages[1]["title"].startswith("✓ completed: task 2 (")


def test_the_command_line_of_who_tells_has_no_secret(store: TaskStore, state_dir: Path) -> None:
    """Other people of the machine see every command line."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        add_task(store, begin_session(store), notify=[f"json://127.0.0.1:{port}/{SECRET}"])
        dispatch.notify(store)
        silent.settimeout(30)
        connection, _address = silent.accept()
        connection.close()
        (process,) = [each for each in processes_of(state_dir) if "notifier" in command_of(each)]
        assert SECRET not in " ".join(process.cmdline())
        assert SECRET not in str(process.environ())
        process.kill()


# What is told.


def test_what_is_told_is_plain_text_of_a_few_lines(store: TaskStore) -> None:
    name = "a\x1b[31m\nSubject: x\r\u202e<b>"
    printed = b"".join(b"line %d \x1b[31mred\x1b[0m\x07\n" % number for number in range(100))
    printed += b"50%\r100% " + b"x" * 10_000
    task = add_task(store, begin_session(store), name=name, printed=printed)
    message = notifier.message_about(store, task)
    assert message.title == "✓ completed: a[31m Subject: x <b> (0:01)"
    text = message.body
    assert len(text) < 3000
    assert "line 99 red\n" in text
    assert "line 50" not in text
    assert all(character == "\n" or character.isprintable() for character in text)


# When it cannot be told.


def test_a_place_that_refuses_is_a_problem_on_record_without_its_secrets(
    store: TaskStore, state_dir: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    task = add_task(store, begin_session(store), name="train")
    message = notifier.message_about(store, task)
    place = f"json://ada:{SECRET}@127.0.0.1:{port}/{SECRET}2?x={SECRET}3"
    notifier.notify_all(store.directory, [(message, place)], pauses_s=(0.01,))
    (problem,) = problems.recorded(store.directory)
    shown = f"json://ada:***@127.0.0.1:{port}/***"
    assert problem.message.startswith(f"the end of task 1 (train) could not be told at {shown}: ")
    assert SECRET not in problem.message
    assert shown in run_command(state_dir, "doctor").stdout.replace("\n", " ")


def test_a_place_that_never_answers_is_given_up(store: TaskStore) -> None:
    task = add_task(store, begin_session(store))
    message = notifier.message_about(store, task)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"json://127.0.0.1:{silent.getsockname()[1]}"
        notifier.notify_all(store.directory, [(message, place)], pauses_s=(), deadline_s=0.2)
    (problem,) = problems.recorded(store.directory)
    assert problem.message.endswith("no answer in 0.2 s")


def test_without_apprise_the_person_is_told_how_to_install_it(state_dir: Path) -> None:
    ended = run_python(
        """import sys
sys.modules["apprise"] = None
from ipytaskpersist import background
background("true", shell=True, notify=["json://localhost"])""",
        state_dir,
    )
    assert ended.stderr.splitlines()[-1].endswith(
        "notifications need apprise; install it: pip install 'ipytaskpersist[notify]'"
    )


def test_where_apprise_was_removed_meanwhile_that_is_on_record(
    store: TaskStore, inbox: Inbox, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that tells finds another module of that name, which cannot be imported."""
    stub = tmp_path / "stub" / "apprise"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise ImportError('removed')")
    monkeypatch.setenv("PYTHONPATH", f"{stub.parent}:{Path(notifier.__file__).parents[1]}")
    add_task(store, begin_session(store), notify=[inbox.address])
    dispatch.notify(store)
    (problem,) = until(lambda: problems.recorded(store.directory), message="a problem")
    assert problem.message.endswith("is not installed; pip install 'ipytaskpersist[notify]'")
    assert SECRET not in problem.message


# What a person may ask for.


MISTAKES = {
    f"nosuch://{SECRET}": "apprise knows no place 'nosuch://***'",
    f"slack://{SECRET}": "the place 'slack://***' is not complete",
    f"slack:{SECRET}": "'slack:***' is no place for notifications; give 'desktop', or",
    "browser": "'browser' is no place for notifications",
}


def test_what_makes_no_sense_is_refused_in_one_line_without_its_secrets(
    kernel: NotebookKernel,
) -> None:
    for place, says in MISTAKES.items():
        cell = kernel.run(f"%%background --notify-to {place}\n1", check=False)
        (line,) = cell.stream("stderr").splitlines()
        assert says in line
        assert SECRET not in line
    text = kernel.run("%%background --notify\n1", check=False).stream("stderr")
    assert text.startswith("UsageError: --notify needs a place: set one with %config")
    assert "no background tasks" in kernel.run("%bg_list").text


@pytest.mark.parametrize("value", [[f"slack:{SECRET}"], ["desktop", 3, f"x:{SECRET}"], 5])
def test_a_setting_that_makes_no_sense_is_refused_without_its_secrets(
    state_dir: Path, value: object
) -> None:
    manager = BackgroundTasks()
    with pytest.raises(InvalidSetting, match="it must be a list of places") as caught:
        manager.update_config(Config({"BackgroundTasks": {"notify": value}}))
    assert SECRET not in str(caught.value)
    assert manager.notify == []


@pytest.mark.parametrize(
    ("platform", "schema"), [("linux", "dbus"), ("darwin", "macosx"), ("win32", "windows")]
)
def test_the_desktop_is_a_place_of_apprise_on_each_system(
    platform: str, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apprise.manager_plugins import NotificationManager

    monkeypatch.setattr("sys.platform", platform)
    url = targets.address("desktop")
    plugin = NotificationManager()[schema]
    assert url == f"{schema}://"
    assert plugin.parse_url(url)["schema"] == schema


# Secrets.


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("desktop", "desktop"),
        ("mailto://ada:pass@example.com", "mailto://ada:***@example.com"),
        ("mailto://ada:p/a@s?s@example.com", "mailto://***"),
        ("JSON://host:80/", "json://host:80"),
        ("json://token@host/hook?key=1", "json://***@host/***"),
        ("slack://A/B/C", "slack://***"),
        ("tgram://123:abc/42", "tgram://***"),
        ("discord:/A/B", "discord:***"),
    ],
)
def test_a_place_is_shown_without_what_may_be_secret(place: str, shown: str) -> None:
    assert targets.masked(place) == shown
    assert repr(NotifyTarget(place)) == repr(shown)


def test_no_secret_is_shown_exported_or_archived(
    make_kernel: MakeKernel, store: TaskStore, inbox: Inbox, state_dir: Path, tmp_path: Path
) -> None:
    notebook = tmp_path / "a.ipynb"
    kernel = make_kernel(notebook=notebook)
    kernel.run(f"%config BackgroundTasks.notify = [{inbox.address!r}]")
    kernel.run("%%background --shell --notify steady\nsleep 600")
    shown = targets.masked(inbox.address)
    for line in ("config", "config notify", "config --json", "show", "show --json"):
        text = kernel.run(f"%bg_{line}").text
        assert shown in text, line
        assert SECRET not in text, line
    assert SECRET not in kernel.run("%bg_list --json").text
    assert SECRET not in kernel.run("%config BackgroundTasks").text
    kernel.run("%bg_cancel\n%bg_wait")
    old = add_task(store, begin_session(store), age_days=40, notify=[inbox.address])
    exported = run_command(state_dir, "export", "--all").stdout
    assert old.id in exported
    assert SECRET not in exported
    archives = Archives(store)
    archives.archive([old])
    (archive,) = state_dir.glob("archive/*.db")
    archives.close()
    assert SECRET.encode() not in archive.read_bytes()


def test_a_supervisor_does_not_import_apprise(state_dir: Path) -> None:
    code = "import sys, ipytaskpersist.runners.supervisor; print('apprise' in sys.modules)"
    assert run_python(code, state_dir).stdout == "False\n"


def test_what_is_asked_for_goes_before_what_is_set() -> None:
    with pytest.raises(InvalidRequest, match="needs a place"):
        targets.wanted(True, [], [], None)
    found = targets.wanted(True, ["json://localhost"], [], 60.0)
    assert found == targets.Wanted(("json://localhost",))
    assert targets.Wanted.of(found.kept()) == found
