"""Settings: where each value comes from, and what is said when one makes no sense.

Every setting is a trait. ``%config`` goes before the ``pyproject.toml`` next to the notebook, that
before ``ipython_config.py``, and that before the default: what is nearer to the work wins.

A project may be a stranger's, so its file may set only the traits that have the metadata
`of_project`. None of them can run a program, send anything anywhere, or delete, rename or hide what
belongs to other notebooks. A new setting is not one of them unless it says so.
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

from traitlets import Bool, Enum, Float, Int, List, TraitError
from traitlets.config import Config, Configurable
from traitlets.config.loader import DeferredConfig, LazyConfigValue, PyFileConfigLoader

from ipytaskpersist.errors import InvalidSetting, StoreError
from ipytaskpersist.identity import notebook_folder
from ipytaskpersist.ownership import NotBelieved, read_regular
from ipytaskpersist.paths import user_directory
from ipytaskpersist.projectfile import TABLE, ProjectFile, find_project
from ipytaskpersist.safetext import legible

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

NONE = "none"
"""How ``pyproject.toml`` says None, for which TOML has no word."""
SHOWN_CHARACTERS = 60
PROBLEMS_SHOWN = 8
"""How many mistakes of one file are said. A stranger's may have a thousand."""
PROFILE_BYTES = 10_000_000
LARGEST_INTEGER = 2**63 - 1
"""Of TOML, and of the store's columns."""
DEFAULT = "default"
PROGRAM = "program"
COMMAND = "%config"

DIRECTORY, NOTEBOOK = "IPYTASKPERSIST_DIR", "IPYTASKPERSIST_NOTEBOOK"
VARIABLES = {
    DIRECTORY: "The state directory: the store, its archives and backups, and pickled values. "
    "Default: the user's state directory.",
    NOTEBOOK: "The notebook's path, for those in which the setting 'notebook' is empty. In a "
    "terminal: the notebook whose tasks the commands are about. Default: none.",
}
"""The environment variables, and what each means."""

_chosen: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
"""What was set by ``%config`` in a shell. Kept when the extension is loaded anew."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where settings are given."""

    source: str
    """What `Setting.source` says of them."""
    section: str
    """How messages begin that are about one of them."""
    is_toml: bool = False

    def unknown(self, name: str, known: Mapping[str, Any]) -> InvalidSetting:
        """The error for a name that no setting has."""
        near = difflib.get_close_matches(name[:SHOWN_CHARACTERS], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "the verb 'config' lists them"
        return InvalidSetting(f"{self.section} has no setting '{_cut(name)}'; {hint}")

    def not_of_a_project(self, name: str) -> InvalidSetting:
        """The error for a setting that is not a project's to make."""
        return InvalidSetting(
            f"{self.section} cannot set {name}: a project may be a stranger's; set it in "
            "ipython_config.py or with %config"
        )

    def notebook_elsewhere(self) -> InvalidSetting:
        """The error for a notebook that is not one of the project's."""
        return InvalidSetting(
            f"{self.section} cannot set notebook to what is not below the file's folder; set it in "
            "ipython_config.py or with %config"
        )

    def refused(self, name: str, value: Any, trait: Any) -> InvalidSetting:
        """The error for a value that a setting cannot have."""
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
        except (ValueError, RecursionError):  # Python writes no number of a million digits
            return "…"
        return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


AT_PROMPT = Place(COMMAND, "BackgroundTasks")
IN_PROGRAM = Place(PROGRAM, "BackgroundTasks")
IN_IPYTHON = Place(
    # A value that %config was given and that was refused is there too when we are loaded again.
    "ipython_config.py",
    "IPython's configuration (ipython_config.py or %config): BackgroundTasks",
)


def _in_file(file: Path) -> Place:
    return Place(f"ipython_config.py ({file})", f"{file}: BackgroundTasks")


def _in_pyproject(file: Path) -> Place:
    return Place(f"pyproject.toml ({file})", f"[tool.{TABLE}] in {file}", is_toml=True)


def _allowed(trait: Any, is_toml: bool) -> str:
    """What a trait takes, in words."""
    none = "" if not trait.allow_none else f' or "{NONE}"' if is_toml else " or None"
    if isinstance(trait, Enum):
        return " or ".join(map(repr, trait.values or ())) + none
    if isinstance(trait, Bool):
        return ("true or false" if is_toml else "True or False") + none
    if isinstance(trait, Int | Float):
        kind = "a whole number" if isinstance(trait, Int) else "a number"
        return kind + ("" if trait.min in (None, -math.inf) else f" of at least {trait.min}") + none
    if isinstance(trait, Places):
        return "a list of places, each 'desktop' or an address such as mailto://…"
    if isinstance(trait, Patterns):
        return "a list of texts, each a pattern of names such as '*_DSN'"
    return f"a text{none}"


class Places(List):  # type: ignore[type-arg]
    """Places where the end of tasks is told. They are not shown with their secrets."""

    def validate(self, obj: Any, value: Any) -> Any:
        """Only texts that have the form of places."""
        found = super().validate(obj, value) or []
        if not found:
            return []
        from ipytaskpersist.places import Place as NotifyPlace
        from ipytaskpersist.places import looks_right

        if not all(isinstance(each, str) and looks_right(each) for each in found):
            raise TraitError("not a list of places")
        return [NotifyPlace(each) for each in found]


class Patterns(List):  # type: ignore[type-arg]
    """Patterns of names."""

    def validate(self, obj: Any, value: Any) -> Any:
        """Only texts that say something."""
        found = super().validate(obj, value) or []
        if not all(isinstance(each, str) and each.strip() for each in found):
            raise TraitError("not a list of patterns")
        return found


def _harmless(trait: Any, value: Any) -> Any:
    """A value as it may be shown."""
    from ipytaskpersist.places import masked

    if not isinstance(trait, Places):
        return value
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, list | tuple):
        return [masked(each) if isinstance(each, str) else each for each in value]
    return value


def _is_no_number(value: Any) -> bool:
    """What traitlets takes for a number, and nobody means as one: True is not one day."""
    if isinstance(value, int):
        return isinstance(value, bool) or abs(value) > LARGEST_INTEGER
    return isinstance(value, float) and not math.isfinite(value)


# Files.


def profile_file() -> Path:
    """The configuration of IPython's default profile."""
    named = os.environ.get("IPYTHONDIR")
    folder = Path(named).expanduser() if named else Path.home() / ".ipython"
    return folder / "profile_default" / "ipython_config.py"


def read_profile(file: Path) -> Config:
    """What an ``ipython_config.py`` says. Runs it, but only one that speaks of us.

    Raises `InvalidSetting` when it fails, or is another user's, as it is where a program of
    root's was given that user's ``$HOME``.
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
    except Exception as error:  # it is somebody's program, which may do anything
        raise InvalidSetting(
            f"{file} fails, so it sets nothing ({type(error).__name__}: {error})"
        ) from error


# The settings of a manager.


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as it is now."""

    name: str
    value: Any
    default: Any
    source: str
    """``default``, ``%config``, ``program``, an environment variable, or the file that sets it."""
    help: str

    @property
    def is_trait(self) -> bool:
        """Whether it is set like all others; else it is an environment variable."""
        return self.name not in VARIABLES

    def as_json(self) -> dict[str, Any]:
        """The document of `config --json`."""
        return {
            "name": self.name,
            "value": self.value,
            "default": self.default,
            "source": self.source,
            "help": self.help,
        }


def find_setting(settings: Sequence[Setting], name: str) -> Setting:
    """The one of this name. Raises `InvalidSetting` with the nearest when there is none."""
    by_name = {setting.name: setting for setting in settings}
    if name not in by_name:
        raise AT_PROMPT.unknown(name, by_name)
    return by_name[name]


def _variable(name: str, default: str) -> Setting:
    """An environment variable, as it is in effect."""
    value = os.environ.get(name)
    return Setting(
        name, value or default, default, f"${name}" if value else DEFAULT, VARIABLES[name]
    )


def _usual_directory() -> str:
    """Where the state directory is when nothing is set; empty where there is no such place."""
    try:
        return str(user_directory())
    except StoreError:
        return ""


class Configured(Configurable):
    """Reads its traits from every place where they may be set, and remembers which it was.

    A trait's metadata `takes_effect` says when a change takes effect that is made at run time;
    without it the value is read whenever it is needed.
    """

    notebook: Any

    def __init__(self, shell: InteractiveShell | None = None, **options: Any) -> None:
        """`options` are traits, and `parent`, whose configuration is taken over.

        Nothing that is wrong in a file is an error here: `setting_problems` has it.
        """
        self.shell = shell
        self.setting_problems: list[str] = []
        """What is wrong with the settings, one line each. It was left out."""
        self.project = ProjectFile(None)
        """The project's file, and what was found in its place."""
        self._sources: dict[str, str] = {}
        super().__init__(**options)
        if shell is None:
            self._read_profile()
        self._read_project()
        for name in set(options) & set(self.traits(config=True)):
            self._set(name, options[name], IN_PROGRAM)
        for name, value in _chosen.get(shell, {}).items() if shell is not None else ():
            self._set(name, value, AT_PROMPT)

    # traitlets calls this one for IPython's configuration, and at every change of it.
    def _load_config(self, cfg: Config, section_names: Any = None, traits: Any = None) -> None:
        self._take(self._find_my_config(cfg), IN_IPYTHON)

    def update_config(self, config: Config) -> None:
        """Set what ``%config`` was given. Raises `InvalidSetting`."""
        for name, value in _values(self._find_my_config(config)):
            self._set(name, value, AT_PROMPT)
            if self.shell is not None:
                _chosen.setdefault(self.shell, {})[name] = value
            when = self.traits()[name].metadata.get("takes_effect")
            if when:
                print(f"BackgroundTasks.{name} takes effect {when}", file=sys.stderr)

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

    def _take(self, given: Mapping[str, Any], place: Place) -> None:
        """Set what makes sense, and keep in mind what is wrong with the rest."""
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

    def _set(self, name: str, value: Any, place: Place) -> None:
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

    def _of_project(self, name: str, value: Any, trait: Any, place: Place) -> Any:
        """The value that a project's file means. Raises `InvalidSetting` where it may not."""
        if not trait.metadata.get("of_project"):
            raise place.not_of_a_project(name)
        if isinstance(trait, Patterns) and isinstance(value, list):
            return [*value, *getattr(self, name)]  # it may add to yours, and take none away
        if name == "notebook" and not self.project.has(value):
            # By another's name it could have that one's tasks cleared, deleted and run again.
            raise place.notebook_elsewhere()
        return None if trait.allow_none and value == NONE else value

    # Telling.

    def say_setting_problems(self) -> None:
        """Say on standard error what is wrong with the settings."""
        for problem in self.setting_problems:
            print(legible(problem), file=sys.stderr)

    def project_in_words(self) -> str:
        """Which project's file is in effect, and what it changes; empty when it changes nothing."""
        source = _in_pyproject(self.project.file).source if self.project.file else None
        changed = ", ".join(
            f"{each.name} = {_cut(repr(each.value))}"
            for each in self.settings()
            if each.source == source and each.value != each.default
        )
        return f"Settings of {self.project.file}: {changed}" if changed else ""

    def settings(self) -> list[Setting]:
        """Every setting as it is now, and at last the environment variables."""
        traits = [self._setting(name) for name in sorted(self.traits(config=True))]
        return [*traits, _variable(DIRECTORY, _usual_directory()), _variable(NOTEBOOK, "")]

    def _setting(self, name: str) -> Setting:
        trait, value = self.traits()[name], getattr(self, name)
        default = trait.default()
        source = self._sources.get(name, DEFAULT if value == default else PROGRAM)
        return Setting(name, _harmless(trait, value), default, source, str(trait.help))


def _values(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is set in a section: not what is a section of it, nor what was only looked at."""
    for name, value in given.items():
        if not isinstance(value, Config | LazyConfigValue):
            yield name, value
