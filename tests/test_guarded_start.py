"""No guard, no pass: which distributions start, and what a server says of its own safety."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import ConfigError
from llama_stack_lite.server import create_app
from tests.support.lite import Lite, address, env, lite, serving
from tests.support.serving import serve

__all__ = ["env", "lite"]  # fixtures

SCRIPTED = "inference: {test: {provider: scripted, replies: [hello], loop: true}}\n"
LATER = "tests.support.later:Later"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(SCRIPTED + text + "server: {port: 0}\n", encoding="utf-8")
    return path


def test_a_distribution_that_enforces_nothing_starts_only_when_told_so(
    lite: Lite, env: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path, "")
    refused = lite("run", path)
    assert refused.returncode == 78
    assert refused.stderr.startswith("enforce: ") and "--no-guard" in refused.stderr
    assert refused.stderr.count("\n") <= 2
    with serving(env, path) as (_, banner):
        assert banner[2] == "Safety: off (--no-guard): nothing is judged"


def test_no_guard_beats_what_the_distribution_enforces_and_every_answer_says_so(
    env: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path, "safety: {bird: {provider: canary, words: [hello]}}\nenforce: {output: [bird]}\n")
    with serving(env, path) as (_, banner):
        reply = ask(address(banner))
        assert reply.headers["safety"] == "off"
        assert reply.json()["choices"][0]["finish_reason"] == "stop"
        assert httpx.get(f"{address(banner)}/nowhere").headers["safety"] == "off"


def ask(url: str) -> httpx.Response:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "?"}]}
    return httpx.post(f"{url}/chat/completions", json=body)


def guarded(folder: Path, *, required: bool) -> Path:
    """A distribution whose guard has no weights yet."""
    text = SCRIPTED.replace("}\n", ", guard: {provider: llama-cpp, optional: [llama-guard-3-1b]}}\n")
    guard = f"{{provider: llama-guard, model: guard/llama-guard-3-1b, required: {str(required).lower()}}}"
    path = folder / "mine.yaml"
    text += f"safety: {{guard: {guard}}}\nenforce: {{input: [guard]}}\nserver: {{port: 0}}\n"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_required_guard_without_weights_stops_the_start_and_says_how_to_get_them(
    lite: Lite, tmp_path: Path
) -> None:
    result = lite("run", guarded(tmp_path, required=True))
    assert result.returncode == 78
    assert "llama-lite pull llama-guard-3-1b" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_guard_that_is_not_required_is_waited_for(env: dict[str, str], tmp_path: Path) -> None:
    with serving(env, "--log-level", "error", guarded(tmp_path, required=False), guard=True) as (_, banner):
        assert banner[2] == (
            "Safety: off until guard has its model (llama-lite pull llama-guard-3-1b); then input by guard"
        )
        reply = ask(address(banner))
        assert (reply.headers["safety"], reply.json()["choices"][0]["finish_reason"]) == ("off", "stop")


def test_the_remote_distribution_wants_its_guard(lite: Lite, env: dict[str, str]) -> None:
    config = {"inference": {"far": {"provider": "scripted", "models": ["llama-guard3:1b"]}}}
    with serve(StackConfig.model_validate(config)) as far:
        far.app.state.stack.inference["far"].queue(*["safe"] * 2, "Hello.", "safe")
        names = {"OPENAI_BASE_URL": far.url + "/v1", "GUARD_MODEL": "far/llama-guard3:1b"}
        refused = lite("run", "remote", "--port", "0", GUARD_BASE_URL="http://127.0.0.1:9/v1", **names)
        assert refused.returncode == 78 and "127.0.0.1:9" in refused.stderr
        names["GUARD_BASE_URL"] = far.url + "/v1"
        with serving(env | names, "remote", "--port", "0", guard=True) as (_, banner):
            assert banner[2] == "Safety: on: input by guard, output by guard"
            body = {"model": "remote/far/llama-guard3:1b", "messages": [{"role": "user", "content": "?"}]}
            reply = httpx.post(f"{address(banner)}/chat/completions", json=body)
            assert reply.json()["choices"][0]["message"]["content"] == "Hello."
            assert "safety" not in reply.headers


async def states(config: dict[str, Any], *replies: str) -> list[tuple[str, str | None, str]]:
    """What health, the header and a chat say before and after the shield is there."""
    app = create_app(StackConfig.model_validate(config))
    found = []
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http,
    ):
        for there in (False, True):
            app.state.stack.safety["late"].there = there
            body = {"model": "scripted", "messages": [{"role": "user", "content": "a canary?"}]}
            chat = await http.post("/v1/chat/completions", json=body)
            health = await http.get("/v1/health")
            reason = chat.json()["choices"][0]["finish_reason"]
            found.append((health.json()["safety"], health.headers.get("safety"), reason))
            assert chat.headers.get("safety") == health.headers.get("safety")
    return found


def test_a_shield_that_is_not_required_is_enforced_from_the_moment_that_it_is_there() -> None:
    config = {
        "inference": {"test": {"provider": "scripted", "replies": ["hello"], "loop": True}},
        "safety": {"late": {"provider": LATER, "required": False}},
        "enforce": {"input": ["late"]},
    }
    assert asyncio.run(states(config)) == [("off", "off", "stop"), ("on", None, "content_filter")]


def test_a_shield_that_is_required_and_missing_stops_the_start() -> None:
    config = {"safety": {"late": {"provider": LATER}}, "enforce": {"input": ["late"]}}
    with pytest.raises(ConfigError, match="late is not here"):
        asyncio.run(states(config))


def test_a_request_that_asks_for_a_shield_which_is_not_there_is_refused() -> None:
    async def main() -> httpx.Response:
        config = {
            "inference": {"test": {"provider": "scripted", "replies": ["hello"]}},
            "safety": {"late": {"provider": LATER, "required": False}},
        }
        app = create_app(StackConfig.model_validate(config))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http,
        ):
            message = {"role": "user", "content": "?"}
            body = {"model": "scripted", "messages": [message], "guardrails": ["late"]}
            return await http.post("/v1/chat/completions", json=body)

    reply = asyncio.run(main())
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "guard_unavailable")
