"""What a host outside can reach: nothing of an embedded stack, and of a cluster nothing without its token."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress

import httpx2
import psutil
import pytest

from tests.conftest import RunningStack
from tests.harness.hosts import Host, Lan, reason_for_no_hosts

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(reason_for_no_hosts() is not None, reason=str(reason_for_no_hosts())),
]

# Prints which of the ports take a connection.
KNOCK = """
import json, socket, sys
open_ports = []
for port in json.loads(sys.argv[2]):
    with socket.socket() as caller:
        caller.settimeout(5)
        if caller.connect_ex((sys.argv[1], port)) == 0:
            open_ports.append(port)
print(json.dumps(open_ports))
"""


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    with Lan() as lan:
        yield lan


@pytest.fixture(scope="module")
def outside(lan: Lan) -> Host:
    """Return a host that has this machine as its gateway, and so a way to every address of it."""
    return lan.add_host("outside")


def open_ports(outside: Host, address: str, ports: list[int]) -> list[int]:
    answer: list[int] = json.loads(outside.run([sys.executable, "-c", KNOCK, address, json.dumps(ports)]))
    return answer


def listening_ports(stack: RunningStack) -> list[int]:
    """Return every TCP port on which a process of the stack listens."""
    ports: set[int] = set()
    root = psutil.Process(stack.process.pid)
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.Error):
            connections = process.net_connections(kind="tcp")
            ports |= {item.laddr.port for item in connections if item.status == psutil.CONN_LISTEN}
    return sorted(ports)


def addresses_of_this_machine() -> set[str]:
    items = [item for items in psutil.net_if_addrs().values() for item in items]
    found = {item.address for item in items if item.family == socket.AF_INET}
    return {address for address in found if not address.startswith("127.")}


def test_no_part_of_a_stack_can_be_reached_from_another_host(stack: RunningStack, outside: Host) -> None:
    ports = listening_ports(stack)
    named = [httpx2.URL(url).port for url in (stack.url, stack.ray_dashboard, stack.mlflow_uri)]
    assert set(named) <= set(ports)  # what is knocked at is the service, Ray's dashboard, MLflow and what they start
    with socket.create_server(("0.0.0.0", 0)) as careless:  # noqa: S104 - the knock itself is put to the test
        port = careless.getsockname()[1]
        for address in addresses_of_this_machine():
            assert open_ports(outside, address, [*ports, port]) == [port]
