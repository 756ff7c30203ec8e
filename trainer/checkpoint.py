"""Checkpoints: all that a run needs to go on from a step, to the bit.

A checkpoint is a safetensors blob and, written after it, a manifest with its digest: without the
manifest it does not exist. There is no random state in it, since every draw is a function of
(seed, epoch, sample, view) and the order of samples one of (seed, epoch): the step says it all.

Kept are the last two, and the best: the one with the highest kNN accuracy of h (on images that are
no test images) among the epochs where that was measured. A run goes on from the last and its
bundle holds the last encoder, as in the paper: choosing the best epoch would choose by the images
that the accuracy is reported on. The best is kept for a user who wants it all the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.context import ParentTrial, TrialContext, trial_key
from trainer.errors import CheckpointCorrupt
from trainer.fence import Fence
from trainer.optim import load_optimizer_tensors, optimizer_tensors
from trainer.storage import BlobMissing, Storage

__all__ = ["Checkpoint", "CheckpointStore", "capture", "restore"]

logger = logging.getLogger(__name__)

KEEP_LAST = 2  # a torn last one falls back to the one before

_LEARNER = "learner."
_OPTIMIZER = "optimizer."


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State after `step` updates, on the CPU."""

    step: int
    tensors: dict[str, Tensor]
    score: float | None = None  # kNN accuracy of h, 0..1, where it was measured


class _Scored(NamedTuple):
    score: float
    step: int


def capture(step: int, learner: nn.Module, optimizer: Optimizer, *, score: float | None = None) -> Checkpoint:
    """Return a copy of the state after `step` updates; training may go on at once."""
    tensors = {_LEARNER + name: value for name, value in learner.state_dict().items()}
    tensors |= {_OPTIMIZER + name: value for name, value in optimizer_tensors(optimizer, learner).items()}
    # contiguous: safetensors keeps no strides, and channels_last is restored by the module
    return Checkpoint(
        step=step,
        tensors={
            name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, value in tensors.items()
        },
        score=score,
    )


def restore(checkpoint: Checkpoint, learner: nn.Module, optimizer: Optimizer) -> None:
    """Put the state back, in place; names and shapes must be those that were captured."""
    parts: dict[str, dict[str, Tensor]] = {_LEARNER: {}, _OPTIMIZER: {}}
    for name, value in checkpoint.tensors.items():
        prefix = _LEARNER if name.startswith(_LEARNER) else _OPTIMIZER
        parts[prefix][name.removeprefix(prefix)] = value
    learner.load_state_dict(parts[_LEARNER])
    load_optimizer_tensors(optimizer, learner, parts[_OPTIMIZER])


class CheckpointStore:
    """The checkpoints of one trial in storage: written behind the fence, verified when read."""

    def __init__(self, storage: Storage, context: TrialContext, fence: Fence | None) -> None:
        self._storage = storage
        self._prefix = context.key("checkpoints/")
        self._parent = _parent_prefix(context.parent)
        self._fence = fence
        self._best = max(self._scored(), default=None) if fence is not None else None

    def is_best(self, score: float | None) -> bool:
        """Return whether a checkpoint of this score would be the best so far."""
        return score is not None and (self._best is None or score > self._best.score)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint, then drop those that the policy does not keep.

        Raises:
            Superseded: If a later start owns the trial.
            OSError: If storage refuses the write.
        """
        fence = self._fence
        if fence is None:
            raise ValueError("only the start that holds the fence may save")
        best = self._best
        if checkpoint.score is not None and self.is_best(checkpoint.score):
            best = _Scored(checkpoint.score, checkpoint.step)
        data = save_tensors(checkpoint.tensors)
        blob_key = f"{self._prefix}state-{checkpoint.step:010d}-{fence.generation:08d}.safetensors"
        self._storage.write(blob_key, data)
        manifest = {
            "step": checkpoint.step,
            "blob": blob_key,
            "sha256": hashlib.sha256(data).hexdigest(),
            "size_bytes": len(data),
            "score": best.score if best is not None and best.step == checkpoint.step else None,
        }
        fence.check()
        self._storage.write(f"{self._prefix}manifest-{checkpoint.step:010d}.json", json.dumps(manifest).encode())
        self._best = best
        self._prune()

    def latest_step(self) -> int:
        """Return the step of the newest checkpoint that verifies, 0 if there is none."""
        checkpoint = self.load_latest()
        return checkpoint.step if checkpoint else 0

    def load_latest(self) -> Checkpoint | None:
        """Return the newest checkpoint that verifies, passing over torn ones with a warning.

        A trial that continues another starts from that one's newest until it has its own.
        """
        for prefix in filter(None, (self._prefix, self._parent)):
            for key in reversed(self._storage.list(f"{prefix}manifest-")):
                try:
                    return self._load(key)
                except CheckpointCorrupt as error:
                    logger.warning("%s; falling back to the one before", error)
        return None

    def load_best(self) -> Checkpoint | None:
        """Return the best checkpoint that verifies, None where none was measured or all that were are torn."""
        for scored in sorted(self._scored(), reverse=True):
            try:
                return self.load(scored.step)
            except CheckpointCorrupt as error:
                logger.warning("%s; falling back to the next best", error)
        return None

    def load(self, step: int) -> Checkpoint:
        """Return the checkpoint of exactly this step. Raises CheckpointCorrupt."""
        for prefix in filter(None, (self._prefix, self._parent)):
            key = f"{prefix}manifest-{step:010d}.json"
            if key in self._storage.list(key):
                return self._load(key)
        raise CheckpointCorrupt(f"there is no checkpoint of step {step}", step=step)

    def _load(self, manifest_key: str) -> Checkpoint:
        try:
            manifest = json.loads(self._storage.read(manifest_key))
            data = self._storage.read(manifest["blob"])
        except (BlobMissing, ValueError, KeyError) as error:
            raise CheckpointCorrupt(f"checkpoint {manifest_key} is torn: {error}", key=manifest_key) from error
        if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
            raise CheckpointCorrupt(f"checkpoint {manifest['blob']} does not match its digest", key=manifest_key)
        return Checkpoint(step=int(manifest["step"]), tensors=load_tensors(data), score=manifest.get("score"))

    def _prune(self) -> None:
        manifests = self._storage.list(f"{self._prefix}manifest-")
        kept = {_step_of(key) for key in manifests[-KEEP_LAST:]}
        if self._best is not None:
            kept.add(self._best.step)
        for key in [*manifests, *self._storage.list(f"{self._prefix}state-")]:
            if _step_of(key) not in kept:
                self._storage.delete(key)

    def _scored(self) -> Iterator[_Scored]:
        """Yield the score and step of each checkpoint that has a score; of equal scores the later is the greater."""
        for key in self._storage.list(f"{self._prefix}manifest-"):
            with suppress(ValueError, BlobMissing):  # a torn one is nobody's best
                if (score := json.loads(self._storage.read(key)).get("score")) is not None:
                    yield _Scored(score, _step_of(key))


def _step_of(key: str) -> int:
    return int(key.rpartition("/")[2].split("-")[1].removesuffix(".json"))


def _parent_prefix(parent: ParentTrial | None) -> str | None:
    if parent is None or parent.trial_id is None:
        return None
    return trial_key(parent.experiment_id, parent.trial_id, "checkpoints/")
