"""The data an experiment began with: what its first start saw is what every later one must see.

Images may be changed, added or decoded anew between two attempts, or differ between two nodes. A
run that went on regardless would be no function of its spec, data and seed any more, so it is
refused. An experiment records the digest of each data set and size that it uses, once; a continued
one is held to its parent's.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from contextlib import suppress
from typing import Final

from trainer.context import TrialContext, experiment_key
from trainer.data.dataset import Dataset
from trainer.errors import DataError
from trainer.spec import DataSpec
from trainer.storage import BlobMissing, Storage
from trainer.team import Team

__all__ = ["require_same_data"]

_COMPARED_DIGITS: Final = 15  # of the digest: 60 bits fit the integers that ranks exchange
_SHOWN_DIGITS: Final = 12


def require_same_data(storage: Storage, context: TrialContext, spec: DataSpec, dataset: Dataset, team: Team) -> None:
    """Record the digest of `dataset` at the first start, and hold every later one and all ranks to it.

    Called by all ranks, of which all return or all raise.

    Raises:
        DataError: If some rank has other images, labels or classes than the first start had.
    """
    key = _key(context.experiment_id, spec)
    if team.is_first:
        _record(storage, context, spec, dataset)
    ranks = team.numbers_of_all(int(dataset.digest[:_COMPARED_DIGITS], 16))
    digests = [f"{number:0{_COMPARED_DIGITS}x}" for (number,) in ranks]
    first = json.loads(storage.read(key))["digest"]  # rank 0 wrote it before it joined the gather
    for rank, digest in enumerate(digests):
        if digest != first[:_COMPARED_DIGITS]:
            raise DataError(
                f"the data of {dataset.name!r} changed since this experiment first started: its digest was "
                f"{first[:_SHOWN_DIGITS]} and is {digest[:_SHOWN_DIGITS]} on rank {rank}; put the old images back, "
                "or clone the experiment to train on the new ones from the start",
                dataset=dataset.name,
                first_digest=first,
                digest=digest,
                rank=rank,
            )


def _record(storage: Storage, context: TrialContext, spec: DataSpec, dataset: Dataset) -> None:
    digest = dataset.digest
    if context.parent is not None:
        with suppress(BlobMissing):  # a parent that was never started had no images
            digest = json.loads(storage.read(_key(context.parent.experiment_id, spec)))["digest"]
    document = {
        "dataset": dataset.name,
        "digest": digest,
        "attempt": context.attempt,
        "nonce": secrets.token_hex(8),  # of trials that start together one writes it
    }
    storage.create(_key(context.experiment_id, spec), json.dumps(document).encode())


def _key(experiment_id: str, spec: DataSpec) -> str:
    """Return where the digest is kept: the trials of a sweep may differ in size or split."""
    what = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16]
    return experiment_key(experiment_id, f"data/{what}.json")
