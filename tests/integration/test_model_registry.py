"""The experiment's encoder in the model registry of a real MLflow server: once, and under its alias."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from tests.conftest import free_port
from trainer.context import JobDocument, TrialContext, trial_key
from trainer.fence import take_fence
from trainer.mlflow_runs import MlflowRuns, RunDescription
from trainer.model_registry import BestEncoder, register_encoder
from trainer.outbox import Outbox
from trainer.parent_run import ParentRun
from trainer.recorder import TrialRecorder
from trainer.storage import open_storage
from trainer.unrecorded import unrecorded_runs

pytestmark = pytest.mark.ray

DESCRIPTION = RunDescription(name="a/b: c", params={}, tags={})


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def client(mlflow_uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=mlflow_uri)


@pytest.fixture
def encoder(mlflow_uri: str, tmp_path: Path) -> BestEncoder:
    """Return the encoder of a finished trial, its files among the artifacts of its run."""
    experiment_id = f"exp_{uuid4().hex}"
    runs = MlflowRuns(mlflow_uri, open_storage(str(tmp_path)), experiment_id)
    run_id = runs.ensure_trial("t0000", runs.ensure_parent(DESCRIPTION), DESCRIPTION)
    runs.log_artifact(run_id, "encoder/encoder.json", b"{}")
    return BestEncoder(
        experiment_id=experiment_id,
        experiment_name="a/b: c",
        trial_id="t0000",
        mlflow_run_id=run_id,
        bundle_sha256="1" * 64,
    )


def versions(client: MlflowClient, encoder: BestEncoder) -> list[str]:
    found = client.search_model_versions(f"name = '{encoder.model_name}'")
    return [version.tags["simclr.bundle_sha256"] for version in sorted(found, key=lambda version: int(version.version))]


def alias(client: MlflowClient, encoder: BestEncoder) -> str:
    return str(client.get_model_version_by_alias(encoder.model_name, "best").tags["simclr.bundle_sha256"])


def test_an_encoder_registered_again_is_the_same_version(client: MlflowClient, encoder: BestEncoder) -> None:
    other = BestEncoder(**{**vars(encoder), "bundle_sha256": "2" * 64})
    register_encoder(client, encoder)
    register_encoder(client, encoder)
    assert (versions(client, encoder), alias(client, encoder)) == (["1" * 64], "1" * 64)
    register_encoder(client, other)
    assert (versions(client, encoder), alias(client, encoder)) == (["1" * 64, "2" * 64], "2" * 64)
    register_encoder(client, encoder)
    assert (versions(client, encoder), alias(client, encoder)) == (["1" * 64, "2" * 64], "1" * 64)


def test_the_alias_leads_to_the_files_and_the_run(
    client: MlflowClient, encoder: BestEncoder, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    register_encoder(client, encoder)
    found = client.get_model_version_by_alias(encoder.model_name, "best")
    assert (found.run_id, found.tags["simclr.trial_id"]) == (encoder.mlflow_run_id, "t0000")
    folder = download_artifacts(artifact_uri=f"models:/{encoder.model_name}@best", dst_path=str(tmp_path))
    assert (Path(folder) / "encoder.json").read_bytes() == b"{}"


def test_what_the_registry_refuses_for_good_is_left(client: MlflowClient, encoder: BestEncoder) -> None:
    foreign = BestEncoder(**{**vars(encoder), "mlflow_run_id": ""})
    register_encoder(client, foreign)
    assert versions(client, foreign) == []


def test_an_only_trial_registers_its_encoder_behind_its_files_and_once(
    client: MlflowClient, mlflow_uri: str, tmp_path: Path
) -> None:
    storage = open_storage(str(tmp_path))
    experiment_id = f"exp_{uuid4().hex}"
    for attempt in (1, 2):  # the second after a crash between the encoder and the marker
        context = TrialContext(
            experiment_id=experiment_id,
            experiment_name="alone",
            trial_id="t0000",
            attempt=attempt,
            storage=str(tmp_path),
            mlflow_uri=mlflow_uri,
            cache_dir="",
            is_only_trial=True,
        )
        outbox = Outbox(storage, context.key("metrics/"), take_fence(storage, context))
        pen = TrialRecorder(storage=storage, context=context, outbox=outbox, description=DESCRIPTION)
        pen.start()
        pen.artifact("encoder/encoder.json", b"{}")
        pen.encoder("3" * 64)
        assert pen.close(drain_s=60)
    model = f"alone-{experiment_id}"
    (version,) = client.search_model_versions(f"name = '{model}'")
    assert version.run_id == pen.mlflow_run_id
    assert client.get_model_version_by_alias(model, "best").version == version.version


def test_a_sweep_registers_its_encoder_when_mlflow_is_back(
    client: MlflowClient, encoder: BestEncoder, mlflow_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port, is_away = free_port(), threading.Event()
    storage = open_storage(str(tmp_path))
    storage.write("report.md", b"# report")
    marker = {"is_recorded": True, "mlflow_run_id": encoder.mlflow_run_id, "bundle_sha256": encoder.bundle_sha256}
    storage.write(trial_key(encoder.experiment_id, "t0000", "complete.json"), json.dumps(marker).encode())
    job = JobDocument(
        experiment_id=encoder.experiment_id,
        name=encoder.experiment_name,
        kind="sweep",
        attempt=1,
        spec={},
        storage=str(tmp_path),
        mlflow_uri=f"http://127.0.0.1:{port}",
        cache_dir="",
    )
    with relay(port, mlflow_uri, is_away), ParentRun(job, storage, DESCRIPTION) as parent:
        parent.begin()
        parent.products(artifacts={"report/report.md": "report.md"}, best_trial="t0000")
        is_away.wait(30)
    assert "does not take the parent run, trying again" in caplog.text
    assert (versions(client, encoder), alias(client, encoder)) == (["1" * 64], "1" * 64)
    assert unrecorded_runs(storage, encoder.experiment_id) == []


@contextmanager
def relay(port: int, uri: str, was_refused: threading.Event) -> Iterator[None]:
    """Listen on `port`: hang up on the first caller, and put every later one through to `uri`."""
    target = urlsplit(uri)
    address = (str(target.hostname), int(target.port or 80))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    def serve(server: socket.socket) -> None:
        while True:
            try:
                caller, _ = server.accept()
            except OSError:  # closed: the test is over
                return
            if not was_refused.is_set():
                caller.close()
                was_refused.set()
                continue
            callee = socket.create_connection(address)
            for pair in ((caller, callee), (callee, caller)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", port)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        yield
