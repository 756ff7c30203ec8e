"""Batch norm over the global batch, so that the number of ranks changes nothing (SimCLR, section 2.2).

On CUDA the kernels are those of torch's SyncBatchNorm, without the wait for the device that its
forward has in each layer. They refuse CPU tensors, so there the ranks exchange their statistics
here: one gather a layer in forward, one in backward, added up in rank order.

One rank alone computes here too. Torch's CPU kernel adds up a channel of a channels_last float32
batch value by value, which leaves its variance off by up to 2e-4. So the kernel gets blocks of a
few images, and blocks are merged like ranks, in float64 (Chan et al. 1979: mean and variance, not
sums of squares, which cancel). How many images make a block depends on their shape alone: if it
divides B, the ranks' blocks are those of one process, and so are the merged statistics, nearly to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn.modules._functions import SyncBatchNorm as _TorchsGlobalNorm
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.collectives import all_gather, world_size
from trainer.small_messages import MAX_BYTES, SmallMessages

__all__ = ["GlobalBatchNorm", "globalize_batch_norm", "hide_statistics_from_compiler", "running_statistics_frozen"]

Gather = Callable[[Tensor], Tensor]  # every rank's tensor, `[W, ...]`

_STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_BUFFERS = _STATE[2:]

BLOCK_IMAGES: Final = 32  # at most: smaller blocks spend their time in calls, larger ones divide fewer B
BLOCK_VALUES: Final = 2**14  # of a channel, if one image has not more: so many are added up one by one


def globalize_batch_norm(
    module: nn.Module, *, group: ProcessGroup | None, messages: SmallMessages | None = None
) -> nn.Module:
    """Return `module` with every BatchNorm1d and BatchNorm2d made global over `group`, in place.

    On CPU the ranks' statistics take the light path of `messages`, if there is one.

    Parameters and buffers stay the same objects under the same names, so an optimiser made before
    and a state dict fit after. In eval mode, and alone on CUDA or in half precision, the global
    ones do what torch's do. A `module` that is itself a batch norm is replaced in the return value.
    """
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return _global_from(module, group, messages)
    for name, child in module.named_children():
        setattr(module, name, globalize_batch_norm(child, group=group, messages=messages))
    return module


def hide_statistics_from_compiler(module: nn.Module) -> None:
    """Let `torch.compile` call the batch norms in `module` as they are where they do not do what torch's do.

    It can't trace a message to another rank; and what it made of the merging would round in another way.
    """
    for norm in module.modules():
        if isinstance(norm, GlobalBatchNorm):
            norm.hide_statistics_from_compiler()


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
    """Batch norm with the statistics of all ranks of `process_group`; None is this process alone.

    Input `[B, C, ...]` of any float type; statistics are float32 or wider.
    """

    messages: SmallMessages | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """Return the normalised input; in training the running statistics move as torch's do.

        Raises:
            ValueError: If there is one value a channel in all, of which no variance can be told.
        """
        is_alone = world_size(self.process_group) == 1
        # Alone in a half precision, what torch's sums lose (2e-4) is far below the type's own rounding (4e-3).
        is_on_host = input.device.type == "cpu"
        if not self.training or (is_alone and not (is_on_host and input.dtype.itemsize >= torch.float32.itemsize)):
            return _BatchNorm.forward(self, input)
        self._check_input_dim(input)
        return self._on_host(input) if is_on_host else self._on_device(input)

    def hide_statistics_from_compiler(self) -> None:
        """Have `torch.compile` call as they are the two ways that are not torch's."""
        self._on_host = torch.compiler.disable(self._on_host)  # type: ignore[method-assign, no-untyped-call]
        self._on_device = torch.compiler.disable(self._on_device)  # type: ignore[method-assign, no-untyped-call]

    def _on_host(self, x: Tensor) -> Tensor:
        output, mean_C, var_C, count = _GlobalNorm.apply(x, self.weight, self.bias, self.eps, self._gather)
        if self.track_running_stats:
            self._move_running_statistics(mean_C, var_C, int(count))
        return output  # type: ignore[no-any-return]

    def _on_device(self, x: Tensor) -> Tensor:
        momentum = self._counted_momentum() if self.track_running_stats else 0.0
        running, group = (self.running_mean, self.running_var), self.process_group  # None where they are not tracked
        return _DeviceNorm.apply(x, self.weight, self.bias, *running, self.eps, momentum, group, world_size(group))  # type: ignore[no-any-return]

    def _gather(self, tensor: Tensor) -> Tensor:
        if self.messages is not None and tensor.nbytes <= MAX_BYTES:
            return self.messages.all_gather(tensor)
        return all_gather(tensor, group=self.process_group)

    @torch.no_grad()
    def _move_running_statistics(self, mean_C: Tensor, var_C: Tensor, count: int) -> None:
        mean, var = self.running_mean, self.running_var
        assert mean is not None and var is not None  # noqa: S101, PT018 - for the type checker
        momentum = self._counted_momentum()
        mean.mul_(1 - momentum).add_(mean_C, alpha=momentum)
        var.mul_(1 - momentum).add_(var_C, alpha=momentum * count / (count - 1))

    def _counted_momentum(self) -> float:
        """Return the weight of this batch in the running statistics, having counted it."""
        tracked = self.num_batches_tracked
        assert tracked is not None  # noqa: S101 - for the type checker
        tracked.add_(1)
        return 1.0 / float(tracked) if self.momentum is None else self.momentum


def _global_from(norm: _BatchNorm, group: ProcessGroup | None, messages: SmallMessages | None) -> GlobalBatchNorm:
    replacement = GlobalBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, process_group=group
    )
    replacement.messages = messages
    for name in _STATE:
        setattr(replacement, name, getattr(norm, name))
    return replacement.train(norm.training)


class _DeviceNorm(_TorchsGlobalNorm):
    """Normalise on an accelerator; forward is torch's but for its look at whether a rank had no values: none has not.

    Its kernels keep mean and 1 / deviation of each rank in float32 or wider, and merge them by their counts.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - `apply` takes no keywords
        ctx: Any,
        x: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        running_mean_C: Tensor | None,
        running_var_C: Tensor | None,
        eps: float,
        momentum: float,
        group: ProcessGroup,
        num_ranks: int,
    ) -> Tensor:
        del num_ranks  # that of the group; backward is torch's, and returns a gradient for each argument of its forward
        x = x.contiguous(memory_format=_layout(x))
        mean_C, inverse_C = torch.batch_norm_stats(x, eps)
        count = mean_C.new_full((1,), x.numel() // x.shape[1])
        ranks_WM = all_gather(torch.cat([mean_C, inverse_C, count]), group=group)
        mean_WC, inverse_WC, count_W1 = (part.contiguous() for part in torch.split(ranks_WM, x.shape[1], dim=1))
        mean_C, inverse_C = torch.batch_norm_gather_stats_with_counts(
            x, mean_WC, inverse_WC, running_mean_C, running_var_C, momentum, eps, count_W1.flatten()
        )
        ctx.save_for_backward(x, weight_C, mean_C, inverse_C, count_W1.to(torch.int32))
        ctx.process_group = group
        return torch.batch_norm_elemt(x, weight_C, bias_C, mean_C, inverse_C, eps)


class _GlobalNorm(torch.autograd.Function):
    """Normalise on CPU; C channels, n values of each over all ranks."""

    @staticmethod
    def forward(  # noqa: PLR0917 - `apply` takes no keywords
        ctx: Any, x: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float, gather: Gather
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = x.contiguous(memory_format=_layout(x))
        mean_C, var_C, count = _global_statistics(x, gather)
        output = torch.native_batch_norm(x, weight_C, bias_C, mean_C, var_C, False, 0.0, eps)[0]
        ctx.save_for_backward(x, weight_C, mean_C, var_C)
        ctx.eps, ctx.gather, ctx.count = eps, gather, count
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return output, mean_C, var_C, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_C, var_C = ctx.saved_tensors
        dy = dy.contiguous(memory_format=_layout(x))
        sums_2C = _gradient_sums(x, dy, mean_C, var_C, ctx.eps)
        dx = None
        if ctx.needs_input_grad[0]:
            means_2C = ctx.gather(sums_2C).sum(dim=0) / ctx.count
            mean_dy_C, mean_dot_C = means_2C.chunk(2)
            inverse_C = (var_C.double() + ctx.eps).rsqrt()
            slope_C = inverse_C if weight_C is None else inverse_C * weight_C
            # dx = slope (dy - mean(dy) - x_normalised mean(dy x_normalised))
            by_x_C = -slope_C * mean_dot_C * inverse_C
            dx = _combined(x, by_x_C, dy, slope_C, -slope_C * mean_dy_C - by_x_C * mean_C)
        # parameters get this rank's share: their gradients are averaged over ranks afterwards
        sum_C, dot_C = sums_2C.to(mean_C.dtype).chunk(2)
        return dx, dot_C if ctx.needs_input_grad[1] else None, sum_C if ctx.needs_input_grad[2] else None, None, None


def _global_statistics(x: Tensor, gather: Gather) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean `[C]`, the biased variance `[C]` and the count `[1]` of all ranks' x, float32 or wider."""
    unused = x.new_zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))  # it decides the result's type
    blocks = _blocks(x)
    found = [torch.batch_norm_update_stats(block, unused, unused, 0.0) for block in blocks]
    moments_K2C = torch.stack([part_C for moments in found for part_C in moments]).view(len(blocks), -1).double()
    counts_K1 = moments_K2C.new_tensor([[block.numel() / x.shape[1]] for block in blocks])
    local_M = _merged(torch.cat([moments_K2C, counts_K1], dim=1))
    merged_M = _merged(gather(local_M))
    if merged_M[-1] <= 1:
        raise ValueError(f"expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
    mean_C, var_C, count = torch.split(merged_M, [x.shape[1], x.shape[1], 1])
    return mean_C.to(unused.dtype), var_C.to(unused.dtype), count


def _merged(moments_KM: Tensor) -> Tensor:
    """Return mean, biased variance and count, `[2C + 1]`, of K sets of values that are each given so."""
    num_channels = moments_KM.shape[1] // 2
    mean_KC, var_KC, count_K1 = torch.split(moments_KM, [num_channels, num_channels, 1], dim=1)
    total = count_K1.sum(dim=0)
    share_K1 = count_K1 / total
    mean_C = (share_K1 * mean_KC).sum(dim=0)
    # spread within the sets and between them
    var_C = (share_K1 * (var_KC + (mean_KC - mean_C).square())).sum(dim=0)
    return torch.cat([mean_C, var_C, total])


def _gradient_sums(x: Tensor, dy: Tensor, mean_C: Tensor, var_C: Tensor, eps: float) -> Tensor:
    """Return the sums over this rank of dy and of dy times normalised x, `[2C]`, float64."""
    # in eval mode torch's kernel gives these sums and no more
    blocks = [
        torch.ops.aten.native_batch_norm_backward(
            dy_block, x_block, None, mean_C, var_C, None, None, False, eps, [False, True, True]
        )
        for x_block, dy_block in zip(_blocks(x), _blocks(dy), strict=True)
    ]
    sums_K2C = torch.stack([part_C for _, dot_C, sum_C in blocks for part_C in (sum_C, dot_C)]).view(len(blocks), -1)
    return sums_K2C.sum(dim=0, dtype=torch.float64)


def _combined(x: Tensor, by_x_C: Tensor, dy: Tensor, by_dy_C: Tensor, constant_C: Tensor) -> Tensor:
    """Return by_x x + by_dy dy + constant, channel by channel, in the type and layout of x."""
    result = torch.empty_like(x)
    is_channels_last = _layout(x) is torch.channels_last
    type_ = torch.promote_types(x.dtype, torch.float32)
    factors = [factor_C.to(type_) for factor_C in (by_x_C, by_dy_C, constant_C)]
    if is_channels_last:  # a line of an image at a time: C values alone are too few for a vector loop
        by_x, by_dy, constant = (factor_C.repeat(x.shape[3]) for factor_C in factors)
        lines = [tensor.permute(0, 2, 3, 1).flatten(2) for tensor in (x, dy, result)]
    else:
        by_x, by_dy, constant = (factor_C.unsqueeze(1) for factor_C in factors)
        lines = [tensor.view(*x.shape[:2], -1) for tensor in (x, dy, result)]
    num_images = len(_blocks(x)[0])
    for x_block, dy_block, out in zip(*(torch.split(tensor, num_images) for tensor in lines), strict=True):
        if x.dtype == type_:
            torch.addcmul(constant, x_block, by_x, out=out).addcmul_(dy_block, by_dy)
        else:
            out.copy_(torch.addcmul(constant, x_block.to(type_), by_x).addcmul_(dy_block.to(type_), by_dy))
    return result


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    """Return x in blocks of a few images, a power of two that the shape of an image decides."""
    num_images = min(BLOCK_IMAGES, max(1, BLOCK_VALUES // x.shape[2:].numel()))
    return torch.split(x, 1 << num_images.bit_length() - 1)


def _layout(x: Tensor) -> torch.memory_format:
    """Return how the values of a batch lie; kernels need them in one of two ways."""
    is_image = x.dim() == 4  # noqa: PLR2004 - [B, C, H, W]
    if is_image and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
