"""What ranks say to each other: one gather, one average. The same code runs on gloo and NCCL.

Everywhere in this package `group=None` means "this process alone", never "the default group".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup

__all__ = ["all_gather", "mean_flat_", "rank", "world_size"]


def world_size(group: ProcessGroup | None) -> int:
    """Return W, the number of ranks in `group`; 1 for None."""
    return 1 if group is None else dist.get_world_size(group)


def rank(group: ProcessGroup | None) -> int:
    """Return this process's place in `group`, 0..W-1; 0 for None."""
    return 0 if group is None else dist.get_rank(group)


def all_gather(tensor: Tensor, *, group: ProcessGroup | None) -> Tensor:
    """Return every rank's `tensor` as one stack `[W, *tensor.shape]`, in rank order.

    All ranks give the same shape and dtype. The result carries no gradient, and at W = 1 it
    shares memory with `tensor`.
    """
    tensor = tensor.detach()
    if group is None or world_size(group) == 1:
        return tensor.unsqueeze(0)
    gathered = tensor.new_empty((world_size(group) * tensor.numel(),))
    dist.all_gather_single(gathered, tensor.contiguous().view(-1), group=group)
    return gathered.view(-1, *tensor.shape)


def mean_flat_(tensors: Sequence[Tensor], *, group: ProcessGroup | None) -> None:
    """Replace each tensor by its mean over ranks, in ONE all-reduce; at W = 1 nothing is touched.

    The order of the sum depends on the sizes and on W alone, so a resumed run repeats it bit for
    bit (buckets that are rebuilt after the first step would not).

    Args:
        tensors: Gradients and scalars; the same shapes in the same order on every rank, on one
            device. Mixed float types are added up in the widest of them.
        group: The ranks to average over.

    Raises:
        ValueError: If a tensor is not of a real floating-point type.
    """
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise ValueError(f"only floating-point tensors have a mean over ranks, not {tensor.dtype}; cast it first")
    num_ranks = world_size(group)
    if num_ranks == 1 or not tensors:
        return
    with torch.no_grad():
        # `cat` takes elements in logical order, so ranks agree whatever the memory format
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat, group=group)
        flat.div_(num_ranks)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))
