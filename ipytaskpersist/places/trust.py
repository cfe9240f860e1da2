"""Which places the user trusts: values from there may be loaded here, which can run any code.

Trust is in a place's settings as they are. A place of the same name with another host has none.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from typing import Any

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import new_private, open_own, remove


def identity_of(place: Mapping[str, Any]) -> str:
    """Return what tells a place from others: all its settings but the name."""
    settings = {key: value for key, value in place.items() if key != "name"}
    return json.dumps(settings, sort_keys=True)


def trusted(directory: StateDirectory) -> list[str]:
    """Return the identities of the trusted places: none if the file is missing or damaged."""
    try:
        with open_own(directory.trusted_places) as file:
            found = json.loads(file.read())
    except (OSError, ValueError):
        return []
    is_list = isinstance(found, list) and all(isinstance(each, str) for each in found)
    return found if is_list else []


def is_trusted(directory: StateDirectory, place: Mapping[str, Any]) -> bool:
    """Return whether the user trusts a place."""
    return identity_of(place) in trusted(directory)


def change(directory: StateDirectory, place: Mapping[str, Any], *, is_trusted: bool) -> None:
    """Note that the user trusts a place, or does no longer. Raises `StoreError`."""
    own = identity_of(place)
    others = [each for each in trusted(directory) if each != own]
    directory.create()
    path = directory.trusted_places
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    with disk_errors.writing(f"which places you trust ({path})", path):
        try:
            with new_private(temporary) as file:
                file.write(json.dumps([*others, own] if is_trusted else others).encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            remove(temporary)
