"""The service as a process of its own, beside others that share its database, storage and cluster."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import httpx2
import psutil

from tests.conftest import free_port
from tests.harness.experiments import wait_until

__all__ = ["Replica"]

START_TIMEOUT_S: Final = 60.0


class Replica:
    """`python -m service` on one port, with these settings; it can be ended and started again."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self._port = free_port()
        self._environment = os.environ | {"SIMCLR_HOME": str(home), "SIMCLR_PORT": str(self._port), **settings}
        self.url = f"http://127.0.0.1:{self._port}"
        self.claim = f"{socket.gethostname()}:{self._port}"  # its name in the database

    @property
    def log(self) -> Path:
        return self.home / "service.log"

    def start(self) -> None:
        """Start it; `wait` tells when it answers."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "service"]
            self.process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def wait(self) -> None:
        """Return once it answers."""
        wait_until(self._answers, timeout_s=START_TIMEOUT_S, what=f"an answer of {self.url}")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx2.get(f"{self.url}/livez", timeout=5).is_success
        except httpx2.HTTPError:
            return False

    def kill(self) -> None:
        """End it as a crash of its host would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it as an operator does, frozen or not."""
        self.thaw()
        self.process.terminate()
        self.process.wait(30)

    def freeze(self) -> None:
        """Let it do nothing any more."""
        self.process.send_signal(signal.SIGSTOP)
        status = psutil.Process(self.process.pid)
        wait_until(lambda: status.status() == psutil.STATUS_STOPPED, timeout_s=10, what="the freeze")

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)
