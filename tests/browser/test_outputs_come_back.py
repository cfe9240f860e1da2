"""A notebook that is opened again shows what it would show had its tab stayed open."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING
from uuid import uuid4

import nbformat
import pytest
from kernels import end_processes_of

from browser.page import NotebookPage
from browser.server import JupyterServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

Open = Callable[..., NotebookPage]

WAIT = "while not pathlib.Path({!r}).exists():\n    time.sleep(0.05)\n"
FIGURE = (
    "import matplotlib.pyplot as plt\nfig, axes = plt.subplots(figsize=(2, 1))\naxes.plot([1, 3])\n"
)
THREAD = (
    "%%background in_thread\nimport pathlib, time, sys\nfrom tqdm import tqdm\n"
    "print('\\x1b[31mred\\x1b[0m begins')\n"
    "for each in tqdm(range(3), bar_format='{desc}{n_fmt}/{total_fmt}'):\n    pass\n"
    + FIGURE
    + "plt.show()\n"
    + WAIT.format("go")
    + "print('ends')\n'the result'"
)
PROCESS = (
    "%%background --process in_process\nimport pathlib, time\nprint('begins')\n"
    + WAIT.format("go")
    + FIGURE
    + "plt.show()\n1 / 0"
)
SHELL = (
    "%%background --shell in_shell\nprintf 'half\\rbegins\\n'\n"
    "until [ -e go ]; do sleep 0.05; done; echo ends; exit 3"
)
ENDLESS = "%%background endless\nimport pathlib, time\nprint('begins')\n" + WAIT.format("never")
WIDGETS = (
    "%%background with_widgets\nimport pathlib, time\nfrom ipywidgets import IntSlider\n"
    "from tqdm.notebook import tqdm\nfrom IPython.display import display\n"
    "slider = IntSlider(3, description='slider')\ndisplay(slider)\n"
    "for each in tqdm(range(4), 'bar', bar_format='{desc}: {bar}{n_fmt} of {total_fmt}'):\n"
    "    pass\n" + WAIT.format("go") + "slider.value = 7\nprint('moved')"
)
SOURCES = (THREAD, PROCESS, SHELL, ENDLESS)
CELLS = range(1, 2 + len(SOURCES))
"""Those of the sources, and that of the widgets."""

SHOWN = """outputs => outputs.map(output => {
    const kind = output.dataset.mimeType ?? 'widget';
    const image = kind.startsWith('image/') && output.querySelector('img');
    return [kind, image ? image.src : output.innerText];
})"""
STATE = re.compile(r"pending|running|completed|failed|interrupted")
PASSING = re.compile(
    r"(took |ended |updated |at )?\d+:\d\d(:\d\d)?( UTC)?|( · )?(peak )?[\d.,]+ [kMG]?B\b"
)
"""Parts of a card that change while its task goes on."""


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def server(
    chromium: Browser, place: None, packages: str, tmp_path: Path, state_dir: Path
) -> Iterator[JupyterServer]:
    """A server that can be stopped, with a store of its own."""
    env = {"IPYTASKPERSIST_DIR": str(state_dir)}
    try:
        with JupyterServer(tmp_path, env, packages=packages) as server:
            yield server
    finally:
        end_processes_of(state_dir)


@pytest.fixture
def open_page(profile: BrowserContext, server: JupyterServer) -> Iterator[Open]:
    """Open a notebook in a page of its own: `open_page(application, path)`."""
    with ExitStack() as pages:

        def opened(application: str, path: Path, server: JupyterServer = server) -> NotebookPage:
            page = profile.new_page()
            pages.callback(page.close)
            notebook = NotebookPage(page, server, path, application)
            notebook.workspace = uuid4().hex
            return notebook.open()

        yield opened


def shown(notebook: NotebookPage, place: int) -> list[list[str]]:
    """What a cell shows: the kind and the text or picture of each output, the card first."""
    found = notebook.cell(place).outputs.evaluate_all(SHOWN)
    outputs = [[kind, " ".join(text.split())] for kind, text in found]
    for output in outputs[:1]:
        output[1] = PASSING.sub("", output[1])
    return outputs


def all_shown(notebook: NotebookPage) -> list[list[list[str]]]:
    """What each cell shows that shows anything."""
    return [outputs for place in CELLS if (outputs := shown(notebook, place))]


def wait_shown(notebook: NotebookPage, wanted: list[list[list[str]]], when: str) -> None:
    notebook.until(lambda: all_shown(notebook) == wanted, f"the same outputs {when}: {wanted}")


def wait_alike(notebook: NotebookPage, stays: NotebookPage, when: str) -> None:
    """Wait until a page shows what the page shows that stayed open, each at its own pace."""
    notebook.until(lambda: all_shown(notebook) == all_shown(stays), f"the same outputs {when}")


def wait_states(notebook: NotebookPage, *states: str) -> None:
    def present() -> list[str]:
        cards = [card for (_kind, card), *_others in all_shown(notebook)]
        return [(STATE.findall(card) or [card])[0] for card in cards]

    notebook.until(lambda: present() == list(states), f"the states {states}")


def launch(notebook: NotebookPage) -> None:
    """Launch the tasks; the first has imported what it needs before another process is begun."""
    first, *others = SOURCES
    figure = notebook.run_cell(first).box.locator(".jp-RenderedImage")
    notebook.until(figure.count, "the figure of the thread")
    for source in others:
        notebook.run_cell(source)


def has_texts(notebook: NotebookPage, *texts: str) -> None:
    for place, text in enumerate(texts, CELLS[0]):
        notebook.cell(place).wait_output(text)


def test_what_a_notebook_shows_survives_whatever_happens_to_its_tab(
    open_page: Open, server: JupyterServer, application: str
) -> None:
    server.add_kernel("own", "7.4", {})
    path = server.add_notebook("own", "own")
    stays = open_page(application, path).load_extension()
    launch(stays)
    widgets = stays.run_cell(WIDGETS).place
    has_texts(stays, "red begins[\\s\\S]*3/3", "begins", "begins", "begins", "4\\sof\\s4")
    wait_states(stays, *["running"] * 5)
    stays.save()

    # While they run: in a page that is closed in the middle, and in one that is opened then.
    open_page(application, path).page.close()
    again = open_page(application, path)
    wait_alike(again, stays, "while they run")
    assert [len(outputs) for outputs in all_shown(again)] == [4, 2, 2, 2, 3]
    assert [kind for kind, _text in shown(again, widgets)[1:]] == ["widget"] * 2

    # Both follow them to their ends, in order, and nothing is shown twice.
    (path.parent / "go").touch()
    for notebook in (stays, again):
        wait_states(notebook, "completed", "failed", "failed", "running", "completed")
        has_texts(notebook, "ends[\\s\\S]*the result", "Traceback", "ends", "begins", "moved")
    wait_alike(again, stays, "after they ended")
    assert "half" not in again.cell(3).text
    wanted = all_shown(stays)
    wait_shown(again.reload(), wanted, "in a page that was loaded again")

    # The kernel is killed: nothing is asked of it.
    os.kill(pid_of_kernel(server, path), signal.SIGKILL)
    for notebook in (stays, again):
        wait_states(notebook, "completed", "failed", "failed", "interrupted", "completed")
    *others, with_widgets = all_shown(stays)
    again.reload()
    # A widget cannot come back without its kernel: what it was is said in its place.
    has_texts(again, "", "", "", "", "IntSlider\\(value=[\\s\\S]*4\\sof\\s4[\\s\\S]*moved")
    wanted = all_shown(again)
    assert wanted[:-1] == others
    assert wanted[-1][0] == with_widgets[0], "the card"

    # The server is stopped and started: pages that stayed open follow it again.
    server.stop()
    again.until(lambda: not is_live(again), "word of a lost connection")
    server.start_again()
    for notebook in (stays, again):
        notebook.until(lambda notebook=notebook: is_live(notebook), "a new connection")
    wait_shown(again.reload(), wanted, "after the server was started again")

    # Saved, copied and renamed.
    for cell in again.save()["cells"]:
        for output in cell.get("outputs", []):
            nbformat.validator.validate(output, ref=output["output_type"], version=4)
    copy, renamed = path.with_name("copy.ipynb"), path.with_name("renamed.ipynb")
    copyfile(path, copy)
    wait_shown(open_page(application, copy), wanted, "in a copy")
    path.rename(renamed)
    wait_shown(open_page(application, renamed), wanted, "in a notebook that was renamed")


TRIED = (
    "n=$(cat runs | wc -l); echo run >> runs; until [ -e go$n ]; do sleep 0.05; done; "
    "echo ran $n; exit $((1 - n))"
)


def test_one_of_several_tasks_of_a_cell_is_followed_to_its_latest_try_without_its_kernel(
    open_page: Open, server: JupyterServer, application: str
) -> None:
    server.add_kernel("own", "7.4", {})
    path = server.add_notebook("own", "own")
    (path.parent / "runs").touch()
    notebook = open_page(application, path).load_extension()
    lines = ("--shell echo other", f"--shell --retries 3 --name tried {TRIED}", "--shell echo last")
    place = notebook.run_cell("\n".join(f"%background {line}" for line in lines)).place
    notebook.cell(place).wait_output("other[\\s\\S]*running[\\s\\S]*last")
    notebook.save()
    os.kill(pid_of_kernel(server, path), signal.SIGKILL)
    notebook.reload()
    (path.parent / "go0").touch()
    second = "other[\\s\\S]*running[\\s\\S]*tried[\\s\\S]*try 2 of 4 of task 2[\\s\\S]*last"
    notebook.cell(place).wait_output(second)
    assert "ran 0" not in notebook.cell(place).text
    (path.parent / "go1").touch()
    notebook.cell(place).wait_output("other[\\s\\S]*tried[\\s\\S]*ran 1[\\s\\S]*last")
    notebook.reload().cell(place).wait_output("other[\\s\\S]*tried[\\s\\S]*ran 1[\\s\\S]*last")
    states = STATE.findall(notebook.cell(place).text)
    assert states == ["completed"] * 3


def is_live(notebook: NotebookPage) -> bool:
    return bool(notebook.page.locator("body.ipytaskpersist-live").count())


def pid_of_kernel(server: JupyterServer, path: Path) -> int:
    import psutil

    kernel = server.kernel_of(path)
    assert kernel is not None
    for process in psutil.process_iter(["cmdline"]):
        if any(f"kernel-{kernel['id']}" in word for word in process.info["cmdline"] or []):
            return process.pid
    raise AssertionError("the kernel has no process")
