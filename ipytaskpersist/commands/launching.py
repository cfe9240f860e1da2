"""What launches tasks: ``%%background`` itself."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ipytaskpersist.commands.definition import HELP


@click.command(context_settings=HELP)
@click.argument("name", nargs=-1)
def background(name: Sequence[str]) -> None:
    """Run a cell in the background: %%background [NAME] above its code.

    The cell runs in a thread that shares the notebook's variables, and shows a card with its
    state. The name is optional; %bg_list, %bg_output and the others take it or the number.
    %background EXPRESSION runs one line.
    """
