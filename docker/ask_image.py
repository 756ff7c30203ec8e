"""Runs inside the service's image: starts the service as the image does, asks it, ends it."""

# ruff: noqa: INP001 - fed to an interpreter, part of no package

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

URL = f"http://127.0.0.1:{os.environ['SIMCLR_PORT']}"
TOKEN = {"Authorization": f"Bearer {os.environ['SIMCLR_BOOTSTRAP_TOKEN']}"}
DEADLINE_S = 60.0
EXPERIMENT = {"name": "in the image", "kind": "pretrain", "spec": {"data": {"dataset": "openmoji", "image_size": 16}}}


def ask(path: str, body: dict[str, Any] | None = None, headers: dict[str, str] = TOKEN) -> tuple[int, Any]:
    """Return status and document of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(URL + path, data, {**headers, "Content-Type": "application/json"})  # noqa: S310 - our own address
    try:
        with urlopen(request, timeout=30) as answer:  # noqa: S310 - our own address
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def wait_for(process: subprocess.Popen[bytes]) -> float:
    """Return after how many seconds the service answered."""
    began_s = time.monotonic()
    while True:
        try:
            ask("/livez")
        except (URLError, ConnectionError):
            if process.poll() is not None or time.monotonic() - began_s > DEADLINE_S:
                raise
            time.sleep(0.1)  # between two looks, bounded by the deadline
        else:
            return time.monotonic() - began_s


def check(*, holds: bool, what: str) -> None:
    """Say what was seen; end the script where it does not hold."""
    print("ok " if holds else "NOT", what)  # noqa: T201 - its output is what it is for
    if not holds:
        sys.exit(1)


def main() -> None:
    """Start, ask, end."""
    heavy = [name for name in ("torch", "ray", "mlflow") if find_spec(name)]
    check(holds=not heavy, what="neither torch nor Ray nor MLflow is in the image")
    check(holds=os.getuid() == 10001, what=f"runs as user {os.getuid()}")  # noqa: PLR2004 - the Dockerfile's number
    check(holds=not os.access("/opt/simclr", os.W_OK), what="cannot write to its own code")
    process = subprocess.Popen([sys.executable, "-m", "service"])
    try:
        check(holds=True, what=f"answers {wait_for(process):.1f} s after its start")
        check(holds=ask("/version", headers={})[0] == 401, what="refuses who has no token")  # noqa: PLR2004 - HTTP
        check(holds=ask("/version")[0] == 200, what=f"tells its version: {ask('/version')[1]}")  # noqa: PLR2004 - HTTP
        check(holds=ask("/readyz")[0] == 503, what="says that Ray and MLflow are away")  # noqa: PLR2004 - HTTP
        status, plan = ask("/experiments?validate_only=true", EXPERIMENT)
        check(holds=status == 200, what=f"plans an experiment: {plan.get('plan', plan)}")  # noqa: PLR2004 - HTTP
        status, created = ask("/experiments", EXPERIMENT)
        check(holds=status == 202, what=f"accepts it as {created.get('id', created)}")  # noqa: PLR2004 - HTTP
    finally:
        process.terminate()
    # The server closes everything and then dies of the signal, as whoever sent it expects.
    check(holds=process.wait(20) == -signal.SIGTERM, what="ends when it is told to")


main()
