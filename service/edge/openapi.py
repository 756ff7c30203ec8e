"""The OpenAPI document: FastAPI's, with the bodies that are parsed by hand and the security in force."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.edge.auth import COOKIE, PERMISSION, PUBLIC
from service.edge.problems import MEDIA_TYPE
from service.schemas import (
    CloneRequest,
    ContinueRequest,
    ExperimentPatch,
    FieldProblem,
    PretrainSubmission,
    SweepSubmission,
    TokenRequest,
)

__all__ = ["VERSION", "install_openapi"]

VERSION: Final = "3.2.0"  # the first that describes event streams
_BODIES: Final[tuple[type[BaseModel], ...]] = (
    PretrainSubmission,
    SweepSubmission,
    ExperimentPatch,
    CloneRequest,
    ContinueRequest,
    TokenRequest,
    FieldProblem,
)
_PROBLEM: Final[dict[str, Any]] = {
    "title": "Problem",
    "description": f"RFC 9457, sent as {MEDIA_TYPE}",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "retryable", "errors"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string", "description": "stable; what programs branch on"},
        "retryable": {"type": "boolean"},
        "errors": {"type": "array", "items": {"$ref": "#/components/schemas/FieldProblem"}},
    },
}


def install_openapi(app: FastAPI) -> None:
    """Make `app.openapi()` return the whole document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi_version = VERSION
    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version=app.openapi_version,
        description=app.description,
        routes=app.routes,
    )
    _, definitions = models_json_schema(
        [(model, "validation") for model in _BODIES], ref_template="#/components/schemas/{model}"
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= {"Problem": _PROBLEM, **{name: _with_tag(schema) for name, schema in definitions["$defs"].items()}}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
    }
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        is_public = operation.get(PERMISSION) == PUBLIC
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = _without_null(parameter["schema"])
        operation["security"] = [] if is_public else [{"bearer": []}, {"cookie": []}]
    return document


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter without null: what is left out of a request is not null in it."""
    branches = [branch for branch in schema.get("anyOf", ()) if branch != {"type": "null"}]
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return branches[0] | rest if len(branches) == 1 else schema


def _with_tag(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with the constant by which its union tells it apart required, default or not."""
    tags = [name for name, field in schema.get("properties", {}).items() if "const" in field]
    return schema | ({"required": sorted({*schema.get("required", []), *tags})} if tags else {})
