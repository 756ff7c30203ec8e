"""`simclr datasets pack` and `verify`: what they print, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner, Result

from service.cli.app import app
from service.settings import Settings
from tests.harness.object_store import ObjectStore
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


def test_a_bucket_is_packed_into_like_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_folder(tmp_path / "source")
    options = ("--image-size", SIDE, "--num-workers", 1, "--images-per-shard", 4, "--json")
    in_folder = json.loads(simclr("datasets", "pack", source, tmp_path / "pets", *options).stdout)
    with ObjectStore() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        target = store.uri(f"{tmp_path.name}/pets")
        made = json.loads(simclr("datasets", "pack", source, target, *options).stdout)
        assert made == in_folder | {"folder": target}
        again = simclr("datasets", "pack", source, target, *options)
        assert (again.exit_code, again.stdout) == (2, "")
        assert f"{target} is a packed data set; --resume mends it" in again.stderr
        assert json.loads(simclr("datasets", "verify", target, "--json").stdout)["digest"] == made["digest"]
        with store.link.down():
            away = simclr("datasets", "verify", target)
        assert away.exit_code == 3
        assert f"the data sets at {target} cannot be reached" in away.stderr


@pytest.mark.parametrize(
    "words",
    [("pack", "s3://bucket/pets", "pets"), ("pack", ".", "gs://bucket/pets"), ("verify", "https://host/pets")],
)
def test_an_address_that_files_cannot_be_read_from_is_refused(words: tuple[str, ...]) -> None:
    options = ("--image-size", SIDE) if words[0] == "pack" else ()
    result = simclr("datasets", *words, *options)
    assert result.exit_code == 2
    assert "is an address" in result.stderr
    assert "aws s3 sync" in result.stderr


@pytest.mark.parametrize(
    ("value", "said"),
    [("gs://bucket/datasets", "is an address"), ("s3://", "use a folder or s3://"), ("s3://a//b", "use a folder or")],
)
def test_a_service_does_not_take_an_address_for_a_folder_without_data_sets(
    monkeypatch: pytest.MonkeyPatch, value: str, said: str
) -> None:
    monkeypatch.setenv("SIMCLR_DATASETS", value)
    with pytest.raises(ValidationError, match=said):
        Settings()


def test_data_sets_are_in_a_directory_or_a_bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for value, read in (("s3://bucket/sets/", "s3://bucket/sets"), ("sets", str(tmp_path / "sets"))):
        monkeypatch.setenv("SIMCLR_DATASETS", value)
        assert Settings().datasets == read
