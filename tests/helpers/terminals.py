"""Programs at real pseudo-terminals, and a person who types."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pexpect
import pytest
from kernels import end_processes_of, until
from programs import TIMEOUT_S, environment

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

COMMAND = [sys.executable, "-m", "ipytaskpersist"]
ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[78=>])|\r")


class Terminal:
    """A program at a pseudo-terminal, and a person who types."""

    def __init__(
        self, arguments: list[str], cwd: Path, env: dict[str, str], columns: int = 160
    ) -> None:
        self.log = io.StringIO()
        self.process: Any = pexpect.spawn(
            arguments[0], arguments[1:], cwd=str(cwd), env=env, encoding="utf-8",
            codec_errors="replace", timeout=TIMEOUT_S, dimensions=(40, columns), echo=False,
        )  # fmt: skip
        self.process.logfile_read = self.log

    def expect(self, pattern: Any) -> str:
        """Wait for `pattern`, and return what came before it, without control sequences."""
        try:
            self.process.expect(pattern)
        except pexpect.ExceptionPexpect as error:
            shown = ANSI.sub("", self.log.getvalue())
            raise AssertionError(f"{pattern!r} did not come, but:\n{shown}") from error
        return ANSI.sub("", self.process.before)

    def type(self, line: str) -> None:
        self.process.sendline(line)

    def end(self) -> str:
        """Wait for the end of the program, and return what was still shown."""
        shown = self.expect(pexpect.EOF)
        self.process.wait()
        return shown

    def close(self) -> None:
        # A tenth of a second is given to each signal, the last as well.
        with suppress(pexpect.ExceptionPexpect):
            self.process.close(force=True)
        until(lambda: not self.process.isalive(), message="the end of the program")


class IPython(Terminal):
    """IPython's terminal, at its first prompt."""

    def __init__(
        self, options: list[str], cwd: Path, state_dir: Path, env: dict[str, str], columns: int
    ) -> None:
        self.state_dir = state_dir
        start = [sys.executable, "-m", "IPython", "--no-banner", "--no-confirm-exit"]
        super().__init__([*start, *options], cwd, env, columns)
        self.count = 1
        self.expect(r"In \[1\]:")

    def run(self, *lines: str) -> str:
        """Type a cell, and return what was shown from then to the next prompt."""
        for line in lines:
            self.type(line)
        if len(lines) > 1:
            self.type("")
            self.type("")
        return self.until_prompt()

    def until_prompt(self) -> str:
        self.count += 1
        return self.expect(rf"In \[{self.count}\]:")

    def leave(self) -> str:
        self.type("exit")
        return self.end()


PROMPTS = {"simple": ["--simple-prompt"], "full": ["--colors=NoColor"]}


@pytest.fixture(params=PROMPTS)
def prompt(request: pytest.FixtureRequest) -> list[str]:
    """With the plain prompt, and with that of prompt_toolkit."""
    return PROMPTS[request.param]


def opened(
    home: Path, state_dir: Path, options: list[str], folder: str = "work", columns: int = 160
) -> IPython:
    """IPython's terminal in a folder of this home."""
    (home / folder).mkdir(exist_ok=True)
    own = {
        "IPYTHONDIR": str(home / "ipython"),
        "HOME": str(home),
        # Nobody answers where the cursor is.
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }
    return IPython(options, home / folder, state_dir, environment(state_dir, own), columns)


@pytest.fixture
def start(state_dir: Path, tmp_path: Path) -> Iterator[Callable[..., IPython]]:
    """Start IPython, with the extension loaded: `start(prompt, folder)`."""
    with ExitStack() as cleanup:

        def start_one(
            options: list[str], folder: str = "work", load: bool = True, columns: int = 160
        ) -> IPython:
            terminal = opened(tmp_path, state_dir, options, folder, columns)
            cleanup.callback(terminal.close)
            if load:
                terminal.greeting = terminal.run("%load_ext ipytaskpersist")
            return terminal

        yield start_one


@pytest.fixture(scope="module", params=PROMPTS)
def terminal(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IPython]:
    """IPython with the extension loaded, with each prompt, that the tests of a module share."""
    home = tmp_path_factory.mktemp("terminal")
    with closing(opened(home, home / "state", PROMPTS[request.param])) as terminal:
        terminal.run("%load_ext ipytaskpersist")
        yield terminal
    end_processes_of(home / "state")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


def wait_for(gate: Path) -> str:
    """A line of Python that waits until the file is there."""
    there = f"os.path.exists({str(gate)!r})"
    return f"import os, time; [time.sleep(.01) for _ in iter(lambda: {there}, True)]"


def stored(state_dir: Path) -> list[TaskRecord]:
    with closing(TaskStore(StateDirectory(state_dir)).open()) as store:
        return store.tasks.select(Selection())


def ended(state_dir: Path) -> TaskRecord:
    """The latest task, once it has ended."""

    def look() -> TaskRecord | None:
        task = stored(state_dir)[-1]
        return task if task.state.is_final else None

    found = until(look, message="the end of the task")
    assert found is not None
    return found
