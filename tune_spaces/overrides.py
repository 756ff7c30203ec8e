"""Dotted overrides of a spec: `{"loss.temperature": 0.1}` on a document, and as flat params."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from trainer.spec import PretrainSpec

__all__ = [
    "apply_overrides",
    "flat_params",
    "flat_value",
    "listed_values",
    "merge",
    "point_of",
    "spec_paths",
    "value_at",
]


def apply_overrides(document: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `document` with the value at each dotted path replaced; the original stays as it is.

    Raises:
        KeyError: If a path runs through something that is no object.
    """
    changed = dict(document)
    for path, value in overrides.items():
        changed = _replace(changed, path, value)
    return changed


def _replace(document: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    head, _, rest = path.partition(".")
    if not rest:
        return {**document, head: value}
    inner = document.get(head, {})
    if not isinstance(inner, Mapping):
        raise KeyError(path)
    return {**document, head: _replace(inner, rest, value)}


def merge(document: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `document` with what `over` names, part by part; lists are replaced whole."""
    merged = dict(document)
    for name, value in over.items():
        inner = merged.get(name)
        merged[name] = merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def value_at(document: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path, None where there is none."""
    node: Any = document
    for name in path.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def flat_params(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point as flat params: dotted path -> scalar; what is no scalar is JSON text."""
    return {path: flat_value(value) for path, value in point.items()}


def flat_value(value: Any) -> Any:
    """Return a scalar as it is, a list or object as JSON text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, separators=(",", ":"))


def point_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the point that flat params were made of; no field's own text begins as JSON's lists and objects do."""
    return {
        path: json.loads(value) if isinstance(value, str) and value.startswith(("[", "{")) else value
        for path, value in params.items()
    }


@cache
def listed_values(path: str) -> tuple[Any, ...]:
    """Return the values that the field at a dotted path may take, in order; () where they are not listed."""
    annotation: Any = PretrainSpec
    for name in path.split("."):
        fields = annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else {}
        annotation = fields[name].annotation if name in fields else None
    return get_args(annotation) if get_origin(annotation) is Literal else ()


@cache
def spec_paths() -> frozenset[str]:
    """Return the dotted path of every field of the pretrain spec, its parts included."""
    return frozenset(_paths(PretrainSpec, ""))


def _paths(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _paths(field.annotation, f"{prefix}{name}.")
