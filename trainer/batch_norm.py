"""Batch norm over the global batch, so that the number of ranks changes nothing (SimCLR, section 2.2).

On CUDA this is torch's SyncBatchNorm. It refuses CPU tensors, so there the ranks exchange their
statistics here: one gather a layer in forward, one in backward, summed in rank order. Mean and
variance travel, not sums of squares, which cancel in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.collectives import all_gather, world_size

__all__ = ["GlobalBatchNorm", "globalize_batch_norm", "running_statistics_frozen"]

_STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_BUFFERS = _STATE[2:]


def globalize_batch_norm(module: nn.Module, *, group: ProcessGroup | None) -> nn.Module:
    """Return `module` with every BatchNorm1d and BatchNorm2d made global over `group`, in place.

    Parameters and buffers stay the same objects under the same names, so an optimiser made before
    and a state dict fit after. At W = 1 torch's own layers stay; in eval mode the global ones do
    what torch's do. A `module` that is itself a batch norm is replaced in the return value.
    """
    if group is None or world_size(group) == 1:
        return module
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return _global_from(module, group)
    for name, child in module.named_children():
        setattr(module, name, globalize_batch_norm(child, group=group))
    return module


@contextmanager
def running_statistics_frozen(module: nn.Module) -> Iterator[None]:
    """Let batch norms in `module` compute as ever but forget what they would add to their buffers.

    For the recomputation of activation checkpointing, which sees a batch for the second time:
    `checkpoint(block, x, use_reentrant=False,
    context_fn=lambda: (nullcontext(), running_statistics_frozen(block)))`.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    kept = [(norm, name, getattr(norm, name)) for norm in norms for name in _BUFFERS]
    try:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer.clone())
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)


class GlobalBatchNorm(nn.SyncBatchNorm):
    """Batch norm with the statistics of all ranks of `process_group`; input `[B, C, ...]`, any float type."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """Return the normalised input; in training the running statistics move as torch's do."""
        if input.is_cuda or not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        output, mean_C, var_C, count = _GlobalNorm.apply(input, self.weight, self.bias, self.eps, self.process_group)
        if self.track_running_stats:
            self._move_running_statistics(mean_C, var_C, int(count))
        return output  # type: ignore[no-any-return]

    @torch.no_grad()
    def _move_running_statistics(self, mean_C: Tensor, var_C: Tensor, count: int) -> None:
        tracked, mean, var = self.num_batches_tracked, self.running_mean, self.running_var
        assert tracked is not None and mean is not None and var is not None  # noqa: S101, PT018 - for the type checker
        tracked.add_(1)
        momentum = 1.0 / float(tracked) if self.momentum is None else self.momentum
        mean.mul_(1 - momentum).add_(mean_C, alpha=momentum)
        var.mul_(1 - momentum).add_(var_C, alpha=momentum * count / (count - 1))


def _global_from(norm: _BatchNorm, group: ProcessGroup) -> GlobalBatchNorm:
    replacement = GlobalBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, process_group=group
    )
    for name in _STATE:
        setattr(replacement, name, getattr(norm, name))
    return replacement.train(norm.training)


class _GlobalNorm(torch.autograd.Function):
    """Normalise on CPU; C channels, n values of each over all ranks."""

    @staticmethod
    def forward(  # noqa: PLR0917 - `apply` takes no keywords
        ctx: Any, x: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float, group: ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean_C, var_C, count = _global_statistics(x, group)
        output = torch.native_batch_norm(x, weight_C, bias_C, mean_C, var_C, False, 0.0, eps)[0]
        ctx.save_for_backward(x, weight_C, mean_C, var_C)
        ctx.eps, ctx.group, ctx.count = eps, group, count
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return output, mean_C, var_C, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_C, var_C = ctx.saved_tensors
        # in eval mode torch's kernel sums dy and dy * normalised x over this rank, and no more
        _, dot_C, sum_C = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight_C, mean_C, var_C, None, None, False, ctx.eps, [False, True, True]
        )
        dx = None
        if ctx.needs_input_grad[0]:
            means_2C = all_gather(torch.cat([dot_C, sum_C]), group=ctx.group).sum(dim=0) / ctx.count
            mean_dot_C, mean_sum_C = means_2C.chunk(2)
            slope_C = (var_C + ctx.eps).rsqrt()
            if weight_C is not None:
                slope_C = slope_C * weight_C
            # dx = slope (dy - mean(dy) - x_normalised mean(dy x_normalised)): the last two by torch's kernel
            dx = torch.native_batch_norm(
                x, -slope_C * mean_dot_C, -slope_C * mean_sum_C, mean_C, var_C, False, 0.0, ctx.eps
            )[0]
            dx.addcmul_(dy, slope_C.to(dy.dtype).view(-1, *[1] * (x.dim() - 2)))
        # parameters get this rank's share: their gradients are averaged over ranks afterwards
        return dx, dot_C if ctx.needs_input_grad[1] else None, sum_C if ctx.needs_input_grad[2] else None, None, None


def _global_statistics(x: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean `[C]`, the biased variance `[C]` and the count `[1]` of all ranks' x, float32 or wider."""
    unused = x.new_zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))  # it decides the result's type
    mean_C, var_C = torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)
    count = mean_C.new_tensor([x.numel() / x.shape[1]])
    gathered_WM = all_gather(torch.cat([mean_C, var_C, count]), group=group)
    mean_WC, var_WC, count_W1 = torch.split(gathered_WM, [len(mean_C), len(mean_C), 1], dim=1)
    total = count_W1.sum(dim=0)
    share_W1 = count_W1 / total
    mean_C = (share_W1 * mean_WC).sum(dim=0)
    # Chan et al. 1979, for all ranks at once: spread within ranks and between them
    var_C = (share_W1 * (var_WC + (mean_WC - mean_C).square())).sum(dim=0)
    return mean_C, var_C, total
