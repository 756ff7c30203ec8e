"""Another node of a Ray that listens on loopback: `python -m tests.harness.second_node GCS_ADDRESS CPUS`.

`ray start` refuses to join such a Ray from the command line, though nothing stands against it.
"""

from __future__ import annotations

import sys
import threading

from ray._private.node import Node
from ray._private.parameter import RayParams

from service.embedded.addresses import free_block, free_ports


def main(gcs_address: str, num_cpus: str) -> None:
    agent, agent_grpc, runtime_env, metrics, manager, objects = free_ports(6)
    workers = free_block(100)
    parameters = RayParams(
        gcs_address=gcs_address,
        node_ip_address="127.0.0.1",
        num_cpus=int(num_cpus),
        object_store_memory=80_000_000,
        dashboard_agent_listen_port=agent,
        metrics_agent_port=agent_grpc,
        runtime_env_agent_port=runtime_env,
        metrics_export_port=metrics,
        node_manager_port=manager,
        object_manager_port=objects,
        min_worker_port=workers.start,
        max_worker_port=workers.stop - 1,
    )
    Node(parameters, head=False, shutdown_at_exit=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
