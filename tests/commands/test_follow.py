"""Following a task in a terminal: what it may do there, and how one leaves."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from programs import environment
from shells import own_session, shell

from ipytaskpersist.base.records import TaskState
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.text.terminal_filter import TerminalFilter

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo-terminals of this kind", allow_module_level=True)

from terminals import COMMAND, IPython, Terminal, ended, gate, prompt, start, wait_for

__all__ = ["gate", "prompt", "start"]

EVIL = (
    "\\033]0;title\\007\\033]52;c;aGVsbG8=\\007\\033[6n\\033[?1049h\\033[2J\\033[1;1H\\033[99Aforged"
    "\\033[?25l\\033P+q544e\\033\\\\\\033c\\033[5i"
)


@pytest.fixture
def session(state_dir: Path) -> Iterator[BackgroundTasks]:
    """This process's own session, whose shell tasks the tests follow."""
    with own_session(state_dir) as own:
        yield own


def follow(state_dir: Path, *arguments: str, columns: int = 80, **more: str) -> Terminal:
    env = environment(
        state_dir, {"IPYTASKPERSIST_NOTEBOOK": str(state_dir / "program.ipynb"), **more}
    )
    return Terminal([*COMMAND, "output", *arguments], state_dir.parent, env, columns)


def loop(gate: Path) -> str:
    return f"while [ ! -e {shlex.quote(str(gate))} ]; do sleep 0.02; done"


def test_ctrl_c_leaves_the_task_and_says_how_to_come_back(
    start: Callable[..., IPython], prompt: list[str], gate: Path, state_dir: Path
) -> None:
    terminal = start(prompt)
    terminal.run("%%background slow", "print('be'+'gun')", wait_for(gate), "print('do'+'ne')")
    terminal.type("%bg_output slow --follow")
    terminal.expect("begun")
    terminal.process.sendintr()
    left = terminal.until_prompt()
    assert "no longer following; task 1 (slow) runs on. %bg_output 1 --follow comes back" in left
    assert "Traceback" not in left
    gate.touch()
    assert ended(state_dir).state is TaskState.COMPLETED
    assert "done" in terminal.run("%bg_output 1 --follow")


def test_ctrl_c_in_a_terminal_has_the_exit_status_of_an_interrupt(
    session: BackgroundTasks, gate: Path, state_dir: Path
) -> None:
    task = shell(f"echo begun; {loop(gate)}; echo over", name="slow")
    with closing(follow(state_dir, "--follow")) as terminal:
        terminal.expect("begun")
        terminal.process.sendintr()
        left = terminal.end()
        assert "task 1 (slow) runs on. jupyter bg output 1 --follow comes back to it" in left
        assert terminal.process.exitstatus == 130
    gate.touch()
    assert task.wait(30)
    assert task.state is TaskState.COMPLETED


def test_progress_bars_move_and_colours_come_through_while_following(
    session: BackgroundTasks, gate: Path, state_dir: Path
) -> None:
    shell(
        "printf '\\r 10 %%'; printf '\\r 50 %%\\033[K'; "
        "printf '\\n\\033[31mred\\033[0m\\033[1A\\r'; "
        f"{loop(gate)}; printf '100 %%\\n\\n'"
    )
    with closing(follow(state_dir, "--follow")) as terminal:
        terminal.process.expect(re.escape("\x1b[1A\r"))
        gate.touch()
        terminal.end()
        sent = terminal.log.getvalue()
        assert "\r 10 %\r 50 %\x1b[K" in sent
        assert "\x1b[31mred\x1b[0m" in sent
        assert terminal.process.exitstatus == 0


@pytest.mark.parametrize("arguments", [["--follow"], []])
def test_nothing_else_comes_through(
    session: BackgroundTasks, state_dir: Path, arguments: list[str]
) -> None:
    shell(f"printf 'first\\n{EVIL} last\\033[7m\\n'").wait(30)
    with closing(follow(state_dir, *arguments)) as terminal:
        terminal.end()
        sent = terminal.log.getvalue()
    assert sent == "first\r\n\x1b[1Aforged last\x1b[7m\r\n\x1b[m"


def test_raw_is_raw(session: BackgroundTasks, state_dir: Path) -> None:
    shell(f"printf 'first\\n{EVIL}'").wait(30)
    with closing(follow(state_dir, "--raw")) as terminal:
        terminal.end()
        assert "\x1b]52;c;aGVsbG8=\x07" in terminal.log.getvalue()


@pytest.mark.parametrize(
    ("more", "sent"), [({"NO_COLOR": "1"}, "ab\x1b[K"), ({"TERM": "dumb"}, "ab")]
)
def test_who_wants_no_colours_gets_none_of_the_tasks(
    session: BackgroundTasks, state_dir: Path, more: dict[str, str], sent: str
) -> None:
    shell("printf '\\033[31ma\\033[0mb\\033[K'").wait(30)
    with closing(follow(state_dir, **more)) as terminal:
        terminal.end()
        assert terminal.log.getvalue() == sent


# What comes through, piece by piece.


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("a\tb\r\n\bc", "a\tb\r\n\bc"),
        ("\x1b[1;38;2;1;2;3mx\x1b[m", "\x1b[1;38;2;1;2;3mx\x1b[m"),
        ("a\x1b[2Kb\x1b[3Gc\x1b[1Dd\x1b[2Ce", "a\x1b[2Kb\x1b[3Gc\x1b[1Dd\x1b[2Ce"),
        ("a\x1b[5Ab", "ab"),
        ("1\n2\n3\x1b[9Ax\x1b[9By", "1\n2\n3\x1b[2Ax\x1b[2By"),
        ("1\n2\x1b[1Fx\x1b[Ey", "1\n2\r\x1b[1Ax\r\x1b[1By"),
        ("a\x1b[Jb\x1b[2Jc\x1b[3Jd", "a\x1b[Jbcd"),
        ("a\x9b2Jb\x90q\x9cc\x85d\x07e", "abqcde"),
        ("a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\b", "alinkb"),
        ("a\x1b(0b\x1b7c\x1b8d\x1b=e\x1bcf\x1b#8g", "abcdefg"),
        ("a\x1b[?2004hb\x1b[1;2rc\x1b[Ld\x1b[Se\x1b[>4;1mf", "abcdef"),
        ("a\x1bPq\x1b\\b\x1b_x\x1b\\c", "abc"),
        ("a\x1b[1\nb\x1b\nc\x1b[1\x1b[1md", "a\nb\nc\x1b[1md"),
        ("日本 שלום é", "日本 שלום é"),
    ],
)
def test_a_passage_lets_through_what_stays_in_its_place(text: str, passed: str) -> None:
    assert TerminalFilter().let_through(text) == passed
    whole = TerminalFilter()
    assert "".join(whole.let_through(character) for character in text) == passed


def test_a_sequence_that_never_ends_holds_nothing_back_for_ever() -> None:
    passage = TerminalFilter()
    shown = "".join(
        passage.let_through(piece) for piece in ("\x1b]0;", *["x" * 1000] * 9, "\x07end")
    )
    assert shown.endswith("end")
    assert "\x1b" not in shown
    assert "\x1b" not in passage.let_through("\x1b[" + "1" * 100_000)


def test_two_streams_do_not_mix_their_sequences() -> None:
    passage = TerminalFilter()
    assert passage.let_through("a\x1b[3", "stdout") == "a"
    assert passage.let_through("5m", "stderr") == "5m"
    assert passage.let_through("1mb", "stdout") == "\x1b[31mb"


def test_the_end_leaves_the_terminal_as_it_was() -> None:
    passage = TerminalFilter()
    passage.let_through("\x1b[31m1\n2\n3\x1b[2A")
    assert passage.finish() == "\x1b[m\x1b[2B\r\n"
    assert passage.finish() == ""


def test_text_in_a_wrong_encoding_swallows_nothing() -> None:
    passage = TerminalFilter()
    assert passage.let_through("hello \x9d world\nresult: 42\n") == "hello  world\nresult: 42\n"
    assert passage.let_through("\x1b]0;a title without an end\nmore") == ""
    assert "more" in passage.finish()
    assert TerminalFilter().let_through("\x9d" * 100_000 + "x") == "x"
