"""What a program can ask of tasks, in the process that runs them and in any other."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kernels import Cell, NotebookKernel, end_processes_of, until
from programs import run_python

import ipytaskpersist
from ipytaskpersist import errors

MakeKernel = Callable[..., NotebookKernel]

SETUP = """
%load_ext ipytaskpersist
import asyncio, json, threading, time
import ipytaskpersist as bg
from ipytaskpersist import TaskState

def raised(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookKernel]:
    """One kernel for the tests that only need their own tasks."""
    folder = tmp_path_factory.mktemp("api")
    try:
        with NotebookKernel(folder / "state", notebook=folder / "api.ipynb") as kernel:
            kernel.run(SETUP)
            yield kernel
    finally:
        end_processes_of(folder / "state")


def check(kernel: NotebookKernel, source: str) -> Cell:
    """Run a cell whose assertions must hold."""
    return kernel.run(textwrap.dedent(source))


# Launching.


def test_background_runs_a_cells_source(shared: NotebookKernel) -> None:
    check(
        shared,
        """
        limit = 3
        task = bg.background("total = sum(range(limit))\\nprint('sum')\\ntotal", "adding")
        assert task.result(30) == 3 and total == 3
        assert (task.name, task.stdout) == ("adding", "sum\\n")
        assert task.source.splitlines()[-1] == "total"
        assert bg.background("x = 1").result(30) is None
        assert bg.background("!echo shell").wait(30)
        """,
    )


def test_submit_calls_a_function_with_its_arguments(shared: NotebookKernel) -> None:
    check(
        shared,
        """
        def scaled(number, *, by):
            print("scaling")
            return number * by
        task = bg.submit(scaled, 6, by=7)
        assert task.result(30) == 42
        assert (task.name, task.stdout) == ("scaled", "scaling\\n")
        assert task.source.startswith("def scaled(number, *, by):")
        assert bg.submit(scaled, 6, by=7, name="by seven").name == "by seven"
        assert bg.submit(lambda: 1).result(30) == 1
        assert bg.submit(max, [1, 5, 3]).result(30) == 5
        assert bg.submit(dict, function=1).result(30) == {"function": 1}
        """,
    )


def test_submit_runs_an_async_function_to_its_end(shared: NotebookKernel) -> None:
    check(
        shared,
        """
        async def later(value):
            await asyncio.sleep(0.01)
            return value
        assert bg.submit(later, "done").result(30) == "done"
        """,
    )


def test_submit_takes_anything_that_can_be_called(shared: NotebookKernel) -> None:
    check(
        shared,
        """
        import functools
        from ipytaskpersist import errors
        class Adder:
            def __call__(self, a, b): return a + b
            def method(self): return "method"
        assert bg.submit(Adder(), 1, 2).result(30) == 3
        assert bg.submit(Adder().method).result(30) == "method"
        partial = bg.submit(functools.partial(int, base=2), "101")
        assert (partial.result(30), partial.name) == (5, "int")

        def greet(name): return f"hello {name}"
        def refused(function, name):
            try:
                bg.submit(function, name=name)
            except errors.InvalidRequest as error:
                return str(error)
        assert "functools.partial(greet, name=…)" in refused(greet, "Ann")
        assert "a number means" in refused(int, "3")
        assert "submit(print, 3), not submit(print(3))" in refused(None, "x")
        assert "is a text, not 3" in refused(int, 3)
        for call, arguments in ((greet, ["Ann"]), (functools.partial(greet, name="Ann"), [])):
            task = bg.submit(call, *arguments, name="greeting")
            assert (task.result(30), task.name) == ("hello Ann", "greeting")
        """,
    )


def test_what_cannot_be_launched_raises_and_makes_no_task(shared: NotebookKernel) -> None:
    check(
        shared,
        """
        latest = bg.background("1")
        assert isinstance(raised(bg.background, "  "), bg.BackgroundError)
        wrong = raised(bg.background, "def (:")
        assert type(wrong).__name__ == "SyntaxError", type(wrong)
        assert isinstance(wrong, Exception)
        assert bg.task().id == latest.id
        """,
    )


# Asking.


def test_a_task_knows_what_is_recorded_of_it(shared: NotebookKernel) -> None:
    check(
        shared,
        """
        import sys
        task = bg.background("print('out')\\nprint('err', file=sys.stderr)\\n1", "facts")
        assert task.wait(30) and task.done()
        assert task.id == f"{get_ipython().kernel.session.session[:8]}-{task.number}"
        assert (task.state, task.reason, task.exit_code) == (TaskState.COMPLETED, None, 0)
        assert (task.stdout, task.stderr) == ("out\\n", "err\\n")
        kinds = [output["output_type"] for output in task.outputs]
        assert kinds == ["stream", "stream", "execute_result"]
        assert task.created_at <= task.started_at <= task.ended_at
        assert task.created_at.utcoffset().total_seconds() == 0
        assert [event.state for event in task.history] == ["pending", "running", "completed"]
        assert repr(task) == f"<Task {task.number} 'facts': completed>"
        """,
    )


def test_a_task_is_found_by_every_reference(shared: NotebookKernel) -> None:
    check(
        shared,
        """
        first, second = bg.background("1", "found"), bg.background("2", "found")
        for reference in (first.number, str(first.number), first.id, -2, "-2"):
            assert bg.task(reference) == first, reference
        assert bg.task("found") == bg.task() == bg.task(-1) == second
        assert first != second and len({first, bg.task(first.id)}) == 1
        assert bg.tasks()[-2:] == [first, second]
        assert bg.tasks(every_notebook=True)[-2:] == [first, second]
        error = raised(bg.task, "no such task")
        assert isinstance(error, bg.TaskNotFound) and isinstance(error, LookupError)
        """,
    )


def test_a_task_displays_itself_as_its_card(shared: NotebookKernel) -> None:
    cell = check(shared, "task = bg.background('1', '<i>shown')\ntask.wait(30)\ntask")
    (shown,) = cell.outputs
    assert "&lt;i&gt;shown" in shown.data["text/html"]
    assert "completed" in shown.data["text/html"]
    assert "completed" in shown.data["text/plain"]


def test_current_task_is_the_task_of_the_calling_code(shared: NotebookKernel) -> None:
    check(
        shared,
        """
        from concurrent.futures import ThreadPoolExecutor
        assert bg.current_task() is None
        with ThreadPoolExecutor(1) as foreground_pool:
            foreground_pool.submit(int).result()
            task = bg.background('''
        def ask():
            return bg.current_task().id
        with ThreadPoolExecutor(1) as pool:
            answers = [ask(), pool.submit(ask).result(), foreground_pool.submit(ask).result()]
        thread = threading.Thread(target=lambda: answers.append(ask()))
        thread.start()
        thread.join()
        answers
        ''')
            assert set(task.result(30)) == {task.id}, task.result()
            assert len(task.result()) == 4
        assert bg.submit(lambda: bg.current_task().name).result(30) == "<lambda>"
        assert bg.current_task() is None
        """,
    )


def test_a_task_can_launch_another(shared: NotebookKernel) -> None:
    check(
        shared,
        """
        launch = "inner = bg.background('print(1)\\\\n2', 'inner')"
        task = bg.background(launch + "\\ninner.result(30) + 1")
        assert task.result(30) == 3
        assert inner.stdout == "1\\n" and task.stdout == ""
        """,
    )


# Waiting.


def test_the_result_is_the_very_object(shared: NotebookKernel) -> None:
    check(
        shared,
        """
        thing = object()
        assert bg.background("thing").result(30) is thing
        assert bg.submit(lambda: thing).result(30) is thing
        """,
    )


def test_what_a_task_raised_is_raised_by_its_result(shared: NotebookKernel) -> None:
    check(
        shared,
        """
        class Odd(Exception): pass
        error = Odd("why")
        for task in (bg.background("raise error"), bg.submit(lambda: exec("raise error"))):
            assert raised(task.result, 30) is error
            assert task.exception() is error
            assert (task.state, task.reason, task.exit_code) == ("failed", "Odd: why", 1)
        assert bg.background("1").exception(30) is None
        """,
    )


def test_a_task_that_ends_the_interpreter_does_not_end_who_asks(shared: NotebookKernel) -> None:
    """`result` of a cell that called `sys.exit` must not end the kernel."""
    check(
        shared,
        """
        for source in ("raise SystemExit(3)", "raise KeyboardInterrupt"):
            task = bg.background(source)
            assert isinstance(raised(task.result, 30), bg.TaskFailed)
            assert isinstance(task.exception(), bg.TaskFailed)
        """,
    )


def test_waiting_has_an_end(shared: NotebookKernel) -> None:
    check(
        shared,
        """
        go = threading.Event()
        task = bg.background("go.wait()\\n'went'")
        begun = time.monotonic()
        assert task.wait(0.05) is False and task.done() is False
        assert isinstance(raised(task.result, 0.05), TimeoutError)
        assert isinstance(raised(task.exception, 0), TimeoutError)
        assert time.monotonic() - begun < 10
        go.set()
        assert task.wait() is True and task.result() == "went"
        """,
    )


def test_a_cancelled_task_says_so(shared: NotebookKernel) -> None:
    check(
        shared,
        """
        task = bg.background("while True: time.sleep(0.01)", "endless")
        assert task.cancel() is True
        assert task.wait(30) and task.state is TaskState.CANCELLED
        assert task.exit_code is None and task.reason == "cancelled"
        error = raised(task.result)
        assert isinstance(error, bg.TaskFailed) and "(endless) was cancelled" in str(error), error
        assert task.cancel() is False
        asleep = bg.submit(time.sleep, 1000)
        asleep.cancel()
        assert asleep.wait(30) and asleep.state is TaskState.CANCELLED
        """,
    )


def test_a_task_can_be_awaited(shared: NotebookKernel) -> None:
    check(
        shared,
        """
        go = threading.Event()
        task = bg.background("go.wait(30)\\n'value'")
        async def let_go():
            await asyncio.sleep(0)
            go.set()
        value, _ = await asyncio.gather(task, let_go())
        assert value == "value"
        try:
            await bg.background("1 / 0")
        except ZeroDivisionError as error:
            failed = error
        assert failed
        assert await asyncio.gather(*[bg.submit(int, n) for n in range(20)]) == list(range(20))
        """,
    )


# Other processes.

ASK = """
import json, sys
import ipytaskpersist as bg
task = bg.task(sys.argv[1])
def attempt(call):
    try:
        return repr(call())
    except Exception as error:
        return [type(error).__name__, str(error), getattr(error, "__notes__", [])]
print(json.dumps({
    "id": task.id, "state": task.state, "stdout": task.stdout, "source": task.source,
    "done": task.done(), "outputs": task.outputs, "history": [e.state for e in task.history],
    "result": attempt(lambda: task.result(10)), "exception": attempt(lambda: task.exception(10)),
    "current": repr(bg.current_task()), "tasks": [t.id for t in bg.tasks(every_notebook=True)],
}))
"""


def ask(state_dir: Path, reference: str, notebook: str = "") -> dict[str, Any]:
    answer = run_python(ASK, state_dir, reference, env={"IPYTASKPERSIST_NOTEBOOK": notebook})
    assert answer.stderr == ""
    return json.loads(answer.stdout)


@pytest.fixture
def own(make_kernel: MakeKernel) -> NotebookKernel:
    kernel = make_kernel(load=False, notebook="/own.ipynb")
    kernel.run(SETUP)
    return kernel


def test_a_plain_program_can_ask(own: NotebookKernel, state_dir: Path) -> None:
    own.run("task = bg.background('print(1)\\n{\"a\": [1, 2]}', 'asked')\nassert task.wait(30)")
    answer = ask(state_dir, "asked", "/own.ipynb")
    assert answer["state"] == "completed"
    assert (answer["stdout"], answer["done"], answer["current"]) == ("1\n", True, "None")
    assert answer["source"] == 'print(1)\n{"a": [1, 2]}'
    assert answer["history"] == ["pending", "running", "completed"]
    assert [output["output_type"] for output in answer["outputs"]] == ["stream", "execute_result"]
    assert answer["result"] == "{'a': [1, 2]}"
    assert answer["exception"] == "None"
    assert answer["tasks"] == [answer["id"]]
    assert ask(state_dir, answer["id"])["id"] == answer["id"]


def test_a_failure_in_another_process_comes_with_its_traceback(
    own: NotebookKernel, state_dir: Path
) -> None:
    own.run("task = bg.background('def deep():\\n    1 / 0\\ndeep()', 'bad')\nassert task.wait(30)")
    answer = ask(state_dir, "bad", "/own.ipynb")
    name, message, notes = answer["result"]
    assert name == "TaskFailed"
    assert message.startswith("task 1 (bad) failed (ZeroDivisionError: division by zero)")
    assert "deep()" in "\n".join(notes)
    assert "TaskFailed" in answer["exception"]


def test_a_program_waits_for_a_task_of_another_process(
    own: NotebookKernel, state_dir: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    own.run(
        "import pathlib\n"
        f"task = bg.background('''while not pathlib.Path({str(gate)!r}).exists(): "
        "time.sleep(0.01)\n'opened' ''')"
    )
    code = (
        "import pathlib, ipytaskpersist as bg\ntask = bg.task()\nassert not task.done()\n"
        f"pathlib.Path({str(gate)!r}).touch()\nprint(task.result(30))"
    )
    answer = run_python(code, state_dir, env={"IPYTASKPERSIST_NOTEBOOK": "/own.ipynb"})
    assert (answer.stdout, answer.stderr) == ("opened\n", "")


def test_a_program_cancels_a_task_of_another_process(own: NotebookKernel, state_dir: Path) -> None:
    own.run("task = bg.background('while True: time.sleep(0.01)')")
    code = (
        "import ipytaskpersist as bg\ntask = bg.task()\nprint(task.cancel(), task.wait(30))\n"
        "print(task.state)"
    )
    answer = run_python(code, state_dir, env={"IPYTASKPERSIST_NOTEBOOK": "/own.ipynb"})
    assert (answer.stdout, answer.stderr) == ("True True\ncancelled\n", "")
    own.run("assert task.wait(30) and task.state == 'cancelled'")


def test_the_next_kernel_has_the_results(own: NotebookKernel) -> None:
    own.run(
        "import decimal\nkept = bg.background('decimal.Decimal(\"1.50\")', 'kept')\n"
        "lost = bg.background('threading.Lock()', 'lost')\n"
        "bad = bg.background('1 / 0', 'bad')\n"
        "assert all(task.wait(30) for task in (kept, lost, bad))\n"
        "live = bg.background('print(\"begun\")\\nwhile True: time.sleep(0.01)', 'live')"
    )
    until(lambda: "begun" in own.run("print(live.stdout)").text)
    own.restart()
    own.run(SETUP)
    check(
        own,
        """
        assert str(bg.task("kept").result()) == "1.50"
        lost = raised(bg.task("lost").result)
        assert type(lost).__name__ == "ResultUnavailable" and isinstance(lost, bg.BackgroundError)
        assert "cannot pickle '_thread.lock'" in str(lost) and "<unlocked _thread.lock" in str(lost)
        assert isinstance(raised(bg.task("bad").result), bg.TaskFailed)
        live = bg.task("live")
        assert (live.state, live.reason) == (TaskState.INTERRUPTED, "kernel restarted")
        assert live.stdout == "begun\\n" and live.exit_code is None
        assert "was interrupted" in str(raised(live.result))
        assert [task.name for task in bg.tasks()] == ["kept", "lost", "bad", "live"]
        """,
    )


def test_a_handle_outlives_its_task(own: NotebookKernel) -> None:
    check(
        own,
        """
        task = bg.background("print('x')\\n1", "deleted")
        assert task.wait(30)
        get_ipython().run_line_magic("bg_delete", "deleted --yes")
        assert (task.name, task.state) == ("deleted", "completed")
        assert task.stdout == "" and task.outputs == [] and task.history == []
        assert isinstance(raised(bg.task, task.id), bg.TaskNotFound)
        """,
    )


def test_a_program_cannot_launch_and_is_told_where_it_can(state_dir: Path) -> None:
    answer = run_python(
        "import ipytaskpersist as bg\n"
        "for call in (lambda: bg.background('1'), lambda: bg.submit(int)):\n"
        "    try: call()\n"
        "    except bg.BackgroundError as error: print(error)\n"
        "print(bg.tasks())",
        state_dir,
    )
    assert answer.stderr == ""
    first, second, tasks = answer.stdout.splitlines()
    assert first == second
    assert "%load_ext ipytaskpersist" in first
    assert tasks == "[]"
    assert not state_dir.exists()


def test_every_error_has_one_base_and_says_what_it_means() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert ipytaskpersist.TaskFailed in kinds
    for kind in kinds:
        assert kind.__doc__
        if kind not in (errors.TaskCancelled, errors.TaskExit):  # which no cell is to catch
            assert issubclass(kind, ipytaskpersist.BackgroundError)
    assert not issubclass(errors.TaskCancelled, Exception)


def test_a_task_cannot_wait_for_its_own_end(shared: NotebookKernel) -> None:
    """Nor for a task that waits for it: refused, because neither would ever end."""
    check(
        shared,
        """
        go = threading.Event()
        tasks = [
            bg.background("bg.current_task().result()", "result"),
            bg.background("await bg.current_task()", "awaited"),
            bg.background("%bg_wait verb", "verb"),
            bg.background("go.wait(30)\\nbg.task('second').result()", "first"),
            bg.background("go.wait(30)\\nbg.task('first').wait()", "second"),
            bg.background("import ipytaskpersist as bg\\nbg.current_task().wait()", process=True),
            bg.background("bg.current_task().wait(0.01)", "patient"),
            bg.background(
                "threading.Thread(target=bg.current_task().wait, daemon=True).start()", "thread"
            ),
        ]
        go.set()
        assert all(task.wait(30) for task in tasks), tasks
        said = [task.reason or "" for task in tasks]
        assert all("cannot wait for its own end" in said[place] for place in (0, 1, 2, 5)), said
        assert sum("neither would end" in each for each in said[3:5]) >= 1, said
        assert [task.state for task in tasks[6:]] == [TaskState.COMPLETED] * 2, said
        """,
    )


# Results as arguments.


def test_a_result_is_handed_on_without_passing_through_the_notebook(
    make_kernel: MakeKernel, tmp_path: Path
) -> None:
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")
    kernel.run(SETUP)
    check(
        kernel,
        f"""
        import pathlib, numpy
        go = pathlib.Path({str(tmp_path / "go")!r})
        def part(number):
            while not go.exists():
                time.sleep(0.01)
            return numpy.full(100_000, number)
        def summary(parts, *, by, more=()):
            kinds = [type(each).__name__ for each in more]
            return float(sum(each.sum() for each in parts) / by), kinds
        def unchanged(array):
            import mmap
            base = array
            while getattr(base, "base", None) is not None:
                base = base.base
            return type(getattr(base, "obj", base)).__name__
        def nothing():
            pass
        a, c = bg.submit(part, 1, process=True), bg.submit(part, 3)
        b = bg.submit(part, 2, process=True, name="b")
        none = bg.submit(nothing, process=True)
        sums = [bg.submit(summary, [a, b, c], by=2, more=[none, 5], process=where)
                for where in (True, False)]
        mapped = bg.submit(unchanged, a, process=True)
        assert {{each.state for each in (*sums, mapped)}} == {{TaskState.PENDING}}
        go.touch()
        for each in sums:
            assert each.result(60) == (300_000.0, ["NoneType", "int"])
        assert mapped.result(60) == "mmap", "the array is mapped, not copied"
        """,
    )
    check(
        kernel,
        """
        def lock():
            return threading.Lock()
        kept = bg.submit(lock)
        same = bg.submit(lambda given: given is kept.value(), kept)
        assert same.result(30) is True, "in the notebook's process it is the very object"
        lost = bg.submit(type, kept, process=True)
        assert lost.wait(60) and lost.state is TaskState.FAILED
        assert "the value of task" in lost.reason and "could not be kept" in lost.reason
        fails = bg.submit(lambda: time.sleep(0.3) or 1 / 0)
        never = bg.submit(print, fails, process=True)
        assert never.wait(60) and never.state is TaskState.CANCELLED
        assert never.reason == f"task {fails.number} (<lambda>) failed"
        error = raised(bg.submit, print, fails)
        assert isinstance(error, bg.BackgroundError) and "never completes" in str(error)
        """,
    )
    kernel.kill()
    kernel.revive()
    kernel.run(SETUP)
    check(
        kernel,
        """
        a = bg.task("b")
        assert bg.submit(lambda array: int(array[0]), a).result(60) == 2
        assert bg.submit(lambda array: int(array[0]), a, process=True).result(60) == 2
        again = bg.tasks()[4].rerun()
        assert again.result(60) == (300_000.0, ["NoneType", "int"])
        %bg_delete 1 --yes
        gone = bg.tasks()[3].rerun()
        assert gone.wait(60) and "was deleted or archived; launch both again" in gone.reason
        """,
    )
