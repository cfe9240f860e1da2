"""The outputs of a task as a cell shows them now, each comparable with what a page has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from ipytaskpersist.base import output_marks
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.output.folding import PAGE, Fold, FoldedOutputs
from ipytaskpersist.output.notebook_form import as_saved, with_widget_states
from ipytaskpersist.output.replay import Output, Placed
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text import formatting
from ipytaskpersist.text.sanitized_html import harmless_output


@dataclass(frozen=True, slots=True)
class Entry:
    """One output of a cell, in nbformat's form."""

    output: Output
    parts: tuple[Placed, ...] = ()
    """What a stream consists of. Each is only ever appended to."""
    fixed: int = 0
    """Number of characters of all parts but the last."""

    @property
    def text(self) -> str:
        """The text of a stream."""
        return str(self.output["text"])

    def added_since(self, before: Entry) -> str | None:
        """Return what was appended to a stream since then; None if it is another output."""
        is_same = self.parts and self.parts == before.parts and self.fixed == before.fixed
        return self.text[len(before.text) :] if is_same else None

    def with_more(self, other: Entry) -> Entry:
        """Return a stream that goes on with another one of the same name."""
        text = self.text + other.text
        fixed = len(self.text) + other.fixed
        return Entry({**self.output, "text": text}, self.parts + other.parts, fixed)


SaveLink = Callable[[TaskRecord], str]
"""Returns the address from which all text of a task can be downloaded; empty for none."""


def no_link(_task: TaskRecord) -> str:
    """Return no address: no server may run where the notebook is opened."""
    return ""


@dataclass(slots=True)
class TaskOutputs:
    """The outputs of one task without its card. Reading again reads only what is new."""

    store: TaskStore
    task: TaskRecord
    has_models: bool = False
    """Whether a kernel has the models of its widgets, so that a page can show their views."""
    states: dict[str, Any] | None = None
    """Where the states of its widgets go, so that a notebook file can show them; None for none."""
    save_link: SaveLink = no_link
    _folded: FoldedOutputs = field(init=False)
    _made: dict[Placed, tuple[Output, Entry]] = field(default_factory=dict)
    """The entry of each display, with what it was made from."""

    def __post_init__(self) -> None:
        self._folded = FoldedOutputs(self.store, self.task.key, PAGE)

    @property
    def sequence(self) -> int:
        """The last record that was read."""
        return self._folded.sequence

    def set_models(self, *, has_models: bool) -> None:
        """Say whether the models of its widgets are there: they end with their kernel."""
        if has_models != self.has_models:
            self.has_models = has_models
            self._made.clear()

    def read(self, task: TaskRecord) -> None:
        """Read what the task has added."""
        self.task = task
        self._folded.read()
        if task.state.is_final:
            self._folded.finish()

    def entries(self) -> list[Entry]:
        """Return the outputs."""
        found: list[Entry] = []
        made = {}
        for placed, output in self._folded.present():
            entry = self._entry(placed, output)
            if entry is None:
                continue
            made[placed] = output, entry
            if found and found[-1].parts and found[-1].output["name"] == entry.output.get("name"):
                found[-1] = found[-1].with_more(entry)
            else:
                found.append(entry)
        self._made = made
        return found

    def _entry(self, placed: Placed, output: Output) -> Entry | None:
        known = self._made.get(placed)
        if known is not None and known[0] == output and not placed.text:
            return known[1]
        shown = self._with_widgets(output)
        if shown is None:
            return None
        if placed.text:
            return Entry(shown, (placed,))
        if isinstance(placed, Fold):
            return Entry(fold_output(self.task, placed, self.save_link))
        if self.task.is_imported:
            shown = harmless_output(shown)
        return Entry(output_marks.marked(as_saved(shown), self.task.id))

    def _with_widgets(self, output: Output) -> Output | None:
        """Return an output as it is shown where it goes; None if a widget shows it."""
        if self.has_models:
            return None if "inside" in output else output
        states = None if self.task.is_imported else self.states
        return next(with_widget_states([output], states), None)


def fold_output(task: TaskRecord, fold: Fold, save_link: SaveLink) -> Output:
    """Return the note that stands for what is left out of a task's outputs."""
    parts = [
        formatting.counted(fold.lines, "line") if fold.lines else "",
        "" if fold.lines or not fold.characters else formatting.size(fold.characters),
        formatting.counted(fold.displays, "display") if fold.displays else "",
    ]
    what = " and ".join(filter(None, parts))
    command, link = f"%bg_output {task.id}", save_link(task)
    save = f' · <a href="{escape(link)}" download>save as file</a>' if link else ""
    html = (
        f'<div class="ipytaskpersist-fold" style="opacity:.75">… {what} · '
        f"<code>{escape(command)}</code>{save}</div>"
    )
    return {
        "output_type": "display_data",
        "data": {"text/html": html, "text/plain": f"… {what} · {command}"},
        "metadata": output_marks.mark(task.id, output_marks.FOLD),
    }


# Differences.


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of one output: all of it, or text that is appended to a stream."""

    at: int
    output: Output | None = None
    text: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the edit as a page receives it."""
        if self.output is None:
            return {"at": self.at, "text": self.text}
        return {"at": self.at, "output": self.output}


def edits(before: Sequence[Entry], now: Sequence[Entry]) -> Iterator[Edit]:
    """Yield what turns the first outputs of one list into those of another."""
    for place, entry in enumerate(now):
        known = before[place] if place < len(before) else None
        added = None if known is None else entry.added_since(known)
        if added is not None:
            if added:
                yield Edit(place, text=added)
        elif known is None or known.output != entry.output:
            yield Edit(place, entry.output)
