"""`occam serve`: what comes of the command line, the environment and a file; and commands that are broken off."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services import cli, launch
from services.settings import Settings


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `occam serve` would have run."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(launch, "run", lambda settings, given: seen.update(settings=settings, given=given))
    return seen


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "occam.yaml"
    path.write_text("port: 1111\nhost: 10.0.0.1\nmax_images: 3\nkv_url: redis://:pass@cache\nmodels: [from-file]\n")
    return path


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(
    run: dict[str, Any], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCCAM_HOST", "10.0.0.2")
    monkeypatch.setenv("OCCAM_PORT", "2222")
    command = ["serve", "--config", str(config), "--port", "3333", "--model", "a", "--model", "b"]
    assert cli.main(command) == 0
    settings: Settings = run["settings"]
    assert (settings.port, settings.host, settings.max_images) == (3333, "10.0.0.2", 3)
    assert settings.models == ("a", "b")
    assert run["given"] == [
        "port 3333 (command line)",
        "host 10.0.0.2 (OCCAM_HOST)",
        f"max_images 3 ({config})",
        f"kv_url is set ({config})",
        "models a, b (command line)",
    ]
    assert cli.main(["serve", "--config", str(config)]) == 0
    assert (run["settings"].port, run["settings"].models) == (2222, ("from-file",))


def test_a_wrong_value_that_is_overridden_does_no_harm(run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCCAM_PORT", "99999")
    assert cli.main(["serve"]) == 1
    assert cli.main(["serve", "--port", "3333"]) == 0


def test_a_config_that_is_not_there_is_a_plain_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--config", "/nope.yaml"]) == 1
    assert capsys.readouterr().err == "occam: OCCAM_CONFIG names /nope.yaml: No such file or directory.\n"


def test_help_says_what_goes_before_what(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The command line goes before the environment, and that before the file." in said


def test_a_clients_key_and_the_standard_endpoint_are_read_from_the_environment() -> None:
    environ = {"OCCAM_API_KEY": "a-client's", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://standard:4318"}
    assert Settings.load(environ).otlp_endpoint == "http://standard:4318"
    assert Settings.load(environ | {"OCCAM_OTLP_ENDPOINT": "http://ours:4318"}).otlp_endpoint == "http://ours:4318"


BREAK_OFF = """
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise KeyboardInterrupt  # as ^C does while torch is being imported, for seconds
sys.meta_path.insert(0, Interrupted())
from services.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "command", [["eval", "tiny-video-llava", "--out", "out"], ["ask", "clip.mp4", "what?"], ["registers", "a"]]
)
def test_a_command_that_is_broken_off_leaves_no_traceback(command: list[str], tmp_path: Path) -> None:
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    ended = subprocess.run(
        [sys.executable, "-c", BREAK_OFF, *command],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


LOGGED = """
import asyncio, logging, sys
from pipelines.ingest.process import in_reader
from services import logs, origin
from services.settings import Settings
logs.install(logging.StreamHandler(sys.stdout), Settings(log_format="json"), "here")
async def main():
    origin.adopt(origin.Origin(request_id="mine-6"))
    await in_reader(logging.getLogger("pipelines.ingest").warning, "read")
asyncio.run(main())
"""


def test_what_a_reader_of_a_child_logs_names_its_request() -> None:
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    ended = subprocess.run([sys.executable, "-c", LOGGED], env=environment, capture_output=True, text=True, check=False)
    assert json.loads(ended.stdout)["request_id"] == "mine-6"
