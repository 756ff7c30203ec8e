"""The stack: starts its parts together, looks after them one tick at a time, and ends them all.

Order at the crash points: a part carries the stack's marker from its first instruction, so that
what was started and not yet recorded is found all the same.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Final

import httpx2

from service.embedded.component import Component
from service.embedded.errors import StackFailed
from service.embedded.processes import PART, STACK_ID, ProcessRecord, end, find, spawn
from service.embedded.state_directory import RunningPart, StateDirectory

__all__ = ["PARTS", "Report", "Stack", "end_parts"]

Report = Callable[[str, str], None]  # (title, what happens)

PARTS: Final = ("service", "mlflow", "ray")  # in the order in which they are ended
_START_TIMEOUT_S: Final = 120.0
_POLL_S: Final = 0.1
_PROBE_TIMEOUT_S: Final = 5.0
_PROBE_INTERVAL_S: Final = 5.0
_SILENCE_LIMIT_S: Final = 60.0  # of a process that lives and does not answer
_STABLE_S: Final = 60.0  # alive so long, its next failure counts as the first
_BACKOFF_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SERVICE_GRACE_S: Final = 8.0  # the three bounds add up to well under the 30 s that a stop may take
_GRACE_S: Final = 6.0
_RESTART_GRACE_S: Final = 1.0  # what died or went silent has no orderly end to make
_LOG_LIMIT_BYTES: Final = 16 * 2**20
_LOG_TAIL_LINES: Final = 12


@dataclass(kw_only=True)
class _Supervised:
    """What the supervisor knows of one part."""

    component: Component
    process: ProcessRecord | None = None
    child: subprocess.Popen[bytes] | None = None
    began_at: float = 0.0
    answered_at: float = 0.0
    probed_at: float = 0.0
    failures: int = 0
    log_start: int = 0  # where its own output begins in the log that it shares with those before it
    restart_at: float | None = None

    def reap(self) -> None:
        """Take the exit status of what has ended, so that no zombie stays."""
        if self.child is not None:
            self.child.wait()

    def is_alive(self) -> bool:
        """Return whether its first process runs."""
        if self.child is not None:
            return self.child.poll() is None
        return self.process is not None and self.process.is_alive()


class Stack:
    """The parts that this command keeps alive. Times are of `time.monotonic`, in seconds."""

    def __init__(
        self, components: Sequence[Component], *, directory: StateDirectory, report: Report, hurried: Event
    ) -> None:
        self._parts = {component.name: _Supervised(component=component) for component in components}
        self._directory = directory
        self._report = report
        self._hurried = hurried

    def start(self) -> None:
        """Take over what runs and answers, start the rest together, and return when all answer.

        Raises:
            StackFailed: If a part ends or does not answer in time; what was started is for `stop`.
        """
        recorded = self._directory.read_parts()
        for name, part in self._parts.items():
            self._adopt(part, recorded.get(name))
        for part in self._parts.values():
            if part.process is None:
                self._launch(part)
        for part in self._parts.values():
            self._wait_for(part)

    def _adopt(self, part: _Supervised, recorded: RunningPart | None) -> None:
        component = part.component
        is_same = (
            component.name != "service"
            and recorded is not None
            and (recorded.identity, recorded.url) == (component.identity, component.url)
        )
        if is_same and recorded is not None and recorded.process.is_alive() and answers(component.health_url):
            part.process, part.began_at = recorded.process, time.monotonic()
            self._report(component.title, f"taken over at {component.url}")
            return
        end_parts(self._directory, {component.name: recorded.process if recorded else None}, hurried=self._hurried)

    def _launch(self, part: _Supervised) -> None:
        component = part.component
        self._report(component.title, f"starting at {component.url}")
        component.working_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = self._directory.logs_dir / f"{component.name}.log"
        if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
            log.replace(log.with_suffix(".log.1"))
        part.log_start = log.stat().st_size if log.exists() else 0
        marker = {STACK_ID: self._directory.stack_id, PART: component.name}
        part.child = spawn(
            component.command(),
            environment={**component.environment(), **marker},
            working_dir=component.working_dir,
            log=log,
        )
        part.process = ProcessRecord.of(part.child.pid)
        part.began_at = part.answered_at = part.probed_at = time.monotonic()
        part.restart_at = None
        self._record()

    def _record(self) -> None:
        self._directory.write_parts(
            {
                name: RunningPart(process=part.process, url=part.component.url, identity=part.component.identity)
                for name, part in self._parts.items()
                if part.process is not None
            }
        )

    def _wait_for(self, part: _Supervised) -> None:
        component = part.component
        while not answers(component.ready_url):
            for other in self._parts.values():
                if not other.is_alive():
                    raise StackFailed(f"{other.component.title} ended while starting{self._log_tail(other)}")
            if time.monotonic() - part.began_at > _START_TIMEOUT_S:
                raise StackFailed(
                    f"{component.title} is not ready after {_START_TIMEOUT_S:.0f} s; see {component.ready_url}"
                    f"{self._log_tail(part)}"
                )
            time.sleep(_POLL_S)
        self._report(component.title, f"ready at {component.url} after {time.monotonic() - part.began_at:.1f} s")

    def _log_tail(self, part: _Supervised) -> str:
        log = self._directory.logs_dir / f"{part.component.name}.log"
        try:
            lines = log.read_bytes()[part.log_start :].decode(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        except OSError:
            lines = []
        return "\n  ".join((f"; the end of {log}:", *lines))

    def tick(self, now: float) -> None:
        """Look at each part once: start again what died or went silent, after a growing delay."""
        for part in self._parts.values():
            if part.restart_at is not None:
                if now >= part.restart_at:
                    self._launch(part)
            elif not part.is_alive():
                self._schedule_restart(part, now, "ended")
            elif now - part.probed_at >= _PROBE_INTERVAL_S:
                part.probed_at = now
                if answers(part.component.health_url):
                    part.answered_at = now
                elif now - part.answered_at > _SILENCE_LIMIT_S:
                    self._schedule_restart(part, now, f"has not answered for {_SILENCE_LIMIT_S:.0f} s")

    def _schedule_restart(self, part: _Supervised, now: float, what: str) -> None:
        component = part.component
        if now - part.began_at > _STABLE_S:
            part.failures = 0
        delay_s = _BACKOFF_S[min(part.failures, len(_BACKOFF_S) - 1)]
        part.failures += 1
        part.restart_at = now + delay_s
        log = self._directory.logs_dir / f"{component.name}.log"
        self._report(component.title, f"{what}; starting it again in {delay_s:g} s (output: {log})")
        end_parts(self._directory, {component.name: part.process}, hurried=self._hurried, most_grace_s=_RESTART_GRACE_S)
        part.reap()

    def stop(self) -> None:
        """End every part and forget them: the service first, so that it never sees the others go."""
        recorded = {name: part.process for name, part in self._parts.items()}
        end_parts(self._directory, recorded, hurried=self._hurried)
        for part in self._parts.values():
            part.reap()
        self._directory.forget()


def end_parts(
    directory: StateDirectory,
    parts: dict[str, ProcessRecord | None],
    *,
    hurried: Event | None = None,
    most_grace_s: float = math.inf,
) -> list[str]:
    """End all processes of these parts, and return their names."""
    service = {name: process for name, process in parts.items() if name == "service"}
    others = {name: process for name, process in parts.items() if name != "service"}
    ended: list[str] = []
    for group, grace_s in ((service, _SERVICE_GRACE_S), (others, _GRACE_S)):
        if group:
            members = partial(find, directory.stack_id, group)
            ended += end(members, grace_s=min(grace_s, most_grace_s), hurried=hurried)
    return ended


def answers(url: str) -> bool:
    """Return whether a GET is answered with success."""
    try:
        return httpx2.get(url, timeout=_PROBE_TIMEOUT_S, trust_env=False).is_success
    except httpx2.HTTPError:
        return False
