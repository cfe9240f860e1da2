"""What can go wrong, in words meant for the person who typed the command.

Every error of this package is a `BackgroundError`. Its message is one line: what happened, to
which task, and the next command to type. The commands show the message alone; a program catches
the class.
"""

from __future__ import annotations


class BackgroundError(Exception):
    """The base of every error that this package raises on purpose."""


class InvalidRequest(BackgroundError):
    """What was asked for makes no sense: an empty cell, an unknown state, a negative number."""


class InvalidSetting(BackgroundError):
    """A setting has a value that it cannot have, or there is none of that name."""


class TaskNotFound(BackgroundError, LookupError):
    """No task answers to the reference that was given."""


class AmbiguousReference(BackgroundError, LookupError):
    """Several tasks answer to the reference that was given."""


class ConfirmationNeeded(BackgroundError):
    """The command changes what it should not change by accident, and nobody said yes."""


class AlreadyRunAgain(BackgroundError):
    """The interrupted task that was to be resumed has been run again by somebody else."""


class TaskNotDone(BackgroundError):
    """The task has not ended, so what was asked for is not there yet."""


class TaskFailed(BackgroundError):
    """The task ended without completing, so it has no result."""


class ResultUnavailable(BackgroundError):
    """The task completed, but its value could not be kept or must not be loaded."""


class StoreError(BackgroundError):
    """The store cannot be opened, read or written."""


class StoreDamaged(StoreError):
    """The store's file is not what SQLite wrote."""


class StoreBusy(StoreError):
    """Another program held the store for longer than this one may wait."""


class StoreNewer(StoreError):
    """A newer version has brought the store up to date, and this one may not write it."""


class StoreUnwritable(StoreError):
    """The disk takes nothing more: it has no room, can only be read, or reports errors."""


class StoreFull(StoreUnwritable):
    """No room is left on the disk."""


class ForkedProcess(StoreError):
    """This process was forked from one that uses the store, and cannot use it itself."""

    def __init__(self) -> None:
        super().__init__(
            "this process was forked from one that uses the store, which only one side of a fork "
            "can go on with; start it with multiprocessing's 'spawn', or as a program of its own"
        )


class NoThread(BackgroundError):
    """No thread can be started for a task, because the machine's limit on processes is reached."""

    def __init__(self) -> None:
        super().__init__(
            "no thread can be started: the limit on the number of processes is reached, which "
            "counts threads; end some, or see ulimit -u, and run the cell again"
        )


class TaskExit(SystemExit):
    """A task's code has called ``exit()``: its end, which is not shown as an error."""


class TaskCancelled(BaseException):
    """Raised inside a background cell that was cancelled.

    A `BaseException`, so that the cell's own ``except Exception`` does not swallow it.
    """
