"""How a command ends: its exit code, and what a person reads when it was refused."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any

import typer

from service.cli.output import error_console, plain
from service.errors import ServiceError, SettingsError
from trainer.errors import StorageUnavailable, TrainerError

__all__ = ["ExitCode", "outcome"]


class ExitCode(IntEnum):
    """What the exit code of a command means."""

    OK = 0
    FAILED = 1
    REFUSED = 2
    UNREACHABLE = 3
    INTERRUPTED = 130


@contextlib.contextmanager
def outcome(*, as_json: bool) -> Iterator[None]:
    """Turn the errors that a command expects into a message and an exit code, without a traceback."""
    from service.client.errors import ClientError, Unreachable

    try:
        yield
    except Unreachable as error:
        _tell(error.problem, as_json=as_json)
        raise typer.Exit(ExitCode.UNREACHABLE) from error
    except ClientError as error:
        _tell(error.problem, as_json=as_json)
        raise typer.Exit(ExitCode.REFUSED) from error
    except SettingsError as error:
        _tell({"code": error.code, "detail": error.message}, as_json=as_json)
        raise typer.Exit(ExitCode.REFUSED) from error
    except TrainerError as error:
        _tell({"code": error.code, "detail": error.message}, as_json=as_json)
        is_away = isinstance(error, StorageUnavailable)
        raise typer.Exit(ExitCode.UNREACHABLE if is_away else ExitCode.REFUSED) from error
    except ServiceError as error:
        _tell({"code": error.code, "detail": error.message}, as_json=as_json)
        raise typer.Exit(ExitCode.UNREACHABLE) from error
    except OSError as error:  # a full disk, a file that cannot be read or written
        where = f"{error.filename}: " if error.filename else ""
        _tell({"code": "io_error", "detail": f"{where}{error.strerror or error}"}, as_json=as_json)
        raise typer.Exit(ExitCode.REFUSED) from error
    except KeyboardInterrupt as error:
        _tell({"code": "interrupted", "detail": "interrupted"}, as_json=as_json)
        raise typer.Exit(ExitCode.INTERRUPTED) from error


def _tell(problem: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stderr.write(json.dumps({"error": problem}, default=str) + "\n")
        return
    console = error_console()
    detail = problem.get("detail") or problem.get("title") or "refused"
    console.print(plain(f"simclr: {detail}"), style="red", soft_wrap=True)
    for field in problem.get("errors") or ():
        console.print(plain(f"  {field.get('pointer') or '(body)'}: {field.get('detail')}"), soft_wrap=True)
        if field.get("allowed") is not None:
            console.print(plain(f"    allowed: {json.dumps(field['allowed'], ensure_ascii=False)}"), soft_wrap=True)
