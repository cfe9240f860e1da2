"""Show the widgets that tasks have displayed, also where their own models are not alive any more.

The page asks the kernel for the model of each view. So a view is shown only where this kernel has
the model: the task's own, or a new one with the state that was kept, which looks the same and does
nothing. Everywhere else the best other form of the display is shown.
"""

from __future__ import annotations

import base64
import importlib.util
import sys
from contextlib import suppress
from typing import Any

from ipytaskpersist.outputs import Output
from ipytaskpersist.widgetmarks import STATE, VIEW, model_of

TYPE = ("model_name", "model_module", "model_module_version")
"""What says of which type a model is."""
_models: dict[str, Any] = {}
"""The widget of this kernel that stands for one that was kept, by the id of the latter's model."""


def as_shown_here(output: Output) -> Output:
    """The output as this kernel's page can show it."""
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
    """Whether this process has the model, so that a page can show its views."""
    module: Any = sys.modules.get("ipywidgets.widgets.widget")
    return module is not None and model in module._instances


def can_be_shown(model: str) -> bool:
    """Whether a model whose state was kept is alive here, or can be made."""
    return is_alive(model) or importlib.util.find_spec("ipywidgets") is not None


def is_state(kept: Any) -> bool:
    """Whether it has the form in which notebook files keep the state of widgets."""
    models = kept.get("state") if isinstance(kept, dict) else None
    return isinstance(models, dict) and all(
        isinstance(each, dict) and isinstance(each.get("state"), dict) for each in models.values()
    )


def _revived(model: str, kept: Any) -> str | None:
    """The id of a model with the state that was kept; None where it cannot be made."""
    if not is_state(kept) or model not in kept["state"]:
        return None
    with suppress(Exception):  # there is no ipywidgets, or another version that knows it not
        return _Revival(kept["state"]).model(model)
    return None


def _library() -> Any:
    return importlib.import_module("ipywidgets.widgets.widget")


class _Revival:
    """Makes models with the state of others, and keeps what refers to what."""

    def __init__(self, states: dict[str, Any]) -> None:
        self._states = states
        self._done: set[str] = set()

    def model(self, name: str) -> str:
        """The id of the model here that stands for one of the states."""
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
        """The values of a model's traits, its type among them, with their binary parts."""
        fields: dict[str, Any] = self._here(state["state"])
        buffers = state.get("buffers", [])
        values = [base64.b64decode(each["data"]) for each in buffers]
        _library()._put_buffers(fields, [each["path"] for each in buffers], values)
        return fields | {f"_{name}": state[name] for name in TYPE}

    def _here(self, value: Any) -> Any:
        """A value of a state, with references to the models of this kernel."""
        if isinstance(value, dict):
            return self._with_view({key: self._here(each) for key, each in value.items()})
        if isinstance(value, list):
            return [self._here(each) for each in value]
        if isinstance(value, str) and value.startswith("IPY_MODEL_"):
            name = value.removeprefix("IPY_MODEL_")
            return f"IPY_MODEL_{self.model(name)}" if name in self._states else value
        return value

    def _with_view(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The same, where it is a display that is the view of a widget, of the model here."""
        name = model_of(fields)
        if name in self._states:
            fields[VIEW] = {**fields[VIEW], "model_id": self.model(name)}
        elif name is not None and not is_alive(name):
            del fields[VIEW]
        return fields


def _still_widget(fields: dict[str, Any]) -> Any:
    """A widget that has this state, and does nothing."""

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
