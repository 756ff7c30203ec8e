"""The service against its own OpenAPI document: generated requests, sound and unsound, and every answer checked.

Each test run makes few, and the same ones each time. `make conformance MINUTES=5` makes other and
many more, by chance, and names the seed with which a failure comes again.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.python.asgi import HOST, shutdown_lifespans

from tests.harness.http_app import offline_app

SECRET = "simclr_conformance"  # noqa: S105 - of a service that lives as long as the test
BEARER = {"Authorization": f"Bearer {SECRET}"}
ENDLESS = ("fuzzing", "stateful")  # kinds of run that go on for as long as they may; the others end by themselves
EXAMPLES_A_MINUTE = 40  # of each operation, so that a run of any length comes to all of them

# What a schema cannot say: whether names are printable, sizes go together, data sets exist, versions are current.
JUDGED = ("createExperiment", "cloneExperiment", "continueExperiment", "createToken", "updateExperiment")
JUDGED_PARAMETERS = ("listExperiments", "listArtifacts", "downloadArtifact", "getMetrics")


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is generated, and from which seed."""

    most_s: float = 14
    num_examples: int = 2
    seed: int = 1
    is_by_chance: bool = False


@pytest.fixture(scope="module")
def effort(request: pytest.FixtureRequest) -> Effort:
    """Return what the command line asks for, with a new seed unless it names one."""
    minutes: float = request.config.getoption("--conformance-minutes")
    if not minutes:
        return Effort()
    seed: int | None = request.config.getoption("--conformance-seed")
    return Effort(
        most_s=minutes * 60 / len(ENDLESS),
        num_examples=max(2, round(minutes * EXAMPLES_A_MINUTE)),
        seed=secrets.randbits(32) if seed is None else seed,
        is_by_chance=True,
    )


def settings(phase: str, effort: Effort) -> dict[str, Any]:
    """Return the run's settings, and for each operation the statuses that sound data may meet."""

    def may_meet(operations: tuple[str, ...], *statuses: str) -> dict[str, Any]:
        return {
            "include-operation-id": list(operations),
            "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "404", *statuses]}},
        }

    return {
        "seed": effort.seed,
        "max-time": effort.most_s if phase in ENDLESS else 120,
        "continue-on-failure": True,
        "headers": BEARER,
        "parameters": {"page_token": ""},  # signed: none but the service can make one
        "generation": {
            "max-examples": effort.num_examples,
            "deterministic": not effort.is_by_chance,
            "database": "none",
            "no-shrink": True,
        },
        "phases": {name: {"enabled": name == phase} for name in ("examples", "coverage", "fuzzing", "stateful")},
        "operations": [
            may_meet(JUDGED, "400", "409", "412", "422", "428"),
            may_meet(JUDGED_PARAMETERS, "400", "422"),
            {"include-operation-id": ["streamEvents"], "request-timeout": 0.5},  # it ends when its experiment does
        ],
    }


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["examples", "coverage", "fuzzing", "stateful"])
def test_every_answer_is_as_the_document_says(
    tmp_path: Path, migrated_database: Path, datasets_dir: Path, phase: str, effort: Effort
) -> None:
    app = offline_app(
        tmp_path,
        database=migrated_database,
        datasets=datasets_dir,
        bootstrap_token=SECRET,
        allowed_hosts=(HOST,),
    ).app
    config = SchemathesisConfig.from_dict(settings(phase, effort))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config, headers=BEARER)
    failures: list[str] = []
    num_calls = 0
    called: set[str | None] = set()
    try:
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                num_calls += len(event.recorder.interactions)
                called |= {event.label} if event.recorder.interactions else set()
                failures += _failures(event)
            elif isinstance(event, events.NonFatalError | events.FatalError):
                failures.append(str(event))
    finally:
        shutdown_lifespans()

    print(f"{phase}: {num_calls} requests, seed {effort.seed}")  # noqa: T201 - the result
    assert failures == [], f"seed {effort.seed}"
    assert num_calls > 10
    if phase == "coverage":
        paths = app.openapi()["paths"]
        assert called == {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def _failures(event: events.ScenarioFinished) -> list[str]:
    calls = event.recorder.interactions
    return [
        f"{check.name}: {calls[call].request.method} {calls[call].request.uri} "
        f"{str(calls[call].request.body)[:1000]}: {check.failure_info.failure}"
        for call, checks in event.recorder.checks.items()
        for check in checks
        if check.failure_info is not None
    ]
