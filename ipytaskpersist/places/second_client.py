"""The tasks of another machine: its own `jupyter bg` is run there, through the user's ssh.

A store is on one machine, because SQLite's file cannot be shared safely over a network. So the
second machine asks the first one, and what is shown is what that one's own version says.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.places.bridge import Unreachable
from ipytaskpersist.places.connecting import check
from ipytaskpersist.places.ssh_bridge import SSH_FAILED, login_command

OWN_OPTIONS = ("RemoteCommand=none", "ClearAllForwardings=yes")
NOT_FOUND = (126, 127)
"""Exit statuses of a shell that finds no such program, or cannot run it."""
FORM = "ssh://[user@]host[:port][/path/of/python]"
WITHOUT_PACKAGE = "this Python does not have ipytaskpersist: "
BOOT = (
    "import sys;"
    # A module in the home directory must not stand in for an installed one.
    "sys.path=[p for p in sys.path if p];"
    "import importlib.util as u;"
    'u.find_spec("ipytaskpersist") or sys.exit("{without}"+sys.executable);'
    "from ipytaskpersist.__main__ import main;"
    "main()"
)


def run_there(
    target: str,
    arguments: Sequence[str],
    places: Mapping[str, Mapping[str, Any]],
    state_directory: Path,
    *,
    is_terminal: bool,
) -> int:
    """Run a command line of `jupyter bg` on another machine. Returns its exit status.

    `target` is an address (`FORM`), or the name of one of the user's `places` of kind ssh. With
    `is_terminal` the command has a terminal there, too. Raises `InvalidRequest` if there is no such
    place, and if the machine cannot be reached or has no Python with this package.
    """
    spec = spec_of(target, places)
    command = ssh_command(spec, arguments, state_directory, is_terminal=is_terminal)
    status = subprocess.run(command, check=False).returncode
    host, python = spec["host"], spec["python"]
    if status == SSH_FAILED:
        raise InvalidRequest(f"no connection with {host}; type 'ssh {host}' to see why")
    if status in NOT_FOUND:
        raise InvalidRequest(
            f"{host} has no {python!r} that a login shell finds; name the Python that has "
            f"ipytaskpersist: --at ssh://{host}/path/of/python"
        )
    return status


def spec_of(target: str, places: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the place of kind ssh that an address or a name means. Raises `InvalidRequest`."""
    if target in places:
        place = check({"name": target, **places[target]})
        if place["kind"] != "ssh":
            raise InvalidRequest(
                f"--at {target}: its tasks are kept here, 'jupyter bg list' shows them; --at takes "
                f"a place of kind ssh, or {FORM}"
            )
        return place
    try:
        parts = urlsplit(target)
        host, port = parts.hostname, parts.port or 0
    except ValueError:
        host, port = None, 0
    is_form = not (parts.query or parts.fragment or parts.password) if host else False
    if not host or parts.scheme != "ssh" or not is_form:
        known = f"one of {', '.join(places)}" if places else "a place of the setting places"
        raise InvalidRequest(
            f"--at takes {FORM} or {known}, not {target!r}; %bg_config places says how to add one"
        )
    return check(
        {
            "name": host,
            "kind": "ssh",
            "host": host,
            "port": port,
            "user": unquote(parts.username or ""),
            "python": shlex.quote(unquote(parts.path)) if len(parts.path) > 1 else "python3",
        }
    )


def ssh_command(
    spec: Mapping[str, Any], arguments: Sequence[str], state_directory: Path, *, is_terminal: bool
) -> list[str]:
    """Return the command that runs a command line of `jupyter bg` on the host of a place."""
    try:
        login = login_command(dict(spec), OWN_OPTIONS, state_directory)
    except Unreachable as error:
        raise InvalidRequest(str(error)) from None
    boot = BOOT.format(without=WITHOUT_PACKAGE)
    there = f"{spec['python']} -c '{boot}' {shlex.join(arguments)}"
    return [*login, "-t" if is_terminal else "-T", "--", spec["host"], there]
