"""In IPython's terminal a task that has ended says so before the next prompt, and only there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kernels import NotebookKernel, until

from ipytaskpersist.base.records import TaskState

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo-terminals of this kind", allow_module_level=True)

from terminals import ANSI, PROMPTS, IPython, ended, gate, prompt, start, stored, wait_for

__all__ = ["gate", "prompt", "start"]

SAID = re.compile(r"[✓✕⊘◐] (?:completed|failed|cancelled|interrupted) · [^\n]*")


def count(terminal: IPython) -> int:
    return len(SAID.findall(ANSI.sub("", terminal.log.getvalue())))


def all_ended(state_dir: Path, number: int) -> None:
    def have() -> bool:
        tasks = stored(state_dir)
        return len(tasks) == number and all(task.state.is_final for task in tasks)

    until(have, message=f"the end of {number} tasks")


def test_an_end_is_told_before_the_next_prompt_once(
    start: Callable[..., IPython], prompt: list[str], gate: Path, state_dir: Path
) -> None:
    terminal = start(prompt)
    terminal.run("%%background train", wait_for(gate))
    gate.touch()
    assert ended(state_dir).state is TaskState.COMPLETED
    terminal.type("")  # as in a shell, where Enter alone shows it
    terminal.expect("✓ completed")
    rest = terminal.expect("\n")
    assert re.fullmatch(r" · 1 \(train\) · 0:0\d   %bg_output 1\s*", rest)
    assert terminal.expect(rf"In \[{terminal.count}\]:").strip() == ""
    assert "completed" not in terminal.run("1")


def test_nothing_is_told_while_somebody_types(
    start: Callable[..., IPython], prompt: list[str], gate: Path, state_dir: Path
) -> None:
    terminal = start(prompt)
    terminal.run("%%background", wait_for(gate), "1 / 0")
    terminal.process.send("print('first' + ")
    gate.touch()
    assert ended(state_dir).state is TaskState.FAILED
    terminal.type("' second')")
    shown = terminal.expect("first second")
    assert not SAID.search(shown)
    assert re.search(
        r"✕ failed · 1 · 0:0\d · ZeroDivisionError: division by zero   %bg_show 1",
        terminal.until_prompt(),
    )


def test_several_ends_come_together_and_many_are_counted(
    start: Callable[..., IPython], state_dir: Path
) -> None:
    terminal = start(PROMPTS["simple"])
    terminal.run("for n in range(14): get_ipython().run_line_magic('background', '7')")
    all_ended(state_dir, 14)
    terminal.run("1")
    told = ANSI.sub("", terminal.log.getvalue())
    more = re.findall(r"(\d+) other tasks have ended; %bg_list shows them", told)
    assert count(terminal) + sum(map(int, more)) == 14


def test_an_end_that_was_shown_is_not_told_again(
    start: Callable[..., IPython], gate: Path, state_dir: Path
) -> None:
    terminal = start(PROMPTS["simple"])
    for number, (command, shown) in enumerate({"%bg_wait": 1, "%bg_output --follow": 1}.items(), 1):
        terminal.run("%%background", wait_for(gate))
        terminal.type(command)
        gate.touch()
        all_ended(state_dir, number)
        terminal.until_prompt()
        terminal.run("1")
        assert count(terminal) == shown, command
        gate.unlink()


def test_a_process_of_the_session_before_is_told(
    start: Callable[..., IPython], gate: Path, state_dir: Path
) -> None:
    first = start(PROMPTS["simple"])
    first.run("%%background --shell long", f"while [ ! -e '{gate}' ]; do sleep 0.05; done")
    first.leave()
    second = start(PROMPTS["simple"])
    assert "1 running" in second.greeting
    gate.touch()
    ended(state_dir)
    assert "✓ completed · 1 (long)" in second.run("1")


def test_another_terminals_threads_are_its_own(
    start: Callable[..., IPython], state_dir: Path
) -> None:
    here, there = start(PROMPTS["simple"]), start(PROMPTS["simple"])
    there.run("%background 1")
    ended(state_dir)
    here.run("1")
    assert count(here) == 0
    there.run("1")
    assert count(there) == 1


def test_what_came_back_from_an_archive_has_not_just_ended(
    start: Callable[..., IPython], state_dir: Path
) -> None:
    terminal = start(PROMPTS["simple"])
    terminal.run("%background 1")
    ended(state_dir)
    terminal.run("1")
    assert "moved" in terminal.run("%bg_archive 1")
    assert "moved" in terminal.run("%bg_unarchive 1")
    terminal.run("1")
    assert count(terminal) == 1


def test_a_line_is_as_wide_as_the_terminal_is_now(
    start: Callable[..., IPython], state_dir: Path
) -> None:
    terminal = start(PROMPTS["simple"])
    for number, columns in enumerate((40, 200), 1):
        terminal.process.setwinsize(40, columns)
        terminal.run("%%background a-task-with-a-long-name", "raise ValueError('x' * 300)")
        all_ended(state_dir, number)
        terminal.run("1")
        *_earlier, line = told = SAID.findall(ANSI.sub("", terminal.log.getvalue()))
        assert len(told) == number
        assert len(line.rstrip()) <= columns
        assert (f"%bg_show {number}" in line) is (columns == 200)
        assert ("ValueError" in line) is (columns == 200)
        assert f"{number} (a-" in line


def test_unloading_ends_the_announcements(start: Callable[..., IPython], state_dir: Path) -> None:
    terminal = start(PROMPTS["simple"])
    terminal.run("%background 1")
    ended(state_dir)
    terminal.run("%bg_list")
    terminal.run("%background 1")
    all_ended(state_dir, 2)
    terminal.run("code = lambda: get_ipython().prompt_for_code.__code__")
    terminal.run("from ipytaskpersist.base.stand_ins import is_of_replacement")
    assert "True" in terminal.run("is_of_replacement(code())")
    terminal.run("%unload_ext ipytaskpersist")
    assert "False" in terminal.run("is_of_replacement(code())")


def test_a_notebook_has_cards_and_no_announcements(kernel: NotebookKernel) -> None:
    cell = kernel.run("%background 1")
    kernel.run("%bg_wait")
    assert not SAID.search(kernel.run("1").stream("stdout"))
    assert cell.outputs
