"""Programs that tests run in processes of their own, and end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

TIMEOUT_S = 60

# What says something about the person, or the test run, that started the tests.
_FOREIGN = ("IPYTASKPERSIST_", "JPY_", "PYTEST_", "VSCODE", "COLUMNS", "LINES")

_TOGETHER = """
import sys
def start_together():
    print("ready", flush=True)
    sys.stdin.readline()
"""

Finished = subprocess.CompletedProcess[str]


def environment(state_dir: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a program that keeps its tasks in `state_dir`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    own = {
        "IPYTASKPERSIST_DIR": str(state_dir),
        "IPYTHONDIR": str(state_dir.parent / "ipython"),
        "PYTHONUTF8": "1",
        "TERM": "xterm",
    }
    return {**kept, **own, **(more or {})}


def run_python(
    code: str,
    state_dir: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Finished:
    """Run a piece of Python in a new interpreter, to its end."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(state_dir, env), cwd=cwd, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip


def run_command(
    state_dir: Path, *arguments: str, notebook: Path | str = "", answer: str | None = None
) -> Finished:
    """Run `python -m ipytaskpersist`, as a person types it in a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "ipytaskpersist", *arguments],
        env=environment(state_dir, {"IPYTASKPERSIST_NOTEBOOK": str(notebook)}),
        input=answer or "", timeout=TIMEOUT_S, capture_output=True, text=True, encoding="utf-8",
        check=False,
    )  # fmt: skip


def run_together(code: str, state_dir: Path, count: int) -> list[Finished]:
    """Run a piece of Python in several interpreters, which go on at once.

    The code gets its place among them in `sys.argv[1]`, prepares itself and calls
    `start_together()`, which returns in all of them when the last one is ready.
    """
    arguments = [sys.executable, "-c", _TOGETHER + code]
    with ExitStack() as cleanup:
        programs = []
        for place in range(count):
            program = subprocess.Popen(
                [*arguments, str(place)], env=environment(state_dir), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            cleanup.enter_context(program)
            cleanup.callback(program.kill)
            programs.append(program)
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n", program.communicate()
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
        return [_end(program) for program in programs]


def _end(program: subprocess.Popen[str]) -> Finished:
    out, err = program.communicate(timeout=TIMEOUT_S)
    return subprocess.CompletedProcess(program.args, program.returncode, out, err)
