"""The operations of views in words; settings hold them as JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["OPERATIONS", "first_view_operations", "operations_line"]

OPERATIONS: Final = "views.operations"


def operations_line(operations: str, *, is_whole: bool = False) -> str:
    """Return their names in order, a star at those that the first view alone gets; whole with what else is set."""
    return " + ".join(_name(one) + (_fields(one) if is_whole else "") for one in json.loads(operations))


def first_view_operations(operations: str) -> list[str]:
    """Return the names of those that the first view alone gets (paper, section 3.1)."""
    names = [one["op"] for one in json.loads(operations) if one.get("branch") == "first"]
    # Colour distortion is jitter followed by dropping colour (paper, appendix A).
    return [
        name
        for place, name in enumerate(names)
        if not (name == "grayscale" and place and names[place - 1] == "color_jitter")
    ]


def _name(operation: Mapping[str, Any]) -> str:
    return f"{operation['op']}*" if operation.get("branch") == "first" else str(operation["op"])


def _fields(operation: Mapping[str, Any]) -> str:
    told = ("op", *(("branch",) if operation.get("branch") == "first" else ()))  # by the name
    fields = ", ".join(f"{field} {value}" for field, value in operation.items() if field not in told)
    return f" ({fields})" if fields else ""
