"""A Ray cluster of hosts, set as the deployment files set it, and jobs on it as the service submits them.

Each host has the data sets on its own disk: what two of them share is the storage that a job names.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx2
import yaml
from pydantic import SecretStr

from service.cluster import RayJobs
from service.code_package import CodePackage, installed_code
from service.dispatch.job import attempt_job
from service.experiment import submission_id
from service.ports import JobStatus
from service.settings import Settings
from tests.fakes.records import record
from tests.harness.experiments import wait_until
from tests.harness.gcs_store import GcsStore
from tests.harness.hosts import Host

__all__ = ["RayHosts"]

START_TIMEOUT_S: Final = 240.0
HOME: Final = "/tmp/simclr"  # noqa: S108 - on a host's own disk
DATASETS: Final = "/tmp/datasets"  # noqa: S108 - likewise
_COMPOSE: Final = Path(__file__).resolve().parents[2] / "docker" / "compose.yaml"
_OBJECT_STORE_BYTES: Final = 128 * 2**20
_RESTARTING: Final = 'while :; do "$@"; sleep 1; done'  # as Docker and Kubernetes start again what ended


class RayHosts:
    """One head without CPUs and the nodes that joined it, with a token of their own."""

    def __init__(
        self,
        head: Host,
        *nodes: Host,
        datasets: Path,
        code: CodePackage | None = None,
        variables: Mapping[str, str] | None = None,
        cpus: int = 1,
        gcs_store: GcsStore | None = None,
    ) -> None:
        """Start them; each node has `cpus` CPUs, and the head its tables in `gcs_store`, or in its memory alone."""
        self.head = head
        self._gcs_store = gcs_store
        self._variables = dict(variables or {})  # of every node besides: where storage is, and the key to it
        self.token = secrets.token_hex(32)
        self.code = code or installed_code()
        self.dashboard = f"http://{head.address}:8265"
        self._datasets = datasets
        self._settings = Settings(home=Path(HOME), datasets=Path(DATASETS), mlflow_uri=None, ray_address=self.dashboard)
        self.start_head()
        for node in nodes:
            self.join(node, cpus=cpus)
        wait_until(self.is_up, timeout_s=START_TIMEOUT_S, what="Ray's head")
        self.wait_for_nodes(*nodes)

    # --- nodes ------------------------------------------------------------------------------------

    def start_head(self) -> None:
        """Start Ray's head on its host, with the health checks of the compose file; returns at once."""
        compose = yaml.safe_load(_COMPOSE.read_text())["services"]["ray-head"]["environment"]
        health = {name: value for name, value in compose.items() if name.startswith("RAY_health_check")}
        words = ["--head", "--port=6379", f"--dashboard-host={self.head.address}"]
        if self._gcs_store is not None:
            words.append(f"--redis-password={self._gcs_store.password}")
            health |= self._gcs_store.of_head
        self._start(self.head, *words, cpus=0, **health)

    def join(self, host: Host, *, cpus: int = 1) -> None:
        """Start a node of `cpus` CPUs on a host; returns at once."""
        variables = {} if self._gcs_store is None else self._gcs_store.of_nodes
        self._start(host, f"--address={self.head.address}:6379", cpus=cpus, **variables)

    def wait_for_nodes(self, *hosts: Host) -> None:
        """Return once all these hosts are living nodes."""
        wanted = {host.address for host in hosts}
        wait_until(lambda: wanted <= self.living(), timeout_s=START_TIMEOUT_S, what=f"the nodes {wanted}")

    def living(self) -> set[str]:
        """Return the addresses of the nodes that the head takes for alive; none while it does not answer."""
        try:
            return {node["node_ip"] for node in self.listing("nodes") if node["state"] == "ALIVE"}
        except httpx2.HTTPError:
            return set()

    def node_ids(self, host: Host) -> set[str]:
        """Return the ids of a host's living nodes: none, one, or the new one before the old is found dead."""
        try:
            nodes = self.listing("nodes")
        except httpx2.HTTPError:
            return set()
        return {node["node_id"] for node in nodes if (node["node_ip"], node["state"]) == (host.address, "ALIVE")}

    def _start(self, host: Host, *words: str, cpus: int, **environment: str) -> None:
        shutil.copytree(self._datasets, host.disk / Path(DATASETS).name, dirs_exist_ok=True)
        host.start(
            [
                *("bash", "-c", _RESTARTING, "bash"),
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words),
                *(f"--node-ip-address={host.address}", f"--num-cpus={cpus}", "--disable-usage-stats"),
                f"--object-store-memory={_OBJECT_STORE_BYTES}",
            ],
            environment=self.environment | environment,
            log="ray.log",
        )

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of a node: nothing that this process happens to have set."""
        return {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.defpath)),
            "HOME": HOME,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            **self._variables,
        }

    # --- jobs -------------------------------------------------------------------------------------

    def submit(
        self, experiment_id: str, spec: Mapping[str, Any], *, storage: str, attempt: int = 1, datasets: str = DATASETS
    ) -> None:
        """Submit one attempt of a pretraining, as the dispatcher does."""
        settings = self._settings.model_copy(update={"storage": storage, "datasets": datasets})
        job = attempt_job(record(experiment_id, spec=dict(spec)), settings, attempt=attempt, environ=self.environment)
        self._call(
            lambda jobs: jobs.submit(
                submission_id(experiment_id, attempt), entrypoint=job.entrypoint, env=job.env, metadata=job.metadata
            )
        )

    def status(self, experiment_id: str, *, attempt: int = 1) -> JobStatus:
        """Return how an attempt's job stands."""
        observation = self._call(lambda jobs: jobs.observe(submission_id(experiment_id, attempt)))
        status: JobStatus = observation.status
        return status

    def _call(self, verb: Any) -> Any:
        async def call() -> Any:
            jobs = RayJobs(self.dashboard, token=SecretStr(self.token), code=self.code)
            try:
                return await verb(jobs)
            finally:
                await jobs.close()

        return asyncio.run(call())

    # --- the head's books -------------------------------------------------------------------------

    def reserved(self) -> list[dict[str, Any]]:
        """Return the placement groups that hold resources or wait for them."""
        return [group for group in self.listing("placement_groups") if group["state"] != "REMOVED"]

    def is_up(self) -> bool:
        """Return whether the dashboard and the head's store answer."""
        try:
            return httpx2.get(f"{self.dashboard}/api/gcs_healthz", timeout=2, trust_env=False).is_success
        except httpx2.HTTPError:
            return False

    def listing(self, what: str) -> list[dict[str, Any]]:
        """Return `nodes`, `actors`, `placement_groups`, ... as the state API lists them."""
        rows: list[dict[str, Any]] = json.loads(self.told(f"/api/v0/{what}"))["data"]["result"]["result"]
        return rows

    def told(self, path: str) -> str:
        """Return what the dashboard answers at a path to whoever has the token."""
        header = {"Authorization": f"Bearer {self.token}"}
        return httpx2.get(self.dashboard + path, headers=header, timeout=60, trust_env=False).raise_for_status().text
