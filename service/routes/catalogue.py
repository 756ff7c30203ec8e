"""What can be named in a spec: data sets and studies."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING

from service.edge.auth import needs
from service.edge.deps import ServicesDep, api_router
from service.edge.problems import Problem, responses
from service.ports import Role
from service.schemas import DatasetView, Items, StudyView
from service.views.listing import DEFAULT_PAGE_SIZE, PageSize, PageToken, page_of_sequence
from tune_spaces.catalogue import describe_study
from tune_spaces.studies import list_studies

if TYPE_CHECKING:
    from trainer.data.source import DatasetInfo  # numpy comes with it

__all__ = ["router"]

router = api_router("catalogue")


@router.get(
    "/datasets",
    operation_id="listDatasets",
    summary="List the data sets",
    openapi_extra=needs(Role.VIEWER),
)
async def datasets(
    services: ServicesDep, page_size: PageSize = DEFAULT_PAGE_SIZE, page_token: PageToken = ""
) -> Items[DatasetView]:
    """Return every data set; what cannot be used says why in `problem`."""
    found = await services.datasets.ask(services.datasets.all)
    key = services.paging_key
    items, token = page_of_sequence(
        [_view(info) for info in found], name="datasets", page_size=page_size, page_token=page_token, key=key
    )
    return Items(items=items, next_page_token=token)


@router.get(
    "/datasets/{name}",
    operation_id="getDataset",
    summary="Show one data set",
    responses=responses(404),
    openapi_extra=needs(Role.VIEWER),
)
async def dataset(name: str, services: ServicesDep) -> DatasetView:
    """Return one data set."""
    for found in await services.datasets.ask(services.datasets.all):
        if found.name == name:
            return _view(found)
    raise Problem(404, "dataset_not_found", f"there is no data set {name[:64]!r}; see /datasets")


def _view(info: DatasetInfo) -> DatasetView:
    return DatasetView.model_validate(asdict(info))


@router.get(
    "/studies",
    operation_id="listStudies",
    summary="List the catalogue of sweeps",
    openapi_extra=needs(Role.VIEWER),
)
async def studies(
    services: ServicesDep, page_size: PageSize = DEFAULT_PAGE_SIZE, page_token: PageToken = ""
) -> Items[StudyView]:
    """Return every study: a named sweep that answers one question of the paper."""
    key = services.paging_key
    found = await asyncio.to_thread(_studies)
    items, token = page_of_sequence(found, name="studies", page_size=page_size, page_token=page_token, key=key)
    return Items(items=items, next_page_token=token)


@router.get(
    "/studies/{name}",
    operation_id="getStudy",
    summary="Show one study",
    responses=responses(404),
    openapi_extra=needs(Role.VIEWER),
)
async def study(name: str) -> StudyView:
    """Return one study with what it sweeps at each size."""
    for found in await asyncio.to_thread(_studies):
        if found.name == name:
            return found
    raise Problem(404, "study_not_found", f"there is no study {name[:64]!r}; see /studies")


@cache  # they come with the code; planning every size of every study takes a moment
def _studies() -> tuple[StudyView, ...]:
    return tuple(StudyView.model_validate(describe_study(study)) for study in list_studies())
