"""What a step sends between hosts, in bytes and seconds, beside the arithmetic; and two hosts beside one.

    python benchmarks/network.py [--quick]

Needs root: hosts are namespaces on a bridge. First the two collectives of a step on two hosts, one
rank each, over cables of given delay and rate: the gather of projections (2N x D x 4 bytes, of
which a rank receives (W - 1)/W) and the all-reduce of gradients (2 x 4P x (W - 1)/W bytes each way
by a ring). Seconds are means; the arithmetic is bytes by rate, plus one delay for each message
that waits for another. Then whole training of two workers, on two hosts and on one in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.conftest import shapes
from tests.harness.experiments import SHORT
from tests.harness.hosts import Cable, Host, Lan, reason_for_no_hosts

PORT: Final = 29500
WIDTH: Final = 128  # D
NUM_IMAGES: Final = 1024  # N
NUM_PARAMETERS: Final = 2_000_000  # P
CABLES: Final = {
    "no limit": None,
    "1 ms, 1 Gbit/s": Cable(delay_ms=1, mbit_per_s=1000),
    "20 ms, 100 Mbit/s": Cable(delay_ms=20, mbit_per_s=100),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 repeats instead of 10")
    parser.add_argument("--rank", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        be_rank(*arguments.rank)
    elif reason := reason_for_no_hosts():
        print(f"nothing measured: {reason}")
    else:
        repeats = 3 if arguments.quick else 10
        for name, cable in CABLES.items():
            report_collectives(name, cable, repeats)
        report_training(repeats)


# --- from outside ---------------------------------------------------------------------------------


def report_collectives(name: str, cable: Cable | None, repeats: int) -> None:
    with Lan() as lan:
        hosts = [lan.add_host("left", cable=cable), lan.add_host("right")]  # one cable lies between the two
        measured = run_ranks(hosts, "collectives", str(repeats))
    num_ranks = len(hosts)
    received = {
        "gather": 2 * NUM_IMAGES * WIDTH * 4 * (num_ranks - 1) / num_ranks,
        "all-reduce": 2 * 4 * NUM_PARAMETERS * (num_ranks - 1) / num_ranks,
    }
    messages = {"gather": 1, "all-reduce": 2 * (num_ranks - 1)}  # one after the other, round a ring
    for what, expected in received.items():
        seconds, num_bytes = measured[what]
        line = f"{name:>18}, {what:>10}: {num_bytes / 1e6:7.3f} MB = {num_bytes / expected:.3f} of the arithmetic"
        if cable is None:
            print(f"{line}; {1e3 * seconds:7.1f} ms", flush=True)
            continue
        arithmetic_s = 8e-6 * expected / cable.mbit_per_s + messages[what] * 1e-3 * cable.delay_ms
        print(f"{line}; {1e3 * seconds:7.1f} ms = {seconds / arithmetic_s:.2f} of the arithmetic", flush=True)


def report_training(repeats: int) -> None:
    ratios, rates = [], []
    with Lan() as lan:
        np.savez(lan.shared / "shapes.npz", **shapes(np.random.default_rng(7), num_train=240, num_test=40))
        left, right = lan.add_host("left"), lan.add_host("right")
        for turn in range(repeats):
            folders = [str(lan.shared / f"{turn}-{where}") for where in ("two", "one")]
            two = run_ranks([left, right], "training", folders[0])
            one = run_ranks([left, left], "training", folders[1])
            ratios.append(two / one)
            rates.append(two)
    print(
        f"training, 2 workers: on two hosts {statistics.median(ratios):.2f} of the images a second on one "
        f"({statistics.median(rates):.0f} a second; {repeats} turns from {min(ratios):.2f} to {max(ratios):.2f})"
    )


def run_ranks(hosts: list[Host], what: str, detail: str) -> Any:
    """Run one rank on each host (a host may be named twice), and return what rank 0 prints."""
    processes = [
        subprocess.Popen(
            host.command([sys.executable, __file__, "--rank", what, str(rank), hosts[0].address, detail]),
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank, host in enumerate(hosts)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "a rank failed"
    return json.loads(outputs[0].splitlines()[-1])


# --- a rank ---------------------------------------------------------------------------------------


def be_rank(what: str, rank: str, address: str, detail: str) -> None:
    import torch
    import torch.distributed as dist

    from trainer.team import Team

    torch.set_num_threads(1)
    interface = next(name for name in psutil.net_if_addrs() if name != "lo")
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{PORT}", rank=int(rank), world_size=2)
    team = Team(rank=int(rank), world_size=2, group=dist.group.WORLD)
    result = collectives(interface, int(detail), team) if what == "collectives" else training(Path(detail), team)
    print(json.dumps(result))
    dist.destroy_process_group()


def collectives(interface: str, repeats: int, team: Any) -> dict[str, tuple[float, float]]:
    """Return (seconds, bytes received) of one gather and of one all-reduce."""
    import torch

    from trainer.collectives import all_gather, mean_flat_

    z_2BD = torch.randn(2 * NUM_IMAGES // team.world_size, WIDTH)
    gradients = [torch.randn(NUM_PARAMETERS)]
    bodies: dict[str, Callable[[], Any]] = {
        "gather": lambda: all_gather(z_2BD, group=team.group),
        "all-reduce": lambda: mean_flat_(gradients, group=team.group),
    }
    return {what: timed(body, interface, repeats) for what, body in bodies.items()}


def timed(body: Callable[[], Any], interface: str, repeats: int) -> tuple[float, float]:
    import torch.distributed as dist

    body()
    dist.barrier()
    before = psutil.net_io_counters(pernic=True)[interface].bytes_recv
    start = time.perf_counter()
    for _ in range(repeats):  # one alone would gain from what the other rank sent before it began
        body()
    seconds = time.perf_counter() - start
    dist.barrier()
    received = psutil.net_io_counters(pernic=True)[interface].bytes_recv - before
    return seconds / repeats, received / repeats


def training(folder: Path, team: Any) -> float:
    """Train, and return the median images a second of the epochs but the first."""
    from trainer.context import TrialContext
    from trainer.loop import train
    from trainer.spec import PretrainSpec
    from trainer.storage import open_storage

    context = TrialContext(
        experiment_id="exp_1",
        experiment_name="exp_1",
        trial_id="t0000",
        attempt=1,
        storage=str(folder),
        datasets_dir=str(folder.parent),
        cache_dir="/tmp/cache",  # noqa: S108 - of the host
    )
    train(PretrainSpec.model_validate(SHORT | {"epochs": 12}), context, team)
    storage = open_storage(context.storage)
    points = [
        point
        for key in storage.list(context.key("metrics/entry-"))
        for point in json.loads(storage.read(key)).get("points", ())
        if point[0] == "images_per_second"
    ]
    return float(statistics.median(value for _, _, value, _ in sorted(points, key=lambda point: point[1])[1:]))


if __name__ == "__main__":
    main()
