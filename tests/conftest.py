"""What all tests share: one real embedded stack for those that need Ray, MLflow and the service."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import hypothesis
import numpy as np
import pytest

START_TIMEOUT_S = 120.0
# What Ray's nodes have in their environment where MLflow asks for it; the stack's own MLflow asks nobody.
TRACKING_USER = "simclr"
TRACKING_PASSWORD = "secret-of-the-tracking-server"  # noqa: S105 - of tests

# Said before anything imports Ray or MLflow, whose defaults phone home and change with the version.
os.environ.update(
    RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", MLFLOW_DISABLE_TELEMETRY="true", GLOO_SOCKET_IFNAME="lo"
)
# What makes a command line write colours where nobody sees them, on some machines that run tests.
for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TTY_COMPATIBLE"):
    os.environ.pop(name, None)
os.environ.update(MLFLOW_TRACKING_USERNAME=TRACKING_USER, MLFLOW_TRACKING_PASSWORD=TRACKING_PASSWORD)


# An example may take as long as the machine likes.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `make conformance` asks for."""
    group = parser.getgroup("conformance", "generated requests (tests/unit/service/test_http_conformance.py)")
    group.addoption("--conformance-minutes", type=float, default=0.0, help="generate for so long, and by chance")
    group.addoption("--conformance-seed", type=int, default=None, help="the seed of a run that is to be repeated")


@dataclass(frozen=True)
class RunningStack:
    """The addresses of a stack started by `simclr serve`."""

    url: str
    home: Path
    ray_dashboard: str
    mlflow_uri: str
    process: subprocess.Popen[bytes]

    @property
    def storage(self) -> str:
        return str(self.home / "storage")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_stack(home: Path, datasets: Path | None = None, **settings: str) -> RunningStack:
    """Start `simclr serve` on a free port and return when it is ready."""
    port = settings.pop("SIMCLR_PORT", str(free_port()))
    environment = os.environ | {"SIMCLR_HOME": str(home), "SIMCLR_PORT": port, **settings}
    if datasets is not None:
        environment["SIMCLR_DATASETS"] = str(datasets)
    home.mkdir(parents=True, exist_ok=True)
    with (home / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve"],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_ready(url):
        if process.poll() is not None or time.monotonic() > deadline:
            process.send_signal(signal.SIGTERM)
            raise RuntimeError(f"simclr serve is not ready:\n{(home / 'serve.log').read_text()}")
        time.sleep(0.2)
    parts = json.loads((home / "stack.json").read_text())["parts"]
    return RunningStack(url, home, parts["ray"]["url"], parts["mlflow"]["url"], process)


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=5).status_code == httpx2.codes.OK
    except httpx2.HTTPError:
        return False


def stop_stack(stack: RunningStack) -> None:
    """Stop it as a user does, and see that it ends."""
    stack.process.send_signal(signal.SIGINT)
    stack.process.wait(timeout=40)


@pytest.fixture(scope="session")
def datasets_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return operator-registered data sets that take no time: `shapes`, 240 images of 4 classes, 16 px."""
    folder = tmp_path_factory.mktemp("datasets")
    generator = np.random.default_rng(7)
    np.savez(folder / "shapes.npz", **shapes(generator, num_train=240, num_test=40))
    return folder


def shapes(generator: np.random.Generator, *, num_train: int, num_test: int) -> dict[str, Any]:
    """Return images whose class is the form of a bright blot, in any colour and place."""
    arrays: dict[str, Any] = {"classes": np.array(["bar", "column", "disc", "ring"])}
    y, x = np.mgrid[:16, :16]
    for split, count in (("train", num_train), ("test", num_test)):
        labels = np.arange(count) % 4
        images = generator.integers(0, 60, (count, 16, 16, 3), dtype=np.uint8)
        for index, label in enumerate(labels):
            row, column = generator.uniform(5, 11, 2)
            radius = np.hypot(y - row, x - column)
            form = (np.abs(y - row) < 2, np.abs(x - column) < 2, radius < 4, np.abs(radius - 4) < 1.2)[label]
            images[index][form] = generator.integers(120, 255, 3, dtype=np.uint8)
        arrays[f"{split}_images"] = images
        arrays[f"{split}_labels"] = labels.astype(np.int64)
    return arrays


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, datasets_dir: Path) -> Iterator[RunningStack]:
    """Run one stack for the whole session: `simclr serve` with its Ray, MLflow and database."""
    running = start_stack(tmp_path_factory.mktemp("stack"), datasets_dir, SIMCLR_CPUS="8")
    until_ray_takes_jobs(running.ray_dashboard)
    yield running
    stop_stack(running)


def until_ray_takes_jobs(dashboard: str) -> None:
    """Return once a job has run: some tests give theirs to Ray themselves, and once, unlike the service."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    deadline, client = time.monotonic() + START_TIMEOUT_S, JobSubmissionClient(dashboard)
    while True:
        try:
            job = client.submit_job(entrypoint="true")
            break
        except RuntimeError:
            assert time.monotonic() < deadline, "Ray's job agent takes no jobs"
            time.sleep(0.5)
    while client.get_job_status(job) is not JobStatus.SUCCEEDED:
        assert time.monotonic() < deadline, client.get_job_info(job)
        time.sleep(0.1)


@pytest.fixture(scope="session")
def ray_dashboard(stack: RunningStack) -> str:
    return stack.ray_dashboard


@pytest.fixture(scope="session")
def mlflow_uri(stack: RunningStack) -> str:
    return stack.mlflow_uri


@pytest.fixture
def storage_dir(tmp_path: Path) -> Path:
    return tmp_path / "storage"
