"""What the task of a whole notebook is asked to run, as its process reads it from its input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PYTHON = "python"


@dataclass(frozen=True, slots=True)
class NotebookRun:
    """One run of a whole notebook."""

    path: str
    """The notebook, which is only read."""
    kernel: str
    """Name of the kernelspec that runs it."""
    language: str
    """The kernel's language, as its kernelspec names it."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Values that JSON has, by the names of the variables that they are assigned to."""
    output: str = ""
    """Where the executed notebook is saved; empty for beside the notebook, under the task's id."""
    resumes: str = ""
    """The saved notebook of the run that this one resumes; empty to run all cells."""
    tries: Sequence[str] = ()
    """Ids of the earlier tries of the task. The store adds to them for each new one."""

    def saved_as(self, task_id: str) -> Path:
        """Return where the executed notebook is saved."""
        path = Path(self.path)
        return Path(self.output) if self.output else path.with_name(f"{path.stem}-{task_id}.ipynb")

    @property
    def goes_on_from(self) -> str:
        """The saved notebook of the latest try that has left one, else of what this run resumes."""
        saved = map(self.saved_as, reversed(self.tries))
        return next((str(path) for path in saved if path.is_file()), self.resumes)

    @property
    def is_python(self) -> bool:
        """Whether the notebook's language is Python."""
        return self.language.lower() == PYTHON

    def as_json(self) -> str:
        """Return the run as its process reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> NotebookRun:
        """Return the run that `as_json` wrote."""
        return cls(**json.loads(text))
