"""What Ray Train is spared: the processes that a run of this project has no use for, no others, and the driver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # it imports Ray Train


@pytest.mark.parametrize(
    ("is_only_one", "spared"),
    [(True, {"DatasetsCallback", "PlacementGroupCleanerCallback"}), (False, {"DatasetsCallback"})],
)
def test_only_unused_processes_are_spared(tmp_path: Path, *, is_only_one: bool, spared: set[str]) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from trainer.lean_trainer import LeanTrainer

    options = {"scaling_config": ScalingConfig(num_workers=2), "run_config": RunConfig(storage_path=str(tmp_path))}
    plain = DataParallelTrainer(print, **options)  # type: ignore[arg-type] # Ray shows types of its first version
    lean = LeanTrainer(print, claimant="exp_a-t0000", is_only_one=is_only_one, **options)
    kept, every = (
        {type(callback).__name__ for callback in trainer._create_default_callbacks()} for trainer in (lean, plain)
    )
    assert every - kept == spared


@pytest.mark.parametrize("num_workers", [2, (1, 2)], ids=["fixed", "elastic"])
def test_the_controller_is_made_of_what_rays_own_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: Any
) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from trainer import lean_trainer

    theirs: dict[str, object] = {}
    ours: dict[str, object] = {}

    class OfRay(DataParallelTrainer):
        def _initialize_and_run_controller(self, **parts: object) -> Any:
            theirs.update(parts)
            return SimpleNamespace(error=None)

    monkeypatch.setattr("ray.put", lambda value: value)
    monkeypatch.setattr(lean_trainer, "TrainController", ours.update)
    scaling = ScalingConfig(num_workers=num_workers)
    options = {"scaling_config": scaling, "run_config": RunConfig(storage_path=str(tmp_path))}
    OfRay(print, **options).fit()  # type: ignore[arg-type] # Ray shows types of its first version
    lean_trainer.LeanTrainer(print, claimant="exp_a-t0000", is_only_one=True, **options).controller()
    given = {name: type(part) for name, part in theirs.items() if part is not None}
    made = {name: type(part) for name, part in ours.items()}
    assert issubclass(made.pop("scaling_policy"), given.pop("scaling_policy"))
    assert made == given


def test_what_starts_a_controller_loads_no_ray_train() -> None:
    words = "import sys, trainer.__main__, trainer.train_controller; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "mlflow", "ray.train"} & set(done.stdout.split())
