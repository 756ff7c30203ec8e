"""Runs inside an image: starts a command, waits until an address answers, and ends it."""

# ruff: noqa: INP001, T201 - fed to an interpreter, part of no package; its output is what it is for

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

DEADLINE_S = 120.0


def main(address: str, *command: str) -> None:
    """Start, wait, end."""
    if os.getuid() != 10001 or os.access("/opt/simclr", os.W_OK):  # noqa: PLR2004 - the Dockerfile's number
        sys.exit(f"runs as user {os.getuid()}, who can write to the code: {os.access('/opt/simclr', os.W_OK)}")
    began_s = time.monotonic()
    process = subprocess.Popen(command)
    try:
        while not answers(address):
            if process.poll() is not None or time.monotonic() - began_s > DEADLINE_S:
                sys.exit(f"{command[0]} does not answer at {address}; its status is {process.poll()}")
            time.sleep(0.1)  # between two looks, bounded by the deadline
        print(f"ok  user {os.getuid()}, who cannot write to the code")
        print(f"ok  {command[0]} answered {time.monotonic() - began_s:.1f} s after its start")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def answers(address: str) -> bool:
    """Return whether something is well there."""
    try:
        with urlopen(address, timeout=5) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)  # noqa: PLR2004
    except (URLError, OSError):
        return False


if __name__ == "__main__":
    main(*sys.argv[1:])
