"""What a task sends arrives as it was sent, or it is said where it is damaged."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

import pytest
from disks import change, small, why_not
from far_ends import FarEnds, frame, is_running
from hypothesis import given
from hypothesis import strategies as st
from kernels import until

from ipytaskpersist.base import process_tree
from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.places import agent
from ipytaskpersist.places.far import keeper, processes, spool
from ipytaskpersist.places.messages import (
    Frame,
    MessageDamaged,
    MessageReader,
    SpoolDamaged,
    SpoolReader,
    as_end,
    pack,
)
from ipytaskpersist.runners import channel

FRAMES = st.lists(st.tuples(st.sampled_from([b"o", b"e", b"d", b"Z"]), st.binary(max_size=300)))


def whole(frames: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(frame(kind, data) for kind, data in frames)


# Reading a spool.


@given(frames=FRAMES, cut=st.integers(1, 50))
def test_frames_cut_anywhere_come_out_whole(frames: list[tuple[bytes, bytes]], cut: int) -> None:
    sent, reader, received = whole(frames), SpoolReader(), []
    for start in range(0, len(sent), cut):
        received += reader.feed(sent[start : start + cut])
        assert reader.wanted == min(start + cut, len(sent))
    assert [(each.kind, each.data) for each in received] == frames
    assert reader.offset == len(sent)
    assert [each.end for each in received][-1:] == [len(sent)][: len(received)]


@given(frames=FRAMES.filter(bool), data=st.data())
def test_reading_goes_on_at_any_frame(
    frames: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(frames)))
    begin = len(whole(frames[:first]))
    received = list(SpoolReader(begin).feed(whole(frames)[begin:]))
    assert [(each.kind, each.data) for each in received] == frames[first:]
    assert [each.end for each in received][-1:] == [len(whole(frames))][: len(received)]


@given(frames=FRAMES.filter(bool), data=st.data())
def test_a_changed_byte_is_noticed_and_what_came_before_is_kept(
    frames: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    sent = bytearray(whole(frames))
    changed = data.draw(st.integers(0, len(sent) - 1))
    sent[changed] ^= data.draw(st.integers(1, 255))
    reader, received = SpoolReader(), []
    with pytest.raises(SpoolDamaged) as damage:
        # Zeros behind it: after a length that was made larger, as much is waited for.
        take(reader, [bytes(sent), *[bytes(1024 * 1024)] * 70], received)
    ends = [len(whole(frames[: count + 1])) for count in range(len(frames))]
    kept = [each for each, end in zip(frames, ends, strict=True) if end <= changed]
    assert [(each.kind, each.data) for each in received] == kept
    assert damage.value.offset == len(whole(kept))


def take(reader: SpoolReader, pieces: list[bytes], received: list[Frame]) -> None:
    for piece in pieces:
        received.extend(reader.feed(piece))


def test_a_cut_spool_waits_for_more() -> None:
    sent = whole([(b"o", b"one"), (b"o", b"two")])
    reader = SpoolReader()
    assert [each.data for each in reader.feed(sent[:-1])] == [b"one"]
    assert list(reader.feed(b"")) == []
    assert [each.data for each in reader.feed(sent[-1:])] == [b"two"]


def test_a_frame_that_claims_to_be_huge_is_not_waited_for() -> None:
    reader = SpoolReader()
    sent = frame(b"o", b"one") + spool.FRAME.pack(b"o", spool.LARGEST_FRAME + 1)
    received: list[Frame] = []
    with pytest.raises(SpoolDamaged, match="damaged at byte 12: a frame of 67108865 bytes"):
        take(reader, [sent], received)
    assert [each.data for each in received] == [b"one"]


# Messages.


@given(
    messages=st.lists(st.tuples(st.dictionaries(st.text(), st.text()), st.binary(max_size=99))),
    cut=st.integers(1, 50),
    before=st.binary(max_size=99).filter(lambda data: b"\n" not in data),
)
def test_messages_cut_anywhere_come_out_whole_behind_what_a_shell_prints(
    messages: list[tuple[dict[str, str], bytes]], cut: int, before: bytes
) -> None:
    sent = before + agent.GREETING + b"".join(pack(*message) for message in messages)
    reader, received = MessageReader(), []
    for start in range(0, len(sent), cut):
        received += reader.feed(sent[start : start + cut])
    assert received == messages


@pytest.mark.parametrize(
    "sent",
    [
        agent.MESSAGE.pack(2**32 - 1, 0),
        agent.MESSAGE.pack(2, 2**32 - 1) + b"{}",
        agent.MESSAGE.pack(3, 0) + b"[1]",
        agent.MESSAGE.pack(2, 0) + b"\xff{",
        agent.MESSAGE.pack(100_000, 0) + b"[" * 100_000,
    ],
)
def test_what_is_no_message_is_refused(sent: bytes) -> None:
    with pytest.raises(MessageDamaged):
        list(MessageReader().feed(agent.GREETING + sent))


def test_an_end_with_fields_of_other_types_is_an_end_without_them() -> None:
    fields = {"status": "0", "reason": 3, "cpu_s": "x", "peak_memory_bytes": 1.5, "ended_at": 1e999}
    end = as_end(json.dumps(fields).encode())
    assert (end.status, end.reason, end.cpu_s, end.peak_memory_bytes) == (None,) * 4
    assert end.ended_at is None
    assert as_end(b'{"status": 10, "cpu_s": 2}').cpu_s == 2.0
    with pytest.raises(MessageDamaged):
        as_end(b"7")


# The channel.


def test_frames_of_a_python_task_are_in_the_spool_as_they_are(far: FarEnds) -> None:
    code = """
import os
from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.runners.channel import Sender
sender = Sender(int(os.environ["IPYTASKPERSIST_CHANNEL"]), (1, 2))
for number in range(200):
    os.write(1, b"C %d\\n" % number)
    sender.write(OutputKind.STDOUT, f"python {number}\\n")
    sender.add(OutputKind.DISPLAY_DATA, {"number": number})
sender.outcome("completed", None, 0)
"""
    task = far.start(sys.executable, "-c", code, channel=True)
    assert task.end().status == 0
    assert task.text() == "".join(f"C {number}\npython {number}\n" for number in range(200))
    shown = [json.loads(each.data)["number"] for each in task.frames if each.kind == b"d"]
    assert shown == list(range(200))
    # What C has written is a frame of its own, or of one with what Python has.
    kinds = b"".join(each.kind for each in task.frames)
    assert kinds.replace(b"oo", b"o") == b"od" * 200 + b"OZ"
    assert json.loads(task.data(channel.OUTCOME)) == {
        "state": "completed", "reason": None, "exit_code": 0,
    }  # fmt: skip


def test_both_ends_use_the_same_words() -> None:
    """The far end imports nothing of this package."""
    assert channel.DESCRIPTOR == keeper.CHANNEL
    assert process_tree.MARK == processes.MARK
    assert channel.HEADER.format == spool.FRAME.format
    assert (channel.CODES[OutputKind.STDOUT], channel.CODES[OutputKind.STDERR]) == spool.STREAMS
    assert spool.END not in {*channel.OUTPUTS, channel.RESULT, channel.OUTCOME, channel.PROGRESS}
    assert spool.END not in {channel.POST_MORTEM, channel.CHECKPOINTED}


def test_a_task_without_a_channel_is_told_of_none(
    far: FarEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTASKPERSIST_CHANNEL", "7")
    task = far.start("sh", "-c", "echo ${IPYTASKPERSIST_CHANNEL-none}")
    task.end()
    assert task.text() == "none\n"


def test_what_is_too_large_for_a_frame_is_cut_or_left_out_and_said(far: FarEnds) -> None:
    code = """
import os, struct
sent = int(os.environ["IPYTASKPERSIST_CHANNEL"])
def send(kind, size):
    with open(sent, "wb", closefd=False) as file:
        file.write(struct.pack("<cI", kind, size) + b"x" * size)
send(b"o", 70_000_000); send(b"d", 70_000_000); send(b"d", 3)
"""
    task = far.start(sys.executable, "-c", code, channel=True)
    assert task.end().status == 0
    assert task.data() == b"x" * 70_000_000
    assert task.data(b"d") == b"xxx"
    assert "a display of 70,000,000 bytes was left out" in task.text(b"e")


# A full disk.


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_task_waits_while_the_disk_is_full_and_nothing_is_lost(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with closing(FarEnds(home, *small(home / "disk", "size=1m"), sys.executable)) as far:
        far.folder = home / "disk"
        task = far.start("seq", "1000000")
        task.wait_for("\n100000\n")
        until(lambda: task.pull(wait_s=1.0) is None)
        assert task.state() == "running"
        assert not task.text().endswith("\n1000000\n")
        change(far.process.pid, home / "disk", "size=100m")
        assert task.end().status == 0
        assert task.text() == "".join(f"{number}\n" for number in range(1, 1_000_001))


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_task_is_ended_while_the_disk_is_full(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with closing(FarEnds(home, *small(home / "disk", "size=1m"), sys.executable)) as far:
        far.folder = home / "disk"
        task = far.start("sh", "-c", "echo $$; seq 1000000; sleep 100")
        task.wait_for("\n100000\n")
        until(lambda: task.pull(wait_s=1.0) is None)
        leader = int(task.text().partition("\n")[0])
        task.signal("kill")
        until(lambda: not is_running(leader))
        change(far.process.pid, home / "disk", "size=100m")
        end = task.end()
        assert (end.status, end.reason) == (-15, "asked")
