"""The first thing a newcomer runs: it ends with a result, or is broken off, and leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from service.embedded.processes import find
from service.embedded.stack import PARTS
from service.embedded.state_directory import StateDirectory
from tests.harness.experiments import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def start_demo(home: Path, *options: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"SIMCLR_HOME": str(home)}
    command = [sys.executable, "-m", "service.cli", "demo", "--json", *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True)


def left_running(home: Path) -> list[psutil.Process]:
    return find(StateDirectory(path=home).stack_id, dict.fromkeys(PARTS))


def test_ctrl_c_ends_all_that_the_demo_started(tmp_path: Path) -> None:
    with start_demo(tmp_path) as demo:
        wait_until((tmp_path / "storage" / "experiments").exists, what="the job", timeout_s=120)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=60) != 0
    assert left_running(tmp_path) == []


def test_the_demo_ends_with_its_four_numbers_and_an_encoder(tmp_path: Path) -> None:
    with start_demo(tmp_path, "--epochs", "5") as demo:  # what all 70 are worth: benchmarks/demo_seeds.py
        printed, _ = demo.communicate(timeout=600)
        assert demo.returncode == 0
    text = printed.decode()
    for name in ("knn_accuracy", "linear_accuracy", "raw_pixel_knn_accuracy", "random_encoder_knn_accuracy"):
        assert f'"{name}"' in text
    assert json.loads(text[text.index("{") :])
    assert len(list((tmp_path / "demo").glob("encoder-*.zip"))) == 1
    assert left_running(tmp_path) == []
