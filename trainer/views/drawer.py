"""The drawer of views: images in, augmented views out, in batches on the device of the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.spec import Operation, ViewsSpec
from trainer.transfer import to_device
from trainer.views.chance import Chance
from trainer.views.color import Adjustments
from trainer.views.rows import changed, put_, rows_where
from trainer.views.transformation import Transformation, build_transformation

__all__ = ["ViewDrawer", "to_input"]

BLOCK_PIXELS = 1 << 17  # of each channel, for each thread: a block and its temporaries stay in the cores' caches
MIN_BLOCK_VIEWS = 2  # one alone is not worth the calls


@dataclass(frozen=True, kw_only=True)
class Stage:
    """An operation, and what it does to each view that drew it."""

    transformation: Transformation[Any]
    is_drawn: Tensor  # (M,) bool
    drawn: tuple[Tensor, ...]  # a row for each view, whether it is applied or not

    def applied(self, planes_CMHW: Tensor, *, views: Tensor) -> Tensor:
        """Return a block of views, transformed; `views` are their rows in the batch, and may be overwritten."""
        rows = rows_where(self.is_drawn[views].tolist())
        part = [values[views[rows]] for values in self.drawn]
        drawn = type(self.drawn)._make(part) if hasattr(self.drawn, "_make") else tuple(part)
        return changed(planes_CMHW, rows, lambda some_CMHW: self.transformation.apply(some_CMHW, drawn))


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
        return self._views(images_BHWC, sample_ids_B.repeat(2), view_M=view_M, epoch=epoch)

    def _views(self, images_BHWC: Tensor, sample_ids_M: Tensor, *, view_M: Tensor, epoch: int) -> Tensor:
        """Return views of the images, in turn as often as there are ids."""
        self._require_images(images_BHWC)
        views_MCHW = torch.empty(
            (len(sample_ids_M), 3, self._image_size, self._image_size),
            dtype=self._dtype,
            device=images_BHWC.device,
            memory_format=_memory_format(channels_last=self._channels_last),
        )
        chance = Chance(seed=self._seed, epoch=epoch, sample_ids=sample_ids_M.cpu(), views=view_M, stream=0)
        stages = self._drawn(chance)
        is_cached = images_BHWC.device.type == "cpu"
        for rows in self._blocks(stages, num_views=len(views_MCHW), is_cached=is_cached):
            device_rows = to_device(rows, images_BHWC.device)
            images_MHWC = images_BHWC.index_select(0, device_rows % len(images_BHWC))
            planes_CMHW = _planes(images_MHWC, dtype=self._dtype)
            for stage in stages:
                planes_CMHW = stage.applied(planes_CMHW, views=rows)
            for channel in range(3):  # three plain copies are faster than one that permutes
                put_(views_MCHW[:, channel], rows, planes_CMHW[channel])
        return views_MCHW

    def _drawn(self, chance: Chance) -> list[Stage]:
        """Return what is done to which views; operation k has streams 2 k and 2 k + 1."""
        return [
            Stage(
                transformation=transformation,
                is_drawn=_is_drawn(operation, chance.of_stream(2 * index)),
                drawn=transformation.draw(chance.of_stream(2 * index + 1)),
            )
            for index, (operation, transformation) in enumerate(
                zip(self._operations, self._transformations, strict=True)
            )
        ]

    def _blocks(self, stages: list[Stage], *, num_views: int, is_cached: bool) -> tuple[Tensor, ...]:
        """Return the views in blocks, int64 rows; those to be treated alike are neighbours."""
        alike_M = torch.zeros(num_views, dtype=torch.int64)
        for stage in stages:
            alike_M = 2 * alike_M + stage.is_drawn
        for stage in stages:
            if isinstance(stage.drawn, Adjustments):
                alike_M += (stage.drawn.rank() * stage.is_drawn) << len(stages)
        size = torch.get_num_threads() * BLOCK_PIXELS // self._image_size**2 if is_cached else num_views
        return torch.split(alike_M.argsort(stable=True), max(MIN_BLOCK_VIEWS, size))

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
    """Return (3, M, H, W), columns in one piece: a crop begins with them."""
    planes_CMWH = images_MHWC.permute(3, 0, 2, 1)
    return planes_CMWH.to(dtype, memory_format=torch.contiguous_format).div_(255).transpose(2, 3)


def _is_drawn(operation: Operation, chance: Chance) -> Tensor:
    """Return the views that an operation is applied to, (M,) bool."""
    is_drawn_M = chance.uniform(1)[:, 0] < operation.p
    if operation.branch != "both":
        is_drawn_M &= chance.views == ("first", "second").index(operation.branch)
    return is_drawn_M


def _memory_format(*, channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
