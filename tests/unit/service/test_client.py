"""Both clients: delivery, pages, streams and downloads, on a scripted transport."""

import asyncio
import base64
import hashlib
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service import dataset_facts, storage_threads
from service.client import AsyncClient, Client, ClientError, DigestMismatch, Unreachable
from service.routes import encoders

Handler = Callable[[httpx2.Request], httpx2.Response]
TOKEN = "secret"  # noqa: S105 - of no one
RUNNING = {"id": "exp_1", "state": "running"}
SUCCEEDED = {"id": "exp_1", "state": "succeeded"}


class Script:
    """Answers requests in order; an exception in it is raised. Keeps what was asked."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Caller:
    """Calls a method of either client and returns what it gives, iterators as lists."""

    def __init__(self, *, is_async: bool) -> None:
        self._is_async = is_async
        self.slept: list[float] = []

    def __call__(self, script: Handler, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._is_async:
            return asyncio.run(self._call_async(script, method, *args, **kwargs))
        transport = httpx2.MockTransport(script)
        with Client("http://service.test", token=TOKEN, transport=transport, sleep=self.slept.append) as client:
            result = getattr(client, method)(*args, **kwargs)
            return list(result) if isinstance(result, Iterator) else result

    async def _call_async(self, script: Handler, method: str, *args: Any, **kwargs: Any) -> Any:
        async def sleep(delay_s: float) -> None:
            self.slept.append(delay_s)

        transport = httpx2.MockTransport(script)
        async with AsyncClient("http://service.test", token=TOKEN, transport=transport, sleep=sleep) as client:
            result = getattr(client, method)(*args, **kwargs)
            if isinstance(result, AsyncIterator):
                return [item async for item in result]
            return await result if isinstance(result, Awaitable) else result


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Caller:
    return Caller(is_async=request.param)


def problem(status: int, **members: Any) -> httpx2.Response:
    return httpx2.Response(status, json={"status": status, **members}, headers=members.pop("headers", {}))


def stream(*events: tuple[str, str, Any]) -> httpx2.Response:
    text = "".join(
        f"event: {kind}\n" + (f"id: {id_}\n" if id_ else "") + f"data: {json.dumps(data)}\n\n"
        for kind, id_, data in events
    )
    return httpx2.Response(200, text=text, headers={"Content-Type": "text/event-stream"})


def test_both_clients_have_the_same_methods() -> None:
    def signatures(client: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(client, inspect.isfunction)
        return {name: list(inspect.signature(f).parameters) for name, f in methods if not name.startswith("_")}

    assert signatures(Client) == signatures(AsyncClient)


def test_a_lost_submission_is_repeated_with_the_same_key(call: Caller) -> None:
    script = Script(
        httpx2.ReadError("reset"),
        httpx2.Response(503),
        httpx2.ConnectError("refused"),
        httpx2.Response(202, json=RUNNING),
    )

    assert call(script, "submit", {"name": "a"}) == RUNNING

    keys = {request.headers["Idempotency-Key"] for request in script.requests}
    assert len(script.requests) == 4
    assert len(keys) == 1
    assert script.requests[0].headers["Authorization"] == "Bearer secret"


def test_two_submissions_have_two_keys(call: Caller) -> None:
    script = Script(httpx2.Response(202, json=RUNNING), httpx2.Response(202, json=RUNNING))

    call(script, "submit", {"name": "a"})
    call(script, "submit", {"name": "a"})

    assert script.requests[0].headers["Idempotency-Key"] != script.requests[1].headers["Idempotency-Key"]


def test_retry_after_is_honoured(call: Caller) -> None:
    script = Script(httpx2.Response(429, headers={"Retry-After": "7"}), httpx2.Response(200, json=RUNNING))

    call(script, "experiment", "exp_1")

    assert call.slept == [7.0]


def test_a_service_that_asks_for_more_patience_than_there_is_ends_the_wait(call: Caller) -> None:
    script = Script(problem(503, detail="database is down", headers={"Retry-After": "3600"}))

    with pytest.raises(Unreachable, match="database is down") as refused:
        call(script, "experiment", "exp_1")

    assert refused.value.status == 503
    assert call.slept == []


def test_what_must_not_happen_twice_is_not_repeated(call: Caller) -> None:
    script = Script(httpx2.ReadError("reset"))

    with pytest.raises(Unreachable, match=r"no answer from http://service.test \(reset\)"):
        call(script, "create_token", name="ci")


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("create_token", {"name": "ci"}), ("update", {"experiment_id": "exp_1", "priority": 5, "etag": '"3"'})],
)
def test_what_must_not_happen_twice_is_not_repeated_where_it_may_have_happened(
    call: Caller, method: str, arguments: dict[str, Any]
) -> None:
    turned_away, unavailable = httpx2.Response(429), problem(503, detail="the database does not answer")
    script = Script(turned_away, unavailable)

    with pytest.raises(Unreachable, match="the database does not answer"):
        call(script, method, **arguments)

    assert len(script.requests) == 2


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_deletion_is_repeated_and_what_the_first_removed_is_removed(call: Caller, *, is_lost: bool) -> None:
    script = Script(
        httpx2.ReadError("reset") if is_lost else httpx2.Response(503), problem(404, code="experiment_not_found")
    )

    assert call(script, "delete", "exp_1") is None

    assert len(script.requests) == 2


def test_a_deletion_that_was_never_tried_has_not_removed_what_is_not_there(call: Caller) -> None:
    script = Script(httpx2.ConnectError("refused"), httpx2.Response(429), problem(404, code="experiment_not_found"))

    with pytest.raises(ClientError) as refused:
        call(script, "delete", "exp_1")

    assert refused.value.code == "experiment_not_found"


def test_a_service_that_takes_too_long_is_not_told_to_be_started(call: Caller) -> None:
    with pytest.raises(Unreachable, match="look before you ask for it again") as refused:
        call(Script(httpx2.ReadTimeout("timed out")), "create_token", name="ci")

    assert "simclr serve" not in str(refused.value)


def test_a_client_waits_longer_than_the_service_does(call: Caller, tmp_path: Path) -> None:
    script = Script(httpx2.Response(202, json=RUNNING), bundle(b"weights", announced=b"weights"))
    call(script, "submit", {"name": "a"})
    call(script, "download_encoder", "exp_1", tmp_path / "encoder.zip")

    submission, download = (request.extensions["timeout"]["read"] for request in script.requests)
    for_database = 6.0  # once; who asks it then is answered at once
    assert submission > storage_threads.ANSWER_S + dataset_facts.ANSWER_S + for_database
    assert download > 2 * storage_threads.ANSWER_S + encoders.BUNDLE_S + for_database  # two markers before it


def test_a_refusal_carries_the_problem_document(call: Caller) -> None:
    field = {"pointer": "/spec/loss/temperature", "code": "greater_than", "detail": "too low", "allowed": "> 0"}
    script = Script(problem(422, code="spec_invalid", detail="1 error", errors=[field]))

    with pytest.raises(ClientError, match="1 error") as refused:
        call(script, "submit", {})

    assert refused.value.code == "spec_invalid"
    assert refused.value.fields == [field]
    assert not isinstance(refused.value, Unreachable)


def test_an_error_page_of_a_proxy_is_an_error_too(call: Caller) -> None:
    with pytest.raises(Unreachable, match="answered 502"):
        call(Script(httpx2.Response(502, text="<html>")), "experiment", "exp_1")


def test_lists_are_read_to_their_end(call: Caller) -> None:
    script = Script(
        httpx2.Response(200, json={"items": [{"id": "1"}, {"id": "2"}], "next_page_token": "t"}),
        httpx2.Response(200, json={"items": [{"id": "3"}], "next_page_token": ""}),
    )

    found = call(script, "experiments", state="running", label="team:a")

    assert [item["id"] for item in found] == ["1", "2", "3"]
    assert dict(script.requests[1].url.params) == {"state": "running", "label": "team:a", "page_token": "t"}


def test_an_id_cannot_leave_its_place_in_the_path(call: Caller) -> None:
    script = Script(httpx2.Response(200, json=RUNNING))

    call(script, "experiment", "../tokens?x=1")

    assert script.requests[0].url.raw_path == b"/experiments/..%2Ftokens%3Fx%3D1"


def test_watch_resumes_behind_the_last_event_and_ends_with_the_experiment(call: Caller) -> None:
    script = Script(
        stream(("state", "4", {"state": "running"}), ("metric", "", {"step": 1})),
        httpx2.Response(200, json=RUNNING),
        httpx2.ConnectError("refused"),
        stream(("state", "9", {"state": "succeeded"})),
    )

    events = call(script, "watch", "exp_1")

    assert [event.type for event in events] == ["state", "metric", "state"]
    assert "Last-Event-ID" not in script.requests[0].headers
    assert script.requests[3].headers["Last-Event-ID"] == "4"


def test_watch_resumes_where_it_was_dropped_though_the_experiment_has_ended(call: Caller) -> None:
    script = Script(
        stream(("state", "4", {"state": "running"}), ("dropped", "", {"code": "slow_client"})),
        stream(("state", "9", {"state": "succeeded"})),
    )

    events = call(script, "watch", "exp_1")

    assert [(event.type, event.id) for event in events] == [("state", "4"), ("state", "9")]
    assert script.requests[1].headers["Last-Event-ID"] == "4"


def test_watch_tells_the_end_that_came_while_the_connection_was_broken(call: Caller) -> None:
    script = Script(
        stream(("state", "4", {"state": "running"})),
        httpx2.Response(200, json=RUNNING),
        httpx2.ReadError("reset"),
        stream(("state", "9", {"state": "succeeded"})),
    )

    assert [event.id for event in call(script, "watch", "exp_1")] == ["4", "9"]


def test_what_has_no_data_is_no_event(call: Caller) -> None:
    beginning = ": stream of exp_1\nretry: 1000\n\n"  # as the service opens every stream
    opened = httpx2.Response(200, text=beginning, headers={"Content-Type": "text/event-stream"})
    script = Script(opened, httpx2.Response(200, json=SUCCEEDED), opened)

    assert call(script, "watch", "exp_1") == []


@pytest.mark.parametrize("last", [("metric", "", {"step": 1}), ("heartbeat", "", {})])
def test_watch_tells_the_end_that_came_as_the_service_ended_the_stream(
    call: Caller, last: tuple[str, str, dict[str, Any]]
) -> None:
    script = Script(
        stream(("state", "4", {"state": "running"}), last),
        httpx2.Response(200, json=SUCCEEDED),
        stream(("state", "9", {"state": "succeeded"})),
    )

    assert [event.id for event in call(script, "watch", "exp_1") if event.type == "state"] == ["4", "9"]
    assert script.requests[2].headers["Last-Event-ID"] == "4"


def test_watch_of_what_is_not_there_is_refused(call: Caller) -> None:
    with pytest.raises(ClientError, match="no such experiment"):
        call(Script(problem(404, detail="no such experiment")), "watch", "exp_0")


def test_wait_returns_the_experiment_as_it_ended(call: Caller) -> None:
    script = Script(httpx2.Response(200, json=RUNNING), httpx2.Response(200, json=SUCCEEDED))

    assert call(script, "wait", "exp_1") == SUCCEEDED
    assert len(call.slept) == 1


def test_wait_gives_up_in_time(call: Caller) -> None:
    with pytest.raises(ClientError, match="exp_1 is running after 0 s"):
        call(Script(httpx2.Response(200, json=RUNNING)), "wait", "exp_1", timeout_s=0)


def bundle(content: bytes, *, announced: bytes) -> httpx2.Response:
    digest = base64.b64encode(hashlib.sha256(announced).digest()).decode()
    return httpx2.Response(200, content=content, headers={"Repr-Digest": f"sha-256=:{digest}:"})


def test_a_download_is_saved_under_its_digest(call: Caller, tmp_path: Path) -> None:
    script = Script(httpx2.Response(503), bundle(b"weights", announced=b"weights"))

    digest = call(script, "download_encoder", "exp_1", tmp_path / "new" / "encoder.zip")

    assert (tmp_path / "new" / "encoder.zip").read_bytes() == b"weights"
    assert digest == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("is_announced", [True, False], ids=["torn", "bare"])
def test_a_download_that_is_not_what_was_announced_is_not_saved(
    call: Caller, tmp_path: Path, *, is_announced: bool
) -> None:
    response = bundle(b"torn", announced=b"weights") if is_announced else httpx2.Response(200, content=b"bare")
    (tmp_path / "encoder.zip").write_bytes(b"older")

    with pytest.raises(DigestMismatch, match="announced"):
        call(Script(response), "download_encoder", "exp_1", tmp_path / "encoder.zip")

    assert (tmp_path / "encoder.zip").read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.zip"]


@pytest.mark.parametrize(
    ("method", "arguments", "line", "body"),
    [
        ("validate", ({"name": "a"},), "POST /experiments?validate_only=true", {"name": "a"}),
        ("cancel", ("e",), "POST /experiments/e/cancel", None),
        ("pause", ("e",), "POST /experiments/e/pause", None),
        ("resume", ("e",), "POST /experiments/e/resume", None),
        ("clone", ("e",), "POST /experiments/e/clone", {"overrides": {}}),
        ("delete", ("e",), "DELETE /experiments/e", None),
        ("trial", ("e", "t"), "GET /experiments/e/trials/t", None),
        ("metrics", ("e",), "GET /experiments/e/metrics", None),
        ("logs", ("e",), "GET /experiments/e/logs", None),
        ("report", ("e",), "GET /experiments/e/report?format=json", None),
        ("compare", (["a", "b"],), "GET /compare?ids=a%2Cb", None),
        ("study", ("temperature",), "GET /studies/temperature", None),
        ("dataset", ("openmoji",), "GET /datasets/openmoji", None),
        ("revoke_token", ("tok",), "DELETE /tokens/tok", None),
        ("version", (), "GET /version", None),
    ],
)
def test_each_method_is_its_route(call: Caller, method: str, arguments: tuple[Any, ...], line: str, body: Any) -> None:
    script = Script(httpx2.Response(200, json={}))

    call(script, method, *arguments)

    request = script.requests[0]
    assert f"{request.method} {request.url.raw_path.decode()}" == line
    assert (json.loads(request.content) if request.content else None) == body
