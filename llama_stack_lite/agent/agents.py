"""Agents as the server has them: turns of clients, and of the background."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Self

from starlette.types import ASGIApp

from llama_stack_lite.api.inference import ChatChunk, ChatRequest
from llama_stack_lite.api.responses import FileSearchTool
from llama_stack_lite.api.tools import Tools
from llama_stack_lite.errors import InvalidRequest
from llama_stack_lite.plugins import load
from llama_stack_lite.stack import Stack

from . import chatting
from .feeds import Feeds
from .named import Named
from .nested import Colleague
from .toolbox import Toolbox
from .turn import Turn, Turns
from .workers import Workers


class Agents:
    """All that begins and goes on with turns in this process."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._serving: Any = None
        self._loading = asyncio.Lock()
        feeds = Feeds(stack.store)
        self.named = Named(stack)
        self.turns = Turns(stack, Toolbox, feeds.put, self.named.take)
        self.workers = Workers(self.turns, feeds)

    def answered(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        """Answer a chat by the agent that its `model` names; as `enforcement.chat` in all else."""
        return chatting.chunks(self.turns, request)

    def colleague(self, turn: Turn, name: str) -> Colleague:
        """An agent as a tool of a turn."""
        return Colleague(turn, name=name, named=self.named, turns=self.turns)

    def searches(self, turn: Turn, asked: Mapping[str, FileSearchTool]) -> Tools:
        """What searches documents for a turn, by the places of the tools that ask for it in the request."""
        if not self.stack.vector_io:
            param = next(iter(asked))
            raise InvalidRequest(
                f"{param}: this distribution has no index for vector stores; its operator adds one under "
                "`vector_io:`",
                param=param,
            )
        kind = load("llama_stack_lite.rag.file_search:FileSearch", extra="documents")
        found: Tools = kind(turn, asked)
        return found

    async def cards(self) -> list[dict[str, Any]]:
        """Every agent as lists of models show it."""
        return [chatting.card(agent) for agent in await self.named.all()]

    async def card(self, model: str) -> dict[str, Any]:
        """One of them, by what a request calls it."""
        return chatting.card(await self.named.ready(model))

    async def serving(self) -> ASGIApp:
        """What answers at /mcp."""
        async with self._loading:
            if self._serving is None:
                kind = await asyncio.to_thread(load, "llama_stack_lite.agent.serving:Serving", extra="mcp")
                self._serving = kind(self.turns, self.named)
            found: ASGIApp = self._serving
        return found

    async def start(self) -> Self:
        await self.named.start()
        self.workers.start()
        return self

    async def aclose(self) -> None:
        if self._serving:
            await self._serving.aclose()
        await self.workers.aclose()
