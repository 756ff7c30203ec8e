"""Ranks wait for one that works alone for longer than a collective of a step may take."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.multiprocessing.spawn import ProcessRaisedException

from tests.harness.teams import run_team, train_trial, trial_context
from tests.harness.trajectories import outcome
from trainer.team import Team

pytestmark = pytest.mark.slow  # two processes

COLLECTIVE = timedelta(seconds=12)  # two processes that begin on a busy machine need a few
LONGER_S = 20.0

SPEC: dict[str, Any] = {
    "data": {"dataset": "shapes", "image_size": 16},
    "encoder": {"name": "resnet8"},
    "projection_head": {"dim": 16},
    "batch_size": 108,
    "epochs": 2,
    "evaluation": {"linear_probe": False, "knn_every_epochs": 1},
}


def late(function: Callable[..., Any]) -> Callable[..., Any]:
    delays = iter([LONGER_S])  # of the first call

    def after_a_while(*arguments: Any, **options: Any) -> Any:
        time.sleep(next(delays, 0.0))
        return function(*arguments, **options)

    return after_a_while


def train_with_a_late_rank(  # noqa: PLR0917 - `run_team` takes no keywords
    team: Team, spec: dict[str, Any], context: dict[str, Any], rank: int, module_name: str, name: str
) -> None:
    module = importlib.import_module(module_name)
    with pytest.MonkeyPatch.context() as patch:
        if team.rank == rank:
            patch.setattr(module, name, late(getattr(module, name)))
        train_trial(team, spec, context)


@pytest.mark.parametrize(
    ("rank", "module", "name"),
    [(1, "trainer.loop", "prepare"), (0, "trainer.evaluation", "knn_probe")],
    ids=["data of a node", "neighbours of many images"],
)
def test_a_rank_that_works_alone_for_long_is_waited_for(
    tmp_path: Path, datasets_dir: Path, rank: int, module: str, name: str
) -> None:
    context = trial_context(tmp_path, datasets_dir)
    run_team(2, train_with_a_late_rank, SPEC, context, rank, module, name, collective_timeout=COLLECTIVE)
    outcome(context, steps=4)  # none is missing


def end_without_a_word(team: Team) -> None:
    if team.is_first:
        time.sleep(1)
        return
    team.meet()


def test_a_rank_that_is_gone_is_not_waited_for() -> None:
    with pytest.raises(ProcessRaisedException, match="Connection closed by peer"):
        run_team(2, end_without_a_word)
