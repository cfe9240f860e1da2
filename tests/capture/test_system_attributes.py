"""What a task assigns to ``sys.stdout``, ``sys.displayhook`` and their like holds for it alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kernels import NotebookKernel, until
from many_cells import check_completed, ended, printed, run_all

from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

MakeKernel = Callable[..., NotebookKernel]

NAMES = ("stdout", "stderr", "stdin", "displayhook", "excepthook")

HELPERS = """\
import asyncio, cProfile, code, concurrent.futures, contextlib, ctypes, doctest, gc, io, logging
import multiprocessing, os, pathlib, pstats, sys, threading, time, traceback, types, unittest
import unittest.mock, warnings
from IPython.utils.capture import capture_output

DEADLINE_S = 60

def wait(holds, what):
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < DEADLINE_S, what
        time.sleep(0.002)

def mark(name):
    pathlib.Path(name).touch()

def wait_for(*names):
    for name in names:
        wait(pathlib.Path(name).exists, name)

class Hook:
    def __init__(self):
        self.calls = []
    def __call__(self, *args):
        self.calls.append(args)
    def tell(self):
        return len(self.calls)

class Lines:
    def __init__(self):
        self.read = 0
    def readline(self):
        self.read += 1
        return "a line\\n"
    def tell(self):
        return self.read

def make(name):
    if name.endswith("hook"):
        return Hook()
    return Lines() if name == "stdin" else io.StringIO()

# How C code, or else the library, comes to what the attribute is.
USES = {
    "stdout": lambda: print("used"),
    "stderr": lambda: ctypes.pythonapi.PySys_WriteStderr(b"used\\n"),
    "stdin": lambda: sys.stdin.readline(),
    "displayhook": lambda: exec(compile("'used'", "<used>", "single")),
    "excepthook": lambda: vars(sys)["excepthook"](ValueError, ValueError("used"), None),
}

def reaches(name, value):
    before = value.tell()
    USES[name]()
    return value.tell() != before

def is_assigned(name, value):
    return getattr(sys, name) is value and reaches(name, value)
"""

# What each task does for one of the attributes. A function, because IPython puts back its own
# `sys.excepthook` after each statement of a cell, in the foreground as well.
SCENARIOS = """\
def assigned_and_restored(name):
    old, mine, other = getattr(sys, name), make(name), make(name)
    for _ in range(3):
        setattr(sys, name, mine)
        assert is_assigned(name, mine)
        setattr(sys, name, other)
        assert is_assigned(name, other) and not reaches(name, mine)
        setattr(sys, name, mine)
        assert is_assigned(name, mine) and not reaches(name, other)
        setattr(sys, name, old)
        assert getattr(sys, name) == old and mine.tell()
        # Not IPython's own, which shows an error.
        assert name == "excepthook" or not reaches(name, mine) and not reaches(name, other)

def held_in_threads(name):
    early, found = threading.Event(), {}
    def look(where):
        found[where] = is_assigned(name, mine)
    def look_later():
        early.wait()
        look("begun before")
    begun_before = threading.Thread(target=look_later)
    begun_before.start()
    mine = make(name)
    setattr(sys, name, mine)
    early.set()
    begun_after = threading.Thread(target=look, args=["begun after"])
    begun_after.start()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(look, "submitted").result()
    with foreground_pool_lock:
        foreground_pool.submit(look, "submitted to the foreground's").result()
    begun_before.join(), begun_after.join()
    assert len(found) == 4 and all(found.values()), found

def held_beside_cells(name):
    mine = make(name)
    setattr(sys, name, mine)
    mark(f"{name}.assigned")
    rounds = 0
    while not os.path.exists("cells.over"):
        assert is_assigned(name, mine), rounds
        rounds += 1
    assert is_assigned(name, mine) and rounds

def left_assigned(name):
    setattr(sys, name, make(name))
    raise ValueError("left")

def two_at_once(name, own, other):
    mine = make(name)
    setattr(sys, name, mine)
    mark(f"{own}.here")
    wait_for(f"{other}.here")
    for _ in range(200):
        assert is_assigned(name, mine)
    content = mine.getvalue() if name.startswith("std") and name != "stdin" else ""
    assert len(content) in (0, len("used\\n") * 200)
    mark(f"{own}.done")
    wait_for(f"{other}.done")
    assert is_assigned(name, mine)

def assigned_in_blocks(name):
    # A block ends with what was there at its beginning.
    block = {"stdout": contextlib.redirect_stdout, "stderr": contextlib.redirect_stderr}.get(name)
    if block is None:
        return
    mine, inner, outer = make(name), make(name), make(name)
    setattr(sys, name, outer)
    with block(mine):
        assert is_assigned(name, mine)
        setattr(sys, name, inner)
        assert is_assigned(name, inner)
        setattr(sys, name, mine)
        assert is_assigned(name, mine)
    assert is_assigned(name, outer)
    with block(None):
        assert getattr(sys, name) is None
        USES[name]()
    setattr(sys, name, None)
    assert getattr(sys, name) is None
    USES[name]()
    setattr(sys, name, getattr(sys, f"__{name}__"))
    assert not reaches(name, outer)

def patched_by_mock(name):
    mine, patched = make(name), make(name)
    for _ in range(2):
        with unittest.mock.patch(f"sys.{name}", patched):
            assert is_assigned(name, patched)
        assert not name.startswith("std") or getattr(sys, name) is not patched
        setattr(sys, name, mine)
        with unittest.mock.patch.object(sys, name, patched):
            assert is_assigned(name, patched)
        assert is_assigned(name, mine)
"""

# The foreground's own: what it has must be as it was.
LOOK = """\
foreground_pool, foreground_pool_lock = concurrent.futures.ThreadPoolExecutor(1), threading.Lock()
foreground_pool.submit(int).result()

def look():
    return [getattr(sys, name) for name in ("stdout", "stderr", "stdin", "displayhook")]
before = look()
"""
CELL = """\
assert look() == before
assert sys.displayhook is get_ipython().displayhook and sys.stdin is sys.__stdin__
assert sys.excepthook == get_ipython().excepthook
print("printed"); print("said", file=sys.stderr); get_ipython().displayhook is sys.displayhook
"""


def prepared(make_kernel: MakeKernel) -> NotebookKernel:
    kernel = make_kernel()
    kernel.run(HELPERS + SCENARIOS)
    kernel.run(LOOK)
    return kernel


def check_foreground(kernel: NotebookKernel) -> None:
    cell = kernel.run(CELL)
    assert cell.stream("stdout") == "printed\n"
    assert cell.stream("stderr") == "said\n"
    assert cell.text.endswith("True")


@pytest.mark.parametrize(
    "scenario",
    ["assigned_and_restored", "held_in_threads", "assigned_in_blocks", "patched_by_mock"],
)
def test_an_assignment_of_a_task_is_what_its_code_finds(
    scenario: str, make_kernel: MakeKernel, store: TaskStore
) -> None:
    kernel = prepared(make_kernel)
    run_all(kernel, {name: f"{scenario}({name!r})" for name in NAMES})
    check_completed(store, ended(store, len(NAMES)))
    check_foreground(kernel)


def test_an_assignment_of_a_task_holds_while_foreground_cells_begin_and_end(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    """IPython sets and puts back ``sys.displayhook`` and ``sys.excepthook`` with each cell."""
    kernel = prepared(make_kernel)
    run_all(kernel, {name: f"held_beside_cells({name!r})" for name in NAMES})
    kernel.run(f"wait_for(*(f'{{name}}.assigned' for name in {NAMES}))")
    for _ in range(20):
        check_foreground(kernel)
        assert kernel.run("1 / 0", check=False).error
    kernel.run("mark('cells.over')")
    tasks = ended(store, len(NAMES))
    check_completed(store, tasks)
    assert {printed(store, task) for task in tasks.values()} == {""}
    check_foreground(kernel)


def test_an_assignment_ends_with_its_task(make_kernel: MakeKernel, store: TaskStore) -> None:
    """An exception leaves it assigned; neither another task nor the foreground finds it."""
    kernel = prepared(make_kernel)
    run_all(kernel, {name: f"left_assigned({name!r})" for name in NAMES})
    for name, task in ended(store, len(NAMES)).items():
        assert task.reason == "ValueError: left", name
        assert "ValueError" in printed(store, task), name
    check_foreground(kernel)
    kernel.run(f"%%background after\n{CELL}")
    check_completed(store, {"after": ended(store, len(NAMES) + 1)["after"]})
    kernel.run(
        "left = [each for each in gc.get_objects() if type(each) is Hook]\nassert not left, left"
    )


def test_two_tasks_at_once_have_each_their_own(make_kernel: MakeKernel, store: TaskStore) -> None:
    kernel = prepared(make_kernel)
    pairs = [(name, f"{name}_1", f"{name}_2") for name in NAMES]
    cells = {own: f"two_at_once({name!r}, {own!r}, {other!r})" for name, own, other in pairs}
    cells |= {other: f"two_at_once({name!r}, {other!r}, {own!r})" for name, own, other in pairs}
    run_all(kernel, cells)
    check_completed(store, ended(store, len(cells)))
    check_foreground(kernel)


# Tools.

DOCTESTS = """\
def mean(values):
    '''
    >>> mean([1, 2, 3])
    2.0
    >>> mean([])
    Traceback (most recent call last):
        ...
    ZeroDivisionError: division by zero
    >>> print("printed"); [mean([each]) for each in range(3)]
    printed
    [0.0, 1.0, 2.0]
    '''
    return sum(values) / len(values)

def wrong():
    '''
    >>> wrong()
    4
    '''
    return 5

def test(rounds):
    for _ in range(rounds):
        runner = doctest.DocTestRunner()
        for each in doctest.DocTestFinder().find(mean, "mean", globs={"mean": mean}):
            runner.run(each)
        assert (runner.tries, runner.failures) == (3, 0)
    doctest.run_docstring_examples(wrong, {"wrong": wrong}, name="wrong")
"""


def test_doctest_beside_foreground_cells(make_kernel: MakeKernel, store: TaskStore) -> None:
    kernel = make_kernel()
    kernel.run(HELPERS + DOCTESTS)
    run_all(kernel, {"one": "test(200)", "two": "test(200)"})

    def cells() -> bool:
        assert kernel.run("6 * 7").text == "42"
        assert kernel.run("test(1)").text.endswith("    5\n")
        return all(task.state.is_final for task in store.tasks.select(Selection()))

    until(cells, timeout=60, message="the end of the doctests")
    tasks = ended(store, 2)
    check_completed(store, tasks)
    for task in tasks.values():
        assert printed(store, task).count("Failed example") == 1
        assert printed(store, task).endswith("Got:\n    5\n")


TOOLS = {
    "unittest": """\
class Some(unittest.TestCase):
    def test_prints(self):
        print("buffered"); print("buffered", file=sys.stderr)
    @unittest.mock.patch("sys.stdout", new_callable=io.StringIO)
    def test_patched(self, stdout):
        print("patched")
        self.assertEqual(stdout.getvalue(), "patched\\n")
    def test_that_fails(self):
        print("shown")
        self.fail()
def tool():
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(Some)
    told = io.StringIO()
    result = unittest.TextTestRunner(told, buffer=True).run(tests)
    assert (result.testsRun, len(result.failures), len(result.errors)) == (3, 1, 0), told.getvalue()
    assert "shown" in told.getvalue() and "buffered" not in told.getvalue()
    print("after")
""",
    "captures": """\
def tool():
    mine = sys.stdout = io.StringIO()
    with capture_output() as outer:
        print("outer")
        with contextlib.redirect_stdout(io.StringIO()) as inner:
            assert sys.stdout is inner
            print("inner")
            sys.stdout = other = io.StringIO()
            print("other")
        print("outer again", file=sys.stdout)
        exec(compile("'displayed'", "<some>", "single"))
    print("mine")
    sys.stdout = sys.__stdout__
    found = outer.stdout, inner.getvalue(), other.getvalue(), mine.getvalue()
    assert found == ("outer\\nouter again\\n", "inner\\n", "other\\n", "mine\\n"), found
    assert "displayed" in str(outer.outputs[0].data), outer.outputs
    print("after")
""",
    "tee": """\
class Tee:
    def __init__(self, stream):
        self.stream, self.parts = stream, []
    def write(self, text):
        self.parts.append(text)
        return self.stream.write(text)
    def __getattr__(self, name):
        return getattr(self.stream, name)
def tool():
    stream = sys.stdout
    sys.stdout = tee = Tee(stream)
    print("af", end="", flush=True)
    with contextlib.redirect_stdout(io.StringIO()) as caught:
        sys.stdout = Tee(sys.stdout)
        print("caught")
    assert caught.getvalue() == "caught\\n" and tee.parts == ["af", ""], tee.parts
    sys.stdout = stream
    print("ter")
    assert len(tee.parts) == 2 and sys.stdout is stream
""",
    "handlers": """\
def tool():
    sys.stderr = mine = io.StringIO()
    logger = logging.Logger("of a task")
    logger.addHandler(logging.StreamHandler())
    logger.error("logged")
    warnings.warn("warned")
    traceback.print_stack(limit=1)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start(), thread.join()
    sys.stderr = sys.__stderr__
    for each in ("logged", "warned", "print_stack", "ZeroDivisionError"):
        assert each in mine.getvalue(), (each, mine.getvalue())
    print("after", file=sys.stderr)
""",
    "interact": """\
def tool():
    given = iter(["x = 6", "x * 7", "print('printed', x)", "1 / 0"])
    def read(prompt):
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None
    sys.stdout, sys.stderr = out, error = io.StringIO(), io.StringIO()
    sys.displayhook = sys.__displayhook__
    sys.excepthook = sys.__excepthook__
    code.interact(banner="begins", readfunc=read, local={}, exitmsg="ends")
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    assert out.getvalue() == "42\\nprinted 6\\n", out.getvalue()
    assert "begins" in error.getvalue() and "ZeroDivisionError" in error.getvalue()
    print("after")
""",
    "prints to what holds": """\
def tool():
    sys.stdout = mine = io.StringIO()
    profile = cProfile.Profile()
    profile.runcall(len, ())
    pstats.Stats(profile).print_stats()
    help(len)
    sys.stdout = sys.__stdout__
    assert "function calls" in mine.getvalue(), mine.getvalue()
    print("after")
""",
    "forks": """\
def tool():
    mine = sys.stdout = io.StringIO()
    child = multiprocessing.get_context("fork").Process(target=print, args=("in a child",))
    child.start(), child.join()
    print("here")
    assert mine.getvalue() == "here\\n" and child.exitcode == 0
    sys.stdout = sys.__stdout__
    child = multiprocessing.get_context("fork").Process(target=print, args=("after",))
    child.start(), child.join()
""",
    "asyncio": """\
async def prints():
    print("in a coroutine")
    await asyncio.to_thread(print, "in a thread")
async def main():
    sys.stdout = mine = io.StringIO()
    await asyncio.gather(prints(), asyncio.create_task(prints()))
    sys.stdout = sys.__stdout__
    assert sorted(mine.getvalue().splitlines()) == ["in a coroutine"] * 2 + ["in a thread"] * 2
    print("after")
def tool():
    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start(), thread.join()
""",
}


def test_tools_that_assign(make_kernel: MakeKernel, store: TaskStore) -> None:
    """One function each, so that tasks do not exchange each other's variables."""
    kernel = prepared(make_kernel)
    for number, (name, source) in enumerate(TOOLS.items()):
        kernel.run(source.replace("tool", f"tool_{number}"))
        kernel.run(f"%%background {name.split()[0]}\ntool_{number}()")
    tasks = ended(store, len(TOOLS))
    check_completed(store, tasks)
    texts = {name: printed(store, task) for name, task in tasks.items()}
    # What a failed test has printed goes to the stream that was there before.
    assert texts.pop("unittest") == "\nStdout:\nshown\nafter\n"
    assert set(texts.values()) == {"after\n"}, texts
    check_foreground(kernel)


OWN_HOOK = "import sys\nsys.displayhook = lambda value: print('shown', value)\n"


def test_a_cell_shows_its_value_by_the_hook_that_it_has_set(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    """As in the foreground, where the next cell has IPython's again."""
    kernel = make_kernel()
    cells = {
        "own": f"{OWN_HOOK}6 * 7",
        "quiet": f"{OWN_HOOK}6 * 7;",
        "back": f"import sys; old = sys.displayhook\n{OWN_HOOK}sys.displayhook = old\n6 * 7",
        "next": "6 * 7",
    }
    expected = {name: kernel.run(source).text for name, source in cells.items()}
    assert expected == {"own": "shown 42\n", "quiet": "shown 42\n", "back": "42", "next": "42"}
    run_all(kernel, cells)
    tasks = ended(store, len(cells))
    check_completed(store, tasks)
    shown = {name: printed(store, task) for name, task in tasks.items()}
    assert shown["own"] == shown["quiet"] == "shown 42\n"
    assert '"text/plain": "42"' in shown["back"]
    assert '"text/plain": "42"' in shown["next"]
    assert kernel.run("import ipytaskpersist as bg; bg.task('own').result()").text == "42"
    kernel.run("%%background fails\nsys.displayhook = lambda value: 1 / 0\n6 * 7")
    fails = ended(store, len(cells) + 1)["fails"]
    assert fails.reason == "ZeroDivisionError: division by zero"
    assert "Traceback" in printed(store, fails)


# The foreground.

FOREGROUND = """\
def in_foreground(name):
    old, mine = getattr(sys, name), make(name)
    setattr(sys, name, mine)
    try:
        mark(f"{name}.by_foreground")
        wait_for(f"{name}.used")
        assert not mine.tell(), f"a task has reached {name} of the foreground"
        assert is_assigned(name, mine)
    finally:
        setattr(sys, name, old)
    assert getattr(sys, name) == old

def uses_beside(name):
    before = getattr(sys, name)
    wait_for(f"{name}.by_foreground")
    assert getattr(sys, name) == before, (getattr(sys, name), before)
    # IPython's own hook shows an error, and at the end of the input there is nothing to read.
    if name not in ("excepthook", "stdin"):
        USES[name]()
    if name in ("stdout", "stderr"):
        getattr(sys, name).write("written\\n")
    mark(f"{name}.used")
"""


def test_what_the_foreground_assigns_does_not_reach_tasks(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    kernel = prepared(make_kernel)
    kernel.run(FOREGROUND)
    for name in NAMES:
        kernel.run(f"%%background {name}\nuses_beside({name!r})")
        kernel.run(f"in_foreground({name!r})")
    tasks = ended(store, len(NAMES))
    check_completed(store, tasks)
    assert printed(store, tasks["stdout"]) == printed(store, tasks["stderr"]) == "used\nwritten\n"
    assert "'used'" in printed(store, tasks["displayhook"])
    check_foreground(kernel)


def test_what_the_foreground_keeps_assigned_is_its_own_in_later_cells(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    kernel = prepared(make_kernel)
    kernel.run("%%background first\n1")
    kernel.run("class Log(io.StringIO): pass\nreal, sys.stdout = sys.stdout, Log()\nprint(1)")
    kernel.run("assert type(sys.stdout) is Log and sys.stdout.getvalue() == '1\\n'\nprint(2)")
    kernel.run("%%background task\nprint(3)\nsys.stdout.write('4')\nassert sys.stdout is real")
    task = ended(store, 2)["task"]
    check_completed(store, {"task": task})
    assert printed(store, task).startswith("3\n4")
    kernel.run("assert type(sys.stdout) is Log")
    kernel.run("assert sys.stdout.getvalue() == '1\\n2\\n'\nsys.stdout = real")
    assert kernel.run("print(5)").text == "5\n"


def test_a_task_has_the_kernels_streams_also_where_the_first_was_launched_within_a_capture(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    kernel = make_kernel()
    kernel.run("%%capture\n%background print('first')")
    kernel.run("%%background second\nimport sys\nsys.stdout.fileno(); print('second')")
    tasks = ended(store, 2)
    check_completed(store, tasks)
    assert {printed(store, task).splitlines()[0] for task in tasks.values()} == {"first", "second"}
    kernel.run("%bg_wait")


def test_the_foreground_deletes_and_fails_as_without_the_extension(make_kernel: MakeKernel) -> None:
    kernel = prepared(make_kernel)
    kernel.run("%%background\n1")
    for name in ("stdin", "stdout"):
        kernel.run(
            f"old = sys.{name}\ndel sys.{name}\ngone = not hasattr(sys, {name!r})\n"
            f"sys.{name} = old\nassert gone"
        )
    kernel.run(
        "sys.stdout = None\nprint(7)\nwas = sys.stdout\nsys.stdout = old\nassert was is None"
    )
    for source in (
        "sys.stdout = io.StringIO(); sys.stdout.close(); print(8)",
        "sys.displayhook = lambda value: 1 / 0\n8",
    ):
        failed = kernel.run(source, check=False).error
        kernel.run("sys.stdout = old")
        assert failed
        assert failed[0] in ("ValueError", "ZeroDivisionError")
        assert "ipytaskpersist" not in "".join(failed[2])
    kernel.run(
        "import weakref\nsys.stdout = io.StringIO(); gone = weakref.ref(sys.stdout)\n"
        "sys.stdout = old\nassert gone() is None"
    )
    check_foreground(kernel)


# Ends.


def test_what_a_task_leaves_running_finds_what_the_foreground_has(
    make_kernel: MakeKernel, store: TaskStore
) -> None:
    kernel = prepared(make_kernel)
    kernel.run("mine = io.StringIO()\nfound = []")
    kernel.run(
        "%%background leaves\n"
        "def later():\n"
        "    wait_for('ended')\n"
        "    print('late')\n"
        "    found.append(sys.stdout)\n"
        "sys.stdout = mine\nthread = threading.Thread(target=later); thread.start(); print('own')"
    )
    check_completed(store, ended(store, 1))
    assert kernel.run("mark('ended'); thread.join()").text == "late\n"
    kernel.run("assert mine.getvalue() == 'own\\n' and found == [sys.stdout]")


RUNS_ON = """\
%%background runs
for name in ("stdout", "stderr", "stdin", "displayhook"):
    setattr(sys, name, make(name))
mark("runs")
wait_for("unloaded")
"""


def test_unloading_leaves_what_the_foreground_has(make_kernel: MakeKernel) -> None:
    """Also while a task has assigned, and what the foreground itself has assigned meanwhile."""
    kernel = make_kernel(load=False)
    kernel.run(HELPERS)
    kernel.run(
        "plain = {name: vars(sys)[name] for name in ('stdout', 'stderr', 'stdin', 'displayhook')}\n"
        "kinds = {name: type(value) for name, value in plain.items()}\n"
        "original = unittest.mock._patch.get_original.__code__"
    )
    for _ in range(2):
        kernel.run("%load_ext ipytaskpersist")
        kernel.run(RUNS_ON)
        kernel.run("wait_for('runs')")
        kernel.run("sys.stdin = mine = io.StringIO()")
        kernel.run("%unload_ext ipytaskpersist")
        kernel.run(
            "assert vars(sys)['stdin'] is mine\nsys.stdin = plain['stdin']\n"
            "for name, value in plain.items():\n"
            "    assert vars(sys)[name] is getattr(sys, name) is value, name\n"
            "    assert type(value) is kinds[name]\n"
            "assert type(sys) is types.ModuleType\n"
            "assert unittest.mock._patch.get_original.__code__ is original\n"
            "assert vars(sys)['excepthook'] == get_ipython().excepthook"
        )
        cell = kernel.run("print(1)\n2")
        assert cell.text == "1\n2"
        kernel.run("mark('unloaded'); os.remove('runs')")
