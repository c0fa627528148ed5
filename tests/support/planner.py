"""A model and a tool for turns that are interrupted: what each of them did can be counted afterwards."""

import asyncio
import json
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from llama_stack_lite.api.inference import ChatChunk, ChatRequest, ChunkChoice, FunctionDefinition, Usage
from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.api.tools import ToolKind, ToolResult

SCHEMA = {
    "type": "object",
    "properties": {"mark": {"type": "string"}, "seconds": {"type": "number"}},
    "required": ["mark", "seconds"],
}


class Planner:
    """A model that does as the last message of the user says, such as `steps=2 calls=2 seconds=0.1 words=9`.

    It calls the ledger so many times in each of so many steps, every call with a mark of its own, then
    answers in so many words. `crash` ends the process, as a model may that takes all memory.
    """

    class Config(BaseModel):
        pace: float = 0.01  # seconds between two words

    def __init__(self, config: Config) -> None:
        self.config = config

    async def models(self) -> list[ModelCard]:
        return [ModelCard(id="planner", tool_calling="remote")]

    async def chat(self, model: str, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        said = [message.text() for message in request.messages if message.role == "user"]
        plan = {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", said[-1])}
        if plan.get("crash"):
            os._exit(9)
        last = max(place for place, message in enumerate(request.messages) if message.role == "user")
        answered = sum(message.role == "tool" for message in request.messages[last:])
        calls = int(plan.get("calls", 1))
        calling = bool(request.tools) and answered < int(plan.get("steps", 0)) * calls
        for thought in ["so", "I", "think"]:
            yield await self._paced({"reasoning_content": f"{thought} "})
        for word in range(3 if calling else int(plan.get("words", 9))):
            yield await self._paced({"content": f"word{word} "})
        for index in range(calls if calling else 0):
            arguments = {"mark": secrets.token_hex(8), "seconds": plan.get("seconds", 0)}
            function = {"name": "write", "arguments": json.dumps(arguments)}
            call = {"index": index, "id": f"call_{secrets.token_hex(4)}", "type": "function"}
            yield await self._paced({"tool_calls": [{**call, "function": function}]})
        yield ChatChunk(choices=[ChunkChoice(finish_reason="tool_calls" if calling else "stop")])
        yield ChatChunk(choices=[], usage=Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2))

    async def _paced(self, delta: Any) -> ChatChunk:
        await asyncio.sleep(self.config.pace)
        return ChatChunk(choices=[ChunkChoice(delta=delta)])


class Ledger:
    """A tool with a side effect that stays: it writes a mark into a file, and then takes its time."""

    kind: ToolKind = "mcp"

    class Config(BaseModel):
        path: Path

    def __init__(self, config: Config) -> None:
        self.path = config.path

    async def tools(self) -> list[FunctionDefinition]:
        return [FunctionDefinition(name="write", description="Writes a mark.", parameters=SCHEMA)]

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        file = os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
        os.write(file, f"{arguments['mark']} {os.getpid()} {time.time():.3f}\n".encode())
        os.fsync(file)
        os.close(file)
        await asyncio.sleep(arguments["seconds"])
        return ToolResult(text=f"written: {arguments['mark']}")


def marks(path: Path) -> list[str]:
    """The marks that were written, in their order."""
    return (
        [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )
