"""RFC 9457 problem documents: the only shape in which an error leaves the service.

Every status of 400 and above goes through `problem_response`. A route raises `Problem` or lets an
error of `service.errors` pass; the handlers below turn either, and the framework's own, into a
document. No trace, secret or server path is ever part of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service import errors
from service.schemas import FieldProblem

__all__ = ["MEDIA_TYPE", "Problem", "install_handlers", "problem_response", "responses"]

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 5

_STATUSES: Final[Mapping[type[errors.ServiceError], int]] = {
    errors.ExperimentNotFound: 404,
    errors.TokenNotFound: 404,
    errors.ArtifactNotFound: 404,
    errors.IdempotencyConflict: 422,
    errors.StaleState: 409,
    errors.IllegalTransition: 409,
    errors.StaleVersion: 412,
    errors.Unavailable: 503,
}


class Problem(Exception):
    """An answer of 400 or above, raised anywhere below a route."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}
        self.members = members


def problem_response(problem: Problem, *, instance: str) -> JSONResponse:
    """Return the response of `problem`; 429 and 503 always say when to come back."""
    headers = dict(problem.headers)
    is_retryable = problem.status in (429, 503)
    if is_retryable:
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    document = {
        "type": f"urn:simclr:problem:{problem.code}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "instance": instance,
        "code": problem.code,
        "retryable": is_retryable,
        "errors": [error.model_dump(mode="json") for error in problem.errors],
        **problem.members,
    }
    return JSONResponse(document, status_code=problem.status, headers=headers, media_type=MEDIA_TYPE)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI declaration of these error statuses, for a route or a router."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install_handlers(app: FastAPI) -> None:
    """Make every error that a route or the framework raises a problem document."""

    @app.exception_handler(Problem)
    async def raised(request: Request, error: Problem) -> JSONResponse:
        return problem_response(error, instance=request.url.path)

    @app.exception_handler(errors.ServiceError)
    async def service(request: Request, error: errors.ServiceError) -> JSONResponse:
        return problem_response(_of_service_error(error), instance=request.url.path)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        return problem_response(_of_framework_error(error, request), instance=request.url.path)

    @app.exception_handler(RequestValidationError)
    async def parameters(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem_response(_of_parameter_errors(error), instance=request.url.path)


def _of_service_error(error: errors.ServiceError) -> Problem:
    status = next((status for kind, status in _STATUSES.items() if isinstance(error, kind)), 500)
    # An unforeseen error's words may name addresses or paths: they are logged, not sent.
    detail = error.message if status in (404, 409, 412, 422) else type(error).__doc__ or ""
    return Problem(status, error.code, detail)


def _of_framework_error(error: HTTPException, request: Request) -> Problem:
    codes = {404: "route_not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, HTTPStatus(error.status_code).phrase.lower().replace(" ", "_"))
    headers = error.headers
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # the framework names the methods of one route alone
        headers = {"Allow": ", ".join(sorted(_methods_at(request)))}
    return Problem(error.status_code, code, str(error.detail), headers=headers)


def _methods_at(request: Request) -> set[str]:
    at_path = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return {method for route in at_path for method in getattr(route, "methods", None) or ()}


def _of_parameter_errors(error: RequestValidationError) -> Problem:
    """Return the 422 of wrong query, path or header parameters; pointers start with their place."""
    found = [
        FieldProblem(
            pointer="/" + "/".join(str(part) for part in item["loc"]),
            code=item["type"],
            detail=f"{item['loc'][-1]}: {item['msg']}",
            allowed=next(iter((item.get("ctx") or {}).values()), None),
        )
        for item in error.errors()
    ]
    return Problem(422, "parameters_invalid", "; ".join(item.detail for item in found), errors=found)
