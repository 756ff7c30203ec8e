"""The alerts of docs/operations.md ask for what a service really counts, under the labels it gives."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx2
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from service.app import create_app
from service.dispatch.dispatcher import Dispatcher
from service.dispatch.dispatcher_metrics import DispatcherMetrics
from service.errors import StoreUnavailable
from service.experiment import State
from tests.fakes.control_plane import ControlPlane
from tests.harness.page import page, section, table

pytestmark = pytest.mark.anyio

ALERTS: Final = {row[0]: row for row in table(section(page("operations.md"), "Alerts"), "alert")}
SELECTOR: Final = re.compile(r"(simclr_\w+)(?:\{(.*?)\}(?=[\[)\s]))?")
MATCHER: Final = re.compile(r'(\w+)(=~|!~|!=|=)"(.*?)"')


@pytest.fixture(scope="module")
async def samples(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> AsyncIterator[list[Sample]]:
    """Return what is scraped of a service that has lived through everything that alerts ask for."""
    home = tmp_path_factory.mktemp("alerts")
    database = home / "simclr.db"
    shutil.copyfile(migrated_database, database)
    plane, registry = ControlPlane(database=database, home=home), CollectorRegistry()
    plane.dispatcher = Dispatcher(
        store=plane.store,
        cluster=plane.cluster,
        tracking=plane.tracking,
        blobs=plane.blobs,
        settings=plane.settings,
        claim="counted",
        clock=plane.clock,
        metrics=DispatcherMetrics(registry),
    )
    try:
        await live_through_it_all(plane)
        text = generate_latest(registry).decode() + await scraped(plane)
        yield [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    finally:
        await plane.store.close()


async def live_through_it_all(plane: ControlPlane) -> None:
    await plane.step_until(await plane.submit("crash"), State.SUCCEEDED)
    await plane.step_until(await plane.submit("error"), State.FAILED)
    running = await plane.submit()
    await plane.step_until(running, State.RUNNING)
    plane.cluster.is_down = True
    await plane.step()
    plane.cluster.is_down = False
    plane.blobs.is_down = True
    await plane.step(advance_s=60)
    plane.blobs.is_down = False
    plane.tracking.is_down = True
    await plane.step_until(running, State.SUCCEEDED)
    plane.tracking.is_down = False
    with pytest.MonkeyPatch.context() as patch:
        await lose_database(plane, patch)


async def lose_database(plane: ControlPlane, patch: pytest.MonkeyPatch) -> None:
    """Let the loop meet a database that is away."""
    stop = asyncio.Event()

    async def away(*_: object, **__: object) -> None:
        stop.set()
        raise StoreUnavailable("the database does not answer")

    patch.setattr(plane.store, "claim_due", away)
    async with asyncio.timeout(10):
        await plane.dispatcher.run(stop)


async def scraped(plane: ControlPlane) -> str:
    """Return what the app itself counts, after an answer and one that the database kept it from."""
    app = create_app(
        settings=plane.settings, store=plane.store, cluster=plane.cluster, tracking=plane.tracking, blobs=plane.blobs
    )
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1:8000") as http:
        assert (await http.get("/experiments")).status_code == 200
        with pytest.MonkeyPatch.context() as patch:

            async def away(*_: object, **__: object) -> None:
                raise StoreUnavailable("the database does not answer")

            patch.setattr(plane.store, "list", away)
            assert (await http.get("/experiments")).status_code == 503
        lines = (await http.get("/metrics")).text.splitlines(keepends=True)
        # Of its own dispatcher, which does not run here, there is nothing to see.
        return "".join(line for line in lines if re.match(r"(# \w+ )?simclr_(http|experiments)", line))


@pytest.mark.parametrize("name", ALERTS)
async def test_each_selector_of_an_alert_finds_something(samples: list[Sample], name: str) -> None:
    expression = ALERTS[name][1].strip("`")
    selectors = SELECTOR.findall(expression)
    assert selectors
    for metric, matchers in selectors:
        wanted = MATCHER.findall(matchers)
        assert bool(wanted) == bool(matchers)
        found = [sample for sample in samples if sample.name == metric and fits(sample, wanted)]
        assert found, f"{metric}{{{matchers}}} is nothing that the service counts"
        (grouped,) = re.findall(r"by \((\w+)\)", expression) or [None]
        assert grouped is None or all(grouped in sample.labels for sample in found)


def fits(sample: Sample, matchers: list[tuple[str, str, str]]) -> bool:
    """Return whether a sample has these labels; one that no sample has would match by its absence."""
    for label, operator, value in matchers:
        if label not in sample.labels:
            return False
        is_same = (
            re.fullmatch(value, sample.labels[label]) is not None
            if "~" in operator
            else (sample.labels[label] == value)
        )
        if is_same == operator.startswith("!"):
            return False
    return True


async def test_each_part_that_can_be_away_is_counted_under_the_code_that_the_page_names(samples: list[Sample]) -> None:
    counted = {
        sample.labels["code"] for sample in samples if sample.name == "simclr_outages_total" and sample.value >= 1
    }
    assert counted == set(re.findall(r"`(\w+_unavailable)`", ALERTS["a part is away"][3]))
    assert len(counted) == 4


async def test_what_alerts_count_was_counted(samples: list[Sample]) -> None:
    values = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
    assert values["simclr_attempts_total", "recovery"] >= 1
    assert values["simclr_settled_total", "failed"] == 1
    assert values["simclr_queue_wait_seconds_count",] == 3
