"""What processes wrote to files, as it stands while they live."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["written"]

_KINDS = (".log", ".out", ".err", ".json")


def written(*folders: Path) -> list[str]:
    """Return the texts of logs and documents below `folders`; no link is followed, what goes meanwhile is left out."""
    texts = []
    for folder in folders:
        for place, _, names in os.walk(folder):
            for path in (Path(place, name) for name in names if name.endswith(_KINDS)):
                if not path.is_symlink():
                    with suppress(FileNotFoundError):
                        texts.append(path.read_text(errors="replace"))
    return texts
