"""Settings: the source of each value, and the errors for invalid ones.

Every setting is a trait. ``%config`` takes precedence over the ``pyproject.toml`` next to the
notebook, that over ``ipython_config.py``, and that over the default: what is closer to the work
wins.

A project may be a stranger's, so its file may set only the traits with the metadata `of_project`.
None of them can run a program, send anything anywhere, or delete, rename or hide data of other
notebooks. A new setting is not one of them unless it says so.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitlets import Bool, Dict, Enum, Float, Int, List, TraitError
from traitlets.config import Config, Configurable
from traitlets.config.loader import (
    DeferredConfig,
    DeferredConfigList,
    DeferredConfigString,
    LazyConfigValue,
    PyFileConfigLoader,
)

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.ownership import NotBelieved, read_regular
from ipytaskpersist.base.paths import user_directory
from ipytaskpersist.errors import InvalidSetting, StoreError
from ipytaskpersist.session.notebook_identity import notebook_folder
from ipytaskpersist.session.project_file import TABLE, ProjectFile, find_project

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

NONE = "none"
"""Stands for None in ``pyproject.toml``, because TOML has no word for it."""
SHOWN_CHARACTERS = 60
PROBLEMS_SHOWN = 8
"""Number of mistakes of one file that are reported. A stranger's file may have a thousand."""
PROFILE_BYTES = 10_000_000
LARGEST_INTEGER = 2**63 - 1
"""Limit of TOML, and of the store's columns."""
DEFAULT = "default"
PROGRAM = "program"
COMMAND = "%config"

DIRECTORY, NOTEBOOK = "IPYTASKPERSIST_DIR", "IPYTASKPERSIST_NOTEBOOK"
WAIT_AT_EXIT = "IPYTASKPERSIST_WAIT_AT_EXIT"
VARIABLES = {
    DIRECTORY: "The state directory: the store, its archives and backups, and pickled values. "
    "Default: the user's state directory.",
    NOTEBOOK: "The notebook's path, for those in which the setting 'notebook' is empty. In a "
    "terminal: the notebook whose tasks the commands are about. Default: none.",
    WAIT_AT_EXIT: "Seconds for which a kernel that ends waits for its tasks in threads, if the "
    "setting 'wait_at_exit_s' is None. Default: none.",
}
"""The environment variables, and the meaning of each."""

_chosen: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
"""Values set by ``%config`` in a shell. Kept when the extension is reloaded."""


@dataclass(frozen=True, slots=True)
class SettingSource:
    """A place where settings are given."""

    source: str
    """Its value of `Setting.source`."""
    section: str
    """Beginning of messages about it."""
    is_toml: bool = False

    def unknown(self, name: str, known: Mapping[str, Any]) -> InvalidSetting:
        """Return the error for an unknown name."""
        near = difflib.get_close_matches(name[:SHOWN_CHARACTERS], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "the verb 'config' lists them"
        return InvalidSetting(f"{self.section} has no setting '{_cut(name)}'; {hint}")

    def not_of_a_project(self, name: str) -> InvalidSetting:
        """Return the error for a setting that a project may not make."""
        return InvalidSetting(
            f"{self.section} cannot set {name}: a project may be a stranger's; set it in "
            "ipython_config.py or with %config"
        )

    def notebook_elsewhere(self) -> InvalidSetting:
        """Return the error for a notebook outside the project."""
        return InvalidSetting(
            f"{self.section} cannot set notebook to what is not below the file's folder; set it in "
            "ipython_config.py or with %config"
        )

    def refused(self, name: str, value: Any, trait: Any) -> InvalidSetting:
        """Return the error for an invalid value."""
        given = f": {name} = " if self.is_toml else f".{name} = "
        return InvalidSetting(
            f"{self.section}{given}{self._shown(_harmless(trait, value))} is not allowed; "
            f"it must be {_allowed(trait, self.is_toml)}"
        )

    def _shown(self, value: Any) -> str:
        is_simple = isinstance(value, str | int | float)
        try:
            as_toml = self.is_toml and is_simple
            text = json.dumps(value, ensure_ascii=False) if as_toml else repr(value)
        except (ValueError, RecursionError):  # Python refuses to print a number of a million digits
            return "…"
        return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


AT_PROMPT = SettingSource(COMMAND, "BackgroundTasks")
IN_PROGRAM = SettingSource(PROGRAM, "BackgroundTasks")
IN_IPYTHON = SettingSource(
    # A refused value of %config is there too when the extension is loaded again.
    "ipython_config.py",
    "IPython's configuration (ipython_config.py or %config): BackgroundTasks",
)


def _in_file(file: Path) -> SettingSource:
    return SettingSource(f"ipython_config.py ({file})", f"{file}: BackgroundTasks")


def _in_pyproject(file: Path) -> SettingSource:
    return SettingSource(f"pyproject.toml ({file})", f"[tool.{TABLE}] in {file}", is_toml=True)


def _allowed(trait: Any, is_toml: bool) -> str:
    """Describe the values that a trait accepts."""
    none = "" if not trait.allow_none else f' or "{NONE}"' if is_toml else " or None"
    if isinstance(trait, Enum):
        return " or ".join(map(repr, trait.values or ())) + none
    if isinstance(trait, Bool):
        return ("true or false" if is_toml else "True or False") + none
    if isinstance(trait, Int | Float):
        kind = "a whole number" if isinstance(trait, Int) else "a number"
        return kind + ("" if trait.min in (None, -math.inf) else f" of at least {trait.min}") + none
    if isinstance(trait, NotifyTargets):
        return "a list of places, each 'desktop' or an address such as mailto://…"
    if isinstance(trait, Places):
        return "a dictionary of places by name, such as {'gpu1': {'kind': 'ssh', 'host': 'gpu1'}}"
    if isinstance(trait, Patterns):
        return "a list of texts, each a pattern of names such as '*_DSN'"
    return f"a text{none}"


class NotifyTargets(List):  # type: ignore[type-arg]
    """Places for notifications of ends. They are shown without their secrets."""

    def validate(self, obj: Any, value: Any) -> Any:
        """Accept only texts in the form of places."""
        found = super().validate(obj, value) or []
        if not found:
            return []
        from ipytaskpersist.base.notify_target import NotifyTarget
        from ipytaskpersist.notify.targets import looks_right

        if not all(isinstance(each, str) and looks_right(each) for each in found):
            raise TraitError("not a list of places")
        return [NotifyTarget(each) for each in found]


class Patterns(List):  # type: ignore[type-arg]
    """Patterns of names."""

    def validate(self, obj: Any, value: Any) -> Any:
        """Accept only non-empty texts."""
        found = super().validate(obj, value) or []
        if not all(isinstance(each, str) and each.strip() for each in found):
            raise TraitError("not a list of patterns")
        return found


class Places(Dict):
    """Other machines, by name, each with its kind and the settings of its kind."""

    def validate(self, obj: Any, value: Any) -> Any:
        """Accept only complete places. Raise `InvalidSetting`, which says what is wrong."""
        found = super().validate(obj, value) or {}
        from ipytaskpersist.places.connecting import check

        for name, spec in found.items():
            if not isinstance(spec, dict):
                raise TraitError("not a dictionary of places")
            check({**spec, "name": name})
        return found


def _harmless(trait: Any, value: Any) -> Any:
    """Return a value in a form that may be shown."""
    from ipytaskpersist.base.notify_target import masked

    if not isinstance(trait, NotifyTargets):
        return value
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, list | tuple):
        return [masked(each) if isinstance(each, str) else each for each in value]
    return value


def _is_no_number(value: Any) -> bool:
    """Return whether traitlets would wrongly accept it as a number: True is not one day."""
    if isinstance(value, int):
        return isinstance(value, bool) or abs(value) > LARGEST_INTEGER
    return isinstance(value, float) and not math.isfinite(value)


# Files.


def profile_file() -> Path:
    """Return the configuration file of IPython's default profile."""
    named = os.environ.get("IPYTHONDIR")
    folder = Path(named).expanduser() if named else Path.home() / ".ipython"
    return folder / "profile_default" / "ipython_config.py"


def read_profile(file: Path) -> Config:
    """Read an ``ipython_config.py``. Run it only if it mentions us.

    Raise `InvalidSetting` if it fails, or if it belongs to another user, as happens when a program
    of root's is given that user's ``$HOME``.
    """
    try:
        text, doubt = read_regular(file.resolve(), PROFILE_BYTES)
        if b"BackgroundTasks" not in text:
            return Config()
        if doubt:
            raise NotBelieved(doubt)
    except OSError:
        return Config()
    except NotBelieved as error:
        raise InvalidSetting(f"{file} is not believed, so it sets nothing: {error}") from None
    try:
        return PyFileConfigLoader(file.name, str(file.parent)).load_config()
    except Exception as error:  # it is a user's program, which may do anything
        raise InvalidSetting(
            f"{file} fails, so it sets nothing ({type(error).__name__}: {error})"
        ) from error


# The settings of a manager.


@dataclass(frozen=True, slots=True)
class Setting:
    """The current state of one setting."""

    name: str
    value: Any
    default: Any
    source: str
    """``default``, ``%config``, ``program``, an environment variable, or the file that sets it."""
    help: str

    @property
    def is_trait(self) -> bool:
        """Whether it is a trait; otherwise it is an environment variable."""
        return self.name not in VARIABLES

    def as_json(self) -> dict[str, Any]:
        """Return the document of `config --json`."""
        return {
            "name": self.name,
            "value": self.value,
            "default": self.default,
            "source": self.source,
            "help": self.help,
        }


def find_setting(settings: Sequence[Setting], name: str) -> Setting:
    """Return the setting of this name. Raise `InvalidSetting` with the nearest if there is none."""
    by_name = {setting.name: setting for setting in settings}
    if name not in by_name:
        raise AT_PROMPT.unknown(name, by_name)
    return by_name[name]


def _variable(name: str, default: str) -> Setting:
    """Return an environment variable, as it is in effect."""
    value = os.environ.get(name)
    return Setting(
        name, value or default, default, f"${name}" if value else DEFAULT, VARIABLES[name]
    )


def _usual_directory() -> str:
    """Return the default state directory; empty if there is no such place."""
    try:
        return str(user_directory())
    except StoreError:
        return ""


class Configured(Configurable):
    """Reads its traits from every place that may set them, and remembers which one did.

    A trait's metadata `takes_effect` says when a change at run time takes effect; without it the
    value is read whenever it is needed.
    """

    notebook: Any

    def __init__(self, shell: InteractiveShell | None = None, **options: Any) -> None:
        """`options` are traits, and `parent`, whose configuration is inherited.

        Mistakes in a file are not errors here: they are added to `setting_problems`.
        """
        self.shell = shell
        self.setting_problems: list[str] = []
        """Problems with the settings, one line each. The affected values were ignored."""
        self.project = ProjectFile(None)
        """The project's file, and the problems on the way to it."""
        self._sources: dict[str, str] = {}
        super().__init__(**options)
        if shell is None:
            self._read_profile()
        self._read_project()
        for name in set(options) & set(self.traits(config=True)):
            self._set(name, options[name], IN_PROGRAM)
        for name, value in _chosen.get(shell, {}).items() if shell is not None else ():
            self._set(name, value, AT_PROMPT)

    # traitlets calls this for IPython's configuration, and at every change of it.
    def _load_config(self, cfg: Config, section_names: Any = None, traits: Any = None) -> None:
        self._take(self._find_my_config(cfg), IN_IPYTHON)

    def update_config(self, config: Config) -> None:
        """Set the values of ``%config``. Raise `InvalidSetting`."""
        for name, value in _values(self._find_my_config(config)):
            self._set(name, value, AT_PROMPT)
            if self.shell is not None:
                _chosen.setdefault(self.shell, {})[name] = value
            when = self.traits()[name].metadata.get("takes_effect")
            if when:
                print(f"BackgroundTasks.{name} takes effect {when}", file=sys.stderr)

    def set_typed(self, name: str, words: Sequence[str]) -> None:
        """Set a value as it is typed, a list as several words. Raise `InvalidSetting`."""
        trait = self.traits(config=True)[name]
        typed: DeferredConfig = DeferredConfigList(words)
        if not isinstance(trait, List):
            text = " ".join(words)
            is_none = trait.allow_none and text.lower() == NONE
            typed = DeferredConfigString(None if is_none else text)
        if self.shell is None:
            self._set(name, typed, AT_PROMPT)
        else:
            self.update_config(Config({type(self).__name__: {name: typed}}))

    def _read_profile(self) -> None:
        try:
            file = profile_file()
            self._take(self._find_my_config(read_profile(file)), _in_file(file))
        except InvalidSetting as error:
            self.setting_problems.append(str(error))
        except RuntimeError:
            pass  # there is no home folder, and so no profile

    def _read_project(self) -> None:
        with suppress(FileNotFoundError):  # the working directory was deleted
            self.project = find_project(notebook_folder(self.shell, self.notebook))
        self.setting_problems.extend(self.project.problems)
        if self.project.file is not None:
            self._take(self.project.table, _in_pyproject(self.project.file))

    def _take(self, given: Mapping[str, Any], place: SettingSource) -> None:
        """Set the valid values, and remember the problems with the others."""
        problems = []
        for name, value in _values(given):
            try:
                self._set(name, value, place)
            except InvalidSetting as error:
                problems.append(str(error))
        more = len(problems) - PROBLEMS_SHOWN
        if more > 0:
            problems[PROBLEMS_SHOWN:] = [f"{place.section} has {more} more mistakes"]
        self.setting_problems.extend(problems)

    def _set(self, name: str, value: Any, place: SettingSource) -> None:
        traits = self.traits(config=True)
        if name not in traits:
            raise place.unknown(name, traits)
        trait = traits[name]
        if place.is_toml:
            value = self._of_project(name, value, trait, place)
        try:
            if isinstance(value, DeferredConfig):  # a text from IPython's command line
                value = value.get_value(trait)
            if isinstance(trait, Int | Float) and _is_no_number(value):
                raise place.refused(name, value, trait)
            setattr(self, name, value)
        except (TraitError, ValueError, TypeError):
            raise place.refused(name, value, trait) from None
        self._sources[name] = place.source

    def _of_project(self, name: str, value: Any, trait: Any, place: SettingSource) -> Any:
        """Interpret a value of a project's file. Raise `InvalidSetting` if it may not set it."""
        if not trait.metadata.get("of_project"):
            raise place.not_of_a_project(name)
        if isinstance(trait, Patterns) and isinstance(value, list):
            return [*value, *getattr(self, name)]  # it may add patterns, but not remove any
        if name == "notebook" and not self.project.has(value):
            # Under another notebook's name it could get that notebook's tasks cleared, deleted or
            # rerun.
            raise place.notebook_elsewhere()
        return None if trait.allow_none and value == NONE else value

    # Reporting.

    def say_setting_problems(self) -> None:
        """Report problems with the settings on standard error."""
        for problem in self.setting_problems:
            print(legible(problem), file=sys.stderr)

    def project_in_words(self) -> str:
        """Say which project file is in effect and what it changes; empty if nothing."""
        source = _in_pyproject(self.project.file).source if self.project.file else None
        changed = ", ".join(
            f"{each.name} = {_cut(repr(each.value))}"
            for each in self.settings()
            if each.source == source and each.value != each.default
        )
        return f"Settings of {self.project.file}: {changed}" if changed else ""

    def settings(self) -> list[Setting]:
        """Return the current state of every setting, followed by the environment variables."""
        traits = [self._setting(name) for name in sorted(self.traits(config=True))]
        return [
            *traits,
            _variable(DIRECTORY, _usual_directory()),
            _variable(NOTEBOOK, ""),
            _variable(WAIT_AT_EXIT, ""),
        ]

    def _setting(self, name: str) -> Setting:
        trait, value = self.traits()[name], getattr(self, name)
        default = trait.default()
        source = self._sources.get(name, DEFAULT if value == default else PROGRAM)
        return Setting(name, _harmless(trait, value), default, source, str(trait.help))


def _values(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values set in a section, without its subsections and lazily created values."""
    for name, value in given.items():
        if not isinstance(value, Config | LazyConfigValue):
            yield name, value
