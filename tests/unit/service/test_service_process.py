"""The service as a process: it answers while Ray and MLflow are away, stays small, and sends traces where told."""

from __future__ import annotations

import json
import os
import queue
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import psutil
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider

from service.edge.observability import add_trace
from tests.conftest import free_port
from tests.harness.image_health import health_check

IDLE_BYTES = 300 * 10**6
NOBODY = "http://127.0.0.1:9"
CANARY = "simclr_canary-0123456789abcdef"


def test_an_idle_service_is_small(tmp_path: Path) -> None:
    with service_process(tmp_path) as (url, process):
        assert httpx2.get(f"{url}/readyz").status_code == 503
        assert psutil.Process(process.pid).memory_info().rss < IDLE_BYTES


def test_the_image_s_health_check_passes_without_a_token_and_fails_where_nothing_answers(tmp_path: Path) -> None:
    with service_process(tmp_path, SIMCLR_BOOTSTRAP_TOKEN=CANARY) as (url, _):
        assert httpx2.get(f"{url}/version").status_code == 401
        words = health_check("service", port=httpx2.URL(url).port)
        subprocess.run(words, check=True, env={}, timeout=30)
    assert subprocess.run(words, check=False, env={}, timeout=30, capture_output=True).returncode != 0


def test_what_is_no_http_is_a_problem_like_every_other(tmp_path: Path) -> None:
    with service_process(tmp_path) as (url, _), socket.create_connection(("127.0.0.1", httpx2.URL(url).port)) as raw:
        raw.settimeout(20)
        raw.sendall(b"no http at all\r\n\r\n")
        answer = raw.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"application/problem+json" in answer


def test_spans_are_sent_where_the_standard_variables_say_and_carry_no_secret(tmp_path: Path) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"Authorization": f"Bearer {CANARY}", "traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    with collector() as (address, received):
        traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with service_process(tmp_path, **traces) as (url, _):
            assert httpx2.get(f"{url}/experiments/exp_none", headers=headers).status_code == 401
            request = next(sent for sent in iter(lambda: received.get(timeout=20), b"") if b"exp_none" in sent)
    spans = [
        span
        for resource in ExportTraceServiceRequest.FromString(request).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert ("GET /experiments/{experiment_id}", trace_id) in {(span.name, span.trace_id.hex()) for span in spans}
    assert CANARY.encode() not in request
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert CANARY not in str(lines)


def test_it_ends_in_time_while_storage_is_asked_and_silent(tmp_path: Path) -> None:
    with silence() as address, service_process(tmp_path, **silent_bucket(address)) as (url, process):
        body = {"name": "a", "kind": "pretrain", "spec": {"data": {"dataset": "openmoji"}}}
        experiment_id = httpx2.post(f"{url}/experiments", json=body, timeout=60).json()["id"]
        with closing(sqlite3.connect(tmp_path / "simclr.db")) as database:  # as one is that has run once
            database.execute("UPDATE experiments SET attempt = 1, state = 'paused'")
            database.commit()
        asking = [
            threading.Thread(target=answers, args=(f"{url}/experiments/{experiment_id}/trials",)) for _ in range(20)
        ]
        for each in asking:
            each.start()
        for each in asking:
            each.join()  # they gave up after 2 s
        began_s = time.monotonic()
        process.terminate()
        process.wait(60)
        assert time.monotonic() - began_s < 18
    assert "ended_without_waiting" not in (tmp_path / "log").read_text()


def test_it_ends_in_time_whatever_hangs_and_says_what(tmp_path: Path) -> None:
    script = """
import asyncio, sys, threading
import service.__main__ as program
program.END_S = 1.0
from service.edge.event_feed import EventFeed
close = EventFeed.close
def hang(self):
    for _ in range(64):  # all threads that asyncio has, and who waits for one
        asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    close(self)
EventFeed.close = hang
sys.exit(program.main())
"""
    with service_process(tmp_path, "-c", script) as (_, process):
        process.terminate()
        assert process.wait(30) == 1
    (line,) = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if "ended_without" in line]
    assert any(name.startswith("asyncio") for name in line["threads"])


def silent_bucket(address: str) -> dict[str, str]:
    """Return the environment of a service whose storage is a bucket at this address."""
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    return {"SIMCLR_STORAGE": "s3://bucket/prefix", "AWS_ENDPOINT_URL": address, **keys}


@contextmanager
def silence() -> Iterator[str]:
    """Yield the address of one who takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def service_process(home: Path, *program: str, **environ: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `python -m service`, or another program, with nobody behind it; yield its address once it answers."""
    port = free_port()
    environment = os.environ | {
        "SIMCLR_HOME": str(home),
        "SIMCLR_PORT": str(port),
        "SIMCLR_RAY_ADDRESS": NOBODY,
        "SIMCLR_MLFLOW_URI": NOBODY,
        "SIMCLR_CPUS": "4",
    }
    log = (home / "log").open("wb")
    command = [sys.executable, *(program or ("-m", "service"))]
    with log, subprocess.Popen(command, env=environment | environ, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + 60
            while not answers(f"http://127.0.0.1:{port}/livez"):
                assert process.poll() is None, (home / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=2).is_success
    except httpx2.HTTPError:
        return False


@contextmanager
def collector() -> Iterator[tuple[str, queue.Queue[bytes]]]:
    """Run what speaks OTLP over HTTP and yield its address and what it was sent."""
    received: queue.Queue[bytes] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


def test_a_log_line_names_the_span_it_was_written_in() -> None:
    assert add_trace(None, "info", {"event": "x"}) == {"event": "x"}
    with TracerProvider().get_tracer("test").start_as_current_span("work") as span:
        line = add_trace(None, "info", {"event": "x"})
    context = span.get_span_context()
    assert (int(line["trace_id"], 16), int(line["span_id"], 16)) == (context.trace_id, context.span_id)
