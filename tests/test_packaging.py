"""Wheel, sdist and editable install, each in a clean virtual environment."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

HEAVY = [
    "aiohttp",
    "click",
    "fastapi",
    "httpx",
    "llama_cpp",
    "numpy",
    "onnxruntime",
    "pydantic",
    "rich",
    "yaml",
]

PROBE = """
import json, sys
import llama_stack_lite
heavy = sorted(set(sys.modules) & set({heavy!r}))
import importlib.resources as resources
from importlib.metadata import distributions, entry_points
from llama_stack_lite.config import StackConfig
from llama_stack_lite.server import create_app
create_app(StackConfig())
files = {{p.name for p in resources.files("llama_stack_lite.distributions").iterdir()}}
templates = [p.name for p in resources.files("llama_stack_lite.templates").iterdir() if p.suffix == ".tmpl"]
import llama_stack_lite.providers.inference.openai, llama_stack_lite.conformance
try:
    import providers
    leaked = True
except ImportError:
    leaked = False
print(json.dumps(dict(
    heavy=heavy, files=sorted(files), templates=templates, leaked=leaked,
    typed=resources.files("llama_stack_lite").joinpath("py.typed").is_file(),
    catalogue=resources.files("llama_stack_lite").joinpath("catalogue.yaml").is_file(),
    plugins=sorted(p.name for p in entry_points(group="llama_stack_lite.inference")),
    distributions=sorted(d.name for d in distributions() if d.name not in ("pip", "setuptools")),
)))
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel and the sdist, built as a release would be."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, ROOT)
    return out


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a fresh virtual environment."""
    venv.create(tmp_path / "venv", with_pip=True)
    return tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"


def probe(python: Path, where: Path) -> Any:
    return json.loads(run(python, "-c", PROBE.format(heavy=HEAVY), cwd=where))


def check(python: Path, where: Path) -> None:
    found = probe(python, where)
    assert found["heavy"] == []
    assert not found["leaked"]
    assert found["typed"] and found["catalogue"] and found["templates"]
    assert {"starter.yaml", "remote.yaml"} <= set(found["files"])
    assert found["plugins"] == ["llama-cpp", "onnx", "openai", "scripted", "transformers"]
    command = python.parent / "llama-lite"
    assert run(command, "version", cwd=where).strip()


@pytest.mark.slow
def test_the_wheel_installs_alone_and_stays_small(built: Path, python: Path, tmp_path: Path) -> None:
    before = _bytes_below(python.parent.parent)
    run(python, "-m", "pip", "install", "-q", next(built.glob("*.whl")))
    check(python, tmp_path)
    installed = probe(python, tmp_path)["distributions"]
    assert isinstance(installed, list) and len(installed) <= 32, installed
    megabytes = (_bytes_below(python.parent.parent) - before) / 1e6
    print(f"base install: {megabytes:.0f} MB, {len(installed)} distributions")
    assert megabytes <= 170


@pytest.mark.slow
def test_the_source_distribution_installs(built: Path, python: Path, tmp_path: Path) -> None:
    run(python, "-m", "pip", "install", "-q", next(built.glob("*.tar.gz")))
    check(python, tmp_path)


@pytest.mark.slow
def test_the_editable_install_sees_the_same(python: Path, tmp_path: Path) -> None:
    run(python, "-m", "pip", "install", "-q", "-e", ROOT)
    check(python, tmp_path)


@pytest.mark.slow
def test_a_new_provider_installs_beside_the_wheel_and_conforms(
    built: Path, python: Path, tmp_path: Path
) -> None:
    """What `docs/write-a-provider.md` tells, done in a clean environment."""
    run(python, "-m", "pip", "install", "-q", next(built.glob("*.whl")), "pytest")
    lite = python.parent / "llama-lite"
    run(lite, "new", "provider", "inference", "parrot", "--into", tmp_path / "parrot")
    run(python, "-m", "pip", "install", "-q", tmp_path / "parrot")
    assert "parrot" in run(lite, "providers", "list", cwd=tmp_path)
    assert "passed" in run(python, "-m", "pytest", "-q", tmp_path / "parrot", cwd=tmp_path)


def _bytes_below(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
