"""What is remembered of data sets: read once, and read again when they change."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.dataset_facts import DatasetFacts
from service.settings import Settings
from tests.conftest import shapes
from tests.harness.http_app import http_app, pretrain_body
from trainer.data import prepare as decoding
from trainer.errors import DataError

prepare = decoding.prepare


def store(folder: Path, *, num_train: int) -> None:
    np.savez(folder / "mine.npz", **shapes(np.random.default_rng(1), num_train=num_train, num_test=8))


def num_images(facts: DatasetFacts) -> int:
    return facts.num_images("mine", facts.version("mine"), image_size=16, validation_ratio=0.25)


@pytest.fixture
def facts(tmp_path: Path) -> DatasetFacts:
    (tmp_path / "datasets").mkdir()
    return DatasetFacts(Settings(home=tmp_path, datasets=tmp_path / "datasets"))


def test_a_data_set_that_changed_is_read_again(facts: DatasetFacts, tmp_path: Path) -> None:
    store(tmp_path / "datasets", num_train=80)
    assert num_images(facts) == 60
    store(tmp_path / "datasets", num_train=160)
    assert facts.describe("mine", facts.version("mine")).num_train == 160
    assert num_images(facts) == 120


def test_one_that_did_not_change_is_read_once(facts: DatasetFacts, tmp_path: Path) -> None:
    store(tmp_path / "datasets", num_train=80)
    assert facts.describe("mine", facts.version("mine")) is facts.describe("mine", facts.version("mine"))


@pytest.mark.parametrize(("cpus", "is_kept"), [(None, False), (4, True)])
def test_what_was_decoded_to_be_counted_is_kept_where_it_is_trained_on(
    tmp_path: Path, cpus: int | None, *, is_kept: bool
) -> None:
    """Else anyone who may ask for a plan could fill the disk of a service, one image size after the other."""
    (tmp_path / "datasets").mkdir()
    store(tmp_path / "datasets", num_train=80)
    settings = Settings(home=tmp_path, datasets=tmp_path / "datasets", cpus=cpus)
    assert num_images(DatasetFacts(settings)) == 60
    assert bool([*settings.cache_dir.glob("*")]) == is_kept


def test_one_that_was_of_no_use_is_looked_at_again(facts: DatasetFacts, tmp_path: Path) -> None:
    file = tmp_path / "datasets" / "mine.npz"
    file.write_bytes(b"no archive")
    for _ in range(2):
        with pytest.raises(DataError):
            num_images(facts)
    store(tmp_path / "datasets", num_train=80)
    assert num_images(facts) == 60


def test_one_that_is_gone_is_unknown(facts: DatasetFacts, tmp_path: Path) -> None:
    store(tmp_path / "datasets", num_train=80)
    num_images(facts)
    (tmp_path / "datasets" / "mine.npz").unlink()
    with pytest.raises(DataError, match="there is no data set"):
        num_images(facts)


class SlowDecoder:
    """Decodes `mine` when it is let, and all else at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_go_on = threading.Event()
        self.num_asked = 0
        monkeypatch.setattr(decoding, "prepare", self)

    def __call__(self, name: str, **arguments: Any) -> Any:
        if name == "mine":
            self.num_asked += 1
            self.may_go_on.wait(60)
        return prepare(name, **arguments)


@pytest.mark.anyio
async def test_one_that_takes_long_to_decode_is_decoded_once_and_keeps_no_request(
    tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.image_counts.COUNT_S", 0.2)
    decoder, datasets = SlowDecoder(monkeypatch), tmp_path / "datasets"
    datasets.mkdir()
    store(datasets, num_train=83)  # 21 of each class, but 20 of the last
    body = pretrain_body(data={"dataset": "mine", "image_size": 16, "validation_ratio": 0.25})

    async with http_app(tmp_path, database=migrated_database, datasets=datasets, cpus=8) as service:
        began_s = time.monotonic()
        answers = await asyncio.gather(*(service.http.post("/experiments", json=body) for _ in range(10)))
        assert {answer.status_code for answer in answers} == {202}
        digits = pretrain_body(data={"dataset": "digits", "image_size": 8})
        assert (await service.http.post("/experiments", json=digits)).status_code == 202
        assert time.monotonic() - began_s < 10
        assert decoder.num_asked == 1
        decoder.may_go_on.set()
        facts = service.app.state.services.datasets
        exact = prepare("mine", image_size=16, cache_dir=tmp_path, datasets_dir=datasets, validation_ratio=0.25)
        while num_images(facts) != len(exact.pretrain):  # noqa: ASYNC110 - counted in a thread
            await asyncio.sleep(0.01)
        assert len(exact.pretrain) != 83 - round(83 * 0.25), "else the test could not tell"
        assert decoder.num_asked == 1


def test_a_broken_one_that_takes_long_to_decode_is_told_when_it_is_asked_for_again(
    facts: DatasetFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.image_counts.COUNT_S", 0.0)
    broken = threading.Event()

    def fails(*_: object, **__: object) -> Any:
        broken.wait(60)
        raise DataError("mine is broken")

    monkeypatch.setattr(decoding, "prepare", fails)
    store(tmp_path / "datasets", num_train=80)
    assert num_images(facts) == 60
    broken.set()
    with pytest.raises(DataError, match="is broken"):
        all(num_images(facts) == 60 for _ in range(1_000_000))
