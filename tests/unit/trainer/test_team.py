"""A team leaves nothing behind when it parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

AFTER_A_TEAM = """
import sys
from pathlib import Path

from trainer.team import Team
import torch.distributed as dist

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
Team(group=dist.group.WORLD).meet()
import torch._dynamo  # as the first step of an optimiser of torch's does

dist.destroy_process_group()
print([name for path in Path("/proc/self/task").glob("*/comm") if "gloo" in (name := path.read_text().strip())])
"""


def test_no_thread_of_a_group_lives_on_into_the_interpreters_end(tmp_path: Path) -> None:
    """One that does can abort the process: "terminate called without an active exception"."""
    command = [sys.executable, "-c", AFTER_A_TEAM, str(tmp_path / "rendezvous")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.strip() == "[]"
