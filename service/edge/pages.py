"""Pages for people: templates that escape all they are given, under a policy without inline scripts."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any, Final

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["login_page", "page", "wants_page"]

TEMPLATES: Final = Path(__file__).parents[1] / "web" / "templates"


@cache
def _environment() -> tuple[Environment, str]:
    """Return the templates and the policy that allows their one style sheet and no other inline thing."""
    styles = (TEMPLATES / "styles.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(styles.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self' 'sha256-{digest}'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.globals["styles"] = Markup(styles)  # noqa: S704 - our own file
    return environment, policy


def page(name: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a rendered template."""
    environment, policy = _environment()
    text = environment.get_template(name).render(**values)
    return HTMLResponse(text, status_code=status, headers={"Content-Security-Policy": policy})


def login_page(*, message: str = "") -> HTMLResponse:
    """Return the form that asks for a token: a 401 that a person can answer."""
    return page("login.html", status=401, message=message)


def wants_page(request: Request) -> bool:
    """Return whether a browser asks for one of the pages, rather than a program for a document."""
    return request.url.path.startswith("/ui") and "text/html" in request.headers.get("accept", "")
