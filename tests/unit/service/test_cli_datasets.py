"""`simclr datasets pack` and `verify`: what they print, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner, Result

from service.cli.app import app
from service.settings import Settings
from tests.harness.packed_data import SIDE, write_folder


def simclr(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_packing_says_what_it_made_and_goes_on_with_it(tmp_path: Path) -> None:
    words = ("datasets", "pack", write_folder(tmp_path / "source"), tmp_path / "pets", "--image-size", SIDE)
    alone = ("--num-workers", 1, "--images-per-shard", 4, "--json")
    made = json.loads(simclr(*words, *alone).stdout)
    assert (made["name"], made["num_train"], made["num_test"], made["num_classes"]) == ("pets", 10, 4, 2)
    assert (made["shards_written"], made["shards_kept"]) == (4, 0)
    assert json.loads(simclr(*words, *alone, "--resume").stdout)["shards_kept"] == 4
    assert json.loads(simclr("datasets", "verify", tmp_path / "pets", "--json").stdout)["digest"] == made["digest"]


def test_what_cannot_be_packed_is_refused_with_a_message(tmp_path: Path) -> None:
    result = simclr("datasets", "pack", tmp_path / "nowhere", tmp_path / "pets", "--image-size", SIDE, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stderr)["error"]["code"] == "data_invalid"
    assert "nowhere is not there" in result.stderr


@pytest.mark.parametrize(
    "words",
    [("pack", "s3://bucket/pets", "pets"), ("pack", ".", "s3://bucket/pets"), ("verify", "s3://bucket/pets")],
)
def test_an_address_is_refused_where_a_folder_is_wanted(words: tuple[str, ...]) -> None:
    options = ("--image-size", SIDE) if words[0] == "pack" else ()
    result = simclr("datasets", *words, *options)
    assert result.exit_code == 2
    assert "is an address" in result.stderr
    assert "aws s3 sync" in result.stderr


def test_a_service_does_not_take_an_address_for_a_folder_without_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_DATASETS", "s3://bucket/datasets")
    with pytest.raises(ValidationError, match="is an address"):
        Settings()
