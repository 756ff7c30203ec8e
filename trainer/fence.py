"""The fence: which start of a trial may write.

Proof that an earlier start is dead is not always to be had, so a start is fenced instead of
trusted dead. Each start creates the next numbered blob (a conditional write: of two, one wins);
the highest number owns the trial, and whoever finds a higher one than its own writes no more.

    fence/00000001.json   attempt 1
    fence/00000002.json   attempt 1, worker group restarted
    fence/00000003.json   attempt 2                              <- owner
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass

from trainer.context import TrialContext
from trainer.errors import Superseded
from trainer.storage import Storage

__all__ = ["Fence", "take_fence"]


@dataclass(frozen=True, kw_only=True)
class Fence:
    """One start's place in the line."""

    storage: Storage
    prefix: str
    generation: int

    def check(self) -> None:
        """Return while this start owns the trial; raise Superseded once a later one does."""
        latest = _latest(self.storage, self.prefix)
        if latest > self.generation:
            raise Superseded(
                f"start {self.generation} of this trial was superseded by start {latest}",
                generation=self.generation,
                latest=latest,
            )


def take_fence(storage: Storage, context: TrialContext) -> Fence:
    """Return the fence of a new start of this trial; every earlier one is shut out from here on.

    Raises:
        Superseded: If a start of a later attempt has been here already.
    """
    prefix = context.key("fence/")
    record = json.dumps({"attempt": context.attempt, "token": secrets.token_hex(16)}).encode()
    while True:
        latest = _latest(storage, prefix)
        if latest:
            owner = json.loads(storage.read(_key(prefix, latest)))
            if owner["attempt"] > context.attempt:
                raise Superseded(
                    f"attempt {context.attempt} came after attempt {owner['attempt']} had begun",
                    attempt=context.attempt,
                    latest_attempt=owner["attempt"],
                )
        if storage.create(_key(prefix, latest + 1), record):
            return Fence(storage=storage, prefix=prefix, generation=latest + 1)


def _latest(storage: Storage, prefix: str) -> int:
    keys = storage.list(prefix)
    return int(keys[-1].removeprefix(prefix).removesuffix(".json")) if keys else 0


def _key(prefix: str, generation: int) -> str:
    return f"{prefix}{generation:08d}.json"
