"""The surfaces on which commands show their output: a terminal, or a notebook's cell."""

from __future__ import annotations

import codecs
import contextlib
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import click

from ipytaskpersist.base.legible import encodable, legible, legible_lines
from ipytaskpersist.base.records import OutputKind, TaskRecord
from ipytaskpersist.base.widget_marks import model_of
from ipytaskpersist.commands import pacing
from ipytaskpersist.commands.pacing import Pace
from ipytaskpersist.display import console, double_runs, revived_widgets
from ipytaskpersist.display.card_content import CardReader
from ipytaskpersist.display.listing import Listing, list_html
from ipytaskpersist.display.status_card import bundle, cards_text
from ipytaskpersist.errors import ConfirmationNeeded, InvalidRequest
from ipytaskpersist.output.replay import Output, with_kept
from ipytaskpersist.running.running_task import active_task
from ipytaskpersist.session.cell_runs import also_running
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.text import formatting
from ipytaskpersist.text.terminal_filter import TerminalFilter

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ipytaskpersist.display.search_results import Shown
    from ipytaskpersist.session.launcher import Launched

UPDATE_S = 1.0
ANSI = re.compile(r"\x1b\[[0-9;]*m")
LINE_AT_MOST = 400


class Surface:
    """A terminal. The base class, because every surface can at least print."""

    is_ipython = False
    has_exit_status = True
    """Whether a command that fails can say so by its exit status alone."""
    loads_values = True
    """Whether a result may be loaded here. Loading a pickle runs its code."""

    def __init__(self, manager: BackgroundTasks) -> None:
        self.manager = manager
        self._passage: TerminalFilter | None = None
        self._widget_texts: dict[str, str] = {}
        """Last shown text of each widget of the followed task, by model id."""

    def run_there(self, target: str, arguments: Sequence[str]) -> int:
        """Run a command line on another machine. Return its exit status."""
        from ipytaskpersist.places.second_client import run_there

        if self.is_ipython:
            line = shlex.join(["jupyter", "bg", "--at", target, *arguments])
            raise InvalidRequest(f"--at works in a terminal, and in a cell as !{line}")
        return run_there(
            target,
            arguments,
            self.manager.places,
            self.manager.store.directory.root,
            is_terminal=sys.stdin.isatty() and sys.stdout.isatty(),
        )

    def listing(self, listing: Listing) -> None:
        """Show a list of tasks."""
        from ipytaskpersist.display.tables import render, task_table

        click.echo(render(*task_table(listing)))

    def ends_shown(self, tasks: Iterable[TaskRecord]) -> None:
        """Note the tasks whose end has been shown, so that the next prompt need not report it."""
        ended = (task.key for task in tasks if task.state.is_final and not task.archive)
        self.manager.ends_shown.update(ended)

    def found(self, shown: Shown) -> None:
        """Show the results of a search."""
        from ipytaskpersist.display.search_results import found_table
        from ipytaskpersist.display.tables import render

        click.echo(render(*found_table(shown)))

    def come_to(self, launched: Launched, source: str) -> None:
        """Show what the launch of a source has come to."""
        if launched.is_new:
            self.replaced(launched.replaced)
            self.launched(launched.task)
        else:
            self.attached(launched.task, source)

    def launched(self, task: TaskRecord) -> None:
        """Show a task that was just launched."""
        click.echo(self.in_words(formatting.launched_text(task)))
        earlier = also_running(self.manager.store, task)
        if earlier:
            words = double_runs.in_words(task, earlier, formatting.utc_now())
            click.echo(self.in_words(words), err=True)

    def attached(self, task: TaskRecord, source: str) -> None:
        """Show the task that runs already, instead of one that would be launched."""
        words = double_runs.attached(task, source, formatting.utc_now())
        click.echo(f"{self.in_words(words)}   {formatting.next_commands(task)}")

    def replaced(self, tasks: Sequence[TaskRecord]) -> None:
        """Report the tasks that were to end before another one was launched."""
        for task in tasks:
            click.echo(double_runs.replaced(task, self.manager.tasks.refresh(task)))

    def output(self, output: Output) -> None:
        """Show one output of a task: stdout to stdout, stderr and errors to stderr."""
        if output["output_type"] == "stream":
            stream = sys.stdout if output["name"] == "stdout" else sys.stderr
            stream.write(encodable(self._let_through(output["text"], stream), stream))
            stream.flush()
        elif output["output_type"] == "error":
            self._print("\n".join(output["traceback"]), sys.stderr)
        elif "data" in output:
            shown = output["data"].get("text/plain", f"<{', '.join(output['data'])}>")
            if model := model_of(output["data"]):
                self._widget_texts[model] = str(shown)
            self._print(str(shown), sys.stdout)

    def kept(self, model: str, data: dict[str, Any]) -> None:
        """Show the current content of a widget that was displayed before."""
        text = data.get("text/plain", "")
        if self._widget_texts.get(model) != text:
            self._widget_texts[model] = text
            self._print(text, sys.stdout)

    def _print(self, text: str, stream: Any) -> None:
        text = (
            self._let_through(text, stream) if console.is_terminal(stream) else ANSI.sub("", text)
        )
        print(encodable(text, stream), file=stream, flush=True)

    def _let_through(self, text: str, stream: Any) -> str:
        """Return the part of a task's text that a terminal may get. Other streams get all of it."""
        if not console.is_terminal(stream):
            return text
        if self._passage is None:
            styled = console.has_styles(stream)
            self._passage = TerminalFilter(styled=styled, moving=console.can_move())
        return self._passage.let_through(text, str(stream is sys.stderr))

    def end_of_output(self) -> None:
        """Restore the terminal after a task's output has been shown."""
        if self._passage is not None:
            stream = sys.stdout if console.is_terminal(sys.stdout) else sys.stderr
            stream.write(self._passage.finish())
            stream.flush()

    def clear_output(self, wait: bool) -> None:
        """Clear what was shown. A terminal keeps it."""

    def raw(self, pieces: Iterable[bytes]) -> None:
        """Write bytes exactly as they are."""
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()

    def document(self, text: str) -> None:
        """Show a JSON document."""
        click.echo(text)

    def waiting(self) -> Waiting:
        """Return the display of the tasks that a command waits for."""
        return TerminalWaiting(self.manager, self.in_words)

    def in_words(self, text: str) -> str:
        """Return a text with its commands as they are typed here."""
        return formatting.for_shell(legible_lines(text))

    def confirm(self, question: str, hint: str) -> None:
        """Return if the user types yes; raise `ConfirmationNeeded` otherwise."""
        if not sys.stdin or not sys.stdin.isatty():
            raise ConfirmationNeeded(f"nothing was changed: {hint}")
        # Not the prompt of `input`, which does not check for an interrupt that came before.
        print(f"{legible(question)} Type 'yes' to confirm: ", end="", flush=True)
        try:
            answer = input()
        except EOFError:
            print()
            answer = ""
        self._require_yes(answer, hint)

    @staticmethod
    def _require_yes(answer: str, hint: str) -> None:
        if answer.strip().lower() != "yes":
            raise ConfirmationNeeded(f"nothing was changed: {hint}")

    def value(self, value: Any) -> Any:
        """Show a result. IPython shows the return value."""
        if value is not None:
            from pprint import pformat

            text = pformat(value) if not isinstance(value, str) else value
            click.echo(encodable(self._let_through(text, sys.stdout), sys.stdout))
            self.end_of_output()
        return None

    def exit(self, code: int) -> None:
        """Exit with this status, if the surface has one."""
        raise click.exceptions.Exit(code)


class IPythonSurface(Surface):
    """The IPython terminal."""

    is_ipython = True
    has_exit_status = False

    def __init__(self, manager: BackgroundTasks, shell: InteractiveShell) -> None:
        super().__init__(manager)
        self.shell = shell

    def value(self, value: Any) -> Any:
        return value

    def in_words(self, text: str) -> str:
        return legible_lines(text)

    def confirm(self, question: str, hint: str) -> None:
        from IPython.core.error import StdinNotImplementedError

        try:
            answer = input(f"{legible(question)} Type 'yes' to confirm: ")
        except (StdinNotImplementedError, EOFError):
            raise ConfirmationNeeded(f"nothing was changed: {hint}") from None
        self._require_yes(answer, hint)

    def exit(self, code: int) -> None:
        """Do nothing: a cell has no exit status."""


class NotebookSurface(IPythonSurface):
    """A cell of a notebook."""

    def __init__(
        self,
        manager: BackgroundTasks,
        shell: InteractiveShell,
        show_card: Callable[[TaskRecord], None],
        pace: Pace,
    ) -> None:
        super().__init__(manager, shell)
        self._show_card = show_card
        self._pace = pace
        self._stand_ins: dict[str, Output] = {}
        """Displays of other kernels' widgets, by model id."""

    def launched(self, task: TaskRecord) -> None:
        self._show_card(task)

    def attached(self, task: TaskRecord, source: str) -> None:
        click.echo(double_runs.attached(task, source, formatting.utc_now()))
        self._show_card(task)

    def listing(self, listing: Listing) -> None:
        from ipytaskpersist.display.tables import render, task_table

        text = render(*task_table(listing, UTC), plain=True)
        self._publish({"text/html": list_html(listing), "text/plain": text})

    def found(self, shown: Shown) -> None:
        from ipytaskpersist.display.search_results import found_html, found_table
        from ipytaskpersist.display.tables import render

        text = render(*found_table(shown), plain=True)
        self._publish({"text/html": found_html(shown), "text/plain": text})

    def output(self, output: Output) -> None:
        """Pass the output to the front end unchanged: nbclient and nbconvert see its real kind.

        The exception is the view of a widget that this kernel does not have.
        """
        inside = output.get("inside")
        if inside is not None and revived_widgets.can_be_shown(inside):
            return  # the widget shows it
        output = self._shown_here(output)
        kind = output["output_type"]
        if kind == "stream":
            stream, other = sys.stdout, sys.stderr
            if output["name"] == "stderr":
                stream, other = other, stream
            other.flush()
            self._write(stream, output["text"])
        elif kind == "display_data":
            self._publish(output["data"], output["metadata"], output.get("transient"))
        else:
            kept = output.keys() - {"output_type", "inside"}
            content = {key: value for key, value in output.items() if key in kept}
            self._send(kind, content)

    def _shown_here(self, output: Output) -> Output:
        model = model_of(output.get("data", {}))
        if model is None:
            return output
        if output["output_type"] == "display_data" and not revived_widgets.is_alive(model):
            # An id makes it updatable, as the widget itself would be.
            transient = output.get("transient") or {"display_id": uuid4().hex}
            output = self._stand_ins[model] = {**output, "transient": transient}
        return revived_widgets.as_shown_here(output)

    def kept(self, model: str, data: dict[str, Any]) -> None:
        if model in self._stand_ins:
            self.update(revived_widgets.as_shown_here(with_kept(self._stand_ins[model], data)))

    def update(self, output: Output) -> None:
        """Update a display that was shown before."""
        self._keep_pace()
        self.shell.display_pub.publish(
            output["data"], output["metadata"], transient=output["transient"], update=True
        )

    def _publish(self, data: Any, metadata: Any = None, transient: Any = None) -> None:
        self._keep_pace()
        self.shell.display_pub.publish(data, metadata, transient=transient)

    def _send(self, kind: str, content: dict[str, Any]) -> None:
        task = active_task.get()
        if task is not None:
            task.recording.add(OutputKind(kind), content)
            return
        self._keep_pace()
        sys.stdout.flush()
        sys.stderr.flush()
        hook: Any = self.shell.displayhook
        if kind == "execute_result":
            content["execution_count"] = hook.prompt_count
        hook.session.send(
            hook.pub_socket, kind, content, parent=hook.parent_header, ident=kind.encode()
        )

    def clear_output(self, wait: bool) -> None:
        self.shell.display_pub.clear_output(wait)

    def raw(self, pieces: Iterable[bytes]) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for piece in pieces:
            self._write(sys.stdout, decoder.decode(piece))
        self._write(sys.stdout, decoder.decode(b"", final=True))

    def document(self, text: str) -> None:
        self._write(sys.stdout, f"{text}\n")

    def _write(self, stream: Any, text: str) -> None:
        for piece in pacing.pieces(text):
            self._keep_pace(piece)
            stream.write(piece)

    def _keep_pace(self, text: str = "") -> None:
        if active_task.get() is None:  # a task's output goes to the store
            self._pace.keep(text)

    def waiting(self) -> Waiting:
        return NotebookWaiting(self.manager, self.shell)


class Waiting:
    """Shows tasks while a command waits for them."""

    def show(self, tasks: Sequence[TaskRecord]) -> None:
        """Show their current state."""

    def close(self) -> None:
        """End the display."""


class TerminalWaiting(Waiting):
    """A line on stderr that overwrites itself, followed by the final state of each task."""

    def __init__(self, manager: BackgroundTasks, in_words: Callable[[str], str]) -> None:
        self._manager = manager
        self._in_words = in_words
        self._live = console.is_terminal(sys.stderr) and console.can_move()
        self._tasks: Sequence[TaskRecord] = ()

    def show(self, tasks: Sequence[TaskRecord]) -> None:
        self._tasks = tasks
        if self._live:
            text = " · ".join(
                f"{task.label} {task.state.value} "
                + formatting.duration(task.elapsed_s(formatting.utc_now()))
                + (f" {task.last_line}" if task.last_line else "")
                for task in tasks
            )
            from ipytaskpersist.display.tables import fit

            line = fit(legible(formatting.shorten(text, LINE_AT_MOST)), self._width())
            print(f"\r\x1b[K{encodable(line, sys.stderr)}", end="", file=sys.stderr, flush=True)

    @staticmethod
    def _width() -> int:
        # Some terminals begin a new line in the last column.
        return console.width(sys.stderr) - 1

    def close(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        if self._tasks:
            now = formatting.utc_now()
            text = cards_text([CardReader(self._manager).read(task, now) for task in self._tasks])
            print(self._in_words(text), file=sys.stderr)


class NotebookWaiting(Waiting):
    """Status cards that are updated in place."""

    def __init__(self, manager: BackgroundTasks, shell: InteractiveShell) -> None:
        self._manager = manager
        self._shell = shell
        self._display_id = uuid4().hex
        self._readers: dict[str, CardReader] = {}
        self._shown: object = None
        self._shown_at = -UPDATE_S

    def show(self, tasks: Sequence[TaskRecord]) -> None:
        # If only the clock has changed, redraw at most this often.
        if self._shown == tasks and time.monotonic() - self._shown_at < UPDATE_S:
            return
        cards = [self._reader(task).read(task, formatting.utc_now()) for task in tasks]
        self._shell.display_pub.publish(
            bundle(cards),
            transient={"display_id": self._display_id},
            update=self._shown is not None,
        )
        self._shown, self._shown_at = tasks, time.monotonic()

    def _reader(self, task: TaskRecord) -> CardReader:
        return self._readers.setdefault(task.id, CardReader(self._manager))


@contextlib.contextmanager
def stopped_by_interrupt(message: str) -> Any:
    """Turn an interrupt into the end of the command, and say what it did not end."""
    try:
        yield
    except KeyboardInterrupt:
        print(message, file=sys.stderr)
