"""`llama-lite new agent`: the package it writes works, here and in a clean environment."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from llama_stack_lite.config import load
from tests.support.lite import ROOT, Lite
from tests.support.lite import env as env
from tests.support.lite import lite as lite
from tests.test_packaging import built as built
from tests.test_packaging import python as python
from tests.test_packaging import run

CLIENT = ROOT / "clients" / "python"


def test_a_new_agent_is_small_and_its_tests_pass(lite: Lite, env: dict[str, str], tmp_path: Path) -> None:
    made = lite("new", "agent", "shop-help")
    assert made.returncode == 0, made.stderr
    assert "llama-lite run starter shop-help-agent/shop_help_agent.yaml" in made.stdout
    folder = tmp_path / "shop-help-agent"
    assert {file.name for file in folder.iterdir()} == {
        "pyproject.toml",
        "shop_help_agent.py",
        "shop_help_agent.yaml",
        "test_shop_help_agent.py",
    }
    assert len((folder / "shop_help_agent.py").read_text("utf-8").splitlines()) <= 50
    setup = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    assert setup["dependencies"] == ["llama-stack-lite-client"]
    assert setup["scripts"] == {"shop-help-agent": "shop_help_agent:main"}
    path = os.pathsep.join([env["PYTHONPATH"], str(CLIENT)])

    def checked(*tool: str) -> str:
        command = [sys.executable, "-m", *tool]
        variables = env | {"PYTHONPATH": path, "MYPYPATH": str(CLIENT)}
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "4 passed" in checked("pytest", "-q", "-p", "no:cacheprovider", "-W", "error")
    checked("ruff", "check", "--select", "E,F,I,B,UP", "--line-length", "110", "shop_help_agent.py")
    checked("mypy", "shop_help_agent.py")


def test_any_distribution_can_take_it_up(lite: Lite, tmp_path: Path) -> None:
    assert lite("new", "agent", "helper", "--into", "there").returncode == 0
    (tmp_path / "mine.yaml").write_text(
        "inference: {test: {provider: scripted, replies: [At home.]}}\ndefaults: {model: test/scripted}\n",
        encoding="utf-8",
    )
    own = tmp_path / "there" / "helper_agent.yaml"
    config = load([str(tmp_path / "mine.yaml"), str(own)])
    assert list(config.agents) == ["helper"] and config.storage == "sqlite"
    both = yaml.safe_load(own.read_text("utf-8")) | yaml.safe_load(
        (tmp_path / "mine.yaml").read_text("utf-8")
    )
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(both), encoding="utf-8")
    assert lite("chat", "--distribution", "both.yaml", "--agent", "helper", "Where?").stdout == "At home.\n"


@pytest.mark.parametrize("name", ["Shop", "shop_help", "-shop", "shop--help", "1shop", ""])
def test_names_that_are_none_are_refused(name: str, lite: Lite) -> None:
    made = lite("new", "agent", "--", name)
    assert made.returncode == 1 and "is no name for an agent" in made.stderr


def test_what_is_there_is_left_alone(lite: Lite, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    made = lite("new", "agent", "helper", "--into", "there")
    assert made.returncode == 1 and "there is not empty" in made.stderr
    assert [file.name for file in (tmp_path / "there").iterdir()] == ["mine"]


@pytest.mark.slow
def test_it_works_in_a_clean_environment(built: Path, python: Path, tmp_path: Path) -> None:
    wheel = next(built.glob("*.whl"))
    client = shutil.copytree(CLIENT, tmp_path / "client", ignore=shutil.ignore_patterns("tests"))
    run(python, "-m", "pip", "install", "-q", client, f"{wheel}[agents]", "pytest")
    run(python.parent / "llama-lite", "new", "agent", "shop", "--into", tmp_path / "shop")
    run(python, "-m", "pip", "install", "-q", tmp_path / "shop")
    assert "4 passed" in run(python, "-m", "pytest", "-q", tmp_path / "shop", cwd=tmp_path)
    assert (python.parent / "shop-agent").exists()
