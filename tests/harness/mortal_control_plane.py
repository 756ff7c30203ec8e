"""A control plane as a process that can be killed, and born again in a few milliseconds.

    python -m tests.harness.mortal_control_plane

imports all that a control plane needs and forks one for each line that it reads: `Places` as JSON.
It prints the process id, and when that process has ended its exit status (-9 where it was killed).
The process serves clients and steps the dispatcher, side by side, on a real database; the cluster,
MLflow and the clients are outside of it, in the process that started this one.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Final, NoReturn, Self, cast

import psutil
import structlog

from service.dispatch.dispatcher import Dispatcher
from service.edge.deps import Services
from service.edge.problems import Problem
from service.experiment import State
from service.intake.lifecycle_verbs import obey
from service.ports import Cluster, ExperimentRecord, Tracking
from service.settings import Settings
from service.store import SqlStore
from tests.harness.outside import Ask, Line, Outside, Part, Places, Wish
from trainer.storage import DirectoryStorage

__all__ = ["Births", "MortalControlPlane"]

ROOT: Final = Path(__file__).parents[2]
BIRTH_TIMEOUT_S: Final = 60.0  # imports included


# --- where it is killed ---------------------------------------------------------------------------


class MortalControlPlane:
    """One life of it."""

    def __init__(self, pid: int, births: asyncio.subprocess.Process) -> None:
        self.pid = pid
        self._births = births

    async def kill(self) -> None:
        """End it with SIGKILL; it must have lived until now."""
        os.kill(self.pid, signal.SIGKILL)
        status = await self.ended()
        assert status == -signal.SIGKILL, f"the control plane ended by itself, with status {status}"

    async def ended(self) -> int:
        """Return its exit status once it has ended."""
        return await _read_number(self._births)

    @property
    def is_stopped(self) -> bool:
        """Return whether it was stopped and does nothing until it is woken."""
        return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED

    def stop(self) -> None:
        """Let it do nothing any more, wherever it is."""
        os.kill(self.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on from where it was stopped."""
        os.kill(self.pid, signal.SIGCONT)


class Births:
    """The process that forks them; `async with` ends it."""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # it ends when the control plane has, which ends when its world is gone
        await self._process.wait()

    async def bear(self, places: Places) -> MortalControlPlane:
        """Start a control plane."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(places)).encode() + b"\n")
        return MortalControlPlane(await _read_number(self._process), self._process)


async def _read_number(process: asyncio.subprocess.Process) -> int:
    assert process.stdout is not None
    return int(await asyncio.wait_for(process.stdout.readline(), BIRTH_TIMEOUT_S))


# --- its own process ------------------------------------------------------------------------------


class HesitantStore(SqlStore):
    """Stops its process once, between the decision to make a move and its write."""

    def __init__(self, places: Places, outside: Outside) -> None:
        super().__init__(places.database, clock=outside.clock)
        self._outside = outside
        self._stops_before = places.stops_before

    async def transition(self, experiment_id: str, *, source: State, target: State, **rest: Any) -> ExperimentRecord:
        """Move, or stop first and go on when it is told to."""
        if self._stops_before == f"{source} {target}":
            self._stops_before = ""
            os.kill(os.getpid(), signal.SIGSTOP)
            await self._outside.call("clients", "woken")  # which tells how late it is by now
        return await super().transition(experiment_id, source=source, target=target, **rest)


async def live(places: Places) -> None:
    """Serve the clients and step the dispatcher until the world says that it is enough."""
    reader, writer = await asyncio.open_connection("127.0.0.1", places.port)
    outside = Outside(Line(reader, writer))
    store = HesitantStore(places, outside)
    dispatcher = Dispatcher(
        store=store,
        cluster=cast("Cluster", Part(outside, "cluster")),
        tracking=cast("Tracking", Part(outside, "tracking")),
        blobs=DirectoryStorage(Path(places.storage)),
        settings=Settings(home=Path(places.home), cpus=8, mlflow_uri="http://mlflow.test"),
        claim=places.claim,
        clock=outside.clock,
    )
    await store.ping()  # who opens the file first heals it: not one that looks at it from outside
    services = cast("Services", SimpleNamespace(store=store, wake_dispatcher=dispatcher.wake))
    while (wishes := await outside.call("clients", "next_round")) is not None:
        async with asyncio.TaskGroup() as side_by_side:
            stepping = side_by_side.create_task(dispatcher.step())
            for wish in wishes:
                side_by_side.create_task(_grant(wish, services, outside))
        report = stepping.result()
        if report.errors or report.outages:
            raise RuntimeError(f"a step failed: {report}")
    await store.close()


async def _grant(wish: Wish, services: Services, outside: Outside) -> None:
    """Do what a client asks, as the routes do, and tell it."""
    if isinstance(wish, Ask):
        record = await services.store.get(wish.experiment_id)
        try:
            answer: str | None = (await obey(wish.verb, record, services)).state
        except Problem:  # 409: there is no such move now
            answer = None
    else:
        record, _ = await services.store.create(wish.new, wish.idempotency)
        answer = record.id
    await outside.call("clients", "hear", wish.number, answer)


def _live_and_exit(places: Places) -> NoReturn:
    os.dup2(2, 1)  # standard output is the forking process's line to the test
    status = 1
    try:
        asyncio.run(live(places))
        status = 0
    except BaseException:  # noqa: BLE001 - told whatever it is; nothing of the parent's may run in this process
        traceback.print_exc()
    finally:
        os._exit(status)


def main() -> None:
    """Fork a control plane for each line; end with the input."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    gc.freeze()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _live_and_exit(Places(**json.loads(line)))
        print(pid, flush=True)  # noqa: T201
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
