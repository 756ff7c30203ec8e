"""A way to an HTTP server that can fail: a TCP proxy that refuses, holds back, or breaks off in the middle."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from typing import Final, Self

__all__ = ["WeakLink"]

_CHUNK_BYTES: Final = 2**16
_REQUEST: Final = re.compile(rb"(GET|PUT|POST|HEAD|DELETE) \S+ HTTP/1\.1\r\n")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_HEAD_END: Final = b"\r\n\r\n"


class WeakLink:
    """While entered, what goes to `address` goes on to `target`, unless the link is told to fail."""

    def __init__(self, target: tuple[str, int], *, host: str = "127.0.0.1") -> None:
        self.requests: list[str] = []  # the first line of each that came
        self._target = target
        self._listener = socket.create_server((host, 0), backlog=128)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._is_up = True
        self._flows = threading.Event()
        self._flows.set()
        self._torn: str | None = None
        self._open: set[socket.socket] = set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="weak-link", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._break_all()

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Close every connection, and each new one at once."""
        self._is_up = False
        self._break_all()
        try:
            yield
        finally:
            self._is_up = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold back what is sent, as a server does that does not answer; it arrives afterwards."""
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    @contextlib.contextmanager
    def tearing(self, word: str) -> Iterator[None]:
        """Break off every request with `word` in its first line in the middle of its body."""
        self._torn = word
        try:
            yield
        finally:
            self._torn = None

    def _break_all(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return  # the listener is closed
            if self._is_up:
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()
            else:
                client.close()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server, contextlib.suppress(OSError):
            self._open |= {client, server}
            threading.Thread(target=_pump, args=(server, client), daemon=True).start()
            self._carry(client, server)
            for end in (client, server):
                end.shutdown(socket.SHUT_RDWR)
        self._open -= {client, server}

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        rest: int | None = None  # bytes that yet pass of a request that is torn
        while chunk := client.recv(_CHUNK_BYTES):
            self._flows.wait()
            if found := _REQUEST.match(chunk):
                line = found.group().decode().strip()
                self.requests.append(line)
                if self._torn is not None and self._torn in line and (length := _LENGTH.search(chunk)):
                    rest = chunk.index(_HEAD_END) + len(_HEAD_END) + int(length[1]) // 2
            server.sendall(chunk if rest is None else chunk[:rest])
            if rest is not None and (rest := rest - len(chunk)) <= 0:
                return


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(_CHUNK_BYTES):
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_RDWR)
