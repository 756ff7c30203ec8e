"""Real directory storages that can be taken away, or held."""

from __future__ import annotations

import threading
from pathlib import Path

from trainer.storage import DirectoryStorage


class LosableStorage(DirectoryStorage):
    is_down = False

    def _path(self, key: str) -> Path:
        self._answer()
        return super()._path(key)

    def list(self, prefix: str) -> list[str]:
        self._answer()
        return super().list(prefix)

    def _answer(self) -> None:
        if self.is_down:
            raise OSError("storage does not answer")


class HeldStorage(DirectoryStorage):
    """A storage in which writes wait to be let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.let_go = threading.Event()

    def write(self, key: str, data: bytes) -> None:
        self.let_go.wait()
        super().write(key, data)
