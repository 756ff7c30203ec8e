"""The driver of a run that waits for the cluster to change: `python -m tests.harness.elastic_job WORD`.

The first attempt holds still where it has one worker and another is to join, and where it has two
and one is to go.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Final

import ray

from trainer.context import JobDocument
from trainer.epoch_report import EpochReport
from trainer.launch import run_trial
from trainer.spec import PretrainSpec

HOLDS: Final = {(1, 1), (3, 2)}  # (epoch, workers)
HOLD_S: Final = 150.0


def hold(report: EpochReport) -> bool:
    import torch.distributed as dist

    workers = dist.get_world_size() if dist.is_initialized() else 1
    if (report.epoch, workers) in HOLDS:
        threading.Event().wait(HOLD_S)
        raise TimeoutError(f"the {workers} workers waited in vain for the cluster to change")
    return False


def main(word: str) -> None:
    document = JobDocument.decode(word)
    ray.init()
    Path(document.cache_dir, "gcs").write_text(ray.get_runtime_context().gcs_address)
    on_epoch = hold if document.attempt == 1 else None
    run_trial(PretrainSpec.model_validate(document.spec), document.trial_context("t0000"), on_epoch=on_epoch)


if __name__ == "__main__":
    main(sys.argv[1])
