"""A control plane is stopped past its lease between a decision and its write, and another takes over.

Two processes live on one database, the cluster in memory in the test's. The first is stopped by
SIGSTOP where it has decided, and neither written nor submitted. The second goes on so far that the
experiment stands where the first saw it: in the same state, which alone would let the late write
pass. Then the first is woken. It must move nothing and start nothing anew, and both live on beside
each other until the end.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest

from service.experiment import TERMINAL, State, submission_id
from service.ports import ExperimentRecord
from service.store import SqlStore, migrations
from tests.conformance.postgres import PostgresServer
from tests.fakes.clock import Clock
from tests.fakes.cluster import FakeCluster, Fate
from tests.fakes.control_plane import TEMPLATE
from tests.fakes.tracking import FakeTracking
from tests.harness.mortal_control_plane import Births, MortalControlPlane
from tests.harness.outside import Call, Line, Places
from trainer.storage import DirectoryStorage

pytestmark = pytest.mark.anyio

ID: Final = "exp_0"
WORK_S: Final = 40.0  # half of it lasts longer than a lease
ROUND_S: Final = 0.5
LEASE_AND_MORE_S: Final = 16.0
MOST_ROUNDS: Final = 200
CALL_TIMEOUT_S: Final = 60.0


class World:
    """All that is outside of the two processes, and a client."""

    def __init__(self, database: str, home: Path) -> None:
        self.database = database
        self.home = home
        self.clock = Clock()
        self.store = SqlStore(database, clock=self.clock)
        self.blobs = DirectoryStorage(home / "storage")
        self.tracking = FakeTracking()
        self.cluster = FakeCluster(clock=self.clock, blobs=self.blobs, tracking=self.tracking, work_s=WORK_S)

    async def record(self) -> ExperimentRecord:
        return await self.store.get(ID)

    async def ask(self, target: State) -> None:
        """Move as a client's verb does."""
        await self.store.transition(ID, source=(await self.record()).state, target=target)

    async def is_over(self) -> bool:
        return (await self.record()).state in TERMINAL and not self.blobs.list("service/open_runs/")

    async def story(self) -> list[tuple[State, int]]:
        """Return the states it was in, each with the attempt."""
        told = await self.store.events(after=0, experiment_id=ID)
        return [(State(each.data["state"]), each.data["attempt"]) for each in told if each.type == "state"]

    async def obey(self, call: Call) -> Any:
        """Do what a control plane asks of its world."""
        if call.name == "woken":
            return None
        return await getattr(getattr(self, call.part), call.name)(*call.args, **call.kwargs)

    @asynccontextmanager
    async def life(self, claim: str, *, stops_before: str = "") -> AsyncIterator[Life]:
        """Yield a control plane that waits for its first round; `stops_before` is the move before which it stops."""
        accepted: asyncio.Queue[Line] = asyncio.Queue()
        server = await asyncio.start_server(lambda *ends: accepted.put_nowait(Line(*ends)), "127.0.0.1", 0)
        places = Places(
            claim=claim,
            database=self.database,
            home=str(self.home),
            storage=str(self.home / "storage"),
            port=server.sockets[0].getsockname()[1],
            stops_before=stops_before,
        )
        async with Births() as births:
            process = await births.bear(places)
            try:
                line = await asyncio.wait_for(accepted.get(), CALL_TIMEOUT_S)
                yield Life(self, process, line)
                line.close()
            finally:
                with suppress(ProcessLookupError):  # where it has ended as it should
                    os.kill(process.pid, signal.SIGKILL)
                server.close()


class Life:
    """One of the processes: it does nothing between two calls that are not answered."""

    def __init__(self, world: World, process: MortalControlPlane, line: Line) -> None:
        self.process = process
        self._world = world
        self._line = line
        self._receiving: asyncio.Task[Call] | None = None
        self._held: Call | None = None  # under way when it was stopped

    async def step(self, *, stop_at: str | None = None) -> bool:
        """Let it do one step; return whether it came to its end, and was not stopped in it."""
        self._world.clock.advance(ROUND_S)
        round_ = await self._next_call()
        assert round_ is not None
        assert round_.name == "next_round"
        await self._answer([])
        return await self._serve(stop_at=stop_at)

    async def until(self, state: State, attempt: int) -> None:
        """Let it do steps until the experiment is there, and hold it between two."""
        for _ in range(MOST_ROUNDS):
            record = await self._world.record()
            if (record.state, record.attempt) == (state, attempt):
                return
            assert await self.step()
        raise AssertionError(f"{state} {attempt} did not come about: {await self._world.story()}")

    async def until_stopped(self, *, stop_at: str | None) -> None:
        """Let it do steps until it has stopped itself, or is stopped with the call of this name under way."""
        for _ in range(MOST_ROUNDS):
            if not await self.step(stop_at=stop_at):
                return
        raise AssertionError(f"it did not stop: {await self._world.story()}")

    async def wake(self) -> None:
        """Let it end the step in which it was stopped."""
        self.process.wake()
        if self._held is not None:
            await self._answer(await self._world.obey(self._held))
        assert await self._serve()

    async def end(self) -> None:
        """Let it end as it should."""
        await self._next_call()
        await self._answer(None)
        assert await self.process.ended() == 0

    async def _serve(self, *, stop_at: str | None = None) -> bool:
        while (call := await self._next_call()) is not None and call.name != "next_round":
            self._receiving = None
            if call.name == stop_at:
                self.process.stop()
                self._held = call
                return False
            await self._answer(await self._world.obey(call))
        return call is not None

    async def _next_call(self) -> Call | None:
        """Return what it waits for, None where it has stopped itself."""
        receiving = self._receiving = self._receiving or asyncio.create_task(self._line.receive())
        async with asyncio.timeout(CALL_TIMEOUT_S):
            while not receiving.done():
                await asyncio.wait([receiving], timeout=0.01)
                if not receiving.done() and self.process.is_stopped:
                    return None
        return receiving.result()

    async def _answer(self, answer: Any) -> None:
        self._receiving = None
        await self._line.send((self._world.clock.now, answer))


# --- what happens meanwhile -----------------------------------------------------------------------


async def it_recovers(_: World, second: Life) -> None:
    await second.until(State.RUNNING, 2)


async def it_recovers_and_fails_again(world: World, second: Life) -> None:
    await second.until(State.RUNNING, 2)
    world.cluster.kill(submission_id(ID, 2))
    await second.until(State.RECOVERING, 3)


async def it_is_paused_and_resumed(world: World, second: Life) -> None:
    await second.until(State.RUNNING, 1)
    await world.ask(State.PAUSING)
    await second.until(State.PAUSED, 1)
    await world.ask(State.QUEUED)


async def it_is_started(_: World, second: Life) -> None:
    await second.until(State.RUNNING, 1)


@dataclass(frozen=True, kw_only=True)
class Case:
    fates: tuple[Fate, ...] = ()
    stops_before: str = ""  # a move
    stop_at: str | None = None  # a call
    meanwhile: Callable[[World, Life], Awaitable[None]]
    story: str  # all of it


CASES: Final = {
    "told of a failure": Case(
        fates=("crash",),
        stops_before="running recovering",
        meanwhile=it_recovers,
        story="queued 0, starting 1, running 1, recovering 2, running 2, succeeded 2",
    ),
    "told of a start": Case(
        fates=("crash",),
        stops_before="recovering running",
        meanwhile=it_recovers_and_fails_again,
        story="queued 0, starting 1, running 1, recovering 2, running 2, recovering 3, running 3, succeeded 3",
    ),
    "about to start": Case(
        stops_before="queued starting",
        meanwhile=it_is_paused_and_resumed,
        story="queued 0, starting 1, running 1, pausing 1, paused 1, queued 1, starting 2, running 2, succeeded 2",
    ),
    "about to submit": Case(
        stop_at="submit", meanwhile=it_is_started, story="queued 0, starting 1, running 1, succeeded 1"
    ),
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Yield the address of a migrated database."""
    if request.param == "sqlite":
        address = f"sqlite:///{tmp_path / 'simclr.db'}"
        migrations.upgrade(address)
        yield address
        return
    with PostgresServer() as server:
        migrations.upgrade(server.address())
        yield server.address()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_one_that_was_stopped_past_its_lease_moves_and_starts_nothing_that_another_has(
    database: str, tmp_path: Path, case: Case
) -> None:
    world = World(database, tmp_path)
    await world.store.create(replace(TEMPLATE, id=ID), None)
    world.cluster.fates[ID] = list(case.fates)
    try:
        async with world.life("first", stops_before=case.stops_before) as first, world.life("second") as second:
            await first.until_stopped(stop_at=case.stop_at)
            world.clock.advance(LEASE_AND_MORE_S)
            await case.meanwhile(world, second)
            before = await world.record()
            await first.wake()
            assert await world.record() == before
            assert before.claim == "second"

            for _ in range(MOST_ROUNDS):
                if await world.is_over():
                    break
                assert await first.step()
                assert await second.step()
            await first.end()
            await second.end()
        told = await world.story()
        attempts = range(1, told[-1][1] + 1)
        assert ", ".join(f"{state} {attempt}" for state, attempt in told) == case.story
        assert world.cluster.num_starts == {submission_id(ID, attempt): 1 for attempt in attempts}
        assert world.cluster.most_living[ID] == 1
        assert (await world.record()).failures == case.story.count("recovering")
    finally:
        await world.store.close()
