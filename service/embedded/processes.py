"""Processes of the stack: how they are started, recognised, and ended to the last descendant.

A process id alone proves nothing, since ids are reused: a process is the one on record when its
start time is too. Descendants are found by the environment they inherit (`STACK_ID`, `PART`), by
session, and by descent, because Ray's workers overwrite their environment with their title.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final

import psutil

from service.embedded.errors import StackFailed

__all__ = ["PARENT_PID", "PART", "STACK_ID", "ProcessRecord", "die_with_parent", "end", "find", "spawn"]

STACK_ID: Final = "SIMCLR_STACK_ID"
PART: Final = "SIMCLR_STACK_PART"
PARENT_PID: Final = "SIMCLR_PARENT_PID"

_START_TOLERANCE_S: Final = 2.0  # psutil derives start times from the boot time, which follows clock changes
_POLL_S: Final = 0.05
_KILL_WAIT_S: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


@dataclass(frozen=True, kw_only=True)
class ProcessRecord:
    """One process, beyond doubt: its id and when it started (seconds since the epoch)."""

    pid: int
    started_at: float

    @classmethod
    def of(cls, pid: int) -> ProcessRecord:
        """Return the record of a process that runs now. Raises psutil.NoSuchProcess."""
        return cls(pid=pid, started_at=psutil.Process(pid).create_time())

    def is_alive(self) -> bool:
        """Return whether this very process still runs."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.started_at) < _START_TOLERANCE_S
            return is_same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def spawn(
    command: Sequence[str], *, environment: Mapping[str, str], working_dir: Path, log: Path
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that a terminal's Ctrl-C reaches the supervisor alone."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(environment),
            cwd=working_dir,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def die_with_parent() -> None:
    """Have the kernel kill this process when the supervisor that started it ends, however that is.

    Does nothing in a process that no supervisor started.
    """
    parent = os.environ.pop(PARENT_PID, None)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it ended before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


def find(stack_id: str, parts: Mapping[str, ProcessRecord | None]) -> list[psutil.Process]:
    """Return every living process of these parts of a stack, each named with its first process if known."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    leaders = {record.pid: record for record in parts.values() if record is not None}
    proven = {pid for pid, record in leaders.items() if record.is_alive()}
    parents: dict[int, int] = {}
    members: dict[int, psutil.Process] = {}
    others: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid in own or process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            parents[process.pid] = process.ppid()
            session = os.getsid(process.pid)
            is_member = (
                session in proven
                or _is_marked(process, stack_id, parts)
                or (session in leaders and _is_orphan(process, leaders[session]))
            )
            (members if is_member else others)[process.pid] = process
    while adopted := [pid for pid in others if parents[pid] in members]:
        members.update({pid: others.pop(pid) for pid in adopted})
    return list(members.values())


def _is_marked(process: psutil.Process, stack_id: str, parts: Container[str]) -> bool:
    environment = process.environ()
    return environment.get(STACK_ID) == stack_id and environment.get(PART) in parts


def _is_orphan(process: psutil.Process, leader: ProcessRecord) -> bool:
    # Its leader is gone, so the session's number alone could be another's by now; but few
    # processes overwrite their environment, and none that is older than the leader is its.
    return not process.environ() and process.create_time() > leader.started_at - _START_TOLERANCE_S


def end(members: Callable[[], list[psutil.Process]], *, grace_s: float, hurried: Event | None = None) -> list[str]:
    """End all that `members` finds: SIGTERM, and SIGKILL after the grace or once `hurried` is set.

    Looks again until nothing is found, so what is started meanwhile is ended too.

    Returns:
        The names of the processes that were ended.

    Raises:
        StackFailed: If some still live a while after SIGKILL.
    """
    began_at = time.monotonic()
    ended: dict[int, str] = {}
    while living := members():
        is_over = time.monotonic() - began_at >= grace_s or (hurried is not None and hurried.is_set())
        for process in living:
            with contextlib.suppress(psutil.Error):
                if is_over:
                    process.kill()
                elif process.pid not in ended:
                    process.terminate()
                ended.setdefault(process.pid, process.name())
        if time.monotonic() - began_at > grace_s + _KILL_WAIT_S:
            pids = ", ".join(str(process.pid) for process in living)
            raise StackFailed(f"processes {pids} do not end; look at them with: ps -p {pids.replace(' ', '')}")
        time.sleep(_POLL_S)
    return list(ended.values())
