"""The precision of an experiment: what its first start computed in, every later one computes in.

`auto` is decided by the hardware, and the nodes of a cluster differ: a run that went on elsewhere,
or a sweep whose trials met other processors, would part by what they round to. So the ranks of the
first start decide together, and the experiment keeps it. A node without units for it computes the
same numbers by software, only slower.
"""

from __future__ import annotations

import json
import logging
import secrets
from contextlib import suppress
from typing import Final, Literal

from trainer.context import TrialContext, experiment_key
from trainer.precision import Name, Precision, resolve_precision
from trainer.storage import BlobMissing, Storage
from trainer.team import Team

__all__ = ["agreed_precision"]

logger = logging.getLogger(__name__)

_CHOICES: Final[tuple[Name, ...]] = ("float32", "bfloat16")  # what `auto` may be, the one that all hardware has first
_KEY: Final = "precision.json"


def agreed_precision(asked: Literal["auto"] | Name, storage: Storage, context: TrialContext, team: Team) -> Precision:
    """Return the precision in force, the same on all ranks of all starts of the experiment; called by all ranks.

    Args:
        asked: What the spec says. Where it says `auto`, it is bfloat16 if every rank of the first
            start computed in it, and float32 if not; a continued experiment is held to its parent's.
        storage: Keeps the decision.
        context: Of this trial.
        team: Of this start.
    """
    own = resolve_precision(asked, team.device)
    if asked != "auto":
        return own
    common = min(choice for (choice,) in team.numbers_of_all(_CHOICES.index(own.name)))
    name = _CHOICES[team.agree_on(_recorded(storage, context, common) if team.is_first else 0)]
    if name != own.name:
        logger.warning(
            "rank %d computes in %s, as this experiment began; by itself this node would in %s",
            team.rank,
            name,
            own.name,
        )
    return Precision(name=name, device_type=team.device.type)


def _recorded(storage: Storage, context: TrialContext, choice: int) -> int:
    """Return what the first start chose, which may be this one."""
    if context.parent is not None:
        with suppress(BlobMissing):  # a parent that was never started has none
            choice = _read(storage, context.parent.experiment_id)
    document = {"precision": _CHOICES[choice], "attempt": context.attempt, "nonce": secrets.token_hex(8)}
    storage.create(experiment_key(context.experiment_id, _KEY), json.dumps(document).encode())
    return _read(storage, context.experiment_id)


def _read(storage: Storage, experiment_id: str) -> int:
    return _CHOICES.index(json.loads(storage.read(experiment_key(experiment_id, _KEY)))["precision"])
