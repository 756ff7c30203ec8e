"""The OpenAPI document and its pages; every asset is served from here."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from service.edge.auth import needs
from service.edge.deps import api_router
from service.edge.problems import Problem
from service.ports import Role

__all__ = ["PAGE_POLICY", "STATIC", "router"]

router = api_router("docs")

STATIC: Final = Path(__file__).parent.parent / "web" / "static"
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_MEDIA_TYPES: Final = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PAGE: Final = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>SimCLR service</title>
<link rel="icon" href="/static/icon.svg"><link rel="stylesheet" href="/static/swagger-ui.css"></head>
<body><div id="swagger-ui"></div>
<script src="/static/swagger-ui-bundle.js"></script><script src="/static/docs.js"></script></body>
</html>
"""


@router.get("/openapi.json", include_in_schema=False, openapi_extra=needs(Role.VIEWER))
async def openapi(request: Request) -> Response:
    """Return the OpenAPI document."""
    return JSONResponse(request.app.openapi())


@router.get("/docs", include_in_schema=False, openapi_extra=needs(Role.VIEWER))
async def docs() -> Response:
    """Return the page that shows it."""
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": PAGE_POLICY})


@router.get("/static/{name}", include_in_schema=False, openapi_extra=needs(Role.VIEWER))
async def static(name: str) -> Response:
    """Return one script or style sheet of the pages."""
    path = STATIC / name
    media_type = _MEDIA_TYPES.get(path.suffix)
    if media_type is None or name not in {file.name for file in STATIC.iterdir()}:
        raise Problem(404, "asset_not_found", f"there is no asset {name[:64]!r}")
    headers = {"Cache-Control": "private, max-age=3600"}
    return Response(path.read_bytes(), media_type=media_type, headers=headers)
