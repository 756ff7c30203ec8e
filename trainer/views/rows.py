"""Rows: some of the views of a block, changed where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainer.transfer import to_device

__all__ = ["Rows", "changed", "put_", "rows_where"]

Rows = slice | Tensor  # int64 on the CPU
LARGE = 1 << 12  # pixels; of fewer, a call for each costs more than it saves


def rows_where(is_chosen: Sequence[bool]) -> Rows:
    """Return what selects the chosen views; neighbours are selected without a copy."""
    views = [view for view, chosen in enumerate(is_chosen) if chosen]
    if not views:
        return slice(0, 0)
    first, last = views[0], views[-1]
    return slice(first, last + 1) if last - first == len(views) - 1 else torch.tensor(views)


def put_(target_MHW: Tensor, rows_K: Tensor, images_KHW: Tensor) -> None:
    """Write images to rows of `target_MHW`: its `index_copy_`, which takes three times as long for large ones."""
    num_pixels = images_KHW.shape[1] * images_KHW.shape[2]
    if images_KHW.device.type == "cpu" and num_pixels >= LARGE and target_MHW.stride(2) == 1:
        for row, image_HW in zip(rows_K.tolist(), images_KHW, strict=True):
            target_MHW[row].copy_(image_HW)
    else:
        target_MHW.index_copy_(0, to_device(rows_K, target_MHW.device), images_KHW)


def changed(planes_CMHW: Tensor, rows: Rows, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the views with some replaced by what `change` makes of them; all may be overwritten."""
    if isinstance(rows, Tensor):
        device_rows = to_device(rows, planes_CMHW.device)
        return planes_CMHW.index_copy_(1, device_rows, change(planes_CMHW.index_select(1, device_rows)))
    if rows.start == rows.stop:
        return planes_CMHW
    some_CMHW = planes_CMHW[:, rows]
    changed_CMHW = change(some_CMHW)
    if len(some_CMHW[0]) == len(planes_CMHW[0]):
        return changed_CMHW
    if changed_CMHW is not some_CMHW:
        some_CMHW.copy_(changed_CMHW)
    return planes_CMHW
