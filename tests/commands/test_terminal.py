"""In IPython's terminal, and in the system's, a task is what it is in a notebook."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pexpect
import pytest
from kernels import until
from programs import TIMEOUT_S, environment

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.records import OutputKind, TaskRecord, TaskState
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo-terminals of this kind", allow_module_level=True)

from terminals import (
    ANSI,
    COMMAND,
    PROMPTS,
    IPython,
    Terminal,
    ended,
    gate,
    prompt,
    start,
    stored,
    terminal,
    wait_for,
)

__all__ = ["gate", "prompt", "start", "terminal"]

# What is printed goes to whom it belongs. No marker stands as such in what is typed, because the
# terminal shows that as well.


def test_the_foreground_and_a_task_print_apart(terminal: IPython) -> None:
    launched = terminal.run(
        "%%background talk", "import time",
        "for n in range(100): print('ta'+'sk', n); time.sleep(.005)",
    )  # fmt: skip
    assert re.search(r"background task \d+ \(talk\) has started", launched)
    shown = terminal.run(
        "import time; [(print('fore'+'ground', n), time.sleep(.005)) and 0 for n in range(100)][0]"
    )
    terminal.run("%bg_wait")
    read = terminal.run("%bg_output")
    assert re.findall(r"foreground (\d+)", shown) == [str(n) for n in range(100)]
    assert not re.findall(r"task (\d+)", shown)
    assert re.findall(r"task (\d+)", read) == [str(n) for n in range(100)]
    assert "foreground" not in read


def test_a_task_that_prints_while_the_prompt_waits_does_not_disturb_it(
    terminal: IPython, gate: Path
) -> None:
    terminal.run(
        "%%background", wait_for(gate), "import sys",
        "print('mark'+'er'); print('mark'+'er', file=sys.stderr); sys.stdout.flush()",
    )  # fmt: skip
    gate.touch()
    assert ended(terminal.state_dir).last_line == "marker"
    assert "marker" not in terminal.run("1")
    assert terminal.run("%bg_output").count("marker") == 2


def test_commands_that_a_task_starts_print_into_it(terminal: IPython) -> None:
    shown = terminal.run("%%background", "!echo com''mand")
    assert ended(terminal.state_dir).last_line == "command"
    assert "command" not in shown + terminal.run("1")
    assert "command" in terminal.run("%bg_output")


def test_a_process_has_the_aliases_of_a_terminal_without_a_word(terminal: IPython) -> None:
    terminal.run('get_ipython().run_cell_magic("background", "--process apart", "print(6 * 7)")')
    terminal.run("%bg_wait apart")
    # A kernel has magics of its own for some of them, such as %less.
    shown = terminal.run("%bg_output apart")
    assert "42" in shown
    assert "alias" not in shown


def test_what_a_task_returns_does_not_become_the_last_output(terminal: IPython) -> None:
    terminal.run("6 * 7")
    terminal.run("%%background", "1000 + 1")
    terminal.run("%bg_wait")
    assert re.search(r"Out\[\d+\]: 42", terminal.run("_"))
    assert re.search(r"Out\[\d+\]: 1001", terminal.run("%bg_result"))


def test_a_failed_task_shows_its_traceback_and_its_reason(terminal: IPython) -> None:
    terminal.run("%%background bad", "1 / 0")
    assert re.search(r"failed · \d+ \(bad\)", terminal.run("%bg_wait"))
    assert "ZeroDivisionError: division by zero" in terminal.run("%bg_list")
    shown = terminal.run("%bg_output")
    assert "----> 1 1 / 0" in shown
    assert "ipytaskpersist" not in shown


def test_the_list_fits_the_terminal(terminal: IPython) -> None:
    terminal.run("%%background long", "print('x' * 1000)")
    terminal.run("%bg_wait")
    lines = terminal.run("%bg_list").splitlines()
    (row,) = [line for line in lines if line.split()[1:2] == ["long"]]
    assert 100 < len(row) <= 160


# Interrupts.


def test_an_interrupt_ends_the_waiting_and_not_the_task(terminal: IPython, gate: Path) -> None:
    terminal.run("%%background slow", wait_for(gate), "'fin'+'ished'")
    terminal.type("%bg_wait")
    terminal.expect("running")
    terminal.process.sendintr()
    assert re.search(r"no longer waiting; \d+ \(slow\) runs on", terminal.until_prompt())
    assert "running" in terminal.run("%bg_show")
    gate.touch()
    assert ended(terminal.state_dir).state is TaskState.COMPLETED
    assert "'finished'" in terminal.run("%bg_result")


def test_an_interrupt_of_the_foreground_reaches_neither_a_task_nor_its_commands(
    terminal: IPython, gate: Path
) -> None:
    script = f"while [ ! -e {shlex.quote(str(gate))} ]; do sleep 0.05; done; echo sur''vived"
    terminal.run("%%background --thread", f"!{script}")
    # Not one long sleep: Python begins it without a look at a signal that came just before.
    terminal.type("import time; print('be'+'gun'); [time.sleep(.01) for _ in iter(int, 1)]")
    terminal.expect("begun")
    terminal.process.sendintr()
    assert "KeyboardInterrupt" in terminal.until_prompt()
    gate.touch()
    task = ended(terminal.state_dir)
    assert (task.state, task.last_line) == (TaskState.COMPLETED, "survived")


def test_cancelling_ends_the_commands_of_a_task(terminal: IPython, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    command = f"!echo $$ > {shlex.quote(str(pid_file))}; exec sleep 1000"
    terminal.run("%%background --thread", command)
    pid = int(until(lambda: pid_file.exists() and pid_file.read_text()))
    assert ProcessIdentity.of(pid)
    terminal.run("%bg_cancel")
    assert ended(terminal.state_dir).state is TaskState.CANCELLED
    until(lambda: ProcessIdentity.of(pid) is None, message="the end of the command")


# Completion.


def test_tab_completes_names_and_options(start: Callable[..., IPython], state_dir: Path) -> None:
    terminal = start(PROMPTS["full"])
    terminal.run("%%background training", "print('out'+'put')")
    ended(state_dir)
    terminal.process.send("%bg_output trai\t")
    terminal.process.expect("trai(ning)?")
    terminal.process.send(" --std\t")  # of which there are two, in a menu
    terminal.expect("--stderr")
    terminal.process.send("\x03")  # Ctrl-C: another line
    terminal.type("%bg_output trai\t")
    assert "output" in terminal.until_prompt()


def test_a_command_that_runs_twice_says_so(start: Callable[..., IPython], state_dir: Path) -> None:
    terminal = start(["--simple-prompt"])
    line = "%background import time; time.sleep(1000)"
    assert "twice" not in terminal.run(line)
    again = terminal.run(line)
    assert re.search(
        r"this cell now runs twice: task 1 has run since \d\d:\d\d UTC; %bg_cancel 1 ends it, "
        r"%bg_cancel 2 ends this one",
        again,
    )
    terminal.run("%config BackgroundTasks.if_running = 'attach'")
    assert "nothing was started: task 2 of this cell has run since" in terminal.run(line)
    assert len(stored(state_dir)) == 2


# The end, and the next beginning.


def test_the_next_ipython_in_the_folder_has_everything(
    start: Callable[..., IPython], prompt: list[str], state_dir: Path
) -> None:
    first = start(prompt)
    first.run("%%background done", "print('prin'+'ted')", "[1, 2, 3]")
    first.run("%bg_wait")
    first.run("%background 1/0")  # from now on, errors are shown fast
    first.run("%bg_wait -1")
    # It reads a variable all the time, and IPython clears them all when it ends.
    live = ("import time", "print('be'+'gun')", "while True: time.sleep(.001)")
    first.run("%%background live", *live)
    until(lambda: stored(state_dir)[-1].last_line == "begun")
    begun = time.monotonic()
    first.leave()
    assert time.monotonic() - begun < 10
    assert (first.process.exitstatus, first.process.signalstatus) == (0, None)

    second = start(prompt)
    assert "While you were away: 1 task was interrupted." in second.greeting
    assert "printed" in second.run("%bg_output done")
    assert "[1, 2, 3]" in second.run("%bg_result done")
    assert "begun" in second.run("%bg_output live")
    assert "interrupted" in second.run("%bg_show live")
    assert stored(state_dir)[-1].reason == "IPython ended"
    assert "background task 4" in second.run("%%background", "1")


def test_a_killed_ipython_is_noticed(start: Callable[..., IPython], state_dir: Path) -> None:
    first = start(PROMPTS["simple"])
    first.run("%%background live", "print('be'+'gun')", "import time; time.sleep(1000)")
    until(lambda: stored(state_dir)[-1].last_line == "begun")
    first.process.kill(9)
    first.end()
    first.close()
    second = start(PROMPTS["simple"])
    assert "While you were away: 1 task was interrupted." in second.greeting
    (task,) = stored(state_dir)
    assert (task.state, task.reason) == (TaskState.INTERRUPTED, "IPython died")


def test_another_folder_has_tasks_of_its_own(start: Callable[..., IPython]) -> None:
    here = start(PROMPTS["simple"], "here")
    here.run("%background 1")
    there = start(PROMPTS["simple"], "there")
    assert "before" not in there.greeting
    assert "no background tasks" in there.run("%bg_list")
    assert "completed" in there.run("%bg_list --all")


LOOK = """
import builtins, os, subprocess, sys, threading, time
def look():
    shell = get_ipython()
    def function(method):
        plain = getattr(method, "__func__", method)
        return id(plain), getattr(plain, "__code__", None)
    names = [thread.name for thread in threading.enumerate()]
    return {
        "stdout": type(sys.stdout), "stderr": type(sys.stderr),
        "sleep": function(time.sleep), "start": function(threading.Thread.start),
        "fork": function(os.fork), "input": function(builtins.input),
        "handles": function(subprocess.Popen._get_handles), "tee": function(shell._tee),
        "error": function(shell._showtraceback), "run_cell": function(shell.run_cell),
        "prompt": function(sys.modules["IPython.terminal.interactiveshell"].patch_stdout),
        "asking": function(shell.prompt_for_code), "completion": [*shell.Completer.custom_matchers],
        "publish": function(shell.display_pub.publish),
        "workers": [name for name in names if name.startswith("background ")],
        "own": [name for name in names if "taskpersist" in name],
        "magics": sorted(shell.magics_manager.magics["line"]),
    }
def changed():
    now = look()
    return [name for name in now if now[name] != before[name]]
before = look()
"""


def test_unloading_puts_the_terminal_back(
    start: Callable[..., IPython], prompt: list[str], tmp_path: Path
) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    terminal = start(prompt, load=False)
    terminal.run("%unload_ext nothing")  # IPython makes this magic when it is first used
    terminal.run("%run -i ../look.py")
    terminal.run("%load_ext ipytaskpersist")
    terminal.run("%%background", "print(1)", "!echo 2")
    terminal.run("%bg_wait")
    assert "'start'" in terminal.run("print(changed())")
    terminal.run("%unload_ext ipytaskpersist")
    terminal.run("_ = [time.sleep(.01) for n in range(300) if changed()]")
    assert "changed: []" in terminal.run("print('chan'+'ged:', changed())")
    plain = "print('wri'+'te', type(sys.stdout.write).__module__)"
    assert "ipytaskpersist" not in terminal.run(plain)
    assert "printed as ever" in terminal.run("print('printed as '+'ever')")


# Questions.


def test_delete_asks_in_ipython(start: Callable[..., IPython], state_dir: Path) -> None:
    terminal = start(PROMPTS["simple"])
    terminal.run("%background 1")
    ended(state_dir)
    for answer, is_deleted in ("no", False), ("", False), ("yes", True):
        terminal.type("%bg_delete 1")
        terminal.expect("Delete 1 with all outputs.*Type 'yes' to confirm: ")
        shown = terminal.run(answer)
        assert ("deleted 1" in shown) is is_deleted
        assert ("nothing was changed" in shown) is not is_deleted
        assert (stored(state_dir) == []) is is_deleted


@pytest.fixture
def task(state_dir: Path) -> TaskRecord:
    """An ended task of another notebook, with a megabyte of output."""
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        identity = SessionIdentity("a1b2c3d4-x", "kernel", "/a", True, "u", ProcessIdentity.own())
        session = store.sessions.begin(identity)
        new = NewTask(session.notebook_key, session.id, "big", "python", "thread", "")
        task = store.tasks.insert(new)
        store.tasks.start(task.key, time.time())
        text = "".join(f"{number:063}\n" for number in range(4000)).encode()
        row = NewOutput(task.key, OutputKind.STDOUT, time.time(), text, 0, 0, 4000, "x").as_row()
        for _ in range(4):
            store.outputs.append([row])
        store.tasks.end(task.key, TaskState.COMPLETED, None, 0, time.time())
        return task


@pytest.mark.parametrize(("answer", "is_deleted"), [("no", False), ("yes", True)])
def test_delete_asks_in_a_terminal(
    task: TaskRecord, state_dir: Path, tmp_path: Path, answer: str, is_deleted: bool
) -> None:
    terminal = Terminal([*COMMAND, "delete", task.id], tmp_path, environment(state_dir))
    with closing(terminal):
        # Of another notebook as well: one question is enough.
        terminal.expect("Type 'yes' to confirm: ")
        terminal.type(answer)
        shown = terminal.end()
        assert ("deleted 1 (big)" in shown) is is_deleted
        assert (stored(state_dir) == []) is is_deleted
        assert terminal.process.exitstatus == (0 if is_deleted else 1)


@pytest.mark.parametrize(("answer", "is_deleted"), [("no", False), ("yes", True)])
def test_deleting_a_session_asks_in_a_terminal(
    task: TaskRecord, state_dir: Path, tmp_path: Path, answer: str, is_deleted: bool
) -> None:
    arguments = [*COMMAND, "delete", "--session", task.session[:8]]
    terminal = Terminal(arguments, tmp_path, environment(state_dir))
    with closing(terminal):
        terminal.expect(r"Delete session a1b2c3d4\? \(1 task, last active .*\) Type 'yes' to con")
        terminal.type(answer)
        terminal.end()
        assert (stored(state_dir) == []) is is_deleted
        assert terminal.process.exitstatus == (0 if is_deleted else 1)


def interrupted(terminal: Terminal) -> bool:
    """Press Ctrl+C. Returns whether the program has ended within a moment."""
    terminal.process.sendintr()
    return terminal.process.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=5) == 0


def test_an_interrupt_at_the_question_changes_nothing(
    task: TaskRecord, state_dir: Path, tmp_path: Path
) -> None:
    terminal = Terminal([*COMMAND, "delete", task.id], tmp_path, environment(state_dir))
    with closing(terminal):
        terminal.expect("Type 'yes' to confirm: ")
        # What is typed before readline has taken over the terminal is thrown away with the rest.
        until(lambda: interrupted(terminal), TIMEOUT_S, "the end of the program")
        assert "Traceback" not in terminal.end()
        assert terminal.process.exitstatus == 130
        assert [each.id for each in stored(state_dir)] == [task.id]


# Pipes.


def shell(
    state_dir: Path, command: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.replace("bg ", f"{shlex.join(COMMAND)} ")],
        env=environment(state_dir), cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("options", ["", "--raw", "--json", "--follow", "--stdout --tail 3000"])
def test_a_reader_that_has_seen_enough_is_no_error(
    task: TaskRecord, state_dir: Path, options: str
) -> None:
    piped = shell(state_dir, f"bg output {task.id} {options} | head -n 2")
    assert (piped.returncode, piped.stderr) == (0, "")
    assert len(piped.stdout.splitlines()) == 2


def test_a_reader_that_reads_nothing_is_no_error(task: TaskRecord, state_dir: Path) -> None:
    for command in ("bg list --all", f"bg show {task.id}", f"bg output {task.id} --tail 1"):
        piped = shell(state_dir, f"{command} | true")
        assert (piped.returncode, piped.stdout, piped.stderr) == (0, "", ""), command


def test_output_is_whole_through_a_pipe(task: TaskRecord, state_dir: Path) -> None:
    counted = shell(state_dir, f"bg output {task.id} | wc -lc")
    assert counted.stdout.split() == ["16000", str(16000 * 64)]


def test_there_are_colours_in_a_terminal_and_none_in_a_pipe(
    task: TaskRecord, state_dir: Path, tmp_path: Path
) -> None:
    terminal = Terminal([*COMMAND, "list", "--all"], tmp_path, environment(state_dir))
    with closing(terminal):
        terminal.end()
        assert "\x1b[" in terminal.log.getvalue()
        assert "✓ completed" in ANSI.sub("", terminal.log.getvalue())
    piped = shell(state_dir, "bg list --all | cat")
    assert "✓ completed" in piped.stdout
    assert "\x1b" not in piped.stdout


def test_a_terminal_that_knows_only_ascii_is_no_error(task: TaskRecord, state_dir: Path) -> None:
    for command in ("list --all", f"show {task.id}", f"wait {task.id}", f"output {task.id}"):
        listed = shell(state_dir, f"PYTHONUTF8=0 PYTHONIOENCODING=ascii LC_ALL=C bg {command}")
        assert listed.returncode == 0, listed.stderr
        assert "Traceback" not in listed.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' file names are texts")
def test_a_folder_whose_name_is_no_text_is_a_notebook_like_any_other(
    state_dir: Path, tmp_path: Path
) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(folder)).mkdir()
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        path = os.fsdecode(folder)
        identity = SessionIdentity(
            "a1b2c3d4-x", "terminal", path, True, None, ProcessIdentity.own()
        )
        session = store.sessions.begin(identity)
        store.tasks.insert(
            NewTask(session.notebook_key, session.id, "here", "python", "thread", "")
        )
    listed = shell(state_dir, "bg list", folder)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "here" in listed.stdout
