"""Hand each step its local batch, the next one being gathered while the step computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset import Subset

__all__ = ["Batch", "BatchReader"]


@dataclass(frozen=True, eq=False)
class Batch:
    """The local batch of one step."""

    images: NDArray[np.uint8]  # (B, size, size, 3), contiguous
    sample_ids: NDArray[np.int64]  # (B,), what augmentation randomness is a function of
    labels: NDArray[np.int64] | None  # (B,)


class BatchReader:
    """Gathers rows of a mapped subset, one batch ahead, in a thread of its own."""

    def __init__(self, subset: Subset) -> None:
        self._subset = subset

    def read(self, order: Iterable[NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield the batch at each of `order`'s positions; an abandoned iterator ends its thread."""
        with ThreadPoolExecutor(1, thread_name_prefix="batch-reader") as thread:
            ahead: Future[Batch] | None = None
            for positions in order:
                ready, ahead = ahead, thread.submit(self.gather, positions)
                if ready is not None:
                    yield ready.result()
            if ahead is not None:
                yield ahead.result()

    def gather(self, positions: NDArray[np.int64]) -> Batch:
        """Return the batch at these positions of the subset."""
        labels = self._subset.labels
        return Batch(
            images=self._subset.take(positions),
            sample_ids=self._subset.sample_ids[positions],
            labels=None if labels is None else labels[positions],
        )
