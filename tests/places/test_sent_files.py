"""Which files go to a place, under which names, and what may come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipytaskpersist.base.records import Options
from ipytaskpersist.runners.sent_files import files_of, matches

PATTERNS = {
    ("results/*.csv", "results/a.csv"): True,
    ("results/*.csv", "results/b/a.csv"): False,
    ("results/*", "results/.bashrc"): False,
    ("results/.b*", "results/.bashrc"): True,
    ("**", "a/b/c"): True,
    ("**", ".ssh/authorized_keys"): False,
    ("**/*.csv", "a.csv"): True,
    ("**/*.csv", "a/b/c.csv"): True,
    ("a/**", "a"): True,
    ("*", "../x"): False,
    ("**", "a/../../x"): False,
    ("**", "/etc/passwd"): False,
    ("*", ""): False,
    ("**", "/".join("a" * 5000)): False,
}


@pytest.mark.parametrize(("pattern", "name"), PATTERNS, ids=str)
def test_a_far_end_brings_back_only_what_was_asked_for(pattern: str, name: str) -> None:
    assert matches(pattern, name) is PATTERNS[pattern, name]


def test_files_keep_their_names_below_the_directory_here(tmp_path: Path) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    (here / "data" / "deep").mkdir(parents=True)
    (here / "data" / "deep" / "x").touch()
    (here / "data" / "gone").symlink_to("nowhere")
    other.mkdir()
    (other / "y").touch(0o755)
    options = Options(send=["data/../data/", str(other / "y"), "../other", ".."], here=str(here))
    found = {file.name: file for file in files_of(options)}
    assert sorted(found) == [
        "files/data/deep/x",
        "files/other/y",
        *(f"files/{tmp_path.name}/{name}" for name in ("here/data/deep/x", "other/y")),
        "files/y",
    ]
    assert found["files/y"].is_executable
    with pytest.raises(FileNotFoundError):
        files_of(Options(send=["missing"], here=str(here)))
