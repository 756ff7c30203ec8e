"""Representations h of images, from a frozen encoder, as rows of float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["Images", "evaluating", "extract_features", "pixel_features", "pixel_pooling"]

BLOCK_SIZE: Final = 512  # images read at a time
MAX_PIXEL_BYTES: Final = 2**30  # of pixel features: up to here pixels are taken as they are


class Images(Protocol):
    """Images that may be larger than memory: slices are arrays, uint8 (B, H, W, 3)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> NDArray[np.uint8]: ...


def extract_features(
    encoder: nn.Module,
    images_MHWC: Images,
    *,
    batch_size: int = BLOCK_SIZE,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    channels_last: bool = True,
    start: int = 0,
    stop: int | None = None,
) -> NDArray[np.float32]:
    """Return what `encoder` makes of images[start:stop], (stop - start, R) float32, in evaluation mode.

    Args:
        encoder: From (B, 3, H, W) in 0..1, in its own parameters' type, to (B, R). Each of its
            modules is back in the mode it was in when this returns.
        images_MHWC: uint8 RGB, (M, H, W, 3).
        batch_size: Images at a time.
        device: Where the encoder is.
        autocast_dtype: Compute in this type by autocast; None: as the parameters are.
        channels_last: Memory layout, the same as in training.
        start: First image; ranks that share the work take a slice each.
        stop: One behind the last image; None: all.
    """
    stop = len(images_MHWC) if stop is None else stop
    device = torch.device(device)
    dtype = next((parameter.dtype for parameter in encoder.parameters()), torch.float32)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if start >= stop:
        raise ValueError(f"images[{start}:{stop}] is empty")
    # One array from the first block on: small ones kept between the large blocks of each pass would leave holes
    # in the heap that no large block fits into, and memory would grow with the number of images.
    features_MR = np.empty((0, 0), np.float32)
    with (
        evaluating(encoder),
        torch.inference_mode(),
        torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None),
    ):
        for first in range(start, stop, batch_size):
            images_BHWC = torch.from_numpy(np.ascontiguousarray(images_MHWC[first : min(first + batch_size, stop)]))
            x_BCHW = images_BHWC.to(device).permute(0, 3, 1, 2).to(dtype=dtype, memory_format=layout) / 255
            h_BR: Tensor = encoder(x_BCHW)
            if first == start:
                features_MR = np.empty((stop - start, *h_BR.shape[1:]), np.float32)
            features_MR[first - start : first - start + len(h_BR)] = h_BR.to(device="cpu", dtype=torch.float32).numpy()
    return features_MR


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, and each part of it back in its own afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training


def pixel_features(images_MHWC: Images, *, pooling: int = 1) -> NDArray[np.float32]:
    """Return raw pixels in 0..1 as features: the baseline that every encoder has to beat.

    Args:
        images_MHWC: uint8 RGB, (M, H, W, 3).
        pooling: Side of the squares of pixels that are averaged into one, P; what they do not fill is cut off.

    Returns:
        (M, H/P W/P 3) float32.
    """
    blocks = []
    for start in range(0, len(images_MHWC), BLOCK_SIZE):
        images = images_MHWC[start : min(start + BLOCK_SIZE, len(images_MHWC))]
        pixels = _pooled(images, pooling) if pooling > 1 else images.astype(np.float32)
        blocks.append(pixels.reshape(len(images), -1) / np.float32(255))
    return np.concatenate(blocks) if blocks else np.zeros((0, 0), np.float32)


def pixel_pooling(num_images: int, image_size: int) -> int:
    """Return the least pooling with which the pixel features of so many images take at most MAX_PIXEL_BYTES."""
    most_values = MAX_PIXEL_BYTES // (4 * 3 * max(num_images, 1))
    return next((side for side in range(1, image_size) if (image_size // side) ** 2 <= most_values), image_size)


def _pooled(images_BHWC: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    count, height, width, channels = len(images_BHWC), *(size // side for size in images_BHWC.shape[1:3]), 3
    whole = images_BHWC[:, : height * side, : width * side]
    squares = whole.reshape(count, height, side, width, side, channels)
    means: NDArray[np.float32] = squares.mean(axis=(2, 4), dtype=np.float32)
    return means
