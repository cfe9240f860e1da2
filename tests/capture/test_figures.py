"""Figures that a cell leaves open are the next cell's, in whichever order cells and tasks end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kernels import Cell, NotebookKernel
from nbformat import NotebookNode

from ipytaskpersist.base.widget_marks import VIEW

PYPLOT = """
import io
import ipytaskpersist as bg
import matplotlib, matplotlib.pyplot as plt
matplotlib.use({backend!r})
def numbers(): return [manager.num for manager in plt._pylab_helpers.Gcf.figs.values()]
"""


@pytest.fixture(scope="module")
def a_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookKernel]:
    with NotebookKernel(tmp_path_factory.mktemp("figures")) as kernel:
        kernel.run("%load_ext ipytaskpersist")
        yield kernel


@pytest.fixture
def agg(a_kernel: NotebookKernel) -> NotebookKernel:
    """A kernel whose figures stay open, and which has none yet."""
    a_kernel.run(PYPLOT.format(backend="agg"))
    a_kernel.run("plt.close('all'); plt.ioff()")
    return a_kernel


WINDOWS = """
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
class FigureManager(FigureManagerBase):
    def show(self): pass
class FigureCanvas(FigureCanvasAgg):
    required_interactive_framework = "headless"
    manager_class = FigureManager
"""


@pytest.fixture
def windows(kernel: NotebookKernel) -> NotebookKernel:
    """A kernel whose figures are windows, of a backend that needs no display: there is none."""
    (kernel.cwd / "windows.py").write_text(WINDOWS)
    kernel.run("import sys; sys.path.insert(0, '.')")
    kernel.run(PYPLOT.format(backend="module://windows") + "plt.ion()")
    return kernel


def run_task(kernel: NotebookKernel, source: str) -> list[NotebookNode]:
    """Run a cell in the background, to its end; its outputs."""
    kernel.run(f"%%background\n{source}")
    kernel.run("%bg_wait")
    return kernel.run("%bg_output").outputs


def images(outputs: list[NotebookNode]) -> list[str]:
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def printed(cell: Cell) -> str:
    return cell.stream("stdout").strip()


GO_ON = "import threading; go_on, begun = threading.Event(), threading.Event()"
WAITING = """%%background
theirs = plt.figure()
begun.set()
assert go_on.wait(30)
"""


def test_a_figure_of_the_same_number_gets_the_next_free_one(agg: NotebookKernel) -> None:
    agg.run(GO_ON)
    agg.run(WAITING)
    agg.run("assert begun.wait(30); mine = plt.figure()")
    agg.run("go_on.set()\n%bg_wait")
    said = agg.run(
        "print(plt.get_fignums(), mine.number, theirs.number,"
        " theirs.canvas.manager.num, plt.figure(2) is theirs, plt.figure(1) is mine)"
    )
    assert printed(said) == "[1, 2] 1 2 2 True True"


def test_a_figure_that_the_foreground_has_made_last_is_the_active_one(agg: NotebookKernel) -> None:
    agg.run(GO_ON)
    agg.run(WAITING)
    agg.run("assert begun.wait(30); plt.figure(2); go_on.set()\n%bg_wait")
    assert printed(agg.run("print(numbers())")) == "[1, 2]"


def test_a_figure_that_a_task_has_made_last_is_the_active_one(agg: NotebookKernel) -> None:
    agg.run(GO_ON)
    agg.run("%%background\nassert go_on.wait(30)\nplt.figure(2)")
    agg.run("plt.figure(1); go_on.set()\n%bg_wait")
    assert printed(agg.run("print(numbers())")) == "[1, 2]"
    agg.run("go_on.clear()")
    agg.run("%%background\nplt.figure(3)\nbegun.set()\nassert go_on.wait(30)\nplt.figure(4)")
    agg.run("assert begun.wait(30); plt.figure(5); go_on.set()\n%bg_wait")
    assert printed(agg.run("print(numbers())")) == "[1, 2, 5, 3, 4]"


def test_a_running_cell_of_the_foreground_finds_no_other_figures(agg: NotebookKernel) -> None:
    """Also not where it runs a cell itself."""
    agg.run(
        "task = bg.background('plt.figure()')\ntask.wait()\nprint(numbers())\n"
        "get_ipython().run_cell('print(numbers())')"
    )
    said = agg.run(
        "task = bg.background('plt.figure()')\ntask.wait()\nprint(numbers())\n"
        "get_ipython().run_cell('print(numbers())')\nget_ipython().run_cell('print(numbers())')"
    )
    assert printed(said) == "[1]\n[1]\n[1]"
    assert printed(agg.run("print(numbers())")) == "[1, 2]"


def test_a_task_finds_the_figures_of_one_that_ended_before_it_was_launched(
    agg: NotebookKernel,
) -> None:
    """Though both are launched by one cell of the foreground."""
    said = agg.run(
        "bg.background('plt.figure()').wait()\n"
        "second = bg.background('plt.figure(); numbers()')\nprint(second.result(30), numbers())"
    )
    assert printed(said) == "[1, 2] []"
    assert printed(agg.run("print(numbers())")) == "[1, 2]"


def test_what_a_task_and_the_foreground_close_stays_closed(agg: NotebookKernel) -> None:
    agg.run(GO_ON + "\nfor _ in range(3): plt.figure()")
    agg.run("%%background\nplt.close(1)\nbegun.set()\nassert go_on.wait(30)\nplt.figure(2)")
    agg.run("assert begun.wait(30); plt.close(2); go_on.set()\n%bg_wait")
    assert printed(agg.run("print(numbers())")) == "[3]"


def test_a_task_that_does_nothing_with_figures_leaves_the_active_one(agg: NotebookKernel) -> None:
    agg.run("plt.figure(); plt.figure(); plt.figure(1)")
    run_task(agg, "print(1)")
    assert printed(agg.run("print(numbers())")) == "[2, 1]"
    run_task(agg, "plt.figure(2)")
    assert printed(agg.run("print(numbers())")) == "[1, 2]"


def test_what_a_cancelled_task_had_open_stays_open(agg: NotebookKernel) -> None:
    agg.run(GO_ON)
    agg.run(WAITING)
    agg.run("assert begun.wait(30)\n%bg_cancel\ngo_on.set()\n%bg_wait")
    assert printed(agg.run("print(numbers())")) == "[1]"


def test_no_cell_draws_at_its_end_what_another_is_working_on(agg: NotebookKernel) -> None:
    """Two threads that draw one figure break it."""
    agg.run(GO_ON + "\nplt.ion(); figure = plt.figure(); drawn = []")
    agg.run("figure.canvas.mpl_connect('draw_event', drawn.append)")
    agg.run("%%background\nplt.title('new')\nbegun.set()\nassert go_on.wait(30)\nlen(drawn)")
    assert printed(agg.run("assert begun.wait(30); print(len(drawn))")) == "0"
    assert printed(agg.run("print(len(drawn))")) == "0"
    agg.run("go_on.set()\n%bg_wait")
    assert printed(agg.run("print(len(drawn), figure.stale)")) == "1 False"


def test_a_function_leaves_its_figures_too(agg: NotebookKernel) -> None:
    agg.run("plt.figure()")
    agg.run("print(bg.submit(lambda: (plt.figure(), numbers())[1]).result(30))")
    assert printed(agg.run("print(numbers())")) == "[1, 2]"


@pytest.mark.parametrize("backend", ["pdf", "ps", "svg", "template", "agg"])
def test_no_backend_without_windows_shows_a_figure(a_kernel: NotebookKernel, backend: str) -> None:
    a_kernel.run(PYPLOT.format(backend=backend))
    a_kernel.run("plt.close('all')")
    assert not images(run_task(a_kernel, "plt.plot([1, 2]); plt.show()"))
    run_task(a_kernel, "plt.savefig(io.BytesIO()); print(plt.gca().lines)")
    assert printed(a_kernel.run("print(numbers(), len(plt.gca().lines))")) == "[1] 1"


def test_a_warning_of_a_figure_points_at_the_line_of_the_cell(agg: NotebookKernel) -> None:
    """matplotlib warns of the first caller that is not its own."""
    agg.run("import os, sys; os.environ['DISPLAY'] = ':77'; sys.platform = 'linux'")
    plain = agg.run("plt.figure()\nplt.show()").stream("stderr")
    assert "plt.show()" in plain, plain
    (said,) = run_task(agg, "plt.figure()\nplt.show()")
    assert "plt.show()" in said.text, said


# Windows.


def test_a_task_shows_images_instead_of_windows_and_leaves_them_open(
    windows: NotebookKernel,
) -> None:
    assert len(images(run_task(windows, "figure = plt.figure(); plt.plot([1, 2]);"))) == 1
    assert not images(run_task(windows, "print(numbers())"))
    (changed,) = images(run_task(windows, "plt.plot([2, 1]);"))
    (drawn, other) = images(run_task(windows, "plt.title('a'); plt.draw(); plt.figure();"))
    assert changed != drawn != other
    assert not images(run_task(windows, "plt.show()"))
    assert printed(windows.run("print(numbers(), plt.figure(1) is figure)")) == "[1, 2] True"
    assert not images(run_task(windows, "plt.figure(1).savefig(io.BytesIO()); plt.close('all')"))
    assert printed(windows.run("print(numbers())")) == "[]"


def test_a_task_is_shown_once_what_it_shows_itself(windows: NotebookKernel) -> None:
    shown = run_task(windows, "plt.plot([1, 2]); plt.show(); print('after')")
    assert [output.output_type for output in shown] == ["display_data", "stream"]


def test_a_task_gets_no_window_of_the_foreground(windows: NotebookKernel) -> None:
    windows.run("window = plt.figure()")
    assert len(images(run_task(windows, "print(numbers()); mine = plt.figure()"))) == 1
    said = windows.run(
        "print(numbers(), window.number, mine.number, type(mine.canvas).__name__,"
        " type(plt.figure().canvas).__name__)"
    )
    assert printed(said) == "[1, 2] 1 2 FigureCanvasAgg FigureCanvas"
    run_task(windows, "mine.number, print(numbers())")
    assert printed(windows.run("print(numbers())")) == "[1, 2, 3]"


def test_a_task_may_change_to_another_backend(windows: NotebookKernel) -> None:
    assert not images(run_task(windows, "plt.plot([1, 2]); plt.switch_backend('agg')"))
    assert printed(windows.run("print(numbers(), len(plt.gca().lines))")) == "[1] 1"
    assert (
        len(images(run_task(windows, "plt.switch_backend('module://windows'); plt.plot([2, 1]);")))
        == 1
    )


# Widgets of a page.


@pytest.mark.parametrize("backend", ["widget", "nbagg"])
def test_a_task_draws_with_the_widgets_that_the_notebook_has_chosen(
    kernel: NotebookKernel, backend: str
) -> None:
    if backend == "widget":
        pytest.importorskip("ipympl")
    kernel.run(f"%matplotlib {backend}")
    kernel.run("import matplotlib.pyplot as plt\nmine = plt.figure()")
    kernel.run("first = plt.get_backend(), type(mine.canvas)")
    (said, shown) = run_task(
        kernel,
        "theirs, ax = plt.subplots()\nax.plot([1, 2])\n"
        "print(plt.get_backend() == first[0], isinstance(theirs.canvas, first[1]),"
        " theirs.canvas.toolbar is not None, theirs.number);",
    )
    assert said.text == "True True True 2\n"
    assert "image/png" in shown.data
    assert (VIEW in shown.data) == (backend == "widget")
    later = run_task(kernel, "plt.figure(2).canvas" if backend == "widget" else "plt.show()")
    assert len(images(later)) == (backend == "widget")
    assert len(images(run_task(kernel, "new = plt.figure(); plt.plot([2, 1]); plt.show()"))) == 1
    assert printed(kernel.run("print(plt.get_fignums(), plt.figure(3) is new)")) == "[1, 2, 3] True"
    kernel.restart()
    kernel.run("%load_ext ipytaskpersist")
    (said, shown) = kernel.run("%bg_output 1").outputs
    assert VIEW not in shown.data
    assert "image/png" in shown.data


def test_a_widget_of_a_running_task_is_the_tasks_when_it_is_clicked(kernel: NotebookKernel) -> None:
    """The page's events are handled in the foreground."""
    kernel.run("%matplotlib nbagg\nimport matplotlib.pyplot as plt")
    kernel.run(GO_ON)
    kernel.run(WAITING)
    kernel.run("assert begun.wait(30)\nplt._pylab_helpers.Gcf.set_active(theirs.canvas.manager)")
    assert printed(kernel.run("print(plt.get_fignums())")) == "[]"
    kernel.run("go_on.set()\n%bg_wait")
    assert printed(kernel.run("print(plt.get_fignums(), plt.gcf() is theirs)")) == "[1] True"


def test_in_a_process_the_figures_of_a_page_are_pictures(kernel: NotebookKernel) -> None:
    kernel.run("%matplotlib nbagg")
    source = (
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]); print(type(plt.gcf().canvas).__name__);"
    )
    kernel.run(f"%%background --process\n{source}")
    kernel.run("%bg_wait")
    said, shown = kernel.run("%bg_output").outputs
    assert said.text == "FigureCanvasAgg\n"
    assert "image/png" in shown.data
