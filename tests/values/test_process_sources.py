"""Functions that travel between a notebook and its processes keep their source, both ways."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

import pytest
from kernels import NotebookKernel
from layout import ROOT
from processcells import Notebook

OLDEST = ROOT / ".venv" / "cloudpickle-3.1.0"

FUNCTIONS = """
import contextlib, functools, inspect, traceback
def outer(k):
    def inner(x):
        return x / k
    return inner
nested = outer(0)
short = lambda x: x / 0
class Tool:
    def method(self):
        return 1 / 0
    @property
    def value(self):
        return 2 / 0
    @staticmethod
    def static():
        return 3 / 0
def generate():
    yield 4 / 0
def logged(f):
    @functools.wraps(f)
    def wrapper(*given):
        return f(*given)
    return wrapper
@logged
def decorated(x):
    return x / 0
@functools.cache
def cached(x):
    return x / 0
@contextlib.contextmanager
def managed():
    yield 5 / 0
async def awaited():
    return 6 / 0
"""
CHECK = """
tried = {
    nested: lambda: nested(1), short: lambda: short(1), Tool.method: Tool().method,
    Tool.value.fget: lambda: Tool().value, Tool.static: Tool.static,
    generate: lambda: next(generate()), decorated: lambda: decorated(1),
    cached: lambda: cached(1), managed: lambda: managed().__enter__(),
    awaited: lambda: awaited().send(None),
}
for function, call in tried.items():
    try:
        call()
    except ZeroDivisionError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
    print(last.line, '/', inspect.getsource(function).strip().splitlines()[0])
"""
SEEN = """
return x / k / def inner(x):
short = lambda x: x / 0 / short = lambda x: x / 0
return 1 / 0 / def method(self):
return 2 / 0 / @property
return 3 / 0 / @staticmethod
yield 4 / 0 / def generate():
return x / 0 / @logged
return x / 0 / @functools.cache
yield 5 / 0 / @contextlib.contextmanager
return 6 / 0 / async def awaited():
"""


@pytest.fixture(params=["newest", "oldest"])
def notebook(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Notebook]:
    """A notebook with the cloudpickle of the environment, or with the oldest that is allowed."""
    env = (
        {}
        if request.param == "newest"
        else {"PYTHONPATH": os.pathsep.join(map(str, (OLDEST, ROOT)))}
    )
    if env and not OLDEST.is_dir():
        pytest.skip("no cloudpickle 3.1.0: sh .ci/versions installs it")
    with NotebookKernel(tmp_path_factory.mktemp("sources"), env=env) as kernel:
        kernel.run("%load_ext ipytaskpersist")
        if env:
            version = kernel.run("import cloudpickle\ncloudpickle.__version__").text
            assert version == "'3.1.0'"
        yield Notebook(kernel)


def test_functions_have_their_source_there_and_when_they_are_back(notebook: Notebook) -> None:
    notebook.cell(FUNCTIONS)
    assert notebook.printed(CHECK).splitlines() == SEEN.strip().splitlines()
    notebook.process("decorated(1)")
    (error,) = json.loads(notebook.cell("%bg_output --json"))
    traced = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error["traceback"]))
    assert re.search(r"Cell In\[\d+\], line \d+, in decorated\(x\)", traced)
    assert "return x / 0" in traced
    notebook.cell("%reset -f\nimport linecache\nlinecache.clearcache()")
    notebook.process(FUNCTIONS)
    assert notebook.cell(CHECK).splitlines() == SEEN.strip().splitlines()


def test_a_result_has_its_source_after_a_restart(kernel: NotebookKernel) -> None:
    kernel.run("%%background --thread\nlambda: 'of a thread'")
    kernel.run("%%background --process\nlambda: 'of a process'")
    kernel.run("%bg_wait 1 2")
    kernel.restart()
    kernel.run("%load_ext ipytaskpersist\nimport inspect, ipytaskpersist")
    for number, where in ((1, "thread"), (2, "process")):
        shown = kernel.run(f"print(inspect.getsource(ipytaskpersist.task({number}).result()))")
        assert shown.text.strip() == f"lambda: 'of a {where}'"
