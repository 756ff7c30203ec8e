"""MLflow may be slow, absent or lying dead on the line: a run neither waits for it nor loses a point."""

from __future__ import annotations

import importlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.teams import train_trial, trial_context
from tests.harness.trajectories import series
from trainer.context import TrialContext
from trainer.errors import StorageUnavailable, Superseded
from trainer.fence import take_fence
from trainer.mlflow_runs import RunDescription, flatten
from trainer.outbox import Outbox
from trainer.recorder import TrialRecorder
from trainer.storage import Storage, open_storage
from trainer.team import Team


@pytest.fixture
def black_hole() -> Iterator[str]:
    """Accept connections and never say a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def recorder(folder: Path, mlflow_uri: str | None, storage: Storage | None = None) -> TrialRecorder:
    storage = storage or open_storage(str(folder))
    context = TrialContext(
        experiment_id="exp_1",
        experiment_name="n",
        trial_id="t0000",
        attempt=1,
        storage=str(folder),
        mlflow_uri=mlflow_uri,
        cache_dir="c",
    )
    outbox = Outbox(storage, context.key("metrics/"), take_fence(storage, context))
    description = RunDescription(name="n", params={}, tags={})
    return TrialRecorder(storage=storage, context=context, outbox=outbox, description=description)


def kept_steps(folder: Path) -> list[int]:
    storage = open_storage(str(folder))
    return [
        point[1]
        for key in storage.list("experiments/exp_1/trials/t0000/metrics/entry-")
        for point in json.loads(storage.read(key)).get("points", ())
    ]


def test_a_black_hole_costs_no_step_anything_and_every_point_is_kept(
    tmp_path: Path, black_hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    importlib.import_module("mlflow")  # else the sender would be at it when it is looked after
    pen = recorder(tmp_path, black_hole)
    pen.start()
    for step in range(1, 101):
        pen.metrics(step, {"loss": 1.0 / step})
    pen.artifact("encoder/encoder.json", b"{}")
    assert pen.close(drain_s=0.1) is False
    pen._sender.join(timeout=30)
    assert not pen._sender.is_alive()  # it does not go on behind the back of whoever comes next
    assert kept_steps(tmp_path) == list(range(1, 101))
    again = recorder(tmp_path, None)
    again.start()
    again.metrics(100, {"loss": 7.0})  # computed again after a crash: the first value stands
    again.metrics(101, {"loss": 0.5})
    assert again.close(drain_s=0) is True
    assert kept_steps(tmp_path) == list(range(1, 102))


@pytest.mark.slow  # MLflow is imported
def test_only_the_senders_thread_of_a_run_talks_to_mlflow(
    tmp_path: Path, datasets_dir: Path, black_hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("trainer.loop.DRAIN_S", 1.0)
    importlib.import_module("mlflow")  # else the sender would spend the run on it, and never connect
    callers, connect = [], socket.socket.connect

    def noted(connecting: socket.socket, address: Any) -> None:
        callers.append((threading.current_thread().name, address))
        connect(connecting, address)

    monkeypatch.setattr(socket.socket, "connect", noted)
    spec = {"data": {"dataset": "shapes", "image_size": 16}, "encoder": {"name": "resnet8"}, "batch_size": 48}
    context = trial_context(tmp_path / "run", datasets_dir) | {"mlflow_uri": black_hole}
    train_trial(Team(), spec | {"epochs": 2, "evaluation": {"linear_probe": False}}, context)
    host, _, port = black_hole.rpartition(":")
    to_mlflow = {thread for thread, address in callers if address == (host.removeprefix("http://"), int(port))}
    assert to_mlflow == {"mlflow-sender"}
    marker = json.loads((tmp_path / "run/storage/experiments/exp_1/trials/t0000/complete.json").read_text())
    assert (marker["state"], marker["is_recorded"]) == ("succeeded", False)
    assert list(series(context, "loss")) == list(range(1, 9))


def test_each_start_says_of_itself_what_it_is_wherever_it_begins(tmp_path: Path) -> None:
    beginnings = [(0, 4, 1e-14), (0, 2, 1e-3), (500, 3, 2e-14), (300, 2, 3e-14)]
    for step, workers, parity in beginnings:  # none got to a checkpoint; the last went back to an older one
        pen = recorder(tmp_path, None)
        pen.start()
        pen.start_metrics(step, {"parity_error": parity, "num_workers": workers})
        pen.close(drain_s=0)
    found = recorder(tmp_path, None).series("parity_error", "num_workers")
    assert found["num_workers"] == [(1, 4), (2, 2), (500, 3), (501, 2)]
    assert [value for _, value in found["parity_error"]] == [parity for _, _, parity in beginnings]


def test_two_starts_of_a_run_at_one_step_are_both_told(
    tmp_path: Path, datasets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_arguments: object) -> None:
        raise RuntimeError("before its first checkpoint")

    monkeypatch.setattr("trainer.loop.Run._train", die)
    spec = {"data": {"dataset": "shapes", "image_size": 16}, "encoder": {"name": "resnet8"}, "batch_size": 48}
    for attempt in (1, 2):
        context = trial_context(tmp_path / "run", datasets_dir, attempt=attempt)
        with pytest.raises(RuntimeError, match="before its first checkpoint"):
            train_trial(Team(), spec, context)
    assert list(series(context, "num_workers")) == list(series(context, "parity_error")) == [1, 2]


def test_series_are_those_since_the_first_start(tmp_path: Path) -> None:
    pen = recorder(tmp_path, None)
    pen.metrics(1, {"loss": 3.0, "lr": 0.1})
    pen.metrics(2, {"loss": 2.0})
    assert pen.series("loss", "knn_accuracy") == {"loss": [(1, 3.0), (2, 2.0)], "knn_accuracy": []}


def test_mlflow_is_not_loaded_before_there_is_something_to_send(tmp_path: Path) -> None:
    pen = recorder(tmp_path, None)
    pen.persist()
    assert not pen._has_entries.is_set()
    pen.metrics(1, {"loss": 1.0})
    pen.persist()
    assert pen._has_entries.is_set()


class SlowSender(threading.Thread):
    """Take one entry in each stretch of waiting, and nothing once they are all taken."""

    def __init__(self, pen: TrialRecorder, *, num_entries: int, is_stuck: bool) -> None:
        super().__init__()
        self.pen = pen
        self.num_left = num_entries
        self.is_stuck = is_stuck

    def is_alive(self) -> bool:
        return self.is_stuck or self.num_left > 0

    def join(self, timeout: float | None = None) -> None:
        assert timeout == 5.0
        if self.num_left:
            self.num_left -= 1
            self.pen._num_sent += 1


@pytest.mark.parametrize(("is_patient", "num_left"), [(False, 2), (True, 0)])
@pytest.mark.parametrize("is_stuck", [False, True])
def test_a_patient_close_waits_as_long_as_entries_are_taken(
    tmp_path: Path, *, is_patient: bool, num_left: int, is_stuck: bool
) -> None:
    pen = recorder(tmp_path, None)
    pen._writer.start()
    sender = SlowSender(pen, num_entries=3, is_stuck=is_stuck)
    pen._sender = sender
    pen.close(drain_s=5.0, is_patient=is_patient)
    assert sender.num_left == num_left


def test_a_superseded_start_is_told_when_it_records(tmp_path: Path) -> None:
    old = recorder(tmp_path, None)
    old.metrics(1, {"loss": 1.0})
    recorder(tmp_path, None)
    with pytest.raises(Superseded):
        old.persist()


class FullDisk:
    """Storage that has room for the fence and for nothing else."""

    def __init__(self, folder: Path) -> None:
        self._inner = open_storage(str(folder))

    def read(self, key: str) -> bytes:
        return self._inner.read(key)

    def write(self, key: str, data: bytes) -> None:
        raise OSError(28, f"No space left on device for {len(data)} bytes of {key}")

    def create(self, key: str, data: bytes) -> bool:
        if "fence" not in key:
            raise OSError(28, "No space left on device")
        return self._inner.create(key, data)

    def list(self, prefix: str) -> list[str]:
        return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        self._inner.delete(key)


def test_storage_that_stays_full_ends_the_run_after_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.recorder.FIRST_DURABLE_S", 0.001)
    monkeypatch.setattr("trainer.recorder.DURABLE_EVERY_S", 0.001)
    monkeypatch.setattr("trainer.recorder.STORAGE_AWAY_MOST_S", 0.05)
    pen = recorder(tmp_path, None, FullDisk(tmp_path))
    pen.metrics(1, {"loss": 1.0})
    pen.start()
    pen._writer.join(timeout=30)
    with pytest.raises(StorageUnavailable, match="No space left"):
        pen.metrics(2, {"loss": 1.0})


def test_params_are_flat_with_dotted_paths() -> None:
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": None, "e": "x"}) == {
        "a.b": "1",
        "a.c": "[1, 2]",
        "d": "null",
        "e": "x",
    }
