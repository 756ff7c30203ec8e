"""What a worker may still take is what the tightest limit around it leaves."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import psutil
import pytest
import torch

from trainer import free_memory
from trainer.free_memory import free_memory_bytes

GB = 10**9


def write_group(folder: Path, **files: int | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"memory.{name}").write_text(f"{value}\n")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(free_memory, "_ROOT", tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


def left(root: Path) -> int:
    return min(free_memory._left_by_groups(root))


def test_without_groups_it_is_what_the_machine_has(root: Path) -> None:
    assert free_memory_bytes(torch.device("cpu")) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_a_group_leaves_its_limit_less_what_is_used_and_cannot_be_dropped(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("0::/jobs/one\n")
    write_group(root / "sys/fs/cgroup/jobs/one", max=4 * GB, current=3 * GB, stat=f"anon 1\ninactive_file {GB}")

    assert left(root) == 2 * GB


def test_the_tightest_of_the_groups_around_a_process_counts(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("0::/jobs/one\n")
    write_group(root / "sys/fs/cgroup/jobs/one", max="max", current=GB)
    write_group(root / "sys/fs/cgroup/jobs", max=3 * GB, current=2 * GB)

    assert left(root) == GB
    assert free_memory_bytes(torch.device("cpu")) == min(GB, psutil.virtual_memory().available)


def test_in_a_container_the_group_is_the_mount(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("0::/../host/path\n")
    write_group(root / "sys/fs/cgroup", max=2 * GB, current=GB)

    assert left(root) == GB


def test_groups_of_the_first_version_count_too(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/x\n")
    write_group(
        root / "sys/fs/cgroup/memory/x", limit_in_bytes=2 * GB, usage_in_bytes=GB, stat=f"total_inactive_file {GB // 2}"
    )

    assert left(root) == 1.5 * GB


def test_a_group_over_its_limit_leaves_nothing(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("0::/\n")
    write_group(root / "sys/fs/cgroup", max=GB, current=2 * GB)

    assert left(root) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc_trim is of glibc")
def test_what_this_process_freed_itself_is_given_back_first() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    size_bytes, count = 2**16, 1600  # of the heap: larger blocks would be mapped, and go back by themselves
    blocks = [libc.malloc(size_bytes) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size_bytes)
    *freed, last = blocks  # the last keeps the heap from shrinking, as MALLOC_TRIM_THRESHOLD_ does
    for block in freed:
        libc.free(block)
    held = psutil.Process().memory_info().rss

    free_memory_bytes(torch.device("cpu"))

    assert held - psutil.Process().memory_info().rss > 0.8 * size_bytes * count
    libc.free(last)
