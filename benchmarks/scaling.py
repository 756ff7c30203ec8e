"""One, two and four workers of one thread each on the cores there are: images a second, and what costs what.

    python benchmarks/scaling.py [--quick]

The training loop on random images (resnet8, 32 px, N = 256, float32, batch norm over the global
batch), each worker a process and gloo between them, without Ray. All three are there all the time
and take turns of an epoch each. `efficiency` is the rate beside W times that of one worker, and
`of the cores` beside as many times that of one worker as there are cores for W. The shares are rank
0's: in each kind of message it either works (copies, adds up) or waits, for the others to get as far
or for the message.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.called_turns import Caller, TurnTable
from benchmarks.harness.conversation import in_words
from benchmarks.harness.epoch_turns import EpochTurns, middle_epoch, take_epochs_in_turn
from benchmarks.harness.noise_run import BATCH_SIZE, SIDE, noise_spec, trial_context, write_noise
from service.embedded.addresses import free_ports

STEPS: Final = 4  # an epoch
TEAMS: Final = (1, 2, 4)
TIMEOUT: Final = timedelta(minutes=5)
GRACE_S: Final = 30.0


def be_rank(folder: Path, *, rank: int, num_workers: int, port: int, address: tuple[str, int]) -> None:
    import torch
    import torch.distributed as dist

    from trainer.loop import train
    from trainer.small_messages import connected
    from trainer.team import Team

    torch.set_num_threads(1)
    spec = noise_spec(precision="float32", channels_last=True)
    name = f"W = {num_workers}"
    turns = EpochTurns(caller=Caller(address=address, name=name), images_an_epoch=STEPS * BATCH_SIZE)
    context = trial_context(folder, f"w{num_workers}")
    if num_workers == 1:
        train(spec, context, Team(), on_epoch=turns)
        return
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=num_workers)
    group = dist.group.WORLD
    assert group is not None
    with connected(group, timeout=TIMEOUT) as messages:
        team = Team(rank=rank, world_size=num_workers, group=group, messages=messages)
        train(spec, context, team, on_epoch=turns)
    dist.destroy_process_group()


def measure(folder: Path, *, rounds: int) -> None:
    names = [f"W = {num_workers}" for num_workers in TEAMS]
    with TurnTable() as table:
        ranks = [
            subprocess.Popen(
                [
                    *(sys.executable, __file__, "--folder", str(folder), "--rank", str(rank)),
                    *(str(num_workers), str(port), *map(str, table.address)),
                ],
                env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            )
            for num_workers, port in zip(TEAMS, free_ports(len(TEAMS)), strict=True)
            for rank in range(num_workers)
        ]
        try:
            epochs = take_epochs_in_turn(table, names, rounds=rounds)
        except BaseException:
            for process in ranks:
                process.kill()
            raise
    for process in ranks:
        process.wait(timeout=GRACE_S)
    cores = len(os.sched_getaffinity(0))
    for num_workers, name in zip(TEAMS, names, strict=True):
        pairs = zip(epochs[name], epochs[names[0]], strict=True)
        ratio = median(own["images_per_second"] / alone["images_per_second"] for own, alone in pairs)
        print(
            f"{name}: {ratio:.2f} times the images a second of one worker, efficiency {ratio / num_workers:.2f}, "
            f"{ratio / min(num_workers, cores):.2f} of the cores; "
            f"{in_words(middle_epoch(epochs[name])['shares'], steps=STEPS)}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 turns each instead of 9")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        rank, num_workers, port, host, table_port = arguments.rank
        be_rank(
            arguments.folder,
            rank=int(rank),
            num_workers=int(num_workers),
            port=int(port),
            address=(host, int(table_port)),
        )
        return
    print(f"resnet8, {SIDE} px, N = {BATCH_SIZE}, float32, one thread each", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_noise(Path(folder), num_steps=STEPS)
        measure(Path(folder), rounds=3 if arguments.quick else 9)


if __name__ == "__main__":
    main()
