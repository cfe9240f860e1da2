"""Run a notebook in the foreground and, cell by cell, in processes, and say what differs.

    python tests/helpers/notebooks_in_processes.py [--go-on] [--verbose] NOTEBOOK …

A notebook is an .ipynb file, or a Python file whose cells begin with `# %%`. After each cell its
outputs and all variables of the notebook are compared. A cell is

- alike: nothing differs;
- loud: something differs, and this cell or the next one says so, or its task has failed;
- silent: something differs, and nothing says so.

After a cell that differs, the notebook in processes is made anew: its kernel is restarted, and the
cells so far run in its foreground. So each cell is judged for itself, and what they give in this
second foreground must be what they gave in the first: otherwise the notebook differs from one run
to the next, and the cell is silent, whatever was said. With `--go-on` the notebook
is left as it is, and a cell that differs after one that has differed, and of which nothing is said,
counts as one that follows from it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compare import KEEP_ORDER, CodeCell, code_cells, described, snapshot
from fingerprints import MARK
from kernels import Cell, NotebookKernel, end_processes_of
from layout import HELPERS

TASK_TIMEOUT_S = 120
ALIKE, LOUD, SILENT, FOLLOWS = "alike", "loud", "silent", "follows"
KINDS = (ALIKE, LOUD, SILENT, FOLLOWS)
HAS_COME_BACK = re.compile(r"[^;:\n]* (?:is|are) (?:set|in the notebook)(?: \([^)\n]*\))?")
"""What says that all is well."""
WARNS = re.compile(r"\b(?:not?|cannot|could|kept|lost)\b")
"""What a line has in it that says that something is otherwise than in the foreground."""
LOAD = "%load_ext ipytaskpersist"
LOOK = "__import__('fingerprints').show()"


@dataclass(frozen=True)
class After:
    """What can be seen once a cell has run."""

    outputs: list[str]
    values: dict[str, list[str]]
    """Type, digest and text of each variable."""
    shared: frozenset[tuple[str, ...]]
    """The paths of objects that several variables share."""
    has_failed: bool
    said: str = ""
    """What this package says about the cell."""


@dataclass(frozen=True)
class Judged:
    """What became of one cell."""

    cell: CodeCell
    kind: str
    differs: list[str]
    said: str


def judge(cell: CodeCell, expected: After, given: After, before: str = ALIKE) -> Judged:
    """Hold a cell in a process against the same in the foreground. `before`: the cells so far."""
    found = dict(differences(expected, given))
    warnings = "\n".join(filter(WARNS.search, HAS_COME_BACK.sub("", given.said).splitlines()))
    unsaid = {what: names for what, names in found.items() if not is_said(names, warnings)}
    if given.has_failed and not expected.has_failed:
        unsaid = {}
    if not found:
        kind = ALIKE
    elif not unsaid:
        kind = LOUD
    else:
        kind = SILENT if before == ALIKE else FOLLOWS
    return Judged(cell, kind, list(unsaid or found), given.said.strip())


def differences(expected: After, given: After) -> Iterator[tuple[str, set[str]]]:
    """What differs, in words, and the names of which one must be said; none for any line."""
    if expected.outputs != given.outputs:
        yield f"outputs: {_first_difference(expected.outputs, given.outputs)}", set()
    for name in sorted({*expected.values, *given.values}):
        one, other = expected.values.get(name), given.values.get(name)
        if one is None or other is None or one[:2] != other[:2]:
            yield f"{name}: {_shown(one)} | {_shown(other)}", {name}
    for paths in sorted(expected.shared ^ given.shared):
        kept = "shared only in the process" if paths in given.shared else "not shared any more"
        yield f"{' and '.join(paths[:4])} {kept}", {path.split(".")[0] for path in paths}


def is_said(names: set[str], warnings: str) -> bool:
    """Whether one of these names, or anything at all where there are none, is said."""
    if not names:
        return bool(warnings)
    return any(re.search(rf"(?<![\w.]){re.escape(name)}\b", warnings) for name in names)


def _first_difference(expected: Sequence[str], given: Sequence[str]) -> str:
    longer = max(len(expected), len(given))
    pairs = zip([*expected, *[""] * longer], [*given, *[""] * longer], strict=False)
    return next(
        f"{one.strip()[:80]} | {other.strip()[:80]}" for one, other in pairs if one != other
    )


def _shown(fingerprint: list[str] | None) -> str:
    return "missing" if fingerprint is None else f"{fingerprint[2]} ({fingerprint[1][:6]})"


# Running.


class Notebooks:
    """Two kernels that run the same notebook: one in the foreground, one in processes."""

    def __init__(self, folder: Path) -> None:
        env = {"PYTHONHASHSEED": "0", "PYTHONPATH": _python_path()}
        self._state = folder / "state"
        self._plain = NotebookKernel(
            folder / "unused", folder=folder / "foreground/kernel", env=env
        )
        self._ours = NotebookKernel(self._state, folder=folder / "processes/kernel", env=env)

    def __enter__(self) -> Notebooks:
        self._plain.__enter__().run(KEEP_ORDER)
        self._ours.__enter__().run(LOAD)
        return self

    def __exit__(self, *error: object) -> None:
        self._plain.shutdown()
        self._ours.shutdown()
        end_processes_of(self._state)

    def run(self, cells: Iterable[CodeCell], *, goes_on: bool = False) -> Iterator[Judged]:
        """Run cells in both kernels, and judge each."""
        so_far: list[tuple[CodeCell, After]] = []
        before = ALIKE
        for cell in cells:
            ran = self._plain.start(cell.source)  # at the same time as in the process
            given = self._in_process(cell)
            expected = self._in_foreground(ran)
            so_far.append((cell, expected))
            judged = judge(cell, expected, given, before)
            if judged.kind == ALIKE or goes_on:
                before = judged.kind if judged.kind != ALIKE else before
                yield judged
            else:
                changed = [*self._make_anew(so_far)]
                yield replace(judged, kind=SILENT, differs=changed) if changed else judged

    def _in_foreground(self, ran: Cell) -> After:
        ran.wait(TASK_TIMEOUT_S, check=False)
        seen, _said = _look(self._plain)
        return _after(ran, seen, bool(ran.error))

    def _in_process(self, cell: CodeCell) -> After:
        if "foreground" in cell.tags:
            ran = self._ours.run(cell.source, TASK_TIMEOUT_S, check=False)
            return _after(ran, _look(self._ours)[0], bool(ran.error))
        launched = self._ours.run(f"%%background --process\n{cell.source}", check=False)
        if launched.error:
            seen, said = _look(self._ours)
            return _after(launched, seen, True, f"{launched.error[1]}\n{said}")
        waited = self._ours.run(f"%bg_wait --timeout {TASK_TIMEOUT_S}", TASK_TIMEOUT_S + 30, False)
        shown, facts = self._ours.run("%bg_output"), self._ours.run("%bg_show").text
        seen, said = _look(self._ours)
        lines = [launched.stream("stderr"), waited.stream("stderr"), said, *_warnings(facts)]
        return _after(shown, seen, "✓ completed" not in facts, "\n".join(filter(None, lines)))

    def _make_anew(self, cells: Sequence[tuple[CodeCell, After]]) -> Iterator[str]:
        """Bring the notebook in processes to where the other is. Yield what is not as there."""
        self._ours.restart()
        self._ours.run(KEEP_ORDER)
        self._ours.run(LOAD)
        for cell, first in cells:
            ran = self._ours.run(cell.source, TASK_TIMEOUT_S, check=False)
            if (outputs := described(snapshot(ran))) != first.outputs:
                yield f"cell {cell.number} in two runs: {_first_difference(first.outputs, outputs)}"
        last = cells[-1][1]
        again = After(last.outputs, *_seen(self._ours), last.has_failed)
        yield from (what for what, _names in differences(last, again))


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(HELPERS), os.environ.get("PYTHONPATH")]))


def _look(kernel: NotebookKernel) -> tuple[dict[str, Any], str]:
    """The fingerprints of a notebook's variables, and what else was said in that cell."""
    cell = kernel.run(LOOK, TASK_TIMEOUT_S)
    said, _mark, document = cell.stream("stdout").partition(MARK)
    seen: dict[str, Any] = json.loads(document)
    return seen, said + cell.stream("stderr")


def _seen(kernel: NotebookKernel) -> tuple[dict[str, list[str]], frozenset[tuple[str, ...]]]:
    """The values of a notebook's variables, and what they share."""
    seen, _said = _look(kernel)
    return seen["values"], frozenset(map(tuple, seen["shared"]))


def _after(ran: Cell, seen: dict[str, Any], has_failed: bool, said: str = "") -> After:
    shared = frozenset(map(tuple, seen["shared"]))
    return After(described(snapshot(ran)), seen["values"], shared, has_failed, said)


def _warnings(facts: str) -> list[str]:
    """What `%bg_show` says was not kept: in its table, which ends with an empty line."""
    table = facts.partition("\n\n")[0]
    return [line for line in table.splitlines() if re.search(r"\bnot\b", line)]


def cells_of(path: Path) -> list[CodeCell]:
    """The code cells of a notebook file, of either form."""
    if path.suffix == ".ipynb":
        return list(code_cells(path))
    sources = re.split(r"^# %%.*\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return [CodeCell(path.stem, number, source.strip()) for number, source in enumerate(sources, 1)]


def run_notebook(path: Path, *, goes_on: bool = False) -> list[Judged]:
    """Run a notebook's cells in kernels of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="notebook-", ignore_cleanup_errors=True) as folder,
        Notebooks(Path(folder).resolve()) as notebooks,
    ):
        return list(notebooks.run(cells_of(path), goes_on=goes_on))


def counted(judged: Iterable[Judged]) -> str:
    """How many cells are of each kind."""
    counts = Counter(each.kind for each in judged)
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)


def in_words(judged: Judged) -> str:
    """One cell, what differs, and what was said of it."""
    lines = [f"{judged.cell.notebook}, cell {judged.cell.number}: {judged.kind}"]
    lines += [f"  | {line}" for line in judged.cell.source.splitlines()]
    lines += [f"  differs: {each}" for each in judged.differs]
    return "\n".join([*lines, *(f"  said: {line}" for line in judged.said.splitlines())])


def main(arguments: Sequence[str]) -> int:
    """Run notebooks, and return the exit status: 1 when a cell is silent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--go-on", action="store_true", help="keep what a cell has left behind")
    parser.add_argument("--verbose", action="store_true", help="show the cells that are not alike")
    options = parser.parse_args(arguments)
    everything: list[Judged] = []
    for path in options.notebooks:
        judged = run_notebook(path, goes_on=options.go_on)
        everything += judged
        print(f"{path.stem}: {len(judged)} cells: {counted(judged)}", flush=True)
        if options.verbose:
            print(*(in_words(each) for each in judged if each.kind != ALIKE), sep="\n\n")
    print(f"in all: {len(everything)} cells: {counted(everything)}")
    return int(any(each.kind == SILENT for each in everything))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
