"""A control plane of the first version (database revision 0001), frozen, as a process of its own.

    python -I tests/harness/first_version.py DATABASE STORAGE CLAIM

It imports nothing of this project: whatever changes there, this stays as it was. Here are the
statements that the store of that version issued, in the order in which it issued them, with the
values as it wrote them; values have names, and casts and the lists of columns read back are left
out. What its dispatcher did between them is here as far as an upgrade meets it: an experiment is
created under a key, changed, claimed, started, submitted, observed and told of.

Each line of its input is an order, each line of its output a question to the world outside, whose
answer is the next line, or what came of the order. It has no clock but the times in the orders.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sqlite3
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

LEASE_S: Final = 15

# As its intake resolved {"data": {"dataset": "openmoji"}}.
SPEC: Final = """{"method":"simclr","data":{"dataset":"openmoji","image_size":32,"validation_ratio":0.1},
"views":{"preset":"simclr-cifar","color_strength":null,"blur":null,"operations":[
{"branch":"both","op":"crop_resize","scale":[0.08,1.0],"ratio":[0.75,1.3333333333333333],"p":1.0},
{"branch":"both","op":"horizontal_flip","p":0.5},{"branch":"both","op":"color_jitter","strength":0.5,"p":0.8},
{"branch":"both","op":"grayscale","p":0.2}]},"encoder":{"name":"resnet18","stem":"cifar","width":1,"norm":"batch"},
"projection_head":{"kind":"nonlinear","dim":128,"num_layers":2,"hidden_dim":null,"batch_norm":true},
"loss":{"kind":"nt_xent","temperature":0.5,"normalize":true,"semi_hard":false,"margin":0.8},
"optim":{"kind":"lars","base_lr":0.3,"lr_scaling":"linear","weight_decay":1e-06,"momentum":0.9,
"trust_coefficient":0.001,"warmup_epochs":10.0},"batch_size":256,"epochs":100,"seed":0,"precision":"auto",
"channels_last":true,"compile":false,"memory":{"micro_batch":null,"activation_checkpointing":false},
"evaluation":{"knn_every_epochs":5,"linear_probe":true,"probe_z":false,"label_fractions":false,
"transformation_prediction":false},"scaling":{"num_workers":1,"cpus_per_worker":1,"gpus_per_worker":0},
"limits":{"wall_time_s":604800,"max_attempts":3,"max_images":null}}"""
SPEC_SHA256: Final = "62c301af69972103f93ebffee8c2b6549fa19cc8426bbbd9fef2275af9b9a7e3"

ASKED: Final[Mapping[str, Any]] = {
    "kind": "pretrain",
    "owner": "ada",
    "priority": 0,
    "request": '{"name":"emoji","kind":"pretrain","spec":{"data":{"dataset":"openmoji"}}}',
    "spec": SPEC,
    "spec_digest": SPEC_SHA256,
    "plan": """{"trials":1,"steps":1200,"images":307200,"steps_per_epoch":12,"images_dropped_per_epoch":10,
"negatives_per_anchor":510,"memory_bytes":700000000,"time_s":null,"warnings":[]}""",
    "max_attempts": 3,
    "wall_time_s": 604800,
    "parent": None,
    "state": "queued",
    "conditions": "[]",
}

# --- the statements of its store ------------------------------------------------------------------

TAKE_KEY: Final = """INSERT INTO idempotency_keys (owner, route, key, body_sha256, experiment_id)
    VALUES (:owner, :route, :key, :body_sha256, :id)"""
FIND_KEY: Final = """SELECT body_sha256, experiment_id FROM idempotency_keys
    WHERE owner = :owner AND route = :route AND key = :key"""
ADD: Final = """INSERT INTO experiments (id, name, kind, owner, labels, priority, request, spec, spec_digest, plan,
    max_attempts, wall_time_s, parent, state, conditions, attempt, failures, version, created_at, updated_at)
    VALUES (:id, :name, :kind, :owner, :labels, :priority, :request, :spec, :spec_digest, :plan,
    :max_attempts, :wall_time_s, :parent, :state, :conditions, 0, 0, 1, :at, :at)"""
ADD_LABEL: Final = """INSERT INTO experiment_labels (experiment_id, key, value, created_at)
    VALUES (:id, :key, :value, :created_at)"""
FORGET_LABELS: Final = "DELETE FROM experiment_labels WHERE experiment_id = :id"
LOCK: Final = "SELECT created_at FROM experiments WHERE id = :id FOR NO KEY UPDATE"
CHANGE: Final = """UPDATE experiments SET labels = :labels, priority = :priority, version = version + 1,
    updated_at = :at WHERE id = :id"""
COUNT_ON: Final = "UPDATE event_counter SET value = value + 1 RETURNING value"
ADD_EVENT: Final = """INSERT INTO events (sequence, experiment_id, type, data, at)
    VALUES (:sequence, :id, :type, :data, :at)"""
CLAIM: Final = """UPDATE experiments SET claim = :claim, claimed_until = :until WHERE id IN (
    SELECT id FROM experiments WHERE state IN ('queued', 'starting', 'running', 'pausing', 'cancelling', 'recovering')
    AND (claim IS NULL OR claim = :claim OR claimed_until <= :at) FOR NO KEY UPDATE SKIP LOCKED)"""
CLAIMED: Final = """SELECT id, state, attempt FROM experiments
    WHERE state IN ('queued', 'starting', 'running', 'pausing', 'cancelling', 'recovering')
    AND claim = :claim AND claimed_until = :until ORDER BY priority DESC, created_at, id"""
MOVE: Final = """UPDATE experiments SET state = :target, reason = :reason, {}, version = version + 1,
    updated_at = :at, not_before = :not_before WHERE id = :id AND state = :source
    AND (claim IS NULL OR claim = :claim OR claimed_until <= :at) RETURNING attempt"""
START: Final = MOVE.format("attempt = attempt + 1")
RUN: Final = MOVE.format("started_at = coalesce(started_at, :at)")
NOT_OF_SQLITE: Final = re.compile(r" FOR NO KEY UPDATE( SKIP LOCKED)?")  # it has one writer, and no such words

Rows = Sequence[Mapping[str, Any]]


class Database:
    """One connection, tuned as the first version tuned its own."""

    def __init__(self, address: str) -> None:
        self._is_sqlite = address.startswith("sqlite")
        if self._is_sqlite:
            self._connection: Any = sqlite3.connect(address.removeprefix("sqlite:///"), timeout=5, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                self._connection.execute(f"PRAGMA {pragma}")
        else:
            import psycopg
            from psycopg.rows import dict_row

            options = "-c statement_timeout=15s -c lock_timeout=5000ms"
            url = address.replace("+psycopg", "", 1)  # the driver's name is SQLAlchemy's
            self._connection = psycopg.connect(url, row_factory=dict_row, autocommit=True, options=options)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is run, or nothing of it."""
        self._connection.execute("BEGIN IMMEDIATE" if self._is_sqlite else "BEGIN")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def run(self, statement: str, **values: Any) -> Rows:
        """Run a statement and return what it reads."""
        text = NOT_OF_SQLITE.sub("", statement) if self._is_sqlite else re.sub(r":(\w+)", r"%(\1)s", statement)
        cursor = self._connection.execute(text, values)
        return list(cursor.fetchall()) if cursor.description else []


# --- what it did ----------------------------------------------------------------------------------


class FirstVersion:
    """Its service and its dispatcher, as far as an upgrade meets them."""

    def __init__(self, address: str, storage: str, claim: str) -> None:
        self._database = Database(address)
        self._storage = Path(storage)
        self._claim = claim
        self._at = datetime.min.replace(tzinfo=UTC)
        self._told: set[tuple[str, str]] = set()

    def obey(self, order: dict[str, Any]) -> Any:
        """Do one thing at the time that the order says."""
        self._at = datetime.fromisoformat(order.pop("at"))
        return getattr(self, order.pop("do"))(**order)

    def submit(self, *, id: str, name: str, labels: dict[str, str], key: str) -> str:  # noqa: A002 - a column's name
        """Store an experiment under a key; return its id, or that of the one which the key made before."""
        body_sha256 = hashlib.sha256(name.encode()).hexdigest()
        scope = {"owner": "ada", "route": "POST /experiments", "key": key}
        with self._database.transaction():
            for earlier in self._database.run(FIND_KEY, **scope):
                assert earlier["body_sha256"] == body_sha256
                return str(earlier["experiment_id"])
            self._database.run(TAKE_KEY, **scope, body_sha256=body_sha256, id=id)
            self._database.run(
                ADD,
                **ASKED,
                id=id,
                name=name,
                labels=_text(labels),
                at=self._now(),
            )
            self._label(id, labels, created_at=self._now())
            self._tell(id, "state", {"state": "queued", "previous": None, "reason": None, "attempt": 0})
        return id

    def change(self, *, id: str, labels: dict[str, str], priority: int) -> None:  # noqa: A002 - a column's name
        """Give an experiment other labels and another priority."""
        with self._database.transaction():
            (stored,) = self._database.run(LOCK, id=id)
            self._database.run(FORGET_LABELS, id=id)
            self._label(id, labels, created_at=stored["created_at"])
            self._database.run(CHANGE, labels=_text(labels), priority=priority, at=self._now(), id=id)

    def step(self, *, admit: Sequence[str]) -> None:
        """Do a dispatcher's step, in which those of `admit` that wait find room."""
        until = (self._at + timedelta(seconds=LEASE_S)).isoformat(timespec="microseconds")
        with self._database.transaction():
            self._database.run(CLAIM, claim=self._claim, until=until, at=self._now())
            claimed = self._database.run(CLAIMED, claim=self._claim, until=until)
        for record in claimed:
            id_, state, attempt = record["id"], record["state"], record["attempt"]
            if state == "queued" and id_ in admit:
                attempt = self._move(START, id_, "queued", "starting")
                state = "starting"
            if state == "starting":
                self._note_open_run(id_)
                ask("submit", f"{id_}-a{attempt}", entrypoint=_entrypoint(id_, attempt), attempt=attempt, id=id_)
                if ask("observe", f"{id_}-a{attempt}") == "RUNNING":
                    self._move(RUN, id_, "starting", "running")
            elif state == "running":
                self._tell_trial(id_, attempt)

    def _note_open_run(self, id_: str) -> None:
        marker = self._storage / "service" / "open_runs" / id_
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text('{"status": null}')

    def _move(self, statement: str, id_: str, source: str, target: str) -> int:
        """Move an experiment that is its own and return the attempt."""
        with self._database.transaction():
            values = {"target": target, "source": source, "id": id_, "claim": self._claim, "at": self._now()}
            (moved,) = self._database.run(statement, **values, reason=None, not_before=None)
            story = {"state": target, "previous": source, "reason": None, "attempt": moved["attempt"]}
            self._tell(id_, "state", story)
        return int(moved["attempt"])

    def _tell_trial(self, id_: str, attempt: int) -> None:
        if (id_, "t0000") not in self._told:
            self._told.add((id_, "t0000"))
            with self._database.transaction():
                self._tell(id_, "trial", {"id": "t0000", "state": "running", "params": {}, "attempt": attempt})

    def _tell(self, id_: str, type_: str, data: dict[str, Any]) -> None:
        (counted,) = self._database.run(COUNT_ON)
        told = {"id": id_, "type": type_, "data": _text(data), "at": self._now()}
        self._database.run(ADD_EVENT, sequence=counted["value"], **told)

    def _label(self, id_: str, labels: dict[str, str], *, created_at: Any) -> None:
        for key, value in labels.items():
            self._database.run(ADD_LABEL, id=id_, key=key, value=value, created_at=created_at)

    def _now(self) -> str:
        return self._at.isoformat(timespec="microseconds")


def _text(document: Any) -> str:
    return json.dumps(document, allow_nan=False, separators=(",", ":"))


def _entrypoint(id_: str, attempt: int) -> str:
    document = {"experiment_id": id_, "name": "emoji", "kind": "pretrain", "attempt": attempt}
    document |= {"spec": json.loads(SPEC), "storage": "/storage", "mlflow_uri": "http://mlflow.test"}
    document |= {"datasets_dir": None, "cache_dir": "/cache", "parent": None}
    word = base64.urlsafe_b64encode(zlib.compress(json.dumps(document).encode())).decode()
    return f"python -m trainer --document {word}"


def ask(what: str, name: str, **more: Any) -> Any:
    """Return what the world outside answers."""
    say({"ask": what, "name": name, **more})
    return json.loads(sys.stdin.readline())


def say(message: Mapping[str, Any]) -> None:
    """Write one line of output."""
    print(json.dumps(message), flush=True)  # noqa: T201 - its line to the test


def main() -> None:
    """Obey until the input ends."""
    first_version = FirstVersion(*sys.argv[1:])
    for line in sys.stdin:
        say({"done": first_version.obey(json.loads(line))})


if __name__ == "__main__":
    main()
