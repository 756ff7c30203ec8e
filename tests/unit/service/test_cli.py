"""The command line: what it sends, what it prints, and its exit codes, against a small server."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.cli.app import app
from service.cli.demo import DEMO
from service.embedded.addresses import free_ports

EXPERIMENT: dict[str, Any] = {
    "id": "exp_1",
    "name": "a [red]name[/red] \x1b[31m",
    "kind": "pretrain",
    "state": "succeeded",
    "reason": None,
    "labels": {},
    "attempt": 1,
    "plan": {"steps": 10, "trials": 1},
    "progress": {"trials_done": 1, "trials_total": 1, "step": 10, "steps": 10},
    "best": {"trial": "t0000", "metric": "knn_accuracy", "value": 0.5},
    "created_at": "2026-01-01T00:00:00Z",
    "finished_at": None,
    "links": {"self": "/experiments/exp_1"},
}
PROBLEM = {
    "status": 422,
    "code": "spec_invalid",
    "detail": "2 fields are wrong",
    "errors": [{"pointer": "/spec/batch_size", "code": "x", "detail": "1 is too few", "allowed": ">= 2"}],
}


class Service(ThreadingHTTPServer):
    """Answers each "METHOD path" with a status and a document."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, tuple[int, Any]] = {"GET /experiments/exp_1": (200, EXPERIMENT)}
        self.bodies: list[Any] = []


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length:
            self.server.bodies.append(json.loads(self.rfile.read(length)))
        path = self.path.partition("?")[0]
        status, document = self.server.answers[f"{self.command} {path}"]
        body = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream" if isinstance(document, str) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815 - the names that http.server looks for

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    server = Service()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("SIMCLR_URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def simclr(*words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, words, input=stdin)


@pytest.fixture
def document(tmp_path: Path) -> str:
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps({"name": "a", "kind": "pretrain", "spec": {"data": {"dataset": "openmoji"}}}))
    return str(path)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from service.cli.app import app\n"
        "heavy = {'torch', 'ray', 'mlflow', 'fastapi', 'sqlalchemy', 'pydantic', 'httpx2', 'psutil', 'numpy'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).stderr == b""


def test_every_command_of_the_contract_is_there_and_speaks_json() -> None:
    commands = "demo serve stop submit list show watch cancel pause resume reproduce compare encoder studies datasets"

    for words in (*([name] for name in commands.split()), ["token", "create"], ["db", "upgrade"], ["db", "downgrade"]):
        result = simclr(*words, "--help")
        assert result.exit_code == 0, words
        assert "--json" in result.output, words


@pytest.mark.parametrize(
    ("typed", "offered"), [("repro", "reproduce"), ("token cre", "create"), ("submit --wa", "--wait")]
)
def test_a_shell_is_told_how_a_word_goes_on(typed: str, offered: str) -> None:
    line = f"simclr {typed}"
    environment = os.environ | {
        "_SIMCLR_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    code = "import sys; sys.argv[0] = 'simclr'; from service.cli.app import app; app(prog_name='simclr')"

    told = subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True)

    assert offered in told.stdout.split(), told


def test_submit_sends_the_document_of_a_file_or_of_standard_input(service: Service, document: str) -> None:
    service.answers["POST /experiments"] = (202, EXPERIMENT)

    from_file = simclr("submit", document, "--json")
    from_stdin = simclr("submit", "-", "--json", stdin=Path(document).read_text())

    assert from_file.exit_code == from_stdin.exit_code == 0
    assert json.loads(from_file.stdout) == EXPERIMENT
    assert service.bodies[0] == service.bodies[1] == json.loads(Path(document).read_text())


def test_a_refusal_shows_each_field_with_what_is_allowed(service: Service, document: str) -> None:
    service.answers["POST /experiments"] = (422, PROBLEM)

    result = simclr("submit", document)

    assert result.exit_code == 2
    for words in ("2 fields are wrong", "/spec/batch_size: 1 is too few", 'allowed: ">= 2"'):
        assert words in result.stderr
    assert "Traceback" not in result.output
    as_json = simclr("submit", document, "--json")
    assert json.loads(as_json.stderr) == {"error": PROBLEM}
    assert as_json.stdout == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [('{"name": }', "line 1, column 10"), ("[1]", "write a JSON object"), (None, "No such file or directory")],
)
def test_a_file_that_is_no_document_is_named(service: Service, tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "broken.json"
    if text is not None:
        path.write_text(text)

    result = simclr("submit", str(path))

    assert result.exit_code == 2
    assert "broken.json" in result.stderr
    assert words in result.stderr


def test_nobody_there_is_exit_code_3_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setattr("service.cli.connection.connect.__kwdefaults__", {"retry_for_s": 0.0})

    result = simclr("list")

    assert result.exit_code == 3
    assert "simclr serve" in result.stderr


@pytest.mark.parametrize(
    ("url", "meant"), [("127.0.0.1:8000", "http://127.0.0.1:8000"), ("ftp://lab.example", "http://lab.example")]
)
def test_an_address_without_http_is_refused_with_what_is_meant(
    monkeypatch: pytest.MonkeyPatch, url: str, meant: str
) -> None:
    monkeypatch.setenv("SIMCLR_URL", url)

    result = simclr("list")

    assert result.exit_code == 2
    assert result.stderr.strip() == f"simclr: SIMCLR_URL={url} has no http://; write {meant}"


def test_the_help_says_how_long_the_demo_trains() -> None:
    told = " ".join(simclr("demo", "--help").output.replace("│", " ").split())
    assert f"Default: {DEMO['spec']['epochs']}." in told


@pytest.mark.parametrize(("state", "exit_code"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_waiting_ends_with_the_fate_of_the_experiment(
    service: Service, document: str, state: str, exit_code: int
) -> None:
    service.answers["POST /experiments"] = (202, EXPERIMENT | {"state": "queued"})
    service.answers["GET /experiments/exp_1"] = (200, EXPERIMENT | {"state": state})

    result = simclr("submit", document, "--wait", "--json")

    assert result.exit_code == exit_code
    assert json.loads(result.stdout)["state"] == state


def test_watch_shows_states_and_numbers(service: Service) -> None:
    metric = {"trial": "t0000", "step": 10, "metrics": {"epoch": 2, "loss": 5.25, "knn_accuracy": 0.5}}
    service.answers["GET /experiments/exp_1/events"] = (
        200,
        f'event: metric\ndata: {json.dumps(metric)}\n\nevent: state\nid: 3\ndata: {{"state": "succeeded"}}\n\n',
    )

    for_people = simclr("watch", "exp_1")
    lines = [json.loads(line) for line in simclr("watch", "exp_1", "--json").stdout.splitlines()]

    assert for_people.exit_code == 0
    for words in ("succeeded", "epoch 2", "loss 5.250", "kNN 50.0%"):
        assert words in for_people.stdout
    assert [line["type"] for line in lines] == ["metric", "state"]


def test_names_can_neither_colour_nor_move_the_cursor(service: Service) -> None:
    service.answers["GET /experiments"] = (200, {"items": [EXPERIMENT], "next_page_token": ""})

    result = simclr("list")

    assert "\x1b" not in result.stdout
    assert "[red]" in result.stdout


def test_stop_with_nothing_to_stop_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(tmp_path / "none"))

    assert json.loads(simclr("stop", "--json").stdout) == {"stopped": []}
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_start_that_cannot_be_is_refused_before_anything_runs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SIMCLR_HOME", str(tmp_path / "file" / "home"))

    result = simclr(command)

    assert result.exit_code == 2
    assert "SIMCLR_HOME=" in result.stderr


@pytest.mark.parametrize("command", ["serve", "stop", "list", "db upgrade", "db downgrade 0001"])
@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("SIMCLR_PORT", "eighty", "should be a valid integer"),
        ("SIMCLR_ALLOWED_HOSTS", "a.example", 'write a JSON list, such as ["simclr.example.org"]'),
        ("SIMCLR_ALLOWED_HOSTS", '"a.example"', 'write a JSON list, such as ["simclr.example.org"]'),
    ],
)
def test_a_setting_that_is_none_is_named(
    command: str, setting: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(setting, value)

    result = simclr(*command.split())

    assert result.exit_code == 2, result.exception
    assert f"simclr: {setting}={value}: " in result.stderr
    assert words in result.stderr


def test_a_document_in_another_encoding_is_refused_with_the_way_out(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "latin.json"
    path.write_bytes('{"name": "Käfer"}'.encode("latin-1"))

    for file in (str(path), "-"):
        result = CliRunner().invoke(app, ("submit", file), input=path.read_bytes())

        assert result.exit_code == 2, result.exception
        assert f"{file}: not UTF-8; save it as UTF-8" in result.stderr
    assert service.bodies == []


def test_data_sets_are_shown_with_the_word_or_without(service: Service) -> None:
    service.answers["GET /datasets"] = (200, {"items": [{"name": "digits"}], "next_page_token": ""})
    service.answers["GET /datasets/digits"] = (200, {"name": "digits"})

    for words in ([], ["show"]):
        assert json.loads(simclr("datasets", *words, "--json").stdout) == [{"name": "digits"}]
        assert json.loads(simclr("datasets", *words, "digits", "--json").stdout) == {"name": "digits"}


def test_what_a_submission_will_cost_is_told_before_it_runs(service: Service, document: str) -> None:
    plan = {
        "trials": 16,
        "trials_at_once": 4,
        "steps": 2080,
        "images": 66560,
        "memory_bytes": 120 * 2**20,
        "time_s": 90.0,
        "warnings": ["asha ranks trials early"],
    }
    service.answers["POST /experiments"] = (202, EXPERIMENT | {"kind": "sweep", "state": "queued", "plan": plan})

    result = simclr("submit", document)

    words = "plan: 16 trials, 4 at a time, 2,080 steps, 66,560 images, about 120 MiB a worker, about 1.5 min"
    assert [" ".join(result.stderr.split())] == [f"{words} warning: asha ranks trials early"]
    assert "plan:" not in simclr("submit", document, "--json").output


def test_a_plan_says_where_it_does_not_know_how_long(service: Service, document: str) -> None:
    plan: dict[str, Any] = {
        "trials": 1,
        "steps": 10,
        "images": 320,
        "memory_bytes": None,
        "time_s": None,
        "warnings": [],
    }
    service.answers["POST /experiments"] = (202, EXPERIMENT | {"plan": plan})

    assert "10 steps, 320 images, how long is not known yet" in simclr("submit", document).stderr
