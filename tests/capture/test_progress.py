"""How far tasks have come: as they say, by `track`, and by bars that know nothing of tasks."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kernels import NotebookKernel, until
from programs import run_command
from tqdm import tqdm

from ipytaskpersist import Progress, track
from ipytaskpersist.capture.progress import progress_of
from ipytaskpersist.display.card_content import Card
from ipytaskpersist.display.status_card import shown_lines
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.output.replay import last_lines
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text.progress_bars import Bars, of_line
from ipytaskpersist.text.screen import LastLine

# Bars as text.


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        (" 70%|███████   | 7/10 [12:41<05:26, 108.7s/it]", Progress(7, 10)),
        ("train:  33%|█ | 1.20M/3.60M [00:01<00:02]", Progress(1.2e6, 3.6e6, "train")),
        ("123it [00:05, 24.6it/s]", Progress(123, None)),
        ("rows: 12.5kB [00:00, 3.4kB/s]", Progress(12500, None, "rows")),
        ("file.tar  45%[=====>    ] 12.3M 1MB/s", Progress(45, 100, "file.tar")),
        ("[ 45%] Building CXX object main.o", Progress(45, 100)),
        ("100%|██████████| 0/0 [00:00<?, ?it/s]", Progress(100, 100)),
    ],
)
def test_a_bar_says_how_far_it_is(line: str, progress: Progress) -> None:
    assert of_line(line) == progress


@pytest.mark.parametrize(
    "line",
    ["accuracy: 93%", "93% of 10 [good]", "7/10", "", "x" * 5000 + "%|", "%|%|%|", "1.2.3%| a | [",
     "192.168.0.1 [00:05, up", "fetch: ... [12:30, 3 files", "2024-11-21 [10:32:01, INFO] hi",
     "...% [", "took 3s [12:41, late]", "٣٣%|█|", "a: " * 2000 + " ["],
)  # fmt: skip
def test_what_is_no_bar_says_nothing(line: str) -> None:
    assert of_line(line) is None


def drawn_by(draw: Callable[[Any], None]) -> list[Progress]:
    """What `Bars` says after each piece that `draw` writes to the file that it is given."""
    bars, last, said = Bars(), LastLine(), []

    class Written(io.StringIO):
        def write(self, text: str) -> int:
            last.feed(text)
            if progress := bars.feed(last.lines):
                said.append(progress)
            return len(text)

    draw(Written())
    return said


def test_every_step_of_a_bar_of_tqdm_is_seen() -> None:
    def draw(file: Any) -> None:
        for _ in tqdm(range(50), desc="fit", file=file, mininterval=0):
            pass

    said = drawn_by(draw)
    assert said[-1] == Progress(50, 50, "fit")
    assert {progress.done for progress in said} == set(range(51))


def test_of_nested_bars_the_outermost_counts() -> None:
    def draw(file: Any) -> None:
        for _ in tqdm(range(3), desc="outer", file=file, mininterval=0):
            for _ in tqdm(range(200), desc="inner", file=file, mininterval=0, leave=False):
                pass

    said = drawn_by(draw)
    assert {progress.text for progress in said[2:]} == {"outer"}
    assert said[-1] == Progress(3, 3, "outer")


@pytest.mark.parametrize("runner", ["--thread", "--shell"])
def test_a_line_that_only_looks_like_a_bar_is_kept_and_ends_nothing(
    kernel: NotebookKernel, runner: str
) -> None:
    lines = ["192.168.0.1 [00:05, up", "... [12:30, 3 files", "...%| | .../... [", "the end"]
    body = "\n".join(
        f"print({line!r})" if runner == "--thread" else f"echo '{line}'" for line in lines
    )
    kernel.run(f"%%background {runner}\n{body}")
    assert "completed" in kernel.run("%bg_wait").text
    assert kernel.run("%bg_output").text.splitlines() == lines


# What code says.


def test_only_an_amount_is_progress() -> None:
    assert progress_of(3, 10, " two\nlines ") == Progress(3.0, 10.0, "two lines")
    for done, total in ((-1, 10), (float("nan"), None), ("3", 10), (1, float("inf")), (None, 3)):
        with pytest.raises(InvalidRequest, match="is a number that is not negative, not"):
            progress_of(done, total)  # type: ignore[arg-type]


def test_in_the_foreground_track_gives_the_items_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(track(iter("abc"), text="x")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def progress_of_task(state_dir: Path, number: int) -> dict[str, Any] | None:
    listed = json.loads(run_command(state_dir, "list", "--all", "--json").stdout)
    (found,) = (task for task in listed["tasks"] if task["number"] == number)
    return dict(found["progress"]) if found["progress"] else None


WAITS = """
import os, time
def wait_for(name):
    while not os.path.exists(name): time.sleep(0.01)
"""


@pytest.mark.parametrize("runner", ["--thread", "--process"])
def test_others_see_how_far_a_task_has_come_while_it_runs_and_after_its_end(
    kernel: NotebookKernel, state_dir: Path, runner: str, tmp_path: Path
) -> None:
    kernel.run(f"%cd -q {tmp_path}\n{WAITS}")
    kernel.run(
        f"%%background {runner}\n"
        "import ipytaskpersist\n"
        "task = ipytaskpersist.current_task()\n"
        "for n in range(1000): task.progress(n, 4000)\n"
        "task.progress(1000, 4000, 'a quarter')\n"
        "wait_for('go')\n"
        "for letter in ipytaskpersist.track('abc', text='letters'): pass\n"
    )
    quarter = {"done": 1000.0, "total": 4000.0, "text": "a quarter"}
    until(lambda: progress_of_task(state_dir, 1) == quarter)
    (tmp_path / "go").touch()
    kernel.run("%bg_wait")
    assert progress_of_task(state_dir, 1) == {"done": 3.0, "total": 3.0, "text": "letters"}


def test_only_the_tasks_own_code_says_how_far_it_has_come(kernel: NotebookKernel) -> None:
    kernel.run("%%background\n1")
    kernel.run("%bg_wait\nimport ipytaskpersist")
    assert kernel.run("print(ipytaskpersist.task().progress())").text == "None\n"
    found = kernel.run("ipytaskpersist.task().progress(1, 2)", check=False)
    assert found.error is not None
    assert "said by its own code" in found.error[1]


DRAW = """
import sys
from tqdm{module} import tqdm
bar = tqdm(range(8), desc='fit', mininterval=0)
for n in bar:
    if n == 6: wait_for('go')
"""


@pytest.mark.parametrize("runner", ["--thread", "--process"])
@pytest.mark.parametrize("module", ["", ".notebook"])
def test_bars_of_tqdm_are_progress_without_a_change_to_the_code(
    kernel: NotebookKernel, store: TaskStore, state_dir: Path, runner: str, module: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    kernel.run(f"%cd -q {tmp_path}\n{WAITS}")
    kernel.run(f"%%background {runner}{DRAW.format(module=module)}")

    def has_come(done: int) -> bool:
        known = {"done": float(done), "total": 8.0, "text": "fit"}
        return progress_of_task(state_dir, 1) == known

    until(lambda: has_come(6))
    # With count, rate and time left, though a notebook's bar prints nothing.
    task = store.tasks.get(1)
    assert task is not None
    shown = "\n".join(shown_lines(Card(task, task.created_at, last_lines(store, task.key, 3))))
    assert re.search(r"fit: +75%\|.+\| 6/8 \[\d\d:\d\d<.+it/s\]", shown), shown
    assert "fit: 75%|" in run_command(state_dir, "list", "--all").stdout
    (tmp_path / "go").touch()
    kernel.run("%bg_wait")
    assert has_come(8)


def test_bars_of_a_shell_command_are_progress(
    kernel: NotebookKernel, state_dir: Path, tmp_path: Path
) -> None:
    kernel.run(f"%cd -q {tmp_path}")
    draw = f"seq 20 | (sleep 0.1; {sys.executable} -m tqdm --total 40 --mininterval 0 > /dev/null)"
    kernel.run(f"%%background --shell\n{draw}\nwhile [ ! -e go ]; do sleep 0.01; done")
    until(lambda: progress_of_task(state_dir, 1) == {"done": 20.0, "total": 40.0, "text": ""})
    (tmp_path / "go").touch()
    kernel.run("%bg_wait")


def test_a_task_that_hurries_writes_to_the_store_only_now_and_then(
    kernel: NotebookKernel, store: TaskStore
) -> None:
    kernel.run(
        "%%background\nimport ipytaskpersist\nfor n in ipytaskpersist.track(range(300_000)): pass"
    )
    before = store.database.data_version
    seen = set()
    until(lambda: seen.add(store.database.data_version) or store.tasks.get(1).state.is_final)  # type: ignore[func-returns-value,union-attr]
    assert store.tasks.get(1).progress == Progress(300_000, 300_000)  # type: ignore[union-attr]
    assert len(seen - {before}) < 60
