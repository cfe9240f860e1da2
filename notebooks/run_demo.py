"""Run quickstart.ipynb, restart its kernel halfway, and check that nothing was lost: `make demo`.

The kernel is a real one and so is its restart, through the kernel manager, as a notebook server
does it. The store and every folder that IPython and Jupyter write to are temporary; what remains is
the executed notebook, and the same as a web page, in build/.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

try:
    import nbformat
    from jupyter_core.utils import ensure_async
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from nbconvert import HTMLExporter
    from nbformat import NotebookNode
    from rich.console import Console
    from rich.rule import Rule
    from rich.syntax import Syntax
    from rich.text import Text
except ImportError as missing:
    sys.exit(f"The demo needs the package {missing.name!r}. `make demo` installs it and runs this.")

HERE = Path(__file__).resolve().parent
NOTEBOOK = HERE / "quickstart.ipynb"
BUILD = HERE.parent / "build"

RESTART_BEFORE = "restart-kernel-before"
SAME_AFTER_RESTART = "same-after-restart"

LONG_TASK = "speed"
"""The task in a thread that is running when the kernel is restarted."""
OUTLIVING = ("packed", "twice")
"""The tasks in processes of their own that are running then."""
LONG_TASK_IS_AT = re.compile(r"pass +2  ·{3}")
"""What it has printed by then: part of a line, in its second pass."""
DEADLINE_S = 300
"""How long a cell, or the long task's way to that point, may take on a slow machine."""


class DemoFailed(Exception):
    """Something that the package promises did not happen; the message says what."""


# --- The notebook, driven ----------------------------------------------------------------------


class DemoClient(NotebookClient):
    """An nbclient that, like a notebook page, updates a display whose cell has ended.

    A status card is updated as long as its task runs. nbclient passes over what comes for any cell
    but the one it executes, so the updates are read from the channel before it sees them.
    """

    def __init__(self, nb: NotebookNode, **options: Any) -> None:
        super().__init__(nb, **options)
        self._displays: defaultdict[str, list[NotebookNode]] = defaultdict(list)

    async def async_start_new_kernel_client(self) -> Any:
        client = await super().async_start_new_kernel_client()
        receive = client.iopub_channel.get_msg

        async def receive_and_update(**options: Any) -> dict[str, Any]:
            message: dict[str, Any] = await receive(**options)
            if message["msg_type"] == "update_display_data":
                self._update(message["content"])
            return message

        client.iopub_channel.get_msg = receive_and_update
        return client

    @asynccontextmanager
    async def kernel(self) -> AsyncIterator[None]:
        """A kernel for the notebook, which is gone afterwards, also after Control-C.

        nbclient's own `async_setup_kernel` handles signals in a way that ends in a traceback.
        """
        # At every start ipykernel 7.4 warns of a connection that is not encrypted.
        self.extra_arguments = ["--log-level=ERROR"]
        manager: Any = self.create_kernel_manager()
        try:
            await self.async_start_new_kernel(cwd=str(HERE))
            client = await self.async_start_new_kernel_client()
            yield
            client.stop_channels()
        finally:
            await ensure_async(manager.shutdown_kernel(now=True))

    async def execute_or_stop(self, cell: NotebookNode, index: int) -> None:
        """Execute a cell. Control-C cancels this, which nbclient takes for the kernel's death."""
        try:
            await self.async_execute_cell(cell, index)
        except DeadKernelError:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise asyncio.CancelledError from None
            raise

    def output(
        self, outs: list[NotebookNode], msg: dict[str, Any], display_id: str | None, cell_index: int
    ) -> NotebookNode | None:
        shown = super().output(outs, msg, display_id, cell_index)
        if shown and display_id:
            self._displays[display_id].append(shown)
        return shown

    def _update(self, content: dict[str, Any]) -> None:
        for shown in self._displays[content["transient"]["display_id"]]:
            shown["data"], shown["metadata"] = content["data"], content["metadata"]

    async def restart(self) -> None:
        """Restart the kernel as the button does; return when the new one answers."""
        manager: Any = self.km
        client: Any = self.kc
        await ensure_async(manager.restart_kernel(now=False))
        try:
            await ensure_async(client.wait_for_ready(timeout=60))
        except RuntimeError as error:
            raise DemoFailed(f"the kernel did not come back from its restart: {error}") from error

    @property
    def kernel_pid(self) -> int:
        manager: Any = self.km
        return int(manager.provisioner.pid)


def private_environment(folder: Path) -> dict[str, str]:
    """The environment of a kernel that neither reads nor writes anything of this user's."""
    inherited = {k: v for k, v in os.environ.items() if k not in {"JUPYTER_PATH", "PYTHONSTARTUP"}}
    return inherited | {
        "IPYTASKPERSIST_DIR": str(folder / "state"),
        "IPYTASKPERSIST_NOTEBOOK": str(NOTEBOOK),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_CONFIG_DIR": str(folder / "jupyter" / "config"),
        "JUPYTER_DATA_DIR": str(folder / "jupyter" / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "jupyter" / "runtime"),
        "MPLCONFIGDIR": str(BUILD / "matplotlib"),  # its cache of fonts takes seconds to make
    }


def in_terminal(*words: str) -> str:
    """What `python -m ipytaskpersist` prints, in a process that knows nothing of the kernel's."""
    command = [sys.executable, "-m", "ipytaskpersist", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise DemoFailed(f"`jupyter bg {' '.join(words)}` failed: {done.stderr.strip()}")
    return done.stdout


def tasks() -> dict[str, dict[str, Any]]:
    """Every task of the notebook by its name, as `jupyter bg list --json` gives them."""
    listed = json.loads(in_terminal("list", "--all", "--json"))
    return {task["name"]: task for task in listed["tasks"]}


def wait_for_long_task() -> str:
    """Wait until the long task is where the kernel is to be restarted; return what it printed."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        printed = in_terminal("output", LONG_TASK, "--stdout")
        listed = tasks()
        task = listed[LONG_TASK]
        if task["state"] != "running":
            raise DemoFailed(
                f"task {LONG_TASK} should run on until the restart, but is {task['state']}"
                f" ({task['reason'] or 'it came to its end'})"
            )
        have_begun = all(listed[name]["last_line"] for name in OUTLIVING)
        if have_begun and LONG_TASK_IS_AT.search(printed):
            return printed
        time.sleep(0.1)
    raise DemoFailed(f"task {LONG_TASK} did not reach its second pass within {DEADLINE_S} s")


def process_of(task: str) -> int:
    """The process of a task that runs outside the kernel."""
    return int(json.loads(in_terminal("show", task, "--json"))["process"]["pid"])


def outliving_processes() -> dict[str, int]:
    """The processes of the tasks that are to outlive the kernel. They must be running."""
    for name, task in tasks().items():
        if name in OUTLIVING and task["state"] != "running":
            raise DemoFailed(f"task {name} should run through the restart, but is {task['state']}")
    return {name: process_of(name) for name in OUTLIVING}


# --- What is shown on the terminal -------------------------------------------------------------


INDENT = len("In [99]: ")


class Transcript:
    """The run, as a person at the notebook would see it."""

    def __init__(self) -> None:
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        self._console = Console(width=100, highlight=False, markup=False, emoji=False)
        self._started = time.monotonic()
        self._number = 0

    def heading(self, markdown: str) -> None:
        """The title of a section; the prose below it is for readers of the notebook."""
        if found := re.search(r"^#+ (.+)$", markdown, re.MULTILINE):
            self._console.print()
            self._console.print(Rule(Text(found[1], "bold"), style="dim", align="left"))

    def typed(self, source: str) -> None:
        self._number += 1
        prompt = f"In [{self._number}]: "
        code = Syntax("", "python", theme="ansi_dark").highlight(source)
        code.rstrip()
        self._console.print()
        for line in code.split("\n"):
            self._console.print(Text(prompt.rjust(INDENT), "green") + line, soft_wrap=True)
            prompt = "...: "

    def came_back(self, outputs: Iterable[NotebookNode], seconds: float) -> None:
        for output in outputs:
            self._block(as_text(output), "red" if output.get("name") == "stderr" else "")
        self._console.print(Text(duration(seconds), "dim"), justify="right")

    def event(self, words: str) -> None:
        at = time.monotonic() - self._started
        self._console.print()
        self._console.print(Text(f"━━ {words}  ({at:.1f} s after the start)", "bold yellow"))

    def terminal(self, *words: str) -> None:
        self._console.print()
        self._console.print(Text("$ ", "green") + Text(f"jupyter bg {' '.join(words)}"))
        self._block(in_terminal(*words), "")

    def line(self, words: str = "", style: str = "") -> None:
        self._console.print(Text(words, style), soft_wrap=True)

    def _block(self, text: str, style: str) -> None:
        for line in shorten(text.rstrip().split("\n")):
            shown = Text(" " * INDENT) + Text.from_ansi(line.rstrip(), style=style)
            self._console.print(shown, soft_wrap=True)


def shorten(lines: list[str]) -> list[str]:
    """The lines, without the middle of what would fill the screen."""
    if len(lines) <= 24:
        return lines
    return [*lines[:6], f"⋮   {len(lines) - 10} more lines", *lines[-4:]]


def as_text(output: NotebookNode) -> str:
    """An output as far as a terminal can show it."""
    if output.output_type == "stream":
        return str(output.text)
    if output.output_type == "error":
        return "\n".join(output.traceback)
    data = output.data
    if "image/png" in data:
        return f"[ {describe_figure(data['image/png'])} ]"
    if "<table" in data.get("text/html", "") and data["text/plain"].startswith("<IPython.core"):
        return table_as_text(data["text/html"])
    return str(data.get("text/plain", f"[ {', '.join(data)} ]"))


def describe_figure(encoded: str) -> str:
    """A figure by what tells two apart."""
    png = base64.b64decode(encoded)
    return f"figure of {len(png):,} bytes, sha256 {hashlib.sha256(png).hexdigest()[:12]}"


def table_as_text(html: str) -> str:
    """The cells of a simple HTML table in columns."""
    rows = [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in html.split("<tr>")[1:]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


# --- The run -----------------------------------------------------------------------------------


@dataclass
class Run:
    """What the checks need to know about a run."""

    before: dict[str, NotebookNode] = field(default_factory=dict)
    """The cells whose output is to come again, by their source."""
    after: dict[str, NotebookNode] = field(default_factory=dict)
    """The same cells when the new kernel ran them."""
    launch_s: dict[str, float] = field(default_factory=dict)
    """How long each `%%background` cell held the prompt, by the task's name."""
    pids: list[int] = field(default_factory=list)
    """The process of each kernel, in their order."""
    fresh: str = ""
    """What the new kernel said when asked for a variable of the old one."""
    printed: str = ""
    """What the long task had printed just before the restart."""
    processes: dict[str, int] = field(default_factory=dict)
    """The processes that are to outlive the kernel, by the names of their tasks."""
    restarted_at: str = ""
    """When the new kernel answered, in UTC."""
    restarted: bool = False


async def run_notebook(notebook: NotebookNode, show: Transcript) -> Run:
    """Execute the notebook, with the restart where it is marked."""
    run = Run()
    client = DemoClient(notebook, timeout=DEADLINE_S, kernel_name="python3")
    async with client.kernel():
        run.pids.append(client.kernel_pid)
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "markdown":
                show.heading(cell.source)
                continue
            if RESTART_BEFORE in cell.metadata.get("tags", []):
                await restart_while_running(client, run, show)
            await run_cell(client, cell, index, run, show)
    return run


async def run_cell(
    client: DemoClient, cell: NotebookNode, index: int, run: Run, show: Transcript
) -> None:
    show.typed(cell.source)
    started = time.monotonic()
    await client.execute_or_stop(cell, index)
    seconds = time.monotonic() - started
    show.came_back(cell.outputs, seconds)

    tags = cell.metadata.get("tags", [])
    if launched := re.match(r"%%background .*?(\w+)$", cell.source, re.MULTILINE):
        run.launch_s[launched[1]] = seconds
    if SAME_AFTER_RESTART in tags:
        (run.after if run.restarted else run.before)[cell.source] = cell
    if RESTART_BEFORE in tags:
        run.fresh = "".join(map(as_text, cell.outputs))


async def restart_while_running(client: DemoClient, run: Run, show: Transcript) -> None:
    show.event(f"waiting until {LONG_TASK} is in the middle of its second pass")
    run.printed = await asyncio.to_thread(wait_for_long_task)
    run.processes = await asyncio.to_thread(outliving_processes)
    show.event(f"restarting the kernel, process {run.pids[0]}, while {LONG_TASK} runs")
    await client.restart()
    run.restarted = True
    run.restarted_at = datetime.now(UTC).isoformat()
    run.pids.append(client.kernel_pid)
    show.event(f"the new kernel answers, process {run.pids[1]}")


# --- The promises ------------------------------------------------------------------------------


def check(promise: str, kept: bool, otherwise: str) -> str:
    """The promise, if it was kept."""
    if not kept:
        raise DemoFailed(f"not kept: {promise}\n  {otherwise}")
    return promise


def the_kernel_is_new(run: Run) -> str:
    return check(
        "the kernel was really restarted: another process, without a variable of the old one",
        len(set(run.pids)) == len(run.pids) == 2 and run.fresh == "False",
        f"processes {run.pids}; is the old variable there? {run.fresh}",
    )


def the_prompt_came_back_at_once(run: Run) -> str:
    took = {name: (run.launch_s[name], task["elapsed_s"]) for name, task in tasks().items()}
    words = ", ".join(f"{name} {duration(prompt)}" for name, (prompt, _) in took.items())
    return check(
        f"each cell gave the prompt back before its task ended ({words})",
        all(prompt < work for prompt, work in took.values()),
        f"seconds to the prompt and to the end: {took}",
    )


def outputs_are_the_same(run: Run) -> Iterator[str]:
    check("the same cells ran before and after", run.before.keys() == run.after.keys(), "")
    for source, before in run.before.items():
        was, now = merged(before.outputs), merged(run.after[source].outputs)
        yield check(
            f"{source} gave the same as before: {summary(was)}",
            was == now and bool(was),
            f"before: {summary(was)}\n  after:  {summary(now)}",
        )


def every_kind_was_compared(run: Run) -> str:
    shown = [output for cell in run.before.values() for output in merged(cell.outputs)]
    kinds = {kind for output in shown for kind in output.get("data", [output.get("name")])}
    return check(
        "what was compared has a figure, a table, printed lines and a log in it",
        kinds >= {"image/png", "text/html", "stdout", "stderr"},
        f"it has only {kinds}",
    )


def the_long_task_was_interrupted(run: Run) -> str:
    task = tasks()[LONG_TASK]
    return check(
        f"{LONG_TASK} is {task['state']}, and says why: {task['reason']}",
        task["state"] == "interrupted" and task["reason"] == "kernel restarted",
        "it should be interrupted, because of: kernel restarted",
    )


def the_processes_ran_on(run: Run) -> str:
    now = tasks()
    ids = " and ".join(f"{name} (process {pid})" for name, pid in run.processes.items())
    return check(
        f"{ids} ran through the restart, and completed in the same processes",
        all(now[name]["ended_at"] > run.restarted_at for name in OUTLIVING)
        and run.processes == {name: process_of(name) for name in OUTLIVING},
        json.dumps([now[name] for name in OUTLIVING], indent=2),
    )


def nothing_printed_was_lost(run: Run) -> str:
    kept = in_terminal("output", LONG_TASK, "--stdout")
    return check(
        f"all that {LONG_TASK} had printed is there: {kept.count('·')} dots,"
        f" {run.printed.count('·')} of them when the restart was asked for",
        kept.startswith(run.printed),
        f"before the restart: {run.printed!r}\n  kept: {kept!r}",
    )


def the_others_completed(run: Run) -> str:
    states = {name: task["state"] for name, task in tasks().items() if name != LONG_TASK}
    return check(
        f"{', '.join(states)} are completed, and their numbers and session are those of before",
        set(states.values()) == {"completed"}
        and sorted(task["number"] for task in tasks().values()) == [1, 2, 3, 4, 5]
        and len({task["session"] for task in tasks().values()}) == 1,
        json.dumps(tasks(), indent=2),
    )


def promises(run: Run) -> Iterator[str]:
    """Each promise that was kept, in words; the first that was not raises DemoFailed."""
    whole: list[Callable[[Run], str]] = [
        the_kernel_is_new,
        the_prompt_came_back_at_once,
        the_others_completed,
        the_processes_ran_on,
        the_long_task_was_interrupted,
        nothing_printed_was_lost,
        every_kind_was_compared,
    ]
    for promise in whole:
        yield promise(run)
    yield from outputs_are_the_same(run)


def merged(outputs: Iterable[NotebookNode]) -> list[dict[str, Any]]:
    """The outputs without what may differ: the prompt's number, and where a stream was cut."""
    result: list[dict[str, Any]] = []
    for output in outputs:
        plain = {k: v for k, v in output.items() if k != "execution_count"}
        last = result[-1] if result else {}
        if plain["output_type"] == "stream" and last.get("name") == plain["name"]:
            last["text"] += plain["text"]
        else:
            result.append(plain)
    return result


def summary(outputs: list[dict[str, Any]]) -> str:
    """What there is and how much of it: "33 lines of stdout, table of 9 rows"."""
    parts = []
    for output in outputs:
        data = output.get("data", {})
        if output["output_type"] == "stream":
            parts.append(f"{count(output['text'].splitlines(), 'line')} of {output['name']}")
        elif "image/png" in data:
            parts.append(describe_figure(data["image/png"]))
        elif "text/html" in data:
            parts.append(f"table of {count(data['text/html'].split('<tr>')[1:], 'row')}")
        else:
            parts.append(f"value of {len(data.get('text/plain', '')):,} characters")
    return "; ".join(parts) or "nothing"


def count(things: list[str], word: str) -> str:
    return f"{len(things)} {word}{'s' * (len(things) != 1)}"


# --- The command -------------------------------------------------------------------------------


def save(notebook: NotebookNode) -> list[Path]:
    """Write the notebook as executed, and as a web page."""
    nbformat.validate(notebook)
    page, _ = HTMLExporter().from_notebook_node(
        notebook, resources={"metadata": {"name": "A cell that outlives its kernel"}}
    )
    written = [BUILD / "quickstart.ipynb", BUILD / "quickstart.html"]
    nbformat.write(notebook, written[0])
    written[1].write_text(page, encoding="utf-8")
    return written


def why(error: Exception) -> str:
    """An exception of the run in words for the person at the terminal."""
    match error:
        case CellExecutionError():
            return f"a cell of the notebook failed: {error.ename}: {error.evalue}"
        case CellTimeoutError():
            return f"a cell of the notebook did not end within {DEADLINE_S} s"
        case DeadKernelError():
            return "the kernel died"
        case _:
            return str(error)


def main() -> int:
    started = time.monotonic()
    BUILD.mkdir(exist_ok=True)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    show = Transcript()
    with tempfile.TemporaryDirectory(prefix="ipytaskpersist-demo-") as folder:
        os.environ |= private_environment(Path(folder))
        try:
            run = asyncio.run(run_notebook(notebook, show))
            show.event("the notebook is done; a terminal asks the same store")
            show.terminal("list")
            show.line()
            for promise in promises(run):
                show.line(f"  ✓ {promise}", "green")
        except (DemoFailed, CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            save(notebook)
            show.line(f"\nThe demo failed: {why(error)}", "bold red")
            return 1
        except KeyboardInterrupt:
            show.line("\nStopped.", "bold red")
            return 130
        written = save(notebook)
    show.line()
    show.line(f"All as promised, in {time.monotonic() - started:.0f} s. To look at:", "bold")
    for path in written:
        show.line(f"  {os.path.relpath(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
