"""The way of tensors from the host to a device, on which nothing waits."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["to_device"]


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return a host tensor on `device`, as `dtype` if one is given; itself where nothing changes.

    To an accelerator the copy starts from pinned memory and joins the device's queue: a plain `.to`
    would first wait for all that was queued before it.
    """
    tensor = tensor.to(dtype or tensor.dtype)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
