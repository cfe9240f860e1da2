"""``python -m ipytaskpersist VERB`` and ``jupyter bg VERB``."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # The working directory, which ``python -m`` puts there: its files are no modules of ours.
    del sys.path[0]

import io
import os

import click

from ipytaskpersist import disks
from ipytaskpersist.commands import run, verbs
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.manager import BackgroundTasks, current
from ipytaskpersist.safetext import legible_lines
from ipytaskpersist.surfaces import Surface
from ipytaskpersist.views import for_shell

COMPLETE = "_JUPYTER_BG_COMPLETE"
"""Set by a shell's completion to what it wants to know."""


def complete(instruction: str) -> None:
    """Answer a shell that completes what is being typed, or print what makes it ask."""
    from click.shell_completion import shell_complete

    try:
        surface = Surface(BackgroundTasks())
        sys.exit(shell_complete(verbs, {"obj": surface}, "jupyter-bg", COMPLETE, instruction))
    except Exception:  # What is being typed may be wrong so far: the command will say it.
        sys.exit(1)


def main() -> None:
    """Run the command line, and exit with its status: 1 for an error, 2 for a wrong command."""
    if os.environ.get(COMPLETE):
        complete(os.environ[COMPLETE])
    try:
        run(sys.argv[1:], Surface(current()))
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(legible_lines(shown.getvalue().rstrip()), err=True)
        sys.exit(error.exit_code)
    except BackgroundError as error:
        print(f"jupyter bg: {for_shell(legible_lines(str(error)))}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # The reader, as in `jupyter bg output | head`, has seen enough. What is left in the
        # buffer goes nowhere, or the interpreter would complain about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if not disks.has_words(error):
            raise
        print(f"jupyter bg: {for_shell(legible_lines(str(disks.refusal(error))))}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
