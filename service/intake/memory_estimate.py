"""What one worker's training step holds in memory, from the architecture's arithmetic alone.

Counted: what each convolution and the norm after it keep for the backward pass, for both views of
the local batch; weights, gradients and momentum; the similarities of the loss. Not counted: the
allocator, the runtime and the images. It is an estimate and warns, it never refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from trainer.spec import EncoderSpec, PretrainSpec

__all__ = ["step_memory_bytes"]

FLOAT_BYTES: Final = 4
STATE_COPIES: Final = 3  # weights, gradients, momentum
SAVED_PER_CONV: Final = 2  # its input and its norm's input

_BOTTLENECK_BLOCKS: Final = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
_BASIC_BLOCKS: Final = {
    "resnet8": (1, 1, 1),
    "resnet14": (2, 2, 2),
    "resnet20": (3, 3, 3),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
}


class _Conv(NamedTuple):
    kernel: int
    channels_in: int
    channels_out: int
    side: int  # of its output, pixels


def step_memory_bytes(spec: PretrainSpec) -> int:
    """Return the bytes that one worker's step keeps, at the smallest number of workers allowed."""
    local_images = -(-spec.batch_size // spec.scaling.min_workers())
    held_images = min(local_images, spec.memory.micro_batch or local_images)
    convs = list(_convolutions(spec.encoder, spec.data.image_size))
    weights = sum(conv.kernel**2 * conv.channels_in * conv.channels_out for conv in convs)
    activations = sum(conv.side**2 * conv.channels_out for conv in convs) * SAVED_PER_CONV
    if spec.memory.activation_checkpointing:
        activations //= max(2, len(convs) // 4)  # one block at a time is held
    float_bytes = {"float64": 8, "bfloat16": 2}.get(spec.precision, FLOAT_BYTES)
    width_h = convs[-1].channels_out
    head_weights = width_h * (spec.projection_head.hidden_dim or width_h) if spec.projection_head.kind != "none" else 0
    similarities = 2 * local_images * 2 * spec.batch_size
    return (
        STATE_COPIES * FLOAT_BYTES * (weights + head_weights)
        + float_bytes * 2 * held_images * activations
        + FLOAT_BYTES * similarities
    )


def _convolutions(encoder: EncoderSpec, image_size: int) -> Iterator[_Conv]:
    """Yield f's convolutions in order (He et al. 2016; shortcuts left out)."""
    is_small = encoder.name in ("resnet8", "resnet14", "resnet20")
    base = (16 if is_small else 64) * encoder.width
    side, kernel = (image_size, 3) if encoder.stem == "cifar" else (max(1, image_size // 2), 7)
    yield _Conv(kernel, 3, base, side)
    if encoder.stem == "imagenet":
        side = max(1, side // 2)
    is_bottleneck = encoder.name in _BOTTLENECK_BLOCKS
    blocks = _BOTTLENECK_BLOCKS.get(encoder.name) or _BASIC_BLOCKS[encoder.name]
    channels_in = base
    for stage, num_blocks in enumerate(blocks):
        channels = base * 2**stage
        side = side if stage == 0 else max(1, side // 2)
        for _ in range(num_blocks):
            if is_bottleneck:
                yield _Conv(1, channels_in, channels, side)
                yield _Conv(3, channels, channels, side)
                yield _Conv(1, channels, channels_in := channels * 4, side)
            else:
                yield _Conv(3, channels_in, channels, side)
                yield _Conv(3, channels, channels_in := channels, side)
