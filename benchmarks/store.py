"""What the store costs: a create, a get, and a page of a long list against a page of a short one.

    python benchmarks/store.py [--quick]

The last column is the ratio long / short; a keyset page that walks an index keeps it near 1. Of what is
rare the short list holds one or two and the long one a page full, so there the ratio is that of the rows.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy import insert

from service.edge.identifiers import new_experiment_id
from service.experiment import State
from service.ports import ListQuery, NewExperiment
from service.store import SqlStore
from service.store.tables import experiment_labels, experiments

SHORT: Final = 100
START: Final = datetime(2030, 1, 1, tzinfo=UTC)
# One in a hundred is rare: it is what a filter that walks the wrong index stumbles over.
QUERIES: Final = {
    "newest": ListQuery(),
    "oldest": ListQuery(order_by="created_at"),
    "by name": ListQuery(order_by="name"),
    "by priority": ListQuery(order_by="-priority"),
    "one owner": ListQuery(owner="ada"),
    "rare owner": ListQuery(owner="eve"),
    "common state": ListQuery(states=(State.SUCCEEDED,)),
    "rare state": ListQuery(states=(State.RUNNING,)),
    "owner, state": ListQuery(owner="ada", states=(State.RUNNING,)),
    "three states": ListQuery(states=(State.SUCCEEDED, State.RUNNING, State.FAILED)),
    "rare kind": ListQuery(kind="sweep"),
    "common label": ListQuery(labels={"team": "vision"}),
    "rare label": ListQuery(labels={"rare": "yes"}),
    "owner, label": ListQuery(owner="ada", labels={"rare": "yes"}),
    "two labels": ListQuery(labels={"team": "vision", "rare": "yes"}),
    "state, by name": ListQuery(states=(State.SUCCEEDED,), order_by="name"),
    "rare state, by name": ListQuery(states=(State.RUNNING,), order_by="name"),
    "state, by priority": ListQuery(states=(State.SUCCEEDED,), order_by="-priority"),
    "kind, by name": ListQuery(kind="pretrain", order_by="name"),
    "kind, by priority": ListQuery(kind="pretrain", order_by="priority"),
    "owner, by name": ListQuery(owner="ada", order_by="name"),
    "owner, state, by name": ListQuery(owner="ada", states=(State.SUCCEEDED,), order_by="name"),
    "owner, rare state, by priority": ListQuery(owner="ada", states=(State.RUNNING,), order_by="priority"),
    "owner, kind, by priority": ListQuery(owner="ada", kind="pretrain", order_by="priority"),
    "label, by name": ListQuery(labels={"team": "vision"}, order_by="name"),
    "label, by priority": ListQuery(labels={"team": "vision"}, order_by="-priority"),
    "owner, label, by name": ListQuery(owner="ada", labels={"team": "vision"}, order_by="name"),
    "rare owner, common label": ListQuery(owner="eve", labels={"team": "vision"}, order_by="name"),
    "rare label, by name": ListQuery(labels={"rare": "yes"}, order_by="name"),
}


def _asked(number: int) -> NewExperiment:
    is_rare = number % 100 == 7
    return NewExperiment(
        id=new_experiment_id(),
        name=f"experiment-{number * 7919 % 100_003}",
        kind="sweep" if is_rare else "pretrain",
        owner="eve" if number % 100 == 8 else "ada",
        labels={"team": "vision"} | ({"rare": "yes"} if is_rare else {}),
        priority=number % 5,
        request={"data": {"dataset": "openmoji"}},
        spec={"optim": {"kind": "lars", "base_lr": 0.3}, "batch_size": 256, "epochs": 100},
        spec_digest="0" * 64,
        plan={"steps": 1_000},
        max_attempts=3,
        wall_time_s=36_000,
    )


async def _fill(store: SqlStore, num_experiments: int) -> None:
    """Insert in bulk: creating them one by one would take minutes and measure nothing more."""
    rows, labels = [], []
    for number in range(num_experiments):
        new = _asked(number)
        at = START + timedelta(seconds=number)
        state = State.RUNNING if number % 100 == 7 else State.SUCCEEDED
        values = {name: getattr(new, name) for name in new.__dataclass_fields__}
        values |= {"state": state, "conditions": [], "attempt": 1, "failures": 0, "version": 3}
        rows.append(values | {"created_at": at, "updated_at": at})
        beside = {"created_at": at, "owner": new.owner, "name": new.name, "priority": new.priority}
        labels += [{"experiment_id": new.id, "key": key, "value": value, **beside} for key, value in new.labels.items()]
    with store._database.writers.engine.begin() as connection:  # noqa: SLF001 - below the protocol on purpose
        connection.execute(insert(experiments), rows)
        connection.execute(insert(experiment_labels), labels)


async def _medians_ms(calls: Sequence[Callable[[], Awaitable[object]]], *, num_calls: int) -> list[float]:
    """Return the median duration of each, called in turn so that what else the machine does meets all alike."""
    durations_ms: list[list[float]] = [[] for _ in calls]
    for _ in range(num_calls):
        for call, found in zip(calls, durations_ms, strict=True):
            begin = time.perf_counter()
            await call()
            found.append(1000 * (time.perf_counter() - begin))
    return [statistics.median(found) for found in durations_ms]


async def _second_page(store: SqlStore, query: ListQuery) -> Callable[[], Awaitable[object]]:
    """Return what reads the second page, which starts from a position; the first where there is only one."""
    query = replace(query, page_size=25)
    first = await store.list(query)
    return partial(store.list, replace(query, after=first.next_after))


async def _measure(folder: Path, *, long: int, num_calls: int) -> None:
    stores: list[SqlStore] = []
    for size in (SHORT, long):
        store = await SqlStore.open(f"sqlite:///{folder / f'{size}.db'}", upgrade=True)
        await _fill(store, size)
        stores.append(store)
    _print_row("", f"{SHORT} stored", f"{long} stored", "ratio")
    for name, query in QUERIES.items():
        pages = [await _second_page(store, query) for store in stores]
        _print_costs(f"page: {name}", await _medians_ms(pages, num_calls=num_calls))
    ids = [(await store.list(ListQuery(page_size=1))).items[0].id for store in stores]
    gets = [partial(store.get, id_) for store, id_ in zip(stores, ids, strict=True)]
    _print_costs("get", await _medians_ms(gets, num_calls=num_calls))
    _print_costs("create", await _medians_ms([partial(_create, store) for store in stores], num_calls=num_calls))
    for store in stores:
        await store.close()


async def _create(store: SqlStore) -> None:
    await store.create(_asked(0), None)


def _print_costs(name: str, costs_ms: Sequence[float]) -> None:
    short, long = costs_ms
    _print_row(name, f"{short:.2f} ms", f"{long:.2f} ms", f"{long / short:.2f}")


def _print_row(*cells: str) -> None:
    print(f"{cells[0]:36}" + "".join(f"{cell:>16}" for cell in cells[1:]))


def main() -> None:
    """Fill two databases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10,000 experiments instead of 100,000")
    is_quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(Path(folder), long=10_000 if is_quick else 100_000, num_calls=15 if is_quick else 50))


if __name__ == "__main__":
    main()
