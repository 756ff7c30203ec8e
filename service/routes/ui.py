"""Pages for people under /ui: log in, the list, one experiment live."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import parse_qs

from fastapi import Query, Request, Response
from fastapi.responses import RedirectResponse

from service.edge.auth import COOKIE, PUBLIC, authenticate_secret, needs
from service.edge.deps import CurrentCaller, OwnedExperiment, ServicesDep, api_router, read_body
from service.edge.pages import login_page, page, wants_page
from service.edge.problems import Problem
from service.errors import Unavailable
from service.ports import Role
from service.views.experiments_view import view_experiment, view_experiments
from service.views.listing import page_of_states
from service.views.trials_view import read_trials
from trainer import metric_names

__all__ = ["router"]

router = api_router("pages")

PAGE_SIZE: Final = 50
CURVES: Final = (metric_names.LOSS, metric_names.CONTRASTIVE_ACCURACY, metric_names.KNN_ACCURACY)
LOGIN_S: Final = 12 * 3600


@router.get("/", include_in_schema=False, openapi_extra=needs(Role.VIEWER))
async def home() -> Response:
    """Lead a person to the pages."""
    return RedirectResponse("/ui")


@router.get("/ui", include_in_schema=False, openapi_extra=needs(Role.VIEWER))
async def experiments(
    services: ServicesDep, caller: CurrentCaller, page_token: Annotated[str, Query(max_length=2048)] = ""
) -> Response:
    """Show the experiments, newest first."""
    records, token = await page_of_states((), services, caller=caller, page_size=PAGE_SIZE, page_token=page_token)
    views = await view_experiments(records, services)
    return page("experiments.html", experiments=views, next_page_token=token)


@router.get("/ui/experiments/{experiment_id}", include_in_schema=False, openapi_extra=needs(Role.VIEWER))
async def experiment(record: OwnedExperiment, services: ServicesDep) -> Response:
    """Show one experiment; its script follows the event stream."""
    view = await view_experiment(record, services)
    try:
        trials = await read_trials(record, services) if record.attempt else []
    except Unavailable:
        trials = []  # the conditions of the view say so
    curves = CURVES if record.kind == "pretrain" else ()
    return page("experiment.html", experiment=view, trials=trials, curves=curves)


@router.get("/ui/login", include_in_schema=False, openapi_extra=needs(PUBLIC))
async def login_form() -> Response:
    """Ask for a token."""
    return login_page()


@router.post("/ui/login", include_in_schema=False, openapi_extra=needs(PUBLIC))
async def login(request: Request, services: ServicesDep) -> Response:
    """Keep a good token in a cookie that scripts and other sites cannot use."""
    form = parse_qs((await read_body(request)).decode("utf-8", errors="replace"))
    secret = (form.get("token") or [""])[0].strip()
    try:
        await authenticate_secret(secret, store=services.store)
    except Problem as problem:
        if wants_page(request):
            return login_page(message=problem.detail)
        raise
    answer = RedirectResponse("/ui", status_code=303)
    is_secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, secret, max_age=LOGIN_S, httponly=True, samesite="strict", secure=is_secure)
    return answer
