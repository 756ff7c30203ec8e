"""All that is wrong with a request, at once, each with a JSON pointer from the body's root.

Pydantic stops at the fields; the judgements over several fields need a whole spec. So the wrong
leaves are pruned from the input (their defaults step in), the rest is judged, and a judgement
that rests on a pruned field is dropped: nothing is reported that a mended field would change.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from service.schemas import FieldProblem
from trainer.spec import SpecProblem

__all__ = ["check_fields", "independent", "overlaps", "place"]

Model = TypeVar("Model", bound=BaseModel)

MAX_ECHO = 64  # characters of a refused value that are repeated
PRUNING_ROUNDS = 8


def check_fields(
    model: type[Model], document: Any, *, placeholders: Mapping[str, Any] | None = None
) -> tuple[Model | None, list[FieldProblem]]:
    """Return the model as far as it can be built, and what is wrong with single fields.

    Args:
        model: What the document should be.
        document: Parsed JSON.
        placeholders: Pointer -> value that stands in for a required field that is wrong.

    Returns:
        The model of the document without its wrong leaves (None where too little is left), and
        the problems; without problems the model is the document's.
    """
    try:
        return model.model_validate(document), []
    except ValidationError as error:
        problems = _problems(error, document, model)
    remains = copy.deepcopy(document)
    pointers = [problem.pointer for problem in problems]
    for _ in range(PRUNING_ROUNDS):
        for pointer in pointers:
            _prune(remains, pointer, placeholders or {})
        try:
            return model.model_validate(remains), problems
        except ValidationError as error:
            # What still fails after its leaf is gone (a part that needs it) goes as a whole.
            found = [_pointer(item, remains) for item in error.errors(include_url=False)]
            pointers = [pointer.rpartition("/")[0] if pointer in pointers else pointer for pointer in found]
    return None, problems


def place(problem: SpecProblem, prefix: str) -> SpecProblem:
    """Return `problem` with its pointers moved under `prefix`."""
    return problem.model_copy(
        update={
            "pointer": prefix + problem.pointer,
            "involves": tuple(prefix + pointer for pointer in problem.involves),
        }
    )


def independent(problems: Sequence[SpecProblem], of: Sequence[FieldProblem]) -> list[FieldProblem]:
    """Return the judgements that rest on no field found wrong already."""
    wrong = [problem.pointer for problem in of]
    return [
        FieldProblem(pointer=found.pointer, code=found.code, detail=found.detail, allowed=found.allowed)
        for found in problems
        if not any(overlaps(pointer, bad) for pointer in (found.pointer, *found.involves) for bad in wrong)
    ]


def overlaps(one: str, other: str) -> bool:
    """Return whether one pointer lies at or under the other."""
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")


def _prune(document: Any, pointer: str, placeholders: Mapping[str, Any]) -> None:
    *parents, leaf = _parts(pointer) or [""]
    node = document
    for part in parents:
        node = _child(node, part)
    if pointer in placeholders and isinstance(node, dict):
        node[leaf] = copy.deepcopy(placeholders[pointer])
    elif isinstance(node, dict):
        node.pop(leaf, None)
    elif isinstance(node, list) and parents:
        _prune(document, pointer.rpartition("/")[0], placeholders)  # a list's items keep their places


def _child(node: Any, part: str) -> Any:
    if isinstance(node, dict):
        return node.get(part)
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return node[int(part)]
    return None


def _parts(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


# --- pydantic's errors, translated ----------------------------------------------------------------


def _problems(error: ValidationError, document: Any, model: type[BaseModel]) -> list[FieldProblem]:
    found: dict[str, FieldProblem] = {}
    details = error.errors(include_url=False)
    pointers = [_pointer(item, document) for item in details]
    for item, pointer in zip(details, pointers, strict=True):
        # Of a union every branch complains: the one that looked deepest knows most.
        is_hidden = any(other.startswith(pointer + "/") for other in pointers if other != pointer)
        if pointer not in found and not (is_hidden and item["type"] not in ("extra_forbidden", "missing")):
            found[pointer] = _problem(item, pointer, model, document)
    return list(found.values())


def _pointer(item: ErrorDetails, document: Any) -> str:
    """Return where in the document the error is: `loc` without the tags of unions in it."""
    pointer, node = "", document
    for index, part in enumerate(item["loc"]):
        is_last = index == len(item["loc"]) - 1
        child = _child(node, str(part))
        exists = str(part) in node if isinstance(node, dict) else child is not None
        if exists or (is_last and item["type"] == "missing"):
            pointer += "/" + str(part).replace("~", "~0").replace("/", "~1")
            node = child
    return pointer


def _problem(item: ErrorDetails, pointer: str, model: type[BaseModel], document: Any) -> FieldProblem:
    name = _parts(pointer)[-1] if pointer else "the body"
    schema = _schema_at(model, pointer.rpartition("/")[0] if item["type"] == "extra_forbidden" else pointer, document)
    if item["type"] == "extra_forbidden":
        known = sorted(schema.get("properties", {}))
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "leave it out"
        return FieldProblem(
            pointer=pointer, code="unknown_field", detail=f"{name}: no such field; {hint}", allowed=known
        )
    if item["type"] == "missing":
        return FieldProblem(pointer=pointer, code="missing", detail=f"{name} is required", allowed=_allowed(schema))
    shown = _echo(item["input"])
    detail = f"{name}{f' = {shown}' if shown else ''}: {_lower(item['msg'])}"
    return FieldProblem(pointer=pointer, code=item["type"], detail=detail, allowed=_allowed(schema))


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _echo(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return ""
    shown = repr(value)
    return shown if len(shown) <= MAX_ECHO else shown[:MAX_ECHO] + "..."


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _schema_at(model: type[BaseModel], pointer: str, document: Any) -> dict[str, Any]:
    """Return the JSON schema in force at `pointer`, {} where the schema has none."""
    root = _schema(model)
    node, value = _resolve(root, root, document), document
    for part in _parts(pointer):
        value = _child(value, part)
        if "properties" in node:
            node = node["properties"].get(part, {})
        else:
            node = node.get("items") or node.get("additionalProperties") or {}
        node = _resolve(root, node if isinstance(node, dict) else {}, value)
    return node


def _resolve(root: dict[str, Any], node: dict[str, Any], value: Any) -> dict[str, Any]:
    """Return `node` without references and unions: of these the branch that fits the value's kind."""
    while "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]]
    branches = node.get("oneOf") or node.get("anyOf")
    if not branches:
        return node
    mapping = node.get("discriminator", {})
    if mapping and isinstance(value, dict):
        named = value.get(mapping["propertyName"])
        target = mapping["mapping"].get(named) if isinstance(named, str) else None  # a list is no key of a mapping
        return _resolve(root, {"$ref": target}, value) if target else {"enum": sorted(mapping["mapping"])}
    resolved = [_resolve(root, branch, value) for branch in branches]
    kinds = {"object": dict, "array": list}
    fitting = [branch for branch in resolved if isinstance(value, kinds.get(branch.get("type", ""), (str, int, float)))]
    return next((branch for branch in fitting or resolved if branch.get("type") != "null"), {})


def _allowed(schema: dict[str, Any]) -> Any:
    """Return what a schema allows, in words a person can act on."""
    if "enum" in schema:
        return schema["enum"]
    if "const" in schema:
        return [schema["const"]]
    signs = {
        "minimum": ">= {}",
        "exclusiveMinimum": "> {}",
        "maximum": "<= {}",
        "exclusiveMaximum": "< {}",
        "minLength": "at least {} characters",
        "maxLength": "at most {} characters",
        "minItems": "at least {} items",
        "maxItems": "at most {} items",
        "maxProperties": "at most {} keys",
        "pattern": "matches {}",
    }
    bounds = [words.format(schema[key]) for key, words in signs.items() if key in schema]
    return ", ".join([*([schema["type"]] if "type" in schema else []), *bounds]) or None
