"""The verbs: each defined here once, for ``%bg_VERB``, ``%bg VERB`` and ``jupyter bg VERB``.

A command parses, makes one call, and shows what came back on the surface from which it was typed.
"""

from __future__ import annotations

from ipytaskpersist.commands import changing, moving, reading  # noqa: F401 - they define the verbs
from ipytaskpersist.commands.definition import run, verbs
from ipytaskpersist.commands.launching import background

__all__ = ["background", "run", "verbs"]
