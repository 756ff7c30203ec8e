"""The service as a process: it answers while Ray and MLflow are away, and stays small."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import psutil

from tests.conftest import free_port

IDLE_BYTES = 300 * 10**6
NOBODY = "http://127.0.0.1:9"


def test_an_idle_service_is_small(tmp_path: Path) -> None:
    port = free_port()
    environment = os.environ | {
        "SIMCLR_HOME": str(tmp_path),
        "SIMCLR_PORT": str(port),
        "SIMCLR_RAY_ADDRESS": NOBODY,
        "SIMCLR_MLFLOW_URI": NOBODY,
        "SIMCLR_CPUS": "4",
    }
    log = (tmp_path / "log").open("wb")
    with log, subprocess.Popen([sys.executable, "-m", "service"], env=environment, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + 60
            while not answers(f"http://127.0.0.1:{port}/livez"):
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert httpx2.get(f"http://127.0.0.1:{port}/readyz").status_code == 503
            assert psutil.Process(process.pid).memory_info().rss < IDLE_BYTES
        finally:
            process.terminate()


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=2).is_success
    except httpx2.HTTPError:
        return False
