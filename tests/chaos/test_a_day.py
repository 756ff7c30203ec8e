"""A day of work in a minute: many short experiments by a clock that tests move; nothing may pile up."""

from __future__ import annotations

import gc
import sqlite3
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from service.experiment import State
from service.ports import ListQuery
from service.store import migrations
from tests.fakes.control_plane import ControlPlane

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

HOUR_S = 3600
STEP_S = 300.0
PER_STEP = 2  # of a cluster's 8 CPUs, each experiment takes 2 for half a minute
MOST_GROWTH = 200  # objects, over 18 hours and 400 experiments: less than one for each


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_day_of_short_experiments_leaves_nothing_behind(tmp_path: Path) -> None:
    migrations.upgrade(f"sqlite:///{tmp_path / 'simclr.db'}")
    plane = ControlPlane(database=tmp_path / "simclr.db", home=tmp_path)
    num_done = 0
    sizes: dict[str, tuple[int, int, int]] = {}
    try:
        for hour in range(24):
            num_done += await hour_of_work(plane)
            if hour in (5, 23):
                sizes[f"after {hour + 1} h"] = (num_objects(), psutil.Process().num_fds(), database_bytes(tmp_path))
    finally:
        await plane.store.close()

    assert num_done == 24 * int(HOUR_S / STEP_S) * PER_STEP
    (objects_early, fds_early, database_early), (objects_late, fds_late, database_late) = sizes.values()
    assert objects_late - objects_early < MOST_GROWTH
    assert fds_late == fds_early
    assert database_late <= 1.1 * database_early
    assert num_unused_pages(tmp_path) == 0  # else the file keeps the size of its busiest hour


async def hour_of_work(plane: ControlPlane) -> int:
    """Let experiments come, run to their end and be deleted; return how many."""
    ids = []
    for _ in range(int(HOUR_S / STEP_S)):
        ids += [await plane.submit("work") for _ in range(PER_STEP)]
        await plane.step(advance_s=STEP_S)
    for experiment_id in ids:
        await plane.step_until(experiment_id, State.SUCCEEDED, advance_s=STEP_S)
    for experiment_id in ids:
        await plane.store.delete(experiment_id)
        for key in plane.blobs.list(f"experiments/{experiment_id}/"):
            plane.blobs.delete(key)
    await plane.store.tidy()
    assert not (await plane.store.list(ListQuery())).items
    # What the fakes remember is theirs.
    plane.cluster.jobs.clear()
    plane.tracking.runs.clear()
    for memory in (plane.cluster.fates, plane.cluster.worked_s, plane.cluster.num_starts, plane.cluster.most_living):
        memory.clear()
    return len(ids)


def num_objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def num_unused_pages(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "simclr.db")) as connection:
        return int(connection.execute("PRAGMA freelist_count").fetchone()[0])


def database_bytes(folder: Path) -> int:
    return (folder / "simclr.db").stat().st_size
