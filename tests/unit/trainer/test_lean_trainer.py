"""What Ray Train is spared: the processes that a run of this project has no use for, and no others."""

from __future__ import annotations

from pathlib import Path

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
    lean = LeanTrainer(print, is_only_one=is_only_one, **options)
    kept, every = (
        {type(callback).__name__ for callback in trainer._create_default_callbacks()} for trainer in (lean, plain)
    )
    assert every - kept == spared
