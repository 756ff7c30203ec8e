"""A start that fails leaves its last points in storage and no thread behind."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch

from tests.fakes.blobs import HeldStorage, LosableStorage
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.context import TrialContext
from trainer.errors import StorageUnavailable, Superseded
from trainer.mlflow_runs import RunDescription
from trainer.scribe import Scribe
from trainer.storage import open_storage


def begun(folder: Path) -> Scribe:
    context = TrialContext(
        experiment_id="exp_1", experiment_name="n", trial_id="t0000", attempt=1, storage=str(folder), cache_dir="c"
    )
    scribe = Scribe(context)
    scribe.begin(RunDescription(name="n", params={}, tags={}))
    return scribe


def kept(folder: Path) -> list[int]:
    storage = open_storage(str(folder))
    keys = storage.list("experiments/exp_1/trials/t0000/metrics/entry-")
    return [point[1] for key in keys for point in json.loads(storage.read(key))["points"]]


def test_what_was_recorded_just_before_a_failure_is_kept_and_the_pen_put_down(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    scribe = begun(tmp_path)
    scribe.metrics(1, {"loss": float("nan")})
    scribe.close()
    scribe.close()
    assert kept(tmp_path) == [1]
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    assert not {name for name in left if name != "stop-poll"}


def test_a_superseded_start_can_be_closed(tmp_path: Path) -> None:
    old = begun(tmp_path)
    old.metrics(1, {"loss": 1.0})
    new = begun(tmp_path)
    old.close()
    new.close()
    assert kept(tmp_path) == []


def test_a_superseded_start_leaves_the_products_of_its_successor_as_they_are(tmp_path: Path) -> None:
    old = begun(tmp_path)  # and has no points, which would ask whose the trial is
    new = begun(tmp_path)
    key = new.product("encoder.zip", b"of the owner")
    new.artifact("encoder/encoder.json", b"of the owner")
    with pytest.raises(Superseded):
        old.product("encoder.zip", b"of who was thought dead")
    new.close()
    with pytest.raises(Superseded):
        old.artifact("encoder/encoder.json", b"of who was thought dead")
    old.close()
    assert old.storage.read(key) == b"of the owner"
    assert [old.storage.read(key) for key in old.storage.list(old.context.key("artifacts/"))] == [b"of the owner"]


def test_a_write_under_way_as_its_start_is_superseded_harms_nothing_of_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = begun(tmp_path), begun(tmp_path)
    key = new.product("encoder.zip", b"of the owner")
    new.artifact("encoder/encoder.json", b"of the owner")
    new.close()
    with monkeypatch.context() as patch:
        patch.setattr("trainer.fence.Fence.check", lambda _: None)  # asked before, and frozen since
        assert old.product("encoder.zip", b"of who was thought dead") != key
        old.artifact("encoder/encoder.json", b"of who was thought dead")
    old.close()
    assert old.storage.read(key) == b"of the owner"
    artifacts = old.storage.list(old.context.key("artifacts/"))
    assert old.storage.read(artifacts[-1]) == b"of the owner"


def test_one_that_never_began_can_be_closed(tmp_path: Path) -> None:
    context = TrialContext(
        experiment_id="exp_1", experiment_name="n", trial_id="t0000", attempt=1, storage=str(tmp_path), cache_dir="c"
    )
    Scribe(context).close()


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step=step, tensors={"learner.w": torch.zeros(2)})


def test_a_checkpoint_is_written_while_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.scribe.CHECKPOINT_EVERY_S", 0.0)
    scribe, blobs = begun(tmp_path), HeldStorage(tmp_path)
    scribe.checkpoints = CheckpointStore(blobs, scribe.context, scribe.fence)
    at_last = threading.Timer(5.0, blobs.let_go.set)  # a step that waits goes on then, and too late
    at_last.start()
    assert scribe.is_checkpoint_due()
    scribe.checkpoint(checkpoint(1))
    scribe.metrics(2, {"loss": 1.0})
    assert not blobs.let_go.is_set()
    assert not scribe.is_checkpoint_due(), "the next would wait for this one"
    assert scribe.checkpoints.latest_step() == 0
    at_last.cancel()
    blobs.let_go.set()
    scribe.close()
    assert scribe.checkpoints.latest_step() == 1


def test_checkpoints_that_storage_refuses_are_borne_for_a_while_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scribe, blobs = begun(tmp_path), LosableStorage(tmp_path)
    scribe.checkpoints = CheckpointStore(blobs, scribe.context, scribe.fence)
    blobs.is_down = True
    for step in range(1, 8):  # however many they are
        scribe.checkpoint(checkpoint(step))
    blobs.is_down = False
    scribe.checkpoint(checkpoint(8))
    scribe.checkpoint_now(checkpoint(9))
    assert scribe.checkpoints.latest_step() == 9

    blobs.is_down = True
    monkeypatch.setattr("trainer.scribe.STORAGE_AWAY_MOST_S", 0.0)
    scribe.checkpoint(checkpoint(10))
    with pytest.raises(StorageUnavailable, match="refused checkpoints"):
        scribe.checkpoint(checkpoint(11))
    scribe.close()


def test_the_last_checkpoint_waits_while_storage_is_away_and_no_longer_than_an_outage_is_borne(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.scribe.RETRY_EVERY_S", 0.01)
    scribe, blobs = begun(tmp_path), LosableStorage(tmp_path)
    scribe.checkpoints = CheckpointStore(blobs, scribe.context, scribe.fence)
    blobs.is_down = True
    back = threading.Timer(0.3, setattr, (blobs, "is_down", False))
    back.start()
    scribe.checkpoint_now(checkpoint(1))
    assert not back.is_alive()
    assert scribe.checkpoints.latest_step() == 1

    blobs.is_down = True
    monkeypatch.setattr("trainer.scribe.STORAGE_AWAY_MOST_S", 0.1)
    with pytest.raises(StorageUnavailable, match="storage refused the checkpoint of step 2"):
        scribe.checkpoint_now(checkpoint(2))
    scribe.close()
