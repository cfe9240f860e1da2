"""Python cells in processes of their own: what they are given, what they leave, how they end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kernels import Cell, NotebookKernel, end_processes_of, until

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.store.task_store import TaskStore

MakeKernel = Callable[..., NotebookKernel]


class Notebook:
    """A kernel with the extension, and what its process tasks leave."""

    def __init__(self, kernel: NotebookKernel) -> None:
        self.kernel = kernel

    def launch(self, source: str, flags: str = "") -> Cell:
        return self.kernel.run(f"%%background --process {flags}\n{source}", check=False)

    def process(self, source: str, flags: str = "") -> dict[str, Any]:
        """Run a cell in a process to its end, and return what `list --json` says of it."""
        launched = self.launch(source, flags)
        assert not launched.stream("stderr"), launched.text
        return self.ended()

    def ended(self) -> dict[str, Any]:
        self.kernel.run("%bg_wait")
        answer = json.loads(self.kernel.run("%bg_list --json --limit 1").text)
        task: dict[str, Any] = answer["tasks"][0]
        return task

    def outputs(self) -> list[dict[str, Any]]:
        outputs: list[dict[str, Any]] = json.loads(self.kernel.run("%bg_output --json").text)
        return outputs

    def printed(self) -> str:
        """What the latest task has printed, both streams in their order."""
        return "".join(out["text"] for out in self.outputs() if out["output_type"] == "stream")

    def value(self, expression: str) -> str:
        """An expression's value in the notebook; also lets variables come back."""
        cell = self.kernel.run(f"print(end='')\n{expression}")
        (shown,) = [out for out in cell.outputs if out.output_type == "execute_result"]
        return str(shown.data["text/plain"])


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    folder = tmp_path_factory.mktemp("processes")
    with NotebookKernel(folder / "state", notebook=folder / "one.ipynb") as kernel:
        kernel.run("%load_ext ipytaskpersist")
        try:
            yield Notebook(kernel)
        finally:
            end_processes_of(folder / "state")


# What it is given.


def test_it_is_given_what_it_uses_and_nothing_else(notebook: Notebook) -> None:
    notebook.kernel.run("used, unused = [1, 2], object()")
    notebook.process("print(used, 'unused' in globals())")
    assert notebook.printed() == "[1, 2] False\n"


def test_functions_and_classes_of_the_notebook_come_along_with_what_they_use(
    notebook: Notebook,
) -> None:
    notebook.kernel.run(
        "import math\nfactor = 3\ndef scaled(x):\n    return math.floor(x * factor)\n"
        "class Shape:\n    def area(self):\n        return scaled(2.5)\n"
    )
    notebook.process("print(Shape().area(), scaled(1))")
    assert notebook.printed() == "7 3\n"


def test_a_function_sees_what_the_cell_assigns(notebook: Notebook) -> None:
    """In the process as in the notebook, its globals are the cell's own variables."""
    notebook.kernel.run("level = 1\ndef show_level():\n    print('level', level)")
    notebook.process("show_level()\nlevel = 2\nshow_level()")
    assert notebook.printed() == "level 1\nlevel 2\n"


def test_two_names_of_one_object_stay_one_object(notebook: Notebook) -> None:
    notebook.kernel.run("first = []\nsecond = first")
    notebook.process("first.append(1)\nprint(second)")
    assert notebook.printed() == "[1]\n"


def test_in_names_exactly_what_it_is_given(notebook: Notebook) -> None:
    notebook.kernel.run("given, held_back = 1, 2")
    notebook.process("print(given, 'held_back' in globals())\nheld_back = 0", "--in given")
    assert notebook.printed() == "1 False\n"


def test_a_name_that_is_not_there_is_refused_at_once(notebook: Notebook) -> None:
    cell = notebook.launch("1", "--in nowhere")
    assert "there is no variable 'nowhere'" in cell.stream("stderr")
    assert "Traceback" not in cell.text
    for flag in ("--in", "--out"):
        cell = notebook.launch("1", f"{flag} given,other,given")
        assert cell.stream("stderr") == f"UsageError: {flag} names given more than once\n"


def test_what_cannot_be_pickled_stops_the_launch_and_says_what_helps(notebook: Notebook) -> None:
    notebook.kernel.run("import threading\nlock, number = threading.Lock(), 5")
    before = notebook.kernel.run("%bg_list --json").text
    cell = notebook.launch("print(number)\nwith lock:\n    pass")
    message = cell.stream("stderr")
    assert "lock (lock): TypeError: cannot pickle '_thread.lock' object" in message
    assert "--in number leaves it out" in message
    assert (
        json.loads(notebook.kernel.run("%bg_list --json").text)["count"]
        == json.loads(before)["count"]
    )


def test_a_name_that_the_cell_assigns_first_is_not_handed_over(notebook: Notebook) -> None:
    notebook.kernel.run("import threading\nlock = threading.Lock()")
    notebook.process("lock = 'another'\nprint(lock)")
    assert notebook.printed() == "another\n"


def test_a_syntax_error_shows_at_once(notebook: Notebook) -> None:
    cell = notebook.launch("def (:")
    assert cell.error
    assert cell.error[0] == "SyntaxError"


def test_modules_beside_the_notebook_are_found(notebook: Notebook) -> None:
    (notebook.kernel.cwd / "beside.py").write_text("def hello():\n    return 'from beside'\n")
    notebook.kernel.run("import beside")
    notebook.process("print(beside.hello())")
    assert notebook.printed() == "from beside\n"


# What it prints, displays and returns.


def test_all_kinds_of_output_keep_their_order(notebook: Notebook) -> None:
    source = """
import os, subprocess, sys
from IPython.display import HTML, display
print("one")
print("two", file=sys.stderr)
os.write(1, b"three\\n")
display(HTML("<b>four</b>"))
subprocess.run(["echo", "five"])
print("six")
os.system("echo seven >&2")
handle = display("eight", display_id=True)
handle.update("nine")
warnings = __import__("warnings").warn("ten")
6 * 7
"""
    assert notebook.process(source)["state"] == "completed"
    seen = [
        out["text"].strip() if out["output_type"] == "stream" else out["data"]["text/plain"]
        for out in notebook.outputs()
    ]
    assert seen[:8] == [
        "one", "two", "three", "<IPython.core.display.HTML object>", "five\nsix", "seven",
        "'nine'", seen[7],
    ]  # fmt: skip
    assert "UserWarning: ten" in seen[7]
    assert seen[8:] == ["42"]
    assert notebook.kernel.run("%bg_result").text == "42"


def test_an_exception_is_shown_as_the_notebook_would_show_it(notebook: Notebook) -> None:
    notebook.kernel.run("def broken(x):\n    return 1 / x")
    task = notebook.process("print('before')\nbroken(0)")
    assert (task["state"], task["exit_code"]) == ("failed", 1)
    assert task["reason"] == "ZeroDivisionError: division by zero"
    *_, error = notebook.outputs()
    assert error["ename"] == "ZeroDivisionError"
    traceback = "\n".join(error["traceback"])
    assert "broken" in traceback
    assert "ipytaskpersist" not in traceback


def test_top_level_await_magics_and_shell_lines_work(notebook: Notebook) -> None:
    notebook.process(
        "import asyncio\nawait asyncio.sleep(0.01)\nlines = !echo listed\n%time total = 1 + 1\n"
        "print(lines, total)"
    )
    assert "['listed'] 2\n" in notebook.printed()


def test_threads_pools_and_child_processes_print_to_it(notebook: Notebook) -> None:
    source = """
import multiprocessing, threading
from concurrent.futures import ThreadPoolExecutor
thread = threading.Thread(target=print, args=("thread",))
thread.start(); thread.join()
with ThreadPoolExecutor() as pool:
    pool.submit(print, "pool").result()
child = multiprocessing.get_context("fork").Process(target=print, args=("child",))
child.start(); child.join()
"""
    notebook.process(source)
    assert notebook.printed() == "thread\npool\nchild\n"


def test_figures_are_shown_as_in_a_cell(notebook: Notebook) -> None:
    notebook.process("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nprint('drawn')")
    kinds = [sorted(out.get("data", {})) for out in notebook.outputs()]
    assert ["image/png", "text/plain"] in kinds


def test_input_fails_at_once(notebook: Notebook) -> None:
    task = notebook.process("input('name? ')")
    assert task["state"] == "failed"
    assert task["reason"].startswith("StdinNotImplementedError")


def test_current_task_knows_where_it_is(notebook: Notebook) -> None:
    task = notebook.process("import ipytaskpersist\nprint(ipytaskpersist.current_task().id)")
    assert notebook.printed() == f"{task['id']}\n"


# How it ends.

CRASHES = {
    "import ctypes\nctypes.string_at(0)": ("killed by SIGSEGV", -11),
    "import os\nos._exit(3)": ("exit status 3", 3),
    "import os\nos._exit(0)": ("the process ended before its cell did", 0),
    "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)": ("killed by SIGKILL", -9),
    "import sys\nsys.exit(4)": ("exit status 4", 4),
    "raise KeyboardInterrupt": ("KeyboardInterrupt", 1),
    "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))\nbytearray(2**30)": (
        "MemoryError",
        1,
    ),
}


@pytest.mark.parametrize("crash", CRASHES, ids=lambda source: source.split("\n")[-1])
def test_a_crash_says_what_it_was_and_keeps_every_byte(notebook: Notebook, crash: str) -> None:
    task = notebook.process(f"for n in range(1000):\n    print('line', n, end=' ')\n{crash}")
    reason, code = CRASHES[crash]
    assert (task["state"], task["reason"], task["exit_code"]) == ("failed", reason, code)
    expected = "".join(f"line {number} " for number in range(1000))
    assert notebook.printed().startswith(expected)


def test_an_exit_with_success_completes(notebook: Notebook) -> None:
    task = notebook.process("import sys\nkept = 1\nsys.exit()")
    assert (task["state"], task["exit_code"]) == ("completed", 0)


def test_it_knows_what_it_used(notebook: Notebook) -> None:
    notebook.process("block = bytearray(100_000_000)\nsum(range(3_000_000))", "--out ''")
    process = json.loads(notebook.kernel.run("%bg_show --json").text)["process"]
    assert process["peak_memory_bytes"] > 100_000_000
    assert process["cpu_s"] > 0.05


def test_its_time_limit_ends_it(notebook: Notebook) -> None:
    task = notebook.process("print('begun')\nimport time\ntime.sleep(60)", "--timeout 5")
    assert (task["state"], task["reason"]) == ("failed", "timed out after 5 s")
    assert notebook.printed() == "begun\n"


def test_it_runs_where_it_is_told_with_the_environment_it_is_given(notebook: Notebook) -> None:
    (notebook.kernel.cwd / "sub folder").mkdir()
    notebook.process(
        "import os\nprint(os.path.basename(os.getcwd()), os.environ['GIVEN'])",
        "--cwd 'sub folder' --env GIVEN='a b=c'",
    )
    assert notebook.printed() == "sub folder a b=c\n"


def test_it_sees_what_the_notebook_has_in_its_environment_at_launch(notebook: Notebook) -> None:
    notebook.kernel.run(
        "import os\nos.environ['LATE'] = 'set late'\nos.environ.pop('JUPYTER_DATA_DIR')"
    )
    notebook.process("import os\nprint(os.environ['LATE'], 'JUPYTER_DATA_DIR' in os.environ)")
    assert notebook.printed() == "set late False\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--pty", "--pty is for shell commands"),
        ("--shell", "exclude each other"),
        ("--cwd nowhere", "does not exist"),
        ("--timeout 0", "--timeout"),
        ("--env WRONG", "not of the form NAME=VALUE"),
    ],
)
def test_flags_that_make_no_sense_are_one_line(
    notebook: Notebook, flags: str, message: str
) -> None:
    cell = notebook.launch("1", flags)
    assert message in cell.stream("stderr")
    assert len(cell.stream("stderr").strip().splitlines()) == 1


# What it leaves.


def test_what_it_assigns_is_back_before_the_next_cell_with_one_line(notebook: Notebook) -> None:
    """What is imported or only defined, and loop variables, come back without a word."""
    notebook.launch(
        "import math\nroot = math.sqrt(16)\ndef twice(x):\n    return 2 * x\n"
        "for step in range(3):\n    pass",
        "maths",
    )
    notebook.kernel.run("%bg_wait")
    assert "in the notebook" not in notebook.kernel.run("%bg_output").text
    cell = notebook.kernel.run("print(root, twice(root), step)")
    first, second = cell.text.splitlines()[-2:]
    assert first.endswith("(maths): root is in the notebook")
    assert second == "4.0 8.0 2"
    assert notebook.kernel.run("print('again')").text == "again\n"


def test_what_the_notebook_has_assigned_meanwhile_is_kept(
    notebook: Notebook, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(.01)\n"
    notebook.kernel.run("i, same, indirect, gone, kept = 0, 'same', 0, 0, 0")
    notebook.launch(
        wait + "for i in range(4):\n    summed = i\nsame = indirect = gone = kept = late = 'task'",
        "first",
    )
    notebook.launch(f"{wait}late = 'later'", "second")
    number = json.loads(notebook.kernel.run("%bg_show first --json").text)["number"]

    missed = notebook.kernel.run("summed", check=False)
    assert missed.outputs[0].output_type == "error"
    assert missed.stream("stderr") == (
        f"task {number} (first) assigns summed and still runs: %bg_wait {number}\n"
    )
    assert notebook.kernel.run("never", check=False).stream("stderr") == ""
    notebook.kernel.run("import time\ni = 7\nsame = 'same'\nexec('indirect = 2')\ndel gone")
    notebook.kernel.run("kept = 1 / 0", check=False)
    gate.touch()
    notebook.kernel.run("%bg_wait first second")

    back = notebook.kernel.run("print(i, same, indirect, gone, kept, summed, late)")
    assert back.stream("stdout").splitlines()[-1] == "7 same 2 task task 3 later"
    assert (
        f"task {number} (first): summed, gone, kept, late are in the notebook; "
        "i, same, indirect were assigned in the task, and in the notebook, which keeps its own; "
        f"%bg_load {number} i same indirect takes them\n"
    ) == back.stream("stderr")
    taken = notebook.kernel.run(f"%bg_load {number} i\nprint(i)")
    assert taken.stream("stdout").splitlines()[-1] == "3"


def test_nothing_comes_back_in_the_middle_of_a_cell(notebook: Notebook) -> None:
    notebook.kernel.run("value = 'old'")
    notebook.launch("value = 'new'", "changing")
    cell = notebook.kernel.run("bg = get_ipython().run_line_magic\nbg('bg_wait', '')\nprint(value)")
    assert cell.text.endswith("old\n")
    assert notebook.value("value") == "'new'"


def test_what_cannot_be_kept_is_named_and_loses_nothing_else(notebook: Notebook) -> None:
    notebook.process("import threading\nlock = threading.Lock()\nkept = 'yes'")
    cell = notebook.kernel.run("print(kept)")
    said = cell.stream("stderr")
    assert "kept is in the notebook; " in said
    assert "lock is not (TypeError: cannot pickle '_thread.lock' object)" in said
    assert cell.stream("stdout") == "yes\n"
    assert "cannot pickle" in notebook.kernel.run("%bg_show").text


def test_out_names_exactly_what_it_leaves(notebook: Notebook) -> None:
    notebook.process("best, scratch = 1, 2", "--out best,missing")
    text = notebook.kernel.run("'scratch' in globals()").text
    assert "best is in the notebook; missing is not (the cell has not assigned it)" in text
    assert text.endswith("False")


def test_load_says_what_there_is(notebook: Notebook) -> None:
    notebook.process("here = 1")
    text = notebook.kernel.run("%bg_load -1 elsewhere", check=False).stream("stderr")
    assert "has left no variable 'elsewhere'; there: here" in text


def test_a_function_that_comes_back_changes_no_variable_of_the_notebook(notebook: Notebook) -> None:
    notebook.kernel.run("limit = 10")
    notebook.process("def below(x):\n    return x < limit")
    notebook.kernel.run("limit = 3")
    assert notebook.value("limit, below(5)") == "(3, False)"


def test_a_function_is_submitted_to_a_process(notebook: Notebook) -> None:
    notebook.kernel.run(
        "import ipytaskpersist, os\ndef work(a, *, b):\n    print('working')\n"
        "    return a + b, os.getpid()\n"
        "task = ipytaskpersist.submit(work, 1, b=2, process=True)\n"
        "total, pid = task.result(timeout=60)"
    )
    assert notebook.value("total, pid != os.getpid(), task.stdout") == "(3, True, 'working\\n')"


def test_a_result_is_there_for_the_next_kernel(make_kernel: MakeKernel, tmp_path: Path) -> None:
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")
    kernel.run("%%background --process counted\nfound = {'a': 1}\nlen(found)")
    kernel.restart()
    kernel.run("%load_ext ipytaskpersist")
    kernel.run("%bg_wait")
    assert kernel.run("%bg_result").text == "1"
    text = kernel.run("%bg_load counted").text
    assert text == "task 1 (counted): found is in the notebook\n"
    assert kernel.run("print(found)").text == "{'a': 1}\n"


def test_a_tampered_input_is_never_unpickled(
    make_kernel: MakeKernel, state_dir: Path, tmp_path: Path
) -> None:
    """The file is exchanged between the launch and the start, which the supervisor waits for."""
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")
    kernel.run("x = 1\n")
    kernel.run("%%background --process first\nprint(x)")
    kernel.run("%bg_wait")
    (file,) = [path for path in (state_dir / "payloads").rglob("*.pickle") if "-1" in str(path)]
    file.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "harm").encode() + b"'\ntR.")
    cell = kernel.run("%bg_rerun first", check=False)
    assert "does not carry your signature" in cell.stream("stderr")
    assert not (tmp_path / "harm").exists()


# The real thing.


def test_a_model_trained_through_a_restart_predicts_in_the_next_kernel(
    make_kernel: MakeKernel, state_dir: Path, tmp_path: Path
) -> None:
    kernel = make_kernel(notebook=tmp_path / "digits.ipynb")
    kernel.run(
        "from sklearn.datasets import load_digits\n"
        "from sklearn.model_selection import train_test_split\n"
        "digits = load_digits()\n"
        "train_x, test_x, train_y, test_y = train_test_split(\n"
        "    digits.data, digits.target, random_state=0)\n"
    )
    kernel.run(
        f"""%%background --process train
import os, time
from sklearn.linear_model import SGDClassifier
model = SGDClassifier(random_state=0)
for epoch in range(5):
    model.partial_fit(train_x, train_y, classes=range(10))
    print("epoch", epoch, flush=True)
    while epoch == 2 and not os.path.exists({str(tmp_path / "restarted")!r}):
        time.sleep(0.01)
score = model.score(test_x, test_y)
"""
    )
    store = TaskStore(StateDirectory(state_dir)).open()
    until(lambda: "epoch 2" in printed_by(store), message="half of the training")
    kernel.restart()
    (tmp_path / "restarted").touch()
    assert "1 running" in kernel.run("%load_ext ipytaskpersist").text
    assert "completed" in kernel.run("%bg_wait train").text
    assert printed_by(store) == "".join(f"epoch {number}\n" for number in range(5))
    assert "model" in kernel.run("%bg_load train").text
    answer = kernel.run(
        "from sklearn.datasets import load_digits\n"
        "digits = load_digits()\n"
        "print(score, (model.predict(digits.data) == digits.target).mean())"
    ).text
    assert all(float(number) > 0.85 for number in answer.split())
    store.close()


def printed_by(store: TaskStore) -> str:
    return b"".join(output.data for output in store.outputs.of(1)).decode()


# Again.


def test_rerun_runs_an_ended_task_again_as_it_was(make_kernel: MakeKernel, tmp_path: Path) -> None:
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")
    notebook = Notebook(kernel)
    kernel.run("x = 'first'")
    notebook.process("import os\nprint(x, os.environ['K'])", "--env K=V named")
    kernel.run("x = 'second'")
    kernel.restart()
    kernel.run("%load_ext ipytaskpersist")
    kernel.run("%bg_rerun named")
    task = notebook.ended()
    assert (task["number"], task["name"], task["state"]) == (2, "named", "completed")
    assert notebook.printed() == "first V\n"
    shown = json.loads(kernel.run("%bg_show 2 --json").text)
    assert shown["rerun_of"] == json.loads(kernel.run("%bg_show 1 --json").text)["id"]


def test_resume_runs_what_was_interrupted_and_nothing_else(
    make_kernel: MakeKernel, tmp_path: Path
) -> None:
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")
    kernel.run("%%background ended\nprint('done')")
    kernel.run("%bg_wait")
    kernel.run(
        "%%background cut\nimport os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"
    )
    kernel.restart()
    kernel.run("%load_ext ipytaskpersist")
    refused = kernel.run("%bg_resume ended", check=False).stream("stderr")
    assert "is completed: it ended by itself; %bg_rerun 1 runs it once more" in refused
    (kernel.cwd / "go").touch()
    kernel.run("%bg_resume --all")
    assert "completed" in kernel.run("%bg_wait").text
    tasks = json.loads(kernel.run("%bg_list --json").text)["tasks"]
    assert [(task["name"], task["state"]) for task in tasks] == [
        ("ended", "completed"), ("cut", "interrupted"), ("cut", "completed"),
    ]  # fmt: skip
    assert "nothing to resume" in kernel.run("%bg_resume --all").text
    again = kernel.run("%bg_resume 2", check=False).stream("stderr")
    assert "has been run again already; %bg_rerun 2 runs it once more" in again


def test_rerun_of_a_running_task_is_refused(make_kernel: MakeKernel) -> None:
    kernel = make_kernel()
    kernel.run("%%background --shell\nsleep 60")
    assert "cancel it first" in kernel.run("%bg_rerun", check=False).stream("stderr")
    kernel.run("%bg_cancel")


def test_a_call_in_a_thread_cannot_be_run_again(make_kernel: MakeKernel) -> None:
    kernel = make_kernel()
    kernel.run("import ipytaskpersist\nipytaskpersist.submit(sum, [1]).wait(60)")
    assert "submit it again" in kernel.run("%bg_rerun", check=False).stream("stderr")


def test_auto_resume_runs_each_interrupted_task_once(
    make_kernel: MakeKernel, tmp_path: Path
) -> None:
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")
    kernel.run(
        "%%background waiting\nimport os, time\nwhile not os.path.exists('go'): time.sleep(.01)"
    )
    kernel.restart()
    kernel.run("get_ipython().config.BackgroundTasks.auto_resume = True")
    text = kernel.run("%load_ext ipytaskpersist").text
    assert "1 (waiting) · kernel restarted · runs again as 2" in text
    kernel.run("%reload_ext ipytaskpersist")
    (kernel.cwd / "go").touch()
    kernel.run("%bg_wait")
    tasks = json.loads(kernel.run("%bg_list --json").text)["tasks"]
    assert [task["state"] for task in tasks][:1] == ["interrupted"]
    assert tasks[-1]["state"] in ("completed", "interrupted")


def test_resume_needs_an_interrupted_task(make_kernel: MakeKernel) -> None:
    kernel = make_kernel()
    assert "nothing to resume" in kernel.run("%bg_resume").text
