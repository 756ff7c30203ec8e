"""A service whose data sets are in a bucket: what it lists, accepts, remembers, and says when the bucket is away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.dataset_facts import DatasetFacts
from service.errors import DatasetsUnavailable
from service.settings import Settings
from tests.conftest import shapes
from tests.harness.http_app import assert_problem, http_app, pointers, pretrain_body
from tests.harness.object_store import ObjectStore
from trainer.data.packing import pack, source_at

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """Yield a store with one data set, `sets/blots`."""
    folder = tmp_path_factory.mktemp("source")
    np.savez(folder / "blots.npz", **shapes(np.random.default_rng(3), num_train=80, num_test=8))
    with ObjectStore() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        pack(source_at(folder / "blots.npz"), store.uri("sets/blots"), image_size=16, images_per_shard=30)
        yield store


async def test_a_data_set_of_the_bucket_is_listed_and_accepted(
    tmp_path: Path, migrated_database: Path, object_store: ObjectStore
) -> None:
    sets = object_store.uri("sets")
    async with http_app(tmp_path, database=migrated_database, datasets=sets, cpus=8) as service:
        listed = {info["name"]: info for info in (await service.http.get("/datasets")).json()["items"]}
        assert (listed["blots"]["num_train"], listed["blots"]["native_image_size"]) == (80, 16)
        assert (await service.http.get("/datasets/blots")).json() == listed["blots"]
        assert "digits" in listed

        accepted = await service.submit(pretrain_body(data={"dataset": "blots", "image_size": 16}))
        record = await service.store.get(accepted["id"])
        assert record.spec["data"]["dataset"] == "blots"

        unknown = await service.http.post("/experiments", json=pretrain_body(data={"dataset": "blot"}))
        assert_problem(unknown, 422, "spec_invalid")
        assert pointers(unknown) == ["/spec/data/dataset"]
        assert "blots" in unknown.json()["errors"][0]["allowed"]


async def test_a_bucket_that_is_away_is_an_outage_for_what_asks_it(
    tmp_path: Path, migrated_database: Path, object_store: ObjectStore, capfd: pytest.CaptureFixture[str]
) -> None:
    sets = object_store.uri("sets")
    async with http_app(tmp_path, database=migrated_database, datasets=sets, cpus=8) as service:
        with object_store.link.down():
            assert_problem(await service.http.get("/datasets"), 503, "datasets_unavailable")
            answer = await service.http.post("/experiments", json=pretrain_body(data={"dataset": "blots"}))
            assert_problem(answer, 503, "datasets_unavailable")
            assert "SIMCLR_DATASETS" in answer.json()["detail"]
            assert sets not in answer.text
            assert f"the data sets at {sets} cannot be reached" in capfd.readouterr().out
            await service.submit(pretrain_body(data={"dataset": "digits", "image_size": 8}))
        assert (await service.http.get("/datasets")).status_code == 200


def test_what_a_manifest_says_is_remembered_and_images_are_counted(tmp_path: Path, object_store: ObjectStore) -> None:
    facts = DatasetFacts(Settings(home=tmp_path, datasets=object_store.uri("sets")))
    version = facts.version("blots")
    before = len(object_store.link.requests)
    assert facts.describe("blots", version) is facts.describe("blots", version)
    first = len(object_store.link.requests)
    assert facts.num_images("blots", version, image_size=16, validation_ratio=0.25) == 60
    counted = len(object_store.link.requests)
    assert facts.num_images("blots", version, image_size=16, validation_ratio=0.25) == 60
    assert len(object_store.link.requests) == counted
    assert first - before == 2, "a listing and a manifest"
    with object_store.link.down():
        assert facts.describe("blots", version).num_train == 80
        with pytest.raises(DatasetsUnavailable, match="cannot be reached"):
            facts.version("blots")


def test_a_large_data_set_is_not_fetched_to_be_counted(
    tmp_path: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.dataset_facts.MAX_COUNTED_BYTES", 80 * 16 * 16 * 3 - 1)
    facts = DatasetFacts(Settings(home=tmp_path, datasets=object_store.uri("sets")))
    assert facts.num_images("blots", facts.version("blots"), image_size=8, validation_ratio=0.25) == 60
    assert not (tmp_path / "cache").exists()
