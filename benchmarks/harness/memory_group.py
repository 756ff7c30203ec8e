"""A control group whose processes may take so much memory and no more, page cache included; root makes one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["MemoryGroup", "memory_group"]

_ROOTS: Final = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
# One name a version of control groups, 2 and 1.
_LIMIT: Final = ("memory.max", "memory.limit_in_bytes")
_SWAP: Final = ("memory.swap.max", "memory.swappiness")
_PEAK: Final = ("memory.peak", "memory.max_usage_in_bytes")
_END_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class MemoryGroup:
    """A group as its folder shows it."""

    folder: Path

    def join(self) -> None:
        """Move this process into it; what it starts from now on is in it, too."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def words(self, command: Sequence[str]) -> list[str]:
        """Return the words that run a command in it."""
        return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.folder), *command]

    @property
    def peak_bytes(self) -> int:
        """Return the most memory that was ever taken."""
        return int(self._file(_PEAK).read_text())

    @property
    def times_full(self) -> int:
        """Return how often something had to be given up before something else could be taken."""
        if (self.folder / "memory.failcnt").exists():
            return int((self.folder / "memory.failcnt").read_text())
        return int(dict(line.split() for line in (self.folder / "memory.events").read_text().splitlines())["max"])

    def limit(self, limit_bytes: int) -> None:
        """Allow so much, and no swap."""
        self._file(_LIMIT).write_text(str(limit_bytes))
        for name in _SWAP:
            if (self.folder / name).exists():  # not where the kernel counts no swap
                (self.folder / name).write_text("0")

    def _file(self, names: Sequence[str]) -> Path:
        return next(path for name in names if (path := self.folder / name).exists())


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup | None]:
    """Yield a group that may take so much, or None where none can be made; its processes have ended when it does."""
    group = next(filter(None, map(_made, _ROOTS)), None)
    if group is None:
        yield None
        return
    try:
        group.limit(limit_bytes)
        yield group
    finally:
        deadline_s = time.monotonic() + _END_TIMEOUT_S
        while (group.folder / "cgroup.procs").read_text() and time.monotonic() < deadline_s:
            time.sleep(0.1)  # between two looks, bounded by the deadline
        group.folder.rmdir()


def _made(root: Path) -> MemoryGroup | None:
    folder = root / f"simclr-{os.getpid()}-{time.monotonic_ns()}"
    try:
        folder.mkdir()
    except OSError:
        return None
    if any((folder / name).exists() for name in _LIMIT):  # the kernel makes it, where the group can limit memory
        return MemoryGroup(folder)
    folder.rmdir()
    return None
