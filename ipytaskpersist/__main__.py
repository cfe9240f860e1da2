"""``python -m ipytaskpersist VERB`` and ``jupyter bg VERB``."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # Drop the working directory, which ``python -m`` adds: its files must not shadow modules.
    del sys.path[0]

import io
import os

import click

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.legible import legible_lines
from ipytaskpersist.commands.definition import run, verbs
from ipytaskpersist.commands.surfaces import Surface
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.session.manager import BackgroundTasks, current
from ipytaskpersist.text.formatting import for_shell

COMPLETE = "_JUPYTER_BG_COMPLETE"
"""Set by a shell's completion to the instruction for `complete`."""


def complete(instruction: str) -> None:
    """Answer a shell that completes a command line, or print the script that sets completion up."""
    from click.shell_completion import shell_complete

    try:
        surface = Surface(BackgroundTasks())
        sys.exit(shell_complete(verbs, {"obj": surface}, "jupyter-bg", COMPLETE, instruction))
    except Exception:  # An incomplete line may be invalid; the command will report it.
        sys.exit(1)


def main() -> None:
    """Run the command line, and exit with its status: 1 for an error, 2 for wrong usage."""
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
        # The reader has closed the pipe, as in `jupyter bg output | head`. Discard the rest of the
        # buffer, or the interpreter would complain about it on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if not disk_errors.has_words(error):
            raise
        print(
            f"jupyter bg: {for_shell(legible_lines(str(disk_errors.refusal(error))))}",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
