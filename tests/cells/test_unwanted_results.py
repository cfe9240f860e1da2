"""Results that were not asked for are not kept, and large ones are spoken of."""

from __future__ import annotations

import pytest
from kernels import NotebookKernel
from processcells import Notebook

QUIET = [
    "'kept'[:0] + 'a';",
    "41 + 1;  # a comment; with a semicolon",
    "x = 1\n(x +\n 2\n);",
    "'one;'; 'two';\n",
    "%time 7;",
    "[1];\n# the end\n",
]
LOUD = ["'a;'", "'a' # ;", "1; 2", "x = 1; x", "x = ';'\nx", "print(';'); 5"]


@pytest.mark.parametrize("where", ["--thread", "--process"])
def test_a_semicolon_at_the_end_keeps_no_result(kernel: NotebookKernel, where: str) -> None:
    for cell in [*QUIET, *LOUD]:
        kernel.run(f"%%background {where}\n{cell}")
    kernel.run("%bg_wait " + " ".join(str(n + 1) for n in range(len(QUIET + LOUD))))
    kernel.run("import ipytaskpersist as bg")
    kept = kernel.run(f"print([bg.task(n + 1).result() for n in range({len(QUIET)})])").text
    assert kept.strip() == str([None] * len(QUIET))
    first = len(QUIET) + 1
    kept = kernel.run(f"print([bg.task({first} + n).result() for n in range({len(LOUD)})])").text
    assert kept.strip() == "['a;', 'a', 2, 1, ';', 5]"


def test_a_large_result_is_kept_and_said(kernel: NotebookKernel) -> None:
    notebook = Notebook(kernel)
    notebook.cell("%config BackgroundTasks.large_result_bytes = 1_000_000")
    text = "bytes(2_000_000)"
    said = "the result is kept and takes 2 MB; a semicolon at the end of the cell's last line"
    notebook.process(text)
    assert said in notebook.cell("%bg_output")
    notebook.cell(f"%%background --thread\n{text}")
    notebook.cell("%bg_wait")
    assert said in notebook.cell("%bg_output")
    notebook.process(f"large = {text}\nlen(large)")
    assert "large is kept and takes 2 MB; --out names" in notebook.cell("%bg_output")
    notebook.process(f"{text};")
    assert notebook.cell("%bg_output --raw") == ""


def test_what_is_back_is_said_without_imports_and_on_stderr_only_when_some_is_not(
    kernel: NotebookKernel,
) -> None:
    notebook = Notebook(kernel)

    def next_cell(source: str) -> tuple[str, str]:
        kernel.run(f"%%background --process\n{source}")
        kernel.run("%bg_wait")
        cell = notebook.foreground("pass")
        return cell.stream("stdout"), cell.stream("stderr")

    assert next_cell("import json, os.path\nfrom math import pi") == ("", "")
    assert next_cell("import json as j\nm = __import__('json')") == ("", "")
    assert next_cell("import json\nvalue = 1") == ("task 3: value is in the notebook\n", "")
    out, err = next_cell("import threading\none, lock = 1, threading.Lock()")
    assert out == ""
    assert err.startswith("task 4: one is in the notebook; lock is not (TypeError: cannot pickle")
    out, err = next_cell("import os\nvalue = 2\nos._exit(3)")
    assert (out, err.count("value"), "os" in err.split("(")[0]) == ("", 1, False)
    assert notebook.cell("json.dumps(value), pi, m.__name__") == "('1', 3.141592653589793, 'json')"
