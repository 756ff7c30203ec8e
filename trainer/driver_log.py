"""The driver's log, kept in storage: Ray's copy dies with the head."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from types import TracebackType
from typing import Self

from trainer.storage import Storage

__all__ = ["DriverLog"]

KEEP_BYTES = 1_000_000  # the newest; a runaway log must not fill storage
WRITE_EVERY_S = 5.0


class DriverLog:
    """While entered, what this process and its workers print also goes to a storage blob."""

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage = storage
        self._key = key
        self._lines: deque[bytes] = deque()
        self._size_bytes = 0
        self._lock = threading.Lock()
        self._is_closed = threading.Event()

    def __enter__(self) -> Self:
        sys.stdout.flush()
        sys.stderr.flush()
        self._original = (os.dup(1), os.dup(2))
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(writer)
        self._pump = threading.Thread(target=self._copy_lines, args=(reader,), name="driver-log", daemon=True)
        self._pump.start()
        self._saver = threading.Thread(target=self._save_regularly, name="driver-log-save", daemon=True)
        self._saver.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for original, number in zip(self._original, (1, 2), strict=True):
            os.dup2(original, number)  # closes the pipe's last write ends, which ends the pump
        self._pump.join(timeout=5)  # a child that outlives us may hold the pipe open
        self._is_closed.set()
        self._saver.join()

    def _copy_lines(self, reader: int) -> None:
        with os.fdopen(reader, "rb") as pipe:
            for line in pipe:
                os.write(self._original[0], line)
                with self._lock:
                    self._lines.append(line)
                    self._size_bytes += len(line)
                    while self._size_bytes > KEEP_BYTES:
                        self._size_bytes -= len(self._lines.popleft())

    def _save_regularly(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._is_closed.wait(WRITE_EVERY_S)
            with self._lock:
                data = b"".join(self._lines)
            try:
                self._storage.write(self._key, data)
            except OSError as error:
                os.write(self._original[1], f"driver log not saved: {error}\n".encode())
