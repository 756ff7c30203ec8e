"""What an accelerator is told before a run, so that the same numbers give the same bits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import trainer.loop
from tests.harness.teams import trial_context
from trainer.context import TrialContext
from trainer.determinism import compute_repeatably
from trainer.errors import DataError
from trainer.spec import PretrainSpec
from trainer.team import Team


@pytest.fixture(autouse=True)
def _settings_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    yield
    torch.use_deterministic_algorithms(mode=False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined] # a property
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_cuda_repeats_itself_and_computes_float32_in_float32() -> None:
    compute_repeatably(torch.device("cuda"))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cuda.matmul.allow_tf32


def test_on_the_cpu_nothing_is_changed() -> None:
    compute_repeatably(torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def test_a_run_begins_with_it(tmp_path: Path) -> None:
    spec = PretrainSpec.model_validate({"data": {"dataset": "missing"}})
    context = TrialContext.model_validate(trial_context(tmp_path, tmp_path))
    with pytest.raises(DataError, match="no data set 'missing'"):
        trainer.loop.train(spec, context, Team(device=torch.device("cuda")))
    assert torch.are_deterministic_algorithms_enabled()
