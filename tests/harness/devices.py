"""Devices that a test is made for: the same body runs on the CPU everywhere, and on CUDA where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

__all__ = ["DEVICES", "needs_gpus", "waiting_refused"]


def needs_gpus(count: int) -> list[pytest.MarkDecorator]:
    """Return the marks of a test that needs so many CUDA devices."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [pytest.mark.gpu, pytest.mark.skipif(found < count, reason=f"needs {count} CUDA devices, {found} are here")]


DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=needs_gpus(1))]


@contextmanager
def waiting_refused(device: torch.device) -> Iterator[None]:
    """Fail whatever makes the host wait for `device`; on the CPU nothing waits."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
