"""Reach pages that have loaded cards with the notebook, if their server does not do it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ipytaskpersist.base.paths import SERVED
from ipytaskpersist.display.live_cards import Ask, Pages
from ipytaskpersist.panel.hearing import FOREGROUND_OUTPUT
from ipytaskpersist.session.manager import BackgroundTasks

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def reach_pages(manager: BackgroundTasks, shell: InteractiveShell, ask: Ask) -> Pages | None:
    """Return the way to the pages; None if anywidget is missing or the server reaches them."""
    if os.environ.get(SERVED) == str(manager.directory.root):
        return None
    try:
        from ipytaskpersist.panel.card_pages import CardPages
    except ImportError:
        return None
    FOREGROUND_OUTPUT.watch(shell)
    manager.runners.on_close.append(lambda: FOREGROUND_OUTPUT.unwatch(shell))
    return CardPages(ask)
