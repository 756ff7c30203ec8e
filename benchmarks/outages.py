"""Silence and outages on a real stack: the service killed and away, then MLflow, database and storage.

    python benchmarks/outages.py [ROW ...] [--stack sqlite|postgresql] [--seconds 60] [--silences 20 60]

A whole `simclr serve` runs: on SQLite and a directory (as root one on a small disk of its own), or on
a PostgreSQL server and an object store (S3 over a socket). Rows are `killed`, `mlflow`, `database`
and `storage`.

`killed`: one experiment trains; of others, one is committed and not submitted and one is on Ray and not
observed yet, when the service is stopped between two instructions, and it and its supervisor are killed
(SIGKILL). Ray and MLflow go on alone for the silence; then `simclr serve` is started again.

The others: a part is away for `--seconds` while an experiment trains. MLflow is frozen and then killed,
the database is locked by another connection or its server stopped, the disk is full or the link to the
object store is down. What the service answers is looked at every two seconds.

Checked of each experiment: it succeeded; each attempt is one Ray job; the trial was started as often
as its attempts say; MLflow has one parent run and one trial run, and of each metric each step once.
Exit status 1 if one of these does not hold.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.update(RAY_AUTH_MODE="disabled", MLFLOW_HTTP_REQUEST_MAX_RETRIES="2")

from mlflow import MlflowClient

from benchmarks.harness.outage_scene import POST, STACKS, Scene
from service.experiment import TERMINAL, submission_id
from tests.conftest import free_port, shapes, stop_stack
from tests.harness.experiments import SHORT, STEPS_PER_EPOCH, wait_until
from tests.harness.moments import catch, ray_jobs, stored_states

LOOK_EVERY_S: Final = 2.0
CAUGHT_TRAINS_S: Final = 8.0
AFTERWARDS_S: Final = 15.0  # of training, behind a silence or an outage
EVERY_STEP: Final = ("loss", "lr", "entropy", "contrastive_accuracy")


# --- what must hold afterwards --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an experiment ended, and what is wrong with that."""

    attempts: int
    num_points: int
    steps_meanwhile: int
    wrong: list[str]

    def __str__(self) -> str:
        exact = f"{self.num_points} points, each once" if not self.wrong else "; ".join(self.wrong)
        return f"attempts {self.attempts}, {exact}"


def settled(scene: Scene, experiment_id: str, *, meanwhile: tuple[float, float] = (0.0, 0.0)) -> Outcome:
    """Wait for the end of an experiment and for MLflow to have all of it, and check both."""
    scene.until_state(experiment_id, TERMINAL)
    note = f"service/open_runs/{experiment_id}"
    wait_until(lambda: note not in scene.storage.list(note), timeout_s=120, what="the closing of its runs")
    with scene.client as client:
        shown = client.experiment(experiment_id)
    attempts, wrong = int(shown["attempt"]), []
    if shown["state"] != "succeeded":
        wrong.append(f"{shown['state']}: {shown['reason']}")
    jobs = ray_jobs(scene.stack.ray_dashboard, experiment_id)
    if jobs != [submission_id(experiment_id, number) for number in range(1, attempts + 1)]:
        wrong.append(f"Ray has the jobs {jobs}")
    num_starts = len(scene.storage.list(f"experiments/{experiment_id}/trials/t0000/fence/"))
    if num_starts != attempts:
        wrong.append(f"{num_starts} starts in {attempts} attempts")
    epochs = int(shown["spec"]["epochs"])
    num_points, steps_meanwhile = _check_mlflow(scene, experiment_id, epochs, meanwhile, wrong)
    return Outcome(attempts=attempts, num_points=num_points, steps_meanwhile=steps_meanwhile, wrong=wrong)


def _check_mlflow(
    scene: Scene, experiment_id: str, epochs: int, meanwhile: tuple[float, float], wrong: list[str]
) -> tuple[int, int]:
    client = MlflowClient(tracking_uri=scene.stack.mlflow_uri)
    kept = client.get_experiment_by_name("simclr")
    ours = f"tags.`simclr.experiment_id` = '{experiment_id}'"
    runs = client.search_runs([kept.experiment_id], filter_string=ours) if kept else []
    roles = Counter(run.data.tags["simclr.role"] for run in runs)
    if roles != {"parent": 1, "trial": 1}:
        wrong.append(f"MLflow has the runs {dict(roles)}")
        return 0, 0
    if {run.info.status for run in runs} != {"FINISHED"}:
        wrong.append(f"MLflow's runs are {[run.info.status for run in runs]}")
    (trial,) = (run for run in runs if run.data.tags["simclr.role"] == "trial")
    num_points = steps_meanwhile = 0
    for key in trial.data.metrics:
        points = client.get_metric_history(trial.info.run_id, key)
        steps = [point.step for point in points]
        num_points += len(points)
        if len(set(steps)) != len(steps):
            wrong.append(f"{key} has {len(steps) - len(set(steps))} steps twice")
        if key in EVERY_STEP and sorted(set(steps)) != list(range(1, epochs * STEPS_PER_EPOCH + 1)):
            wrong.append(f"{key} has {len(set(steps))} of {epochs * STEPS_PER_EPOCH} steps")
        if key == "loss":
            began_s, ended_s = meanwhile
            steps_meanwhile = sum(began_s < point.timestamp / 1000 < ended_s for point in points)
    return num_points, steps_meanwhile


# --- the service is killed ------------------------------------------------------------------------


def killed(scene: Scene, *, silence_s: float) -> Iterator[str | None]:
    """Kill the service at three moments at once, and yield a line for each, None for one that is wrong."""
    training = scene.submit("training", trains_for_s=silence_s + AFTERWARDS_S)
    scene.until_trains(training)
    moments = catch(
        scene.process("service"),
        submit=lambda name: scene.submit(name, trains_for_s=CAUGHT_TRAINS_S),
        ray_url=scene.stack.ray_dashboard,
        database_url=scene.database_url,
    )
    (state,) = stored_states(scene.database_url, [training])
    moments[f"training ({state})"] = [training]
    began_s = time.time()
    scene.kill()
    time.sleep(silence_s)
    ended_s = time.time()
    ready_s = scene.start()
    adopted_s = {}
    for moment, ids in moments.items():
        for experiment_id in ids:
            scene.until_state(experiment_id, ("running", "succeeded"))
        adopted_s[moment] = time.time() - ended_s
    print(f"ready {ready_s:.1f} s after the silence", flush=True)
    for moment, ids in moments.items():
        for experiment_id in ids:
            outcome = settled(scene, experiment_id, meanwhile=(began_s, ended_s))
            twice = "none" if outcome.attempts == 1 else f"{outcome.attempts - 1}"
            line = (
                f"killed, {silence_s:.0f} s of silence | {moment:<24} | adopted after {adopted_s[moment]:5.1f} s | "
                f"{outcome.steps_meanwhile:4d} steps meanwhile | {outcome} | run twice: {twice}"
            )
            yield _judged(line, is_good=not outcome.wrong and outcome.attempts == 1)


# --- a part is away -------------------------------------------------------------------------------


ALWAYS: Final = {"GET /livez": 200}


def away(scene: Scene, part: str, *, seconds: float) -> Iterator[str | None]:
    """Take a part away while an experiment trains, and yield what came of it."""
    outage = scene.outages[part]
    if outage is None:
        print(f"{part}: not shown, a full disk needs root", flush=True)
        return
    training = scene.submit("trains on", trains_for_s=seconds + AFTERWARDS_S)
    scene.until_trains(training)
    statuses = scene.statuses[part]
    began_s = time.time()
    with outage():
        answers, created = _watched(scene, training, [*ALWAYS, *statuses], until_s=time.monotonic() + seconds)
    outcomes = [settled(scene, one, meanwhile=(began_s, began_s + seconds)) for one in (training, *created)]
    wrong = [text for outcome in outcomes for text in outcome.wrong]
    wrong += _unexpected(answers, ALWAYS | dict(statuses))
    steps = outcomes[0].steps_meanwhile
    if not steps:
        wrong.append("training stood still")
    shown = ", ".join(f"{request} {_in_words(found)}" for request, found in answers.items())
    line = (
        f"{part} away for {seconds:.0f} s | {steps:4d} steps meanwhile | {outcomes[0]} | "
        f"{len(created)} submitted meanwhile, all run once | {shown}"
    )
    yield _judged(line if not wrong else f"{line} | WRONG: {'; '.join(wrong)}", is_good=not wrong)


def _watched(
    scene: Scene, experiment_id: str, requests: Sequence[str], *, until_s: float
) -> tuple[dict[str, Counter[int]], list[str]]:
    """Send the requests again and again; return how often each was answered how, and what was created."""
    answers: dict[str, Counter[int]] = {request: Counter() for request in requests}
    created: list[str] = []
    with httpx2.Client(base_url=scene.stack.url, timeout=30) as http:
        while time.monotonic() < until_s:
            for request in requests:
                if request == POST and created:
                    continue  # one is enough
                method, _, path = request.partition(" ")
                body = {"name": "meanwhile", "kind": "pretrain", "spec": SHORT} if method == "POST" else None
                answer = http.request(method, path.replace("ID", experiment_id), json=body)
                if answer.status_code == 503 and "retry-after" not in answer.headers:
                    answers[request][-503] += 1
                answers[request][answer.status_code] += 1
                if answer.status_code == 202:
                    created.append(str(answer.json()["id"]))
            time.sleep(LOOK_EVERY_S)
    return answers, created


def _unexpected(answers: Mapping[str, Counter[int]], statuses: Mapping[str, int]) -> list[str]:
    """Return what was not answered as it must be; the first answers may come before an outage is felt."""
    return [
        f"{request} was answered {_in_words(found)}, not {statuses[request]}"
        for request, found in answers.items()
        if not found[statuses[request]] or set(found) - {statuses[request], 200} or -503 in found
    ]


def _in_words(found: Counter[int]) -> str:
    return "/".join(str(status) if status > 0 else "503 without Retry-After" for status in found)


def _judged(line: str, *, is_good: bool) -> str | None:
    print(line if is_good else f"WRONG: {line}", flush=True)
    return line if is_good else None


ROWS: Final = ("killed", "mlflow", "database", "storage")


def measure_speed(scene: Scene) -> None:
    """Let an experiment run to its end, and learn from it how many steps a second are made."""
    scene.steps_per_s = STEPS_PER_EPOCH * 40 / 10  # 40 epochs, to begin with
    first = scene.submit("speed", trains_for_s=10)
    outcome = settled(scene, first)
    if outcome.wrong:
        raise RuntimeError(f"without any outage: {outcome.wrong}")
    client = MlflowClient(tracking_uri=scene.stack.mlflow_uri)
    runs = client.search_runs(
        [str(client.get_experiment_by_name("simclr").experiment_id)],  # type: ignore[union-attr] # it is there by now
        filter_string=f"tags.`simclr.experiment_id` = '{first}' AND tags.`simclr.role` = 'trial'",
    )
    times_ms = [point.timestamp for point in client.get_metric_history(runs[0].info.run_id, "loss")]
    scene.steps_per_s = 1000 * len(times_ms) / (max(times_ms) - min(times_ms))
    print(f"{scene.steps_per_s:.0f} steps a second, alone", flush=True)


def main() -> int:
    """Print a line for each experiment; return 1 if one is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all by default: {', '.join(ROWS)}")
    parser.add_argument("--stack", choices=STACKS, default="sqlite")
    parser.add_argument("--seconds", type=float, default=60.0, help="of an outage")
    parser.add_argument("--silences", type=float, nargs="*", default=[20.0, 60.0], help="seconds, of the service")
    arguments = parser.parse_args()
    lines: list[str | None] = []
    with ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="outages-")))
        np.savez(folder / "shapes.npz", **shapes(np.random.default_rng(7), num_train=240, num_test=40))
        scene = exits.enter_context(STACKS[arguments.stack](folder))
        scene.settings |= {"SIMCLR_CPUS": "8", "SIMCLR_PORT": str(free_port())}
        scene.start()
        exits.callback(lambda: stop_stack(scene.stack))
        measure_speed(scene)
        for row in arguments.rows or ROWS:
            if row == "killed":
                for silence_s in arguments.silences:
                    lines += killed(scene, silence_s=silence_s)
            else:
                lines += away(scene, row, seconds=arguments.seconds)
    return int(None in lines)


if __name__ == "__main__":
    sys.exit(main())
