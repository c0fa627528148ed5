"""An upstream that speaks the OpenAI protocol, and the provider that asks it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llama_stack_lite.answer import chat_completion
from llama_stack_lite.api.inference import ChatCompletion, ChatRequest
from llama_stack_lite.errors import StackError
from llama_stack_lite.providers.inference.openai import OpenAI
from tests.support.upstream import Answer, Exchange, Upstream, upstream

SAID = "Grüße, 世界 🎉"


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


@asynccontextmanager
async def provider(
    answer: Answer, *, keep_alive: bool = False, **settings: Any
) -> AsyncIterator[tuple[OpenAI, Upstream]]:
    async with upstream(answer, keep_alive=keep_alive) as server:
        made = OpenAI(OpenAI.Config(base_url=server.url, **settings))
        try:
            yield made, server
        finally:
            await made.aclose()


def ask(**fields: Any) -> ChatRequest:
    messages = [{"role": "user", "content": "?"}]
    return ChatRequest.model_validate({"model": "ours/m", "messages": messages, **fields})


def frame(**choice: Any) -> dict[str, Any]:
    return {"id": "x", "created": 1, "model": "theirs", "choices": [{"index": 0, **choice}]}


def frames(*found: dict[str, Any], end: str = "\n") -> bytes:
    return "".join(f"data: {json.dumps(each, ensure_ascii=False)}{end}{end}" for each in found).encode()


ANSWER = (
    frame(delta={"role": "assistant", "content": "Grüße, "}),
    frame(delta={"content": "世界 🎉"}),
    frame(delta={}, finish_reason="stop"),
    {"choices": [], "usage": USAGE},
)


DONE = b"data: [DONE]\n\n"


def saying(*blocks: bytes) -> Answer:
    async def answer(exchange: Exchange) -> None:
        for block in blocks:
            await exchange.send(block)

    return answer


def chat(answer: Answer, request: ChatRequest | None = None, **settings: Any) -> ChatCompletion:
    """One whole chat with an upstream that answers so."""

    async def main() -> ChatCompletion:
        async with provider(answer, **settings) as (made, _):
            return await asyncio.wait_for(chat_completion(made.chat("m", request or ask())), 5)

    return asyncio.run(main())


def refusal(answer: Answer, **settings: Any) -> StackError:
    with pytest.raises(StackError) as refused:
        chat(answer, **settings)
    return refused.value


WHOLE = frames(*ANSWER) + DONE


CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(body: bytes) -> bytes:
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


def body(message: str, **fields: Any) -> bytes:
    return json.dumps({"error": {"message": message, **fields}}).encode()
