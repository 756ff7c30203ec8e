"""The embedded Ray: one head node with its dashboard, all of it on loopback."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from service.embedded.addresses import LOOPBACK, free_block, free_ports
from service.embedded.component import inherited_environment

__all__ = ["PREFERRED_DASHBOARD_PORT", "RayHead"]

PREFERRED_DASHBOARD_PORT: Final = 8265  # Ray's own
_WORKER_PORTS: Final = 500  # each worker process takes one; a busy two-core machine holds a few dozen
_OBJECT_STORE_BYTES: Final = 256 * 2**20  # images are memory-mapped files and checkpoints go to storage


@dataclass(frozen=True, kw_only=True)
class RayHead:
    """`ray start --head --block`: it ends as a whole when one of its daemons dies."""

    dashboard_port: int
    cpus: int  # logical
    runtime_dir: Path  # short: Ray's sockets lie in it, and a socket's path allows 107 bytes
    name: str = "ray"
    title: str = "Ray"

    @property
    def url(self) -> str:
        """Return the dashboard's address, which serves the Jobs API too."""
        return f"http://{LOOPBACK}:{self.dashboard_port}"

    @property
    def health_url(self) -> str:
        """Return what answers while dashboard and control store both work."""
        return f"{self.url}/api/gcs_healthz"

    @property
    def ready_url(self) -> str:
        """Return the same: what works can be used."""
        return self.health_url

    @property
    def identity(self) -> str:
        """Return version, interpreter and size."""
        return f"ray {version('ray')}, {sys.prefix}, {self.cpus} CPUs"

    @property
    def working_dir(self) -> Path:
        """Return the runtime directory."""
        return self.runtime_dir

    def command(self) -> list[str]:
        """Return `ray start` with every port named, so that nothing listens where no one looked."""
        gcs, agent, agent_grpc, runtime_env, client, metrics, node, objects = free_ports(8)
        workers = free_block(_WORKER_PORTS)
        return [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            f"--node-ip-address={LOOPBACK}",
            f"--port={gcs}",
            "--include-dashboard=true",
            f"--dashboard-host={LOOPBACK}",
            f"--dashboard-port={self.dashboard_port}",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--runtime-env-agent-port={runtime_env}",
            f"--ray-client-server-port={client}",
            f"--metrics-export-port={metrics}",
            f"--node-manager-port={node}",
            f"--object-manager-port={objects}",
            f"--min-worker-port={workers.start}",
            f"--max-worker-port={workers.stop - 1}",
            f"--num-cpus={self.cpus}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            f"--temp-dir={self.runtime_dir}",
            "--disable-usage-stats",
        ]

    def environment(self) -> Mapping[str, str]:
        """Return the environment of Ray and thereby of every job."""
        autoscaler_metrics, dashboard_metrics = free_ports(2)
        inherited = inherited_environment()
        return inherited | {
            # Jobs find this installation's python first.
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), inherited.get("PATH", os.defpath))),
            # No token on loopback; explicit, because the default changes with Ray's version.
            "RAY_AUTH_MODE": "disabled",
            # Off, else Ray replaces 127.0.0.1 by the machine's outer address and listens on all of them.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # On SIGTERM it would wait up to 30 s for jobs to leave a node that has nowhere to send them.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "AUTOSCALER_METRIC_PORT": str(autoscaler_metrics),
            "DASHBOARD_METRIC_PORT": str(dashboard_metrics),
        }
