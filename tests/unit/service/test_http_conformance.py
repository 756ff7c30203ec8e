"""The service against its own OpenAPI document: generated requests, sound and unsound, and every answer checked."""

from __future__ import annotations

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
# Of each kind of run. The first two end by themselves; the others would go on for as long as they may.
MOST_S = {"examples": 120, "coverage": 120, "fuzzing": 14, "stateful": 14}

# What a schema cannot say: whether names are printable, sizes go together, data sets exist, versions are current.
JUDGED = ("createExperiment", "cloneExperiment", "continueExperiment", "createToken", "updateExperiment")
JUDGED_PARAMETERS = ("listExperiments", "listArtifacts", "downloadArtifact", "getMetrics")


def settings(phase: str) -> dict[str, Any]:
    """Return the run's settings: a fixed seed, and for each operation the statuses that sound data may meet."""

    def may_meet(operations: tuple[str, ...], *statuses: str) -> dict[str, Any]:
        return {
            "include-operation-id": list(operations),
            "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "404", *statuses]}},
        }

    return {
        "seed": 1,
        "max-time": MOST_S[phase],
        "continue-on-failure": True,
        "headers": BEARER,
        "parameters": {"page_token": ""},  # signed: none but the service can make one
        "generation": {"max-examples": 2, "deterministic": True, "database": "none", "no-shrink": True},
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
    tmp_path: Path, migrated_database: Path, datasets_dir: Path, phase: str
) -> None:
    app = offline_app(
        tmp_path,
        database=migrated_database,
        datasets=datasets_dir,
        bootstrap_token=SECRET,
        allowed_hosts=(HOST,),
    ).app
    config = SchemathesisConfig.from_dict(settings(phase))
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

    assert failures == []
    assert num_calls > 10
    if phase == "coverage":
        paths = app.openapi()["paths"]
        assert called == {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def _failures(event: events.ScenarioFinished) -> list[str]:
    calls = event.recorder.interactions
    return [
        f"{check.name}: {calls[call].request.method} {calls[call].request.uri}: {check.failure_info.failure}"
        for call, checks in event.recorder.checks.items()
        for check in checks
        if check.failure_info is not None
    ]
