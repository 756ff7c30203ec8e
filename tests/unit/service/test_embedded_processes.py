"""Processes are recognised beyond doubt and ended to the last descendant."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import psutil
import pytest

from service.embedded.processes import PART, STACK_ID, ProcessRecord, end, find, spawn

SLEEPER = "import time; time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}])"

Starter = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    started: list[subprocess.Popen[bytes]] = []

    def starter(code: str, *, part: str = "ray") -> "subprocess.Popen[bytes]":
        environment = os.environ | {STACK_ID: str(tmp_path), PART: part}
        child = spawn(
            [sys.executable, "-c", code], environment=environment, working_dir=tmp_path, log=tmp_path / "output.log"
        )
        started.append(child)
        return child

    yield starter
    for process in find(str(tmp_path), {"ray": None, "mlflow": None}):
        process.kill()
    for child in started:
        child.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def test_a_process_with_another_start_time_is_not_the_one_on_record() -> None:
    own = ProcessRecord.of(os.getpid())

    assert own.is_alive()
    assert not ProcessRecord(pid=own.pid, started_at=own.started_at - 100).is_alive()


def test_a_zombie_is_not_alive(start: Starter) -> None:
    child = start("pass")
    record = ProcessRecord.of(child.pid)

    wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)

    assert not record.is_alive()


def test_find_returns_descendants_and_leaves_other_parts_and_stacks_alone(start: Starter, tmp_path: Path) -> None:
    parent = start(PARENT)
    other = start(SLEEPER, part="mlflow")
    wait_until(lambda: len(psutil.Process(parent.pid).children()) == 1)

    found = {process.pid for process in find(str(tmp_path), {"ray": None})}

    assert found == {parent.pid, psutil.Process(parent.pid).children()[0].pid}
    assert other.pid not in found
    assert find("another stack", {"ray": None}) == []


def test_find_returns_what_a_recorded_leader_started_without_the_marker(start: Starter, tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], env={{}}).wait()"
    leader = start(code)
    wait_until(lambda: len(psutil.Process(leader.pid).children()) == 1)
    child = psutil.Process(leader.pid).children()[0]
    record = ProcessRecord.of(leader.pid)

    leader.kill()
    leader.wait()

    assert [process.pid for process in find(str(tmp_path), {"ray": record})] == [child.pid]
    child.kill()


def test_end_lets_a_process_end_by_itself(start: Starter, tmp_path: Path) -> None:
    child = start(SLEEPER)

    ended = end(lambda: find(str(tmp_path), {"ray": None}), grace_s=10)

    assert child.wait() == -signal.SIGTERM
    assert len(ended) == 1


@pytest.mark.parametrize(("grace_s", "is_hurried"), [(0.1, False), (60, True)])
def test_end_kills_what_ignores_it(start: Starter, tmp_path: Path, *, grace_s: float, is_hurried: bool) -> None:
    child = start(STUBBORN)
    wait_until(lambda: "deaf" in (tmp_path / "output.log").read_text())
    hurried = Event()
    if is_hurried:
        hurried.set()

    end(lambda: find(str(tmp_path), {"ray": None}), grace_s=grace_s, hurried=hurried)

    assert child.wait() == -signal.SIGKILL


def test_a_child_dies_with_a_parent_that_was_killed() -> None:
    child_code = (
        "from service.embedded.processes import die_with_parent; import os, time; "
        "die_with_parent(); print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent_code = (
        "import os, subprocess, sys; from service.embedded.processes import PARENT_PID; "
        f"subprocess.run([sys.executable, '-c', {child_code!r}], env=os.environ | {{PARENT_PID: str(os.getpid())}})"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = ProcessRecord.of(int(parent.stdout.readline()))

    parent.kill()
    parent.communicate()

    wait_until(lambda: not child.is_alive())
