"""POST /experiments: what is taken, and everything that is refused, all of it at once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.edge.examples import PRETRAIN_EXAMPLE, SWEEP_EXAMPLE
from service.experiment import State
from service.ports import Capacity
from tests.harness.http_app import HttpApp, assert_problem, http_app, pointers, pretrain_body

pytestmark = pytest.mark.anyio

RUN_WORDS = (
    *("runtime_env", "env_vars", "pip", "entrypoint", "storage_path", "tracking_uri", "artifact_location"),
    *("callbacks", "import_path", "os.system"),
)


async def test_the_pretrain_example_of_the_contract_is_accepted(service: HttpApp) -> None:
    answer = await service.http.post("/experiments", json=PRETRAIN_EXAMPLE)

    assert answer.status_code == 202, answer.text
    document = answer.json()
    assert answer.headers["location"] == f"/experiments/{document['id']}"
    assert answer.headers["etag"] == '"1"'
    assert document["state"] == "queued"
    assert document["plan"]["negatives_per_anchor"] == 2 * 255
    assert document["progress"]["steps"] == document["plan"]["steps"] > 0
    assert document["spec"]["optim"]["warmup_epochs"] == 10
    assert document["links"]["self"] == answer.headers["location"]


async def test_the_sweep_example_of_the_contract_is_accepted(service: HttpApp) -> None:
    answer = await service.http.post("/experiments", json=SWEEP_EXAMPLE)

    assert answer.status_code == 202, answer.text
    assert answer.json()["plan"]["trials"] == 16


async def test_validate_only_plans_and_stores_nothing(service: HttpApp) -> None:
    answer = await service.http.post("/experiments?validate_only=true", json=pretrain_body())

    assert answer.status_code == 200
    plan = answer.json()["plan"]
    assert plan["images"] == plan["steps"] * 32
    assert plan["steps"] == 2 * plan["steps_per_epoch"]
    assert (await service.http.get("/experiments")).json()["items"] == []


async def test_every_error_is_reported_at_once(service: HttpApp) -> None:
    body = pretrain_body(
        data={"dataset": "no-such-thing"},
        loss={"temperature": -1, "semi_hard": True},
        optim={"warmup_epochs": 50},
        scaling={"num_workers": 3},
        bogus=1,
    )
    body["priority"] = 5000

    answer = await service.http.post("/experiments", json=body)

    assert_problem(answer, 422, "spec_invalid")
    assert set(pointers(answer)) == {
        "/priority",
        "/spec/bogus",
        "/spec/loss/temperature",
        "/spec/loss/semi_hard",
        "/spec/optim/warmup_epochs",
        "/spec/batch_size",
        "/spec/data/dataset",
    }
    by_pointer = {error["pointer"]: error for error in answer.json()["errors"]}
    assert by_pointer["/spec/loss/temperature"]["allowed"] == "number, > 0, <= 1000"
    assert "shapes" in by_pointer["/spec/data/dataset"]["allowed"]
    assert all(error["detail"] for error in by_pointer.values())


async def test_a_judgement_that_rests_on_a_wrong_field_is_left_out(service: HttpApp) -> None:
    """Whether 3 workers divide the batch cannot be said while the batch is no number."""
    body = pretrain_body(batch_size="many", scaling={"num_workers": 3})

    answer = await service.http.post("/experiments", json=body)

    assert pointers(answer) == ["/spec/batch_size"]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"loss": {"temperature": 0}}, "/spec/loss/temperature"),
        ({"batch_size": 1}, "/spec/batch_size"),
        ({"batch_size": 4096}, "/spec/batch_size"),
        ({"batch_size": True}, "/spec/batch_size"),
        ({"batch_size": "32"}, "/spec/batch_size"),
        ({"epochs": 10**9}, "/spec/epochs"),
        ({"epochs": 10, "optim": {"warmup_epochs": 10}}, "/spec/optim/warmup_epochs"),
        ({"scaling": {"num_workers": 10_000}}, "/spec/scaling/num_workers"),
        ({"scaling": {"num_workers": {"min": 1}}}, "/spec/scaling/num_workers/max"),
        ({"scaling": {"gpus_per_worker": 1}}, "/spec/scaling/gpus_per_worker"),
        ({"scaling": {"num_workers": 16, "cpus_per_worker": 2}}, "/spec/scaling/num_workers"),
        ({"scaling": {"num_workers": 2, "placement": "strict_spread"}}, "/spec/scaling/placement"),
        ({"scaling": {"num_workers": 2, "placement": "apart"}}, "/spec/scaling/placement"),
        ({"data": {"dataset": "shapes", "image_size": 100_000}}, "/spec/data/image_size"),
        ({"data": {}}, "/spec/data/dataset"),
        ({"limits": {"max_images": 10}}, "/spec/limits/max_images"),
        ({"views": {"operations": [{"op": "crop_resize", "p": 2}]}}, "/spec/views/operations/0/p"),
        ({"views": {"operations": [{"op": "explode"}]}}, "/spec/views/operations/0"),
        ({"views": {"operations": [{"op": ["crop_resize"]}]}}, "/spec/views/operations/0"),
        ({"views": {"operations": [{"op": {}}]}}, "/spec/views/operations/0"),
        ({"encoder": {"name": "vgg"}}, "/spec/encoder/name"),
    ],
)
async def test_what_cannot_be_computed_is_refused_with_its_place(
    tmp_path: Path, migrated_database: Path, datasets_dir: Path, change: dict[str, Any], pointer: str
) -> None:
    async with http_app(tmp_path, database=migrated_database, datasets=datasets_dir, cpus=8) as service:
        answer = await service.http.post("/experiments", json=pretrain_body(**change))

    assert_problem(answer, 422, "spec_invalid")
    assert pointers(answer) == [pointer]


async def test_a_dataset_is_an_id_and_nothing_else(service: HttpApp) -> None:
    for name in ("http://169.254.169.254/", "../../etc/passwd", "/etc/passwd", "s3://other/x", "file:///etc", "nope"):
        answer = await service.http.post("/experiments", json=pretrain_body(data={"dataset": name}))

        assert_problem(answer, 422)
        assert pointers(answer) == ["/spec/data/dataset"]


async def test_what_runs_a_job_cannot_be_named_in_a_spec(service: HttpApp) -> None:
    for field in RUN_WORDS:
        answer = await service.http.post("/experiments", json=pretrain_body(**{field: "os.system"}))

        assert_problem(answer, 422)
        assert pointers(answer) == [f"/spec/{field}"]


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"\xff\xfe{}", 400),
        (b'{"name": "a", "name": "b"}', 400),
        (b'{"priority": NaN}', 400),
        (b'{"priority": -Infinity}', 400),
        (b'{"priority": 1e309}', 400),
        (b'{"priority": ' + b"9" * 10_000 + b"}", 400),
        (b'{"spec":' * 2_000 + b"1" + b"}" * 2_000, 400),
        (b"[" * 30_000 + b"]" * 30_000, 400),
        (b'{"name": "\\ud800"}', 400),
        (b"[1]", 422),
        (b"{}", 422),
        (b'{"name": "' + b"x" * 70_000 + b'"}', 413),
    ],
    ids=range(14),
)
async def test_a_body_that_is_no_sound_json_is_refused(service: HttpApp, raw: bytes, status: int) -> None:
    answer = await service.http.post("/experiments", content=raw, headers={"Content-Type": "application/json"})

    assert_problem(answer, status)


async def test_a_chunked_body_over_the_limit_is_refused(service: HttpApp) -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b" " * 1024

    answer = await service.http.post("/experiments", content=chunks(), headers={"Content-Type": "application/json"})

    assert_problem(answer, 413, "body_too_large")


@pytest.mark.parametrize(
    ("field", "value", "pointer"),
    [
        ("name", "", "/name"),
        ("name", "x" * 129, "/name"),
        ("name", "a\r\nb", "/name"),
        ("name", "\x1b[31mred", "/name"),
        ("name", "abc\u202edef", "/name"),
        ("labels", {"k": "v" * 256}, "/labels/k"),
        ("labels", {f"k{i}": "v" for i in range(65)}, "/labels"),
        ("labels", {"k": 1}, "/labels/k"),
        ("kind", "train", "/kind"),
    ],
)
async def test_names_and_labels_have_limits(service: HttpApp, field: str, value: Any, pointer: str) -> None:
    answer = await service.http.post("/experiments", json={**pretrain_body(), field: value})

    assert_problem(answer, 422)
    assert pointers(answer) == [pointer]


async def test_markup_in_a_name_is_data(service: HttpApp) -> None:
    created = await service.submit({**pretrain_body(), "name": "<script>=cmd()</script>"})

    assert created["name"] == "<script>=cmd()</script>"
    page = await service.http.get(f"/experiments/{created['id']}/report?format=html")
    assert "<script>" not in page.text
    assert "sandbox" in page.headers["content-security-policy"]


async def test_workers_over_the_operators_limit_are_refused(
    tmp_path: Path, migrated_database: Path, datasets_dir: Path
) -> None:
    async with http_app(tmp_path, database=migrated_database, datasets=datasets_dir, max_workers=2) as service:
        answer = await service.http.post("/experiments", json=pretrain_body(scaling={"num_workers": 4}))

    assert pointers(answer) == ["/spec/scaling/num_workers"]
    assert answer.json()["errors"][0]["allowed"] == "<= 2"


async def test_gpus_are_granted_where_there_are_some(service: HttpApp) -> None:
    service.cluster.total = Capacity(cpus_total=8, cpus_free=8, gpus_total=2, gpus_free=2, nodes=1)

    await service.submit(pretrain_body(scaling={"gpus_per_worker": 1, "num_workers": 2}))


async def test_an_absent_cluster_does_not_stop_a_submission(service: HttpApp) -> None:
    service.cluster.is_down = True

    assert (await service.submit())["state"] == "queued"


async def test_the_same_key_and_body_is_the_same_experiment(service: HttpApp) -> None:
    first = await service.submit(headers={"Idempotency-Key": "k"})
    reordered = dict(reversed(pretrain_body().items()))
    again = await service.http.post("/experiments", json=reordered, headers={"Idempotency-Key": "k"})

    assert again.status_code == 200
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == first["id"]


async def test_the_same_key_with_another_body_is_refused(service: HttpApp) -> None:
    await service.submit(headers={"Idempotency-Key": "k"})
    other = await service.http.post("/experiments", json=pretrain_body(seed=1), headers={"Idempotency-Key": "k"})

    assert_problem(other, 422, "idempotency_conflict")


async def test_fifty_at_once_with_one_key_make_one_experiment(service: HttpApp) -> None:
    posts = [
        service.http.post("/experiments", json=pretrain_body(), headers={"Idempotency-Key": "k"}) for _ in range(50)
    ]
    answers = await asyncio.gather(*posts)

    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [202]
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_keys_of_two_callers_do_not_meet(service: HttpApp) -> None:
    ada, bob = await service.token(owner="ada"), await service.token(owner="bob")
    first = await service.submit(headers={**ada, "Idempotency-Key": "k"})
    second = await service.submit(pretrain_body(seed=3), {**bob, "Idempotency-Key": "k"})

    assert first["id"] != second["id"]


async def test_a_key_belongs_to_its_route_with_the_experiment_that_the_route_names(service: HttpApp) -> None:
    key = {"Idempotency-Key": "k"}
    first, other = await service.submit(headers=key), await service.submit(pretrain_body(seed=1))
    await service.move(first["id"], State.PAUSED)
    service.leave_checkpoint(first["id"])
    asked: dict[str, dict[str, Any]] = {
        "/experiments": pretrain_body(),
        f"/experiments/{first['id']}/clone": {},
        f"/experiments/{other['id']}/clone": {},
        f"/experiments/{first['id']}/continue": {"epochs": 4},
    }

    answers = {url: await service.http.post(url, json=body, headers=key) for url, body in asked.items()}
    again = {url: await service.http.post(url, json=body, headers=key) for url, body in asked.items()}

    assert [answer.status_code for answer in answers.values()] == [200, 202, 202, 202]
    ids = {url: answer.json()["id"] for url, answer in answers.items()}
    assert len(set(ids.values())) == len(asked)
    assert {url: (answer.status_code, answer.json()["id"]) for url, answer in again.items()} == {
        url: (200, id_) for url, id_ in ids.items()
    }
    for url in list(asked)[1:3]:
        refused = await service.http.post(url, json={"name": "other"}, headers=key)
        assert_problem(refused, 422, "idempotency_conflict")


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
async def test_a_malformed_key_is_refused(service: HttpApp, key: str) -> None:
    answer = await service.http.post("/experiments", json=pretrain_body(), headers={"Idempotency-Key": key})

    assert_problem(answer, 400, "idempotency_key_invalid")


async def test_a_clone_replaces_what_is_named(service: HttpApp) -> None:
    parent = await service.submit()
    answer = await service.http.post(
        f"/experiments/{parent['id']}/clone", json={"name": "colder", "overrides": {"loss.temperature": 0.1}}
    )

    assert answer.status_code == 202, answer.text
    child = answer.json()
    assert child["parent"] == {"experiment_id": parent["id"], "relation": "clone"}
    assert (child["name"], child["spec"]["loss"]["temperature"]) == ("colder", 0.1)
    assert child["spec"]["batch_size"] == parent["spec"]["batch_size"]


@pytest.mark.parametrize("overrides", [{"loss.temperature": -1}, {"loss.nope": 1}, {"epochs.x": 1}])
async def test_a_wrong_override_is_refused_at_its_path(service: HttpApp, overrides: dict[str, Any]) -> None:
    parent = await service.submit()
    answer = await service.http.post(f"/experiments/{parent['id']}/clone", json={"overrides": overrides})

    assert_problem(answer, 422)
    assert pointers(answer) == [f"/overrides/{next(iter(overrides))}"]


async def test_a_continuation_links_to_the_checkpoint_it_starts_from(service: HttpApp) -> None:
    parent = await service.submit()
    too_soon = await service.http.post(f"/experiments/{parent['id']}/continue", json={"epochs": 4})
    assert_problem(too_soon, 409, "experiment_active")

    await service.http.post(f"/experiments/{parent['id']}/cancel")
    backwards = await service.http.post(f"/experiments/{parent['id']}/continue", json={"epochs": 2})
    assert pointers(backwards) == ["/epochs"]
    wrong_kind = await service.http.post(f"/experiments/{parent['id']}/continue", json={"max_trials": 8})
    assert pointers(wrong_kind) == ["/epochs"]

    service.leave_checkpoint(parent["id"])
    child = (await service.http.post(f"/experiments/{parent['id']}/continue", json={"epochs": 4})).json()
    assert child["parent"] == {"experiment_id": parent["id"], "relation": "continue", "trial_id": "t0000"}
    assert child["spec"]["epochs"] == 4


async def test_a_refused_value_is_echoed_short(service: HttpApp) -> None:
    answer = await service.http.post("/experiments", json=pretrain_body(precision="s" * 5000))

    assert len(json.dumps(answer.json())) < 2000


def sweep_body(**spec: Any) -> dict[str, Any]:
    base = {"base": pretrain_body()["spec"], "space": {"loss.temperature": {"choice": [0.1, 0.5]}}}
    return {"name": "sweep", "kind": "sweep", "spec": {**base, **spec}}


async def test_a_sweep_of_a_study_is_planned_and_stored(service: HttpApp) -> None:
    created = await service.submit(sweep_body(space={"batch_size": {"choice": [16, 32]}}))

    assert created["plan"]["trials"] == 2
    assert created["plan"]["negatives_per_anchor"] is None
    assert created["progress"]["trials_total"] == 2
    assert_problem(await service.http.get(f"/experiments/{created['id']}/metrics"), 422)
    assert_problem(await service.http.get(f"/experiments/{created['id']}/report"), 409, "report_not_ready")
    assert_problem(await service.http.get(f"/experiments/{created['id']}/encoder"), 409, "encoder_not_ready")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"space": {"loss.temperature": {"choice": []}}}, "/spec/space/loss.temperature/choice"),
        ({"space": {"no.such.path": {"choice": [1]}}}, "/spec/space/no.such.path"),
        ({"space": {"batch_size": {"choice": [16, "many"]}}}, "/spec/space/batch_size/choice/1"),
        ({"space": {"data.dataset": {"choice": ["shapes", "nope"]}}}, "/spec/space/data.dataset/choice/1"),
        ({"space": {"seed": {"randint": [0, 10]}, "loss.temperature": {"choice": list(range(1, 40))}}}, None),
        ({"limits": {"max_trials": 1}}, None),
        ({"limits": {"max_images": 1}}, "/spec/limits/max_images"),
        ({"study": "nope"}, "/spec/study"),
        ({"base": {"data": {"dataset": "nope"}}}, "/spec/base/data/dataset"),
        ({"base": {"data": {"dataset": "shapes"}, "batch_size": 32, "epochs": 0}}, "/spec/base/epochs"),
        ({"base": {"data": {"dataset": "nope"}, "epochs": 0}}, None),
        ({"scheduler": "pbt"}, "/spec/scheduler"),
        ({"metric": "acuracy"}, "/spec/metric"),
        ({"metric": "linear_accuracy", "scheduler": "median"}, "/spec/metric"),
        ({"metric": "linear_accuracy_z"}, "/spec/metric"),
        ({"space": {"loss": {"choice": [{}]}, "loss.margin": {"choice": [1.0]}}}, "/spec/space/loss.margin"),
        (
            {"space": {"epochs": {"choice": [9, 2]}, "optim.warmup_epochs": {"choice": [1, 4]}}},
            "/spec/space/optim.warmup_epochs/choice/1",
        ),
        ({"space": {"batch_size": {"choice": [16, 4096]}}}, "/spec/space/batch_size/choice/1"),
        ({"space": {"epochs": {"choice": list(range(1, 40))}}}, "/spec/space"),
    ],
)
async def test_what_is_wrong_with_a_sweep_is_named_at_its_place(
    service: HttpApp, change: dict[str, Any], pointer: str | None
) -> None:
    answer = await service.http.post("/experiments", json=sweep_body(**change))

    assert_problem(answer, 422, "spec_invalid")
    assert all(place.startswith("/spec/") for place in pointers(answer))
    if pointer is not None:
        assert pointers(answer) == [pointer]


async def test_a_study_that_needs_labels_is_refused_for_images_that_have_none(
    tmp_path: Path, migrated_database: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "bare.npz", train_images=images)
    async with http_app(tmp_path, database=migrated_database, datasets=tmp_path) as service:
        asked = {"base": {"data": {"dataset": "bare"}, "batch_size": 32}}
        study = await service.http.post("/experiments", json=sweep_body(**asked, study="temperature", space=None))
        assert {"/spec/study"} <= set(pointers(study))
        assert "bare" in study.json()["detail"]
        by_labels = await service.http.post("/experiments", json=sweep_body(**asked))
        assert pointers(by_labels) == ["/spec/metric"]
        by_none = await service.http.post("/experiments", json=sweep_body(**asked, metric="loss", mode="min"))
        assert by_none.status_code == 202, by_none.text


async def test_a_sweeps_base_is_judged_here_even_where_its_fields_are_wrong(service: HttpApp) -> None:
    base = {"data": {"dataset": "nope"}, "epochs": 0, "scaling": {"gpus_per_worker": 1}}

    answer = await service.http.post("/experiments", json=sweep_body(base=base))

    assert set(pointers(answer)) == {
        "/spec/base/epochs",
        "/spec/base/data/dataset",
        "/spec/base/scaling/gpus_per_worker",
    }


async def test_a_sweep_is_continued_to_more_trials(service: HttpApp) -> None:
    parent = await service.submit(sweep_body(search="random", num_samples=4))
    await service.http.post(f"/experiments/{parent['id']}/cancel")
    url = f"/experiments/{parent['id']}/continue"

    assert pointers(await service.http.post(url, json={"epochs": 9})) == ["/max_trials"]
    assert pointers(await service.http.post(url, json={"max_trials": 4})) == ["/max_trials"]
    child = (await service.http.post(url, json={"max_trials": 8})).json()

    assert child["plan"]["trials"] == 8
    assert child["parent"]["relation"] == "continue"
