"""What a request costs: POST and GET of the service beside MLflow's runs/create, and 500 open event streams.

    python benchmarks/service_load.py [--seconds 60] [--clients 8] [--streams 500]

A whole `simclr serve` runs on SQLite with its dispatcher. One experiment holds the only place that
`SIMCLR_MAX_RUNNING=1` gives and is then frozen, so all that is posted queues up and nothing trains.
The peer is the MLflow server of the same stack, on SQLite too. Clients are threads of one other
process, each with one connection, and post again as soon as they are answered.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil

START_TIMEOUT_S: Final = 120.0
SPEC: Final[dict[str, Any]] = {
    "data": {"dataset": "openmoji", "image_size": 16},
    "encoder": {"name": "resnet8"},
    "batch_size": 64,
    "epochs": 1000,
}


@dataclass(frozen=True, kw_only=True)
class Load:
    """The answers to one kind of request."""

    latencies_ms: Sequence[float]
    seconds: float

    @property
    def rate(self) -> float:
        """Return answers a second."""
        return len(self.latencies_ms) / self.seconds

    def quantile_ms(self, share: float) -> float:
        """Return the latency that `share` of the answers stayed below."""
        return statistics.quantiles(self.latencies_ms, n=1000, method="inclusive")[round(share * 1000) - 1]


def ask(url: str, method: str, path: str, body: dict[str, Any] | None, *, clients: int, seconds: float) -> Load:
    """Return how `clients` connections were answered; `{n}` in a body's name becomes a number."""
    with ProcessPoolExecutor(1) as process:
        return process.submit(_ask_from_threads, url, method, path, body, clients=clients, seconds=seconds).result()


def _ask_from_threads(
    url: str, method: str, path: str, body: dict[str, Any] | None, *, clients: int, seconds: float
) -> Load:
    with ThreadPoolExecutor(clients) as threads:
        asked = [threads.submit(_ask_in_a_row, url, method, path, body, seconds=seconds) for _ in range(clients)]
        return Load(latencies_ms=[ms for each in asked for ms in each.result()], seconds=seconds)


def _ask_in_a_row(url: str, method: str, path: str, body: dict[str, Any] | None, *, seconds: float) -> list[float]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    content = None if body is None else json.dumps(body)
    headers = {} if body is None else {"Content-Type": "application/json"}
    latencies_ms = []
    end_s = time.perf_counter() + seconds
    while (begin_s := time.perf_counter()) < end_s:
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status not in {200, 202}:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]!r}")
        latencies_ms.append(1000 * (time.perf_counter() - begin_s))
    return latencies_ms


@contextlib.contextmanager
def stack(home: Path) -> Iterator[tuple[str, str, psutil.Process]]:
    """Run `simclr serve` and yield the addresses of the service and of MLflow, and the process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"SIMCLR_HOME": str(home), "SIMCLR_PORT": str(port), "SIMCLR_MAX_RUNNING": "1"}
    with (home / "serve.log").open("ab") as log:
        process = psutil.Popen(
            [sys.executable, "-m", "service.cli", "serve"], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(lambda: _is_ready(url), "the stack")
        yield url, json.loads((home / "stack.json").read_text())["parts"]["mlflow"]["url"], process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _is_ready(url: str) -> bool:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come about in {START_TIMEOUT_S:.0f} s")
        time.sleep(0.2)


def send(url: str, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the document that one request is answered with."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    headers = {} if body is None else {"Content-Type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    document: dict[str, Any] = json.loads(connection.getresponse().read())
    return document


@contextlib.contextmanager
def frozen_experiment(url: str, process: psutil.Process) -> Iterator[str]:
    """Take the only place with an experiment whose processes then stand still; yield its id."""
    running = send(url, "POST", "/experiments", {"name": "holds the place", "kind": "pretrain", "spec": SPEC})["id"]
    _wait_for(lambda: _num_steps(url, running) > 0, "the first step")
    frozen = [each for each in process.children(recursive=True) if _trains(each)]
    for each in frozen:
        each.suspend()
    try:
        yield running
    finally:
        for each in frozen:
            each.resume()


def _num_steps(url: str, experiment_id: str) -> int:
    series = send(url, "GET", f"/experiments/{experiment_id}/metrics?keys=loss").get("series", {})
    return len(series.get("loss", ()))


def _trains(process: psutil.Process) -> bool:
    line = " ".join(process.cmdline())
    return "--document" in line or "RayTrainWorker" in line or "TrainController" in line


@contextlib.contextmanager
def open_streams(url: str, experiment_ids: Sequence[str], *, number: int) -> Iterator[None]:
    """Hold `number` event streams open that have told all there was, shared out over the experiments."""
    address = urlsplit(url)
    streams = []
    for index in range(number):
        stream = socket.create_connection((address.hostname, address.port), timeout=60)
        path = f"/experiments/{experiment_ids[index % len(experiment_ids)]}/events"
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAccept: text/event-stream\r\n\r\n".encode())
        streams.append(stream)
    for stream in streams:
        _read_first_event(stream)
    try:
        yield
    finally:
        for stream in streams:
            stream.close()


def _read_first_event(stream: socket.socket) -> None:
    text = b""
    while b"event: state" not in text:
        if not (more := stream.recv(4096)):
            raise RuntimeError(f"a stream is refused: {text!r}")
        text += more


def print_load(name: str, load: Load, note: str = "") -> None:
    """Print one row."""
    quantiles = "  ".join(f"p{round(100 * share)} {load.quantile_ms(share):7.1f} ms" for share in (0.5, 0.99))
    print(f"{name:<44} {load.rate:8.0f}/s  {quantiles}  {note}", flush=True)


def main() -> None:
    """Print each row and the ratios to MLflow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the POSTs; the other rows take a sixth")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--streams", type=int, default=500)
    arguments = parser.parse_args()
    seconds, clients = arguments.seconds, arguments.clients
    post = {"name": "queued", "kind": "pretrain", "spec": SPEC}
    with (
        tempfile.TemporaryDirectory() as folder,
        stack(Path(folder)) as (url, mlflow_url, process),
        frozen_experiment(url, process) as running,
    ):
        run = {"experiment_id": "0", "run_name": "a run"}
        create = "/api/2.0/mlflow/runs/create"
        theirs = ask(mlflow_url, "POST", create, run, clients=clients, seconds=seconds / 6)
        print_load(f"MLflow runs/create, {clients} clients", theirs)
        alone = ask(url, "POST", "/experiments", post, clients=1, seconds=seconds / 6)
        print_load("POST /experiments, 1 client", alone)
        ours = ask(url, "POST", "/experiments", post, clients=clients, seconds=seconds)
        print_load(f"POST /experiments, {clients} clients", ours, "p99 <= 60 ms wanted")
        rate, tail = ours.rate / theirs.rate, ours.quantile_ms(0.99) / theirs.quantile_ms(0.99)
        print(f"{'  against MLflow':<44} rate {rate:.1f} times (>= 2 wanted), p99 {tail:.2f} of it (<= 0.2 wanted)")
        queued = [item["id"] for item in send(url, "GET", "/experiments?page_size=9&state=queued")["items"]]
        pages = {"GET one": f"/experiments/{queued[0]}", "GET a page of 25": "/experiments?page_size=25"}
        free = {name: ask(url, "GET", path, None, clients=2, seconds=seconds / 6) for name, path in pages.items()}
        for name, load in free.items():
            print_load(f"{name}, 2 clients", load, "p99 <= 15 ms wanted" if name == "GET one" else "")
        with open_streams(url, [running, *queued], number=arguments.streams):
            for name, path in pages.items():
                watched = ask(url, "GET", path, None, clients=2, seconds=seconds / 6)
                tail = watched.quantile_ms(0.99) / free[name].quantile_ms(0.99)
                print_load(
                    f"  {name}, {arguments.streams} streams open", watched, f"p99 {tail:.2f} times (<= 2 wanted)"
                )


if __name__ == "__main__":
    main()
