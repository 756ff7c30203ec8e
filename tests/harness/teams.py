"""Run a function, or a whole trial, as W processes that share a gloo group, without Ray."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from trainer.context import TrialContext
from trainer.loop import train
from trainer.small_messages import connected
from trainer.spec import PretrainSpec
from trainer.team import Team


def run_team(
    world_size: int, body: Callable[..., None], *arguments: Any, collective_timeout: timedelta = timedelta(minutes=5)
) -> None:
    """Call `body(team, *arguments)` in each of W new processes; raises what one of them raises.

    A body must leave nothing behind that holds the team: a gloo group that still lives as its process
    ends can abort it.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(  # type: ignore[no-untyped-call] # torch gives it no types
            _enter,
            args=(world_size, f"file://{folder}/rendezvous", collective_timeout, body, arguments),
            nprocs=world_size,
        )


def _enter(  # noqa: PLR0917 - `spawn` takes no keywords
    rank: int,
    world_size: int,
    init_method: str,
    timeout: timedelta,
    body: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    if world_size == 1:
        body(Team(), *arguments)
        return
    dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=world_size, timeout=timeout)
    try:
        group = dist.group.WORLD
        assert group is not None
        with connected(group, timeout=timeout) as messages:
            body(Team(rank=rank, world_size=world_size, group=group, messages=messages), *arguments)
    finally:
        dist.destroy_process_group()


def train_trial(team: Team, spec: dict[str, Any], context: dict[str, Any]) -> None:
    """Train one trial as a member of a team."""
    train(PretrainSpec.model_validate(spec), TrialContext.model_validate(context), team)


def train_until_killed(
    team: Team, spec: dict[str, Any], context: dict[str, Any], kill_after_step: int, victim: int = 0
) -> None:
    """Train with a checkpoint after every step, and kill one rank outright once it has made so many steps.

    The checkpoint two steps before is there by then, and that of the step before may be.
    """
    import trainer.loop
    import trainer.scribe

    recorded = trainer.loop.Run._read

    def read_then_die(run: Any, unread: Any) -> bool:
        should_stop = recorded(run, unread)
        if run.last_step >= kill_after_step and team.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return should_stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.scribe.Scribe, "is_checkpoint_due", lambda scribe, score=None: True)  # noqa: ARG005 - its arguments
        patch.setattr(trainer.loop.Run, "_read", read_then_die)
        train_trial(team, spec, context)


def trial_context(folder: Path, datasets: str | Path, *, attempt: int = 1, name: str = "exp_1") -> dict[str, Any]:
    return TrialContext(
        experiment_id=name,
        experiment_name=name,
        trial_id="t0000",
        attempt=attempt,
        storage=str(folder / "storage"),
        datasets_dir=str(datasets),
        cache_dir=str(folder.parent / "cache"),
    ).model_dump(mode="json")
