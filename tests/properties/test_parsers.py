"""Whatever is typed, set or found in a file: it is understood, or refused in one line."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from traitlets.config import Config

from ipytaskpersist.base.legible import legible_lines
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.errors import BackgroundError, InvalidRequest, InvalidSetting
from ipytaskpersist.history import fields, search_query, text_search
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.history.output_reading import output_of
from ipytaskpersist.history.task_reading import session_of, task_of
from ipytaskpersist.notify import targets
from ipytaskpersist.session import finding, settings
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection
from ipytaskpersist.text import durations
from properties.profiles import tried
from properties.texts import any_text, json_values
from properties.world import folder

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
NAMES = ("train", "-3", "7", "größe", "\\x00", "a'b", "x%_", "0000")


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with folder() as root:
        yield root


@pytest.fixture(scope="module")
def store(root: Path) -> Iterator[TaskStore]:
    """A store with a few tasks."""
    with closing(TaskStore(StateDirectory(root)).open()) as store:
        process = ProcessIdentity.own()
        session = store.sessions.begin(
            SessionIdentity("00ab12cd-s", "kernel", str(root / "a.ipynb"), True, None, process)
        )
        for name in NAMES:
            new = NewTask(session.notebook_key, session.id, name, "python", "thread", "print(1)")
            task = store.tasks.insert(new)
            store.tasks.start(task.key, 0)
            row = NewOutput(task.key, OutputKind.STDOUT, 0, f"{name} loss 0.125\n".encode())
            store.outputs.append([row.as_row()])
        yield store


def assert_one_line(error: BackgroundError, *given: str) -> None:
    """A line, but where what was typed has several, and is shown."""
    assert str(error)
    assert legible_lines(str(error)).count("\n") <= "".join(given).count("\n"), str(error)


# Times.


@tried(90)
@given(any_text | st.builds("{}{}".format, st.floats(), st.sampled_from("smhdw")))
def test_a_time_is_understood_or_refused(text: str) -> None:
    with suppress(InvalidRequest):
        assert 0 <= durations.parse_age(text) < math.inf
    with suppress(InvalidRequest):
        assert durations.parse_since(text, NOW).tzinfo is not None


@tried(40)
@given(st.integers(0, 10**6), st.sampled_from("smhdw"), st.sampled_from(["", " "]))
def test_an_age_is_its_number_of_units(count: int, unit: str, blank: str) -> None:
    seconds = {"s": 1, "m": 60, "h": 60 * 60, "d": 24 * 3600, "w": 7 * 24 * 3600}[unit]
    assert durations.parse_age(f" {count}{blank}{unit.upper()}") == count * seconds
    since = durations.parse_since(f"{min(count, 1000)}{unit}", NOW)
    assert (NOW - since).total_seconds() == min(count, 1000) * seconds


@tried(40)
@given(st.floats(-62e9, 253e9).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)))
def test_an_iso_date_is_that_moment(moment: datetime) -> None:
    assert durations.parse_since(f" {moment.isoformat()} ", NOW) == moment


# References.


typed = st.one_of(
    any_text,
    st.sampled_from(["1", "00ab12cd-1", "00ab12cd", "00a", "-1", *NAMES]),
    st.text("0123456789-ab", max_size=20),
    st.integers(-(10**18), 10**18).map(str),
)


@tried(90)
@given(reference=typed)
@example(reference="\udcff")
@example(reference="9" * 5000)
def test_a_reference_means_a_task_or_nothing(store: TaskStore, reference: str) -> None:
    key = store.sessions.notebooks()[0].key
    text = reference.strip()
    try:
        found = finding.find(store, key, reference)
    except BackgroundError as error:
        assert text not in NAMES
        assert_one_line(error, reference)
    else:
        assert (
            text in (found.name, found.id, str(found.number))
            or text.lstrip("0") == str(found.number)
            or found.id.startswith(text)
            or text.startswith("-")
        )
    for look in (
        lambda: finding.find_archived(store, key, reference),
        lambda: finding.find_session(store, reference),
        lambda: finding.session_meant(store, reference),
        lambda: store.tasks.named(key, reference, 5),
        lambda: store.tasks.tags(reference, 5),
        lambda: store.sessions.beginning(reference, 5),
    ):
        try:
            look()
        except BackgroundError as error:
            assert_one_line(error, reference)


@tried(40)
@given(tags=st.lists(any_text, max_size=3))
def test_tags_are_kept_as_they_are_or_refused(store: TaskStore, tags: list[str]) -> None:
    task = store.tasks.select(Selection())[0]
    try:
        finding.check_tags(tags)
    except InvalidRequest as error:
        assert_one_line(error)
        return
    store.tasks.tag(task.key, tags, task.tags)
    found = store.tasks.get(task.key)
    assert found is not None
    assert set(found.tags) == set(tags) - (set(task.tags) - set(tags))
    store.tasks.tag(task.key, [], found.tags)


# Searching.

asked = st.sampled_from(["loss", '"loss 0.125"', "tr*", "*", '"', "größe"])


@tried(40)
@given(arguments=st.lists(any_text | asked, max_size=4))
@example(arguments=['" AND NEAR(x) OR *'])
def test_whatever_is_searched_for_is_searched_or_refused(
    store: TaskStore, arguments: list[str]
) -> None:
    with closing(Archives(store)) as archives:
        try:
            query = search_query.parse(arguments)
            found = text_search.search(
                store, archives, query, search_query.Scope(), lambda _done, _total: None
            )
        except BackgroundError as error:
            assert_one_line(error)
            return
    for hit in found.hits:
        for snippet in hit.snippets:
            assert all(0 <= begin <= end <= len(snippet.text) for begin, end in snippet.matches)


@tried(40)
@given(notebook=any_text)
@example(notebook="~\0")
@example(notebook="~nobody-has-this-name")
def test_a_search_in_a_notebook_that_there_is_not_says_so(store: TaskStore, notebook: str) -> None:
    scope = search_query.Scope(notebook=notebook)
    with closing(Archives(store)) as archives:
        try:
            text_search.search(
                store, archives, search_query.parse(["loss"]), scope, lambda _done, _total: None
            )
        except BackgroundError as error:
            assert_one_line(error, notebook)


# Settings.

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    any_text,
    st.sampled_from(["none", "thread", "process", "full", "desktop", "mailto://a:b@c"]),
    st.lists(any_text | st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
known = sorted(set(BackgroundTasks.class_traits(config=True)))
setting_names = st.sampled_from(known) | st.text(max_size=8)


@pytest.fixture
def _own_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTASKPERSIST_DIR", str(root))
    monkeypatch.setenv("IPYTHONDIR", str(root / "ipython"))
    monkeypatch.chdir(root)


@tried(40)
@given(name=setting_names, value=values)
@pytest.mark.usefixtures("_own_folders")
def test_a_setting_is_taken_or_refused(name: str, value: Any) -> None:
    """At the prompt, from a program and from a file it is the same that is taken."""
    manager = BackgroundTasks(None)
    try:
        manager.update_config(Config({"BackgroundTasks": {name: value}}))
        is_taken = True
    except InvalidSetting as error:
        is_taken = False
        assert_one_line(error, name)
    other = BackgroundTasks(None, config=Config({"BackgroundTasks": {name: value}}))
    assert bool(other.setting_problems) is not is_taken
    for problem in other.setting_problems:
        assert problem.count("\n") <= name.count("\n")
        assert name != "notify" or "a:b@" not in problem
    for setting in other.settings():
        setting.as_json()


toml_values = st.sampled_from(
    ["1", "-1", "true", '"none"', "nan", "inf", "[]", "{}", "1979-05-27", "''", '["desktop"]',
     '"thread"', "1e400", "0x10", '"\\u0000"']
)  # fmt: skip
toml_lines = st.lists(
    st.one_of(
        any_text.filter(lambda text: "\ud800" not in text),
        st.builds("{} = {}".format, st.sampled_from(known), toml_values),
    ),
    max_size=5,
)


@tried(50)
@given(lines=toml_lines)
@pytest.mark.usefixtures("_own_folders")
def test_any_pyproject_is_read_or_complained_about(root: Path, lines: list[str]) -> None:
    text = "[tool.ipytaskpersist]\n" + "\n".join(lines)
    file = root / "pyproject.toml"
    file.write_bytes(text.encode("utf-8", "replace"))
    try:
        manager = BackgroundTasks(None, notebook=str(root / "a.ipynb"))
        for problem in manager.setting_problems:
            assert problem.count("\n") <= "".join(lines).count("\n"), problem
        try:
            tomllib.loads(file.read_bytes().decode())
        except ValueError:
            assert manager.setting_problems
    finally:
        file.unlink()


@tried(40)
@given(settings_name=any_text)
def test_a_setting_of_no_name_that_is_known_is_refused(settings_name: str) -> None:
    with pytest.raises(InvalidSetting):
        settings.find_setting([], settings_name)


# Places.


@tried(50)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=3, max_size=8),
       st.sampled_from(["mailto", "json", "slack", "x-y"]), any_text)  # fmt: skip
def test_a_password_in_a_place_is_never_shown(secret: str, schema: str, more: str) -> None:
    secret = f"s3cr3t{secret}"
    for place in (
        f"{schema}://ada:{secret}@host/{more}",
        f"{schema}://{secret}",
        f"{more}:{secret}",
    ):
        if not (place.startswith(("mailto://", "json://")) and "@" not in place):
            assert secret not in targets.masked(place) or more.startswith(secret)
        assert targets.masked(place) is not None


# Files.

SESSION = {
    "id": "s-1", "notebook": {"uid": "0" * 8, "path": "/a", "last_number": 1, "created_at": 0.5},
    "path": "/a", "has_path": True, "kernel_uuid": None, "front_end": "kernel", "host": "h",
    "pid": 1, "process_start": "1", "boot_id": "b", "started_at": 1.0, "heartbeat_at": 1.0,
    "ended_at": None, "end_reason": None,
}  # fmt: skip
TASK = {
    "id": "s-1", "number": 1, "session": "s-1", "name": "", "kind": "python", "runner": "thread",
    "state": "completed", "reason": None, "exit_code": 0, "created_at": 1.0, "started_at": 1.0,
    "ended_at": 2.0, "cancel_requested_at": None, "cleared_at": None, "cell_id": None,
    "execution_count": 1, "source": "1", "is_call": False, "max_output_bytes": None,
    "dropped_bytes": 0, "provenance": {}, "tags": [], "history": [{"state": "pending", "at": 1.0}],
    "progress": {"done": 1, "total": None, "text": ""}, "process": None, "post_mortem": None,
}  # fmt: skip
OUTPUT = {
    "kind": "display_data",
    "at": 1.0,
    "content": {"data": {"text/plain": "1"}, "metadata": {}},
}
RECORDS = (
    (session_of, SESSION),
    (task_of, TASK),
    (output_of, OUTPUT),
)


@tried(90)
@given(st.sampled_from(RECORDS), st.integers(0, 30), json_values)
def test_a_record_with_anything_in_it_is_read_or_refused(
    record: Any, member: int, value: Any
) -> None:
    read, document = record
    read(document, "")
    name = sorted(document)[member % len(document)]
    for changed in ({**document, name: value}, value):
        try:
            read(changed, "")
        except fields.InvalidRecord as error:
            assert_one_line(error)


@tried(40)
@given(st.binary(max_size=60) | any_text.map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_are_json_or_refused(data: bytes) -> None:
    try:
        fields.parsed(data)
    except fields.InvalidRecord as error:
        assert_one_line(error)
