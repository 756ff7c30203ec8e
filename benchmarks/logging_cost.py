"""What recording costs: a run with its metrics, outbox, epoch reports and checkpoints against its bare steps.

    python benchmarks/logging_cost.py [--quick] [--threads 2]

resnet8, random images of 32 px, N = 256. The bare loop reads, draws the same views and makes the
same updates, through the same batch norm; it keeps nothing. The run beside it is a whole one, with
a directory as storage and

- an MLflow that takes everything at once: a stub, so that what a server computes is not counted here;
- an MLflow that is a black hole: it accepts connections and never answers.

They take turns of an epoch each, a process each, and of processes there are several sets: two that do
the same part by several percent, by where their memory came to lie, for as long as they live.
Checkpoints are due by the clock, which runs on
while others have their turn, so their interval is stretched by as much: a run has as many for its
steps as it would have alone. Importing MLflow's client is in the warm-up.
"""

from __future__ import annotations

import argparse
import json
import logging
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.noise_run import (
    BATCH_SIZE,
    build_parts,
    noise_spec,
    train_in_turns,
    trial_context,
    write_noise,
)
from benchmarks.harness.turns import Contender, Turns, contender, share_of_cost, take_turns, times, verdict
from service.dispatch.job import JOB_ENVIRONMENT
from trainer.spec import PretrainSpec

STEPS = 8  # a turn
NUM_CONTENDERS = 3
NUM_SETS = 5  # of processes
ROUNDS = 4
MAX_WARM_UP = 100  # turns
EXPERIMENT = {"experiment_id": "1", "name": "simclr", "lifecycle_stage": "active", "artifact_location": "/nowhere"}
RUN = {
    "info": {"run_id": "0" * 32, "run_uuid": "0" * 32, "experiment_id": "1", "status": "RUNNING", "start_time": 0},
    "data": {},
}


class WillingMlflow(ThreadingHTTPServer):
    """Has the experiment and its runs already, and takes whatever is logged."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.num_batches = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"experiment": EXPERIMENT})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        assert isinstance(self.server, WillingMlflow)
        self.server.num_batches += self.path.endswith("runs/log-batch")
        self._answer({"runs": [RUN]} if self.path.endswith("runs/search") else {})

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class BlackHole:
    """Accepts connections, holds them, and never answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.swallowed: list[socket.socket] = []
        threading.Thread(target=self._swallow, daemon=True).start()

    def _swallow(self) -> None:
        while True:
            self.swallowed.append(self._listener.accept()[0])


# --- contenders -----------------------------------------------------------------------------------


def run_bare(spec: PretrainSpec, folder: Path, turns: Turns) -> None:
    """Make the updates of the run, and nothing beside them."""
    from trainer.data.prepare import prepare
    from trainer.feed import Feed
    from trainer.schedule import learning_rate
    from trainer.team import Team

    drawer, stepper = build_parts(spec, batch_norm="global")
    subset = prepare(
        spec.data.dataset,
        image_size=spec.data.image_size,
        cache_dir=folder / "cache",
        datasets_dir=folder / "datasets",
        validation_ratio=spec.data.validation_ratio,
    ).pretrain
    feed = Feed(subset, seed=spec.seed, batch_size=spec.batch_size, team=Team())
    for epoch in range(spec.epochs):
        for batch in feed.read(epoch, first_step=0):
            views_2BCHW = drawer.draw_pair(batch.images, sample_ids_B=batch.sample_ids, epoch=epoch)
            rate = learning_rate(
                batch.step,
                peak=spec.peak_lr(),
                warmup_steps=round(spec.warmup_epochs() * STEPS),
                total_steps=spec.epochs * STEPS,
            )
            outcome = stepper(views_2BCHW, None, learning_rate=rate, wishes_stop=False)
            outcome.metrics()
        turns.over(STEPS * BATCH_SIZE)


def contend(words: list[str], *, folder: Path, threads: int) -> None:
    import torch

    from trainer import scribe

    torch.set_num_threads(threads)
    scribe.CHECKPOINT_EVERY_S *= NUM_CONTENDERS
    logging.getLogger("trainer").setLevel(logging.ERROR)  # it says that MLflow is away
    spec, turns = noise_spec(), Turns()
    match words:
        case ["bare"]:
            run_bare(spec, folder, turns)
        case [name, port]:
            context = trial_context(folder, name, mlflow_uri=f"http://127.0.0.1:{port}")
            train_in_turns(spec, context, turns)


# --- the comparison -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one set of processes showed: shares of the bare loop's time, and a ratio."""

    wall: float
    cpu: float
    dark: float  # with a black hole, of the time with MLflow there


def compare(folder: Path, *, threads: int, rounds: int) -> Cost:
    write_noise(folder, num_steps=STEPS)
    words = ("--threads", threads, "--folder", folder, "--only")
    willing, hole = WillingMlflow(), BlackHole()
    with (
        contender(*words, "bare", environment=JOB_ENVIRONMENT) as bare,
        contender(*words, "recorded", willing.server_port, environment=JOB_ENVIRONMENT) as recorded,
        contender(*words, "in-the-dark", hole.port, environment=JOB_ENVIRONMENT) as in_the_dark,
    ):
        warm_up(recorded, lambda: willing.num_batches > 0)
        warm_up(in_the_dark, lambda: bool(hole.swallowed))
        bare_turns, recorded_turns, dark_turns = take_turns(bare, recorded, in_the_dark, rounds=rounds)
    wall, cpu = share_of_cost(recorded_turns, bare_turns)
    cost = Cost(wall=wall, cpu=cpu, dark=times(dark_turns, recorded_turns))
    print(
        f"recording {wall:+.1%} of the bare loop's time ({cpu:+.1%} of its CPU time, {willing.num_batches} batches "
        f"sent); a black hole {cost.dark:.3f} times the time with MLflow there ({len(hole.swallowed)} connections)",
        flush=True,
    )
    return cost


def tell(costs: Sequence[Cost]) -> None:
    wall, cpu, dark = (median(getattr(cost, name) for cost in costs) for name in ("wall", "cpu", "dark"))
    print(
        f"median of {len(costs)} sets: recording and checkpoints {wall:+.1%} of the bare loop's time (CPU {cpu:+.1%}), "
        f"goal <= 3 %: {verdict(is_reached=wall <= 0.03)}; a black hole {dark:.3f} times, goal <= 1.05: "
        f"{verdict(is_reached=dark <= 1.05)}"
    )


def warm_up(player: Contender, has_spoken: Callable[[], bool]) -> None:
    """Let a run work until MLflow's client is loaded and has spoken: from there on its cost is steady."""
    for _ in range(MAX_WARM_UP):
        if has_spoken():
            return
        player.take_turn()
    raise RuntimeError("a run did not speak to its MLflow: there is nothing to compare")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one set of processes instead of five")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        contend(arguments.only, folder=arguments.folder, threads=arguments.threads)
        return
    print(f"resnet8, N = {BATCH_SIZE}, {arguments.threads} threads, {STEPS} steps a turn", flush=True)
    costs = []
    for _ in range(1 if arguments.quick else NUM_SETS):
        with tempfile.TemporaryDirectory() as folder:
            costs.append(compare(Path(folder), threads=arguments.threads, rounds=ROUNDS))
    tell(costs)


if __name__ == "__main__":
    main()
