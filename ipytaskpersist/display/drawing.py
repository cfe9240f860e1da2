"""The parts of rich that are used, imported without drawing from the notebook's random numbers.

``rich.style`` draws one when it is imported, and a seeded notebook would go on differently.
"""

from __future__ import annotations

from ipytaskpersist.isolation.random_states import undisturbed

with undisturbed():
    from rich.cells import cell_len, set_cell_size
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.segment import Segment
    from rich.style import Style
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "Console",
    "ConsoleOptions",
    "RenderResult",
    "RenderableType",
    "Segment",
    "Style",
    "Table",
    "Text",
    "cell_len",
    "set_cell_size",
]
