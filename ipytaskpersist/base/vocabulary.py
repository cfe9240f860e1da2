"""The verbs, and the module of `commands` that defines each, imported when the verb is used."""

from __future__ import annotations

MODULE_OF = {
    "adopt": "moving",
    "archive": "keeping",
    "backup": "keeping",
    "cancel": "changing",
    "clear": "changing",
    "config": "checking",
    "continue": "queueing",
    "delete": "changing",
    "doctor": "checking",
    "export": "moving",
    "fill": "filling",
    "group": "queueing",
    "groups": "queueing",
    "import": "moving",
    "keep": "keeping",
    "list": "reading",
    "load": "launching",
    "move": "queueing",
    "output": "task_output",
    "panel": "panel",
    "pause": "queueing",
    "rerun": "launching",
    "restore": "keeping",
    "result": "reading",
    "resume": "launching",
    "search": "searching",
    "sessions": "overview",
    "show": "reading",
    "stats": "overview",
    "tag": "keeping",
    "unarchive": "keeping",
    "wait": "changing",
}
VERBS = tuple(MODULE_OF)
