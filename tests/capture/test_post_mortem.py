"""What the variables were where a task failed, also when its kernel is gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from kernels import NotebookKernel
from programs import run_command

from ipytaskpersist.capture.post_mortem import HIDDEN, TEXT_CHARACTERS, of_error, summary

FAILING = """
def mean(table, column, model, api_token):
    weights = np.zeros((3, 4))
    return table[column].mean()

mean(frame, 'customer_id', Model(), 'hunter2')
"""
PREPARE = """
import numpy as np, pandas as pd
frame = pd.DataFrame({'id': [1, 2], 'amount': [3., 4.]})
class Model:
    def __repr__(self):
        raise SystemExit('a repr that ends everything')
"""


def shown(state_dir: Path) -> Any:
    listed = json.loads(run_command(state_dir, "list", "--all", "--json").stdout)
    (task,) = listed["tasks"]
    return json.loads(run_command(state_dir, "show", task["id"], "--json").stdout)


@pytest.mark.parametrize("runner", ["--thread", "--process"])
def test_show_gives_traceback_and_variables_also_after_a_restart(
    kernel: NotebookKernel, state_dir: Path, runner: str
) -> None:
    kernel.run(PREPARE)
    kernel.run(f"%%background {runner} load{FAILING}")
    kernel.run("%bg_wait")
    kernel.restart()
    kernel.run("%load_ext ipytaskpersist")
    text = kernel.run("%bg_show load").text
    assert "----> 3     return table[column].mean()" in text
    assert "cell line 3, mean: return table[column].mean()" in text
    assert "DataFrame  2 × 2: id, amount" in text
    assert "hunter2" not in text.partition("cell line 3")[2]
    found = shown(state_dir)
    assert found["error"]["ename"] == "KeyError"
    (cell,) = (each for each in found["post_mortem"]["frames"] if each["function"] == "mean")
    variables = {each["name"]: each["text"] for each in cell["variables"]}
    assert variables == {
        "table": "2 × 2: id, amount",
        "column": "'customer_id'",
        "model": "<Model>",
        "api_token": HIDDEN,
        "weights": "3 × 4 of float64",
    }


def test_an_error_that_a_magic_shows_has_its_variables_too(
    kernel: NotebookKernel, state_dir: Path
) -> None:
    kernel.run("%%background\n%%time\nrows = 0\n7 / rows")
    kernel.run("%bg_wait")
    frame = shown(state_dir)["post_mortem"]["frames"][-1]
    assert frame["variables"] == [{"name": "rows", "type": "int", "text": "0"}]


def test_a_task_that_completes_has_no_post_mortem_whatever_it_has_shown(
    kernel: NotebookKernel, state_dir: Path
) -> None:
    kernel.run("%%background\nclass Bad:\n    def __repr__(self): return 1 / 0\nBad()")
    kernel.run("%bg_wait")
    found = shown(state_dir)
    assert (found["state"], found["error"]["ename"]) == ("completed", "ZeroDivisionError")
    assert found["post_mortem"] is None


# Summaries.


class Hostile:
    """Everything that could be asked of it goes wrong."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)

    __repr__ = __len__ = __hash__ = __iter__ = __eq__ = __bool__ = property(  # type: ignore[assignment]
        lambda self: 1 / 0
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        ("a'b", '"a\'b"'),
        ([1, [2, [3, [4]]]], "[1, [2, [3, [...]]]]"),
        (list(range(1000)), "1,000 items: [0, 1, 2, 3, 4, 5, ...]"),
        ({"lr": 0.1, "password": "x"}, f"{{'lr': 0.1, 'password': {HIDDEN!r}}}"),
        ({"b"}, "{'b'}"),
        (set(), "set()"),
        (np.zeros((2, 3), "f4"), "2 × 3 of float32"),
        (pd.DataFrame({f"c{n}": [1] for n in range(9)}), "1 × 9: c0, c1, c2, c3, c4, c5, …"),
        (object(), "<object>"),
    ],
)
def test_a_value_is_shown_in_one_short_line_without_running_code_of_others(
    value: Any, text: str
) -> None:
    assert summary(value) == text


def test_no_value_is_asked_anything() -> None:
    assert summary(Hostile()) == "<Hostile>"
    assert summary([Hostile()]) == "[<Hostile>]"

    def fail(hostile: Any, key: Any) -> None:
        raise ValueError

    found = of_error(failure(lambda: fail(Hostile(), Hostile())), {}, None)
    assert found["frames"][-1]["variables"][0] == {
        "name": "hostile", "type": "Hostile", "text": "<Hostile>"
    }  # fmt: skip


def test_a_summary_is_bounded_whatever_the_value() -> None:
    nested: Any = "x" * 10_000
    for _ in range(500):
        nested = [nested] * 50
    assert len(summary(nested)) <= TEXT_CHARACTERS
    assert len(summary({"x" * 10_000: "y" * 10_000})) <= TEXT_CHARACTERS


def failure(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("it did not fail")


def test_what_is_large_is_not_written_out_to_be_cut() -> None:
    assert summary(b"x" * 10**8) == "bytes of 100,000,000 bytes, b'" + "x" * 40 + "'…"


def test_keys_of_a_dictionary_are_neither_compared_nor_hashed() -> None:
    class Key:
        hashed = 0

        def __hash__(self) -> int:
            Key.hashed += 1
            return 1

    value = {Key(): 1, "passphrase": "x", b"token": "y"}
    before = Key.hashed
    hidden = f"'passphrase': {HIDDEN!r}, b'token': {HIDDEN!r}"
    assert summary(value) == f"{{<Key>: 1, {hidden}}}"
    assert Key.hashed == before


def test_an_error_whose_frames_cannot_be_looked_at_is_still_the_cells_error(
    kernel: NotebookKernel, state_dir: Path
) -> None:
    kernel.run("%%background\nexec('1 / 0', {'__name__': None})")
    kernel.run("%bg_wait")
    assert shown(state_dir)["error"]["ename"] == "ZeroDivisionError"


def test_a_deep_traceback_keeps_its_ends_and_says_what_is_left_out() -> None:
    def down(depth: int) -> None:
        if depth:
            down(depth - 1)
        raise ValueError("at the bottom")

    found = of_error(failure(lambda: down(500)), {}, None)
    assert len(found["frames"]) + found["left_out"] == 503
    assert found["frames"][-1]["variables"][0] == {"name": "depth", "type": "int", "text": "0"}
    assert len(json.dumps(found)) < 20_000
