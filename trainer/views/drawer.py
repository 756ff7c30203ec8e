"""The drawer of views: images in, augmented views out, in batches on the device of the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.spec import Operation, ViewsSpec
from trainer.views.chance import Chance
from trainer.views.transformation import Transformation, build_transformation

__all__ = ["ViewDrawer", "to_input"]

BLOCK_PIXELS = 1 << 17  # of each channel: a block and its temporaries stay in a CPU's last cache
MIN_BLOCK_VIEWS = 4  # fewer are not worth the calls


@dataclass(frozen=True, kw_only=True)
class Stage:
    """An operation, and what it does to those views of a batch that drew it."""

    transformation: Transformation[Any]
    rows: Tensor  # int64, ascending
    drawn: tuple[Tensor, ...]  # a row for each of `rows`

    def applied(self, planes_CMHW: Tensor, *, start: int, stop: int) -> Tensor:
        """Return rows start..stop - 1 of the batch, transformed where they are to be; they may be overwritten."""
        first, last = torch.searchsorted(self.rows, torch.tensor([start, stop])).tolist()
        if first == last:
            return planes_CMHW
        part = [values[first:last] for values in self.drawn]
        drawn = type(self.drawn)._make(part) if hasattr(self.drawn, "_make") else tuple(part)
        if last - first == stop - start:
            return self.transformation.apply(planes_CMHW, drawn)
        rows = (self.rows[first:last] - start).to(planes_CMHW.device)
        changed = self.transformation.apply(planes_CMHW.index_select(1, rows), drawn)
        return planes_CMHW.index_copy_(1, rows, changed)


class ViewDrawer:
    """Draws the views of a run (paper, section 2.1 and appendix A).

    A view is a function of (image, seed, epoch, sample id, 0 or 1): the same, bit for bit, alone or
    in any batch, on any worker. Operations are applied in the order of the spec, each to the views
    that drew it.
    """

    def __init__(self, spec: ViewsSpec, *, image_size: int, seed: int, dtype: torch.dtype, channels_last: bool) -> None:
        self._operations = spec.resolved_operations()
        self._transformations = [build_transformation(op, side=image_size) for op in self._operations]
        self._image_size = image_size
        self._seed = seed
        self._dtype = dtype
        self._channels_last = channels_last

    def draw(self, images_BHWC: Tensor, *, sample_ids_B: Tensor, epoch: int, view: int) -> Tensor:
        """Return one view of each image, (B, 3, H, W) in 0..1.

        Args:
            images_BHWC: uint8 RGB, H = W = image_size.
            sample_ids_B: int64. On the CPU, even where the images are not, nothing has to be waited for.
            epoch: Counted from 0.
            view: 0 or 1.

        Raises:
            ValueError: If the images are not uint8 RGB of the image size.
        """
        return self._views(images_BHWC, sample_ids_B, view_M=torch.full((len(images_BHWC),), view), epoch=epoch)

    def draw_pair(self, images_BHWC: Tensor, *, sample_ids_B: Tensor, epoch: int) -> Tensor:
        """Return both views of each image, (2B, 3, H, W): rows k and k + B are those of image k.

        Arguments and errors are those of `draw`.
        """
        view_M = torch.arange(2).repeat_interleave(len(images_BHWC))
        return self._views(images_BHWC.repeat(2, 1, 1, 1), sample_ids_B.repeat(2), view_M=view_M, epoch=epoch)

    def _views(self, images_MHWC: Tensor, sample_ids_M: Tensor, *, view_M: Tensor, epoch: int) -> Tensor:
        self._require_images(images_MHWC)
        views_MCHW = torch.empty(
            (len(images_MHWC), 3, self._image_size, self._image_size),
            dtype=self._dtype,
            device=images_MHWC.device,
            memory_format=_memory_format(channels_last=self._channels_last),
        )
        chance = Chance(seed=self._seed, epoch=epoch, sample_ids=sample_ids_M.cpu(), views=view_M, stream=0)
        stages = self._drawn(chance)
        for start, stop in self._blocks(images_MHWC):
            planes_CMHW = _planes(images_MHWC[start:stop], dtype=self._dtype)
            for stage in stages:
                planes_CMHW = stage.applied(planes_CMHW, start=start, stop=stop)
            for channel in range(3):  # three plain copies are faster than one that permutes
                views_MCHW[start:stop, channel].copy_(planes_CMHW[channel])
        return views_MCHW

    def _drawn(self, chance: Chance) -> list[Stage]:
        """Return what is done to which views; operation k has streams 2 k and 2 k + 1."""
        stages = []
        for index, (operation, transformation) in enumerate(zip(self._operations, self._transformations, strict=True)):
            rows = _drawn_rows(operation, chance.of_stream(2 * index))
            drawn = transformation.draw(chance.of_stream(2 * index + 1).of_rows(rows))
            stages.append(Stage(transformation=transformation, rows=rows, drawn=drawn))
        return stages

    def _blocks(self, images_MHWC: Tensor) -> Iterator[tuple[int, int]]:
        num_views = len(images_MHWC)
        is_cached = images_MHWC.device.type == "cpu"
        size = max(MIN_BLOCK_VIEWS, BLOCK_PIXELS // self._image_size**2 if is_cached else num_views)
        return ((start, min(start + size, num_views)) for start in range(0, num_views, size))

    def _require_images(self, images_BHWC: Tensor) -> None:
        expected = (self._image_size, self._image_size, 3)
        if images_BHWC.dtype != torch.uint8 or images_BHWC.shape[1:] != expected:
            raise ValueError(
                f"images are {images_BHWC.dtype} of shape {tuple(images_BHWC.shape)}; "
                f"views are drawn of torch.uint8 (B, {self._image_size}, {self._image_size}, 3)"
            )


def to_input(images_BHWC: Tensor, *, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """Return uint8 images as an encoder reads them outside training: (B, 3, H, W) in 0..1, no augmentation.

    Nothing is subtracted and nothing divided by a deviation: the paper's reference code does neither.
    """
    images_BCHW = images_BHWC.permute(0, 3, 1, 2)
    return images_BCHW.to(dtype, memory_format=_memory_format(channels_last=channels_last)).div_(255)


def _planes(images_MHWC: Tensor, *, dtype: torch.dtype) -> Tensor:
    planes_CMHW = images_MHWC.permute(3, 0, 1, 2)
    return planes_CMHW.to(dtype, memory_format=torch.contiguous_format).div_(255)


def _drawn_rows(operation: Operation, chance: Chance) -> Tensor:
    """Return the views, int64 rows, that an operation is applied to."""
    is_drawn_M = chance.uniform(1)[:, 0] < operation.p
    if operation.branch != "both":
        is_drawn_M &= chance.views == ("first", "second").index(operation.branch)
    return is_drawn_M.nonzero()[:, 0]


def _memory_format(*, channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
