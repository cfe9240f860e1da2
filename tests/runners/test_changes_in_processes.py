"""What a process task has changed in place is changed in the notebook, or named as lost."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import pytest
from kernels import NotebookKernel
from processcells import UNTIL_GO, Notebook, a_kernel, notebook

from ipytaskpersist.session.results import OLD_ONE

__all__ = ["a_kernel", "notebook"]


@dataclass(frozen=True)
class Way:
    """A way of changing a variable without assigning it."""

    setup: str
    """A foreground cell."""
    change: str
    """A cell in a process."""
    holds: str
    """An expression that is true after the change, in the foreground as well."""
    changed: str = "x"
    """The variable that is said to be changed."""
    needs: str = ""
    """A module without which it is skipped."""
    is_replaced: bool = False
    """Whether it cannot be changed in place, so that its names have another object afterwards."""


FRAME = "import pandas as pd\nx = pd.DataFrame({'a': [3, 1, 2], 'b': list('cab')}); same = x"
WAYS = {
    # Frames.
    "new column": Way(FRAME, "x['c'] = x.a * 2", "list(x.c) == [6, 2, 4] and same is x"),
    "loc": Way(FRAME, "x.loc[0, 'a'] = 9", "list(x.a) == [9, 1, 2] and same is x"),
    "drop": Way(FRAME, "x.drop(columns='b', inplace=True)", "'b' not in same"),
    "sort": Way(FRAME, "x.sort_values('a', inplace=True)", "list(same.index) == [1, 2, 0]"),
    "frame that a dict holds": Way(
        FRAME + "\nheld = {'x': x}", "x['c'] = 0", "'c' in held['x'] and held['x'] is x"
    ),
    "series": Way(FRAME + "\nx = x.a.copy(); same = x", "x[1] = 7", "same is x and same[1] == 7"),
    # Containers.
    "list": Way("x = [1]; same = x", "x.append(2)", "x == [1, 2] and same is x"),
    "dict": Way("x = {}; same = x", "x.update(one=1)", "x == {'one': 1} and same is x"),
    "set": Way("x = {1}; same = x", "x.add('two')", "same == {1, 'two'}"),
    "bytearray": Way("x = bytearray(b'abc'); same = x", "x[0] = 65", "same == b'Abc'"),
    "deque": Way(
        "from collections import deque\nx = deque([1, 2], maxlen=2); same = x",
        "x.append(3)",
        "list(same) == [2, 3] and same.maxlen == 2",
    ),
    "defaultdict": Way(
        "from collections import defaultdict\nx = defaultdict(list); same = x",
        "x['a'].append(1)",
        "same == {'a': [1]} and same['b'] == []",
    ),
    "counter": Way(
        "from collections import Counter\nx = Counter('aab'); same = x",
        "x.update('b' * 3)",
        "same.most_common(1) == [('b', 4)]",
    ),
    "ordered dict": Way(
        "from collections import OrderedDict\nx = OrderedDict(a=1, b=2); same = x",
        "x.move_to_end('a')",
        "list(same) == ['b', 'a'] and type(same) is OrderedDict",
    ),
    "subclasses": Way(
        "class Rows(list): pass\nclass Table(dict): pass\n"
        "x = Rows([Table(a=1)]); x.name = 'old'; same, table = x, x[0]",
        "x.append(2); x.name = 'new'; x[0]['b'] = 2",
        "same == [{'a': 1, 'b': 2}, 2] and same.name == 'new' and table is x[0]",
    ),
    # What holds what.
    "alias": Way("x = same = []", "x.append(1)", "x is same and x == [1]"),
    "alias that the cell uses": Way(
        "x = y = []", "y.append(1); len(x)", "x is y and x == [1]", "y"
    ),
    "nested": Way(
        "x = {'a': {'b': [1]}}; inner = x['a']['b']; other = [inner]",
        "x['a']['b'].append(2)",
        "inner == [1, 2] and inner is x['a']['b'] is other[0]",
    ),
    "cycle": Way("x = [1]; x.append(x)", "x.append(2)", "x[1] is x and x[2] == 2"),
    "argument": Way(
        "def grow(items):\n    items.append(1)\nx = []; same = x", "grow(x)", "same == [1]"
    ),
    # Functions and classes.
    "state of a function": Way(
        "x = {'n': 0}; same = x\ndef up():\n    x['n'] += 1", "up()", "same == {'n': 1}"
    ),
    "function attribute": Way(
        "def x():\n    x.calls += 1\nx.calls = 0; same = x", "x()", "same.calls == 1 and same is x"
    ),
    "closure": Way(
        "def made():\n    n = 0\n    def up():\n        nonlocal n\n        n += 1\n"
        "        return n\n    return up\nx = made(); same = x",
        "x()",
        "same() == 2",
    ),
    "class attribute": Way(
        "class C:\n    n = 0\n    seen = []\nx = C(); same = x; seen = C.seen",
        "x.y = 1; C.n += 1; C.seen.append(3)",
        "same.y == 1 and C.n == 1 and C.seen == [3] and type(x) is C",
    ),
    "instance": Way("class C: pass\nx = C(); same = x", "x.a = [1]", "same.a == [1]"),
    "dataclass": Way(
        "from dataclasses import dataclass, field\n@dataclass\nclass P:\n    x: int = 0\n"
        "    tags: list = field(default_factory=list)\nx = P(); same, tags = x, x.tags",
        "x.x = 5; x.tags.append('t')",
        "same == P(5, ['t']) and tags is x.tags",
    ),
    "slots": Way(
        "class S:\n    __slots__ = ('a', 'b')\nx = S(); x.a = 1; same = x",
        "x.a = 2; x.b = 3",
        "(same.a, same.b) == (2, 3)",
    ),
    "enum": Way(
        "import enum\nclass Colour(enum.Enum):\n    RED = 1\nx = {Colour.RED: 0}; same = x",
        "x[Colour.RED] += 1",
        "same == {Colour.RED: 1} and next(iter(same)) is Colour.RED",
    ),
    # What goes on from where it was.
    "iterator": Way("x = iter([1, 2, 3])", "next(x)", "next(x) == 2", is_replaced=True),
    "random": Way(
        "import random\nx = random.Random(1); same = x; y = random.Random(1); _ = y.random()",
        "x.random()",
        "same.random() == y.random()",
    ),
    "generator of numpy": Way(
        "import numpy as np\nx, y = np.random.default_rng(1), np.random.default_rng(1)\n"
        "_ = y.random(); same = x",
        "x.random()",
        "same.random() == y.random()",
    ),
    "attribute of a function": Way("def x(): pass\nsame = x", "x.calls = 3", "same.calls == 3"),
    "default of a function": Way(
        "kept = []\ndef x(one, kept=kept):\n    kept.append(one)",
        "x(1)",
        "kept == [1] and x.__defaults__[0] is kept",
    ),
    # Arrays.
    "small array": Way(
        "import numpy as np\nx = np.zeros(5); view = x[1:]",
        "x[2] = 7",
        "x[2] == 7 and view[1] == 7",
    ),
    "large array": Way(
        "import numpy as np\nx = np.zeros(100_000); view = x[5:]",
        "x[7] = 3",
        "x[7] == 3 and view[2] == 3 and x.sum() == 3",
    ),
    "other order": Way(
        "import numpy as np\nx = np.zeros((200, 300), order='F'); row = x[3]",
        "x[3, 4] = 1",
        "row[4] == 1 and x.sum() == 1 and x.flags.f_contiguous",
    ),
    "array of objects": Way(
        "import numpy as np\nx = np.array([[1], 'a', None], dtype=object); same, first = x, x[0]",
        "x[0].append(2); x[2] = 'b'",
        "same[2] == 'b' and first == [1, 2] and same[0] is first",
    ),
    "structured array": Way(
        "import numpy as np\nx = np.zeros(3, dtype=[('a', 'i4'), ('b', 'f8')]); view = x['b']",
        "x['b'][1] = 2.5",
        "view[1] == 2.5",
    ),
    "table of arrow": Way(
        "import pyarrow as pa\nx = {'t': pa.table({'a': [1]})}; same = x",
        "x['t'] = x['t'].append_column('b', [[2]])",
        "same['t'].column_names == ['a', 'b']",
        needs="pyarrow",
    ),
    # Models.
    "model": Way(
        "from sklearn.linear_model import LinearRegression\nx = LinearRegression(); same = x",
        "x.fit([[0], [1]], [0, 1])",
        "abs(same.coef_[0] - 1) < 1e-9 and same is x",
    ),
    "module with buffers": Way(
        "import numpy as np\nclass Module:\n"
        "    def __init__(self):\n        self.weight = np.zeros(20_000); self.steps = 0\n"
        "    def __getstate__(self):\n        return {'buffers': [self.weight], 'n': self.steps}\n"
        "    def __setstate__(self, state):\n"
        "        self.weight, self.steps = state['buffers'][0], state['n']\n"
        "x = Module(); same, optimizer = x, {'params': [x]}",
        "x.weight -= 1; x.steps += 1",
        "same.weight.sum() == -20_000 and optimizer['params'][0] is x and x.steps == 1",
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_what_a_process_changes_is_changed(notebook: Notebook, name: str) -> None:
    way = WAYS[name]
    if way.needs and find_spec(way.needs) is None:
        pytest.skip(f"{way.needs} is not installed")
    notebook.foreground(way.setup)
    said = notebook.process(way.change)
    how = f"changed and replaced: {OLD_ONE}" if way.is_replaced else "changed in place"
    assert f"{way.changed} is in the notebook ({way.changed} was {how})" in said
    assert len(said.splitlines()) == 1
    assert notebook.cell(f"bool({way.holds})") == "True"


def test_an_inner_object_of_nothing_comes_back(notebook: Notebook) -> None:
    notebook.cell("mark = object(); x = [mark]; same = x")
    said = notebook.process("x.append(1); y = [x[0]]")
    assert "y, x are in the notebook (x was changed in place)" in said
    assert notebook.cell("same[1] == 1 and x[0] is y[0]") == "True"


def test_a_class_alone_is_changed(notebook: Notebook) -> None:
    notebook.cell("class K:\n    n = 0\nk = K()")
    said = notebook.process("K.n = 5")
    assert "K is in the notebook (K was changed in place)" in said
    assert notebook.cell("k.n, type(k) is K") == "(5, True)"


def test_a_class_that_both_have_changed_stays_the_notebooks(notebook: Notebook) -> None:
    notebook.cell("class K:\n    n = 0\nk = K()")
    assert "keeps its own" in while_it_runs(notebook, "K.n = 5", "K.n = 7")
    assert notebook.cell("K.n, k.n") == "(7, 7)"


def test_an_object_that_is_made_anew_is_the_same_in_all_that_the_cell_uses(
    notebook: Notebook,
) -> None:
    notebook.cell(
        "class Made:\n    def __init__(self, n):\n        self.n = n\n"
        "    def __reduce__(self):\n        return Made, (self.n,)\n"
        "x = Made(1); held = [x]; same = held"
    )
    said = notebook.process("x.n = 3; len(held)")
    assert "x, held are in the notebook (held was changed in place; x was changed and" in said
    assert notebook.cell("same[0].n, same[0] is x") == "(3, True)"


# What is not changed.

READ = """
import functools, numpy as np, pandas as pd
from sklearn.linear_model import LinearRegression
import matplotlib.pyplot as plt
frame = pd.DataFrame({'a': [3, 1, 2], 'b': list('cab'), 'd': pd.date_range('2026', periods=3)})
indexed = frame.set_index('a')
kinds = pd.Series(list('aab'), dtype='category')
model = LinearRegression().fit([[0], [1]], [0, 1])
items, words, large = [1, {'two': [2]}], {'a', 'b', 'c'}, np.zeros(100_000)
@functools.lru_cache
def cached(x): return x
def total(): return sum(len(str(each)) for each in items)
figure, axes = plt.subplots(); axes.plot([1, 2]); plt.close()
"""
READING = [
    "frame.sum(numeric_only=True); frame.describe(); frame.values; frame.to_csv(); frame",
    "indexed.loc[1]; indexed.sort_index(); indexed.index.is_unique; indexed.groupby('b').size()",
    "frame.query('a > 1'); frame.b.str.upper(); [*frame.itertuples()]; frame['d'].dt.day",
    "kinds.cat.codes; kinds.value_counts()",
    "model.predict([[2]]); model.score([[0], [1]], [0, 1]); model",
    "[each for each in items]; total(); sorted(words); 'a' in words; items[1]['two'][0]",
    "cached(1)",
    "large.sum(); large[5]; large[1:].mean(); large",
    "figure",
]


def test_what_is_only_read_is_not_said_to_be_changed(notebook: Notebook) -> None:
    notebook.foreground("%matplotlib inline\n" + READ)
    for reading in READING:
        assert notebook.process(reading) == "", reading


def test_the_arguments_of_a_function_stay(notebook: Notebook) -> None:
    notebook.cell(
        "from ipytaskpersist import submit\ndef grow(items):\n    items.append(1)\n"
        "    return items\nx = []\ntask = submit(grow, x, process=True)"
    )
    assert notebook.cell("task.result(60), x") == "([1], [])"
    assert notebook.cell("x") == "[]"


# What cannot come back.

NOISY = """
import os
class Noisy:
    def __reduce__(self):
        return Noisy, (), {'n': os.urandom(4)}
"""


@pytest.mark.parametrize(
    ("setup", "change", "lost"),
    [
        (
            "class H: pass\nx = H()",
            "import threading\nx.lock = threading.Lock()",
            "x (TypeError: cannot pickle '_thread.lock' object)",
        ),
        (f"{NOISY}\nx = Noisy()", "x.n = 0", "x (its pickle is never twice the same)"),
        (
            "import matplotlib.pyplot as plt\nfigure, x = plt.subplots(); plt.close()",
            "x.plot([1, 2])",
            "x, figure (Axes objects stay in their process)",
        ),
    ],
    ids=["lock", "noise", "figure"],
)
def test_what_cannot_come_back_is_named(
    notebook: Notebook, setup: str, change: str, lost: str
) -> None:
    notebook.foreground(f"%matplotlib inline\n{setup}\nkept = []")
    said = notebook.process(f"kept.append(1)\n{change};")
    assert f"changed in the process, not brought back: {lost}" in said
    assert "kept is in the notebook (kept was changed in place)" in said
    shown = notebook.cell("%bg_show")
    assert "left x" in shown
    assert "changed in the process, not brought back" in shown


HELPER = """
COUNT, CACHE, HARMLESS = 0, {}, []
class Registry:
    items = []
def register():
    global COUNT
    COUNT += 1
    Registry.items.append(COUNT)
"""
BYSTANDERS = """
helper.register(); helper.CACHE['a'] = 1
math.tau2 = 3; json.dumps.calls = 1; builtins.hello = 5; fractions.Fraction.half = 2
import textwrap
textwrap.TextWrapper.mine = 1
sys.setrecursionlimit(5000); logging.basicConfig()
"""


def test_what_a_cell_changes_of_modules_and_of_its_process_is_named(notebook: Notebook) -> None:
    notebook.foreground(
        f"import pathlib\npathlib.Path('helper.py').write_text({HELPER!r})\n"
        "import builtins, fractions, helper, json, logging, math, sys"
    )
    assert notebook.process("helper.HARMLESS, math.sqrt(4); fractions.Fraction(1, 2)") == ""
    said = notebook.process(BYSTANDERS)
    in_modules = (
        "helper.COUNT, helper.CACHE, helper.Registry.items, math.tau2, json.dumps.calls, "
        "builtins.hello, fractions.Fraction.half, textwrap.TextWrapper.mine"
    )
    lost = said.partition("changed in the process, not brought back: ")[2].partition(" (")[0]
    assert sorted(lost.split(", ")) == sorted(in_modules.split(", "))
    assert "the recursion limit, the handlers of logging (each process has its own)" in said


def test_a_part_of_a_figure_that_is_assigned_comes_back(notebook: Notebook) -> None:
    notebook.foreground(
        "%matplotlib inline\nimport matplotlib.pyplot as plt\nfigure, axes = plt.subplots()\n"
        "plt.close()"
    )
    said = notebook.process("line, = axes.plot([1, 2])")
    assert "line is in the notebook" in said
    assert "not brought back: axes, figure (Axes objects stay in their process)" in said
    assert notebook.cell("len(line.axes.lines), len(axes.lines)") == "(1, 0)"


def test_a_variable_that_was_deleted_is_named(notebook: Notebook) -> None:
    notebook.cell("x = [1]")
    said = notebook.process("del x")
    assert "changed in the process, not brought back: x (it was deleted there)" in said
    assert notebook.cell("x") == "[1]"


def test_what_out_does_not_name_is_in_show(notebook: Notebook) -> None:
    """Not in the line: the person has asked for it."""
    notebook.cell("x, y = [], []")
    said = notebook.process("x.append(1)\ny.append(2)", "--out x")
    assert "x is in the notebook" in said
    assert "not brought back" not in said
    shown = notebook.cell("%bg_show")
    assert "changed in the process, not brought back: --out does not name it" in shown
    assert notebook.cell("x, y") == "([1], [])"


# What the notebook has changed meanwhile.


def while_it_runs(notebook: Notebook, change: str, own: str) -> str:
    """Let a process make a change after the notebook's own. Return what is said of it."""
    notebook.cell(UNTIL_GO)
    notebook.cell(f"%%background --process\nuntil_go()\n{change}")
    notebook.cell(f"{own}\nopen('go', 'w').close()")
    notebook.cell("%bg_wait --timeout 60")
    return notebook.cell("pass")


@pytest.mark.parametrize(
    ("setup", "change", "own", "after"),
    [
        ("x = [1]", "x.append(2)", "x.append('mine')", "[1, 'mine']"),
        ("x = [1]", "x.append(2)", "x = 'mine'", "'mine'"),
        ("x = {'a': [1], 'b': []}", "x['a'].append(2)", "x['b'].append(3)", "{'a': [1], 'b': [3]}"),
        (
            "import numpy as np\nx = np.zeros(3)",
            "x[0] = 1",
            "x[1] = 5",
            "array([0., 5., 0.])",
        ),
    ],
    ids=["both", "another object", "another part", "array"],
)
def test_the_notebooks_own_change_stays_until_the_tasks_is_asked_for(
    notebook: Notebook, setup: str, change: str, own: str, after: str
) -> None:
    notebook.foreground(setup)
    notebook.cell("%%background --process\npass")
    said = while_it_runs(notebook, change, own)
    assert "x was changed in the task, and in the notebook, which keeps its own; %bg_load" in said
    assert notebook.cell("x") == after
    assert "x is in the notebook" in notebook.cell(said.split("; ")[1].removesuffix("takes it\n"))
    notebook.cell(f"mine = x\n{setup}\n{change}")
    assert notebook.cell("repr(x) == repr(mine)") == "True"


def test_a_deleted_variable_stays_deleted(notebook: Notebook) -> None:
    notebook.cell("x = [1]; other = x")
    assert "x was changed in the task" in while_it_runs(notebook, "x.append(2)", "del x")
    assert notebook.cell("'x' in globals(), other") == "(False, [1])"


def test_an_equal_value_is_changed_as_the_given_one_would_be(notebook: Notebook) -> None:
    notebook.cell("x = old = [1]")
    assert "x was changed in place" in while_it_runs(notebook, "x.append(2)", "x = [1]")
    assert notebook.cell("x, old") == "([1, 2], [1])"


def test_what_the_notebook_has_changed_elsewhere_stays(notebook: Notebook) -> None:
    notebook.cell("part = [1]; x, y = [part], [part]")
    said = while_it_runs(notebook, "x[0].append(2); len(y)", "y.append('mine')")
    assert "x was changed in place" in said
    assert notebook.cell("x, y, x[0] is y[0]") == "([[1, 2]], [[1, 2], 'mine'], True)"


# Frames share their columns until one of them is written.


def test_a_changed_frame_changes_no_other_frame(notebook: Notebook) -> None:
    notebook.cell(
        "import pandas as pd\nx = pd.DataFrame({'a': [1, 2], 'b': ['p', 'q']}); same = x\n"
        "column, text, copy = x['a'], x['b'], x.copy(deep=False)"
    )
    notebook.process("x.loc[0, 'a'] = 5; x.loc[0, 'b'] = 'z'")
    assert notebook.cell("[*same.a], [*same.b]") == "([5, 2], ['z', 'q'])"
    kept = notebook.cell("[*column], [*text], [*copy.a], [*copy.b]")
    assert kept == "([1, 2], ['p', 'q'], [1, 2], ['p', 'q'])"


# Several tasks, and later ones.


def test_the_changes_of_a_failed_cell_are_there(notebook: Notebook) -> None:
    notebook.cell("x, y = [], {}")
    said = notebook.process("x.append(1)\ny['a'] = 1\nraise ValueError('no')")
    assert "which failed: " in said
    assert "were changed in place" in said
    assert notebook.cell("x, y") == "([1], {'a': 1})"


def test_two_tasks_change_the_same_list_one_after_the_other(notebook: Notebook) -> None:
    notebook.cell("x = []; same = x")
    for number in (1, 2):
        assert "x was changed in place" in notebook.process(f"x.append({number})")
    assert notebook.cell("same, x is same") == "([1, 2], True)"


def test_two_tasks_at_once_change_the_same_list(notebook: Notebook) -> None:
    """The second to come back finds what the first has changed: both cannot be kept."""
    notebook.cell("import pathlib, time\nx = []")
    for number in (1, 2):
        waits = "while not pathlib.Path('both').exists(): time.sleep(0.01)"
        notebook.cell(f"%%background --process\n{waits}\nx.append({number})")
    notebook.cell("pathlib.Path('both').touch()")
    notebook.cell("%bg_wait --all --timeout 60")
    said = notebook.cell("pass")
    assert "x was changed in place" in said
    assert "x was changed in the task, and in the notebook, which keeps its own" in said


def test_a_task_that_is_run_again_changes_what_it_was_given_then(notebook: Notebook) -> None:
    notebook.cell("x = []; same = x")
    notebook.process("x.append(1)")
    notebook.cell("%bg_rerun -1")
    notebook.cell("%bg_wait --timeout 60")
    assert "x was changed in the task, and in the notebook" in notebook.cell("pass")
    assert notebook.cell("x") == "[1]"
    notebook.cell("x.clear()\n%bg_rerun -1")
    notebook.cell("%bg_wait --timeout 60")
    assert "x was changed in place" in notebook.cell("pass")
    assert notebook.cell("same") == "[1]"


COPYING = """
class Copying:
    def __init__(self):
        self.items = [1]
    def __getstate__(self):
        return {'items': self.items}
    def __setstate__(self, state):
        self.items = list(state['items'])
"""


def test_after_a_restart_the_changes_are_there_with_what_they_share(
    a_kernel: NotebookKernel,
) -> None:
    a_kernel.run("%reset -f")
    a_kernel.run("part = [1]; x, y, z = {'part': part}, [part], [part]")
    a_kernel.run(COPYING)
    a_kernel.run(
        "import numpy as np, pandas as pd\n"
        "frame = pd.DataFrame({'a': pd.array([1, None]), 'b': pd.date_range('2026', periods=2)})\n"
        "held = [frame]; pairs = np.zeros(2, dtype=[('a', 'i2'), ('b', 'f8')]); copying = Copying()"
    )
    a_kernel.run(
        "%%background --process shared\nx['part'].append(2); y.append(3); z = [y[0]]\n"
        "frame['c'] = [5, 6]; held.append(1); pairs['a'][0] = 7; copying.items.append(2)"
    )
    a_kernel.run("%bg_wait --timeout 60")
    a_kernel.restart()
    a_kernel.run("%load_ext ipytaskpersist")
    said = a_kernel.run("%bg_load shared").text
    assert "are in the notebook" in said
    assert a_kernel.run("x, y, z").text == "({'part': [1, 2]}, [[1, 2], 3], [[1, 2]])"
    assert a_kernel.run("x['part'] is y[0] is z[0]").text == "True"
    assert (
        a_kernel.run("held[0] is frame, [*frame.c], frame.a.count()").text
        == "(True, [5, 6], np.int64(1))"
    )
    assert a_kernel.run("pairs['a'].tolist(), copying.items").text == "([7, 0], [1, 2])"
