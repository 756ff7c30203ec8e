"""What a worker may still take: the memory of its GPU, or of its machine and container."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import torch

__all__ = ["free_memory_bytes"]

_ROOT: Final = Path("/")


def free_memory_bytes(device: torch.device) -> int:
    """Return the bytes that this process could still take on `device` without being refused or killed.

    On CUDA, what the device has free and what torch keeps there unused. Else the least of what the
    machine has and what each control group around this process leaves it; pages that the kernel
    can drop count as free, and so does what this process itself holds on to but has freed.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    _give_back_freed_heap()
    return min([psutil.virtual_memory().available, *_left_by_groups(_ROOT)])


def _give_back_freed_heap() -> None:
    """Let go of what malloc keeps for later: after another trial in this process it would count as used."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # of glibc alone
        trim(0)


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yield what each limited control group around this process has left, versions 1 and 2."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        own = mount / path.lstrip("/")
        # in a container's own name space the path is that of the host, and its group is the mount itself
        for group in {own, *(parent for parent in own.parents if parent.is_relative_to(mount)), mount}:
            limit, used = (_read(group / name).strip() for name in names)
            if limit.isdecimal() and used.isdecimal():
                yield max(0, int(limit) - int(used) + _droppable(group / "memory.stat"))


def _droppable(stat: Path) -> int:
    """Return the bytes of file pages that nobody used lately: the kernel drops them before it refuses memory."""
    facts = dict(line.split() for line in _read(stat).splitlines())
    return int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:  # no such group, or none that may be read: it limits nothing that can be known
        return ""
