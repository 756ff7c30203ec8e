"""Plans: ids and params are a function of the sweep alone, and costs add up."""

from __future__ import annotations

from typing import Any

import pytest

from tune_spaces.plan import plan_sweep
from tune_spaces.problems.sweep import sweep_problems
from tune_spaces.spec import SweepSpec

BASE: dict[str, Any] = {"data": {"dataset": "digits"}, "batch_size": 64, "epochs": 4}


def sweep(space: dict[str, Any], **fields: Any) -> SweepSpec:
    return SweepSpec.model_validate({"base": BASE, "space": space} | fields)


def test_a_grid_has_each_point_under_each_seed_in_written_order() -> None:
    plan = plan_sweep(sweep({"epochs": {"choice": [2, 4]}}, seeds=[3, 5]), lambda _: 1000)
    assert [(trial.id, trial.params, trial.spec.seed) for trial in plan.trials] == [
        ("t0000", {"epochs": 2, "seed": 3}, 3),
        ("t0001", {"epochs": 2, "seed": 5}, 5),
        ("t0002", {"epochs": 4, "seed": 3}, 3),
        ("t0003", {"epochs": 4, "seed": 5}, 5),
    ]


def test_one_seed_is_no_param() -> None:
    assert plan_sweep(sweep({"epochs": {"choice": [2]}}, seeds=[3]), lambda _: 1000).trials[0].params == {"epochs": 2}


def test_costs_count_whole_batches_of_each_trial() -> None:
    plan = plan_sweep(sweep({"batch_size": {"choice": [64, 100]}, "epochs": {"choice": [1, 3]}}), lambda _: 250)
    assert (plan.num_trials, plan.steps, plan.images) == (4, (3 + 2) * (1 + 3), (3 * 64 + 2 * 100) * (1 + 3))


def test_random_trials_are_the_same_every_time_and_more_of_them_change_none() -> None:
    space = {"loss.temperature": {"loguniform": [0.05, 1.0]}, "batch_size": {"choice": [32, 64]}}
    few = plan_sweep(sweep(space, search="random", num_samples=3), lambda _: 1000).trials
    many = plan_sweep(sweep(space, search="random", num_samples=9), lambda _: 1000).trials
    assert few == many[:3]
    assert len({trial.params["loss.temperature"] for trial in many}) == 9


def test_the_learning_rate_follows_the_batch_and_each_schedule_is_its_own() -> None:
    space = {"batch_size": {"choice": [64, 128]}, "epochs": {"choice": [10, 40]}}
    specs = [trial.spec for trial in plan_sweep(sweep(space), lambda _: 1000).trials]
    assert [spec.peak_lr() for spec in specs] == [0.075, 0.075, 0.15, 0.15]
    assert [spec.warmup_epochs() for spec in specs] == [1.0, 4.0, 1.0, 4.0]


def test_a_suggested_sweep_is_bounded_by_its_dearest_corner() -> None:
    plan = plan_sweep(
        sweep({"epochs": {"randint": [1, 5]}}, search="optuna", num_samples=4, seeds=[0, 1]), lambda _: 640
    )
    assert (plan.trials, plan.num_trials, plan.steps) == ((), 8, 8 * 10 * 5)


def test_the_bound_of_a_suggested_sweep_holds_between_its_corners() -> None:
    """Batches of 64 leave 36 of 100 images out; those of 50, which may be suggested, none."""
    suggested = sweep({"batch_size": {"randint": [34, 64]}}, search="optuna", num_samples=1)
    assert plan_sweep(suggested, lambda _: 100).images >= 100 * 4


def test_the_bound_of_a_suggested_sweep_holds_however_many_axes_there_are() -> None:
    many = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    space: dict[str, Any] = {"epochs": {"choice": [1, 1000]}, "batch_size": {"choice": [64, 1024]}}
    space |= {path: {"choice": many} for path in ("loss.temperature", "optim.base_lr", "optim.momentum")}
    space |= {"optim.weight_decay": {"choice": many}, "projection_head.dim": {"choice": [1, 2, 3, 4, 5, 6, 7]}}
    plan = plan_sweep(sweep(space, search="optuna", num_samples=10), lambda _: 2048)
    assert (plan.images, plan.steps) == (10 * 1000 * 2048, 10 * 1000 * 32)
    assert len(plan.costs) == 8, "of the axes that decide the costs their extremes alone"


def test_the_bound_of_a_suggested_sweep_holds_behind_conditions() -> None:
    space: dict[str, Any] = {
        "loss.kind": {"choice": ["nt_xent", "margin"]},
        "epochs": [{"choice": [1, 2], "when": {"loss.kind": ["nt_xent"]}}, {"choice": [9, 30, 7]}],
    }
    assert plan_sweep(sweep(space, search="optuna", num_samples=1), lambda _: 640).images == 30 * 640


def test_asha_warns_where_temperature_and_epochs_vary_together() -> None:
    space = {"loss.temperature": {"choice": [0.1, 0.5]}, "epochs": {"choice": [3, 9]}}
    assert any("interact" in warning for warning in plan_sweep(sweep(space, scheduler="asha"), lambda _: 1000).warnings)
    assert plan_sweep(sweep(space), lambda _: 1000).warnings == ()


def warnings_of_asha(space: dict[str, Any], *, num_images: int, epochs: int = 9, **base: Any) -> tuple[str, ...]:
    base = {**BASE, "epochs": epochs, **base}
    return plan_sweep(sweep(space, base=base, scheduler="asha"), lambda _: num_images).warnings


def test_asha_warns_where_it_ranks_behind_few_updates_and_says_which_axes_mislead() -> None:
    """Epoch 3 of 9 is the last rung: 3 x 5 updates of the smallest epoch there is."""
    space = {"batch_size": {"choice": [64, 200]}, "optim.base_lr": {"choice": [0.1, 1.0]}}
    (warning,) = warnings_of_asha(space, num_images=1000)
    assert "after 15 updates" in warning
    assert "small batch" in warning
    assert "learning rate" in warning
    assert "temperature" not in warning
    assert warnings_of_asha(space, num_images=100_000) == ()


def test_asha_warns_where_it_ranks_learning_rates_during_their_warm_up() -> None:
    rates = {"optim.base_lr": {"choice": [0.1, 1.0]}}
    (warning,) = warnings_of_asha(rates, num_images=100_000, optim={"warmup_epochs": 1})
    assert "after epoch 1, while they are still warming up" in warning
    assert warnings_of_asha(rates, num_images=100_000, optim={"warmup_epochs": 0}) == ()
    assert (
        warnings_of_asha({"loss.temperature": {"choice": [0.1]}}, num_images=100_000, optim={"warmup_epochs": 1}) == ()
    )


def test_asha_warns_where_it_can_stop_no_trial() -> None:
    (warning,) = warnings_of_asha({"loss.temperature": {"choice": [0.1, 0.5]}}, num_images=100_000, epochs=1)
    assert "stops none" in warning


def test_a_thousand_random_points_are_planned() -> None:
    space = {"loss.temperature": {"loguniform": [0.05, 1.0]}, "epochs": {"randint": [1, 9]}}
    wide = sweep(space, search="random", num_samples=1000, limits={"max_trials": 1000})
    assert sweep_problems(wide) == []
    assert plan_sweep(wide, lambda _: 1000).trials[999].id == "t0999"


@pytest.mark.parametrize(
    ("metric", "mode", "way_out"),
    [
        ("loss", "max", "set mode to min"),
        ("uniformity", "max", "set mode to min"),
        ("knn_accuracy", "min", "set mode to max"),
        ("loss", "min", None),
        ("knn_accuracy", "max", None),
        ("h_std", "min", None),
    ],
)
def test_a_metric_that_is_chosen_the_wrong_way_round_is_warned_about(
    metric: str, mode: str, way_out: str | None
) -> None:
    warnings = plan_sweep(sweep({"epochs": {"choice": [2]}}, metric=metric, mode=mode), lambda _: 1000).warnings
    assert [warning.rpartition("; ")[2] for warning in warnings] == ([way_out] if way_out else [])


def test_each_trial_costs_the_images_of_its_own_data_set() -> None:
    images = {"shapes": 100, "digits": 1000}
    plan = plan_sweep(sweep({"data.dataset": {"choice": ["shapes", "digits"]}}), lambda spec: images[spec.data.dataset])
    epochs, batch_size = plan.trials[0].spec.epochs, plan.trials[0].spec.batch_size
    assert plan.images == sum(count // batch_size * batch_size * epochs for count in images.values())
