"""A checkpoint is whole or passed over, and only the start that owns the trial writes one."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from trainer.checkpoint import KEEP_LAST, Checkpoint, CheckpointStore, capture, restore
from trainer.context import ParentTrial, TrialContext
from trainer.errors import CheckpointCorrupt, Superseded
from trainer.fence import take_fence
from trainer.optim import build_optimizer, set_learning_rate
from trainer.spec import OptimSpec
from trainer.storage import open_storage


def context(
    folder: Path, *, attempt: int = 1, experiment_id: str = "exp_1", parent: ParentTrial | None = None
) -> TrialContext:
    return TrialContext(
        experiment_id=experiment_id,
        experiment_name="n",
        trial_id="t0000",
        attempt=attempt,
        storage=str(folder),
        cache_dir="c",
        parent=parent,
    )


def store(folder: Path, **changes: object) -> CheckpointStore:
    storage, trial = open_storage(str(folder)), context(folder, **changes)  # type: ignore[arg-type]
    return CheckpointStore(storage, trial, take_fence(storage, trial))


def state(step: int, score: float | None = None) -> Checkpoint:
    return Checkpoint(
        step=step,
        tensors={"learner.w": torch.full((2, 3), float(step)), "learner.n": torch.tensor(step)},
        score=score,
    )


def kept_steps(folder: Path) -> tuple[list[int], list[int]]:
    """Return the steps whose manifest, and whose blob, is there."""
    manifests, states = blobs(folder, "manifest-*"), blobs(folder, "state-*")
    return [int(path.stem.split("-")[1]) for path in manifests], [int(path.stem.split("-")[1]) for path in states]


def blobs(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.rglob(pattern))


def test_the_newest_is_read_back_to_the_bit_and_old_ones_go(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    for step in (5, 10, 15):
        checkpoints.save(state(step))
    latest = checkpoints.load_latest()
    assert latest is not None
    assert latest.step == 15
    assert all(torch.equal(latest.tensors[name], state(15).tensors[name]) for name in latest.tensors)
    assert len(blobs(tmp_path, "manifest-*")) == len(blobs(tmp_path, "state-*")) == KEEP_LAST


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_one_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    checkpoints = store(tmp_path)
    checkpoints.save(state(5))
    checkpoints.save(state(10))
    last = blobs(tmp_path, "state-*")[-1]
    data = bytearray(last.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        last.write_bytes(data)
    elif damage == "truncate":
        last.write_bytes(data[:-1])
    elif damage == "remove":
        last.unlink()
    else:
        blobs(tmp_path, "manifest-*")[-1].write_text('{"step": 10, "bl')
    with caplog.at_level(logging.WARNING):
        latest = checkpoints.load_latest()
    assert latest is not None
    assert latest.step == 5
    assert "falling back to the one before" in caplog.text
    with pytest.raises(CheckpointCorrupt):
        checkpoints.load(10)


def test_the_best_is_kept_beside_the_last_two(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    for step, score in ((5, 0.3), (10, 0.7), (15, None), (20, 0.6), (25, None), (30, None)):
        checkpoints.save(state(step, score))
    assert kept_steps(tmp_path) == ([10, 25, 30], [10, 25, 30])
    best, latest = checkpoints.load_best(), checkpoints.load_latest()
    assert best is not None
    assert (best.step, best.score) == (10, 0.7)
    assert latest is not None
    assert latest.step == 30


def test_a_later_start_knows_the_best_and_a_better_one_takes_its_place(tmp_path: Path) -> None:
    store(tmp_path).save(state(5, 0.5))
    checkpoints = store(tmp_path, attempt=2)
    assert [checkpoints.is_best(score) for score in (None, 0.4, 0.5, 0.6)] == [False, False, False, True]
    checkpoints.save(state(5))  # the same step once more, by a start that did not measure it
    for step, score in ((10, 0.4), (15, None), (20, None)):
        checkpoints.save(state(step, score))
    assert kept_steps(tmp_path)[0] == [5, 15, 20]
    for step, score in ((25, 0.6), (30, None), (35, None)):
        checkpoints.save(state(step, score))
    assert kept_steps(tmp_path)[0] == [25, 30, 35]


def test_a_torn_best_falls_back_to_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = store(tmp_path)
    assert checkpoints.load_best() is None
    checkpoints.save(state(5, 0.5))
    checkpoints.save(state(10, 0.6))
    blobs(tmp_path, "state-*10-*")[0].write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        best = checkpoints.load_best()
    assert best is not None
    assert best.step == 5
    assert "falling back to the next best" in caplog.text


def test_a_best_that_could_not_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = store(tmp_path)
    checkpoints.save(state(5, 0.5))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._storage, "write", no_space)
        with pytest.raises(OSError, match="No space"):
            checkpoints.save(state(10, 0.9))
    assert checkpoints.is_best(0.6)


def no_space(key: str, data: bytes) -> None:
    raise OSError(28, f"No space left on device for {len(data)} bytes of {key}")


def test_a_start_that_was_superseded_commits_none(tmp_path: Path) -> None:
    old = store(tmp_path)
    old.save(state(5))
    new = store(tmp_path, attempt=2)
    with pytest.raises(Superseded):
        old.save(state(10))
    latest = new.load_latest()
    assert latest is not None
    assert latest.step == 5


def test_a_continued_trial_starts_from_its_parents_newest(tmp_path: Path) -> None:
    store(tmp_path).save(state(5))
    child = store(tmp_path, experiment_id="exp_2", parent=ParentTrial(experiment_id="exp_1", trial_id="t0000"))
    assert child.latest_step() == 5
    child.save(state(7))
    assert child.latest_step() == 7
    other = store(tmp_path, experiment_id="exp_3", parent=ParentTrial(experiment_id="exp_1", trial_id=None))
    assert other.latest_step() == 0, "it is another trial than its namesake"


def test_without_any_there_is_no_step(tmp_path: Path) -> None:
    assert store(tmp_path).latest_step() == 0
    with pytest.raises(CheckpointCorrupt, match="no checkpoint of step 3"):
        store(tmp_path).load(3)


@pytest.mark.parametrize("kind", ["lars", "sgd", "adamw"])
def test_training_goes_on_from_a_restored_state_to_the_bit(tmp_path: Path, kind: str) -> None:
    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(64, 2)
        )
        module = module.to(memory_format=torch.channels_last)
        return module, build_optimizer(OptimSpec.model_validate({"kind": kind}), module)

    def train(module: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            module(x).square().sum().backward()
            set_learning_rate(optimizer, 0.1)
            optimizer.step()

    module, optimizer = fresh()
    train(module, optimizer, range(3))
    checkpoints = store(tmp_path)
    checkpoints.save(capture(3, module, optimizer))
    train(module, optimizer, range(3, 6))
    again, its_optimizer = fresh()
    restore(checkpoints.load(3), again, its_optimizer)
    train(again, its_optimizer, range(3, 6))
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_no_pickle_is_in_what_is_written(tmp_path: Path) -> None:
    store(tmp_path).save(state(5))
    (blob,) = blobs(tmp_path, "state-*")
    header_bytes = int.from_bytes(blob.read_bytes()[:8], "little")
    assert set(json.loads(blob.read_bytes()[8 : 8 + header_bytes])) == {"learner.w", "learner.n"}
