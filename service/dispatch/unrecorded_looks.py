"""Looks for what MLflow lacks of ended experiments, beside the dispatcher's steps.

One reads up to three blobs of each trial: of a large sweep in a bucket that takes minutes, and no
step may wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Final

from service.storage_threads import StorageThreads
from trainer.storage import Storage
from trainer.unrecorded import unrecorded_runs

__all__ = ["UnrecordedLooks"]

NUM_THREADS: Final = 4  # their own: a look must not keep markers waiting
STEP_WAITS_S: Final = 1.0  # for the answer of a small experiment
LOOK_S: Final = 900.0  # 15,000 trials at three reads of 20 ms each


class UnrecordedLooks:
    """Each look is begun by the first who asks for it, and its answer is given once."""

    def __init__(self, blobs: Storage) -> None:
        self._blobs = blobs
        self._threads = StorageThreads(number=NUM_THREADS)
        self._looks: dict[tuple[str, str], asyncio.Task[Sequence[str]]] = {}

    async def runs(self, experiment_id: str, *, purpose: str) -> Sequence[str] | None:
        """Return the runs of an ended experiment of which MLflow did not take all, as a look for `purpose` found them.

        None: it goes on; ask again later. It began no earlier than the first of these calls.

        Raises:
            BlobsUnavailable: If storage did not answer it.
        """
        key = (experiment_id, purpose)
        is_alone = all(look.done() for look in self._looks.values())
        if key not in self._looks:
            call = self._threads.run(lambda: unrecorded_runs(self._blobs, experiment_id), within_s=LOOK_S)
            self._looks[key] = asyncio.create_task(call)
            self._looks[key].add_done_callback(_take_note)
        look = self._looks[key]
        # Of many that take long, only the first costs a step its patience.
        await asyncio.wait({look}, timeout=STEP_WAITS_S if is_alone else 0)
        if not look.done():
            return None
        del self._looks[key]
        return look.result()

    def keep(self, experiment_ids: Collection[str]) -> None:
        """Forget the looks at all other experiments."""
        for key in [key for key in self._looks if key[0] not in experiment_ids]:
            self._looks.pop(key).cancel()


def _take_note(look: asyncio.Task[Sequence[str]]) -> None:
    """Take the exception of a look that nobody may ask for any more; who asks still gets it."""
    if not look.cancelled():
        look.exception()
