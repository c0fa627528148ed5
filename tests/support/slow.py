"""Providers for the tests of the command line: one that takes its time, one that reads model files."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from pydantic import BaseModel

from llama_stack_lite.api.inference import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Usage,
)
from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.models import LocalModels


class SlowConfig(BaseModel):
    """`pause` in seconds after each word; `trace` is a file that tells what happened, line by line."""

    pause: float = 0
    trace: Path | None = None
    broken: bool = False


class Slow:
    """Says back what it was told last, after the system prompt where there is one, word by word."""

    Config = SlowConfig

    def __init__(self, config: SlowConfig) -> None:
        self.config = config
        self._note("built")
        if config.broken:
            raise RuntimeError("the weights\nare torn")

    async def models(self) -> list[ModelCard]:
        return [ModelCard(id="parrot"), ModelCard(id="macaw"), ModelCard(id="vectors", kind="embedding")]

    async def chat(self, model: str, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        system = [m.text() for m in request.messages if m.role == "system"]
        words = " ".join([*system, f"{model}#{len(request.messages)}", request.messages[-1].text()]).split(
            " "
        )
        try:
            for word in words:
                yield ChatChunk(choices=[ChunkChoice(delta={"content": f"{word} "})])
                await asyncio.sleep(self.config.pause)
            yield ChatChunk(choices=[ChunkChoice(finish_reason="stop")])
            yield ChatChunk(choices=[], usage=Usage())
            self._note("answered")
        finally:
            self._note("stopped")

    async def aclose(self) -> None:
        self._note("closed")

    def _note(self, what: str) -> None:
        if self.config.trace:
            with self.config.trace.open("a", encoding="utf-8") as file:
                file.write(f"{what}\n")


class ReaderConfig(LocalModels):
    """Model files, as llama-cpp and onnx name theirs."""


class Reader(Slow):
    Config = ReaderConfig  # type: ignore[assignment]

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__(SlowConfig())
        self.cards = config.cards()

    async def models(self) -> list[ModelCard]:
        return self.cards
