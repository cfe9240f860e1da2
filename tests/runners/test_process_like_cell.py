"""A process task leaves the notebook as its cell would have left it, or says what it did not."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from kernels import NotebookKernel
from processcells import Notebook, a_kernel, notebook

__all__ = ["a_kernel", "notebook"]


# Cells that do not end well.


def test_a_failed_cell_leaves_what_it_had_assigned(notebook: Notebook) -> None:
    notebook.cell("partial, later, items = 'mine', 'mine', [1]")
    said = notebook.process("partial = 'half'\nitems += [2]\nraise ValueError('no')\nlater = 'no'")
    assert "which failed: partial, items are in the notebook" in said
    assert notebook.cell("partial, later, items") == "('half', 'mine', [1, 2])"


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("os._exit(3)", "exit status 3"),
        ("os._exit(1)", "exit status 1"),
    ],
)
def test_what_a_process_that_ended_too_early_did_not_leave_is_named(
    notebook: Notebook, end: str, reason: str
) -> None:
    notebook.cell("import os\nvalue = 'old'")
    said = notebook.process(f"value = 'new'\nmore = 1\n{end}")
    assert "which failed: " in said
    assert f"value, more are not ({reason}" in said
    assert notebook.cell("value") == "'old'"


def test_a_cancelled_process_says_what_it_has_not_left(notebook: Notebook) -> None:
    notebook.cell("value = 'old'")
    notebook.cell("%%background --process\nimport time\nvalue = 'new'\ntime.sleep(600)")
    notebook.cell("%bg_cancel\n%bg_wait")
    assert "which was cancelled: value is not (cancelled)" in notebook.cell("pass")


def test_a_cell_that_fails_before_it_assigns_anything_says_nothing(notebook: Notebook) -> None:
    notebook.cell("value = 'old'")
    assert notebook.process("value = missing") == ""


# What several variables share.


@pytest.mark.parametrize(
    ("background", "holds"),
    [
        (
            "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()",
            "ax.figure is fig and fig.axes[0] is ax",
        ),
        ("shared = []\none, two = {'of': shared}, [shared]", "one['of'] is two[0] is shared"),
        (
            "class Node:\n    pass\nparent, child = Node(), Node()\n"
            "parent.child, child.parent = child, parent",
            "parent.child is child and child.parent is parent and isinstance(parent, Node)",
        ),
        (
            "import enum\nclass Colour(enum.Enum):\n    RED = 1\nred = Colour.RED",
            "red is Colour.RED",
        ),
        (
            "import threading\nshared = []\none = [shared]\nlock = threading.Lock()\n"
            "two = [shared, lock]\nthree = [shared]",
            "three[0] is one[0] is shared and 'two' not in globals()",
        ),
    ],
)
def test_what_two_variables_share_is_one_object(
    notebook: Notebook, background: str, holds: str
) -> None:
    said = notebook.process(background)
    assert ("lock, two are not (TypeError: cannot pickle" in said) == ("lock" in background)
    assert notebook.cell(holds) == "True"


def test_one_of_several_variables_can_be_loaded_alone(notebook: Notebook) -> None:
    notebook.process("shared = []\none, two = [shared], [shared]")
    notebook.cell("one = two = shared = None")
    assert "two is in the notebook" in notebook.cell("%bg_load -1 two")
    assert notebook.cell("one, two") == "(None, [[]])"
    notebook.cell("%bg_load")
    assert notebook.cell("one[0] is two[0] is shared") == "True"


def test_a_variable_that_cannot_be_loaded_loses_no_other(notebook: Notebook) -> None:
    said = notebook.process(
        "def fail():\n    raise RuntimeError('not here')\n"
        "class Bad:\n    def __reduce__(self):\n        return fail, ()\n"
        "shared = [1]\none = [shared]\nbad = [shared, Bad()]\ntwo = [shared]"
    )
    assert "shared, one, two are in the notebook" in said
    assert "bad is not" in said
    assert "RuntimeError: not here" in said
    assert notebook.cell("two[0] is one[0]") == "True"


# Settings of libraries.

SETTINGS = [
    ("pd.set_option('display.max_rows', 7)", "pd.options.display.max_rows", "7"),
    ("np.set_printoptions(precision=3)", "np.array([1 / 3])", "array([0.333])"),
    ("np.seterr(divide='raise')", "np.geterr()['divide']", "'raise'"),
    ("plt.rcParams['font.size'] = 21", "int(plt.rcParams['font.size'])", "21"),
    ("decimal.getcontext().prec = 4", "decimal.Decimal(1) / 3", "Decimal('0.3333')"),
    ("sklearn.set_config(display='text')", "sklearn.get_config()['display']", "'text'"),
    ("%precision 3", "3.14159", "3.142"),
    (
        "warnings.filterwarnings('ignore', message='of mine')",
        "any(f[1] and f[1].match('of mine') for f in warnings.filters)",
        "True",
    ),
    ("os.environ['OF_MINE'] = 'set'", "os.environ['OF_MINE']", "'set'"),
    ("sys.path.append('/of/mine')", "'/of/mine' in sys.path", "True"),
    (
        "%config InlineBackend.figure_format = 'svg'",
        "InlineBackend.instance().figure_formats",
        "{'svg'}",
    ),
    (
        "get_ipython().ast_node_interactivity = 'last_expr_or_assign'",
        "get_ipython().ast_node_interactivity",
        "'last_expr_or_assign'",
    ),
]
LIBRARIES = """
import decimal, os, sys, warnings
import matplotlib.pyplot as plt, numpy as np, pandas as pd, sklearn
from matplotlib_inline.config import InlineBackend
"""


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    with NotebookKernel(tmp_path_factory.mktemp("settings")) as kernel:
        kernel.run("%load_ext ipytaskpersist")
        yield Notebook(kernel)


def test_what_a_process_sets_holds_in_the_notebook_and_the_other_way_round(
    fresh: Notebook,
) -> None:
    """The libraries are imported in the process first: the notebook has to take both over."""
    fresh.process(LIBRARIES + "\n".join(background for background, _shows, _shown in SETTINGS))
    for background, shows, shown in SETTINGS:
        assert fresh.cell(shows) == shown, background
    # A second process is given what the notebook has now.
    fresh.process("\n".join(f"display({shows})" for _background, shows, _shown in SETTINGS))
    outputs = json.loads(fresh.cell("%bg_output --json"))
    assert [output["data"]["text/plain"] for output in outputs] == [each[2] for each in SETTINGS]


def test_what_was_set_is_said_in_one_line(fresh: Notebook) -> None:
    said = fresh.process(
        "import pandas as pd\nimport matplotlib.pyplot as plt\n"
        "pd.options.display.max_rows = 7\nplt.style.use('ggplot')"
    )
    assert said.startswith("task 1: pandas display.max_rows")
    assert " more are set" in said
    assert len(said.splitlines()) == 1


def test_what_a_library_sets_when_it_is_imported_is_not_said(fresh: Notebook) -> None:
    said = fresh.process("from sklearn.linear_model import LinearRegression as Model")
    assert said == ""


def test_what_the_notebook_has_set_since_stays_and_that_is_said(fresh: Notebook) -> None:
    fresh.cell("import pandas as pd, time")
    fresh.cell(
        "%%background --process\nimport pandas as pd\npd.options.display.max_rows = 7\n"
        "pd.options.display.max_columns = 5"
    )
    fresh.cell("pd.options.display.max_rows = 9")
    fresh.cell("%bg_wait")
    said = fresh.cell("pass")
    assert "pandas display.max_columns is set" in said
    assert "pandas display.max_rows is not (the notebook has set it since)" in said
    assert fresh.cell("pd.options.display.max_rows, pd.options.display.max_columns") == "(9, 5)"


def test_a_secret_of_the_environment_is_not_kept_and_that_is_said(fresh: Notebook) -> None:
    said = fresh.process("import os\nos.environ['MY_TOKEN'] = 'hunter2'")
    assert "os.environ MY_TOKEN is not (it is called like a secret" in said
    assert fresh.cell("'MY_TOKEN' in os.environ") == "False"
    fresh.cell("os.environ['OF_MINE'] = 'set'")
    fresh.process("del os.environ['OF_MINE']")
    assert fresh.cell("'OF_MINE' in os.environ") == "False"


def test_settings_that_cannot_be_pickled_stop_no_launch(fresh: Notebook) -> None:
    fresh.cell(
        "import numpy as np, threading\nlock = threading.Lock()\n"
        "np.set_printoptions(formatter={'int': lambda n, lock=lock: 'seven'})"
    )
    launched = fresh.cell("%%background --process\nprint('runs')")
    assert "begins without the notebook's settings of numpy: they" in launched
    assert "completed" in fresh.cell("%bg_wait")


# Modules.


def test_submodules_that_a_process_imports_are_there_in_the_notebook(fresh: Notebook) -> None:
    fresh.process(
        "import xml.dom.minidom\nimport os.path as where, wsgiref.handlers\n"
        "import email\nfrom email import mime\nimport email.mime.text\n"
        "def load():\n    import xml.sax.handler\nload()"
    )
    assert fresh.cell("xml.dom.minidom.parseString('<a/>').documentElement.tagName") == "'a'"
    for submodule in ("wsgiref.handlers", "email.mime.text", "xml.sax.handler", "where"):
        assert "module" in fresh.cell(submodule)


def test_submodules_that_the_notebook_has_are_there_in_a_process(notebook: Notebook) -> None:
    notebook.cell("import xml.dom.minidom, xml as x, wsgiref.handlers")
    printed = notebook.printed(
        "print(xml.dom.minidom.parseString('<a/>').documentElement.tagName)\n"
        "print(x.dom.minidom.parseString('<b/>').firstChild.tagName)\n"
        "print(wsgiref.handlers.__name__)"
    )
    assert printed == "a\nb\nwsgiref.handlers\n"


# Names in strings.


IN_STRINGS = """
print(len(df.query('a > @one')))
print(len(df.query(how)))
print(len(above(df)))
print(pd.eval('df.a + three').sum())
print(eval('four + 1'))
exec('print(five)')
import timeit
print(timeit.timeit('six', globals=globals(), number=1) >= 0)
formula = 'y ~ half(x)'
print(eval(formula[4:8])(4))
"""


def test_names_that_only_a_string_has_are_handed_over(notebook: Notebook) -> None:
    notebook.cell(
        "import pandas as pd\ndf = pd.DataFrame({'a': [1, 2, 3]})\n"
        "one, two, three, four, five, six = range(1, 7)\nhow = 'a > @two'\n"
        "def above(df):\n    return df.query('a > @zero')\nzero = 0\n"
        "def half(x):\n    return x / 2"
    )
    printed = ["2", "1", "3", "15", "5", "5", "True", "2.0"]
    assert notebook.printed(IN_STRINGS).splitlines() == printed


def test_a_string_that_names_what_cannot_be_pickled_stops_no_launch(notebook: Notebook) -> None:
    notebook.cell("import threading\nlock, number = threading.Lock(), 7")
    assert notebook.printed("print('mail me @lock')\nprint(eval('number'))") == "mail me @lock\n7\n"


# IPython's shell in functions.


def test_functions_that_use_the_shell_use_that_of_the_process(notebook: Notebook) -> None:
    notebook.cell(
        "def shout(word):\n    !echo $word\n"
        "def lines():\n    found = !echo one; echo two\n    return found\n"
        "def where():\n    path = %pwd\n    return path\n"
        "class Tool:\n    def run(self):\n        !echo tool\n"
        "ip, tool, run = get_ipython(), Tool(), get_ipython().getoutput"
    )
    printed = notebook.printed(
        "shout('loud')\nprint(lines())\nprint(bool(where()))\nip.system('echo shell')\n"
        "tool.run()\nprint(run('echo bound'))"
    )
    assert printed.replace("\r", "").splitlines() == [
        *("loud", "['one', 'two']", "True", "shell", "tool", "['bound']")
    ]


def test_a_function_with_a_command_comes_back(notebook: Notebook) -> None:
    notebook.process("def shout():\n    !echo back")
    assert notebook.cell("shout()").strip() == "back"
