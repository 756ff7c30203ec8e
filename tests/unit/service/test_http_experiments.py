"""Experiments over HTTP: list, show, change, steer, delete, and what they produced."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.experiment import State, submission_id
from service.ports import MetricPoint
from tests.harness.http_app import HttpApp, assert_problem, http_app, pointers, pretrain_body
from trainer.context import trial_key

pytestmark = pytest.mark.anyio


async def names(service: HttpApp, query: str) -> list[str]:
    answer = await service.http.get(f"/experiments?{query}")
    assert answer.status_code == 200, answer.text
    return [item["name"] for item in answer.json()["items"]]


async def test_pages_hold_every_experiment_once_newest_first(service: HttpApp) -> None:
    created = [(await service.submit())["id"] for _ in range(5)]
    seen, token = [], ""
    while True:
        page = (await service.http.get(f"/experiments?page_size=2&page_token={token}")).json()
        seen += [item["id"] for item in page["items"]]
        token = page["next_page_token"]
        if not token:
            break

    assert seen == created[::-1]


async def test_every_list_has_pages_and_the_default_is_fifty(service: HttpApp) -> None:
    await asyncio.gather(*(service.submit() for _ in range(51)))
    first = (await service.http.get("/experiments")).json()
    assert (len(first["items"]), bool(first["next_page_token"])) == (50, True)
    rest = (await service.http.get(f"/experiments?page_token={first['next_page_token']}")).json()
    assert (len(rest["items"]), rest["next_page_token"]) == (1, "")

    for path in ("/studies", "/datasets"):
        names, token = [], ""
        while True:
            page = (await service.http.get(f"{path}?page_size=1&page_token={token}")).json()
            assert len(page["items"]) == 1
            names.append(page["items"][0]["name"])
            token = page["next_page_token"]
            if not token:
                break
        assert names == [item["name"] for item in (await service.http.get(path)).json()["items"]]
        assert len(names) > 1
    foreign = (await service.http.get("/studies?page_size=1")).json()["next_page_token"]
    assert_problem(await service.http.get(f"/datasets?page_size=1&page_token={foreign}"), 400, "page_token_invalid")


async def test_filters_are_conjunctive(service: HttpApp) -> None:
    await service.submit({**pretrain_body(), "name": "a", "labels": {"team": "vision", "x": "1"}})
    await service.submit({**pretrain_body(), "name": "b", "labels": {"team": "vision"}, "priority": 5})

    assert await names(service, "label=team:vision&order_by=name") == ["a", "b"]
    assert await names(service, "label=team:vision&label=x:1") == ["a"]
    assert await names(service, "order_by=-priority") == ["b", "a"]
    assert await names(service, "name=b&kind=pretrain&state=queued") == ["b"]
    assert await names(service, "name=b&state=running&state=failed") == []
    assert await names(service, "name=%27%20OR%201%3D1%20--") == []


@pytest.mark.parametrize(
    "query", ["order_by=name;drop table", "state=nope", "page_size=0", "page_size=1001", "label=nocolon", "kind='x'"]
)
async def test_a_malformed_filter_is_refused(service: HttpApp, query: str) -> None:
    assert_problem(await service.http.get(f"/experiments?{query}"), 422)


async def test_a_tampered_or_foreign_page_token_is_refused(service: HttpApp) -> None:
    for _ in range(3):
        await service.submit()
    token = (await service.http.get("/experiments?page_size=1")).json()["next_page_token"]
    tampered = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")

    assert_problem(await service.http.get(f"/experiments?page_token={tampered}"), 400, "page_token_invalid")
    assert_problem(await service.http.get(f"/experiments?name=x&page_token={token}"), 400, "page_token_invalid")
    assert_problem(await service.http.get("/experiments?page_token=%00"), 400, "page_token_invalid")


async def test_a_change_needs_the_etag_of_the_version_it_changes(service: HttpApp) -> None:
    created = await service.submit()
    url, change = f"/experiments/{created['id']}", {"labels": {"a": "b"}, "priority": 7}
    etag = (await service.http.get(url)).headers["etag"]

    assert_problem(await service.http.patch(url, json=change), 428)
    assert_problem(await service.http.patch(url, json=change, headers={"If-Match": "1"}), 400)
    assert_problem(await service.http.patch(url, json=change, headers={"If-Match": '"99"'}), 412)
    assert_problem(await service.http.patch(url, json=change, headers={"If-Match": f"W/{etag}"}), 412)
    changed = await service.http.patch(url, json=change, headers={"If-Match": f'"0", {etag}'})
    assert changed.status_code == 200, changed.text
    assert (changed.json()["labels"], changed.json()["priority"]) == ({"a": "b"}, 7)
    assert changed.headers["etag"] != etag
    assert_problem(await service.http.patch(url, json=change, headers={"If-Match": etag}), 412)
    again = await service.http.patch(url, json={"priority": -3}, headers={"If-Match": "*"})
    assert (again.json()["labels"], again.json()["priority"]) == ({"a": "b"}, -3)


async def test_a_change_names_fields_that_may_change(service: HttpApp) -> None:
    created = await service.submit()
    answer = await service.http.patch(
        f"/experiments/{created['id']}", json={"state": "failed", "priority": 1.5}, headers={"If-Match": "*"}
    )

    assert_problem(answer, 422)
    assert sorted(pointers(answer)) == ["/priority", "/state"]


async def test_progress_does_not_change_the_etag(service: HttpApp) -> None:
    created = await service.submit()
    run = await service.run(created["id"], num_steps=1)
    url = f"/experiments/{created['id']}"
    before = await service.http.get(url)
    service.log_points(run, "loss", {2: 5.0})
    after = await service.http.get(url)

    assert before.headers["etag"] == after.headers["etag"]
    assert [answer.json()["progress"]["step"] for answer in (before, after)] == [1, 2]


async def test_verbs_move_and_may_be_repeated(service: HttpApp) -> None:
    url = f"/experiments/{(await service.submit())['id']}"

    for verb, state in [("pause", "paused"), ("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")]:
        answer = await service.http.post(f"{url}/{verb}")
        assert (answer.status_code, answer.json()["state"]) == (200, state)
    assert (await service.http.post(f"{url}/cancel")).status_code == 200


async def test_an_illegal_verb_says_what_is_allowed(service: HttpApp) -> None:
    url = f"/experiments/{(await service.submit())['id']}"
    await service.http.post(f"{url}/cancel")

    answer = await service.http.post(f"{url}/pause")

    assert_problem(answer, 409, "illegal_transition")
    assert (answer.json()["state"], answer.json()["allowed"]) == ("cancelled", [])


async def test_an_active_experiment_is_deleted_by_force_only(service: HttpApp) -> None:
    queued = f"/experiments/{(await service.submit())['id']}"

    assert_problem(await service.http.delete(queued), 409, "experiment_active")
    assert (await service.http.delete(f"{queued}?force=true")).status_code == 204
    assert_problem(await service.http.get(queued), 404)


async def test_a_running_experiment_is_deleted_once_it_has_ended(service: HttpApp) -> None:
    created = await service.submit()
    await service.run(created["id"])

    answer = await service.http.delete(f"/experiments/{created['id']}?force=true")

    assert answer.status_code == 202
    shown = (await service.http.get(f"/experiments/{created['id']}")).json()
    assert shown["state"] == "cancelling"
    assert [condition["type"] for condition in shown["conditions"]] == ["deletion_requested"]
    await service.app.state.deletions.close()
    await service.move(created["id"], State.CANCELLED)
    await service.app.state.deletions.take_up()  # by the next process, after its end
    while (await service.http.get(f"/experiments/{created['id']}")).status_code != 404:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)
    while service.blobs.list(f"experiments/{created['id']}/"):  # noqa: ASYNC110 - likewise
        await asyncio.sleep(0.01)


async def test_a_deletion_that_is_asked_for_again_takes_no_place_of_a_stream_and_waits_once(
    service: HttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = await service.submit()
    await service.run(created["id"])
    looks = []
    delete = service.store.delete

    async def counted(experiment_id: str) -> None:
        looks.append(experiment_id)
        await delete(experiment_id)

    monkeypatch.setattr(service.store, "delete", counted)
    before = asyncio.all_tasks()
    for _ in range(20):
        assert (await service.http.delete(f"/experiments/{created['id']}?force=true")).status_code == 202
    await asyncio.sleep(0)

    assert len(asyncio.all_tasks() - before) == 1
    assert service.app.state.services.feed.num_streams == 0
    await service.move(created["id"], State.CANCELLED)
    while (await service.http.get(f"/experiments/{created['id']}")).status_code != 404:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)
    assert len(looks) < 20


async def test_a_running_experiment_shows_its_progress_and_links(
    service: HttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = await service.submit()
    run = await service.run(created["id"], num_steps=3)
    service.log_points(run, "images_per_second", {3: 64.0})
    monkeypatch.setattr(service.tracking, "metrics", None)  # whole curves, which a look must not cost

    shown = (await service.http.get(f"/experiments/{created['id']}")).json()

    progress = shown["progress"]
    assert (progress["step"], progress["images_per_second"], progress["trials_done"]) == (3, 64.0, 0)
    assert progress["eta_s"] == (progress["steps"] - 3) * 32 / 64.0
    assert run.run_id in shown["links"]["mlflow"]
    assert shown["attempt"] == 1


@pytest.mark.parametrize(
    ("ui", "page"), [({}, "http://head:8265"), ({"ray_ui_url": "https://ray.lab.example/"}, "https://ray.lab.example")]
)
async def test_the_job_s_page_is_where_people_reach_ray(
    tmp_path: Path, migrated_database: Path, datasets_dir: Path, ui: dict[str, str], page: str
) -> None:
    settings = {"ray_address": "http://secret@head:8265", **ui}
    async with http_app(tmp_path, database=migrated_database, datasets=datasets_dir, **settings) as service:
        created = await service.submit()
        await service.run(created["id"])

        shown = (await service.http.get(f"/experiments/{created['id']}")).json()

        assert shown["links"]["ray_dashboard"] == f"{page}/#/jobs/{submission_id(created['id'], 1)}"


async def test_a_succeeded_experiment_shows_its_best_and_offers_its_encoder(service: HttpApp) -> None:
    created = await service.submit()
    url = f"/experiments/{created['id']}"
    assert_problem(await service.http.get(f"{url}/encoder"), 409, "encoder_not_ready")
    await service.run(created["id"])
    await service.succeed(created["id"], bundle=b"zip bytes")

    shown = (await service.http.get(url)).json()
    encoder = await service.http.get(shown["links"]["encoder"])

    assert shown["best"] == {"trial": "t0000", "metric": "knn_accuracy", "value": 0.64}
    assert encoder.content == b"zip bytes"
    digest = base64.b64encode(hashlib.sha256(b"zip bytes").digest()).decode()
    assert encoder.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert encoder.headers["content-type"] == "application/zip"
    listed = (await service.http.get("/encoders")).json()["items"]
    assert [(item["experiment_id"], item["value"]) for item in listed] == [(created["id"], 0.64)]


async def test_the_encoder_is_the_one_that_the_trials_marker_names(service: HttpApp) -> None:
    created = await service.submit()
    await service.run(created["id"])
    for name, data in (
        ("encoder.zip", b"early"),
        ("encoder-00000002.zip", b"named"),
        ("encoder-00000003.zip", b"late"),
    ):
        service.blobs.write(trial_key(created["id"], "t0000", name), data)
    bundle = trial_key(created["id"], "t0000", "encoder-00000002.zip")
    service.blobs.write(trial_key(created["id"], "t0000", "complete.json"), json.dumps({"bundle": bundle}).encode())
    service.write(created["id"], "complete.json", {"state": "succeeded", "attempt": 1})
    await service.move(created["id"], State.SUCCEEDED)

    assert (await service.http.get(f"/experiments/{created['id']}/encoder")).content == b"named"


async def test_mlflows_silence_hides_numbers_not_experiments(service: HttpApp) -> None:
    created = await service.submit()
    await service.run(created["id"])
    service.tracking.is_down = True
    url = f"/experiments/{created['id']}"

    shown = await service.http.get(url)

    assert shown.status_code == 200
    assert shown.json()["progress"]["step"] is None
    assert [condition["type"] for condition in shown.json()["conditions"]] == ["tracking_unavailable"]
    assert (await service.http.get("/experiments")).status_code == 200
    assert_problem(await service.http.get(f"{url}/metrics"), 503, "tracking_unavailable")


async def test_metrics_are_exact_and_in_order(service: HttpApp) -> None:
    created = await service.submit()
    url = f"/experiments/{created['id']}/metrics"
    assert (await service.http.get(url)).json() == {"trial": None, "series": {}}
    await service.run(created["id"], num_steps=7)

    answer = (await service.http.get(f"{url}?keys=loss,nope")).json()

    assert answer["trial"] == "t0000"
    assert [(point["step"], point["value"]) for point in answer["series"]["loss"]] == [
        (step, 6.0 / step) for step in range(1, 8)
    ]
    assert answer["series"]["nope"] == []
    assert set((await service.http.get(url)).json()["series"]) == {"loss"}
    thinned = (await service.http.get(f"{url}?keys=loss&max_points=3")).json()["series"]["loss"]
    assert [point["step"] for point in thinned] == [1, 4, 7]
    assert_problem(await service.http.get(f"{url}?trial=t9999"), 404, "trial_not_found")
    assert_problem(await service.http.get(f"{url}?max_points=1"), 422)


class WatchedCurve(Sequence[MetricPoint]):
    """A curve that notes which threads read it, and the most points that one reading took."""

    def __init__(self, num_points: int) -> None:
        at = datetime(2030, 1, 1, tzinfo=UTC)
        self._points = [MetricPoint(step=step, value=1 / (step + 1), at=at) for step in range(num_points)]
        self.threads: set[int] = set()
        self.most_at_once = 0

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, index: Any) -> Any:
        found = self._points[index]
        self.threads.add(threading.get_ident())
        self.most_at_once = max(self.most_at_once, len(found) if isinstance(found, list) else 1)
        return found

    def __iter__(self) -> Iterator[MetricPoint]:
        return iter(self[:])


async def test_long_curves_hold_up_nobody_else(service: HttpApp, monkeypatch: pytest.MonkeyPatch) -> None:
    created = await service.submit()
    await service.run(created["id"])
    curve = WatchedCurve(30_000)

    async def metrics(_run: str, _keys: Sequence[str]) -> Mapping[str, Sequence[MetricPoint]]:
        return {"loss": curve}

    monkeypatch.setattr(service.tracking, "metrics", metrics)
    answer = await service.http.get(f"/experiments/{created['id']}/metrics")

    assert [point["step"] for point in answer.json()["series"]["loss"]] == list(range(30_000))
    assert threading.get_ident() not in curve.threads  # that of the event loop
    assert 1 < curve.most_at_once <= 5_000  # between two pieces the loop has its turn


async def test_a_large_encoder_holds_up_nobody_else(service: HttpApp, monkeypatch: pytest.MonkeyPatch) -> None:
    created = await service.submit()
    await service.run(created["id"])
    bundle = os.urandom(1_000_000)
    await service.succeed(created["id"], bundle=bundle)
    sha256, threads, parts = hashlib.sha256, [], []

    def noting_where(data: bytes = b"") -> Any:
        if data == bundle:
            threads.append(threading.get_ident())
        return sha256(data)

    async def noting_parts(scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            parts.append(len(message.get("body", b"")))
            await send(message)

        await service.app(scope, receive, sent)

    monkeypatch.setattr(hashlib, "sha256", noting_where)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(noting_parts), base_url=service.http.base_url) as http:
        answer = await http.get(f"/experiments/{created['id']}/encoder")

    assert answer.content == bundle
    assert answer.headers["content-length"] == str(len(bundle))
    assert threads  # it was hashed
    assert threading.get_ident() not in threads
    assert max(parts) <= 2**17


async def test_trials_carry_flat_params_and_last_values(service: HttpApp) -> None:
    created = await service.submit()
    url = f"/experiments/{created['id']}/trials"
    assert (await service.http.get(url)).json() == {"items": [], "next_page_token": ""}
    run = await service.run(created["id"], num_steps=2)

    trial = (await service.http.get(url)).json()["items"][0]

    assert (trial["id"], trial["state"], trial["mlflow_run_id"]) == ("t0000", "running", run.run_id)
    assert trial["metrics"] == {"loss": 3.0}
    assert (await service.http.get(f"{url}/t0000")).json() == trial
    assert_problem(await service.http.get(f"{url}/nope"), 404)


async def test_a_trial_whose_driver_died_does_not_run_for_ever(service: HttpApp) -> None:
    created = await service.submit()
    await service.run(created["id"])
    await service.move(created["id"], State.FAILED)

    trials = (await service.http.get(f"/experiments/{created['id']}/trials")).json()["items"]

    assert [trial["state"] for trial in trials] == ["failed"]


async def test_artifacts_are_attachments_that_no_browser_runs(service: HttpApp) -> None:
    created = await service.submit()
    run = await service.run(created["id"])
    run.artifacts = {"plots/loss.html": b"<script>alert(1)</script>", "spec.json": b"{}"}
    url = f"/experiments/{created['id']}/artifacts"

    listed = (await service.http.get(url)).json()["items"]
    page = await service.http.get(f"{url}/plots/loss.html")

    assert {item["path"]: item["is_dir"] for item in listed} == {"plots": True, "spec.json": False}
    assert page.content == b"<script>alert(1)</script>"
    assert page.headers["content-disposition"].startswith("attachment")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in page.headers["content-security-policy"]
    assert_problem(await service.http.get(f"{url}/nope.txt"), 404, "artifact_not_found")


@pytest.mark.parametrize(
    "path",
    [
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "%252e%252e/%252e%252e/etc/passwd",
        "..%5c..%5cetc",
        "C:%2fwindows",
        "%2fetc%2fpasswd",
        "a%00b",
        "%23/../x",
        "%3fx=/../",
        "file:%2f%2f%2fetc/passwd",
        "../../etc/passwd",
        "%25252525252e%25252525252e/x",
    ],
)
async def test_no_path_leaves_the_artifact_root(service: HttpApp, path: str) -> None:
    created = await service.submit()
    await service.run(created["id"])
    url = httpx2.URL(f"http://127.0.0.1:8000/experiments/{created['id']}/artifacts/{path}")

    answer = await service.http.get(url)

    assert answer.status_code in (400, 404)
    assert_problem(answer, answer.status_code)
    folder = await service.http.get(f"/experiments/{created['id']}/artifacts?path={path}")
    assert folder.status_code in (400, 404) or folder.json()["items"] == []


async def test_logs_come_from_the_cluster_and_then_from_storage(service: HttpApp) -> None:
    created = await service.submit()
    await service.run(created["id"])
    url = f"/experiments/{created['id']}/logs"
    service.job(created["id"]).logs = "one\ntwo\nthree\n"
    service.blobs.write(f"experiments/{created['id']}/attempts/1/driver.log", b"kept\n")

    assert (await service.http.get(f"{url}?tail=2")).json() == {"attempt": 1, "lines": ["two", "three"]}
    service.cluster.is_down = True
    assert (await service.http.get(url)).json() == {"attempt": 1, "lines": ["kept"]}
    assert_problem(await service.http.get(f"{url}?attempt=2"), 404)


async def test_the_timeline_names_each_part_of_each_attempt(service: HttpApp) -> None:
    created = await service.submit()
    await service.run(created["id"])
    stored = await service.store.events(after=0, experiment_id=created["id"])
    began = stored[-1].at
    marks = [("train", 1.0), ("first_step", 2.5), ("evaluate", 10.0), ("export", 11.0)]
    at = [{"stage": stage, "at": (began + timedelta(seconds=s)).isoformat()} for stage, s in marks]
    service.write(created["id"], "attempts/1/timeline.json", {"trial": "t0000", "marks": at})

    attempts = (await service.http.get(f"/experiments/{created['id']}/timeline")).json()["items"]

    phases = {phase["name"]: phase["duration_s"] for phase in attempts[0]["phases"]}
    assert list(phases) == ["queue", "start", "first_step", "train", "evaluate", "export"]
    assert (phases["first_step"], phases["train"], phases["evaluate"], phases["export"]) == (1.5, 7.5, 1.0, None)


async def test_reports_come_in_three_formats(service: HttpApp) -> None:
    created = await service.submit()
    await service.run(created["id"])
    await service.succeed(created["id"])
    url = f"/experiments/{created['id']}/report"

    assert (await service.http.get(f"{url}?format=json")).json()["metrics"]["loss"] == 2.0
    assert "| `loss` | 2.0000 |" in (await service.http.get(f"{url}?format=md")).text
    assert (await service.http.get(f"{url}?format=html")).headers["content-type"].startswith("text/html")
    service.blobs.write(f"experiments/{created['id']}/report.md", b"# written by the run")
    assert (await service.http.get(f"{url}?format=md")).text == "# written by the run"
    assert_problem(await service.http.get(f"{url}?format=exe"), 422)


async def test_a_report_says_how_sure_it_is_of_its_verdict(service: HttpApp) -> None:
    created = await service.submit()
    await service.run(created["id"])
    metrics = {"knn_accuracy": 0.6, "raw_pixel_knn_accuracy": 0.59, "random_encoder_knn_accuracy": 0.5}
    row = {"id": "t0000", "state": "succeeded", "metrics": metrics}
    service.write(created["id"], "trials.json", {"trials": [row]})
    paired_p = {"raw_pixel_knn_accuracy": 0.4, "random_encoder_knn_accuracy": 0.001}
    url = f"/experiments/{created['id']}/report?format=json"

    before = (await service.http.get(url)).json()
    assert before["verdict"].startswith("The encoder knows more"), "no pairs were counted, as in an earlier version"
    service.write(created["id"], "trials/t0000/complete.json", {"state": "succeeded", "paired_p": paired_p})
    report = (await service.http.get(url)).json()
    assert report["paired_p"] == paired_p
    assert report["knn_gain_over_random_encoder"] == pytest.approx(0.1)
    assert report["verdict"].startswith("Whether the encoder beats raw pixels can't be told")


async def test_comparison_shows_where_specs_differ(service: HttpApp) -> None:
    one = (await service.submit())["id"]
    two = (await service.submit(pretrain_body(loss={"temperature": 0.1})))["id"]

    answer = (await service.http.get(f"/compare?ids={one},{two}")).json()

    assert [item["id"] for item in answer["items"]] == [one, two]
    assert answer["differences"] == {"loss.temperature": {one: 0.5, two: 0.1}}
    assert_problem(await service.http.get(f"/compare?ids={one},exp_nope"), 404)
    assert_problem(await service.http.get("/compare?ids=,"), 422)


async def test_catalogues_answer_with_names_and_descriptions(service: HttpApp) -> None:
    datasets = (await service.http.get("/datasets")).json()["items"]

    assert {"openmoji", "shapes"} <= {item["name"] for item in datasets}
    assert all(item["description"] for item in datasets)
    assert (await service.http.get("/datasets/shapes")).json()["num_train"] == 240
    assert_problem(await service.http.get("/datasets/nope"), 404)
    studies = (await service.http.get("/studies")).json()["items"]
    assert {"temperature", "batch-size-epochs"} <= {item["name"] for item in studies}
    assert all(item["description"] for item in studies)
    shown = (await service.http.get("/studies/temperature")).json()
    assert shown == next(item for item in studies if item["name"] == "temperature")
    assert_problem(await service.http.get("/studies/nope"), 404)
