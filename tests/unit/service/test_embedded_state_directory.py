"""The state directory: one holder, a private record, a short runtime directory."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.embedded.processes import ProcessRecord
from service.embedded.state_directory import RunningPart, StackLocked, StateDirectory
from service.errors import SettingsError

HOLDER = """
import sys
from collections.abc import Iterator
from pathlib import Path
from service.embedded.state_directory import StateDirectory
with StateDirectory(path=Path(sys.argv[1])).lock(command="serve", url="http://127.0.0.1:8000"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[StateDirectory]:
    directory = StateDirectory(path=tmp_path / "home")
    directory.prepare()
    yield directory
    directory.forget()


def test_a_second_command_is_told_who_holds_the_directory_and_the_lock_ends_with_its_holder(
    directory: StateDirectory,
) -> None:
    command = [sys.executable, "-c", HOLDER, str(directory.path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()

    with pytest.raises(StackLocked) as refused, directory.lock(command="demo", url=""):
        pass
    assert refused.value.holder is not None
    assert refused.value.holder.process == ProcessRecord.of(holder.pid)
    for word in (f"process {holder.pid}", "simclr serve", "http://127.0.0.1:8000", "simclr stop"):
        assert word in refused.value.message

    holder.kill()
    holder.communicate()
    with directory.lock(command="demo", url=""):
        pass


def test_the_record_comes_back_as_written_and_only_its_owner_reads_it(directory: StateDirectory) -> None:
    part = RunningPart(process=ProcessRecord.of(os.getpid()), url="http://127.0.0.1:1", identity="ray 1")

    directory.write_parts({"ray": part})

    assert directory.read_parts() == {"ray": part}
    assert stat.S_IMODE((directory.path / "stack.json").stat().st_mode) == 0o600


def test_a_torn_record_counts_as_none(directory: StateDirectory) -> None:
    (directory.path / "stack.json").write_text('{"parts": {"ray"')

    assert directory.read_parts() == {}


def test_the_runtime_directory_is_short_and_private_whatever_the_length_of_the_path(tmp_path: Path) -> None:
    directory = StateDirectory(path=tmp_path.joinpath(*["a-rather-long-name"] * 12))
    directory.prepare()

    assert len(str(directory.runtime_dir)) < 24
    assert stat.S_IMODE(directory.runtime_dir.stat().st_mode) == 0o700
    directory.forget()
    assert not directory.runtime_dir.exists()


def test_two_names_of_one_directory_are_one_stack(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")

    ids = {StateDirectory(path=tmp_path / name).stack_id for name in ("real", "alias")}

    assert len(ids) == 1


def test_a_directory_that_cannot_be_written_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(SettingsError, match=r"file/home cannot be written \(Not a directory\).*SIMCLR_HOME="):
        StateDirectory(path=tmp_path / "file" / "home").prepare()


def test_a_runtime_directory_that_is_something_else_is_refused(tmp_path: Path) -> None:
    directory = StateDirectory(path=tmp_path / "home")
    directory.runtime_dir.symlink_to(tmp_path)
    try:
        with pytest.raises(SettingsError, match="belongs to someone else"):
            directory.prepare()
    finally:
        directory.runtime_dir.unlink()
