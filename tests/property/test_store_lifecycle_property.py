"""The store against a model, under any order of calls by clients and two dispatchers."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from service.errors import (
    ExperimentNotFound,
    IdempotencyConflict,
    IllegalTransition,
    ServiceError,
    StaleState,
    StaleVersion,
)
from service.experiment import ACTIVE, TERMINAL, State, can_move
from service.ports import Idempotency, ListQuery, NewExperiment
from service.store import SqlStore, migrations

T = TypeVar("T")
LEASE_S = 10.0

states = st.sampled_from(State)
claims = st.sampled_from(["one", "two"])


@dataclass
class Modelled:
    """What the model knows of one experiment."""

    state: State = State.QUEUED
    version: int = 1
    claim: str | None = None
    claimed_until: datetime | None = None
    priority: int = 0
    conditions: dict[str, str] = field(default_factory=dict)
    story: list[tuple[str, str]] = field(default_factory=lambda: [("state", "queued")])

    def is_held_against(self, claim: str | None, now: datetime) -> bool:
        if claim is None or self.claim in (None, claim):
            return False
        return self.claimed_until is not None and self.claimed_until > now


@cache
def template() -> Path:
    folder = tempfile.mkdtemp(prefix="store-model-")
    atexit.register(shutil.rmtree, folder)
    path = Path(folder) / "template.db"
    migrations.upgrade(f"sqlite:///{path}")
    return path


@contextmanager
def refused(*expected: type[ServiceError] | None) -> Iterator[None]:
    """Require the first error that is due, or none."""
    due = next((error for error in expected if error is not None), None)
    if due is None:
        yield
    else:
        with pytest.raises(due):
            yield


class StoreLifecycle(RuleBasedStateMachine):
    """Rules are calls; each says from the model alone what must come of it."""

    known = Bundle("known")

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2030, 1, 1, tzinfo=UTC)
        self.model: dict[str, Modelled] = {}
        self.keys: dict[str, tuple[str, str]] = {}  # key -> (body, experiment)
        self.sequences: list[int] = []
        self.num_made = 0
        self.folder = Path(tempfile.mkdtemp(prefix="store-model-"))
        shutil.copyfile(template(), self.folder / "simclr.db")
        self.runner = asyncio.Runner()
        self.store = SqlStore(f"sqlite:///{self.folder / 'simclr.db'}", clock=lambda: self.now)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    def missing(self, experiment_id: str) -> type[ServiceError] | None:
        return None if experiment_id in self.model else ExperimentNotFound

    @rule(target=known, key=st.sampled_from([None, "k1", "k2"]), body=st.sampled_from(["aa", "bb"]))
    def create(self, key: str | None, body: str) -> str:
        self.num_made += 1
        new = NewExperiment(
            id=f"exp_{self.num_made:04}",
            name="n",
            kind="sweep",
            owner="ada",
            labels={},
            priority=0,
            request={},
            spec={},
            spec_digest="d",
            plan={},
            max_attempts=3,
            wall_time_s=60,
        )
        idempotency = key and Idempotency(owner="ada", route="r", key=key, body_sha256=body)
        earlier = self.keys.get(key) if key else None
        with refused(IdempotencyConflict if earlier and earlier[0] != body else None):
            record, is_replay = self.run(self.store.create(new, idempotency or None))
            assert is_replay == (earlier is not None)
            assert record.id == (earlier[1] if earlier else new.id)
            if not is_replay:
                self.model[new.id] = Modelled()
                if key:
                    self.keys[key] = (body, new.id)
            return record.id
        return new.id  # refused: an id that names nothing

    @rule(experiment_id=known, source=states, goal=states, claim=claims | st.none())
    def move(self, experiment_id: str, source: State, goal: State, claim: str | None) -> None:
        self._move(experiment_id, source, goal, claim)

    @rule(experiment_id=known, data=st.data(), claim=claims | st.none())
    def move_on(self, experiment_id: str, data: st.DataObject, claim: str | None) -> None:
        """Move where the table allows it, so that deep states are reached."""
        modelled = self.model.get(experiment_id)
        if modelled is not None and modelled.state not in TERMINAL:
            targets = [target for target in State if can_move(modelled.state, target)]
            self._move(experiment_id, modelled.state, data.draw(st.sampled_from(targets)), claim)

    def _move(self, experiment_id: str, source: State, target: State, claim: str | None) -> None:
        modelled = self.model.get(experiment_id, Modelled())
        is_stale = modelled.state is not source or modelled.is_held_against(claim, self.now)
        with refused(
            None if can_move(source, target) else IllegalTransition,
            self.missing(experiment_id),
            StaleState if is_stale else None,
        ):
            self.run(self.store.transition(experiment_id, source=source, target=target, claim=claim))
            modelled.state = target
            modelled.version += 1
            modelled.story.append(("state", target))

    @rule(claim=claims)
    def claim_due(self, claim: str) -> None:
        due = self.run(self.store.claim_due(claim, now=self.now, lease_s=LEASE_S))
        expected = {
            experiment_id
            for experiment_id, each in self.model.items()
            if each.state in ACTIVE and not each.is_held_against(claim, self.now)
        }
        assert {record.id for record in due} == expected
        keys = [(-record.priority, record.created_at, record.id) for record in due]
        assert keys == sorted(keys)
        for each in map(self.model.__getitem__, expected):
            lasts_until = each.claimed_until or self.now
            if each.claim != claim or lasts_until <= self.now + timedelta(seconds=LEASE_S / 2):
                each.claim, each.claimed_until = claim, self.now + timedelta(seconds=LEASE_S)

    @rule(seconds=st.sampled_from([1, 5, 10]))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(experiment_id=known, priority=st.integers(-1, 1), version=st.integers(1, 3) | st.none())
    def update(self, experiment_id: str, priority: int, version: int | None) -> None:
        modelled = self.model.get(experiment_id, Modelled())
        is_stale = version not in (None, modelled.version)
        with refused(self.missing(experiment_id), StaleVersion if is_stale else None):
            self.run(self.store.update(experiment_id, expected_version=version, labels=None, priority=priority))
            modelled.version += priority != modelled.priority
            modelled.priority = priority

    @rule(
        experiment_id=known, type_=st.sampled_from(["storage", "tracking"]), status=st.sampled_from(["true", "false"])
    )
    def set_condition(self, experiment_id: str, type_: str, status: str) -> None:
        modelled = self.model.get(experiment_id, Modelled())
        condition = {"type": type_, "status": status, "message": "", "at": self.now.isoformat()}
        with refused(self.missing(experiment_id)):
            self.run(self.store.set_condition(experiment_id, condition))
            if modelled.conditions.get(type_) != status:
                modelled.conditions[type_] = status
                modelled.version += 1
                modelled.story.append(("condition", status))

    @rule(experiment_id=known)
    def append_event(self, experiment_id: str) -> None:
        with refused(self.missing(experiment_id)):
            self.run(self.store.append_event(experiment_id, "trial", {"status": "seen"}))
            self.model[experiment_id].story.append(("trial", "seen"))

    @rule(experiment_id=known)
    def delete(self, experiment_id: str) -> None:
        modelled = self.model.get(experiment_id, Modelled())
        is_removable = modelled.state in TERMINAL | {State.PAUSED}
        with refused(self.missing(experiment_id), None if is_removable else StaleState):
            self.run(self.store.delete(experiment_id))
            del self.model[experiment_id]
            self.keys = {key: made for key, made in self.keys.items() if made[1] != experiment_id}

    @invariant()
    def records_are_as_modelled(self) -> None:
        records = {record.id: record for record in self.run(self.store.list(ListQuery(page_size=1000))).items}
        assert records.keys() == self.model.keys()
        for experiment_id, modelled in self.model.items():
            record = records[experiment_id]
            assert (record.state, record.version) == (modelled.state, modelled.version)
            assert (record.claim, record.claimed_until) == (modelled.claim, modelled.claimed_until)
            assert {each["type"]: each["status"] for each in record.conditions} == modelled.conditions
            assert (record.finished_at is not None) == (modelled.state in TERMINAL)

    @invariant()
    def every_story_is_complete_and_every_number_new(self) -> None:
        told = self.run(self.store.events(after=0))
        sequences = [event.sequence for event in told]
        assert sequences == sorted(set(sequences))
        highest_before = self.sequences[-1] if self.sequences else 0
        fresh = [sequence for sequence in sequences if sequence not in set(self.sequences)]
        assert all(sequence > highest_before for sequence in fresh)
        self.sequences += fresh
        stories: dict[str, list[tuple[str, str]]] = {experiment_id: [] for experiment_id in self.model}
        for event in told:
            stories[event.experiment_id].append((event.type, event.data.get("state") or event.data["status"]))
        assert stories == {experiment_id: each.story for experiment_id, each in self.model.items()}


TestStoreLifecycle = StoreLifecycle.TestCase
TestStoreLifecycle.settings = settings(
    max_examples=12, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
