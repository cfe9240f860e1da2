"""What pages send, checked: whatever is not as it must be is an error of the request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ipytaskpersist.filling.matching import Cell, Place
from ipytaskpersist.history.fields import Fields, InvalidRecord, parsed
from ipytaskpersist.server.page import Wishes
from ipytaskpersist.server.task_lists import TASKS

PATH_CHARACTERS = 4_096
SOURCE_CHARACTERS = 16_000_000
ID_CHARACTERS = 1_000
CELLS_AT_MOST = 100_000

Locate = Callable[[str], Place]
"""Returns where the notebook is that a page knows by a path of the server."""


def fields_of(body: bytes) -> Fields:
    """Return the members of a request's body. Raises `InvalidRecord`."""
    try:
        return Fields.of(parsed(body or b"{}"), "the request")
    except InvalidRecord as error:
        raise InvalidRecord("the request", error.reason) from error


def cells_of(known: Fields) -> list[Cell]:
    """Return the cells that a page asks about. Raises `InvalidRecord`."""
    cells = []
    for place, entry in known.each("cells"):
        cell = Fields.of(entry, place)
        cells.append(
            Cell(
                cell.text("id", ID_CHARACTERS),
                cell.text("source", SOURCE_CHARACTERS) if cell.has("source") else "",
                cell.maybe(cell.text, "marked", ID_CHARACTERS),
            )
        )
        if len(cells) > CELLS_AT_MOST:
            raise known.refuse("cells", f"has more than {CELLS_AT_MOST:,} entries")
    return cells


def place_of(known: Fields, name: str, locate: Locate) -> Place | None:
    """Return where a notebook is; None if none is named. Raises `InvalidRecord`."""
    path = known.maybe(known.text, name, PATH_CHARACTERS)
    return locate(path) if path else None


def limit_of(known: Fields) -> int:
    """Return how many tasks a list has at most. Raises `InvalidRecord`."""
    return int(known.maybe(known.whole, "limit", 1, TASKS) or TASKS)


def wishes_of(known: Fields, locate: Locate) -> Wishes:
    """Return what a page wishes to be told. Raises `InvalidRecord`."""
    follow: dict[str, str] = {}
    wanted: Any = known.inside("follow") if known.has("follow") else Fields({}, "follow")
    for task_id in wanted.members:
        follow[task_id] = wanted.text(task_id)
    listed = known.inside("list") if known.has("list") else None
    return Wishes(
        places={path: locate(path) for path in known.texts("paths", PATH_CHARACTERS)},
        follow=follow,
        wants_list=listed is not None,
        list_place=None if listed is None else place_of(listed, "notebook", locate),
        list_limit=TASKS if listed is None else limit_of(listed),
        seen=known.maybe(known.whole, "seen"),
    )
