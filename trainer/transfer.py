"""The way of tensors from the host to a device, on which nothing waits."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["to_device"]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor on `device`; itself where that is the host.

    On CUDA the copy starts from pinned memory and joins the device's queue: a plain `.to` would
    first wait for all that was queued before it.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
