"""What one worker's step holds in memory, counted before it is made.

The step itself runs on tensors without data: every operation tells the size of what it makes, and
what is alive at once is added up. So weights, gradients, optimiser state, views and all that
autograd keeps are counted as the code has them, in any precision, in micro-batches, recomputed or
not. Of the loss only the size of its blocks is known beforehand: there are too many to walk through.
"""

from __future__ import annotations

import hashlib
import socket
import weakref
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer import metric_names
from trainer.encoder import checkpoint_blocks
from trainer.errors import BatchTooLarge
from trainer.free_memory import free_memory_bytes
from trainer.learner import SimclrLearner, SupervisedLearner, build_learner
from trainer.losses.nt_xent import MAX_KEPT
from trainer.losses.similarity import CPU_TILE, DEVICE_TILE
from trainer.optim import build_optimizer
from trainer.precision import Precision, resolve_precision
from trainer.seeding import Uninitialised
from trainer.spec import MAX_WORKERS, PretrainSpec, has_batch_norm
from trainer.step import Stepper
from trainer.team import Team

__all__ = ["require_memory", "step_memory_bytes"]

RUNTIME_BYTES: Final = 64 * 2**20  # kernels, their scratch and rounding by the allocator; measured
NUM_TILES: Final = 3  # of similarities, weights and measures, at a time
MAX_COPIES: Final = 4  # of what a layer gives, kept or passing: twice what was counted in any architecture
MAX_WEIGHT_COPIES: Final = 8  # with gradient, moments, the message to other ranks, and what an update makes
NUM_ROWS: Final = 4  # copies of a rank's own projections: raised, normalised, their gradient, and that of z


def require_memory(spec: PretrainSpec, *, num_classes: int, team: Team) -> None:
    """Raise unless a step fits in the memory that every worker of the team has left; called by all ranks.

    Raises:
        BatchTooLarge: On all ranks alike, with what is needed, what there is, and what would fit.
    """
    available = _least_available_bytes(team)
    num_images = spec.batch_size // team.world_size
    if most_step_memory_bytes(spec, num_images=num_images, device=team.device, num_classes=num_classes) <= available:
        return  # the count itself takes a second

    def needed(changed: PretrainSpec, num_workers: int = team.world_size) -> int:
        return step_memory_bytes(changed, num_workers=num_workers, device=team.device, num_classes=num_classes)

    needed_bytes = needed(spec)
    if needed_bytes <= available:
        return
    ways = _ways_out(spec, num_workers=team.world_size, needed=needed, available=available)
    advice = _in_words(ways, available) or "nothing short of a smaller batch_size or more memory would"
    raise BatchTooLarge(
        f"a step of {num_images} images on one worker needs about {_shown(needed_bytes)}, and a worker has "
        f"{_shown(available)}; to fit, {advice}",
        needed_bytes=needed_bytes,
        available_bytes=available,
        images_per_worker=num_images,
        **ways,
    )


def most_step_memory_bytes(
    spec: PretrainSpec, *, num_images: int, device: torch.device, num_classes: int | None
) -> int:
    """Return a bound of `step_memory_bytes`, several times too high and found at once.

    As if every convolution had the views' resolution, and nothing were recomputed or done in parts.
    """
    with Uninitialised():
        learner = build_learner(spec, num_classes=num_classes, group=None)
    num_pixels = spec.data.image_size**2
    of_a_view, unfolded = 3 * num_pixels, 0
    for module in learner.modules():
        if isinstance(module, nn.Conv2d):
            of_a_view += module.out_channels * num_pixels
            unfolded = max(unfolded, 2 * module.weight[0].numel() * num_pixels)
        elif isinstance(module, nn.Linear):
            of_a_view += module.out_features
    weights = sum(parameter.numel() for parameter in learner.parameters())
    numbers = 2 * num_images * (MAX_COPIES * of_a_view + unfolded) + MAX_WEIGHT_COPIES * weights
    number_bytes = 8 if spec.precision == "float64" else 4
    loss_bytes = _loss_bytes(spec, num_images=num_images, width_of_z=_width_of_z(spec, learner), device=device)
    return RUNTIME_BYTES + number_bytes * numbers + loss_bytes


def step_memory_bytes(
    spec: PretrainSpec, *, num_workers: int, device: torch.device, num_classes: int | None = None
) -> int:
    """Return the most bytes that a worker's step holds at once, from the second step on.

    Args:
        spec: What is trained; its `scaling` is not looked at.
        num_workers: W; the worker has batch_size / W images.
        device: Where the step is to run; nothing is allocated there.
        num_classes: Of the data set; only supervised training asks.

    Note:
        What the process held before is not counted, nor what kernels take for themselves beyond
        RUNTIME_BYTES and, in float64, the unfolded input of a convolution.
    """
    num_images = spec.batch_size // num_workers
    precision = resolve_precision(spec.precision, device)
    with torch.device("meta"):
        learner = build_learner(spec, num_classes=num_classes, group=None).to(dtype=precision.dtype)
    if spec.memory.activation_checkpointing:
        checkpoint_blocks(learner.encoder)
    learner.metrics = _any_loss  # type: ignore[method-assign] # its blocks are too many to walk through
    with FakeTensorMode(allow_non_fake_inputs=True):  # the inputs: weights that are nowhere yet
        learner.to_empty(device=device)
        step_bytes = _peak_bytes(learner, spec, precision=precision, device=device, num_images=num_images)
    weight_bytes = sum(parameter.nbytes for parameter in learner.parameters())
    message_bytes = weight_bytes if num_workers > 1 else 0
    # Beside what was trained, less its gradient: a copy with its gradient and momentum, on as many views or fewer.
    copy_bytes = 2 * weight_bytes if spec.evaluation.fine_tune else 0
    loss_bytes = _loss_bytes(spec, num_images=num_images, width_of_z=_width_of_z(spec, learner), device=device)
    return RUNTIME_BYTES + step_bytes + message_bytes + copy_bytes + loss_bytes


def _any_loss(outputs_2BD: Tensor, labels_B: Tensor | None) -> dict[str, Tensor]:
    """Return a loss that has a gradient and holds next to nothing."""
    del labels_B
    return {metric_names.LOSS: outputs_2BD.mean(dtype=torch.promote_types(outputs_2BD.dtype, torch.float32))}


def _peak_bytes(
    learner: SimclrLearner | SupervisedLearner,
    spec: PretrainSpec,
    *,
    precision: Precision,
    device: torch.device,
    num_images: int,
) -> int:
    """Return what a step holds at its peak; to be called where tensors are without data."""
    optimizer = build_optimizer(spec.optim, learner)
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # from here on it has its state
    micro_batch = spec.memory.micro_batch
    walked = min(num_images, 2 * micro_batch) if micro_batch else num_images  # the third part holds what the second did
    side = spec.data.image_size
    views_2BCHW = torch.empty((2 * walked, 3, side, side), dtype=precision.dtype, device=device)
    stepper = Stepper(
        learner, optimizer, team=Team(device=device), precision=precision, micro_batch=spec.memory.micro_batch
    )
    living = _Living()
    living.add([*learner.state_dict(keep_vars=True).values(), views_2BCHW])
    living.add([state for states in optimizer.state.values() for state in states.values()])
    with living:
        stepper(views_2BCHW, None, learning_rate=0.0, wishes_stop=False)
    return living.peak_bytes + views_2BCHW.nbytes * (num_images - walked) // walked


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch gives it no types
    """Adds up the bytes of all storages alive: torch's own tracker walks modules too, and takes seconds to import."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # likewise
        self.peak_bytes = 0
        self._bytes = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._sizes: dict[int, int] = {}

    def add(self, values: Sequence[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()  # noqa: SLF001 - a storage has no other name

        def forget(_: weakref.ref[torch.UntypedStorage]) -> None:
            del self._storages[key]
            self._bytes -= self._sizes.pop(key)

        if key not in self._storages:
            self._storages[key] = weakref.ref(storage, forget)
        self._bytes += size - self._sizes.get(key, 0)  # `resize_` and `out=` let one grow
        self._sizes[key] = size
        self.peak_bytes = max(self.peak_bytes, self._bytes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        self.add(tree_leaves(results))
        self.peak_bytes = max(self.peak_bytes, self._bytes + _unfolded_bytes(func, args, results))
        return results


def _unfolded_bytes(func: Any, args: tuple[Any, ...], results: Any) -> int:
    """Return what a convolution in float64 on CPU holds while it runs: each patch of its input as a column.

    OneDNN, which convolves in place, knows no float64. Backward has the columns of the input and of its gradient.
    """
    if func is torch.ops.aten.convolution.default:
        (x, weight), grid, num_copies = args[:2], results, 1
    elif func is torch.ops.aten.convolution_backward.default:
        grid, x, weight = args[:3]
        num_copies = 2
    else:
        return 0
    is_unfolded = x.dtype == torch.float64 and x.device.type == "cpu" and weight.shape[2:].numel() > 1
    num_values: int = x.shape[0] * weight[0].numel() * grid.shape[2:].numel()
    return num_copies * num_values * x.element_size() if is_unfolded else 0


def _width_of_z(spec: PretrainSpec, learner: SimclrLearner | SupervisedLearner) -> int:
    return learner.encoder.width_of_h if spec.projection_head.kind == "none" else spec.projection_head.dim


def _loss_bytes(spec: PretrainSpec, *, num_images: int, width_of_z: int, device: torch.device) -> int:
    """Return what the loss holds: the projections of the global batch, and blocks of similarities."""
    if spec.method == "supervised":
        return 0
    own, every = 2 * num_images, 2 * spec.batch_size
    height, width = CPU_TILE if device.type == "cpu" else DEVICE_TILE
    tiles = NUM_TILES * min(own, height) * min(every, width) + min(own * every, MAX_KEPT)
    return (width_of_z * (every + NUM_ROWS * own) + tiles) * (8 if spec.precision == "float64" else 4)


# --- what there is, and what would fit ------------------------------------------------------------


def _least_available_bytes(team: Team) -> int:
    """Return the least that a worker of the team may take; those of one machine share what it has."""
    node = f"{team.rank}" if team.device.type == "cuda" else socket.gethostname()
    name = int.from_bytes(hashlib.sha256(node.encode()).digest()[:7], "little")
    everyone = team.numbers_of_all(name, free_memory_bytes(team.device))
    names = [name for name, _ in everyone]
    return min(free // names.count(name) for name, free in everyone)


def _ways_out(
    spec: PretrainSpec, *, num_workers: int, needed: Callable[..., int], available: int
) -> dict[str, int | bool]:
    """Return the changes that would each fit by themselves, by field."""
    ways: dict[str, int | bool] = {}
    if not has_batch_norm(spec):
        held = spec.memory.micro_batch or spec.batch_size // num_workers
        smaller = [size for size in _divisors(spec.batch_size // num_workers) if size < held]
        fitting = bisect_left(smaller, 1, key=lambda size: needed(_with(spec, micro_batch=size)) > available)
        if fitting:
            ways["micro_batch"] = smaller[fitting - 1]
    if not spec.memory.activation_checkpointing and needed(_with(spec, activation_checkpointing=True)) <= available:
        ways["activation_checkpointing"] = True
    larger = [count for count in _divisors(spec.batch_size) if num_workers < count <= MAX_WORKERS]
    enough = bisect_left(larger, 1, key=lambda count: needed(spec, count) <= available)
    if enough < len(larger):
        ways["num_workers"] = larger[enough]
    return ways


def _with(spec: PretrainSpec, **changes: Any) -> PretrainSpec:
    return spec.model_copy(update={"memory": spec.memory.model_copy(update=changes)})


def _divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]


def _in_words(ways: dict[str, int | bool], available: int) -> str:
    words = {
        "micro_batch": "set memory.micro_batch to {} at most",
        "activation_checkpointing": "set memory.activation_checkpointing",
        "num_workers": "use {} workers with {} each",
    }
    return ", or ".join(words[name].format(value, _shown(available)) for name, value in ways.items())


def _shown(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
