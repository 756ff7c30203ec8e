"""A whole stack for a benchmark of outages, what lies under it, and the ways in which that goes away."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from service.client import Client
from tests.conformance.postgres import PostgresServer
from tests.conftest import RunningStack, start_stack
from tests.harness.experiments import SHORT, STEPS_PER_EPOCH, wait_until
from tests.harness.object_store import ObjectStore
from trainer.storage import Storage, open_storage

__all__ = ["POST", "STACKS", "Scene"]

END_TIMEOUT_S: Final = 400.0
DISK_BYTES: Final = 200 * 2**20
POST: Final = "POST /experiments"
STATUSES: Final[Mapping[str, Mapping[str, int]]] = {
    "mlflow": {"GET /experiments/ID": 200, "GET /experiments/ID/metrics?keys=loss": 503, "GET /readyz": 503, POST: 202},
    "storage": {"GET /experiments/ID": 200, POST: 202},
}

Outage = Callable[[], AbstractContextManager[None]]


@dataclass(kw_only=True)
class Scene:
    """A stack, and what lies under it."""

    home: Path
    datasets: Path
    settings: dict[str, str]
    database_url: str
    storage_uri: str
    outages: dict[str, Outage | None]  # by what goes away
    statuses: dict[str, Mapping[str, int]]  # what the service must answer meanwhile
    stack: RunningStack = field(init=False)
    steps_per_s: float = 0.0

    def __post_init__(self) -> None:
        self.outages["mlflow"] = lambda: mlflow_away(self)
        self.statuses = {**STATUSES, **self.statuses}

    @property
    def client(self) -> Client:
        return Client(self.stack.url, retry_for_s=30)

    @property
    def storage(self) -> Storage:
        return open_storage(self.storage_uri)

    def start(self) -> float:
        """Start `simclr serve` and return how long it took to be ready."""
        began_s = time.monotonic()
        self.stack = start_stack(self.home, self.datasets, **self.settings)
        return time.monotonic() - began_s

    def process(self, part: str) -> psutil.Process:
        parts = json.loads((self.home / "stack.json").read_text())["parts"]
        return psutil.Process(parts[part]["process"]["pid"])

    def kill(self) -> None:
        """Kill the supervisor and the service, and nothing else."""
        service = self.process("service")
        self.stack.process.kill()
        with suppress(psutil.NoSuchProcess):  # it dies with its supervisor
            service.kill()
        self.stack.process.wait()

    def submit(self, name: str, *, trains_for_s: float) -> str:
        """Submit a pretraining of about so many seconds and return its id."""
        epochs = max(5, round(self.steps_per_s * trains_for_s / STEPS_PER_EPOCH))
        with self.client as client:
            return str(client.submit({"name": name, "kind": "pretrain", "spec": SHORT | {"epochs": epochs}})["id"])

    def state(self, experiment_id: str) -> str:
        with self.client as client:
            return str(client.experiment(experiment_id)["state"])

    def until_state(self, experiment_id: str, states: Collection[str]) -> None:
        wait_until(lambda: self.state(experiment_id) in states, timeout_s=END_TIMEOUT_S, what=f"one of {states}")

    def num_steps(self, experiment_id: str) -> int:
        """Return how many steps are in the outbox of the experiment's trial."""
        storage, prefix = self.storage, f"experiments/{experiment_id}/trials/t0000/metrics/entry-"
        documents = [json.loads(storage.read(key)) for key in storage.list(prefix)]
        return sum(point[0] == "loss" for document in documents for point in document.get("points", ()))

    def until_trains(self, experiment_id: str, *, steps: int = 5) -> None:
        wait_until(lambda: self.num_steps(experiment_id) >= steps, what="the first steps")


# --- what goes away -------------------------------------------------------------------------------


@contextmanager
def mlflow_away(scene: Scene) -> Iterator[None]:
    """Freeze MLflow, and kill it in the end: its supervisor starts another."""
    server = scene.process("mlflow")
    processes = [server, *server.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def sqlite_locked(path: Path) -> Iterator[None]:
    """Hold SQLite's only right to write."""
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.rollback()
        connection.close()


@contextmanager
def server_stopped(server: PostgresServer) -> Iterator[None]:
    """Stop the server, cutting off whoever is connected, and start it again."""
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def disk_full(folder: Path) -> Iterator[None]:
    """Fill the file system to its last byte."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(2**16))
            file.flush()
    try:
        yield
    finally:
        filler.unlink()


# --- two kinds of stack ---------------------------------------------------------------------------


@contextmanager
def on_sqlite(folder: Path) -> Iterator[Scene]:
    """Yield a stack on SQLite and a directory: as root, one on a small disk of its own."""
    home, disk = folder / "home", folder / "disk"
    disk.mkdir()
    is_root = os.geteuid() == 0
    if is_root:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], check=True)
    scene = Scene(
        home=home,
        datasets=folder,
        settings={"SIMCLR_STORAGE": str(disk / "storage")},
        database_url=f"sqlite:///{home}/simclr.db",
        storage_uri=str(disk / "storage"),
        outages={
            "database": lambda: sqlite_locked(home / "simclr.db"),
            "storage": (lambda: disk_full(disk)) if is_root else None,
        },
        # Readers see the last commit; only who would write is refused.
        statuses={"database": {"GET /experiments/ID": 200, POST: 503}},
    )
    try:
        yield scene
    finally:
        if is_root:
            subprocess.run(["umount", str(disk)], check=True)


@contextmanager
def on_postgresql(folder: Path) -> Iterator[Scene]:
    """Yield a stack on a PostgreSQL server and an object store."""
    with PostgresServer() as server, ObjectStore() as store:
        store.use()
        url = server.address()
        upgrade = [sys.executable, "-m", "service.cli", "db", "upgrade"]
        environment = os.environ | {"SIMCLR_HOME": str(folder / "home"), "SIMCLR_DATABASE_URL": url}
        subprocess.run(upgrade, check=True, env=environment)
        yield Scene(
            home=folder / "home",
            datasets=folder,
            settings={"SIMCLR_DATABASE_URL": url, "SIMCLR_STORAGE": store.uri("state")},
            database_url=url,
            storage_uri=store.uri("state"),
            outages={"database": lambda: server_stopped(server), "storage": store.link.down},
            statuses={"database": {"GET /experiments/ID": 503, "GET /readyz": 503, POST: 503}},
        )


STACKS: Final = {"sqlite": on_sqlite, "postgresql": on_postgresql}
