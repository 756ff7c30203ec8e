"""Prints the OpenAPI document, of which docs/ keeps a copy: `make openapi` writes it anew."""

from __future__ import annotations

import json
import sys

from service.app import describe_app

__all__ = ["main"]


def main() -> None:
    """Print the document with its keys in order."""
    json.dump(describe_app().openapi(), sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
