"""What running tasks use, and what they have used: at once, in the store, and after their end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kernels import NotebookKernel, until
from typed import Document, Notebook

from ipytaskpersist.base.usage import Point, Usage, thinned
from ipytaskpersist.text import curves

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is read")
MB = 1_000_000
LEAK = f"""import time
kept = []
while True:
    kept.append(bytearray({20 * MB}))
    time.sleep(0.15)"""


def point(at: float, memory_bytes: int = 0, cpu_s: float = 1.0) -> Point:
    return Point(at, 1.0, memory_bytes, cpu_s, 0, 0, 1, 1)


def test_a_leak_is_seen_while_it_grows_and_its_end_says_how_much_of_what_limit(
    make_kernel: Callable[..., NotebookKernel], state_dir: Path
) -> None:
    path = state_dir.parent / "leaks.ipynb"
    notebook = Notebook(make_kernel(notebook=path), state_dir, path)
    notebook.kernel.run(f"%%background --process --memory 700M leak\n{LEAK}")
    notebook.kernel.run(f"%%background --process killed\n{LEAK}")
    notebook.kernel.run("%%background --shell busy\nsleep 1000 | while :; do :; done")

    def used() -> dict[str, Document]:
        document = notebook.underscored("top", "--json", "--every", "0.2s").json()
        return {each["name"]: each["uses"] for each in document["tasks"]}

    until(lambda: (used().get("killed") or {"memory_bytes": 0})["memory_bytes"] > 100 * MB)
    now = used()
    assert (now["busy"]["processes"], now["busy"]["cpus"] > 0.2) == (3, True)
    assert now["busy"]["memory_bytes"] < 50 * MB
    # It does not say of itself how much it had: the store does.
    killed = notebook.show("killed")

    def kept() -> bool:
        usage = notebook.show("killed")["usage"] or {"points": (), "peak_bytes": 0}
        return len(usage["points"]) > 2 and usage["peak_bytes"] > 100 * MB

    until(kept)
    os.kill(killed["process"]["pid"], signal.SIGKILL)
    ended = notebook.ended(killed)
    assert ended["usage"]["peak_bytes"] > 100 * MB
    text = notebook.underscored("show", "killed").text
    assert "of the machine's " in text
    assert "memory over time" in text
    leak = notebook.ended(notebook.show("leak"))
    assert "its 700 MB" in leak["reason"]
    amounts = [each["memory_bytes"] for each in leak["usage"]["points"]]
    assert amounts == sorted(amounts)
    assert (leak["usage"]["limit_bytes"], leak["usage"]["is_own_limit"]) == (700 * MB, True)
    text = notebook.in_terminal("show", "leak").text
    assert "╌ its limit\n" in text
    assert "of its 700 MB when last seen at " in text
    assert "▁" in notebook.in_terminal("wait", "leak").stderr or curve_of(notebook, "leak")
    notebook.kernel.run("%bg_cancel busy")


def curve_of(notebook: Notebook, name: str) -> str:
    return notebook.kernel.run(f"import ipytaskpersist\nipytaskpersist.task({name!r})").text


def test_a_day_takes_some_hundred_points_and_loses_neither_peaks_nor_sums() -> None:
    day = 86_400
    points: list[Point] = []
    for second in range(day):
        points.append(point(second, memory_bytes=9 * MB if second == 40_000 else second))
        if second % 600 == 0:
            points = thinned(points)
    points = thinned(points)
    assert len(points) < 800
    assert sum(each.cpu_s for each in points) == pytest.approx(day)
    assert max(each.memory_bytes for each in points) == 9 * MB
    spans = [each.span_s for each in points if each.at > day - 3600]
    assert max(spans) <= 60
    again = Usage.from_stored(Usage(tuple(points), 10, False).as_stored())
    assert again == Usage(tuple(points), 10, False)


def test_a_task_that_does_nothing_takes_a_few_points() -> None:
    assert len(thinned([point(second, 10 * MB, cpu_s=0) for second in range(1000)])) <= 3


def test_a_plot_is_as_high_as_its_amounts() -> None:
    assert curves.curve([(1, 0), (1, 4), (1, 8)]) == "▁▅█"
    assert curves.curve([]) == curves.curve([(1, 0)]) == ""
    assert curves.plot([(1, 1), (3, 2)], 2, 4, 2) == [" ███", "████"]
