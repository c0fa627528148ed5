"""Agents as the server has them: turns of clients, and of the background."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Self

from starlette.types import ASGIApp

from llama_stack_lite.api.inference import ChatChunk, ChatRequest
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
