"""Stores full of real tasks of every kind, for what is exported and imported."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kernels import end_processes_of
from programs import run_command, run_python

import ipytaskpersist
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABh6FO1AAAAABJRU5ErkJggg=="  # noqa: E501
HOSTILE = "<script>alert('name')</script>"
NOT_UTF_8 = b"\xff\xfe caf\xe9 \x00 end\n"

TASKS = rf'''
import time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "ipytaskpersist")
import ipytaskpersist as bg
from ipytaskpersist.session.manager import current

tasks = [
    bg.background("import sys\nprint('a \x1b[31mred\x1b[0m line')\n"
                  "print('an error', file=sys.stderr)\n{{'answer': 42}}", "first"),
    bg.background("""
from IPython.display import HTML, clear_output
handle = display(HTML("<b onclick='alert(1)'>before</b>"), display_id="shown")
clear_output(wait=True)
handle = display(HTML("<p>before</p>"), display_id="shown")
handle.update(HTML("<table><tr><td colspan=2>cell</td></tr></table><script>alert(2)</script>"))
display({{"image/png": "{PIXEL}"}}, raw=True)
display({{"application/json": {{"x": float("nan")}}, "text/plain": "a NaN"}}, raw=True)
1 / 0
""", "{HOSTILE}"),
    bg.background("printf '\\377\\376 caf\\351 \\000 end\\n'; echo é >&2; exit 3", "bytes",
                  shell=True, env={{"COLOUR": "blue"}}),
    bg.background("numbers = [1, 2]\ndouble = lambda x: 2 * x\nprint('in a process')", "process",
                  process=True),
    bg.background("import sys\nsys.stdout.write('x' * 1_500_000 + chr(10))\nprint('end')", "long"),
]
for task in tasks:
    assert task.wait(60), task
manager = current()
again = manager.launcher.rerun(manager.tasks.find("first"))
manager.store.tasks.tag(again.key, ["nightly", "größer"])
manager.waiting.wait([again], 60)
bg.background("while True: time.sleep(0.01)", "endless")
'''


def make_store(directory: Path, notebook: Path) -> None:
    """Run tasks of every kind in an IPython that keeps them here. All but the last end."""
    # A supervisor runs elsewhere, where a relative path would mean another folder.
    source = str(Path(ipytaskpersist.__file__).parents[1])
    env = {"IPYTASKPERSIST_NOTEBOOK": str(notebook), "PYTHONPATH": source}
    made = run_python(TASKS, directory, env=env)
    try:
        assert made.returncode == 0, made.stderr
    finally:
        end_processes_of(directory)


def archive_some(directory: Path) -> None:
    """Move the second and the third task into the archive."""
    with opened(directory) as store:
        archives = Archives(store)
        archives.archive(store.tasks.select(Selection())[1:3])
        archives.close()


@contextmanager
def opened(directory: Path) -> Iterator[TaskStore]:
    """The store in a directory, and its end."""
    store = TaskStore(StateDirectory(directory)).open()
    try:
        yield store
    finally:
        store.close()


def copied(directory: Path, target: Path) -> Path:
    """A copy of a whole state directory that nobody uses."""
    shutil.copytree(directory, target)
    return target


def of_same_user(directory: Path, target: Path) -> Path:
    """An empty state directory with the key of another."""
    target.mkdir(mode=0o700, exist_ok=True)
    shutil.copy2(directory / "signing.key", target)
    return target


def command(directory: Path, *arguments: str | Path, status: int = 0) -> Any:
    """Run a verb in a terminal, which must end with this exit status."""
    ended = run_command(directory, *map(str, arguments))
    assert ended.returncode == status, (ended.stdout[-2000:], ended.stderr[-2000:])
    return ended
