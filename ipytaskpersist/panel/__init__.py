"""The live panel: what feeds it, what it shows, and what its buttons do.

Only `widget` and `card_pages` need anywidget. The panel's command imports one, `reach` the other.
"""
