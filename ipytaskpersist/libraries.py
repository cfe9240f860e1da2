"""How the settings that libraries keep for a process, or for a thread, are read and written.

Each library that can be asked for its settings has an entry in `LIBRARIES`, by the module with
which they come.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ipytaskpersist.secretnames import is_secret

Settings = dict[str, Any]
GONE = "<not set>"
"""Stands for a setting that is not there, as a variable of the environment may be."""


@dataclass(frozen=True, slots=True)
class Library:
    """How the settings of a library are read and written."""

    shown: str
    """How a message calls it."""
    read: Callable[[Any], Settings]
    """Its settings, from its module."""
    write: Callable[[Any, Settings], None]
    """Changes some of them."""
    is_of_thread: bool = False
    """Whether it keeps them for each thread apart, and not for the process."""
    is_added_to: bool = False
    """Whether its settings are lists to which cells and libraries add, each on its side."""


def _read_pandas(pandas: Any) -> Settings:
    return _flat(object.__getattribute__(pandas.options, "d"))


def _flat(options: Mapping[str, Any], before: str = "") -> Settings:
    found: Settings = {}
    for name, value in options.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[before + name] = value
    return found


def _write_pandas(pandas: Any, settings: Settings) -> None:
    for name, value in settings.items():
        pandas.set_option(name, value)


OF_A_PROCESS = ("backend", "backend_fallback", "interactive", "toolbar")
"""What of matplotlib's settings says where it shows figures, which is not the same elsewhere."""


def _read_matplotlib(matplotlib: Any) -> Settings:
    # A copy, because to read the backend from the original is to choose one.
    settings = dict(matplotlib.rcParams.copy())
    return {name: value for name, value in settings.items() if name not in OF_A_PROCESS}


def _write_matplotlib(matplotlib: Any, settings: Settings) -> None:
    matplotlib.rcParams.update(settings)


INLINE = ("figure_formats", "print_figure_kwargs", "close_figures", "rc")


def _inline(module: Any) -> Any:
    """The settings of the backend, which may be made before the backend is there."""
    shell = sys.modules["IPython.core.getipython"].get_ipython()
    return module.InlineBackend.instance(parent=shell)


def _read_inline(module: Any) -> Settings:
    backend = _inline(module)
    return {name: getattr(backend, name) for name in INLINE}


def _write_inline(module: Any, settings: Settings) -> None:
    for name, value in settings.items():
        setattr(_inline(module), name, value)


def _read_numpy(numpy: Any) -> Settings:
    return {**numpy.get_printoptions(), **{f"err.{k}": v for k, v in numpy.geterr().items()}}


def _write_numpy(numpy: Any, settings: Settings) -> None:
    errors = {name[4:]: value for name, value in settings.items() if name.startswith("err.")}
    printing = {name: value for name, value in settings.items() if not name.startswith("err.")}
    numpy.seterr(**errors)
    if printing:
        numpy.set_printoptions(**printing)


DECIMAL = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")


def _read_decimal(decimal: Any) -> Settings:
    context = decimal.getcontext()
    traps = {signal for signal, is_trapped in context.traps.items() if is_trapped}
    return {**{name: getattr(context, name) for name in DECIMAL}, "traps": traps}


def _write_decimal(decimal: Any, settings: Settings) -> None:
    context = decimal.getcontext().copy()
    for name, value in settings.items():
        if name == "traps":
            context.traps.update({signal: signal in value for signal in context.traps})
        else:
            setattr(context, name, value)
    decimal.setcontext(context)


def _read_sklearn(sklearn: Any) -> Settings:
    settings: Settings = sklearn.get_config()
    return settings


def _write_sklearn(sklearn: Any, settings: Settings) -> None:
    sklearn.set_config(**settings)


def _read_ipython(module: Any) -> Settings:
    shell = module.get_ipython()
    text = shell.display_formatter.formatters["text/plain"]
    return {
        "ast_node_interactivity": shell.ast_node_interactivity,
        "xmode": shell.InteractiveTB.mode,
        "precision": text.float_precision,
        "pprint": text.pprint,
        **_configured(shell.config),
    }


def _configured(config: Mapping[str, Any]) -> Settings:
    """What ``%config`` and configuration files have set, but for what may be secret."""
    return {
        f"{section}.{name}": value
        for section, settings in config.items()
        if isinstance(settings, dict)
        for name, value in settings.items()
        if name != "notify" and not is_secret(name)
    }


def _write_ipython(module: Any, settings: Settings) -> None:
    shell = module.get_ipython()
    text = shell.display_formatter.formatters["text/plain"]
    for name, value in settings.items():
        if "." in name:
            _configure(shell, name, value)
        elif name == "ast_node_interactivity":
            shell.ast_node_interactivity = value
        elif name == "xmode":
            shell.InteractiveTB.set_mode(mode=value)
        else:
            setattr(text, {"precision": "float_precision"}.get(name, name), value)


def _configure(shell: Any, trait: str, value: Any) -> None:
    """Set ``Class.trait`` as ``%config`` does: in what is there, and for what is made later."""
    from traitlets.config import Config

    section, _, name = trait.partition(".")
    change = Config({section: {name: value}})
    for configurable in shell.configurables:
        configurable.update_config(change)


def _read_warnings(warnings: Any) -> Settings:
    return {"filters": list(warnings.filters)}


def _write_warnings(warnings: Any, settings: Settings) -> None:
    warnings.filters[:] = settings["filters"]
    warnings._filters_mutated()


def _read_path(_sys: Any) -> Settings:
    return {"path": list(sys.path)}


def _write_path(_sys: Any, settings: Settings) -> None:
    sys.path[:] = settings["path"]


def _read_environment(_os: Any) -> Settings:
    """The environment. Of a secret it tells only whether it is another one than before."""
    return {name: hash(value) if is_secret(name) else value for name, value in os.environ.items()}


def _write_environment(_os: Any, settings: Settings) -> None:
    for name, value in settings.items():
        if value == GONE:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


LIBRARIES = {
    "pandas": Library("pandas", _read_pandas, _write_pandas),
    "matplotlib": Library("matplotlib", _read_matplotlib, _write_matplotlib),
    "matplotlib_inline.config": Library("InlineBackend", _read_inline, _write_inline),
    "numpy": Library("numpy", _read_numpy, _write_numpy),
    "decimal": Library("decimal", _read_decimal, _write_decimal),
    "sklearn": Library("scikit-learn", _read_sklearn, _write_sklearn, is_of_thread=True),
    "IPython.core.getipython": Library("IPython", _read_ipython, _write_ipython),
    "warnings": Library("warnings", _read_warnings, _write_warnings, is_added_to=True),
    "sys": Library("sys", _read_path, _write_path, is_added_to=True),
    "os": Library("os.environ", _read_environment, _write_environment),
}


def read(name: str) -> Settings:
    """The settings of a library that is imported. None where its version keeps them otherwise."""
    try:
        return LIBRARIES[name].read(sys.modules[name])
    except Exception:
        return {}


def write(name: str, settings: Settings) -> None:
    """Change settings of a library that is imported, as far as its version knows them."""
    for setting, value in settings.items():
        with suppress(Exception):  # one that it does not know loses no other
            LIBRARIES[name].write(sys.modules[name], {setting: value})
