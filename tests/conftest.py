"""Fixtures that several test files share: a scripted server, and one with the starter's real models."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_stack_lite.config import StackConfig, load
from llama_stack_lite.models import LocalModels, pull
from llama_stack_lite.stack import config_of
from tests.support.serving import Running, models_home, serve
from tests.support.tiny import write_llama


@pytest.fixture(scope="session")
def starter_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackConfig]:
    """The starter distribution with its models on disk, pulled once for all runs."""
    before = os.environ.get("LLAMA_LITE_HOME")
    os.environ["LLAMA_LITE_HOME"] = str(models_home())
    state = tmp_path_factory.mktemp("starter") / "state.db"
    config = load(["starter"], overrides=[f"storage=sqlite:///{state}"])
    for entry in config.inference.values():
        settings = config_of("inference", entry)
        if isinstance(settings, LocalModels):
            for card in settings.cards():
                pull(card)
    yield config
    if before is None:
        del os.environ["LLAMA_LITE_HOME"]
    else:
        os.environ["LLAMA_LITE_HOME"] = before


@pytest.fixture(scope="session")
def starter(starter_config: StackConfig) -> Iterator[Running]:
    """The starter distribution, serving SmolLM2 and MiniLM on loopback."""
    with serve(starter_config) as running:
        yield running


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama as a GGUF file, which nobody changes."""
    return write_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
