"""JSON as RFC 8259 and 7493 (I-JSON) mean it: what other parsers would read differently is refused.

Python's own parser takes NaN, duplicate keys (the last wins), lone surrogates and numbers that
become infinite; each of these would let two readers of one body see two requests.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

__all__ = ["MAX_DEPTH", "MalformedJson", "parse"]

MAX_DEPTH: Final = 32
MAX_INTEGER_DIGITS: Final = 64  # far past int64; longer ones cost quadratic time to read


class MalformedJson(ValueError):
    """The bytes are not the JSON that is accepted; the message says where and why."""


def parse(data: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        MalformedJson: If it is not UTF-8, not JSON, nested deeper than MAX_DEPTH, has a key
            twice, NaN, an infinity, a number out of range or half of a surrogate pair.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_bounded,
        )
        if "\\u" in text:  # an escape may stand for half of a pair, which no encoding can write
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedJson(f"the body is not UTF-8: byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise MalformedJson("a string holds half of a surrogate pair") from error
    except json.JSONDecodeError as error:
        raise MalformedJson(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise MalformedJson(f"the body is nested deeper than {MAX_DEPTH} levels") from error
    _check_depth(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise MalformedJson(f"the key {key[:64]!r} is given twice")
        found[key] = value
    return found


def _refuse_constant(word: str) -> Any:
    raise MalformedJson(f"{word} is not JSON; give a finite number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise MalformedJson(f"the number {digits[:32]} is out of range")
    return value


def _bounded(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS:
        raise MalformedJson(f"an integer of {len(digits)} digits is out of range")
    return int(digits)


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH + 1:
            raise MalformedJson(f"the body is nested deeper than {MAX_DEPTH} levels")
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
