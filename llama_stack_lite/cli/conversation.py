"""A conversation over the OpenAI API: what was said so far, and the answer as it streams in."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx

from llama_stack_lite.errors import NotFound, StackError, UpstreamError


class Conversation:
    """Messages with one model at a time; `client` has the API's base URL and the key."""

    def __init__(self, client: httpx.AsyncClient, model: str, *, system: str | None = None) -> None:
        self.client = client
        self.model = model
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.finish_reason: str | None = None

    async def ask(self, text: str) -> AsyncGenerator[str, None]:
        """Yield the answer piece by piece; what was said is kept, however the answer ends.

        Raises `StackError` with the server's own message.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {"model": self.model, "messages": [*system, *messages], "stream": True}
        said: list[str] = []
        try:
            async with aclosing(_events(self.client, body)) as events:
                async for event in events:
                    if piece := self._piece(event):
                        said.append(piece)
                        yield piece
        except httpx.HTTPError as error:
            raise unreachable(self.client, error) from error
        finally:
            if said:
                self.messages = [*messages, {"role": "assistant", "content": "".join(said)}]

    def _piece(self, event: dict[str, Any]) -> str:
        for choice in event.get("choices") or []:
            self.finish_reason = choice.get("finish_reason")
            delta = choice.get("delta") or {}
            return delta.get("content") or delta.get("refusal") or ""
        return ""


async def _events(client: httpx.AsyncClient, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    async with client.stream("POST", "chat/completions", json=body) as response:
        await _check(response)
        async for line in response.aiter_lines():
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            if line.startswith("data:"):
                event = json.loads(data)
                if "error" in event:
                    raise UpstreamError(_message(event) or data)
                yield event


async def models(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """The server's chat models as it lists them; a server that tells no kinds serves chat models."""
    try:
        response = await client.get("models")
        await _check(response)
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


async def _check(response: httpx.Response) -> None:
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
