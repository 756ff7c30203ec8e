"""The embedded stack with a real Ray and a real MLflow; only the service is a stand-in."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from service.embedded.addresses import free_ports, is_free
from service.embedded.processes import STACK_ID
from service.embedded.stack import answers
from service.embedded.state_directory import StateDirectory

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

SERVICE = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from service.embedded.processes import die_with_parent
die_with_parent()
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *arguments):
        pass
HTTPServer(("127.0.0.1", int(os.environ["SIMCLR_PORT"])), Handler).serve_forever()
"""

SUPERVISOR = """
import contextlib, sys
from service.embedded.supervisor import running_stack
from service.settings import Settings
report = lambda title, text: print(title, text, flush=True)
with contextlib.suppress(KeyboardInterrupt):
    with running_stack(Settings(), command="serve", report=report, service_arguments=(sys.argv[1],)) as stack:
        print("READY", flush=True)
        stack.keep()
"""


class Installation:
    """A state directory with a long path, and the supervisors started on it."""

    def __init__(self, root: Path) -> None:
        self.directory = StateDirectory(path=root / ("long-name-" * 12) / "état #1 %41?")
        self.port = free_ports(1)[0]
        self.service = root / "stand_in.py"
        self.service.write_text(SERVICE)
        self.output = root / "output.txt"
        self.supervisors: list[subprocess.Popen[bytes]] = []

    def start(self) -> "subprocess.Popen[bytes]":
        environment = os.environ | {"SIMCLR_HOME": str(self.directory.path), "SIMCLR_PORT": str(self.port)}
        environment["SIMCLR_CPUS"] = "2"
        with self.output.open("wb") as output:
            supervisor = subprocess.Popen(
                [sys.executable, "-c", SUPERVISOR, str(self.service)], env=environment, stdout=output, stderr=output
            )
        self.supervisors.append(supervisor)
        wait_until(lambda: "READY" in self.output.read_text() or supervisor.poll() is not None, timeout_s=120)
        assert supervisor.poll() is None, self.output.read_text()
        return supervisor

    def stop(self) -> str:
        environment = os.environ | {"SIMCLR_HOME": str(self.directory.path)}
        command = [sys.executable, "-m", "service.cli", "stop", "--json"]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    def pid(self, part: str) -> int:
        return self.directory.read_parts()[part].process.pid

    def url(self, part: str) -> str:
        return self.directory.read_parts()[part].url

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(STACK_ID) == self.directory.stack_id:
                    found.append(process)
        return found


def wait_until(condition: Callable[[], bool], *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    installation = Installation(tmp_path)
    yield installation
    installation.stop()
    for supervisor in installation.supervisors:
        supervisor.wait(timeout=10)
    assert installation.processes() == []


def test_ray_and_mlflow_outlive_a_killed_supervisor_and_are_taken_over(installation: Installation) -> None:
    first = installation.start()
    before = installation.directory.read_parts()
    members = installation.processes()
    assert {address for p in members for address in listening(p)} <= {"127.0.0.1", "::ffff:127.0.0.1"}

    first.kill()
    first.wait()
    wait_until(lambda: is_free(installation.port), timeout_s=5)
    assert before["ray"].process.is_alive()
    assert before["mlflow"].process.is_alive()
    assert not before["service"].process.is_alive()

    second = installation.start()
    after = installation.directory.read_parts()
    assert (after["ray"], after["mlflow"]) == (before["ray"], before["mlflow"])
    assert after["service"] != before["service"]

    second.send_signal(signal.SIGTERM)
    assert second.wait(timeout=30) == 0
    assert installation.processes() == []
    assert not installation.directory.runtime_dir.exists()
    assert installation.directory.read_parts() == {}


def listening(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        connections = process.net_connections(kind="tcp")
        return [connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN]
    return []


def test_what_dies_is_started_again_at_the_same_address(installation: Installation) -> None:
    installation.start()
    urls = {part: installation.url(part) for part in ("ray", "mlflow", "service")}
    raylet = next(p for p in installation.processes() if p.name() == "raylet")
    ray, service = installation.pid("ray"), installation.pid("service")

    raylet.kill()
    os.kill(service, signal.SIGKILL)
    wait_until(lambda: installation.pid("ray") != ray and installation.pid("service") != service, timeout_s=30)
    wait_until(lambda: answers(f"{urls['ray']}/api/gcs_healthz") and answers(urls["service"]), timeout_s=60)

    assert {part: installation.url(part) for part in urls} == urls
    assert "starting it again" in installation.output.read_text()
    assert json.loads(installation.stop())["stopped"][0] == "simclr serve"


def test_stop_clears_what_a_killed_supervisor_left(installation: Installation) -> None:
    supervisor = installation.start()
    supervisor.kill()
    supervisor.wait()
    assert installation.processes() != []

    installation.stop()

    assert installation.processes() == []
