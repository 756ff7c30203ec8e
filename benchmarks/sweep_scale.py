"""A random sweep of a thousand points: its plan, its pages, its table and its report, in seconds.

    python benchmarks/sweep_scale.py [--quick]

The pages are those of `GET /experiments/{id}/trials`, through the whole app in one process, with a
real database and storage. The report is built and rendered in every form.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx2

from benchmarks.harness.turns import verdict
from service.experiment import State
from service.store import migrations
from tests.harness.http_app import http_app
from trainer import metric_names
from trainer.data.catalogue import describe
from trainer.trial_table import TrialRow, write_trial_table
from tune_spaces.plan import SweepPlan, plan_sweep
from tune_spaces.spec import SweepSpec, complete

NUM_POINTS: Final = 1000
PAGE_SIZE: Final = 100
PLAN_GOAL_S: Final = 1.0
PAGE_GOAL_S: Final = 1.0
REPORT_GOAL_S: Final = 10.0
SWEEP: Final[dict[str, Any]] = {
    "base": {"data": {"dataset": "digits"}, "epochs": 10},
    "space": {
        "loss.temperature": {"loguniform": [0.05, 1.0]},
        "optim.base_lr": {"loguniform": [0.01, 3.0]},
        "batch_size": {"choice": [64, 128, 256]},
    },
    "search": "random",
    "num_samples": NUM_POINTS,
    "limits": {"max_trials": NUM_POINTS},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="1 round instead of 5")
    rounds = 1 if parser.parse_args().quick else 5
    sweep = SweepSpec.model_validate(SWEEP)
    num_images = describe("digits", None).num_train
    plan_s = timed(lambda: plan_sweep(sweep, lambda _: num_images), rounds)
    plan = plan_sweep(sweep, lambda _: num_images)
    rows = finished_rows(plan)
    report_s = timed(lambda: report(sweep, rows), rounds)
    with tempfile.TemporaryDirectory() as temporary:
        post_s, pages_s = asyncio.run(post_and_list(Path(temporary), rows, rounds))
    tell(f"plan of {NUM_POINTS} points", plan_s, PLAN_GOAL_S)
    tell("POST of the same, judged and planned", post_s, None)
    tell(f"a page of {PAGE_SIZE} trials", median(pages_s), PAGE_GOAL_S)
    tell(f"all {len(pages_s)} pages", sum(pages_s), None)
    tell(f"report of {NUM_POINTS} trials, every form", report_s, REPORT_GOAL_S)


def tell(what: str, seconds: float, goal_s: float | None) -> None:
    goal = "" if goal_s is None else f" (goal {goal_s:g}: {verdict(is_reached=seconds <= goal_s)})"
    print(f"{what:>42}: {seconds:6.3f} s{goal}")


def timed(work: Callable[[], object], rounds: int) -> float:
    """Return the median seconds of `work`, which has been done once before."""
    work()
    taken_s = []
    for _ in range(rounds):
        started_s = time.perf_counter()
        work()
        taken_s.append(time.perf_counter() - started_s)
    return median(taken_s)


def finished_rows(plan: SweepPlan) -> list[TrialRow]:
    """Return a table in which every trial has ended well."""
    rows = []
    for index, trial in enumerate(plan.trials):
        metrics = dict.fromkeys(metric_names.ALL_METRICS, 0.5) | {metric_names.KNN_ACCURACY: index / NUM_POINTS}
        best = {"metric": metric_names.KNN_ACCURACY, "value": index / NUM_POINTS, "step": 100}
        rows.append(
            TrialRow(
                id=trial.id,
                state="succeeded",
                params=trial.params,
                metrics=metrics,
                best=best,
                attempt=1,
                mlflow_run_id=f"{index:032x}",
            )
        )
    return rows


def report(sweep: SweepSpec, rows: Sequence[TrialRow]) -> dict[str, bytes]:
    from tune_spaces.reports.render import render_report
    from tune_spaces.reports.report import build_report

    return render_report(build_report(complete(sweep), rows, name="scale"))


async def post_and_list(folder: Path, rows: Sequence[TrialRow], rounds: int) -> tuple[float, list[float]]:
    """Return the median seconds of the POST, and of each page over rounds."""
    database = folder / "migrated" / "simclr.db"
    database.parent.mkdir()
    await asyncio.to_thread(migrations.upgrade, f"sqlite:///{database}")
    (folder / "app").mkdir()
    async with http_app(folder / "app", database=database) as app:
        body = {"name": "scale", "kind": "sweep", "spec": SWEEP}
        posts_s, ids = [], []
        for _ in range(rounds + 1):
            started_s = time.perf_counter()
            ids.append((await app.submit(body))["id"])
            posts_s.append(time.perf_counter() - started_s)
        await app.move(ids[-1], State.STARTING, State.RUNNING)
        write_trial_table(app.blobs, ids[-1], rows)
        listings = [await list_pages(app.http, f"/experiments/{ids[-1]}/trials") for _ in range(rounds)]
    return median(posts_s[1:]), [median(pages) for pages in zip(*listings, strict=True)]


async def list_pages(http: httpx2.AsyncClient, url: str) -> list[float]:
    """Return the seconds of each page until there is none."""
    token, num_listed, pages_s = "", 0, []
    while True:
        started_s = time.perf_counter()
        page = (await http.get(url, params={"page_size": PAGE_SIZE, "page_token": token})).json()
        pages_s.append(time.perf_counter() - started_s)
        num_listed += len(page["items"])
        token = page["next_page_token"]
        if not token:
            assert num_listed == NUM_POINTS
            return pages_s


if __name__ == "__main__":
    main()
