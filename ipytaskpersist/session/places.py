"""The places of the settings: which one a task is for, and whether each answers."""

from __future__ import annotations

import difflib
import selectors
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.places import trust as places_trusted
from ipytaskpersist.places.connecting import HERE, check
from ipytaskpersist.runners.far_python import PACKAGE
from ipytaskpersist.runners.link import Json, Link

ANSWER_S = 20.0
"""Time for a place to answer, with its connection."""
PACKAGES = ("cloudpickle", "numpy", "pandas", "polars", "pyarrow", "scipy", "torch")
"""Packages whose values are often handed over, and change their pickles now and then."""


def named(places: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any] | None:
    """Return a place of the settings as a task keeps it; None for this machine.

    Raise `InvalidRequest` if there is none of this name.
    """
    if name in ("", HERE):
        return None
    if name not in places:
        near = difflib.get_close_matches(name, places, n=1)
        if not places:
            hint = "the setting places has none; %bg_config places says how to add one"
        elif near:
            hint = f"did you mean '{near[0]}'?"
        else:
            hint = f"there are {', '.join(map(legible, places))}"
        raise InvalidRequest(f"no place '{legible(name)}'; {hint}")
    return check({**places[name], "name": name})


@dataclass(frozen=True, slots=True)
class PlaceFound:
    """A place of the settings, and what it has answered."""

    spec: Mapping[str, Any]
    answer: Json
    seconds: float
    is_trusted: bool
    """Whether the user trusts what comes from there."""

    @property
    def name(self) -> str:
        """Its name in the settings."""
        return str(self.spec["name"])

    @property
    def python(self) -> str:
        """The version of its Python; empty if that is not known."""
        return str(self.answer.get("python") or "")

    @property
    def packages(self) -> Mapping[str, str] | None:
        """The versions of the packages in its Python; None if they are not known."""
        found = self.answer.get("packages")
        return found if isinstance(found, dict) else None

    @property
    def problem(self) -> str:
        """Why it does not answer; empty if it does."""
        return str(self.answer.get("error", ""))

    def as_json(self) -> Json:
        """Return what ``places --json`` prints about it."""
        known = ("host", "python", "user", "version", "workers", "free")
        return {
            **{key: value for key, value in self.spec.items() if value not in ("", 0, [], {}, ())},
            "answers": not self.problem,
            "problem": self.problem or None,
            "seconds": round(self.seconds, 3),
            "trusted": self.is_trusted,
            "ipytaskpersist": (self.packages or {}).get(PACKAGE),
            **{key: self.answer[key] for key in known if key in self.answer},
        }


def ask(
    places: Mapping[str, Mapping[str, Any]],
    directory: StateDirectory,
    names: Sequence[str] = (),
    timeout_s: float = ANSWER_S,
) -> list[PlaceFound]:
    """Ask the places whether they answer, all at once. Raise `InvalidRequest` for an unknown name.

    Those that have not answered in time have that as their problem.
    """
    specs = [spec for name in names or places if (spec := named(places, name)) is not None]
    found: dict[str, PlaceFound] = {}
    begun_at = time.monotonic()
    with selectors.DefaultSelector() as selector:
        links = [Link(spec, directory, selector) for spec in specs]
        for spec, link in zip(specs, links, strict=True):

            def take(answer: Json, _data: bytes, spec: Mapping[str, Any] = spec) -> None:
                seconds = time.monotonic() - begun_at
                found[str(spec["name"])] = PlaceFound(
                    spec, answer, seconds, places_trusted.is_trusted(directory, spec)
                )

            link.ask({"verb": "hello", "packages": [PACKAGE, *PACKAGES]}, take)
        try:
            while len(found) < len(specs) and (left := begun_at + timeout_s - time.monotonic()) > 0:
                for key, _events in selector.select(left):
                    key.data.serve(key.fd)
        finally:
            for link in links:
                link.end(f"it has not answered within {timeout_s:g} s")
    return [found[str(spec["name"])] for spec in specs]


def set_trust(
    places: Mapping[str, Mapping[str, Any]],
    directory: StateDirectory,
    names: Sequence[str],
    *,
    trust: bool,
    distrust: bool,
) -> None:
    """Note that the user trusts these places, or does no longer.

    Raise `InvalidRequest` without a name, for an unknown one, and for both at once.
    """
    if trust and distrust:
        raise InvalidRequest("--trust and --distrust cannot both be meant")
    if not names:
        flag = "--trust" if trust else "--distrust"
        raise InvalidRequest(f"{flag} needs the name of a place: %bg_places gpu1 {flag}")
    for spec in [named(places, name) for name in names]:
        if spec is not None:
            places_trusted.change(directory, spec, is_trusted=trust)
