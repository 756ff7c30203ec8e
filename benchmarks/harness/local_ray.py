"""A Ray of this machine's own, with its dashboard as always, and programs that run on it as jobs do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.dispatch.job import JOB_ENVIRONMENT
from trainer.context import JobDocument, experiment_key
from trainer.storage import open_storage
from tune_spaces.spec import SweepSpec, resolve

__all__ = ["LocalRay", "SweepRun", "local_ray"]


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """A sweep that has ended by itself."""

    wall_s: float  # of its job's process, from start to exit
    end: dict[str, Any]
    report: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LocalRay:
    """Where it is."""

    address: str
    folder: Path  # for all that runs leave

    def run(self, *words: str, environment: Mapping[str, str] | None = None) -> float:
        """Run Python with these words to its end and return the seconds it took.

        Raises:
            RuntimeError: With the end of its output, if it fails.
        """
        started_s = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *words],
            env={**os.environ, "RAY_ADDRESS": self.address, "PYTHONPATH": str(Path.cwd()), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{words[:2]} ended with status {done.returncode}:\n{done.stdout.decode()[-4000:]}")
        return time.perf_counter() - started_s

    def sweep(self, name: str, document: Mapping[str, Any], *, datasets_dir: Path | None = None) -> SweepRun:
        """Run a sweep as its job does, with the environment that the service gives it; without MLflow."""
        job = JobDocument(
            experiment_id=f"exp_{name}",
            name=name,
            kind="sweep",
            attempt=1,
            spec=resolve(SweepSpec.model_validate(document)),
            storage=str(self.folder / "storage"),
            datasets_dir=str(datasets_dir) if datasets_dir else None,
            cache_dir=str(self.folder / "cache"),
        )
        job_config = {"runtime_env": {"env_vars": dict(JOB_ENVIRONMENT)}}  # as Ray gives it to a job's driver
        environment = {**JOB_ENVIRONMENT, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job_config)}
        wall_s = self.run("-m", "tune_spaces", "--document", job.encode(), environment=environment)
        storage = open_storage(job.storage)
        end, report = (
            json.loads(storage.read(experiment_key(job.experiment_id, file)))
            for file in ("complete.json", "report.json")
        )
        return SweepRun(wall_s=wall_s, end=end, report=report)


@contextmanager
def local_ray(folder: Path, *, num_cpus: int) -> Iterator[LocalRay]:
    """Yield a Ray that this process starts and stops.

    Args:
        folder: For what runs leave.
        num_cpus: That Ray may give out, whatever the machine has.
    """
    os.environ.update(
        RAY_AUTH_MODE="disabled",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # else it leaves loopback for the machine's outer address
    )
    import ray

    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=True,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    try:
        yield LocalRay(address=ray.get_runtime_context().gcs_address, folder=folder)
    finally:
        ray.shutdown()
