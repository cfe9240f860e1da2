"""What a far end may send as the values of its task, and what is made of it here."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from far_ends import frame

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import INPUTS, Options, ProcessRecord, ResultRecord
from ipytaskpersist.places import trust
from ipytaskpersist.places.messages import SpoolDamaged
from ipytaskpersist.runners.placed import Placed
from ipytaskpersist.values.payloads import Payloads
from ipytaskpersist.values.signatures import Signatures
from ipytaskpersist.values.travelling import (
    Arriving,
    Damaged,
    as_post_mortem,
    buffers_to_fetch,
    far_record,
)

PLACE = {"name": "far", "kind": "ssh", "host": "far"}
TASK = "a7k3m9x2-1"


@pytest.fixture
def here(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path, here: StateDirectory) -> StateDirectory:
    """The state directory of the task over there: it has the key of this task alone."""
    directory = StateDirectory(tmp_path / "there")
    directory.create()
    directory.key.write_bytes(Signatures(here).key_at(trust.identity_of(PLACE), TASK))
    directory.key.chmod(0o600)
    return directory


def taken(here: StateDirectory, record: ResultRecord, **changed: Any) -> ResultRecord | None:
    fields = {**asdict(record), **changed}
    return far_record(here, PLACE, TASK, json.dumps(fields).encode())


def test_only_what_this_task_has_signed_there_has_a_file_here(
    here: StateDirectory, there: StateDirectory
) -> None:
    left = Payloads(there).save(TASK, "x", [1, 2], "[1, 2]")
    assert left.digest
    assert taken(here, left) == left
    # The path is never the far end's.
    assert taken(here, left, path="../../key") == left
    for changed in (
        {"name": "y"},
        {"digest": "0" * 64},
        {"digest": "../../x"},
        {"signature": None},
        {"size_bytes": "many"},
    ):
        found = taken(here, left, **changed)
        assert found is not None
        assert found.path is None
        assert "did not arrive as it was written there" in (found.problem or "")
    # The inputs and checkpoints of a task are not its values.
    assert taken(here, left, name=INPUTS) is None
    assert taken(here, left, text=5) is None
    for nonsense in (b"", b"[]", b"{}", b"[" * 100_000, b'{"name": "x", "more": 1}'):
        assert far_record(here, PLACE, TASK, nonsense) is None
        assert as_post_mortem(nonsense) is None


def test_a_signature_from_a_place_counts_while_exactly_that_place_is_trusted(
    here: StateDirectory, there: StateDirectory
) -> None:
    left = Payloads(there).save(TASK, "x", 1, "1")
    signed = (TASK, "x", left.digest or "", left.signature or "")
    signatures = Signatures(here)
    assert not signatures.is_signed(*signed)
    trust.change(here, {**PLACE, "host": "other"}, is_trusted=True)
    assert not signatures.is_signed(*signed)
    trust.change(here, {**PLACE, "name": "renamed"}, is_trusted=True)
    assert signatures.is_signed(*signed)
    # The key of one task signs nothing for another one.
    assert not signatures.is_signed("a7k3m9x2-2", *signed[1:])
    here.trusted_places.write_text("nonsense")
    assert not signatures.is_signed(*signed)
    trust.change(here, PLACE, is_trusted=True)
    trust.change(here, PLACE, is_trusted=False)
    assert trust.trusted(here) == []


def test_a_file_arrives_whole_and_unchanged_or_not_at_all(
    here: StateDirectory, there: StateDirectory
) -> None:
    left = Payloads(there).save(TASK, "x", b"x" * 300_000, "bytes")
    name = there.payload(TASK, left.digest or "").name
    content = there.payload(TASK, left.digest or "").read_bytes()
    for damaged in (content[:-1], content + b"x", b""):
        arriving = Arriving(here, TASK, name, left.digest or "")
        arriving.add(damaged)
        with pytest.raises(Damaged):
            arriving.finish()
        arriving.discard()
    assert [*here.payloads.rglob("*.part")] == []
    arriving = Arriving(here, TASK, name, left.digest or "")
    for piece in (content[:10], content[10:]):
        arriving.add(piece)
    pickle = arriving.finish()
    (buffers,) = buffers_to_fetch(here, TASK, pickle)
    cut = Arriving(here, TASK, buffers)
    cut.add(b"short")
    with pytest.raises(Damaged):
        cut.finish()
    cut.discard()
    whole = Arriving(here, TASK, buffers)
    whole.add((there.payloads / TASK / buffers).read_bytes())
    whole.finish()
    assert [*buffers_to_fetch(here, TASK, pickle)] == []


@pytest.mark.parametrize("name", ["../key", "/etc/passwd", "5.buffers"])
def test_an_index_that_leads_elsewhere_is_damaged(here: StateDirectory, name: str) -> None:
    index = json.dumps({"x": {"size": 0, "parts": [[name, 0, 1, "", None]]}}).encode()
    pickle = Arriving(here, TASK, f"{'a' * 32}.pickle")
    pickle.add(b"\0values\n" + index + len(index).to_bytes(8, "little"))
    with pytest.raises(Damaged):
        [*buffers_to_fetch(here, TASK, pickle.finish())]


class Recorded:
    """Stands for the recording, which needs a store: what is malformed must not reach it."""

    def __getattr__(self, name: str) -> Any:
        if name == "come_to":
            return lambda _offset: None
        return partial(pytest.fail, f"{name} was called")


MALFORMED = {
    b"O": [b"", b"[]", b'{"state": "running", "reason": null, "exit_code": 0}',
           b'{"state": "completed", "reason": 5, "exit_code": 0}', b"[" * 100_000],
    b"P": [b"{", b"[1]", b'{"nonsense": 1}', b'{"done": "x"}',
           b'{"done": null}', b'{"done": 1, "text": 5}'],
    b"d": [b"no JSON", b"[]", b'{"data": 5, "metadata": {}}', b'{"metadata": {}}'],
    b"x": [b'{"ename": "E", "evalue": "", "traceback": null}'],
    b"c": [b"{}"],
    b"Z": [b"", b"5", b"\xff"],
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED, ids=bytes.decode)
def test_a_malformed_frame_is_damage_of_the_spool(here: StateDirectory, kind: bytes) -> None:
    process = ProcessRecord(
        1, TASK, "python", [], None, None, "~", {}, False, None, 5.0, Options(), None, None, None,
        None, None, place=PLACE,
    )  # fmt: skip
    for data in MALFORMED[kind]:
        task = Placed(process, Recorded(), here, may_run=False)  # type: ignore[arg-type]
        with pytest.raises(SpoolDamaged):
            task.take(frame(kind, data))
        assert not task.has_ended
