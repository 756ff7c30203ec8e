"""The service stopped between two instructions: where what is committed and what is on Ray differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import httpx2
import psutil
import sqlalchemy as sa

__all__ = ["COMMITTED", "SUBMITTED", "catch", "ray_jobs", "stored_states"]

SUBMITTED: Final = "submitted, not observed"
COMMITTED: Final = "committed, not submitted"

MOST_TRIES: Final = 3
COMMIT_TIMEOUT_S: Final = 60.0
MOST_SLICES: Final = 30  # less than the minute after which a supervisor starts a silent service again
SLICE_S: Final = 0.02  # of running between two looks: less than a submit takes
SETTLE_S: Final = 0.5  # for Ray to do what it was asked before the look
AT_ONCE: Final = 3  # while the first that comes is submitted the others arrive, and are committed together


def catch(
    service: psutil.Process, *, submit: Callable[[str], str], ray_url: str, database_url: str
) -> dict[str, list[str]]:
    """Submit experiments until the service is suspended at both moments; return moment -> ids, it stands still then.

    Args:
        service: Its process.
        submit: Submits an experiment of this name and returns its id.
        ray_url: The address of Ray's dashboard.
        database_url: SQLAlchemy address of the service's database, which answers while the service stands still.

    Raises:
        TimeoutError: If the service was faster each time.
    """
    for number in range(MOST_TRIES):
        with ThreadPoolExecutor(AT_ONCE) as threads:
            ids = list(threads.map(submit, (f"caught {number}-{index}" for index in range(AT_ONCE))))
        deadline_s = time.monotonic() + COMMIT_TIMEOUT_S
        while stored_states(database_url, ids).count("queued") > 1 and time.monotonic() < deadline_s:
            time.sleep(0.005)
        for _ in range(MOST_SLICES):
            service.suspend()
            time.sleep(SETTLE_S)
            moments = _moments(ids, ray_url=ray_url, database_url=database_url)
            if {SUBMITTED, COMMITTED} <= moments.keys():
                return moments
            service.resume()
            if COMMITTED not in moments:
                break
            time.sleep(SLICE_S)
    raise TimeoutError(f"the service was not caught between commit and submit in {MOST_TRIES} tries")


def _moments(ids: Sequence[str], *, ray_url: str, database_url: str) -> dict[str, list[str]]:
    """Return the experiments by moment; those that are neither queued nor starting are past all of them."""
    moments: dict[str, list[str]] = {}
    for experiment_id, state in zip(ids, stored_states(database_url, ids), strict=True):
        if state == "starting":
            is_on_ray = bool(ray_jobs(ray_url, experiment_id))
            moments.setdefault(SUBMITTED if is_on_ray else COMMITTED, []).append(experiment_id)
    return moments


def stored_states(database_url: str, ids: Sequence[str]) -> list[str]:
    """Return the states of experiments as the database has them."""
    with sa.create_engine(database_url, poolclass=sa.NullPool).connect() as connection:
        rows = connection.execute(sa.text("SELECT id, state FROM experiments"))
        states = {str(row.id): str(row.state) for row in rows}
    return [states[experiment_id] for experiment_id in ids]


def ray_jobs(ray_url: str, experiment_id: str) -> list[str]:
    """Return the submission ids of an experiment's attempts that Ray knows."""
    jobs = httpx2.get(f"{ray_url}/api/jobs/", timeout=30).json()
    ids = [str(job["submission_id"]) for job in jobs if job["metadata"].get("experiment_id") == experiment_id]
    return sorted(name for name in ids if "backfill" not in name)
