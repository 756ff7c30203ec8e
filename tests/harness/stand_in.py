"""An accelerator that computes nothing, for machines without one: it shows where a host would wait.

Code that is meant for a device runs on it as it is. Tensors of the host are real, tensors of the
device (torch's `meta`) have no data, and whatever would make the host wait for a real device is an
error: asking for a value, a result whose shape depends on values, and a copy from memory that is
not pinned. What happens below torch's operators only `make test-gpu` can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import Tensor
from torch import distributed as dist
from torch._C._distributed_c10d import FakeStore
from torch.distributed import ProcessGroup
from torch.testing._internal.distributed import fake_pg  # noqa: F401 - it registers the backend `fake`
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["STAND_IN", "CudaKernels", "HostWaits", "StandIn", "first_of_a_team", "stand_in"]

STAND_IN: Final = torch.device("meta")

aten = torch.ops.aten
COPIES: Final = (aten._to_copy.default, aten.copy_.default)
OF_VALUES: Final = (  # their result, or its shape, depends on what is on the device
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
)
MASKS: Final = (torch.bool, torch.uint8)


class HostWaits(AssertionError):
    """The host would have waited for the device."""


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Let `STAND_IN` pass for an accelerator while entered."""
    with StandIn() as device, patch.object(torch, "autocast", _autocast):
        yield device


@contextmanager
def first_of_a_team(world_size: int) -> Iterator[ProcessGroup]:
    """Make this process the first rank of a group whose other ranks are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        group = dist.group.WORLD
        assert group is not None
        yield group
    finally:
        dist.destroy_process_group()


class StandIn(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch gives it no types
    """Notes what is sent to other ranks, and refuses to wait when asked to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # likewise
        self.messages: list[str] = []
        self._refuses = False
        self._pinned: dict[int, Tensor] = {}  # by address; held, so that no other tensor gets it

    @contextmanager
    def waiting_refused(self) -> Iterator[None]:
        """Raise HostWaits wherever the host would wait while this is entered."""
        self._refuses = True
        try:
            yield
        finally:
            self._refuses = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, Tensor)]
        if func is aten.is_pinned.default:
            return args[0].data_ptr() in self._pinned
        if func is aten._pin_memory.default:
            pinned = args[0].clone()
            self._pinned[pinned.data_ptr()] = pinned
            return pinned
        if any(tensor.device == STAND_IN for tensor in tensors) or options.get("device") == STAND_IN:
            if self._refuses:
                self._refuse_waiting(func, tensors, options)
            if func.namespace == "c10d":
                return self._send(func, args, options)
        return KERNELS.get(func, func)(*args, **options)

    def _refuse_waiting(self, func: Any, tensors: Sequence[Tensor], options: dict[str, Any]) -> None:
        of_host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        if func in COPIES:
            is_leaving = options.get("device", tensors[0].device).type == "cpu"
            is_pinned = all(tensor.data_ptr() in self._pinned for tensor in of_host)
            if is_leaving or (of_host and not (is_pinned and options.get("non_blocking"))):
                raise HostWaits(f"{func} copies what is not pinned, or not behind what is queued")
        elif any(tensor.dim() > 0 for tensor in of_host):  # a single number is handed over with the call
            raise HostWaits(f"{func} takes tensors of the host and of the device, so it copies first")
        if func in OF_VALUES or ("index" in func.__name__ and any(t.dtype in MASKS for t in tensors[1:])):
            raise HostWaits(f"{func} asks the device for values")

    def _send(self, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Send memory of the host in place of what is on the device, to ranks that are not there."""
        self.messages.append(func.__name__)
        sent: dict[int, Tensor] = {}

        def on_host(tensor: Tensor) -> Tensor:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype)
            sent[id(copy)] = tensor
            return copy

        with _disable_current_modes():
            result = func(*tree_map_only(Tensor, on_host, args), **options)
        return tree_map_only(Tensor, lambda tensor: sent.get(id(tensor), tensor), result)


def _autocast(device_type: str, *args: Any, **options: Any) -> AbstractContextManager[object]:
    """Return torch's context; it knows of no `meta`, where types do not matter to who waits for whom."""
    return nullcontext() if device_type == STAND_IN.type else _TORCH_AUTOCAST(device_type, *args, **options)


_TORCH_AUTOCAST: Final = torch.autocast


# --- what torch has for CUDA alone: batch norm in parts, for a team to share ------------------------


class CudaKernels(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch gives it no types
    """Lets kernels that torch has for CUDA alone compute on the host, as their names and torch's use of them say."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # likewise

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return KERNELS.get(func, func)(*args, **(kwargs or {}))


def _by_channel(values_C: Tensor, x: Tensor) -> Tensor:
    return values_C.view(-1, *[1] * (x.dim() - 2))


def _summed(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1).sum(dim=1)


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean_C = _summed(wide) / (x.numel() // x.shape[1])
    var_C = _summed((wide - _by_channel(mean_C, x)).square()) / (x.numel() // x.shape[1])
    return mean_C, (var_C + eps).rsqrt()


def _gather_stats_with_counts(  # noqa: PLR0917 - torch's arguments
    x: Tensor,
    mean_WC: Tensor,
    inverse_WC: Tensor,
    running_mean_C: Tensor | None,
    running_var_C: Tensor | None,
    momentum: float,
    eps: float,
    counts_W: Tensor,
) -> tuple[Tensor, Tensor]:
    del x
    total, counts_W1 = counts_W.sum(), counts_W[:, None]
    mean_C = (mean_WC * counts_W1).sum(dim=0) / total
    spread_WC = inverse_WC.square().reciprocal() - eps + (mean_WC - mean_C).square()
    var_C = (spread_WC * counts_W1).sum(dim=0) / total
    if running_mean_C is not None and running_var_C is not None:
        running_mean_C.mul_(1 - momentum).add_(mean_C * momentum)
        running_var_C.mul_(1 - momentum).add_(var_C * momentum * total / (total - 1))
    return mean_C, (var_C + eps).rsqrt()


def _elemt(  # noqa: PLR0917 - likewise
    x: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, mean_C: Tensor, inverse_C: Tensor, eps: float
) -> Tensor:
    del eps
    y = (x - _by_channel(mean_C, x)) * _by_channel(inverse_C, x)
    y = y if weight_C is None else y * _by_channel(weight_C, x)
    return (y if bias_C is None else y + _by_channel(bias_C, x)).to(x.dtype)


def _backward_reduce(
    dy: Tensor, x: Tensor, mean_C: Tensor, inverse_C: Tensor, weight_C: Tensor | None, *_: bool
) -> tuple[Tensor, ...]:
    del weight_C
    sum_dy_C, sum_dy_x_C = _summed(dy), _summed(dy * (x - _by_channel(mean_C, x)))
    return sum_dy_C, sum_dy_x_C, sum_dy_x_C * inverse_C, sum_dy_C.clone()


def _backward_elemt(  # noqa: PLR0917 - likewise
    dy: Tensor,
    x: Tensor,
    mean_C: Tensor,
    inverse_C: Tensor,
    weight_C: Tensor | None,
    sum_dy_C: Tensor,
    sum_dy_x_C: Tensor,
    counts: Tensor,
) -> Tensor:
    total = counts.sum()
    slope_C = sum_dy_x_C * inverse_C.square() / total
    dx = dy - _by_channel(sum_dy_C / total, x) - (x - _by_channel(mean_C, x)) * _by_channel(slope_C, x)
    return dx * _by_channel(inverse_C if weight_C is None else inverse_C * weight_C, x)


KERNELS: Final[dict[Any, Callable[..., Any]]] = {
    aten.batch_norm_stats.default: _stats,
    aten.batch_norm_gather_stats_with_counts.default: _gather_stats_with_counts,
    aten.batch_norm_elemt.default: _elemt,
    aten.batch_norm_backward_reduce.default: _backward_reduce,
    aten.batch_norm_backward_elemt.default: _backward_elemt,
}
