"""What is remembered of data sets: read once, and read again when they change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.dataset_facts import DatasetFacts
from service.settings import Settings
from tests.conftest import shapes
from trainer.errors import DataError


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
