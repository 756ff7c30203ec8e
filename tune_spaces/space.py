"""The space of a sweep: dotted paths into the pretrain spec, and the values each may take.

A path has one domain, or several with conditions on paths written before it; a point names the
paths whose conditions hold. Grid, random draws, bounds and suggestions are one walk over the
space that differs only in the values it takes from a domain.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from trainer.spec import Part

__all__ = [
    "Choice",
    "Domain",
    "LogUniform",
    "Point",
    "RandInt",
    "Space",
    "Uniform",
    "alternatives",
    "corners",
    "draw",
    "extremes",
    "grid",
    "walk",
]

MAX_CHOICES = 1000
MAX_AXES = 64
MAX_CORNERS = 10_000  # that are looked at

Point = dict[str, Any]  # dotted path -> value


class _Domain(Part):
    """What every domain has: the conditions under which its path is part of a point."""

    when: dict[str, Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]] = Field({})

    def holds(self, point: Mapping[str, Any]) -> bool:
        """Return whether every condition is met by the values chosen so far."""
        return all(path in point and point[path] in values for path, values in self.when.items())


def _some(values: Any) -> Any:
    if isinstance(values, list | tuple) and not values:
        raise PydanticCustomError("too_short", "there is nothing to choose from; list a value, or take the path away")
    return values


class Choice(_Domain):
    """One of the listed values."""

    choice: Annotated[
        tuple[Any, ...], Field(strict=False, min_length=1, max_length=MAX_CHOICES), BeforeValidator(_some)
    ]

    def values(self) -> tuple[Any, ...]:
        """Return the values at which a spec must be sound for the domain to be."""
        return self.choice

    def at(self, position: float) -> Any:
        """Return the value at a position 0..1 (1 excluded)."""
        return self.choice[int(position * len(self.choice))]


class Uniform(_Domain):
    """A number between two bounds."""

    uniform: Annotated[tuple[float, float], Field(strict=False)]

    def values(self) -> tuple[Any, ...]:
        return self.uniform

    def at(self, position: float) -> Any:
        low, high = self.uniform
        return low + position * (high - low)


class LogUniform(_Domain):
    """A positive number between two bounds, uniform in its logarithm."""

    loguniform: Annotated[tuple[float, float], Field(strict=False)]

    def values(self) -> tuple[Any, ...]:
        return self.loguniform

    def at(self, position: float) -> Any:
        low, high = self.loguniform
        return min(high, max(low, low * math.exp(position * math.log(high / low))))


class RandInt(_Domain):
    """A whole number between two bounds, both included."""

    randint: Annotated[tuple[int, int], Field(strict=False)]

    def values(self) -> tuple[Any, ...]:
        return self.randint

    def at(self, position: float) -> Any:
        low, high = self.randint
        return low + int(position * (high - low + 1))


_KINDS = {"choice": "Choice", "uniform": "Uniform", "loguniform": "LogUniform", "randint": "RandInt"}


def _kind(value: Any) -> str | None:
    """Return the tag of a domain by the one key that says what it is; errors then speak of it alone."""
    if isinstance(value, _Domain):
        return type(value).__name__
    if isinstance(value, list | tuple):
        return "Alternatives"
    named = [tag for key, tag in _KINDS.items() if isinstance(value, Mapping) and key in value]
    return named[0] if named else None


_BY_KIND = Discriminator(
    _kind,
    custom_error_type="domain_unknown",
    custom_error_message="a domain is one of choice, uniform, loguniform, randint",
)
Domain = Annotated[
    Annotated[Choice, Tag("Choice")]
    | Annotated[Uniform, Tag("Uniform")]
    | Annotated[LogUniform, Tag("LogUniform")]
    | Annotated[RandInt, Tag("RandInt")],
    _BY_KIND,
]
_Alternatives = Annotated[tuple[Domain, ...], Field(strict=False, min_length=1, max_length=16)]
_Domains = Annotated[
    Annotated[Choice, Tag("Choice")]
    | Annotated[Uniform, Tag("Uniform")]
    | Annotated[LogUniform, Tag("LogUniform")]
    | Annotated[RandInt, Tag("RandInt")]
    | Annotated[_Alternatives, Tag("Alternatives")],
    _BY_KIND,
]
Space = Annotated[dict[Annotated[str, Field(min_length=1, max_length=128)], _Domains], Field(max_length=MAX_AXES)]

AnyDomain = Choice | Uniform | LogUniform | RandInt


def alternatives(domains: Any) -> tuple[AnyDomain, ...]:
    """Return the domains of one path, a single one as a tuple of one."""
    return domains if isinstance(domains, tuple) else (domains,)


def walk(space: Mapping[str, Any], values_of: Callable[[str, AnyDomain], Iterable[Any]]) -> Iterator[Point]:
    """Yield the points of a space in written order, the last path changing fastest.

    Args:
        space: Dotted path -> domain, or several with conditions; the first that holds counts.
        values_of: The values to take from the domain of a path.
    """
    axes = [(path, alternatives(domains)) for path, domains in space.items()]

    def extend(index: int, point: Point) -> Iterator[Point]:
        if index == len(axes):
            yield point
            return
        path, domains = axes[index]
        domain = next((domain for domain in domains if domain.holds(point)), None)
        if domain is None:
            yield from extend(index + 1, point)
            return
        for value in values_of(path, domain):
            yield from extend(index + 1, {**point, path: value})

    return extend(0, {})


def grid(space: Mapping[str, Any]) -> Iterator[Point]:
    """Yield every point of a space of choices."""
    return walk(space, lambda _, domain: domain.values())


def corners(space: Mapping[str, Any], *, most: int = MAX_CORNERS) -> Iterator[Point]:
    """Yield the points at the choices and range bounds, and one behind the lower bound of whole numbers.

    What is sound there is sound between them, but for whole numbers that have to divide one
    another: of those an odd one stands for the others. Of more than `most` points, as many are
    drawn, so that no path keeps the value that it begins with.
    """

    def values(_: str, domain: AnyDomain) -> tuple[Any, ...]:
        if not isinstance(domain, RandInt):
            return domain.values()
        low, high = domain.values()
        return tuple(sorted({low, min(low + 1, high), high}))

    return _all_or_drawn(space, values, most)


def extremes(space: Mapping[str, Any], counts: Callable[[str], bool]) -> Iterator[Point]:
    """Yield points among which is the largest and the smallest of whatever grows or falls with the paths that count.

    Args:
        space: Dotted path -> domain, or several with conditions.
        counts: Whether a path decides what is to be bounded; the others stay at their first value.
    """
    conditions = {
        other for domains in space.values() for domain in alternatives(domains) for other in domain.when
    }  # on what they say it depends which paths there are

    def values(path: str, domain: AnyDomain) -> tuple[Any, ...]:
        taken = domain.values()
        if path in conditions:
            return taken
        if not counts(path):
            return taken[:1]
        is_ordered = all(isinstance(value, int | float) for value in taken)
        return tuple(sorted({min(taken), max(taken)})) if is_ordered else taken

    return _all_or_drawn(space, values, MAX_CORNERS)


def _all_or_drawn(
    space: Mapping[str, Any], values_of: Callable[[str, AnyDomain], tuple[Any, ...]], most: int
) -> Iterator[Point]:
    if sum(1 for _ in islice(walk(space, values_of), most + 1)) <= most:
        return walk(space, values_of)

    def drawn(index: int) -> Point:
        def value(path: str, domain: AnyDomain) -> tuple[Any, ...]:
            values = values_of(path, domain)
            return (values[int(_position(0, index, path) * len(values))],)

        return next(walk(space, value))

    return (drawn(index) for index in range(most))


def draw(space: Mapping[str, Any], *, seed: int, index: int) -> Point:
    """Return the random point of this number: a function of (seed, index, path) alone.

    Adding a path, or asking for more points, leaves the values drawn before as they are.
    """

    def value(path: str, domain: AnyDomain) -> Iterable[Any]:
        return (domain.at(_position(seed, index, path)),)

    return next(walk(space, value))


def _position(seed: int, index: int, path: str) -> float:
    """Return a number 0..1 (1 excluded) that depends on these three alone."""
    word = hashlib.blake2b(f"{seed}\n{index}\n{path}".encode(), digest_size=8).digest()
    return (int.from_bytes(word) >> 11) / 2**53
