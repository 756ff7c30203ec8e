"""MLflow, as the service uses it: reads over its REST interface, and the closing of runs.

The wire format is that of MLflow 3.17 (`mlflow/server/handlers.py`). MLflow itself is not
imported: it costs a second and 170 MB. Reads are tried twice, since a kept-alive connection may
have gone stale; what does not answer then, or not in time, is unavailable.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx2

from service.errors import ArtifactNotFound, TrackingUnavailable
from service.ports import JsonObject, MetricPoint, TrialRun
from service.public_address import without_userinfo

__all__ = ["MlflowTracking"]

EXPERIMENT_NAME: Final = "simclr"
_TAG_EXPERIMENT: Final = "simclr.experiment_id"
_TAG_TRIAL: Final = "simclr.trial_id"
_TAG_ROLE: Final = "simclr.role"
_API: Final = "/api/2.0/mlflow"
_TIMEOUT = httpx2.Timeout(10.0, connect=5.0)
_RUNS_A_PAGE: Final = 1000
_POINTS_A_PAGE: Final = 25_000


class MlflowTracking:
    """An MLflow server; implements `ports.Tracking`."""

    def __init__(
        self, uri: str, *, ui_url: str | None = None, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        """Connect to `uri`; a user and password in it become basic auth and appear nowhere else.

        Pages are at `ui_url`, if people do not reach `uri`.
        """
        self._address = without_userinfo(uri).rstrip("/")
        self._ui_address = without_userinfo(ui_url or uri).rstrip("/")
        parts = urlsplit(uri)
        self._http = httpx2.AsyncClient(
            base_url=self._address,
            auth=httpx2.BasicAuth(parts.username, parts.password or "") if parts.username else None,
            timeout=_TIMEOUT,
            transport=transport,
            trust_env=False,  # no proxy of the machine's lies between the service and its records
        )
        self._mlflow_experiment_id: str | None = None
        self._parent_run_ids: dict[str, str] = {}

    async def ping(self) -> None:
        # Not /health: it is open to anyone, and answers without the database.
        await self._ask_for_mlflow_experiment()

    async def trials(self, experiment_id: str) -> Sequence[TrialRun]:
        # A creation that was obeyed late left a second run of its trial, to which nothing is ever written:
        # it may be the older one, and goes when its trial ends (docs/decisions/13).
        runs = await self._search(experiment_id, order_by=["attributes.start_time ASC"])
        trials: dict[str, TrialRun] = {}
        for run in runs:
            trial = _trial_run(run)
            if trial is None:
                continue
            known = trials.setdefault(trial.trial_id, trial)
            if trial.metrics and not known.metrics:
                trials[trial.trial_id] = trial
        return [trials[trial_id] for trial_id in sorted(trials)]

    async def metrics(self, mlflow_run_id: str, keys: Sequence[str]) -> Mapping[str, Sequence[MetricPoint]]:
        return {key: await self._history(mlflow_run_id, key) for key in keys}

    async def artifacts(self, mlflow_run_id: str, path: str = "") -> Sequence[JsonObject]:
        query = {"run_id": mlflow_run_id} | ({"path": path} if path else {})
        answer = await self._read(f"{_API}/artifacts/list", params=query)
        if answer.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST):
            raise ArtifactNotFound(f"no artifact folder {path!r}")
        files = self._json(answer).get("files", [])
        return [
            {"path": file["path"], "is_dir": file.get("is_dir", False), "size_bytes": int(file.get("file_size", 0))}
            for file in files
        ]

    async def open_artifact(self, mlflow_run_id: str, path: str) -> AsyncIterator[bytes]:
        query = {"run_id": mlflow_run_id, "path": path}
        try:
            async with self._http.stream("GET", "/get-artifact", params=query) as answer:
                if not answer.is_success:
                    await self._refuse_missing(mlflow_run_id, path)
                self._expect(answer)
                async for chunk in answer.aiter_bytes():
                    yield chunk
        except httpx2.HTTPError as error:
            raise _unavailable(error) from error

    async def close_runs(self, experiment_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        runs = await self._search(experiment_id)
        # What the parent ended in was set here: with a verdict that was never committed, it is set anew.
        ours = {run["info"]["status"] for run in runs if _tags(run).get(_TAG_ROLE) == "parent"}
        for run in runs:
            if run["info"]["status"] == status or run["info"]["status"] not in {"RUNNING", "SCHEDULED"} | ours:
                continue
            update = {"run_id": run["info"]["run_id"], "status": status, "end_time": time.time_ns() // 1_000_000}
            self._expect(await self._send("POST", f"{_API}/runs/update", json=update))

    def run_url(self, experiment_id: str, mlflow_run_id: str | None) -> str | None:
        run_id = mlflow_run_id or self._parent_run_ids.get(experiment_id)
        if run_id is None or self._mlflow_experiment_id is None:
            return None
        return f"{self._ui_address}/#/experiments/{self._mlflow_experiment_id}/runs/{run_id}"

    async def close(self) -> None:
        await self._http.aclose()

    async def _refuse_missing(self, mlflow_run_id: str, path: str) -> None:
        """Raise ArtifactNotFound unless MLflow lists the file: it words an absent one as an internal error."""
        folder = path.rpartition("/")[0]
        if path not in [file["path"] for file in await self.artifacts(mlflow_run_id, folder)]:
            raise ArtifactNotFound(f"no artifact {path!r}")

    async def _search(self, experiment_id: str, order_by: Sequence[str] = ()) -> list[JsonObject]:
        """Return the parent run and the trial runs of an experiment."""
        mlflow_experiment_id = await self._find_mlflow_experiment()
        if mlflow_experiment_id is None:
            return []
        query: JsonObject = {
            "experiment_ids": [mlflow_experiment_id],
            "filter": f"tags.`{_TAG_EXPERIMENT}` = {_quoted(experiment_id)}",
            "order_by": list(order_by),
            "max_results": _RUNS_A_PAGE,
        }
        runs: list[JsonObject] = []
        while True:
            page = self._json(await self._read(f"{_API}/runs/search", method="POST", json=query))
            runs += page.get("runs", [])
            if not page.get("next_page_token"):
                break
            query["page_token"] = page["next_page_token"]
        for run in runs:
            if _tags(run).get(_TAG_ROLE) == "parent":
                self._parent_run_ids.setdefault(experiment_id, run["info"]["run_id"])
        return runs

    async def _find_mlflow_experiment(self) -> str | None:
        """Return the id behind the name, kept once found; None before the first job made it."""
        if self._mlflow_experiment_id is None:
            self._mlflow_experiment_id = await self._ask_for_mlflow_experiment()
        return self._mlflow_experiment_id

    async def _ask_for_mlflow_experiment(self) -> str | None:
        answer = await self._read(f"{_API}/experiments/get-by-name", params={"experiment_name": EXPERIMENT_NAME})
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return None
        return str(self._json(answer)["experiment"]["experiment_id"])

    async def _history(self, mlflow_run_id: str, key: str) -> list[MetricPoint]:
        query: JsonObject = {"run_id": mlflow_run_id, "metric_key": key, "max_results": _POINTS_A_PAGE}
        points: dict[int, MetricPoint] = {}
        while True:  # pages come by time: of a step logged twice, the first stays
            answer = await self._read(f"{_API}/metrics/get-history", params=query)
            if answer.status_code == HTTPStatus.NOT_FOUND:
                return []
            page = self._json(answer)
            for point in map(_point, page.get("metrics", [])):
                points.setdefault(point.step, point)
            if not page.get("next_page_token"):
                return [points[step] for step in sorted(points)]
            query["page_token"] = page["next_page_token"]

    async def _read(self, path: str, *, method: str = "GET", **arguments: Any) -> httpx2.Response:
        try:
            return await self._send(method, path, **arguments)
        except TrackingUnavailable as error:
            if isinstance(error.__cause__, httpx2.TimeoutException):
                raise
            return await self._send(method, path, **arguments)

    async def _send(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        try:
            return await self._http.request(method, path, **arguments)
        except httpx2.HTTPError as error:
            raise _unavailable(error) from error

    def _json(self, answer: httpx2.Response) -> JsonObject:
        self._expect(answer)
        try:
            document = json.loads(answer.content)
        except ValueError as error:
            raise TrackingUnavailable("what answers at MLflow's address is not MLflow") from error
        if not isinstance(document, dict):
            raise TrackingUnavailable("what answers at MLflow's address is not MLflow")
        return document

    @staticmethod
    def _expect(answer: httpx2.Response) -> None:
        if not answer.is_success:
            raise TrackingUnavailable(f"MLflow answers {answer.status_code}", is_refusal=True)


def _unavailable(error: httpx2.HTTPError) -> TrackingUnavailable:
    return TrackingUnavailable(f"MLflow does not answer: {type(error).__name__}")


def _quoted(text: str) -> str:
    """Return a string of MLflow's search language, which has both quotes and no escape inside them."""
    return f"'{text}'" if "'" not in text else '"' + text.replace('"', '""') + '"'


def _tags(run: JsonObject) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in run["data"].get("tags", [])}


def _trial_run(run: JsonObject) -> TrialRun | None:
    tags = _tags(run)
    if _TAG_TRIAL not in tags:
        return None
    metrics = run["data"].get("metrics", [])
    return TrialRun(
        trial_id=tags[_TAG_TRIAL],
        mlflow_run_id=run["info"]["run_id"],
        status=run["info"]["status"],
        params={param["key"]: param.get("value", "") for param in run["data"].get("params", [])},
        metrics={metric["key"]: float(metric["value"]) for metric in metrics},
        steps={metric["key"]: int(metric.get("step", 0)) for metric in metrics},
        tags=tags,
    )


def _point(metric: JsonObject) -> MetricPoint:
    """Return one point; protobuf's JSON leaves out a zero step and spells NaN as a string."""
    return MetricPoint(
        step=int(metric.get("step", 0)),
        value=float(metric.get("value", 0.0)),
        at=datetime.fromtimestamp(int(metric["timestamp"]) / 1000, UTC),
    )
