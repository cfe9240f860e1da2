"""Settings of places: what each kind takes, and what is said of a wrong one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ipytaskpersist.errors import InvalidSetting
from ipytaskpersist.places.connecting import KINDS, check, connection_command

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="these kinds need POSIX here")
NEEDED = {"ssh": {"host": "far"}, "dask": {"address": "tcp://far:8786"}, "slurm": {}}


@POSIX
@pytest.mark.parametrize("kind", KINDS)
def test_a_place_needs_little_and_has_every_setting_of_its_kind(kind: str) -> None:
    place = check({"name": "cluster", "kind": kind, **NEEDED[kind]})
    assert set(place) == {"name", "kind", *KINDS[kind].fields}
    assert place["folder"] == "~/.ipytaskpersist-tasks"
    assert check(place) == place


@POSIX
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"kind": "ssh"}, "a place cannot be named None; take a word such as 'cluster'"),
        ({"name": "here", "kind": "ssh"}, "a place cannot be named 'here'"),
        ({"name": "two words", "kind": "ssh"}, "a place cannot be named 'two words'"),
        (
            {"name": "a", "kind": "sssh"},
            "place 'a': 'sssh' is no kind of place; its 'kind' must be ssh, dask or slurm",
        ),
        ({"name": "a"}, "place 'a': None is no kind of place"),
        ({"name": "a", "kind": "ssh"}, "place 'a' needs the setting 'host': a text without spaces"),
        ({"name": "a", "kind": "dask"}, "place 'a' needs the setting 'address'"),
        (
            {"name": "a", "kind": "ssh", "hots": "far"},
            "place 'a': a place of kind ssh has no setting 'hots'; did you mean 'host'?",
        ),
        (
            {"name": "a", "kind": "slurm", "zzz": 1},
            "place 'a': a place of kind slurm has no setting 'zzz'; "
            "there are partition, options, python and folder",
        ),
        (
            {"name": "a", "kind": "ssh", "host": "-oProxyCommand=evil"},
            "place 'a': host = '-oProxyCommand=evil' is not a text without spaces",
        ),
        ({"name": "a", "kind": "ssh", "host": ""}, "place 'a': host = '' is not"),
        ({"name": "a", "kind": "ssh", "host": "far", "port": True}, "place 'a': port = True"),
        ({"name": "a", "kind": "ssh", "host": "far", "port": 65536}, "place 'a': port = 65536"),
        (
            {"name": "a", "kind": "ssh", "host": "far", "options": "-v"},
            "place 'a': options = '-v' is not a list of texts",
        ),
        (
            {"name": "a", "kind": "ssh", "host": "far", "python": "python3\nrm"},
            "place 'a': python = 'python3\\nrm' is not a command of one line",
        ),
        (
            {"name": "a", "kind": "dask", "address": "far:8786", "resources": {"GPU": "one"}},
            "place 'a': resources = {'GPU': 'one'} is not amounts by name, such as {'GPU': 1}",
        ),
    ],
)
def test_a_place_that_is_set_wrongly_is_explained(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        check(spec)
    assert str(refused.value).startswith(words)


@POSIX
@pytest.mark.parametrize("kind", KINDS)
def test_the_command_of_a_place_names_its_module_and_carries_its_settings(
    kind: str, tmp_path: Path
) -> None:
    spec = {"name": "cluster", "kind": kind, **NEEDED[kind]}
    *command, settings, directory = connection_command(spec, tmp_path)
    assert f"ipytaskpersist.places.{kind}_bridge" in command[-1]
    assert json.loads(settings) == json.loads(json.dumps(check(spec)))
    assert directory == str(tmp_path)
