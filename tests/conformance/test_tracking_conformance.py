"""Every sentence of the `Tracking` protocol, on the records in memory and on a real MLflow server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest

from service.errors import ArtifactNotFound
from service.ports import MetricPoint, Tracking
from service.tracking import MlflowTracking
from tests.fakes.tracking import FakeTracking

pytestmark = pytest.mark.anyio

START = datetime(2030, 1, 1, tzinfo=UTC)


class Writer(Protocol):
    """What trainers write."""

    def run(self, experiment_id: str, trial_id: str | None) -> str: ...

    def log(self, run_id: str, key: str, points: Sequence[MetricPoint]) -> None: ...

    def put(self, run_id: str, path: str, data: bytes) -> None: ...

    def status(self, run_id: str) -> str: ...


class MemoryWriter:
    def __init__(self, tracking: FakeTracking) -> None:
        self._tracking = tracking

    def run(self, experiment_id: str, trial_id: str | None) -> str:
        run = self._tracking.ensure_run(experiment_id, trial_id)
        run.params["optim.base_lr"] = "0.3"
        return run.run_id

    def log(self, run_id: str, key: str, points: Sequence[MetricPoint]) -> None:
        self._tracking.runs[run_id].history.setdefault(key, []).extend(points)

    def put(self, run_id: str, path: str, data: bytes) -> None:
        self._tracking.runs[run_id].artifacts[path] = data

    def status(self, run_id: str) -> str:
        return self._tracking.runs[run_id].status


class MlflowWriter:
    """Writes as `trainer.mlflow_runs` does, with MLflow's own client."""

    def __init__(self, uri: str, folder: Path) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self._folder = folder
        found = self._client.get_experiment_by_name("simclr")
        self._mlflow_experiment_id = found.experiment_id if found else self._client.create_experiment("simclr")

    def run(self, experiment_id: str, trial_id: str | None) -> str:
        role = {"simclr.role": "parent"} if trial_id is None else {"simclr.role": "trial", "simclr.trial_id": trial_id}
        run = self._client.create_run(self._mlflow_experiment_id, tags={"simclr.experiment_id": experiment_id, **role})
        self._client.log_param(run.info.run_id, "optim.base_lr", "0.3")
        return str(run.info.run_id)

    def log(self, run_id: str, key: str, points: Sequence[MetricPoint]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(key, point.value, int(point.at.timestamp() * 1000), point.step) for point in points]
        self._client.log_batch(run_id, metrics=metrics)

    def put(self, run_id: str, path: str, data: bytes) -> None:
        folder, _, name = path.rpartition("/")
        (self._folder / name).write_bytes(data)
        self._client.log_artifact(run_id, str(self._folder / name), artifact_path=folder or None)

    def status(self, run_id: str) -> str:
        return str(self._client.get_run(run_id).info.status)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


Made = tuple[Tracking, Writer]


@pytest.fixture(params=["memory", pytest.param("mlflow", marks=pytest.mark.ray)])
async def records(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Made]:
    if request.param == "memory":
        memory = FakeTracking()
        yield memory, MemoryWriter(memory)
    else:
        uri = request.getfixturevalue("mlflow_uri")
        tracking = MlflowTracking(uri)
        yield tracking, MlflowWriter(uri, tmp_path)
        await tracking.close()


def new_id() -> str:
    return f"exp_{uuid4().hex}"


def points(*pairs: tuple[int, float], after_s: int = 0) -> list[MetricPoint]:
    return [
        MetricPoint(step=step, value=value, at=START + timedelta(seconds=after_s + index))
        for index, (step, value) in enumerate(pairs)
    ]


async def test_it_answers(records: Made) -> None:
    tracking, _ = records
    await tracking.ping()


async def test_an_experiment_without_runs_has_no_trials(records: Made) -> None:
    tracking, _ = records
    assert await tracking.trials(new_id()) == []


async def test_trials_come_by_id_with_params_and_last_values_and_without_the_parent(records: Made) -> None:
    tracking, writer = records
    experiment_id, other_id = new_id(), new_id()
    writer.run(experiment_id, None)
    second, first = writer.run(experiment_id, "t0001"), writer.run(experiment_id, "t0000")
    writer.run(other_id, "t0000")
    writer.log(first, "loss", points((1, 6.0), (2, 5.5)))
    trials = await tracking.trials(experiment_id)
    assert [(trial.trial_id, trial.mlflow_run_id) for trial in trials] == [("t0000", first), ("t0001", second)]
    assert (trials[0].metrics, trials[1].metrics) == ({"loss": 5.5}, {})
    assert (trials[0].steps, trials[1].steps) == ({"loss": 2}, {})
    assert trials[0].params["optim.base_lr"] == "0.3"
    assert trials[0].status == "RUNNING"
    assert trials[0].tags["simclr.experiment_id"] == experiment_id


async def test_points_ascend_by_step_whatever_the_order_they_came_in(records: Made) -> None:
    tracking, writer = records
    run_id = writer.run(new_id(), "t0000")
    writer.log(run_id, "loss", points((3, 3.0), (1, 1.0), (2, 2.0)))
    series = await tracking.metrics(run_id, ["loss", "unheard_of"])
    assert [(point.step, point.value) for point in series["loss"]] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert series["unheard_of"] == []


async def test_of_a_step_that_was_logged_twice_the_first_in_time_stays(records: Made) -> None:
    tracking, writer = records
    run_id = writer.run(new_id(), "t0000")
    writer.log(run_id, "loss", points((1, 1.0), (2, 2.0)))
    writer.log(run_id, "loss", points((2, 9.0), (3, 3.0), after_s=60))
    series = await tracking.metrics(run_id, ["loss"])
    assert [(point.step, point.value) for point in series["loss"]] == [(1, 1.0), (2, 2.0), (3, 3.0)]


async def test_values_are_exact_and_times_are_utc(records: Made) -> None:
    tracking, writer = records
    run_id = writer.run(new_id(), "t0000")
    values = (0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, 12345678901234567.0)
    logged = points(*enumerate(values, start=1))
    writer.log(run_id, "loss", logged)
    read = (await tracking.metrics(run_id, ["loss"]))["loss"]
    assert [point.value.hex() for point in read] == [value.hex() for value in values]
    assert [point.at for point in read] == [point.at for point in logged]


async def test_more_points_than_a_page_holds_are_all_read(records: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking, writer = records
    monkeypatch.setattr("service.tracking._POINTS_A_PAGE", 7)
    run_id = writer.run(new_id(), "t0000")
    writer.log(run_id, "loss", points(*((step, step / 7) for step in range(1, 41))))
    read = (await tracking.metrics(run_id, ["loss"]))["loss"]
    assert [point.step for point in read] == list(range(1, 41))


async def test_artifacts_are_listed_by_folder_and_read_whole(records: Made) -> None:
    tracking, writer = records
    run_id = writer.run(new_id(), "t0000")
    data = bytes(range(256)) * 1000
    writer.put(run_id, "encoder.zip", data)
    writer.put(run_id, "report/report.md", b"# report")
    assert await tracking.artifacts(run_id) == [
        {"path": "encoder.zip", "is_dir": False, "size_bytes": len(data)},
        {"path": "report", "is_dir": True, "size_bytes": 0},
    ]
    assert await tracking.artifacts(run_id, "report") == [
        {"path": "report/report.md", "is_dir": False, "size_bytes": 8}
    ]
    assert b"".join([chunk async for chunk in tracking.open_artifact(run_id, "encoder.zip")]) == data


@pytest.mark.parametrize("path", ["missing.zip", "report/missing.md", "../../etc/passwd"])
async def test_an_artifact_that_is_not_there_is_not_found(records: Made, path: str) -> None:
    tracking, writer = records
    run_id = writer.run(new_id(), "t0000")
    writer.put(run_id, "encoder.zip", b"zip")
    read: Callable[[str, str], AsyncIterator[bytes]] = tracking.open_artifact
    with pytest.raises(ArtifactNotFound):
        [chunk async for chunk in read(run_id, path)]


async def test_closing_ends_the_parent_and_the_trials_that_still_run(records: Made) -> None:
    tracking, writer = records
    experiment_id, other_id = new_id(), new_id()
    parent, trial, other = (
        writer.run(experiment_id, None),
        writer.run(experiment_id, "t0000"),
        writer.run(other_id, None),
    )
    await tracking.close_runs(experiment_id, "FAILED")
    assert (writer.status(parent), writer.status(trial), writer.status(other)) == ("FAILED", "FAILED", "RUNNING")
    await tracking.close_runs(new_id(), "KILLED")


async def test_closing_again_with_another_state_corrects_what_closing_set(records: Made) -> None:
    tracking, writer = records
    experiment_id = new_id()
    parent, trial = writer.run(experiment_id, None), writer.run(experiment_id, "t0000")
    await tracking.close_runs(experiment_id, "FAILED")
    late = writer.run(experiment_id, "t0001")
    await tracking.close_runs(experiment_id, "FINISHED")
    await tracking.close_runs(experiment_id, "FINISHED")
    assert [writer.status(run_id) for run_id in (parent, trial, late)] == ["FINISHED"] * 3


async def test_a_run_has_a_page(records: Made) -> None:
    tracking, writer = records
    experiment_id = new_id()
    parent, trial = writer.run(experiment_id, None), writer.run(experiment_id, "t0000")
    await tracking.trials(experiment_id)
    assert str(tracking.run_url(experiment_id, trial)).endswith(trial)
    assert str(tracking.run_url(experiment_id, None)).endswith(parent)
