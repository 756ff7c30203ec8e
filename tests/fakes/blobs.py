"""A real directory storage that can be taken away."""

from __future__ import annotations

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
