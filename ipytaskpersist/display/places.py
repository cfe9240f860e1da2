"""Places as a table."""

from __future__ import annotations

from collections.abc import Sequence

from ipytaskpersist.base.legible import legible
from ipytaskpersist.display.tables import Column, Columns
from ipytaskpersist.session.places import PlaceFound

ADDRESSES = ("host", "address", "partition")


def place_table(found: Sequence[PlaceFound]) -> Columns:
    """Return the places with where each is, and what it has answered."""
    return Columns(
        Column("place", [legible(place.name) for place in found], ["bold"], least=8),
        Column("kind", [str(place.spec["kind"]) for place in found]),
        Column("at", [_address(place) for place in found], turn=2, share=3),
        Column("Python", [legible(str(place.answer.get("python", ""))) for place in found], turn=1),
        Column("ipytaskpersist", [_package(place) for place in found], turn=1),
        Column("trusted", ["yes" if place.is_trusted else "no" for place in found], turn=1),
        Column("answers", [_answer(place) for place in found], least=20),
    )


def _package(place: PlaceFound) -> str:
    return legible(str((place.packages or {}).get("ipytaskpersist", "")))


def _address(place: PlaceFound) -> str:
    given = (str(place.spec.get(name) or "") for name in ADDRESSES)
    return legible(next(filter(None, given), ""))


def _answer(place: PlaceFound) -> str:
    if place.problem:
        return f"no: {legible(place.problem)}"
    return f"yes, after {place.seconds:.2f} s"
