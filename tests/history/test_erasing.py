"""What was deleted can be read in no file any more."""

from __future__ import annotations

from pathlib import Path

from kernels import NotebookKernel
from programs import run_command

from ipytaskpersist.history.archives import Archives
from ipytaskpersist.history.upkeep import Limits, run
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

WORD = "qzjwxkvbnm"
"""In no other word, so that the search index keeps all of it but perhaps its first letter."""
LAUNCH = f"""
import ipytaskpersist as bg
tasks = [bg.background(source) for source in (
    "# {WORD}",
    "for each in range(3000): print(each * 7919, '{WORD}')",
    "'{WORD}'.capitalize()[1:]",
    "raise ValueError('{WORD}')",
)]
tasks.append(bg.background("echo {WORD}", "{WORD}", shell=True, env={{"TOKEN": "{WORD}"}}))
tasks.append(bg.background("left = '{WORD}'", process=True))
for task in tasks:
    task.wait(60)
"""


def files_with(folder: Path, word: str) -> list[str]:
    """The files in which a word can be read."""
    part = word[1:].encode()
    files = [file for file in folder.rglob("*") if file.is_file()]
    return sorted(str(file.relative_to(folder)) for file in files if part in file.read_bytes())


def test_nothing_of_a_deleted_task_can_be_read_in_any_file(
    state_dir: Path, kernel: NotebookKernel, store: TaskStore, archives: Archives
) -> None:
    kernel.run("%background 1")
    kernel.run(LAUNCH)
    kernel.run(f"%bg_tag 2 {WORD}")
    kernel.run(f"%bg_search {WORD}")
    archives.archive(store.tasks.select(Selection())[1:3])
    there = files_with(state_dir, WORD)
    assert {"tasks.db-wal", "tasks.search"} <= {*there}, there
    kernel.run("%bg_delete 2 3 4 5 6 7 --yes")
    copied = run_command(state_dir, "backup")
    assert "backed up 1 task" in copied.stdout, copied.stderr
    assert files_with(state_dir, WORD) == ["tasks.search"]
    run(store, Limits(None, None, "keep"))
    assert files_with(state_dir, WORD) == []
