"""The live panel: what feeds it, what it shows, and what its buttons do.

Only `widget` needs anywidget, and only the panel's command imports it.
"""
