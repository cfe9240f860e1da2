"""Some tests of IPython, ipykernel and joblib, with the extension loaded; `make peers` has all."""

from __future__ import annotations

import subprocess
import sys

import pytest
from layout import ROOT
from peers.__main__ import ALL, PEERS

TIMEOUT_S = 500.0


@pytest.mark.skipif(not PEERS.exists(), reason="`make test` fetches their sources")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("peer", [peer.name for peer in ALL])
def test_the_tests_of_a_peer_come_out_as_without_the_extension(peer: str) -> None:
    compared = subprocess.run(
        [sys.executable, "-m", "peers", "--part", peer],
        cwd=ROOT / "tests", capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert compared.returncode == 0, compared.stdout + compared.stderr
