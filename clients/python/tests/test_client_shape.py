"""The client's own shape: small files, two dependencies, a wheel that installs alone and loads fast."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "llama_stack_lite_client").glob("*.py"))
TIMED = """
import resource
begun = resource.getrusage(resource.RUSAGE_SELF)
import llama_stack_lite_client
ended = resource.getrusage(resource.RUSAGE_SELF)
print(ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime)
"""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400 and ast.get_docstring(ast.parse(text))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 50, node.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_it_imports_nothing_but_its_two_dependencies(path: Path) -> None:
    allowed = {"httpx", "pydantic", "pydantic_core", "typing_extensions", *sys.stdlib_module_names}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] in allowed


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_installs_alone_and_loads_fast(tmp_path: Path) -> None:
    source = shutil.copytree(
        ROOT, tmp_path / "source", ignore=shutil.ignore_patterns("tests", "build", "*.egg-info")
    )
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, source)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "-q", next(tmp_path.glob("*.whl")))
    files = run(python, "-m", "pip", "show", "-f", "llama-stack-lite-client")
    assert "py.typed" in files and "tests" not in files
    seconds = min(float(run(python, "-c", TIMED)) for _ in range(5))
    print(f"import: {seconds:.2f} CPU seconds")
    assert seconds < 0.3
