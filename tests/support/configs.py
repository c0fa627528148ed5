"""Configurations to be read: files beside the test, the command line, and what is said of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama_stack_lite.config import StackConfig, load
from llama_stack_lite.errors import ConfigError

ROOT = Path(__file__).parents[2]
SECRETIVE = "tests.support.secretive:Secretive"
ENTRY = "inference:\n  r: {provider: scripted, models: [m]}\n"
OPENAI = "inference:\n  r:\n    provider: openai\n    base_url: http://x/v1\n"
SECRET = f"""
inference:
  r:
    provider: {SECRETIVE}
    url: http://me:hush@host/v1
    api_key: ${{env.TEST_KEY}}
    access-token: hush
    headers: {{Authorization: hush}}
    accounts: [{{user: me, password: hush}}]
    admin: {{user: root, password: hush}}
server: {{api_keys: [hush, 'hush-2'], port: 1}}
"""


def isolate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are named as typed, so the tests run beside them; no variable of this shell counts."""
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith(("LLAMA_LITE_", "OPENAI_", "TEST_"))]:
        monkeypatch.delenv(name)


def write(text: str | bytes, name: str = "f.yaml") -> str:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def read(*texts: str, overrides: tuple[str, ...] = ()) -> StackConfig:
    return load([write(text, f"{number}.yaml") for number, text in enumerate(texts)], overrides=overrides)


def mistakes(*sources: str, overrides: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(sources, overrides=overrides)
    return str(caught.value).splitlines()


def lite(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from llama_stack_lite.cli import main; main(prog_name='llama-lite')"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
