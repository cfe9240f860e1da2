"""Before a notebook goes on in the middle, the cells run again that it needs, and no others."""

from __future__ import annotations

import pytest

from ipytaskpersist.cells.needed_cells import needed

IMPORTS = "import numpy as np\nimport random"


@pytest.mark.parametrize(
    ("before", "rest", "again"),
    [
        (["a = 1", "b = 2"], "print(b)", [1]),
        (["a = 1", "b = a + 1", "c = 3"], "b", [0, 1]),
        (["def f():\n    return k", "k = 1", "other = 2"], "f()", [0, 1]),
        ([IMPORTS, "items = []", "items.append(1)"], "items", [1, 2]),
        (["a = []", "b = a", "b.append(1)"], "a", [0, 1, 2]),
        (["a = []", "b = a[0]", "b.append(1)"], "a", [0, 1, 2]),
        ([IMPORTS, "np.random.seed(0)"], "1", [0, 1]),
        ([IMPORTS, "model = np.ones(3)"], "np.zeros(3)", [0]),
        (["from IPython.display import display", "a = 1", "display(a)"], "b = 1", []),
        (["import os", "os.environ['A'] = '1'"], "b = 1", [0, 1]),
        (["%matplotlib inline", "a = 1"], "b = 1", [0]),
        (["!touch file", "a = 1"], "b = 1", [0]),
        (["from os.path import *", "a = 1"], "b = 1", [0]),
        (["not python at all", "a = 1"], "b = 1", [0]),
        (["a = 1", "b = 2"], "exec('a')", [0, 1]),
        (["a = 1", "b = 2"], "not python at all", [0, 1]),
        (["a = 1", "b = 2"], "%time print(a)", [0]),
        (["a = 1", "b = 2"], "!echo $b {a}", [0, 1]),
        (["a = await f()", "b = 2"], "a", [0]),
    ],
)
def test_cells_are_needed_that_may_have_made_or_changed_what_is_used(
    before: list[str], rest: str, again: list[int]
) -> None:
    assert list(needed([*before, rest], len(before)).cells) == again


def test_what_the_cells_make_is_named_in_the_order_of_the_cells() -> None:
    sources = ["import math", "a = 1", "junk = 2", "b = math.sqrt(a)", "b + 1"]
    assert needed(sources, 4).names == ["math", "a", "b"]


def test_a_name_that_is_used_again_for_something_else_needs_only_the_cells_before() -> None:
    assert list(needed(["x = 1", "y = x + 1", "x = 2"], 3).cells) == []
    assert list(needed(["x = 1", "y = x + 1", "x = 2", "y"], 3).cells) == [0, 1]
