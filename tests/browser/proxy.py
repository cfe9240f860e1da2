"""A proxy between a browser and a server, which cuts connections in the middle."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Lock, Thread
from types import TracebackType

BLOCK = 1 << 16


class CuttingProxy:
    """Hands on what comes to `port`, both ways, until `cut` is called."""

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.cuts = 0
        self._ends: set[socket.socket] = set()
        self._lock = Lock()

    def __enter__(self) -> CuttingProxy:
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._listening.close()
        self.cut()

    def cut(self) -> None:
        """End every connection that there is, as a proxy does that is started anew."""
        with self._lock:
            ends, self._ends = self._ends, set()
        for end in ends:
            _close(end)
        self.cuts += 1

    @contextmanager
    def cutting(self, every_s: float) -> Iterator[None]:
        """Cut again and again meanwhile."""
        enough = Event()

        def cut() -> None:
            while not enough.wait(every_s):
                self.cut()

        thread = Thread(target=cut)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _address = self._listening.accept()
                there = socket.create_connection(self._target)
                with self._lock:
                    self._ends |= {here, there}
                for one, other in ((here, there), (there, here)):
                    Thread(target=self._hand_on, args=(one, other), daemon=True).start()

    def _hand_on(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while block := one.recv(BLOCK):
                other.sendall(block)
        _close(one)
        _close(other)
        with self._lock:
            self._ends -= {one, other}


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
