"""What a Python task sends to its supervisor arrives whole and in order."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import psutil
from hypothesis import given
from hypothesis import strategies as st
from kernels import until
from programs import run_python

from ipytaskpersist.base.records import OutputKind, ResultRecord
from ipytaskpersist.runners.channel import (
    CODES,
    HEADER,
    RESULT,
    Receiver,
    Sender,
    as_result,
    unread_bytes,
)

FRAMES = st.lists(st.tuples(st.sampled_from(sorted(CODES.values())), st.binary(max_size=300)))


@given(frames=FRAMES, cut=st.integers(1, 50))
def test_frames_cut_anywhere_come_out_whole(frames: list[tuple[bytes, bytes]], cut: int) -> None:
    sent = b"".join(HEADER.pack(code, len(data)) + data for code, data in frames)
    receiver, received = Receiver(), []
    for start in range(0, len(sent), cut):
        received.extend(receiver.feed(sent[start : start + cut]))
    assert received == frames


def test_what_is_larger_than_the_pipe_arrives() -> None:
    read, write = os.pipe()
    text = "x" * 3_000_000
    sender = threading.Thread(target=lambda: Sender(write, ()).write(OutputKind.STDOUT, text))
    sender.start()
    receiver, received = Receiver(), []
    while not received:
        received.extend(receiver.feed(os.read(read, 65536)))
    sender.join()
    assert received == [(CODES[OutputKind.STDOUT], text.encode())]
    os.close(read)
    os.close(write)


def test_a_record_of_a_result_survives_the_way() -> None:
    read, write = os.pipe()
    result = ResultRecord("größe", "a/b", 5, "d", "s", "text", None)
    Sender(write, ()).result(result)
    ((code, data),) = Receiver().feed(os.read(read, 65536))
    assert code == RESULT
    assert as_result(data) == result
    os.close(read)
    os.close(write)


def test_a_frame_waits_until_the_streams_have_been_read() -> None:
    """Otherwise what was written past Python before it would come after it."""
    stream_read, stream_write = os.pipe()
    read, write = os.pipe()
    os.write(stream_write, b"first")
    assert unread_bytes(stream_write) == 5
    sender = threading.Thread(
        target=lambda: Sender(write, [stream_write]).write(OutputKind.STDOUT, "second")
    )
    sender.start()
    waiting = psutil.Process().num_ctx_switches().voluntary
    until(lambda: psutil.Process().num_ctx_switches().voluntary > waiting + 5)
    assert unread_bytes(read) == 0
    os.read(stream_read, 5)
    sender.join(10)
    assert unread_bytes(read) > 0
    for descriptor in (stream_read, stream_write, read, write):
        os.close(descriptor)


def test_a_task_whose_supervisor_is_gone_ends(state_dir: Path) -> None:
    code = """
import os
from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.runners.channel import Sender
read, write = os.pipe()
os.close(read)
Sender(write, ()).write(OutputKind.STDOUT, "unheard")
print("still here")
"""
    ended = run_python(code, state_dir)
    assert (ended.returncode, ended.stdout) == (70, "")
