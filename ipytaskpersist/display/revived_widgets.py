"""Show widgets that tasks have displayed, even if their own models are no longer alive.

The page asks the kernel for the model of each view. So a view is shown only if this kernel has the
model: the task's own, or a new one with the stored state, which looks the same and does nothing.
Otherwise the best other form of the display is shown.
"""

from __future__ import annotations

import base64
import importlib.util
import sys
from contextlib import suppress
from typing import Any

from ipytaskpersist.base.widget_marks import STATE, VIEW, is_state, model_of
from ipytaskpersist.output.replay import Output

TYPE = ("model_name", "model_module", "model_module_version")
"""Fields that name a model's type."""
_models: dict[str, Any] = {}
"""This kernel's replacement for each stored widget, by the id of the stored model."""


def as_shown_here(output: Output) -> Output:
    """Return the output as this kernel's page can show it."""
    model = model_of(output.get("data", {}))
    metadata = output.get("metadata", {})
    kept = metadata.get(STATE)
    if model is None:
        return output
    metadata = {mime: value for mime, value in metadata.items() if mime != STATE}
    data = dict(output["data"])
    here = model if is_alive(model) else _revived(model, kept)
    if here is None:
        del data[VIEW]
    else:
        data[VIEW] = {**data[VIEW], "model_id": here}
    return {**output, "data": data, "metadata": metadata}


def is_alive(model: str) -> bool:
    """Return whether this process has the model, so that a page can show its views."""
    module: Any = sys.modules.get("ipywidgets.widgets.widget")
    return module is not None and model in module._instances


def can_be_shown(model: str) -> bool:
    """Return whether a model with stored state is alive here, or can be made."""
    return is_alive(model) or importlib.util.find_spec("ipywidgets") is not None


def _revived(model: str, kept: Any) -> str | None:
    """Return the id of a model with the stored state; None if it cannot be made."""
    if not is_state(kept) or model not in kept["state"]:
        return None
    with suppress(Exception):  # ipywidgets is missing, or its version does not know the model
        return _Revival(kept["state"]).model(model)
    return None


def _library() -> Any:
    return importlib.import_module("ipywidgets.widgets.widget")


class _Revival:
    """Makes models with the state of others, and preserves their references to each other."""

    def __init__(self, states: dict[str, Any]) -> None:
        self._states = states
        self._done: set[str] = set()

    def model(self, name: str) -> str:
        """Return the id of the local model that stands for one of the states."""
        if name not in self._done:
            fields = self._fields(self._states[name])
            known = _models.get(name)
            if known is not None and known.comm is not None:
                known.become(fields)
            else:
                _models[name] = _still_widget(fields)
            self._done.add(name)
        return str(_models[name].model_id)

    def _fields(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the values of a model's traits, including its type, with their binary parts."""
        fields: dict[str, Any] = self._here(state["state"])
        buffers = state.get("buffers", [])
        values = [base64.b64decode(each["data"]) for each in buffers]
        _library()._put_buffers(fields, [each["path"] for each in buffers], values)
        return fields | {f"_{name}": state[name] for name in TYPE}

    def _here(self, value: Any) -> Any:
        """Return a value of a state, with references to this kernel's models."""
        if isinstance(value, dict):
            return self._with_view({key: self._here(each) for key, each in value.items()})
        if isinstance(value, list):
            return [self._here(each) for each in value]
        if isinstance(value, str) and value.startswith("IPY_MODEL_"):
            name = value.removeprefix("IPY_MODEL_")
            return f"IPY_MODEL_{self.model(name)}" if name in self._states else value
        return value

    def _with_view(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields. A display that is a widget's view refers to the model here."""
        name = model_of(fields)
        if name in self._states:
            fields[VIEW] = {**fields[VIEW], "model_id": self.model(name)}
        elif name is not None and not is_alive(name):
            del fields[VIEW]
        return fields


def _still_widget(fields: dict[str, Any]) -> Any:
    """Return a widget with this state that does nothing."""

    class StillWidget(_library().Widget):  # type: ignore[misc]
        def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
            wanted = fields if key is None else {key} if isinstance(key, str) else set(key)
            return {name: value for name, value in fields.items() if name in wanted}

        def set_state(self, sync_data: dict[str, Any]) -> None:
            fields.update(sync_data)

        def become(self, changed: dict[str, Any]) -> None:
            if changed != fields:
                fields.update(changed)
                self.send_state()

        def _get_embed_state(self, drop_defaults: bool = False) -> dict[str, Any]:
            embedded = dict(super()._get_embed_state(drop_defaults=drop_defaults))
            return embedded | {name: fields[f"_{name}"] for name in TYPE}

    return StillWidget()
