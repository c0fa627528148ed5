"""`llama-lite connect`: what it prints is right for the server, reads in its language, and runs."""

import importlib.util
import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from string import Template
from typing import Any

import pytest
import yaml

from llama_stack_lite.cli.connect import apps
from llama_stack_lite.config import StackConfig
from tests.support.lite import Lite
from tests.support.lite import env as env
from tests.support.lite import lite as lite
from tests.support.serving import Running, serve

APPS = apps()
KEY = "a-secret-key"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    scripted = {"provider": "scripted", "replies": ["Tokyo."], "loop": True, "embedding_models": ["vectors"]}
    settings = {"inference": {"test": scripted}, "server": {"api_keys": [KEY]}}
    with serve(StackConfig.model_validate(settings)) as server:
        yield server


def settings(lite: Lite, app: str, *arguments: str) -> str:
    result = lite("connect", app, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_apps_are_listed(lite: Lite) -> None:
    lines = lite("connect").stdout.splitlines()
    assert lines[0].split() == ["APP", "ABOUT"] and [line.split()[0] for line in lines[1:]] == list(APPS)
    assert [row["app"] for row in json.loads(lite("connect", "--json").stdout)] == list(APPS)


@pytest.mark.parametrize("app", APPS)
def test_an_app_has_what_it_needs_to_reach_the_server(lite: Lite, running: Running, app: str) -> None:
    text = settings(lite, app, "--url", running.url, "--api-key", KEY)
    port = running.url.rpartition(":")[2]
    assert re.search(rf"http://(127\.0\.0\.1|host\.docker\.internal):{port}\b", text)
    # whoever lists models by itself needs none, and Codex and Zed read their keys from the environment
    assert "test/scripted" in text or app in ("env", "open-webui")
    assert KEY in text or app in ("codex", "zed")
    assert not re.search(r"\$(url|model|key|context|docker)\b", text)


@pytest.mark.parametrize("app", APPS)
def test_the_settings_read_in_their_language(lite: Lite, running: Running, app: str) -> None:
    text = settings(lite, app, "--url", running.url, "--api-key", KEY)
    language = APPS[app].language
    if language == "python":
        compile(text, app, "exec")
    elif language == "sh":
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    else:
        readers: dict[str, Any] = {"json": json.loads, "yaml": yaml.safe_load, "toml": tomllib.loads}
        assert language in ("javascript", "text") or readers[language](text)


def runnable() -> list[str]:
    """The Python programs whose packages are here; those of the SDKs that judge this server always are."""
    found = []
    for name, app in APPS.items():
        if app.language == "python":
            module = Template(app.text).substitute(dict.fromkeys(("url", "model", "key", "context"), "1"))
            packages = re.findall(r"^from (\w+)", module, re.M)
            if all(importlib.util.find_spec(package) for package in packages):
                found.append(name)
    assert {"openai-python", "anthropic-python"} <= set(found)
    return found


@pytest.mark.parametrize("app", runnable())
def test_a_python_program_runs_as_it_is_printed(
    lite: Lite, env: dict[str, str], running: Running, app: str
) -> None:
    program = settings(lite, app, "--url", running.url, "--api-key", KEY)
    result = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60
    )
    assert result.stdout.strip() == "Tokyo.", result.stderr


def test_a_shell_command_runs_as_it_is_printed(lite: Lite, env: dict[str, str], running: Running) -> None:
    command = settings(lite, "curl", "--url", running.url, "--api-key", KEY)
    result = subprocess.run(["sh"], input=command, env=env, capture_output=True, text=True, timeout=60)
    assert json.loads(result.stdout)["choices"][0]["message"]["content"] == "Tokyo."


def test_settings_can_be_taken_over_by_the_shell(lite: Lite, running: Running) -> None:
    """Only the settings are on stdout."""
    found = lite("connect", "env", "--url", f"{running.url}/v1/", "--api-key", KEY)
    script = found.stdout + 'echo "$OPENAI_BASE_URL $OPENAI_API_KEY"'
    shell = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=True)
    assert shell.stdout.split() == [f"{running.url}/v1", KEY]
    assert found.stderr.startswith("your shell (https://")


def test_a_model_is_named_in_full(lite: Lite, running: Running) -> None:
    known = ("--url", running.url, "--api-key", KEY)
    assert 'ANTHROPIC_MODEL="test/scripted"' in settings(lite, "claude-code", *known, "--model", "scripted")
    wrong = lite("connect", "claude-code", *known, "--model", "scriptet")
    assert (wrong.returncode, wrong.stdout) == (1, "") and "test/scripted" in wrong.stderr


def test_without_a_server_the_settings_are_printed_all_the_same(lite: Lite) -> None:
    nowhere = ("--url", "http://127.0.0.1:9")
    found = lite("connect", "aider", *nowhere)
    assert 'aider --model "openai/<model>"' in found.stdout and found.returncode == 0
    assert "no answer from" in found.stderr and "llama-lite run starter" in found.stderr
    assert "openai/mine" in settings(lite, "aider", *nowhere, "--model", "mine")


def test_a_server_that_wants_a_key_says_so(lite: Lite, running: Running) -> None:
    found = lite("connect", "aider", "--url", running.url)
    assert "<model>" in found.stdout and "API key is needed" in found.stderr and "--api-key" in found.stderr


def test_a_container_reaches_only_loopback_by_another_name(lite: Lite) -> None:
    far = settings(lite, "open-webui", "--url", "https://models.example/v1", "--model", "m")
    assert 'OPENAI_API_BASE_URL="https://models.example/v1"' in far


def test_json_holds_all_of_it(lite: Lite, running: Running) -> None:
    [found] = json.loads(settings(lite, "zed", "--url", running.url, "--api-key", KEY, "--json"))
    assert set(found) == {"app", "about", "docs", "language", "text", "where"}
    assert "openai_compatible" in json.loads(found["text"])["language_models"]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("clod",), 1, "did you mean codex or claude-code"),
        (("aider", "--url", "localhost"), 2, "is no URL such as http://127.0.0.1:8321"),
        (("aider", "--url", "http://a/$(reboot)"), 2, "is no URL such as"),
        (("aider", "--model", 'm"; reboot'), 2, "would have to quote"),
        (("aider", "--api-key", "a`reboot`"), 2, "would have to quote"),
    ],
)
def test_what_cannot_be_printed(lite: Lite, arguments: tuple[str, ...], code: int, reason: str) -> None:
    found = lite("connect", *arguments)
    assert (found.returncode, found.stdout) == (code, "") and reason in found.stderr


class Odd(BaseHTTPRequestHandler):
    """A server, not of ours, whose model has a name that a shell would run."""

    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": "m$(reboot)"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def test_a_server_cannot_slip_a_command_into_settings(lite: Lite) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        found = lite("connect", "aider", "--url", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    assert (found.returncode, found.stdout) == (1, "") and "pass --model" in found.stderr
