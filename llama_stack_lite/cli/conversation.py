"""A conversation over the OpenAI API: what was said so far, and the answer as it streams in."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx

from llama_stack_lite.errors import NotFound, StackError, UpstreamError


@dataclass(frozen=True)
class Note:
    """A line about an answer, which is no part of it."""

    text: str


@dataclass(frozen=True)
class Question:
    """A call that waits for the user's word; `arguments` are JSON."""

    id: str
    name: str
    arguments: str


class Conversation:
    """Messages with one model at a time; `client` has the API's base URL and the key."""

    questions: tuple[Question, ...] = ()  # a model alone calls nothing

    def __init__(self, client: httpx.AsyncClient, model: str, *, system: str | None = None) -> None:
        self.client = client
        self.model = model
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.finish_reason: str | None = None

    def clear(self) -> None:
        self.messages = []

    async def choices(self) -> list[str]:
        """The models there are."""
        return [str(entry["id"]) for entry in await models(self.client)]

    async def switch(self, name: str) -> None:
        self.model = await pick(self.client, name)

    async def ask(self, text: str) -> AsyncGenerator[str | Note, None]:
        """Yield the answer piece by piece; what was said is kept, however the answer ends.

        Raises `StackError` with the server's own message.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {"model": self.model, "messages": [*system, *messages], "stream": True}
        said: list[str] = []
        try:
            async with aclosing(events(self.client, "chat/completions", body)) as found:
                async for event in found:
                    if piece := self._piece(event):
                        said.append(piece)
                        yield piece
        except httpx.HTTPError as error:
            raise unreachable(self.client, error) from error
        finally:
            if said:
                self.messages = [*messages, {"role": "assistant", "content": "".join(said)}]

    async def reply(self, answers: list[bool]) -> AsyncGenerator[str | Note, None]:
        raise AssertionError("there are no questions")
        yield

    def _piece(self, event: dict[str, Any]) -> str:
        for choice in event.get("choices") or []:
            self.finish_reason = choice.get("finish_reason")
            delta = choice.get("delta") or {}
            return delta.get("content") or delta.get("refusal") or ""
        return ""


async def events(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a stream, each as JSON; raises the error that one of them tells of."""
    async with client.stream("POST", path, json=body) as response:
        await check(response)
        async with aclosing(_lines(response)) as lines:
            async for line in lines:
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                if line.startswith(b"data:"):
                    event = json.loads(data)
                    if "error" in event:
                        raise UpstreamError(_message(event) or data.decode())
                    yield event


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Whole lines; httpx's own also end at characters that text may hold, such as U+2028."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What the server answers; raises `StackError` with its own message."""
    try:
        response = await client.post(path, json=body)
        await check(response)
        answer: dict[str, Any] = response.json()
        return answer
    except httpx.HTTPError as error:
        raise unreachable(client, error) from error


async def models(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """The server's chat models as it lists them; a server that tells no kinds serves chat models."""
    try:
        response = await client.get("models")
        await check(response)
        return [entry for entry in response.json()["data"] if entry.get("kind", "chat") == "chat"]
    except httpx.HTTPError as error:
        raise unreachable(client, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UpstreamError(f"{client.base_url} does not speak the OpenAI API; pass --url") from error


async def pick(client: httpx.AsyncClient, name: str | None) -> str:
    """The full id of the model with that name, or of the first; raises `NotFound` naming close ones."""
    known = [str(entry["id"]) for entry in await models(client)]
    if not name:
        if not known:
            raise StackError(f"{client.base_url} serves no chat model")
        return known[0]
    if name in known:
        return name
    response = await client.get(f"models/{name}")  # a bare name, or one that the list leaves out
    if response.status_code != httpx.codes.OK:
        raise NotFound("model", name, known)
    return str(response.json()["id"])


async def check(response: httpx.Response) -> None:
    """Raise the error that the server answered with, in its own words where it has any."""
    if response.status_code == httpx.codes.OK:
        return
    await response.aread()
    try:
        message = _message(response.json())
    except ValueError:
        message = None
    if response.status_code == httpx.codes.UNAUTHORIZED:
        message = f"{message or 'unauthorized'} (set OPENAI_API_KEY)"
    raise UpstreamError(message or f"{response.url} answered {response.status_code} {response.reason_phrase}")


def _message(body: Any) -> str | None:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message) if message else None


def unreachable(client: httpx.AsyncClient, error: httpx.HTTPError) -> UpstreamError:
    reason = str(error) or type(error).__name__
    return UpstreamError(f"no answer from {client.base_url}: {reason}")
