"""The live panel: what feeds it, what it shows, and what its buttons do.

Only `widget` and `card_pages` need anywidget. The panel's command imports one, `reach` the other.
"""

from pathlib import Path

STATIC = Path(__file__).with_name("static")
"""The files of its page, which the server gives to the sidebar, too."""
