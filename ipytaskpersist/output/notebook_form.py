"""Outputs in the form in which a notebook file keeps them, and the widgets among them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from ipytaskpersist.base.widget_marks import STATE, VIEW, is_state, model_of
from ipytaskpersist.output import replay
from ipytaskpersist.output.replay import Output


def as_saved(output: Output) -> Output:
    """Return a display, a result or an error as a notebook file keeps it."""
    [shown] = replay.as_nbformat([_standard(output)])
    if STATE in shown.get("metadata", {}):
        kept = {mime: value for mime, value in shown["metadata"].items() if mime != STATE}
        return {**shown, "metadata": kept}
    return shown


def _standard(output: Output) -> Output:
    """Return the output with null for NaN and infinity, which JSON lacks."""
    if "execution_count" not in output and output["output_type"] == "execute_result":
        output = {**output, "execution_count": None}
    try:
        json.dumps(output, allow_nan=False)
    except ValueError:
        return dict(json.loads(json.dumps(output), parse_constant=lambda _name: None))
    return output


def with_widget_states(
    outputs: Iterable[Output], states: dict[str, Any] | None
) -> Iterator[Output]:
    """Yield the outputs with the views of widgets whose state goes into the notebook's.

    The contents of these widgets are in their state. Without `states` no view is left: a stranger's
    widgets may be code.
    """
    for output in outputs if states is not None else replay.beside(outputs):
        model = model_of(output.get("data", {}))
        kept = output.get("metadata", {}).get(STATE)
        if states is not None and kept and is_state(kept):
            states |= kept["state"]
        if model is None or (states is not None and model in states):
            if "inside" not in output:
                yield output
        else:
            data = {mime: value for mime, value in output["data"].items() if mime != VIEW}
            yield {**output, "data": data}
