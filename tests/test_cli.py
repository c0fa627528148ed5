"""The command line, as a shell sees it: real processes, real ports, real signals, a real terminal."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from click.testing import CliRunner

from llama_stack_lite.cli import COMMANDS, main
from tests.support.lite import Distribution, Lite, address, ended, serving
from tests.support.lite import distribution as distribution
from tests.support.lite import env as env
from tests.support.lite import lite as lite

# ---------------------------------------------------------------- the group


def test_help_lists_every_command_and_imports_none() -> None:
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-c",
        "from llama_stack_lite.cli import main; main(['--help'])",
    ]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    imported = {line.split("|")[-1].strip().split(".")[0] for line in found.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"pydantic", "fastapi", "starlette", "rich", "httpx", "uvicorn", "yaml", "asyncio"}
    listed = re.findall(r"^  (\w+)  ", found.stdout, re.MULTILINE)
    assert listed == [*COMMANDS, "completion"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_there(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Usage: main {name}")


def test_a_misspelt_command_is_answered_with_close_ones(lite: Lite) -> None:
    result = lite("rnu")
    assert result.returncode == 2
    assert "Did you mean 'run'?" in result.stderr


def test_a_broken_configuration_exits_78_in_one_line(lite: Lite) -> None:
    result = lite("run", "startr")
    assert result.returncode == 78
    assert result.stdout == ""
    assert "startr" in result.stderr and len(result.stderr.splitlines()) == 1


def test_completion_is_a_script_that_completes(lite: Lite) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_LLAMA_LITE_COMPLETE" in lite("completion", shell).stdout
    script = lite("completion", "bash").stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    words = {"_LLAMA_LITE_COMPLETE": "bash_complete", "COMP_WORDS": "llama-lite d", "COMP_CWORD": "1"}
    assert lite(**words).stdout.split() == ["plain,distro", "plain,doctor"]
    words |= {"COMP_WORDS": "llama-lite run --dr", "COMP_CWORD": "2"}
    assert lite(**words).stdout.split() == ["plain,--dry-run"]


# ---------------------------------------------------------------- run


def test_run_says_when_it_is_ready_and_answers(env: dict[str, str], distribution: Distribution) -> None:
    with serving(env, distribution()) as (_, banner):
        url = address(banner)
        assert re.fullmatch(
            rf"Ready in \d+\.\d s · API {url} · Docs {url.removesuffix('/v1')}/docs", banner[0]
        )
        assert banner[1] == "Models: bird/parrot (chat), bird/macaw (chat), bird/vectors (embedding)"
        assert banner[4] == "export OPENAI_API_KEY=none"
        body = {"model": "parrot", "messages": [{"role": "user", "content": "hello"}]}
        reply = httpx.post(f"{url}/chat/completions", json=body)
        assert reply.json()["choices"][0]["message"]["content"] == "parrot#1 hello "


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_stops_the_server_and_closes_the_stack(
    number: int, code: int, env: dict[str, str], distribution: Distribution, tmp_path: Path
) -> None:
    with serving(env, distribution(trace=str(tmp_path / "trace"))) as (process, _):
        assert ended(process, number) == (code, "")
    assert (tmp_path / "trace").read_text(encoding="utf-8").split() == ["built", "closed"]


def test_a_signal_ends_running_answers_after_a_grace(
    env: dict[str, str], distribution: Distribution, tmp_path: Path
) -> None:
    body = {"model": "parrot", "messages": [{"role": "user", "content": "word " * 1000}], "stream": True}
    with serving(env, distribution(pause=0.1, trace=str(tmp_path / "trace"))) as (process, banner):
        with (
            httpx.Client() as http,
            http.stream("POST", f"{address(banner)}/chat/completions", json=body) as reply,
        ):
            lines = reply.iter_lines()
            next(lines)
            before = time.monotonic()
            code, errors = ended(process, signal.SIGTERM)
        assert code == 0
        assert 4 < time.monotonic() - before < 10
        assert "Traceback" not in errors
    assert (tmp_path / "trace").read_text(encoding="utf-8").split() == ["built", "stopped", "closed"]


def test_a_taken_port_is_said_before_anything_is_built(
    lite: Lite, distribution: Distribution, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = lite("run", "--no-guard", distribution(trace=str(tmp_path / "trace")), "--port", str(port))
    assert result.returncode == 1
    found = re.fullmatch(rf"port {port} is taken by another process; try --port (\d+)\n", result.stderr)
    assert found
    with socket.create_server(("127.0.0.1", int(found[1]))):
        pass
    assert not (tmp_path / "trace").exists()


def test_other_machines_are_let_in_by_a_key_or_a_typed_word_only(
    lite: Lite, env: dict[str, str], distribution: Distribution
) -> None:
    refused = lite("run", "--no-guard", distribution(), "--host", "0.0.0.0")
    assert refused.returncode == 78
    assert "server.api_keys" in refused.stderr and "--insecure" in refused.stderr
    with serving(env, distribution(), "--host", "0.0.0.0", "--insecure") as (process, banner):
        assert address(banner).startswith("http://127.0.0.1:")
        assert "no API key" in ended(process, signal.SIGTERM)[1]
    keyed = distribution(server={"host": "0.0.0.0", "port": 0, "api_keys": ["sesame-secret"]})
    with serving(env, keyed, "--log-level", "debug") as (process, banner):
        assert banner[4] == "export OPENAI_API_KEY=<your key>"
        assert httpx.get(f"{address(banner)}/models").status_code == 401
        assert "sesame" not in "".join(banner) + ended(process, signal.SIGTERM)[1]


@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_other_names_of_this_machine_need_no_key(
    host: str, env: dict[str, str], distribution: Distribution
) -> None:
    with serving(env, distribution(), "--host", host) as (_, banner):
        assert httpx.get(f"{address(banner)}/health").json() == {"status": "OK", "safety": "off"}


def test_a_host_of_another_machine_is_a_mistake_in_the_configuration(
    lite: Lite, distribution: Distribution
) -> None:
    result = lite("run", "--no-guard", distribution(), "--host", "192.0.2.1", "--insecure")
    assert result.returncode == 78
    assert "server.host: cannot listen at 192.0.2.1" in result.stderr


def test_a_failing_start_is_one_line_unless_more_is_asked_for(lite: Lite, distribution: Distribution) -> None:
    path = distribution(broken=True)
    result = lite("run", "--no-guard", path)
    assert result.returncode == 1
    assert result.stderr == (
        "could not start: RuntimeError: the weights are torn (--log-level debug shows where)\n"
    )
    assert "Traceback" in lite("run", "--no-guard", path, "--log-level", "debug").stderr


def reader(path: Path, model: Any) -> Path:
    entry = {"provider": "tests.support.slow:Reader", "models": [model]}
    path.write_text(yaml.safe_dump({"inference": {"here": entry}, "server": {"port": 0}}), encoding="utf-8")
    return path


def test_dry_run_tells_and_offline_refuses_what_is_missing(lite: Lite, tmp_path: Path) -> None:
    path = reader(tmp_path / "reader.yaml", "smollm2-135m")
    told = lite("run", "--no-guard", path, "--dry-run")
    assert told.returncode == 0, told.stderr
    assert re.search(r"^Would pull smollm2-135m \(\d+.*B\)$", told.stdout, re.MULTILINE)
    assert "Would build inference provider here (tests.support.slow:Reader)" in told.stdout
    assert not (tmp_path / "home").exists()
    refused = lite("run", "--no-guard", path, "--offline")
    assert refused.returncode == 78
    assert "llama-lite pull smollm2-135m" in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_run_pulls_what_its_distribution_names_and_is_missing(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    file = {"name": "weights.gguf", "sources": [f"file:{tmp_path / 'weights.gguf'}"], "sha256": sha256}
    path = reader(tmp_path / "reader.yaml", {"id": "mine", "files": [file]})
    with serving(env, path) as (process, _):
        pass
    assert (tmp_path / "home" / "models" / "mine" / "weights.gguf").read_bytes() == b"weights"


# ---------------------------------------------------------------- listings


def fake_package(folder: Path) -> None:
    """An installed plug-in whose extra is not installed, and one whose module is gone."""
    info = folder / "someones_plugin-1.dist-info"
    info.mkdir(parents=True)
    (folder / "someones_plugin.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: someones-plugin\nVersion: 1\nProvides-Extra: gpu\n"
        'Requires-Dist: no-such-package>=2; extra == "gpu"\nRequires-Dist: click; extra == "gpu"\n',
        encoding="utf-8",
    )
    (info / "entry_points.txt").write_text(
        "[llama_stack_lite.inference]\nfine = someones_plugin:A\nlame = someones_plugin:B [gpu]\n"
        "gone = someones_lost_module:C\n",
        encoding="utf-8",
    )


def test_providers_are_listed_without_importing_them(lite: Lite, env: dict[str, str], tmp_path: Path) -> None:
    fake_package(tmp_path / "site")
    path = os.pathsep.join([env["PYTHONPATH"], str(tmp_path / "site")])
    found = json.loads(lite("providers", "list", "--json", PYTHONPATH=path).stdout)
    rows = {row["provider"]: row for row in found if row["package"] == "someones-plugin"}
    assert rows["fine"]["ready"] and rows["fine"]["remedy"] is None
    assert rows["lame"]["missing"] == ["no-such-package"]
    assert rows["lame"]["remedy"] == "pip install 'someones-plugin[gpu]'"
    assert rows["gone"]["missing"] == ["someones_lost_module"] and not rows["gone"]["ready"]
    assert {("inference", "scripted"), ("models", "pypi")} <= {(row["api"], row["provider"]) for row in found}
    plain = lite("providers", "list", PYTHONPATH=path).stdout
    assert re.search(r"^inference +lame +someones-plugin +no +no-such-package +pip install", plain, re.M)
    assert "\x1b" not in plain


def test_distributions_are_listed_shown_and_copied(lite: Lite, tmp_path: Path) -> None:
    listed = {row["name"]: row["description"] for row in json.loads(lite("distro", "list", "--json").stdout)}
    assert {"starter", "remote"} <= set(listed) and all(listed.values())
    shown = lite("distro", "show", "starter").stdout
    made = lite("distro", "new", "mine.yaml", "--from", "remote")
    assert made.returncode == 0 and "llama-lite run mine.yaml" in made.stdout
    assert (tmp_path / "mine.yaml").read_text(encoding="utf-8") == lite("distro", "show", "remote").stdout
    again = lite("distro", "new", "mine.yaml")
    assert again.returncode == 1 and "mine.yaml exists already" in again.stderr
    assert (tmp_path / "mine.yaml").read_text(encoding="utf-8") != shown
    unknown = lite("distro", "show", "startr")
    assert unknown.returncode == 1 and "did you mean starter?" in unknown.stderr


def test_version_says_what_runs(lite: Lite) -> None:
    facts = json.loads(lite("version", "--json").stdout)
    assert facts["llama-stack-lite"] == version("llama-stack-lite")
    assert f"python {facts['python']}" in lite("version").stdout.splitlines()
    assert lite("--version").stdout.strip().endswith(facts["llama-stack-lite"])


# ---------------------------------------------------------------- doctor


def checks(result: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(result.stdout)}


def test_doctor_finds_nothing_broken(lite: Lite, distribution: Distribution) -> None:
    result = lite("doctor", distribution(), "--json")
    assert result.returncode == 0, result.stdout
    found = checks(result)
    assert {"python", "home", "disk", "cpu", "config", "port"} <= set(found)
    assert found["config"]["status"] == found["home"]["status"] == found["port"]["status"] == "ok"


def test_doctor_names_what_is_broken_and_the_way_out(lite: Lite, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    (tmp_path / "bad.yaml").write_text("inference: {a: {provider: lama-cpp}}\n", encoding="utf-8")
    result = lite("doctor", "bad.yaml", "--json", LLAMA_LITE_HOME=str(tmp_path / "file"))
    found = checks(result)
    assert result.returncode == 1
    assert found["config"]["status"] == "fail" and "did you mean llama-cpp" in found["config"]["detail"]
    assert found["home"]["status"] == "fail" and "LLAMA_LITE_HOME" in found["home"]["remedy"]
    assert re.search(r"^fail config: .*lama-cpp", lite("doctor", "bad.yaml").stdout, re.M)


def test_doctor_warns_of_a_missing_model_and_a_taken_port(lite: Lite, tmp_path: Path) -> None:
    path = reader(tmp_path / "reader.yaml", "smollm2-135m")
    with socket.create_server(("127.0.0.1", 0)) as other:
        text = path.read_text(encoding="utf-8").replace("port: 0", f"port: {other.getsockname()[1]}")
        path.write_text(text, encoding="utf-8")
        result = lite("doctor", path, "--json")
    found = checks(result)
    assert result.returncode == 0
    assert found["model"]["status"] == "warn" and "llama-lite run" in found["model"]["remedy"]
    assert found["port"]["status"] == "warn" and "try --port" in found["port"]["detail"]


# ---------------------------------------------------------------- new


def check_package(folder: Path, module: str, env: dict[str, str]) -> None:
    """Its tests pass, ten of them at least, and linter and type checker have nothing to say."""

    def run(*tool: str) -> str:
        command = [sys.executable, "-m", *tool]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout
        return done.stdout

    tests = run("pytest", "-q", "-p", "no:cacheprovider", "-W", "error")
    assert int(re.findall(r"(\d+) passed", tests)[0]) >= 10
    run("ruff", "check", "--select", "E,F,I,B,UP", "--line-length", "110", module)
    run("mypy", module)


def test_a_new_provider_is_small_and_conforms(lite: Lite, env: dict[str, str], tmp_path: Path) -> None:
    made = lite("new", "provider", "inference", "my-parrot", "--into", "parrot")
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "parrot"
    assert {file.name for file in folder.iterdir()} == {
        "pyproject.toml",
        "llama_stack_lite_my_parrot.py",
        "test_llama_stack_lite_my_parrot.py",
    }
    provider = (folder / "llama_stack_lite_my_parrot.py").read_text(encoding="utf-8")
    assert len(provider.splitlines()) <= 40
    setup = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert setup["entry-points"]["llama_stack_lite.inference"] == {
        "my-parrot": "llama_stack_lite_my_parrot:MyParrot"
    }
    check_package(folder, "llama_stack_lite_my_parrot.py", env)
    asked = {"PYTHONPATH": os.pathsep.join([env["PYTHONPATH"], str(folder)])}
    (tmp_path / "p.yaml").write_text(
        "inference: {p: {provider: 'llama_stack_lite_my_parrot:MyParrot'}}\n", encoding="utf-8"
    )
    assert lite("chat", "--distribution", "p.yaml", "pretty", "bird", **asked).stdout == "pretty bird\n"


def test_a_new_shield_is_small_and_conforms(lite: Lite, env: dict[str, str], tmp_path: Path) -> None:
    made = lite("new", "provider", "safety", "my-links", "--into", "links")
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "links"
    assert len((folder / "llama_stack_lite_my_links.py").read_text("utf-8").splitlines()) <= 40
    setup = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    assert setup["entry-points"]["llama_stack_lite.safety"] == {
        "my-links": "llama_stack_lite_my_links:MyLinks"
    }
    check_package(folder, "llama_stack_lite_my_links.py", env)


def test_a_new_provider_of_tools_is_small_and_conforms(
    lite: Lite, env: dict[str, str], tmp_path: Path
) -> None:
    made = lite("new", "provider", "tools", "my-pages", "--into", "pages")
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "pages"
    assert len((folder / "llama_stack_lite_my_pages.py").read_text("utf-8").splitlines()) <= 40
    setup = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    assert setup["entry-points"]["llama_stack_lite.tools"] == {
        "my-pages": "llama_stack_lite_my_pages:MyPages"
    }
    check_package(folder, "llama_stack_lite_my_pages.py", env)
