"""The errors of this package, worded for the person who typed the command.

Every error is a `BackgroundError`. Its message is one line: what happened, to which task, and the
next command to type. Commands show only the message; a program catches the class.
"""

from __future__ import annotations


class BackgroundError(Exception):
    """Base of every error that this package raises deliberately."""


class InvalidRequest(BackgroundError):
    """The request makes no sense: an empty cell, an unknown state, a negative number."""


class NamesMissing(InvalidRequest):
    """The task would use variables that this kernel does not have."""


class InvalidSetting(BackgroundError):
    """A setting has an invalid value, or there is no setting of that name."""


class TaskNotFound(BackgroundError, LookupError):
    """No task matches the given reference."""


class AmbiguousReference(BackgroundError, LookupError):
    """Several tasks match the given reference."""


class ConfirmationNeeded(BackgroundError):
    """The command could do harm by accident, and was not confirmed."""


class AlreadyRunAgain(BackgroundError):
    """The interrupted task has already been run again elsewhere."""


class AlreadyLaunched(BackgroundError):
    """Another process has just launched the task with this key."""


class TaskNotDone(BackgroundError):
    """The task has not ended, so the requested data does not exist yet."""


class TaskFailed(BackgroundError):
    """The task ended without completing, so it has no result."""


class ResultUnavailable(BackgroundError):
    """The task completed, but its value could not be kept or must not be loaded."""


class PlaceNotTrusted(ResultUnavailable):
    """The value comes from a place whose values are not loaded without the user's word."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why
        """Why, without the name of the value: it is the same for all that come from there."""


class StoreError(BackgroundError):
    """The store cannot be opened, read or written."""


class StoreDamaged(StoreError):
    """The store's file is not what SQLite wrote."""


class StoreBusy(StoreError):
    """Another program has held the store for longer than this one may wait."""


class StoreNewer(StoreError):
    """A newer version has updated the store, and this version may not write to it."""


class StoreUnwritable(StoreError):
    """The disk accepts no more data: it is full, read-only, or reports errors."""


class StoreFull(StoreUnwritable):
    """No room is left on the disk."""


class ForkedProcess(StoreError):
    """This process was forked from one that uses the store, and cannot use the store itself."""

    def __init__(self) -> None:
        super().__init__(
            "this process was forked from one that uses the store, which only one side of a fork "
            "can go on with; start it with multiprocessing's 'spawn', or as a program of its own"
        )


class NoThread(BackgroundError):
    """No thread can be started for a task: the machine's limit on processes is reached."""

    def __init__(self) -> None:
        super().__init__(
            "no thread can be started: the limit on the number of processes is reached, which "
            "counts threads; end some, or see ulimit -u, and run the cell again"
        )


class TaskExit(SystemExit):
    """A task's code has called ``exit()``. This ends the task, and is not shown as an error."""


class TaskCancelled(BaseException):
    """Raised inside a background cell that is being cancelled.

    A `BaseException`, so that the cell's own ``except Exception`` does not swallow it.
    """
