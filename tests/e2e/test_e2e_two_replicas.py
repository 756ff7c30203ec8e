"""Two replicas of the service on one PostgreSQL, one storage and one Ray: either may die, and so may the database."""

from __future__ import annotations

import asyncio
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from service.client import Client
from service.dispatch.holdings import LEASE_S
from service.experiment import submission_id
from service.store import migrations
from tests.conformance.postgres import PostgresServer
from tests.conftest import RunningStack
from tests.harness.experiments import SHORT, finish, submit, wait_until
from tests.harness.gate import Gate
from tests.harness.http_app import events_of
from tests.harness.replicas import Replica

pytestmark = [pytest.mark.ray, pytest.mark.postgres]

TAKEOVER_S = LEASE_S + 10  # the claim of the dead one ends, and the other's next steps come to each experiment
OUTAGE_S = 3.0
CONNECTIONS = 20  # of a replica
LONGER = SHORT | {"epochs": 20}


@dataclass
class Pair:
    """The replicas, the way of each to Ray, and what they share."""

    server: PostgresServer
    dashboard: str
    replicas: list[Replica]
    gates: list[Gate]

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(libpq(self.server)) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def experiments(self, *ids: str) -> list[tuple[Any, ...]]:
        """Return (state, attempt, claim) of each."""
        query = "SELECT state, attempt, claim FROM experiments WHERE id = %s"
        return [row for id_ in ids for row in self.rows(query, id_)]

    def jobs(self, *ids: str) -> list[str]:
        """Return the Ray jobs of these experiments, by their own ids."""
        jobs = httpx2.get(f"{self.dashboard}/api/jobs/", timeout=30).json()
        return sorted(job["submission_id"] for job in jobs if job["metadata"].get("experiment_id") in ids)

    def at_rest(self, index: int) -> None:
        """Freeze a replica at a moment when it holds no lock in the database."""

        def is_frozen() -> bool:
            self.replicas[index].freeze()
            query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle'"
            if self.rows(query, f"replica{index}") == [(0,)]:
                return True
            self.replicas[index].thaw()
            return False

        wait_until(is_frozen, timeout_s=10, what="a moment of rest")


def libpq(server: PostgresServer) -> str:
    return server.address().replace("+psycopg", "")


@pytest.fixture(scope="module")
def pair(stack: RunningStack, datasets_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("replicas")
    with ExitStack() as leaving:
        server = leaving.enter_context(PostgresServer())
        migrations.upgrade(server.address())
        gates = [leaving.enter_context(Gate(stack.ray_dashboard)) for _ in range(2)]
        replicas = [
            Replica(
                folder / f"home{index}",
                SIMCLR_DATABASE_URL=f"{libpq(server)}&application_name=replica{index}",
                SIMCLR_STORAGE=str(folder / "storage"),
                SIMCLR_RAY_ADDRESS=gate.url,
                SIMCLR_MLFLOW_URI=stack.mlflow_uri,
                SIMCLR_DATASETS=str(datasets_dir),
                SIMCLR_CPUS="8",
            )
            for index, gate in enumerate(gates)
        ]
        for replica in replicas:
            replica.start()
            leaving.callback(replica.stop)
        for replica in replicas:
            replica.wait()
        yield Pair(server, stack.ray_dashboard, replicas, gates)


def test_one_dies_in_the_middle_and_the_other_loses_nothing_and_runs_nothing_twice(
    pair: Pair, record_testsuite_property: Callable[[str, object], None]
) -> None:
    answers = asyncio.run(_post_to_both(pair, {"name": "once", "kind": "pretrain", "spec": LONGER}))
    assert sorted(answer.status_code for answer in answers) == [200] * (len(answers) - 1) + [202]
    (running,) = {answer.json()["id"] for answer in answers}
    wait_until(lambda: pair.experiments(running)[0][0] == "running", what="the first experiment")
    dying = [replica.claim for replica in pair.replicas].index(pair.experiments(running)[0][2])
    other = 1 - dying
    victim, heir, gate = pair.replicas[dying], pair.replicas[other], pair.gates[dying]
    follower = Follower(f"{victim.url}/experiments/{running}/events")

    # One step of the dispatcher, stopped where one experiment runs, one is submitted and not yet
    # seen on Ray, and one is committed to be submitted.
    pair.at_rest(other)
    gate.hold(f"GET /api/jobs/{submission_id(running, 1)}")
    gate.wait()
    with Client(victim.url) as client:
        new = [submit(client, name, SHORT)["id"] for name in ("submitted", "committed")]
    gate.hold(f"GET /api/jobs/({'|'.join(submission_id(id_, 1) for id_ in new)})")
    submitted, committed = sorted(new, key=lambda id_: id_ not in gate.wait())
    assert pair.experiments(running, submitted, committed) == [
        ("running", 1, victim.claim),
        ("starting", 1, victim.claim),
        ("starting", 1, victim.claim),
    ]
    assert pair.jobs(*new) == [submission_id(submitted, 1)]

    victim.kill()
    killed_s = time.monotonic()
    heir.thaw()
    gate.open()
    ids = (running, submitted, committed)
    wait_until(
        lambda: all(claim == heir.claim for _, _, claim in pair.experiments(*ids)),
        timeout_s=TAKEOVER_S,
        what="the takeover",
    )
    record_testsuite_property("takeover_s", round(time.monotonic() - killed_s, 1))
    wait_until(lambda: pair.jobs(committed), timeout_s=TAKEOVER_S, what="the job that was owed")
    record_testsuite_property("owed_job_s", round(time.monotonic() - killed_s, 1))
    victim.start()
    with Client(heir.url, retry_for_s=60) as client:
        for experiment_id, epochs in ((running, LONGER["epochs"]), (submitted, 5), (committed, 5)):
            assert finish(client, experiment_id, epochs=epochs)["attempt"] == 1
    assert pair.jobs(*ids) == sorted(submission_id(id_, 1) for id_ in ids)
    victim.wait()
    seen = follower.ids()
    told = _ids_told(victim, running)
    assert seen
    assert seen + _ids_told(heir, running, after=seen[-1]) == told == _ids_told(heir, running)


async def _post_to_both(pair: Pair, body: dict[str, Any]) -> list[httpx2.Response]:
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    async with httpx2.AsyncClient(timeout=60) as http:
        urls = [f"{replica.url}/experiments" for replica in pair.replicas] * 5
        return list(await asyncio.gather(*(http.post(url, json=body, headers=headers) for url in urls)))


class Follower:
    """Reads an event stream until it breaks."""

    def __init__(self, url: str) -> None:
        self._text = ""
        self._thread = threading.Thread(target=self._read, args=(url,), daemon=True)
        self._has_begun = threading.Event()
        self._thread.start()
        assert self._has_begun.wait(30)

    def _read(self, url: str) -> None:
        try:
            with httpx2.stream("GET", url, timeout=60) as answer:
                for text in answer.iter_text():
                    self._text += text
                    if "id: " in text:
                        self._has_begun.set()
        except httpx2.HTTPError:
            return  # cut off, as it is meant to be

    def ids(self) -> list[str]:
        """Return the ids of the events that came whole before the stream broke."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        whole = self._text.replace("\r\n", "\n").rpartition("\n\n")[0]
        return re.findall(r"^id: (\d+)$", whole, flags=re.MULTILINE)


def _ids_told(replica: Replica, experiment_id: str, *, after: str = "0") -> list[str]:
    headers = {"Last-Event-ID": after}
    text = httpx2.get(f"{replica.url}/experiments/{experiment_id}/events", headers=headers, timeout=60).text
    return [id_ for _, id_, _ in events_of(text) if id_]


def test_both_answer_503_while_the_database_is_away_and_go_on_when_it_is_back(pair: Pair) -> None:
    before = [experiments_told(replica) for replica in pair.replicas]
    pair.server.stop()
    try:
        until_s = time.monotonic() + OUTAGE_S
        while time.monotonic() < until_s:
            for replica in pair.replicas:
                assert_come_back(httpx2.get(f"{replica.url}/experiments", timeout=30))
                assert_come_back(httpx2.post(f"{replica.url}/experiments", json=BODY, timeout=30))
                assert httpx2.get(f"{replica.url}/livez").is_success
        assert all(lag_s(replica) > OUTAGE_S / 2 for replica in pair.replicas)
    finally:
        pair.server.start()
    assert [experiments_told(replica) for replica in pair.replicas] == before
    wait_until(
        lambda: all(lag_s(replica) < OUTAGE_S / 2 for replica in pair.replicas),
        timeout_s=10,
        what="a step of each dispatcher",
    )
    assert all(replica.process.poll() is None for replica in pair.replicas)


def experiments_told(replica: Replica) -> list[str]:
    answer = httpx2.get(f"{replica.url}/experiments", timeout=30)
    assert answer.is_success, answer.text
    return [item["id"] for item in answer.json()["items"]]


def lag_s(replica: Replica) -> float:
    """Return how long ago the replica's dispatcher finished a step."""
    answer = httpx2.get(f"{replica.url}/metrics", timeout=30)
    assert answer.is_success, answer.text
    (value,) = re.findall(r"^simclr_dispatcher_lag_seconds (\S+)$", answer.text, flags=re.MULTILINE)
    return float(value)


def test_who_finds_all_connections_taken_is_asked_to_come_back(pair: Pair) -> None:
    replica = pair.replicas[0]
    with psycopg.connect(libpq(pair.server)) as lock:
        lock.execute("SELECT value FROM event_counter FOR UPDATE")  # every transaction that writes waits here
        answers = asyncio.run(_post_many(replica, num=3 * CONNECTIONS))
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'replica0'"
        ((num_connections,),) = pair.rows(query)
        # A caller may give up before the server does: what still waits for the lock would commit after it.
        waiting = f"{query} AND wait_event_type = 'Lock'"
        wait_until(lambda: pair.rows(waiting) == [(0,)], timeout_s=60, what="the end of what waits for the lock")
    for answer in answers:
        assert_come_back(answer)
    assert num_connections <= CONNECTIONS
    experiments_told(replica)


BODY = {"name": "too many", "kind": "pretrain", "spec": SHORT}


async def _post_many(replica: Replica, *, num: int) -> list[httpx2.Response]:
    async with httpx2.AsyncClient(timeout=30) as http:
        requests = [http.post(f"{replica.url}/experiments", json=BODY) for _ in range(num)]
        answers = asyncio.gather(*requests)
        assert (await http.get(f"{replica.url}/livez")).is_success
        return list(await answers)


def assert_come_back(answer: httpx2.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) > 0
