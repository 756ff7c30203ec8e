"""Ray, as the service uses it: the Jobs API and the node table, over the dashboard's HTTP address.

The wire format is that of Ray 2.60 (`ray/dashboard/modules/{job,state,reporter}`). Ray itself is
not imported, so the service starts in a moment and needs no Ray of the cluster's version.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import httpx2
from pydantic import SecretStr

from service.code_package import CodePackage
from service.errors import ClusterUnavailable
from service.ports import Capacity, JobObservation, JobStatus

__all__ = ["RayJobs"]

# A submit waits up to 10 s for the head's job agent (Ray's WAIT_AVAILABLE_AGENT_TIMEOUT): past it,
# the answer says why. Nothing else takes longer than a look into the head's memory.
_SUBMIT_TIMEOUT_S: Final = 12.0
_TIMEOUT = httpx2.Timeout(8.0, connect=5.0)
_MAX_NODES: Final = 10_000  # Ray's own bound for a listing
_MESSAGE_LENGTH: Final = 500
_NODE_LIVES_S: Final = 2.0  # how long an answer that a node lives is believed


class RayJobs:
    """A Ray cluster behind its dashboard; implements `ports.Cluster`."""

    def __init__(
        self,
        address: str,
        *,
        token: SecretStr | None = None,
        code: CodePackage | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Connect to `address`, such as http://127.0.0.1:8265; `token` is that of RAY_AUTH_MODE=token.

        Each job runs in a folder with `code`; without it the nodes have code of their own.
        """
        self._code = code
        self._living_until_s: dict[str, float] = {}  # of nodes with drivers
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self._http = httpx2.AsyncClient(
            base_url=address,
            headers=headers,
            timeout=_TIMEOUT,
            transport=transport,
            trust_env=False,  # no proxy of the machine's lies between the service and its cluster
        )

    async def ping(self) -> None:
        await self._expect(await self._send("GET", "/api/gcs_healthz"))
        await self.observe("ping")  # the health check is open to anyone; this shows that the token is right

    async def submit(
        self, submission_id: str, *, entrypoint: str, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        runtime_env: dict[str, Any] = {"env_vars": dict(env)}
        if self._code is not None:
            await self._ensure(self._code)
            runtime_env["working_dir"] = self._code.uri
        document = {
            "submission_id": submission_id,
            "entrypoint": entrypoint,
            "runtime_env": runtime_env,
            "metadata": dict(metadata),
        }
        answer = await self._send("POST", "/api/jobs/", json=document, timeout=_SUBMIT_TIMEOUT_S)
        if answer.is_success:
            return
        # Ray words a used id as an internal error with a trace: whether the job is there is the better question.
        if (await self.observe(submission_id)).status is JobStatus.MISSING:
            await self._expect(answer)

    async def _ensure(self, code: CodePackage) -> None:
        """See that the head has the package; asking keeps it there until the job that follows holds it."""
        path = f"/api/packages/gcs/{code.name}"
        if (await self._send("GET", path)).status_code == HTTPStatus.NOT_FOUND:
            await self._expect(await self._send("PUT", path, content=code.data))

    async def observe(self, submission_id: str) -> JobObservation:
        answer = await self._send("GET", f"/api/jobs/{submission_id}")
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return JobObservation(status=JobStatus.MISSING)
        job = await self._json(answer)
        status, driver_node = JobStatus(job["status"].lower()), job.get("driver_node_id")
        if status.is_living and driver_node and await self._is_dead(driver_node):
            # Ray finds it out when the next job is submitted: a head that is back goes on calling it running.
            return JobObservation(status=JobStatus.MISSING, message="the node of its driver died")
        return JobObservation(status=status, message=_one_line(job.get("message") or ""))

    async def _is_dead(self, node_id: str) -> bool:
        """Return whether Ray took a node for dead, which is for ever: who comes back is another node."""
        now_s = time.monotonic()
        if self._living_until_s.get(node_id, now_s) > now_s:
            return False
        filters = {"filter_keys": "node_id", "filter_predicates": "=", "filter_values": node_id}
        try:
            listing = await self._json(await self._send("GET", "/api/v0/nodes", params=filters))
        except ClusterUnavailable:  # the job itself was told of; its node is asked for again at the next look
            return False
        if any(node["state"] == "DEAD" for node in listing["data"]["result"]["result"]):
            return True
        self._living_until_s = {node_id: now_s + _NODE_LIVES_S} | {
            node: until_s for node, until_s in self._living_until_s.items() if until_s > now_s and node != node_id
        }
        return False

    async def stop(self, submission_id: str) -> None:
        answer = await self._send("POST", f"/api/jobs/{submission_id}/stop")
        if answer.status_code != HTTPStatus.NOT_FOUND:  # not there: it runs no more
            await self._expect(answer)

    async def logs(self, submission_id: str) -> str:
        answer = await self._send("GET", f"/api/jobs/{submission_id}/logs")
        if answer.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.INTERNAL_SERVER_ERROR):
            return ""  # the job, or the node with its log, is gone
        return str((await self._json(answer))["logs"])

    async def capacity(self) -> Capacity:
        """Return the totals of the living nodes, and what Ray's load report (5 s old at most) says is free."""
        filters = {"filter_keys": "state", "filter_predicates": "=", "filter_values": "ALIVE", "limit": _MAX_NODES}
        nodes = (await self._json(await self._send("GET", "/api/v0/nodes", params=filters)))["data"]["result"]["result"]
        status = (await self._json(await self._send("GET", "/api/cluster_status")))["data"]
        usage = ((status.get("clusterStatus") or {}).get("loadMetricsReport") or {}).get("usage") or {}
        totals = {kind: sum(node["resources_total"].get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
        used = {kind: min(usage.get(kind, (0.0, 0.0))[0], totals[kind]) for kind in totals}
        return Capacity(
            cpus_total=totals["CPU"],
            cpus_free=totals["CPU"] - used["CPU"],
            gpus_total=totals["GPU"],
            gpus_free=totals["GPU"] - used["GPU"],
            nodes=len(nodes),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def _send(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        try:
            return await self._http.request(method, path, **arguments)
        except httpx2.HTTPError as error:
            raise ClusterUnavailable(f"Ray does not answer: {type(error).__name__} {error}".strip()) from error

    async def _expect(self, answer: httpx2.Response) -> httpx2.Response:
        if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise ClusterUnavailable("Ray refuses the service's token; set SIMCLR_RAY_TOKEN to that of the cluster")
        if not answer.is_success:
            raise ClusterUnavailable(f"Ray answers {answer.status_code}: {_last_line(answer.text)}", is_refusal=True)
        return answer

    async def _json(self, answer: httpx2.Response) -> dict[str, Any]:
        await self._expect(answer)
        try:
            document = answer.json()
        except ValueError as error:
            raise ClusterUnavailable("what answers at Ray's address is not Ray") from error
        if not isinstance(document, dict):
            raise ClusterUnavailable("what answers at Ray's address is not Ray")
        return document


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MESSAGE_LENGTH]


def _last_line(text: str) -> str:
    """Return what a trace ends in: the error itself."""
    return _one_line(text.strip().rpartition("\n")[2])
