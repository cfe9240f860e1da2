"""Which versions the Python of a place has: what is sent there must be readable there.

A place is asked once. One that does not answer in time is not waited for: the task itself says over
there when it cannot be run.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.places.trust import identity_of
from ipytaskpersist.runners import far_python
from ipytaskpersist.session.places import PACKAGES, ask

ANSWER_S = 5.0
_known: set[str] = set()
"""The identities of places that can run Python tasks."""


def require(place: Mapping[str, Any], directory: StateDirectory) -> None:
    """Raise `InvalidRequest` if a place cannot read what is sent there. Say what else differs."""
    if identity_of(place) in _known:
        return
    (found,) = ask({str(place["name"]): _without_name(place)}, directory, timeout_s=ANSWER_S)
    if found.problem or not found.python or found.packages is None:
        return
    compare(found.name, found.python, found.packages)
    _known.add(identity_of(place))


def _without_name(place: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in place.items() if key != "name"}


def _missing(name: str, python: str) -> str:
    return (
        f"a Python cell cannot run at '{name}': its Python {legible(python)} has no "
        f"ipytaskpersist; install version {far_python.versions()[1]} there, or set 'python' of the "
        "place to one that has it"
    )


def compare(name: str, python: str, packages: Mapping[str, str]) -> None:
    """Raise `InvalidRequest` if what is sent could not be read there. Print what else differs."""
    own_python, own_version = far_python.versions()
    name = legible(name)
    if python.split(".")[:2] != own_python.split("."):
        raise InvalidRequest(
            f"a Python cell cannot run at '{name}': it has Python {legible(python)}, and what this "
            f"one, {own_python}, pickles can only be read by {own_python}; set 'python' of the "
            "place to one of that version"
        )
    theirs = packages.get(far_python.PACKAGE)
    if theirs is None:
        raise InvalidRequest(_missing(name, python))
    if theirs != own_version:
        raise InvalidRequest(
            f"a Python cell cannot run at '{name}': it has ipytaskpersist {legible(theirs)}, and "
            f"here is {own_version}; install the same version there"
        )
    differences = [*filter(None, map(partial(_difference, packages), PACKAGES))]
    if differences:
        print(f"'{name}' has other versions: {', '.join(differences)}", file=sys.stderr)


def _difference(packages: Mapping[str, str], name: str) -> str:
    """Return how a package differs that this process has imported; empty if it does not."""
    if name not in sys.modules:
        return ""
    try:
        here = version(name)
    except PackageNotFoundError:
        return ""
    there = packages.get(name)
    if there == here:
        return ""
    return f"{name} {here} here, {'not' if there is None else legible(there)} there"
