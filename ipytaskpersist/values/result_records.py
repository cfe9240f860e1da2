"""Records of values: their shortened text forms, and how messages name them."""

from __future__ import annotations

from ipytaskpersist.base.foreign_errors import describe
from ipytaskpersist.base.records import CHECKPOINT, INPUTS, ResultRecord, TaskRecord
from ipytaskpersist.errors import StoreError

TEXT_CHARACTERS = 4000
LINE_CHARACTERS = 200
PROBLEM_CHARACTERS = 500


def not_kept(name: str, text: str, error: BaseException) -> ResultRecord:
    """Return the record of a value that could not be kept: its text form and the reason."""
    is_disk = issubclass(type(error), StoreError)
    said = str(error).partition("\n")[0] if is_disk else describe(error)
    problem = said[:PROBLEM_CHARACTERS]
    return ResultRecord(name, None, None, None, None, shortened(text), problem)


def shortened(text: str) -> str:
    """Return as much of a text form as is kept."""
    return text if len(text) <= TEXT_CHARACTERS else text[:TEXT_CHARACTERS] + " …"


def where(task: TaskRecord, result: ResultRecord) -> str:
    """Return how a message names a value."""
    if result.name == INPUTS:
        return f"what task {task.label} was given"
    if result.name == CHECKPOINT:
        return f"the checkpoint for task {task.label}"
    return f"{result.name or 'the value'} of task {task.label}"


def text_form(result: ResultRecord) -> str:
    """Return the text form of a value, in one line for the end of a message."""
    text = " ".join(result.text.split())
    return "its text form: " + (
        text if len(text) <= LINE_CHARACTERS else text[:LINE_CHARACTERS] + " …"
    )
