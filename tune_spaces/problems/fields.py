"""What is wrong with single fields of a pretrain spec, as problems at JSON pointers."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trainer.spec import PretrainSpec, SpecProblem
from tune_spaces.overrides import apply_overrides, spec_paths

__all__ = ["document_problems", "escaped", "pointer_of", "unknown_path_detail", "value_refusal"]

_SIGNS = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}", "expected": "{}", "pattern": "matches {}"}
_STAND_IN: Mapping[str, Any] = {"data": {"dataset": "stand-in"}}  # the one field without a default


def escaped(part: str) -> str:
    """Return one part of a JSON pointer (RFC 6901)."""
    return part.replace("~", "~0").replace("/", "~1")


def pointer_of(path: str) -> str:
    """Return the JSON pointer of a dotted path."""
    return "/" + path.replace(".", "/")


def document_problems(document: Mapping[str, Any]) -> list[SpecProblem]:
    """Return what is wrong with the fields of a pretrain spec's document, all at once."""
    try:
        PretrainSpec.model_validate(document)
    except ValidationError as error:
        found = {_pointer(item, document): item for item in error.errors(include_url=False)}
        return [_problem(pointer, item) for pointer, item in found.items()]
    return []


def value_refusal(path: str, value: Any) -> tuple[str, Any] | None:
    """Return why a field refuses a value and what it allows; None if it takes it."""
    try:
        PretrainSpec.model_validate(apply_overrides(_STAND_IN, {path: value}))
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        return _lower(item["msg"]), _allowed(item)
    return None


def unknown_path_detail(path: str) -> tuple[str, list[str]]:
    """Return in words that a path is no field, and which ones were perhaps meant."""
    near = difflib.get_close_matches(path, spec_paths(), n=3, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "use a dotted path such as loss.temperature"
    return f"{path} is no field of a pretrain spec; {hint}", near or sorted(spec_paths())


def _problem(pointer: str, item: ErrorDetails) -> SpecProblem:
    name = pointer.rpartition("/")[2] or "the spec"
    detail = "no such field" if item["type"] == "extra_forbidden" else _lower(item["msg"])
    return SpecProblem(pointer=pointer, code=item["type"], detail=f"{name}: {detail}", allowed=_allowed(item))


def _allowed(item: ErrorDetails) -> Any:
    context = item.get("ctx", {})
    return ", ".join(words.format(context[key]) for key, words in _SIGNS.items() if key in context) or None


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _pointer(item: ErrorDetails, document: Any) -> str:
    """Return where in the document the error is: its place without the tags of unions in it."""
    pointer, node = "", document
    for index, part in enumerate(item["loc"]):
        is_key = isinstance(node, Mapping) and part in node
        is_index = isinstance(node, list | tuple) and isinstance(part, int) and part < len(node)
        if is_key or is_index:
            node = node[part]
        elif not (index == len(item["loc"]) - 1 and item["type"] == "missing"):
            continue
        pointer += f"/{escaped(str(part))}"
    return pointer
