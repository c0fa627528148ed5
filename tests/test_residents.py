"""Models in memory: loaded on first use, let go, failing alone; LoRA adapters over one of them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import httpx
import pytest

from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import Unavailable
from llama_stack_lite.local.engine import Job
from llama_stack_lite.providers.inference.llama_cpp import LlamaCpp
from llama_stack_lite.providers.inference.llama_cpp.engine import Engine
from tests.support.serving import Running, serve
from tests.support.tiny import write_llama
from tests.support.tiny_adapter import write_adapter
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        write_llama(folder / f"{name}.gguf", seed=seed)
    return folder


def config(*models: Path, **settings: Any) -> StackConfig:
    small = {"context": 512, "slots": 4}
    local = {"provider": "llama-cpp", "models": [str(path) for path in models], **small, **settings}
    return StackConfig.model_validate({"inference": {"local": local}})


def ask(server: Running, model: str, *, text: str = "go") -> httpx.Response:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 8,
        "temperature": 0,
    }
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)


def said(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def state(server: Running, model: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/v1/models/{model}").json()
    return found


def test_a_model_is_loaded_at_first_use_and_let_go_when_idle(folder: Path) -> None:
    with serve(config(folder / "one.gguf", preload=False, keep_alive=0.3)) as server:
        first = state(server, "one")
        assert first["state"] == "unloaded" and first["context_length"] == 512, "its card needs no weights"
        said(ask(server, "one"))
        loaded = state(server, "one")
        assert loaded["state"] == "loaded" and loaded["memory"] > 100_000
        wait_until(lambda: state(server, "one")["state"] == "unloaded")
        said(ask(server, "one"))


def test_a_model_stays_where_no_keep_alive_says_otherwise(folder: Path) -> None:
    with serve(config(folder / "one.gguf")) as server:
        assert state(server, "one")["state"] == "loaded"


def test_models_take_turns_where_memory_holds_one(folder: Path) -> None:
    models = [folder / "one.gguf", folder / "two.gguf"]
    with serve(config(*models)) as server:
        alone = [said(ask(server, name)) for name in ("one", "two")]
        memory = state(server, "one")["memory"]
    with serve(config(*models, memory=int(memory * 1.5))) as server:
        assert [said(ask(server, name)) for name in ("one", "two")] == alone
        assert [state(server, name)["state"] for name in ("one", "two")] == ["unloaded", "loaded"]

        async def together() -> list[str]:
            names = ["one", "two"] * 6
            return [
                said(reply)
                for reply in await asyncio.gather(*(asyncio.to_thread(ask, server, n) for n in names))
            ]

        assert asyncio.run(together()) == alone * 6


def test_a_model_larger_than_the_memory_says_so(folder: Path) -> None:
    with serve(config(folder / "one.gguf", memory=1000)) as server:
        reply = ask(server, "one")
        assert reply.status_code == 503
        assert "`memory` is 1.0 kB" in reply.json()["error"]["message"]


def _foreign(path: Path) -> Path:
    writer = gguf.GGUFWriter(str(path), "nonesuch")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _cut(path: Path) -> Path:
    whole = write_llama(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def _garbage(path: Path) -> Path:
    path.write_bytes(b"GGUF" + b"\0" * 300)
    return path


BROKEN = {
    "garbage": (_garbage, "cannot load"),
    "cut": (_cut, "cannot load"),
    "foreign": (_foreign, "unknown model architecture: 'nonesuch'"),
    "huge": (lambda path: write_llama(path, context=2**30), "lower `context` or `slots`"),
    "untemplated": (lambda path: write_llama(path, template="{% if"), "chat template cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("preload", [True, False])
def test_a_broken_model_fails_alone(folder: Path, tmp_path: Path, name: str, preload: bool) -> None:
    make, reason = BROKEN[name]
    broken = make(tmp_path / f"{name}.gguf")
    settings = {"context": 2**30} if name == "huge" else {}
    with serve(config(folder / "one.gguf", broken, preload=preload, **settings)) as server:
        reply = ask(server, name)
        assert reply.status_code == 503
        message = reply.json()["error"]["message"]
        assert reason in message and "\n" not in message
        shown = state(server, name)
        assert shown["state"] == "failed" and reason in shown["error"]
        said(ask(server, "one"))


def test_a_file_that_was_put_right_is_loaded(folder: Path, tmp_path: Path) -> None:
    broken = _garbage(tmp_path / "later.gguf")
    with serve(config(broken)) as server:
        assert ask(server, "later").status_code == 503
        broken.write_bytes((folder / "one.gguf").read_bytes())
        said(ask(server, "later"))


def test_an_engine_that_crashed_is_started_again(folder: Path) -> None:
    with serve(config(folder / "one.gguf", folder / "two.gguf")) as server:
        before = said(ask(server, "one"))
        provider: LlamaCpp = server.app.state.stack.inference["local"]
        writer = provider.residents.places["one"].model
        assert writer

        async def crash(engine: Engine) -> None:
            with pytest.raises(Unavailable, match="llama_decode failed"):
                async for _ in engine.generate(Job(prompt=[10**6], max_tokens=1)):
                    pass

        asyncio.run(crash(writer.engine))
        assert state(server, "one")["state"] == "failed"
        said(ask(server, "two"))
        assert said(ask(server, "one")) == before


@pytest.fixture(scope="module")
def adapted(folder: Path) -> Iterator[Running]:
    adapters = {
        "poet": str(write_adapter(folder / "poet.gguf", seed=1)),
        "clerk": str(write_adapter(folder / "clerk.gguf", seed=2)),
        "wide": str(write_adapter(folder / "wide.gguf", width=128)),
        "missing": str(folder / "nowhere.gguf"),
    }
    with serve(config(folder / "one.gguf", adapters=adapters)) as server:
        yield server


def test_adapters_are_models_of_their_own(adapted: Running) -> None:
    ids = {model["id"] for model in httpx.get(f"{adapted.url}/v1/models").json()["data"]}
    assert {"local/one", "local/one:poet", "local/one:clerk"} < ids
    answers = {name: said(ask(adapted, name)) for name in ("one", "one:poet", "one:clerk")}
    assert len(set(answers.values())) == 3


def test_adapters_answer_the_same_alone_and_together(adapted: Running) -> None:
    """Their sequences share a context, but neither a step nor a prefix."""
    names = ["one", "one:poet", "one:clerk"] * 4
    alone = [said(ask(adapted, name, text=f"word {place}")) for place, name in enumerate(names)]

    async def together() -> list[httpx.Response]:
        asked = (asyncio.to_thread(ask, adapted, n, text=f"word {i}") for i, n in enumerate(names))
        return await asyncio.gather(*asked)

    assert [said(reply) for reply in asyncio.run(together())] == alone


@pytest.mark.parametrize(
    ("name", "reason"), [("wide", "cannot be laid over"), ("missing", "there is no file")]
)
def test_a_bad_adapter_fails_alone(adapted: Running, name: str, reason: str) -> None:
    reply = ask(adapted, f"one:{name}")
    assert reply.status_code == 503
    assert reason in reply.json()["error"]["message"]
    said(ask(adapted, "one"))
