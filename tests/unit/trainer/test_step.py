"""Ways to fit a batch in less memory compute the same gradient; what is not finite is named."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.harness.teams import run_team, train_trial, trial_context
from tests.harness.trajectories import series
from trainer.divergence import non_finite_loss
from trainer.encoder import checkpoint_blocks
from trainer.errors import NonFiniteLoss
from trainer.learner import SupervisedLearner, build_learner, prepare_learner
from trainer.optim import build_optimizer
from trainer.precision import resolve_precision
from trainer.spec import PretrainSpec
from trainer.step import Stepper, gradient_of
from trainer.team import Team, usable_workers

WITHOUT_BATCH_NORM = {
    "encoder": {"name": "resnet8", "norm": "group"},
    "projection_head": {"dim": 8, "batch_norm": False},
}
WITH_BATCH_NORM = {"encoder": {"name": "resnet8"}, "projection_head": {"dim": 8}}


def one_step(
    parts: dict[str, Any],
    *,
    micro_batch: int | None = None,
    is_checkpointed: bool = False,
    is_compiled: bool = False,
    **changes: Any,
) -> tuple[dict[str, float], list[torch.Tensor], dict[str, torch.Tensor]]:
    spec = PretrainSpec.model_validate(
        {"data": {"dataset": "digits"}, "precision": "float64", "optim": {"kind": "sgd"}, **parts, **changes}
    )
    learner = prepare_learner(spec, num_classes=3, team=Team(), dtype=torch.float64)
    if is_checkpointed:
        checkpoint_blocks(learner.encoder)
    stepper = Stepper(
        learner,
        build_optimizer(spec.optim, learner),
        team=Team(),
        precision=resolve_precision("float64", torch.device("cpu")),
        micro_batch=micro_batch,
        compile_=is_compiled,
    )
    views = torch.rand(16, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(8) % 3
    outcome = stepper(views, labels, learning_rate=0.1, wishes_stop=False)
    return outcome.metrics(), [gradient_of(p) for p in learner.parameters()], learner.state_dict()


def relative_difference(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    a, b = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (first, second))
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches_keep_all_negatives_and_the_gradient(micro_batch: int) -> None:
    whole, whole_gradient, _ = one_step(WITHOUT_BATCH_NORM)
    parts, parts_gradient, _ = one_step(WITHOUT_BATCH_NORM, micro_batch=micro_batch)
    assert parts == pytest.approx(whole, rel=1e-12)
    assert relative_difference(whole_gradient, parts_gradient) <= 1e-12


@pytest.mark.slow  # its first call imports torch's compiler
def test_activation_checkpointing_is_exact_with_batch_norm() -> None:
    whole, whole_gradient, whole_state = one_step(WITH_BATCH_NORM)
    again, again_gradient, again_state = one_step(WITH_BATCH_NORM, is_checkpointed=True)
    assert again == pytest.approx(whole, rel=1e-12)
    assert relative_difference(whole_gradient, again_gradient) <= 1e-12
    for name, value in whole_state.items():
        torch.testing.assert_close(again_state[name], value, rtol=1e-12, atol=1e-12)  # running statistics moved once


@pytest.mark.slow  # traced, though not translated to another language
@pytest.mark.parametrize("is_checkpointed", [False, True], ids=["whole", "block by block"])
def test_a_compiled_step_is_the_same_with_batch_norm(
    monkeypatch: pytest.MonkeyPatch,
    is_checkpointed: bool,  # noqa: FBT001 - a case
) -> None:
    compiled, compile_ = [], torch.compile

    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled.append(function.__name__)
        return compile_(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", traced)
    whole, whole_gradient, whole_state = one_step(WITH_BATCH_NORM)
    again, again_gradient, again_state = one_step(
        WITH_BATCH_NORM, is_compiled=True, memory={"activation_checkpointing": is_checkpointed}
    )
    assert compiled == (["forward"] * 3 if is_checkpointed else ["outputs"])
    assert again == pytest.approx(whole, rel=1e-12)
    assert relative_difference(whole_gradient, again_gradient) <= 1e-12
    for name, value in whole_state.items():
        torch.testing.assert_close(again_state[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("is_checkpointed", [False, True], ids=["whole", "block by block"])
def test_every_trial_of_a_process_is_compiled_and_no_evaluation(
    monkeypatch: pytest.MonkeyPatch,
    is_checkpointed: bool,  # noqa: FBT001 - a case
) -> None:
    calls, compile_ = [0], torch.compile

    def counting(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            calls[0] += 1
            return graph(*inputs)

        return call

    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=counting))
    memory = {"activation_checkpointing": is_checkpointed}
    made = []
    for width in (1, 2, 4):
        calls[0] = 0
        parts = WITH_BATCH_NORM | {"encoder": {"name": "resnet14", "width": width}}
        one_step(parts, is_compiled=True, memory=memory)
        made.append(calls[0])
    assert made == [made[0]] * 3
    assert made[0] > 0
    spec = PretrainSpec.model_validate({"data": {"dataset": "digits"}, **WITH_BATCH_NORM, "memory": memory})
    learner = prepare_learner(spec, num_classes=None, team=Team(), dtype=torch.float32)
    precision = resolve_precision("float32", torch.device("cpu"))
    optimizer = build_optimizer(spec.optim, learner)
    Stepper(learner, optimizer, team=Team(), precision=precision, micro_batch=None, compile_=True)
    calls[0] = 0
    with torch.inference_mode():
        copy.deepcopy(learner.encoder).eval()(torch.rand(2, 3, 16, 16))
        learner.encoder.eval()(torch.rand(2, 3, 16, 16))
    assert calls[0] == 0


def test_the_supervised_baseline_learns_from_labels_and_needs_them() -> None:
    metrics, gradient, _ = one_step(WITH_BATCH_NORM, method="supervised")
    assert set(metrics) == {"loss"}
    assert all(bool(g.abs().sum() > 0) for g in gradient[-2:])
    learner = build_learner(
        PretrainSpec.model_validate({"data": {"dataset": "digits"}, "method": "supervised", **WITH_BATCH_NORM}),
        num_classes=3,
        group=None,
    )
    assert isinstance(learner, SupervisedLearner)
    with pytest.raises(ValueError, match="needs labels"):
        learner.metrics(torch.zeros(4, 3), None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named_with_step_rank_and_value(value: float) -> None:
    error = non_finite_loss(17, torch.tensor(value), Team())
    assert isinstance(error, NonFiniteLoss)
    assert error.context == {"step": 17, "rank": 0, "value": str(value)}
    assert "step 17 on rank 0" in str(error)


def train_until_rank_1_fails(team: Team, spec: dict[str, Any], context: dict[str, Any], value: float) -> None:
    """Train with a loss of rank 1 that is not finite in the third step, and write what the run ends with."""
    whole, made = Stepper._backward_whole, 0

    def spoiled(stepper: Stepper, *batch: Any) -> dict[str, torch.Tensor]:
        nonlocal made
        made += 1
        metrics = whole(stepper, *batch)
        if made == 3 and team.rank == 1:
            metrics["loss"] = torch.full_like(metrics["loss"], value)
        return metrics

    with patch.object(Stepper, "_backward_whole", spoiled), pytest.raises(NonFiniteLoss) as caught:
        train_trial(team, spec, context)
    (Path(context["storage"]) / f"error-{team.rank}.json").write_text(json.dumps(caught.value.record()))


@pytest.mark.slow  # it evaluates
@pytest.mark.parametrize("knn_every_epochs", [1, 0], ids=["on the way", "at the end"])
def test_an_update_that_is_not_finite_is_named_where_the_encoder_is_evaluated_before_a_loss_shows_it(
    tmp_path: Path, datasets_dir: Path, knn_every_epochs: int
) -> None:
    spec = WITH_BATCH_NORM | {
        "data": {"dataset": "shapes", "image_size": 16},
        "batch_size": 200,  # one step an epoch
        "epochs": 1 if knn_every_epochs == 0 else 3,
        "evaluation": {"knn_every_epochs": knn_every_epochs, "linear_probe": False},
    }
    whole = Stepper._backward_whole

    def spoiled(stepper: Stepper, *batch: Any) -> dict[str, torch.Tensor]:
        metrics = whole(stepper, *batch)
        for parameter in stepper.learner.parameters():
            assert parameter.grad is not None
            parameter.grad.fill_(torch.nan)
        return metrics

    words = "update of step 1, as the loss would next; lower optim.base_lr"
    with patch.object(Stepper, "_backward_whole", spoiled), pytest.raises(NonFiniteLoss, match=words) as caught:
        train_trial(Team(), spec, trial_context(tmp_path, datasets_dir))
    assert caught.value.context["step"] == 1


@pytest.mark.slow  # two processes
def test_a_run_ends_at_a_loss_that_is_not_finite_on_all_ranks_alike(tmp_path: Path, datasets_dir: Path) -> None:
    spec = WITH_BATCH_NORM | {"data": {"dataset": "shapes", "image_size": 16}, "batch_size": 48, "epochs": 2}
    context = trial_context(tmp_path, datasets_dir)
    run_team(2, train_until_rank_1_fails, spec, context, -math.inf)
    errors = [json.loads((tmp_path / "storage" / f"error-{rank}.json").read_text()) for rank in range(2)]
    assert errors[0] == errors[1]
    assert (errors[0]["code"], errors[0]["retryable"]) == ("non_finite_loss", False)
    assert errors[0]["context"] == {"step": 3, "rank": 1, "value": "-inf"}
    assert "the loss became -inf at step 3 on rank 1; lower optim.base_lr" in errors[0]["message"]
    assert list(series(context, "loss")) == [1, 2]


@pytest.mark.parametrize(
    ("batch", "available", "used"), [(48, 4, 4), (48, 5, 4), (7, 6, 1), (256, 64, 64), (6, 100, 6)]
)
def test_a_team_is_the_most_workers_that_share_the_batch_evenly(batch: int, available: int, used: int) -> None:
    assert usable_workers(batch, available) == used


def test_shares_cover_everything_once() -> None:
    for total in (0, 1, 7, 16):
        for world_size in (1, 2, 3, 5):
            shares = [Team(rank=rank, world_size=world_size).share(total) for rank in range(world_size)]
            assert [index for share in shares for index in range(total)[share]] == list(range(total))
