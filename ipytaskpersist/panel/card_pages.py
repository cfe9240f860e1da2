"""The pages that have loaded cards with a notebook: they ask for updates, and are sent them.

It is a widget without a view. A page's widget manager makes it again from a live kernel when the
page is loaded, and a saved notebook contains nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget

from ipytaskpersist.panel.hearing import hear_at_once

ESM = Path(__file__).with_name("static") / "cards.js"


class CardPages(anywidget.AnyWidget):
    """All pages of this kernel's notebook."""

    _esm = ESM

    def __init__(self, ask: Callable[[Sequence[str]], None]) -> None:
        """`ask` is called with the ids of the tasks whose cards a page wants to be updated."""
        self._ask = ask
        super().__init__()
        hear_at_once(self.comm, self._handle_msg)
        self.on_msg(self._take)

    def _take(self, _widget: Any, content: Any, _buffers: Any) -> None:
        self._ask([task_id for task_id in content.get("tasks", ()) if isinstance(task_id, str)])
