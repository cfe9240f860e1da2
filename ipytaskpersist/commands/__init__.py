"""The verbs: each defined here once, for ``%bg_VERB``, ``%bg VERB`` and ``jupyter bg VERB``.

A command parses, makes one call, and shows what came back on the surface from which it was typed.
Each module is imported when one of its verbs is typed. Nothing is imported here: loading the
extension would import click.
"""
