"""Chance: the random numbers of a block of views, each view's own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from trainer import seeding

__all__ = ["Chance"]


@dataclass(frozen=True, kw_only=True)
class Chance:
    """Draws for M views; a view's numbers depend on its row here alone, on nothing beside it.

    The ids are on the CPU, and so are the numbers: what is drawn decides how work is grouped, and
    asking an accelerator for it would make the CPU wait for every step.
    """

    seed: int
    epoch: int
    sample_ids: Tensor  # int64
    views: Tensor  # int64, 0 or 1
    stream: int

    def uniform(self, count: int) -> Tensor:
        """Return (M, count) float64 in [0, 1)."""
        return seeding.uniform_of(self.keys(), count=count)

    def keys(self) -> Tensor:
        """Return what `seeding` makes the numbers of each view from, (M,) int64."""
        return seeding.draw_keys(
            seed=self.seed, epoch=self.epoch, sample_ids_B=self.sample_ids, view=self.views, stream=self.stream
        )

    def of_rows(self, rows: Tensor) -> Chance:
        """Return the chance of some of the views."""
        return replace(self, sample_ids=self.sample_ids[rows], views=self.views[rows])

    def of_stream(self, stream: int) -> Chance:
        """Return independent chance for another purpose."""
        return replace(self, stream=stream)
