"""Experiments as the database holds them, without a database."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

from service.experiment import State
from service.ports import ExperimentRecord, NewExperiment
from tests.fakes.control_plane import TEMPLATE

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def record(
    experiment_id: str, /, *, age_s: float = 0, workers: Any = 2, gpus: int = 0, **changes: Any
) -> ExperimentRecord:
    scaling = {"num_workers": workers, "cpus_per_worker": 1, "gpus_per_worker": gpus}
    asked = {item.name: getattr(TEMPLATE, item.name) for item in fields(NewExperiment)}
    stored: dict[str, Any] = {
        "state": State.QUEUED,
        "reason": None,
        "conditions": [],
        "attempt": 0,
        "failures": 0,
        "version": 1,
        "created_at": NOW - timedelta(seconds=age_s),
        "updated_at": NOW,
        "started_at": None,
        "finished_at": None,
        "not_before": None,
        "claim": None,
        "claimed_until": None,
    }
    return ExperimentRecord(**asked | stored | {"id": experiment_id, "spec": {"scaling": scaling}} | changes)
