"""An object store that is away, refuses, or gets half of a write: what a run makes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import boto3
import moto.settings
import pytest
import torch
from botocore.config import Config

from tests.harness.experiments import SHORT, STEPS_PER_EPOCH
from tests.harness.object_store import ObjectStore
from tests.harness.trajectories import largest_difference, outcome
from trainer import scribe
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.context import TrialContext
from trainer.epoch_report import EpochReport
from trainer.fence import take_fence
from trainer.launch import run_trial_in_process
from trainer.spec import PretrainSpec
from trainer.storage import S3Storage, Storage, open_storage

EPOCHS: Final = 5
OUTAGE_S: Final = 8.0


@pytest.fixture(scope="module")
def object_store() -> Iterator[ObjectStore]:
    with ObjectStore() as store:
        yield store


@pytest.fixture(autouse=True)
def found(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)


def impatient_storage(store: ObjectStore, name: str) -> Storage:
    """Return a storage whose client tries once."""
    client = boto3.client("s3", config=Config(retries={"max_attempts": 0}))
    return S3Storage(bucket=store.bucket, prefix=name, client=client)


def test_a_refused_key_is_named_by_its_setting_and_not_tried_again(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)  # from here on keys are looked at
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    before = len(object_store.link.requests)
    with pytest.raises(OSError, match=r"InvalidAccessKeyId; see AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        open_storage(object_store.uri("refused")).write("a", b"x")
    assert len(object_store.link.requests) == before + 1


def test_a_missing_key_is_named_by_its_setting(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the keys that it found
    with pytest.raises(OSError, match="NoCredentialsError; see AWS_ACCESS_KEY_ID"):
        open_storage(object_store.uri("refused")).read("a")


def test_a_checkpoint_that_is_torn_on_its_way_is_never_taken_for_one(object_store: ObjectStore) -> None:
    storage, context = impatient_storage(object_store, "torn"), trial(object_store.uri("torn"))
    checkpoints = CheckpointStore(storage, context, take_fence(storage, context))
    checkpoints.save(state(1))
    with object_store.link.tearing("/state-"), pytest.raises(OSError, match="storage cannot write"):
        checkpoints.save(state(2))
    assert checkpoints.latest_step() == 1
    checkpoints.save(state(2))
    assert checkpoints.latest_step() == 2


def test_a_write_that_is_held_back_arrives(object_store: ObjectStore) -> None:
    storage = impatient_storage(object_store, "held")
    with ExitStack() as held:
        held.enter_context(object_store.link.held())
        writer = threading.Thread(target=storage.write, args=("a", b"x"))
        writer.start()
        writer.join(timeout=0.3)
        assert writer.is_alive()
    writer.join(timeout=10)
    assert storage.read("a") == b"x"


@pytest.mark.slow
def test_an_outage_in_the_middle_costs_a_run_nothing(
    object_store: ObjectStore, tmp_path: Path, datasets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scribe, "CHECKPOINT_EVERY_S", 2.0)  # else none would fall into it
    outage = ExitStack()
    began_s = 0.0

    def break_and_mend(report: EpochReport) -> bool:
        nonlocal began_s
        if report.epoch == 1:
            outage.enter_context(object_store.link.down())
            began_s = time.monotonic()
        if report.epoch == EPOCHS - 2:  # it trained so long without storage, and that is longer elsewhere
            threading.Event().wait(began_s + OUTAGE_S - time.monotonic())
            outage.close()
        return False

    losses, tensors = trained(object_store.uri("outage"), tmp_path, datasets_dir, on_epoch=break_and_mend)
    losses_without, tensors_without = trained(str(tmp_path / "storage"), tmp_path, datasets_dir)
    assert losses == losses_without
    assert largest_difference(tensors, tensors_without) == 0.0


@pytest.mark.slow
def test_a_run_that_ends_in_an_outage_waits_for_its_end(
    object_store: ObjectStore, tmp_path: Path, datasets_dir: Path
) -> None:
    """Its last checkpoint, metrics, bundle and marker are written when storage is back; nothing is computed again."""
    outage = ExitStack()
    mended = threading.Timer(OUTAGE_S, outage.close)

    def break_(report: EpochReport) -> bool:
        if report.epoch == EPOCHS - 1:  # the last that is reported
            outage.enter_context(object_store.link.down())
            mended.start()
        return False

    uri = object_store.uri("end")
    losses, tensors = trained(uri, tmp_path, datasets_dir, on_epoch=break_)
    assert not mended.is_alive()
    assert open_storage(uri).list("experiments/exp_1/trials/t0000/fence/") == [trial(uri).key("fence/00000001.json")]
    losses_without, tensors_without = trained(str(tmp_path / "storage"), tmp_path, datasets_dir)
    assert losses == losses_without
    assert largest_difference(tensors, tensors_without) == 0.0


def trained(storage: str, folder: Path, datasets: Path, **options: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return the loss of every step and the last tensors of a whole run in this process."""
    spec = PretrainSpec.model_validate(SHORT | {"epochs": EPOCHS})
    context = trial(storage, datasets_dir=str(datasets), cache_dir=str(folder / "cache"))
    run_trial_in_process(spec, context, **options)
    return outcome(context.model_dump(), steps=EPOCHS * STEPS_PER_EPOCH)


def trial(storage: str, **fields: str) -> TrialContext:
    names = {"experiment_id": "exp_1", "experiment_name": "n", "trial_id": "t0000", "cache_dir": "c"}
    return TrialContext.model_validate(names | {"attempt": 1, "storage": storage} | fields)


def state(step: int) -> Checkpoint:
    return Checkpoint(step=step, tensors={"learner.w": torch.full((200, 300), float(step))}, score=None)
