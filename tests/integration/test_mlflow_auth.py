"""MLflow as the deployment has it: closed to strangers, open to the service and to jobs, whole after a restore."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from mlflow import MlflowClient

from service.client import Client
from service.embedded.state_directory import StateDirectory
from service.experiment import submission_id
from service.store import migrations
from tests.conformance.postgres import PostgresServer, dump_database, restore_database
from tests.conftest import TRACKING_PASSWORD, TRACKING_USER, RunningStack, free_port
from tests.harness.experiments import SHORT, STEPS_PER_EPOCH, finish, losses, submit, wait_until
from tests.harness.image_health import health_check
from tests.harness.image_packages import REFUSE, not_in_image
from tests.harness.object_store import ObjectStore
from tests.harness.replicas import Replica
from tests.harness.written import written
from trainer.context import JobDocument

pytestmark = [pytest.mark.ray, pytest.mark.postgres]

DOCKER: Final = Path(__file__).parents[2] / "docker"
API: Final = "/api/2.0/mlflow"
SECRETS: Final = {
    "MLFLOW_PASSWORD": TRACKING_PASSWORD,
    "MLFLOW_SECRET_KEY": "two",
    "OBJECTSTORE_SECRET_KEY": "three",
    "POSTGRES_PASSWORD": "four",
    "RAY_AUTH_TOKEN": "five",
    "SIMCLR_BOOTSTRAP_TOKEN": "six",
}


@dataclass(frozen=True)
class Server:
    """An MLflow server with auth."""

    port: int
    log: Path
    postgres: PostgresServer  # with the databases `mlflow` and `simclr`
    bucket: ObjectStore  # with its artifacts

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def uri_of_the_service(self) -> str:
        return f"http://{TRACKING_USER}:{TRACKING_PASSWORD}@127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run what `compose.yaml` runs; only addresses and folders are of this machine."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    with PostgresServer() as postgres, ObjectStore(bucket="simclr") as bucket:
        postgres.execute("CREATE DATABASE mlflow", "CREATE DATABASE simclr")
        document = deployment()
        of_compose = f"postgresql+psycopg://simclr:{SECRETS['POSTGRES_PASSWORD']}@postgres/mlflow"
        ini = document["configs"]["mlflow-auth"]["content"]
        environment = document["services"]["mlflow"]["environment"]
        assert of_compose in ini
        assert environment["MLFLOW_BACKEND_STORE_URI"] == of_compose
        (folder / "basic_auth.ini").write_text(ini.replace(of_compose, postgres.address("mlflow")))
        environment |= bucket.environment | {
            "MLFLOW_BACKEND_STORE_URI": postgres.address("mlflow"),
            "MLFLOW_SERVER_ALLOWED_HOSTS": environment["MLFLOW_SERVER_ALLOWED_HOSTS"].replace("5000", str(port)),
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # as the image says
        }
        (folder / "sitecustomize.py").write_text(REFUSE.format(modules=not_in_image("mlflow.in")))
        environment["PYTHONPATH"] = str(folder)  # its processes find no other package than the image has
        strange = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}
        running = Server(port, folder / "log", postgres, bucket)
        command = [sys.executable, "-m", *command_of_the_image(port)]
        with (
            running.log.open("wb") as log,
            subprocess.Popen(command, env=strange | environment, cwd=folder, stdout=log, stderr=log) as process,
        ):
            try:
                wait_until(lambda: is_up(running, process), timeout_s=120, what="MLflow")
                yield running
            finally:
                process.terminate()


def deployment() -> dict[str, Any]:
    """Return the deployment on one host as Compose understands it."""
    words = [str(Path(sys.executable).with_name("docker-compose")), "-f", "compose.yaml", "config", "--format", "json"]
    result = subprocess.run(words, capture_output=True, check=True, env=SECRETS, cwd=DOCKER)
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def command_of_the_image(port: int) -> list[str]:
    """Return the words after `-m` that start the server, on this port of loopback and with one worker."""
    (words,) = re.findall(r'^CMD (\["mlflow", .*\])$', (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    here = {"0.0.0.0": "127.0.0.1", "5000": str(port), "2": "1"}  # noqa: S104 - replaced, not bound
    return [here.get(word, word) for word in json.loads(words)]


def is_up(server: Server, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, server.log.read_text()
    try:
        return httpx2.get(f"{server.url}/health", timeout=5).is_success
    except httpx2.HTTPError:
        return False


@pytest.mark.parametrize("path", ["/", f"{API}/experiments/search?max_results=1", "/get-artifact?path=x&run_id=x"])
def test_who_has_no_password_or_a_wrong_one_is_shown_nothing(server: Server, path: str) -> None:
    assert httpx2.get(server.url + path, timeout=30).status_code == 401
    assert httpx2.get(server.url + path, auth=(TRACKING_USER, "a wrong password"), timeout=30).status_code == 401


def test_the_image_s_health_check_passes_without_a_password_while_the_server_answers(server: Server) -> None:
    subprocess.run(health_check("mlflow", port=server.port), check=True, env={}, timeout=30)
    nobody = subprocess.run(health_check("mlflow", port=free_port()), check=False, env={}, timeout=30)
    assert nobody.returncode != 0


@pytest.fixture(scope="module")
def service(
    server: Server, stack: RunningStack, datasets_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replica]:
    """Run a service that keeps its experiments beside MLflow's."""
    address = server.postgres.address("simclr")
    migrations.upgrade(address)
    home = tmp_path_factory.mktemp("service")
    service = Replica(
        home,
        SIMCLR_DATABASE_URL=address.replace("+psycopg", ""),
        SIMCLR_STORAGE=str(home / "storage"),
        SIMCLR_RAY_ADDRESS=stack.ray_dashboard,
        SIMCLR_MLFLOW_URI=server.uri_of_the_service,
        SIMCLR_DATASETS=str(datasets_dir),
        SIMCLR_CPUS="8",
    )
    service.start()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def experiment_id(service: Replica) -> str:
    """Return an experiment that has succeeded."""
    service.wait()
    wait_until(lambda: httpx2.get(f"{service.url}/readyz", timeout=30).is_success, what="readiness")
    with Client(service.url, retry_for_s=60) as client:
        experiment_id = str(submit(client, "behind a password", SHORT)["id"])
        finish(client, experiment_id, epochs=SHORT["epochs"])  # reads every step through the service
    return experiment_id


def test_an_experiment_is_recorded_with_the_nodes_password_which_nothing_tells(
    server: Server, service: Replica, experiment_id: str, stack: RunningStack
) -> None:
    with Client(service.url, retry_for_s=60) as client:
        shown = json.dumps([client.experiment(experiment_id), *client.trials(experiment_id)])

    mlflow = MlflowClient(server.url)  # with the password of the environment, as a job has it
    (parent, trial) = runs(mlflow, experiment_id)
    assert (parent.info.status, trial.info.status) == ("FINISHED", "FINISHED")
    assert trial.data.params["batch_size"] == str(SHORT["batch_size"])
    assert len(mlflow.get_metric_history(trial.info.run_id, "loss")) == SHORT["epochs"] * STEPS_PER_EPOCH
    assert "encoder" in {artifact.path for artifact in mlflow.list_artifacts(trial.info.run_id)}
    (version,) = mlflow.search_model_versions(f"run_id = '{trial.info.run_id}'")
    assert mlflow.get_model_version_by_alias(version.name, "best").version == version.version

    job = httpx2.get(f"{stack.ray_dashboard}/api/jobs/{submission_id(experiment_id, 1)}", timeout=30).json()
    document = JobDocument.decode(job["entrypoint"].rpartition("--document ")[2])
    assert document.mlflow_uri == server.url
    ray_logs = texts(StateDirectory(path=stack.home).runtime_dir)
    told = [shown, json.dumps(job), str(document), *ray_logs, *texts(service.home), *texts(stack.home / "logs")]
    basic = b64encode(f"{TRACKING_USER}:{TRACKING_PASSWORD}".encode()).decode()
    assert not [text[:200] for text in told if TRACKING_PASSWORD in text or basic in text]


def test_a_restored_backup_has_the_experiment_its_encoder_and_its_records(
    server: Server, service: Replica, experiment_id: str, tmp_path: Path
) -> None:
    databases, storage = ("simclr", "mlflow"), service.home / "storage"
    told = answers(server, service, experiment_id)

    for name in databases:
        dump_database(server.postgres.address(name), tmp_path / f"{name}.dump")
    server.bucket.back_up()
    shutil.copytree(storage, tmp_path / "storage")

    with Client(service.url, retry_for_s=60) as client:
        client.delete(experiment_id)
        wait_until(lambda: not list(storage.rglob("encoder-*.zip")), timeout_s=30, what="the loss of the encoder")
    mlflow = MlflowClient(server.url)
    for run in runs(mlflow, experiment_id):
        mlflow.delete_run(run.info.run_id)
    server.bucket.empty()

    service.stop()
    for name in databases:  # MLflow goes on meanwhile
        restore_database(server.postgres.address(name), tmp_path / f"{name}.dump")
    server.bucket.restore()
    shutil.rmtree(storage)
    shutil.copytree(tmp_path / "storage", storage)
    service.start()
    service.wait()
    assert answers(server, service, experiment_id) == told


def answers(server: Server, service: Replica, experiment_id: str) -> list[Any]:
    """Return what the service, and MLflow itself, have of an experiment."""
    mlflow = MlflowClient(server.url)
    parent, trial = runs(mlflow, experiment_id)
    paths = [f"artifacts/{file.path}" for file in mlflow.list_artifacts(trial.info.run_id, "encoder")]
    assert paths
    found: list[Any] = [parent.to_dictionary(), trial.to_dictionary()]
    with Client(service.url, retry_for_s=60) as client:
        found += [client.experiment(experiment_id), *client.trials(experiment_id), losses(client, experiment_id)]
    for path in ("encoder", *paths):
        answer = httpx2.get(f"{service.url}/experiments/{experiment_id}/{path}", timeout=30)
        found.append((path, answer.raise_for_status().content))
    return found


def runs(mlflow: MlflowClient, experiment_id: str) -> list[Any]:
    """Return the parent run and the run of the trial."""
    experiment = mlflow.get_experiment_by_name("simclr")
    assert experiment is not None
    found = mlflow.search_runs([experiment.experiment_id], f"tags.`simclr.experiment_id` = '{experiment_id}'")
    return sorted(found, key=lambda run: str(run.data.tags["simclr.role"]))


def texts(folder: Path) -> list[str]:
    """Return what processes wrote: logs, what they were started with, and the job's files in storage."""
    found = written(folder)
    assert found
    return found
