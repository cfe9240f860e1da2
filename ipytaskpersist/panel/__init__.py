"""The live panel: what feeds it, what it shows, and what its buttons do.

Only `widget` needs anywidget, and only the panel's command imports it.
"""

from pathlib import Path

STATIC = Path(__file__).with_name("static")
"""The files of its page, which the server gives to the sidebar, too."""
