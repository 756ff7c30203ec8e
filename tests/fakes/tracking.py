"""MLflow in memory, as the service sees it; passes the conformance suite of `ports.Tracking`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from service.errors import ArtifactNotFound, TrackingUnavailable
from service.ports import JsonObject, MetricPoint, TrialRun
from trainer.outbox import Point


@dataclass(kw_only=True)
class FakeRun:
    run_id: str
    experiment_id: str
    trial_id: str | None  # None: the parent
    status: str = "RUNNING"
    params: dict[str, str] = field(default_factory=dict)
    history: dict[str, list[MetricPoint]] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)


class FakeTracking:
    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.is_down = False
        self.num_calls = 0

    # --- what trainers do -------------------------------------------------------------------------

    def ensure_run(self, experiment_id: str, trial_id: str | None = None) -> FakeRun:
        """Return the run of a trial, or the parent run, found or created."""
        for run in self.runs.values():
            if (run.experiment_id, run.trial_id) == (experiment_id, trial_id):
                return run
        run = FakeRun(run_id=f"run{len(self.runs)}", experiment_id=experiment_id, trial_id=trial_id)
        self.runs[run.run_id] = run
        return run

    def log_points(self, run: FakeRun, points: Iterable[Point]) -> None:
        """Log points; of those that are equal to the bit one is kept, as MLflow does."""
        for key, step, value, timestamp_ms in points:
            logged = MetricPoint(step=step, value=value, at=datetime.fromtimestamp(timestamp_ms / 1000, UTC))
            history = run.history.setdefault(key, [])
            if logged not in history:
                history.append(logged)

    def statuses(self, experiment_id: str) -> set[str]:
        return {run.status for run in self.runs.values() if run.experiment_id == experiment_id}

    # --- the port ---------------------------------------------------------------------------------

    async def ping(self) -> None:
        self._answer()

    async def trials(self, experiment_id: str) -> Sequence[TrialRun]:
        self._answer()
        found = [run for run in self.runs.values() if run.experiment_id == experiment_id and run.trial_id is not None]
        return [_trial_run(run) for run in sorted(found, key=lambda run: str(run.trial_id))]

    async def metrics(self, mlflow_run_id: str, keys: Sequence[str]) -> Mapping[str, Sequence[MetricPoint]]:
        self._answer()
        history = self.runs[mlflow_run_id].history
        series: dict[str, Sequence[MetricPoint]] = {}
        for key in keys:
            by_step: dict[int, MetricPoint] = {}
            for point in sorted(history.get(key, []), key=lambda point: point.at):
                by_step.setdefault(point.step, point)
            series[key] = [by_step[step] for step in sorted(by_step)]
        return series

    async def artifacts(self, mlflow_run_id: str, path: str = "") -> Sequence[JsonObject]:
        self._answer()
        prefix = f"{path}/" if path else ""
        entries: dict[str, JsonObject] = {}
        for name, data in self.runs[mlflow_run_id].artifacts.items():
            if name.startswith(prefix):
                head, is_deeper, _ = name.removeprefix(prefix).partition("/")
                size_bytes = 0 if is_deeper else len(data)
                entries[head] = {"path": prefix + head, "is_dir": bool(is_deeper), "size_bytes": size_bytes}
        return [entries[head] for head in sorted(entries)]

    async def open_artifact(self, mlflow_run_id: str, path: str) -> AsyncIterator[bytes]:
        self._answer()
        data = self.runs[mlflow_run_id].artifacts.get(path)
        if data is None:
            raise ArtifactNotFound(f"no artifact {path!r}")
        for start in range(0, len(data), 65_536):
            yield data[start : start + 65_536]

    async def close_runs(self, experiment_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        self._answer()
        runs = [run for run in self.runs.values() if run.experiment_id == experiment_id]
        ours = {run.status for run in runs if run.trial_id is None}
        for run in runs:
            if run.status in {"RUNNING"} | ours:
                run.status = status

    def run_url(self, experiment_id: str, mlflow_run_id: str | None) -> str | None:
        run_id = mlflow_run_id or self.ensure_run(experiment_id).run_id
        return f"http://mlflow.test/#/experiments/1/runs/{run_id}"

    async def close(self) -> None:
        pass

    def _answer(self) -> None:
        self.num_calls += 1
        if self.is_down:
            raise TrackingUnavailable("MLflow does not answer")


def _trial_run(run: FakeRun) -> TrialRun:
    last = {key: max(points, key=lambda point: (point.step, point.at)) for key, points in run.history.items()}
    return TrialRun(
        trial_id=str(run.trial_id),
        mlflow_run_id=run.run_id,
        status=run.status,
        params=dict(run.params),
        metrics={key: point.value for key, point in last.items()},
        steps={key: point.step for key, point in last.items()},
        tags={"simclr.experiment_id": run.experiment_id, "simclr.trial_id": str(run.trial_id)},
    )
