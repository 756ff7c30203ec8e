"""The gradient of W workers is that of one, with batch norm in encoder and head."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

import trainer.learner
from tests.harness.teams import run_team
from trainer import parity
from trainer.batch_norm import BLOCK_IMAGES
from trainer.data.prepare import prepare
from trainer.learner import build_learner, prepare_learner
from trainer.optim import build_optimizer
from trainer.parity import TOLERANCES, gradient_error, team_parity
from trainer.precision import resolve_precision
from trainer.spec import PretrainSpec
from trainer.step import Stepper
from trainer.team import Team

pytestmark = pytest.mark.slow

BASE: dict[str, Any] = {"data": {"dataset": "any", "image_size": 16}, "batch_size": 16, "precision": "float64"}


@pytest.mark.parametrize(
    ("workers", "changes"),
    [
        (2, {"encoder": {"name": "resnet8"}}),
        (4, {"encoder": {"name": "resnet8"}}),
        (2, {"encoder": {"name": "resnet18"}, "loss": {"temperature": 0.1}}),
        (2, {"encoder": {"name": "resnet8"}, "loss": {"kind": "nt_logistic", "semi_hard": True}}),
    ],
)
def test_gradient_parity_in_float64(workers: int, changes: dict[str, Any]) -> None:
    assert gradient_error(PretrainSpec.model_validate(BASE | changes), workers=workers) <= 1e-12


@pytest.mark.parametrize(("channels_last", "seed"), [(True, 0), (True, 3), (False, 0)])
def test_gradient_parity_in_float32(seed: int, *, channels_last: bool) -> None:
    changes = {"encoder": {"name": "resnet8"}, "precision": "float32", "channels_last": channels_last, "seed": seed}
    spec = PretrainSpec.model_validate(BASE | changes | {"batch_size": 2 * BLOCK_IMAGES})
    assert gradient_error(spec, workers=2) <= TOLERANCES["float32"]


# --- the check that every start of a run makes of its own team ------------------------------------

RUN: dict[str, Any] = {
    "data": {"dataset": "shapes", "image_size": 16},
    "encoder": {"name": "resnet8"},
    "batch_size": 48,
    "precision": "float32",
}
SOUND: dict[str, dict[str, Any]] = {
    "simclr": {},
    "supervised": {"method": "supervised"},
    "recomputed": {"memory": {"activation_checkpointing": True}},
    "triplets": {"loss": {"kind": "margin", "semi_hard": True}},
}


@contextmanager
def batch_norm_of_each_worker_alone() -> Iterator[None]:
    with patch.object(trainer.learner, "globalize_batch_norm"):  # leaves every layer as it is
        yield


def check_team(team: Team, datasets: str, folder: str) -> None:
    """Write what each kind of run finds, what a broken one finds, and whether weights were left alone."""

    def found(changes: dict[str, Any], after: str = "") -> float | None:
        spec = PretrainSpec.model_validate(RUN | changes)
        dataset = prepare(
            "shapes",
            image_size=16,
            cache_dir=Path(folder) / f"cache{team.rank}",
            datasets_dir=Path(datasets),
            validation_ratio=0.1,
        )
        learner = prepare_learner(spec, num_classes=4, team=team, dtype=torch.float32)
        if after == "other weights":
            with torch.no_grad():
                for parameter in learner.parameters():
                    parameter.mul_(1.5)
        before = {name: value.clone() for name, value in learner.state_dict().items()}
        error = team_parity(spec, learner, dataset, team)
        assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
        assert all(parameter.grad is None for parameter in learner.parameters())
        return error

    errors = {name: found(changes) for name, changes in SOUND.items()}
    errors["other weights"] = found({}, after="other weights")
    with batch_norm_of_each_worker_alone():
        errors["broken"] = found({})
    (Path(folder) / f"errors-{team.rank}.json").write_text(json.dumps(errors))


def test_a_team_finds_its_gradient_to_be_that_of_one_and_finds_where_it_is_not(
    tmp_path: Path, datasets_dir: Path
) -> None:
    run_team(2, check_team, str(datasets_dir), str(tmp_path))
    first, second = (json.loads((tmp_path / f"errors-{rank}.json").read_text()) for rank in (0, 1))
    assert first.pop("broken") > 1e-3
    assert first.keys() == {*SOUND, "other weights"}
    assert all(0 < error <= TOLERANCES["float64"] for error in first.values()), first
    assert set(second.values()) == {None}


def test_one_worker_is_its_own_measure(datasets_dir: Path, tmp_path: Path) -> None:
    spec = PretrainSpec.model_validate(RUN)
    dataset = prepare("shapes", image_size=16, cache_dir=tmp_path, datasets_dir=datasets_dir, validation_ratio=0.1)
    learner = prepare_learner(spec, num_classes=4, team=Team(), dtype=torch.float32)
    assert team_parity(spec, learner, dataset, Team()) == 0


# --- at points along a run ------------------------------------------------------------------------


def check_along_a_run(team: Team, folder: str) -> None:
    """Train on a team, and write the parity in float32 at the weights before some of its steps."""
    spec = PretrainSpec.model_validate(
        BASE | {"encoder": {"name": "resnet8"}, "precision": "float32", "batch_size": 2 * BLOCK_IMAGES}
    )
    learner = prepare_learner(spec, num_classes=None, team=team, dtype=torch.float32)
    precision = resolve_precision("float32", team.device)
    optimizer = build_optimizer(spec.optim, learner)
    stepper = Stepper(learner, optimizer, team=team, precision=precision, micro_batch=None)
    errors = {}
    for step in range(11):
        generator = torch.Generator().manual_seed(step)
        images_NHWC = torch.randint(0, 256, (spec.batch_size, 16, 16, 3), generator=generator, dtype=torch.uint8)
        if step in (1, 5, 10):
            errors[step] = parity_at(learner, spec, team, images_NHWC)
        views_2NCHW = torch.cat([images_NHWC, images_NHWC.flip(2)]).permute(0, 3, 1, 2) / 255
        halves = [half[team.share(spec.batch_size)] for half in views_2NCHW.chunk(2)]
        stepper(torch.cat(halves), None, learning_rate=20.0, wishes_stop=False)
    if team.is_first:
        moved = build_learner(spec, num_classes=None, group=None).encoder.conv1.weight - learner.encoder.conv1.weight
        (Path(folder) / "errors.json").write_text(json.dumps([errors, float(moved.detach().norm())]))


def parity_at(learner: Any, spec: PretrainSpec, team: Team, images_NHWC: torch.Tensor) -> float:
    """Return by how much gradients of copies in float32, of the team and of one, differ."""

    def gradient(of: Team) -> dict[str, torch.Tensor]:
        copy = prepare_learner(spec, num_classes=None, team=of, dtype=torch.float32)
        copy.load_state_dict(learner.state_dict())
        return parity._gradient(copy, spec, of, images_NHWC, None, dtype=torch.float32)

    return parity._relative_error(gradient(team), gradient(Team()))


def test_along_a_run_in_float32_the_gradient_from_the_same_weights_is_that_of_one(tmp_path: Path) -> None:
    run_team(2, check_along_a_run, str(tmp_path))
    errors, moved = json.loads((tmp_path / "errors.json").read_text())
    assert moved > 0.5  # of a length of 2.5
    assert all(0 < error <= 1e-5 for error in errors.values()), errors
