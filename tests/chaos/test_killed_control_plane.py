"""The control plane is killed with SIGKILL, a hundred times, while clients ask and jobs go on.

It is a process of its own with a real database; the cluster in memory, the jobs on it and the
clients live on in the test's process. Some deaths are aimed (between a commit and its submit,
between a submit and the look at it, at an answer, in each state, at birth), others fall anywhere.
Whatever happens: no experiment is lost, none runs twice, every point of every metric is there
once, every move is one of the table, and all comes to the end that the jobs and clients said.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from service.dispatch.settlement import run_status
from service.experiment import NON_TERMINAL, TERMINAL, TRANSITIONS, State, Verb, submission_id
from service.ports import EVENTS_AT_ONCE, Event, ExperimentRecord, ListQuery
from service.store import SqlStore, migrations
from tests.conformance.postgres import PostgresServer
from tests.fakes.clock import Clock
from tests.fakes.cluster import FakeCluster
from tests.fakes.tracking import FakeTracking
from tests.fakes.training import METRICS
from tests.harness.insistent_clients import InsistentClients, Submission
from tests.harness.mortal_control_plane import Births, MortalControlPlane
from tests.harness.outside import Call, Line, Places
from trainer.context import experiment_key, trial_key
from trainer.storage import BlobMissing, DirectoryStorage
from trainer.unrecorded import unrecorded_runs

pytestmark = pytest.mark.anyio

NUM_STEPS: Final = 16
WORK_S: Final = 8.0
LEASE_AND_MORE_S: Final = 16.0
MOST_CALLS: Final = 800  # that a life waits for its moment
MOST_ROUNDS: Final = 2000  # of the last life
ANSWER_TIMEOUT_S: Final = 60.0
STRAY_S: Final = 0.02  # of living on behind the moment: some transactions


class Moment(StrEnum):
    """Where a life ends, if not in a state of some experiment."""

    BIRTH = "while it starts"
    COMMITTED = "committed, not submitted"
    SUBMITTED = "submitted, not observed"
    UNANSWERED = "done, and the client not told"
    ANYWHERE = "anywhere"


Aim = Moment | State

# A twentieth part each.
AIMS: Final[tuple[Aim, ...]] = (
    *(Moment.COMMITTED, Moment.SUBMITTED) * 3,
    *(Moment.UNANSWERED,) * 2,
    Moment.BIRTH,
    *(Moment.ANYWHERE,) * 4,
    *sorted(NON_TERMINAL),
)


class Ledger:
    """The database as others read it, while a control plane has it open.

    It is let go of before each death: who comes next is to find a file that nobody has open.
    """

    def __init__(self, address: str) -> None:
        self._engine = sa.create_engine(address, isolation_level="AUTOCOMMIT")

    def states(self) -> dict[str, State]:
        with self._engine.connect() as connection:
            rows = connection.execute(sa.text("SELECT id, state FROM experiments"))
            return {str(row.id): State(row.state) for row in rows}

    def attempt(self, experiment_id: str) -> int:
        with self._engine.connect() as connection:
            query = sa.text("SELECT attempt FROM experiments WHERE id = :id")
            return int(connection.execute(query, {"id": experiment_id}).scalar_one())

    def let_go(self) -> None:
        self._engine.dispose()


class Story:
    """Many lives of a control plane, and the world around them."""

    def __init__(self, *, database: str, home: Path, seed: int) -> None:
        self.database = database
        self.home = home
        self.blobs = DirectoryStorage(home / "storage")
        self.clock = Clock()
        self.tracking = FakeTracking()
        self.cluster = FakeCluster(
            clock=self.clock, blobs=self.blobs, tracking=self.tracking, work_s=WORK_S, num_steps=NUM_STEPS
        )
        self.ledger = Ledger(database)
        self.chance = random.Random(seed)
        self.clients = InsistentClients(
            self.chance, clock=self.clock, cluster=self.cluster, states=self.ledger.states, is_over=self._is_over
        )
        self.deaths: Counter[Aim] = Counter()
        self._num_claims = 1

    async def live(self, num_twenties: int) -> None:
        """Let it be born and killed 20 times as often as said, and then live to the end of all experiments."""
        aims = self.chance.sample(AIMS * num_twenties, len(AIMS) * num_twenties)
        async with Births() as births:
            for aim in aims:
                async with self._life(births) as (life, lines):
                    await self._die(aim, life, lines)
                if self.chance.random() < 0.5:  # another takes over, at once or when the lease is out
                    self._num_claims += 1
                self.clock.advance(self.chance.choice((0.0, 1.0, LEASE_AND_MORE_S)))
            self.clients.is_closing = True
            async with self._life(births) as (life, lines):
                await self._live_to_the_end(life, lines)

    # --- a life -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _life(self, births: Births) -> AsyncIterator[tuple[MortalControlPlane, asyncio.Queue[Line]]]:
        """Yield a life, and the line on which it calls once it has come so far."""
        lines: asyncio.Queue[Line] = asyncio.Queue()
        accepted: list[Line] = []

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.append(Line(reader, writer))
            lines.put_nowait(accepted[-1])

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        places = Places(
            claim=f"dispatcher-{self._num_claims}",
            database=self.database,
            home=str(self.home),
            storage=str(self.home / "storage"),
            port=server.sockets[0].getsockname()[1],
        )
        try:
            yield await births.bear(places), lines
        finally:
            server.close()
            for line in accepted:
                line.close()

    async def _die(self, aim: Aim, life: MortalControlPlane, lines: asyncio.Queue[Line]) -> None:
        if aim is Moment.BIRTH:
            await asyncio.sleep(self.chance.uniform(0, STRAY_S))
        else:
            line = await asyncio.wait_for(lines.get(), ANSWER_TIMEOUT_S)
            aim = await self._serve_until(aim, life, line)
            self.ledger.let_go()
        await life.kill()
        self.deaths[aim] += 1

    async def _serve_until(self, aim: Aim, life: MortalControlPlane, line: Line) -> Aim:
        """Answer its calls until the moment to kill it, and return which that is."""
        num_calls = self.chance.randint(1, 40) if aim is Moment.ANYWHERE else MOST_CALLS
        for _ in range(num_calls):
            call = await _next_call(life, line)
            is_new = _is_attempt(call) and call.args[0] not in self.cluster.jobs
            if (is_new and aim is Moment.COMMITTED) or (call.name == "hear" and aim is Moment.UNANSWERED):
                return aim
            answer = await self._obey(call)
            if is_new and aim is Moment.SUBMITTED:
                return aim
            await line.send((self.clock.now, answer))
            if isinstance(aim, State) and aim in self.ledger.states().values():
                break
        else:
            aim = Moment.ANYWHERE
        await self._stray(life, line)
        return aim

    async def _stray(self, life: MortalControlPlane, line: Line) -> None:
        """Let it live on for a while that ends wherever it is by then."""
        clock = asyncio.get_running_loop().time
        until_s = clock() + self.chance.uniform(0, STRAY_S)
        with suppress(TimeoutError):
            while (left_s := until_s - clock()) > 0:
                call = await _next_call(life, line, timeout_s=left_s)
                await line.send((self.clock.now, await self._obey(call)))

    async def _live_to_the_end(self, life: MortalControlPlane, lines: asyncio.Queue[Line]) -> None:
        line = await asyncio.wait_for(lines.get(), ANSWER_TIMEOUT_S)
        num_rounds = 0
        while True:
            call = await _next_call(life, line)
            answer = await self._obey(call)
            await line.send((self.clock.now, answer))
            if call.name == "next_round":
                num_rounds += 1
                assert num_rounds <= MOST_ROUNDS, f"no end after {MOST_ROUNDS} rounds: {self.ledger.states()}"
                if answer is None:
                    break
        self.ledger.let_go()
        assert await life.ended() == 0

    async def _obey(self, call: Call) -> Any:
        """Do what a call asks of the world; a job may be asked for only once its attempt is committed."""
        parts: dict[str, Any] = {"cluster": self.cluster, "tracking": self.tracking, "clients": self.clients}
        if _is_attempt(call):
            experiment_id, attempt = (call.kwargs["metadata"][name] for name in ("experiment_id", "attempt"))
            assert self.ledger.attempt(experiment_id) == int(attempt), f"{call.args[0]} is submitted, not committed"
        answer = await getattr(parts[call.part], call.name)(*call.args, **call.kwargs)
        if _is_attempt(call):
            assert self.cluster.most_living[experiment_id] <= 1, f"{experiment_id} has two jobs at once"
        return answer

    def _is_over(self) -> bool:
        return set(self.ledger.states().values()) <= TERMINAL and not self.blobs.list("service/open_runs/")


def _is_attempt(call: Call) -> bool:
    """Return whether the call submits an attempt of an experiment."""
    return (call.part, call.name) == ("cluster", "submit") and call.kwargs["metadata"]["kind"] != "backfill"


async def _next_call(life: MortalControlPlane, line: Line, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Call:
    try:
        call: Call = await asyncio.wait_for(line.receive(), timeout_s)
    except (asyncio.IncompleteReadError, ConnectionError):
        raise AssertionError(f"the control plane ended by itself, with status {await life.ended()}") from None
    return call


# --- what must hold in the end --------------------------------------------------------------------


async def check(story: Story) -> None:
    store = SqlStore(story.database, clock=story.clock)
    try:
        records = (await store.list(ListQuery(page_size=1000))).items
        events = await _all_events(store)
    finally:
        await store.close()
    # No experiment is lost, and no key made two.
    submissions = story.clients.submissions.values()
    assert sorted(record.id for record in records) == sorted(str(each.experiment_id) for each in submissions)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    for record in records:
        told = [event.data for event in events if event.experiment_id == record.id and event.type == "state"]
        check_story(record, told)
        check_end(story, record, story.clients.of(record.id), told)
        check_jobs(story, record)
        check_metrics(story, record)


async def _all_events(store: SqlStore) -> Sequence[Event]:
    events: list[Event] = []
    while page := await store.events(after=events[-1].sequence if events else 0, limit=EVENTS_AT_ONCE):
        events += page
    return events


def check_story(record: ExperimentRecord, told: Sequence[dict[str, Any]]) -> None:
    """Check that the state events make one legal way from the queue to one end, without a gap."""
    states = [State(data["state"]) for data in told]
    assert [data["previous"] for data in told] == [None, *states[:-1]]
    assert states[0] is State.QUEUED
    assert states[-1] is record.state
    assert all(target in TRANSITIONS[source] for source, target in pairwise(states))
    assert [state in TERMINAL for state in states] == [False] * (len(states) - 1) + [True]
    attempts = [data["attempt"] for data in told]
    for (before, after), state in zip(pairwise(attempts), states[1:], strict=True):
        assert after - before == (state in (State.STARTING, State.RECOVERING))
    assert attempts[-1] == record.attempt


def check_end(story: Story, record: ExperimentRecord, asked: Submission, told: Sequence[dict[str, Any]]) -> None:
    """Check that it ended as its jobs and clients said."""
    words = [_read(story, record.id, f"attempts/{number}/failure.json") for number in range(1, record.attempt + 1)]
    has_failed = any(word is not None and not word["retryable"] for word in words)
    is_cancelled = any(verb is Verb.CANCEL for verb, _ in asked.obeyed)
    if (marker := _read(story, record.id, "complete.json")) is not None:
        assert record.state == marker["state"]
    elif has_failed:
        assert record.state is State.FAILED or (record.state is State.CANCELLED and is_cancelled)
    else:
        assert record.state is State.CANCELLED
        assert is_cancelled
    if record.state is State.FAILED:
        assert (record.reason or {})["code"] == "non_finite_loss"
    assert record.failures <= sum(fate in ("crash", "bug") for fate in asked.fates)
    # What a client was told has happened.
    assert {state for _, state in asked.obeyed} <= {State(data["state"]) for data in told}
    assert story.tracking.statuses(record.id) <= {run_status(record.state)}


def check_jobs(story: Story, record: ExperimentRecord) -> None:
    """Check that each attempt was one job, and one start."""
    jobs = [job for job in story.cluster.jobs.values() if job.metadata["experiment_id"] == record.id]
    attempts = [name for name in (job.submission_id for job in jobs) if "backfill" not in name]
    assert attempts == [submission_id(record.id, number) for number in range(1, len(attempts) + 1)]
    # The last attempt has none where it was cancelled before one was submitted.
    assert record.attempt - len(attempts) in ((0, 1) if record.state is State.CANCELLED else (0,))
    assert all(story.cluster.num_starts[job.submission_id] == 1 for job in jobs)
    assert not any(job.is_living for job in jobs)
    assert story.cluster.most_living[record.id] <= 1
    fences = story.blobs.list(trial_key(record.id, "t0000", "fence/"))
    owners = [json.loads(story.blobs.read(key))["attempt"] for key in fences]
    of_attempts = owners[: len(owners) - (len(jobs) - len(attempts))]
    assert of_attempts == sorted(set(of_attempts))


def check_metrics(story: Story, record: ExperimentRecord) -> None:
    """Check that MLflow has each step of each metric once, and all that was recorded."""
    runs = [run for run in story.tracking.runs.values() if (run.experiment_id, run.trial_id) == (record.id, "t0000")]
    assert len(runs) <= 1
    steps = {key: [point.step for point in run.history.get(key, [])] for run in runs for key in METRICS}
    for of_metric in steps.values():
        assert of_metric == list(range(1, len(of_metric) + 1))
    assert len({len(of_metric) for of_metric in steps.values()}) <= 1
    assert unrecorded_runs(story.blobs, record.id) == []
    if record.state is State.SUCCEEDED:
        assert {len(of_metric) for of_metric in steps.values()} == {NUM_STEPS}


def _read(story: Story, experiment_id: str, name: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(story.blobs.read(experiment_key(experiment_id, name))))
    except BlobMissing:
        return None


# --- the tests ------------------------------------------------------------------------------------


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def sqlite_database(tmp_path: Path) -> str:
    address = f"sqlite:///{tmp_path / 'simclr.db'}"
    migrations.upgrade(address)
    return address


@pytest.fixture
def postgresql_database() -> Iterator[str]:
    with PostgresServer() as server:
        migrations.upgrade(server.address())
        yield server.address()


async def live_and_check(database: str, home: Path, *, seed: int, num_twenties: int) -> None:
    story = Story(database=database, home=home, seed=seed)
    try:
        await story.live(num_twenties)
        await check(story)
    except BaseException as error:
        error.add_note(f"with seed {seed}, after {story.deaths.total()} deaths: {dict(story.deaths)}")
        raise
    assert story.deaths.total() == 20 * num_twenties
    # A life may miss what it was aimed at, but no moment is missed by all.
    assert all(story.deaths[aim] > 0 for aim in AIMS), dict(story.deaths)


@pytest.mark.parametrize("seed", [1])
async def test_a_control_plane_that_is_killed_a_hundred_times_loses_and_repeats_nothing(
    sqlite_database: str, tmp_path: Path, seed: int
) -> None:
    await live_and_check(sqlite_database, tmp_path, seed=seed, num_twenties=5)


@pytest.mark.postgres
@pytest.mark.parametrize("seed", [2])
async def test_a_control_plane_on_postgresql_that_is_killed_forty_times_loses_and_repeats_nothing(
    postgresql_database: str, tmp_path: Path, seed: int
) -> None:
    await live_and_check(postgresql_database, tmp_path, seed=seed, num_twenties=2)
