"""The pages under docs/ as programs read them: sections, tables, links and the anchors of headings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

__all__ = ["headings", "page", "section", "table", "targets"]

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
_FENCE: Final = re.compile(r"^```.*?^```$", flags=re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    """Return a page without what stands in it as code."""
    return _FENCE.sub("", (DOCS / name).read_text())


def section(text: str, title: str) -> str:
    """Return what stands under a heading, up to the next of its level or above."""
    match = re.search(rf"^(#+) {re.escape(title)}$", text, flags=re.MULTILINE)
    assert match is not None, f"no heading {title!r}"
    below = text[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", below, flags=re.MULTILINE)
    return below[: end.start()] if end else below


def table(text: str, first: str) -> list[list[str]]:
    """Return the rows of every table whose first column is headed `first`."""
    rows: list[list[str]] = []
    is_inside = False
    for line in text.splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            is_inside = False
        elif cells[0] == first:
            is_inside = True
        elif is_inside and set(cells[0]) != {"-"}:
            rows.append(cells)
    assert rows, f"no table of {first!r}"
    return rows


def targets(text: str) -> list[str]:
    """Return where the links of a text lead."""
    return re.findall(r"\]\(([^()\s]+)\)", _FENCE.sub("", text))


def headings(text: str) -> set[str]:
    """Return the anchors of a text's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}
