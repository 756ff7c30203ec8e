"""What an image's list of packages installs, and how to run something here as if nothing else were installed."""

from __future__ import annotations

from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["REFUSE", "closure", "listed", "not_in_image"]

DOCKER: Final = Path(__file__).resolve().parents[2] / "docker"

# Code for the beginning of a process, to be formatted with the `modules` that it shall not find.
REFUSE: Final = """
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    refused = frozenset({modules})

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.refused:
            raise ModuleNotFoundError("not in the image: " + name, name=name)

sys.meta_path.insert(0, Refuse())
"""


def not_in_image(name: str, *besides: str) -> list[str]:
    """Return the top-level modules of this environment that an image lacks.

    Args:
        name: The image's list in docker/.
        besides: Distributions that it has in addition, normalised.
    """
    allowed = closure(listed(name)) | set(besides)
    homes = packages_distributions().items()
    return sorted(top for top, names in homes if not {canonicalize_name(each) for each in names} & allowed)


def closure(requirements: list[str]) -> set[str]:
    """Return the names of everything that these requirements install here."""
    found: set[tuple[str, str]] = set()
    pending = [Requirement(line) for line in requirements]
    while pending:
        requirement = pending.pop()
        for extra in ("", *requirement.extras):
            key = (canonicalize_name(requirement.name), extra)
            if key in found:
                continue
            found.add(key)
            needs = map(Requirement, distribution(key[0]).requires or ())
            pending += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def listed(name: str) -> list[str]:
    """Return the requirements of a list, without its comments."""
    return [line for line in (DOCKER / name).read_text().splitlines() if line and not line.startswith("#")]
