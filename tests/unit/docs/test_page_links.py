"""The pages lead somewhere: every link inside them has its heading, and every failure its entry in the runbook."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.harness.page import headings, page, section, table, targets

ROOT = Path(__file__).parents[3]
PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))
RUNBOOK = headings(section(page("operations.md"), "Runbook"))
FAILURES = [
    ("Recovery", "fault"),
    ("Silence and outages", "away"),
    ("Alerts", "alert"),
]


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file_and_a_heading_that_exist(file: Path) -> None:
    for target in targets(file.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = (file.parent / name).resolve() if name else file
        assert there.exists(), target
        if anchor:
            assert anchor in headings(there.read_text()), target


def test_the_list_of_decisions_holds_each() -> None:
    folder = ROOT / "docs" / "decisions"
    files = sorted(file.name for file in folder.glob("*.md") if file.name != "README.md")
    assert targets((folder / "README.md").read_text()) == files


@pytest.mark.parametrize(("title", "first"), FAILURES)
def test_every_failure_that_is_told_of_has_its_entry_in_the_runbook(title: str, first: str) -> None:
    rows = table(section(page("operations.md"), title), first)
    assert len(rows) >= 4
    for row in rows:
        anchors = [target.removeprefix("#") for target in targets(" ".join(row)) if target.startswith("#")]
        assert anchors, f"{row[0]}: what is to be done?"
        assert set(anchors) <= RUNBOOK


def test_every_fault_that_is_measured_has_its_row() -> None:
    """One row for each fault of the benchmark, and those of the service's replicas from its own test."""
    text = (ROOT / "benchmarks" / "faults.py").read_text()
    faults = re.findall(r'^    "([a-z-]+)": Fault\(', text, flags=re.MULTILINE)
    assert len(faults) == 13
    words = {
        "worker-killed": "worker process killed",
        "storage-outage": "storage away",
        "storage-held": "storage holds everything back",
        "storage-torn": "checkpoints broken off",
        "cpus-taken": "processors taken",
        "head-restarted": "started again, without its tables",
        "head-restored": "started again over its tables",
        "node-added": "node switched on",
        "link-down": "link of a node down",
        "link-slow": "link of a node at",
    }
    rows = [row[0] for row in table(section(page("operations.md"), "Recovery"), "fault")]
    for fault in faults:
        wanted = words.get(fault, fault.replace("-", " "))
        assert [row for row in rows if wanted in row], fault
