"""Arrays and long texts are kept in files beside the pickle: once, and as they were signed."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_stored_payloads import TASK, a_task

from ipytaskpersist.base.buffer_names import cut_files
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import ResultRecord
from ipytaskpersist.errors import ResultUnavailable
from ipytaskpersist.store.statistics import repeated_bytes
from ipytaskpersist.values import mappings
from ipytaskpersist.values.buffers import BufferFiles
from ipytaskpersist.values.bundles import BundleWriter, entries_of
from ipytaskpersist.values.payloads import Payloads
from ipytaskpersist.values.pickling import Unpicklable

LENGTH = 100_000


@pytest.fixture
def payloads(state_dir: Path) -> Payloads:
    return Payloads(StateDirectory(state_dir))


def kept(payloads: Payloads, values: dict[str, Any], number: int = 1) -> dict[str, ResultRecord]:
    texts = dict.fromkeys(values, "its text")
    records = payloads.save_together(a_task(number).id, values, texts, {})
    assert [record.problem for record in records] == [None] * len(values)
    return {record.name: record for record in records}


def loaded(payloads: Payloads, records: dict[str, ResultRecord], number: int = 1) -> dict[str, Any]:
    kept_values = [*records.values()]
    return dict(payloads.load_all(a_task(number), kept_values).values)


def files(state_dir: Path) -> list[Path]:
    return sorted((state_dir / "buffers").iterdir())


VALUES: dict[str, Any] = {
    "array": np.arange(LENGTH),
    "columns": np.arange(LENGTH).reshape(100, -1).T,
    "strided": np.arange(LENGTH)[::2],
    "complex": np.ones((50, 50, 50), dtype=complex),
    "frame": pd.DataFrame({"a": np.arange(LENGTH), "b": np.ones(LENGTH), "c": ["x", "y"] * 50_000}),
    "objects": np.array([{}, [1], None] * 40_000, dtype=object),
    "few objects": np.array([[1], [2], None, "x"] * 5_000, dtype=object).reshape(100, -1),
    "words": np.array([f"word {n}" for n in range(20_000)], dtype=object).reshape(100, -1).T,
    "words and none": np.array([*map(str, range(19_999)), None], dtype=object),
    "separators": np.array([f"a\0{n}" for n in range(20_000)], dtype=object),
    "bytes": b"\0\x95" * LENGTH,
    "bytearray": bytearray(b"ab" * LENGTH),
    "text": "täxt" * LENGTH,
    "lone": "\ud800" * LENGTH,
    "nested": {"weights": [np.ones(LENGTH), np.zeros(3)], "names": ("n" * 70_000, b"short")},
    "memory": np.frombuffer(b"\1" * LENGTH, dtype=np.uint8),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_with_large_pieces_comes_back(payloads: Payloads, name: str) -> None:
    value = loaded(payloads, kept(payloads, {name: VALUES[name]}))[name]
    assert type(value) is type(VALUES[name])
    if isinstance(value, pd.DataFrame):
        pd.testing.assert_frame_equal(value, VALUES[name])
    elif isinstance(value, np.ndarray):
        np.testing.assert_array_equal(value, VALUES[name])
        assert value.flags.writeable == VALUES[name].flags.writeable
    else:
        assert str(value) == str(VALUES[name])


def test_the_pickle_stays_small(state_dir: Path, payloads: Payloads) -> None:
    records = kept(payloads, VALUES)
    (pickled,) = (state_dir / "payloads" / TASK.id).glob("*.pickle")
    of_objects = 2_500_000  # objects are in the pickle: they may run code
    assert pickled.stat().st_size < of_objects
    on_disk = sum(path.stat().st_size for path in pickled.parent.iterdir())
    assert 0 <= on_disk - sum(each.size_bytes or 0 for each in records.values()) < 5_000


def test_what_values_share_they_share_again_beside_one_that_fails(payloads: Payloads) -> None:
    """Also behind a value that cannot be loaded, with pieces of its own in the pickle."""
    shared = [np.arange(LENGTH), "long" * LENGTH]
    values = {"before": shared, "fails": [b"x" * LENGTH, Fails()], "after": [shared, {"k": 1}]}
    back = loaded(payloads, kept(payloads, values))
    assert isinstance(back["fails"], ResultUnavailable)
    assert back["after"][0] is back["before"]
    assert back["after"][1] == {"k": 1}


class Fails:
    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_objects_that_an_array_has_twice_are_one_object_again(payloads: Payloads) -> None:
    shared = [1]
    column = np.array([shared, "x", shared, {}] * 5_000, dtype=object)
    back = loaded(payloads, kept(payloads, {"column": column, "shared": shared}))
    assert back["column"][0] is back["column"][19_998] is back["shared"]


def test_only_text_and_data_leave_the_pickle(state_dir: Path, payloads: Payloads) -> None:
    """A frame of a pickle is as long: it is code, so it stays where it is signed."""
    file = io.BytesIO()
    writer = BundleWriter(file, BufferFiles(StateDirectory(state_dir)), None)
    writer.add("codes", [(number, str(number)) for number in range(100_000)])
    writer.add("text", "x" * LENGTH)
    writer.finish()
    codes, text = entries_of(file.getvalue())
    assert not codes.parts
    assert [part.size for part in text.parts] == [LENGTH]


@pytest.mark.parametrize("change", ["first byte", "last byte", "cut", "longer", "empty", "gone"])
def test_a_changed_file_is_an_error_with_its_name(
    state_dir: Path, payloads: Payloads, change: str
) -> None:
    records = kept(payloads, {"array": np.arange(LENGTH), "small": 1})
    (path,) = (state_dir / "payloads" / TASK.id).glob("*.buffers")
    data = path.read_bytes()
    changed = {
        "first byte": b"\1" + data[1:],
        "last byte": data[: LENGTH * 8 - 1] + b"\1" + data[LENGTH * 8 :],
        "cut": data[:-1],
        "longer": data + b"\0",
        "empty": b"",
    }
    path.chmod(0o600)
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(changed[change])
    back = loaded(payloads, records)
    assert back["small"] == 1
    assert isinstance(back["array"], ResultUnavailable)
    assert str(back["array"]).startswith("array of task 1 (train) was not loaded: its file")
    assert str(path) in str(back["array"])


def test_only_its_owner_reads_a_file_and_nothing_writes_it(
    state_dir: Path, payloads: Payloads
) -> None:
    kept(payloads, {"array": np.arange(LENGTH)})
    (path,) = files(state_dir)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400


def test_the_same_content_is_on_the_disk_once(state_dir: Path, payloads: Payloads) -> None:
    for number in range(1, 21):
        kept(payloads, {"array": np.arange(LENGTH), "number": number}, number)
    (path,) = files(state_dir)
    assert path.stat().st_nlink == 21
    assert repeated_bytes(StateDirectory(state_dir)) == 19 * path.stat().st_size
    for number in range(1, 20):
        payloads.delete(a_task(number).id)
    assert files(state_dir) == [path]
    payloads.delete(a_task(20).id)
    assert files(state_dir) == []


def test_a_file_system_without_hard_links_keeps_copies(
    state_dir: Path, payloads: Payloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_paths: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", link)
    (state_dir / "signing.key").parent.mkdir(mode=0o700)
    (state_dir / "signing.key").touch(mode=0o600)
    (state_dir / "signing.key").write_bytes(bytes(32))
    records = kept(payloads, {"array": np.arange(LENGTH)})
    first = loaded(payloads, records)["array"]
    again = kept(payloads, {"array": first}, 2)
    np.testing.assert_array_equal(loaded(payloads, again, 2)["array"], np.arange(LENGTH))


linux = pytest.mark.skipif(not Path(mappings.PAGEMAP).exists(), reason="only Linux tells")


@linux
def test_what_is_loaded_and_left_alone_is_not_written_again(
    state_dir: Path, payloads: Payloads
) -> None:
    array = loaded(payloads, kept(payloads, {"array": np.arange(LENGTH)}))["array"]
    again = kept(payloads, {"whole": array, "piece": array[:50_000]}, 2)
    assert len(files(state_dir)) == 1
    np.testing.assert_array_equal(loaded(payloads, again, 2)["piece"], np.arange(50_000))
    array[70_000] = -1
    changed = kept(payloads, {"whole": array, "piece": array[:50_000]}, 3)
    assert len(files(state_dir)) == 2
    assert loaded(payloads, changed, 3)["whole"][70_000] == -1
    assert loaded(payloads, again, 2)["whole"][70_000] == 70_000


def changed_in(state_dir: Path) -> list[Path]:
    """The changed files of this test: the process may have had others."""
    return [path for path in mappings.changed_files() if path.is_relative_to(state_dir)]


def test_a_loaded_array_outlives_its_file(state_dir: Path, payloads: Payloads) -> None:
    array = loaded(payloads, kept(payloads, {"array": np.arange(LENGTH)}))["array"]
    payloads.delete(TASK.id)
    assert files(state_dir) == []
    assert array.sum() == sum(range(LENGTH))
    assert changed_in(state_dir) == []


def test_a_file_that_is_written_while_it_is_mapped_is_found(
    state_dir: Path, payloads: Payloads
) -> None:
    records = kept(payloads, {"array": np.arange(LENGTH)})
    array = loaded(payloads, records)["array"]
    (path,) = (state_dir / "payloads" / TASK.id).glob("*.buffers")
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(b"other")
    assert changed_in(state_dir) == [path]
    assert cut_files(path.parent) == []
    os.truncate(path, 1000)
    assert cut_files(path.parent) == [path]
    del array


def test_nothing_is_left_of_a_copy_that_fails(state_dir: Path, payloads: Payloads) -> None:
    """Of two files that a value is in, the last is gone."""
    first = loaded(payloads, kept(payloads, {"array": np.arange(LENGTH)}))["array"]
    (name,) = [path.name for path in files(state_dir)]
    record = kept(payloads, {"first": first, "second": np.ones(LENGTH)}, 2)["second"]
    for path in state_dir.rglob("*.buffers"):
        if path.name != name:
            path.unlink()
    with pytest.raises(ResultUnavailable):
        payloads.copy(a_task(2), record)
    assert not [*(state_dir / "payloads").glob(".*")]


def test_a_change_is_found_after_the_array_is_gone(state_dir: Path, payloads: Payloads) -> None:
    """What was computed from it is still there. A file that was replaced is not the mapped one."""
    records = kept(payloads, {"array": np.arange(LENGTH)})
    array = loaded(payloads, records)["array"]
    (path,) = (state_dir / "payloads" / TASK.id).glob("*.buffers")
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)
    assert changed_in(state_dir) == []
    array = loaded(payloads, records)["array"]
    os.truncate(path, 1000)
    del array
    assert changed_in(state_dir) == [path]


def test_nothing_is_left_of_values_that_cannot_be_pickled(
    state_dir: Path, payloads: Payloads
) -> None:
    values = {"array": np.arange(LENGTH), "generator": (each for each in ())}
    records = payloads.save_together(TASK.id, values, dict.fromkeys(values, ""), {})
    assert [bool(record.problem) for record in records] == [False, True]
    assert not [*(state_dir / "payloads").glob(".*")]
    assert len([*(state_dir / "payloads" / TASK.id).iterdir()]) == 2
    payloads.delete(TASK.id)
    with pytest.raises(Unpicklable):
        payloads.prepare_inputs({}, values, {})
    assert files(state_dir) == []


def test_an_index_with_another_path_is_refused(state_dir: Path, payloads: Payloads) -> None:
    """It is signed, but what it says is checked all the same."""
    records = kept(payloads, {"array": np.arange(LENGTH)})
    (pickled,) = (state_dir / "payloads" / TASK.id).glob("*.pickle")
    data = pickled.read_bytes()
    end = len(data) - 8
    index = json.loads(data[end - int.from_bytes(data[end:], "little") : end])
    assert [len(part) for part in index["array"]["parts"]] == [5]
    with pytest.raises(ResultUnavailable):
        payloads.read_buffers(TASK, data.replace(b".buffers", b"../../x1"))
    assert loaded(payloads, records)["array"][7] == 7
