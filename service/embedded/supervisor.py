"""What `simclr serve`, `demo` and `stop` do with the stack, and what their signals mean."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Final, Self

import psutil

from service.embedded.addresses import check_bindable, free_port
from service.embedded.api_server import ApiServer
from service.embedded.component import Component
from service.embedded.errors import StackFailed
from service.embedded.mlflow_server import PREFERRED_PORT, MlflowServer
from service.embedded.ray_head import PREFERRED_DASHBOARD_PORT, RayHead
from service.embedded.stack import PARTS, Report, Stack, end_parts
from service.embedded.state_directory import StackLocked, StateDirectory
from service.public_address import without_userinfo
from service.settings import Settings

__all__ = ["Interruption", "RunningStack", "running_stack", "serve", "stop"]

_TICK_S: Final = 0.5
_POLL_S: Final = 0.1
_STOP_TIMEOUT_S: Final = 30.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """The first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt; a further one hurries the stop."""

    def __init__(self) -> None:
        self.hurried = Event()
        self._is_stopping = False

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_stopping:
            self.hurried.set()
            return
        self._is_stopping = True
        raise KeyboardInterrupt

    def begin_stop(self) -> None:
        """Let no signal break off what ends the stack."""
        self._is_stopping = True


class RunningStack:
    """A stack that answers, with the addresses of its parts."""

    def __init__(self, stack: Stack, settings: Settings) -> None:
        self._stack = stack
        self.settings = settings  # complete: ray_address and mlflow_uri are set

    def keep(self) -> None:
        """Look after the parts until a signal comes."""
        while True:
            self._stack.tick(time.monotonic())
            time.sleep(_TICK_S)


@contextlib.contextmanager
def running_stack(
    settings: Settings, *, command: str, report: Report, service_arguments: tuple[str, ...] = ("-m", "service")
) -> Iterator[RunningStack]:
    """Start what `settings` leaves unset and the service, and end all of it on the way out.

    Args:
        settings: Where the service runs; addresses that are set are used as they are.
        command: The name under which a second command is told who holds the directory.
        report: Called with (part, what happens to it).
        service_arguments: What the interpreter is given to run the service.

    Raises:
        SettingsError: If the directory is held or cannot be written, or the port is taken;
            nothing was started.
        StackFailed: If a part does not come up; all that was started is ended.
    """
    directory = StateDirectory(path=settings.home_dir)
    directory.prepare()
    with Interruption() as interruption, directory.lock(command=command, url=settings.base_url):
        _end_leftover_service(directory)
        check_bindable(settings.host, settings.port)
        components = _components(settings, directory, service_arguments)
        stack = Stack(components, directory=directory, report=report, hurried=interruption.hurried)
        complete = components[-1].settings
        try:
            stack.start()
            _report_addresses(complete, report)
            yield RunningStack(stack, complete)
        finally:
            try:
                interruption.begin_stop()
                report("Stack", "stopping; press Ctrl-C again to stop at once")
            finally:
                stack.stop()
                report("Stack", "stopped; nothing is left running")


def _end_leftover_service(directory: StateDirectory) -> None:
    """End a service child whose supervisor was killed this very moment: it may still hold the port."""
    recorded = directory.read_parts().get("service")
    end_parts(directory, {"service": recorded.process if recorded else None})


def _components(
    settings: Settings, directory: StateDirectory, service_arguments: tuple[str, ...]
) -> tuple[*tuple[Component, ...], ApiServer]:
    """Return the parts to keep, the service last: it becomes ready when the others are."""
    recorded = {name: part.url for name, part in directory.read_parts().items() if part.process.is_alive()}
    parts: list[Component] = []
    addresses: dict[str, str | int] = {}
    if settings.ray_address is None:
        port = _port_of(recorded.get("ray")) or free_port(PREFERRED_DASHBOARD_PORT)
        ray = RayHead(dashboard_port=port, cpus=settings.embedded_cpus, runtime_dir=directory.runtime_dir)
        parts.append(ray)
        addresses |= {"ray_address": ray.url, "cpus": ray.cpus}
    if settings.mlflow_uri is None:
        port = _port_of(recorded.get("mlflow")) or free_port(PREFERRED_PORT)
        mlflow = MlflowServer(port=port, directory=_mlflow_dir(settings))
        parts.append(mlflow)
        addresses["mlflow_uri"] = mlflow.url
    complete = settings.model_copy(update=addresses)
    return (*parts, ApiServer(settings=complete, arguments=service_arguments))


def _mlflow_dir(settings: Settings) -> Path:
    return settings.home_dir / "mlflow"


def _port_of(url: str | None) -> int | None:
    return int(url.rpartition(":")[2]) if url else None


def _report_addresses(settings: Settings, report: Report) -> None:
    report("Pages", f"{settings.base_url}/ui")
    report("API", f"{settings.base_url}/docs")
    report("Ray", f"dashboard {without_userinfo(settings.ray_address or '')}")
    report("MLflow", without_userinfo(settings.mlflow_uri or ""))


def serve(settings: Settings, *, report: Report, on_ready: Callable[[Settings], None]) -> None:
    """Run the stack until SIGINT, SIGTERM or SIGHUP; `on_ready` is told its addresses. Raises as `running_stack`."""
    with contextlib.suppress(KeyboardInterrupt), running_stack(settings, command="serve", report=report) as stack:
        on_ready(stack.settings)
        stack.keep()


def stop(settings: Settings) -> list[str]:
    """End the command that holds the state directory and whatever it left; return what was ended.

    Raises:
        StackFailed: If something does not end.
    """
    if not settings.home_dir.is_dir():
        return []
    directory = StateDirectory(path=settings.home_dir)
    ended = _end_holder(directory)
    with directory.lock(command="stop", url=settings.base_url):
        recorded = {name: part.process for name, part in directory.read_parts().items()}
        ended += end_parts(directory, {name: recorded.get(name) for name in PARTS})
        directory.forget()
    return ended


def _end_holder(directory: StateDirectory) -> list[str]:
    """Ask the command that holds the directory to end, and wait until it let go of it."""
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    asked: list[str] = []
    while True:
        try:
            with directory.lock(command="stop", url=""):
                return asked
        except StackLocked as error:
            if error.holder is not None and not asked and error.holder.process.is_alive():
                psutil.Process(error.holder.process.pid).terminate()
                asked.append(f"simclr {error.holder.command}")
            if time.monotonic() > deadline:
                raise StackFailed(f"after {_STOP_TIMEOUT_S:.0f} s still: {error.message}") from error
            time.sleep(_POLL_S)
