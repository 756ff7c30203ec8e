"""Every storage keeps the same promises: whole writes, conditional creation, sorted listing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.object_store import ObjectStore
from trainer.storage import STREAMED_BYTES, BlobMissing, DirectoryStorage, S3Storage, Storage, open_storage


@pytest.fixture(scope="module")
def object_store() -> Iterator[ObjectStore]:
    with ObjectStore() as store:
        yield store


@pytest.fixture(params=["directory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "directory":
        return open_storage(str(tmp_path / "blobs"))
    object_store: ObjectStore = request.getfixturevalue("object_store")
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return open_storage(object_store.uri(f"{tmp_path.name}/some/prefix"))


def test_a_blob_reads_back_as_written(storage: Storage) -> None:
    storage.write("a/b/c.bin", b"\x00first")
    storage.write("a/b/c.bin", b"second")
    assert storage.read("a/b/c.bin") == b"second"


def test_reading_what_is_not_there_raises_blob_missing(storage: Storage) -> None:
    storage.write("a/b", b"")
    for key in ("a/c", "a", "x/y/z"):
        with pytest.raises(BlobMissing):
            storage.read(key)


def test_create_puts_only_where_none_is(storage: Storage) -> None:
    assert storage.create("fence/1", b"mine")
    assert not storage.create("fence/1", b"theirs")
    assert storage.read("fence/1") == b"mine"


def test_of_many_creators_at_once_one_wins(storage: Storage) -> None:
    wins: list[int] = []
    start = threading.Barrier(8)

    def compete(number: int) -> None:
        start.wait()
        if storage.create("contended", str(number).encode()):
            wins.append(number)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert storage.read("contended") == str(wins[0]).encode()


def test_list_is_sorted_and_by_prefix(storage: Storage) -> None:
    for key in ("t/m/entry-2", "t/m/entry-10", "t/m/sent", "t/n/entry-1"):
        storage.write(key, b"x")
    assert storage.list("t/m/entry-") == ["t/m/entry-10", "t/m/entry-2"]
    assert storage.list("t/") == ["t/m/entry-10", "t/m/entry-2", "t/m/sent", "t/n/entry-1"]
    assert storage.list("nothing/") == []


def test_delete_is_idempotent(storage: Storage) -> None:
    storage.write("a", b"x")
    storage.delete("a")
    storage.delete("a")
    assert storage.list("") == []


@pytest.mark.parametrize("key", ["../up", "a/../../up", "/etc/passwd", "a//b", "a/./b", "", "a\\b", "a\0b"])
def test_a_key_never_leaves_the_directory(tmp_path: Path, key: str) -> None:
    storage = DirectoryStorage(tmp_path / "root")
    with pytest.raises(ValueError, match="storage key"):
        storage.read(key)
    with pytest.raises(ValueError, match="storage key"):
        storage.write(key, b"x")


def test_an_unknown_scheme_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="use a directory or s3://"):
        open_storage("gs://bucket/prefix")


def test_objects_are_put_from_files_and_read_in_pieces(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    content = bytes(range(256)) * (STREAMED_BYTES // 100)
    (tmp_path / "file").write_bytes(content)
    storage = S3Storage.at(object_store.uri("objects/"))
    storage.upload("a/one", tmp_path / "file")
    storage.under("b/c").write("two", b"2")
    storage.write("three", b"")
    pieces = list(storage.stream("a/one"))
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) == STREAMED_BYTES
    assert storage.sizes() == {"a/one": len(content), "b/c/two": 1, "three": 0}
    assert storage.folders() == ("a", "b")
    with pytest.raises(BlobMissing):
        next(storage.stream("a/two"))


def test_a_lost_bucket_is_an_os_error_that_names_the_setting(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    storage = S3Storage(bucket="no-such-bucket", prefix="p")
    with pytest.raises(OSError, match="NoSuchBucket; see the storage's address, SIMCLR_STORAGE"):
        storage.write("a", b"x")
