"""What is said of the versions in the Python of a place, before anything is sent there."""

from __future__ import annotations

import sys
from importlib.metadata import version

import pytest

from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.session.far_versions import compare

OWN = version("ipytaskpersist")
PYTHON = ".".join(map(str, sys.version_info[:3]))
REFUSED = [
    (PYTHON, {}, "has no ipytaskpersist; install version"),
    (PYTHON, {"ipytaskpersist": f"{OWN}1"}, f"it has ipytaskpersist {OWN}1, and here is {OWN}"),
    (
        "3.9.18",
        {"ipytaskpersist": OWN},
        "it has Python 3.9.18, and what this one",
    ),
]


@pytest.mark.parametrize(("python", "packages", "words"), REFUSED)
def test_a_python_that_cannot_read_what_is_sent_is_refused(
    python: str, packages: dict[str, str], words: str
) -> None:
    with pytest.raises(InvalidRequest, match="cannot run at 'far'") as refused:
        compare("far", python, packages)
    assert words in str(refused.value)


def test_other_versions_of_imported_libraries_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    numpy = pytest.importorskip("numpy")
    cloudpickle = pytest.importorskip("cloudpickle")
    same = {"ipytaskpersist": OWN, "cloudpickle": cloudpickle.__version__}
    imported = {name: version(name) for name in ("pandas", "polars", "pyarrow", "scipy", "torch")
                if name in sys.modules}  # fmt: skip
    compare("far", PYTHON, {**same, **imported, "numpy": numpy.__version__})
    assert capsys.readouterr().err == ""
    compare("far", PYTHON, {**same, **imported, "numpy": "1.0"})
    said = capsys.readouterr().err
    assert said == f"'far' has other versions: numpy {numpy.__version__} here, 1.0 there\n"
