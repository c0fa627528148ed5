"""The calls of a server, by what they are about."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from .calls import Resource, W_co, ask, call, frames, streaming
from .errors import streamed
from .following import Following
from .items import Compaction, Event, InputTokens, Item, Response
from .objects import (
    ChatChunk,
    ChatCompletion,
    Conversation,
    Deleted,
    Model,
    NamedAgent,
    Page,
    Prompt,
    Shield,
    ShieldAnswer,
)
from .options import ChatOptions, Input, Json, ResponseOptions, body, plain

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Chat(Resource[W_co]):
    """/v1/chat/completions: the resource itself is the call."""

    @call
    async def __call__(
        self, messages: str | Sequence[Json], **options: Unpack[ChatOptions]
    ) -> ChatCompletion:
        """Ask a model; a string is one message of the user."""
        return await ask(
            self.wire, "POST", "/v1/chat/completions", ChatCompletion, body=_chat(messages, options)
        )

    @streaming
    async def stream(
        self, messages: str | Sequence[Json], **options: Unpack[ChatOptions]
    ) -> AsyncGenerator[ChatChunk, None]:
        """The same, as it is written; the last chunk has the usage."""
        asked = _chat(messages, options) | {"stream": True, "stream_options": {"include_usage": True}}
        async with aclosing(frames(self.wire, "POST", "/v1/chat/completions", body=asked)) as found:
            async for fields in found:
                if "error" in fields:
                    raise streamed(fields["error"])
                yield ChatChunk.model_validate(fields)


def _chat(messages: str | Sequence[Json], options: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return body(options, messages=said)


class Responses(Resource[W_co]):
    """/v1/responses: turns of a model, with its tools."""

    @call
    async def create(self, input: Input, **options: Unpack[ResponseOptions]) -> Response:
        """Let a model answer; with `background=True` the answer is there later, by `retrieve` or `follow`."""
        return await ask(self.wire, "POST", "/v1/responses", Response, body=body(options, input=plain(input)))

    @streaming
    async def stream(self, input: Input, **options: Unpack[ResponseOptions]) -> AsyncGenerator[Event, None]:
        """The events of an answer as it grows.

        One of the background goes on where it was when the connection breaks; any other raises
        `ConnectionFailed` then.
        """
        asked = body(options, input=plain(input), stream=True)
        following = Following(self.wire)
        opened = frames(self.wire, "POST", "/v1/responses", body=asked)
        async with aclosing(following.events(opened)) as events:
            async for each in events:
                yield each

    @streaming
    async def follow(self, response_id: str, *, starting_after: int = -1) -> AsyncGenerator[Event, None]:
        """The events of a background response, behind the one of that number, to its end."""
        following = Following(self.wire, response_id=response_id, after=starting_after)
        async with aclosing(following.events(following.again())) as events:
            async for each in events:
                yield each

    @call
    async def retrieve(self, response_id: str, *, include: Sequence[str] = ()) -> Response:
        """A response as it is now."""
        return await ask(
            self.wire, "GET", f"/v1/responses/{response_id}", Response, query={"include": list(include)}
        )

    @call
    async def cancel(self, response_id: str) -> Response:
        """End a background response; one that has ended stays as it is."""
        return await ask(self.wire, "POST", f"/v1/responses/{response_id}/cancel", Response)

    @call
    async def delete(self, response_id: str) -> Deleted:
        """Forget a response that has ended."""
        return await ask(self.wire, "DELETE", f"/v1/responses/{response_id}", Deleted)

    @call
    async def input_items(
        self, response_id: str, *, limit: int = 20, order: str = "desc", after: str | None = None
    ) -> Page[Item]:
        """What a response was given, the last first unless `order` is `asc`."""
        query = {"limit": limit, "order": order, "after": after}
        return await ask(
            self.wire, "GET", f"/v1/responses/{response_id}/input_items", Page[Item], query=query
        )

    @call
    async def input_tokens(self, input: Input, **options: Unpack[ResponseOptions]) -> InputTokens:
        """How many tokens a model would read."""
        asked = body(options, input=plain(input))
        return await ask(self.wire, "POST", "/v1/responses/input_tokens", InputTokens, body=asked)

    @call
    async def compact(self, input: Input, **options: Unpack[ResponseOptions]) -> Compaction:
        """A conversation in short: its `output` is the input of what comes next."""
        asked = body(options, input=plain(input))
        return await ask(self.wire, "POST", "/v1/responses/compact", Compaction, body=asked)


class Conversations(Resource[W_co]):
    """/v1/conversations: items that a server keeps; `responses` and agents go on with them by their id."""

    @call
    async def create(
        self, items: Sequence[Json | Any] = (), *, metadata: Mapping[str, str] | None = None
    ) -> Conversation:
        """A new conversation, with its first items."""
        asked = {"items": plain(items), "metadata": metadata}
        return await ask(self.wire, "POST", "/v1/conversations", Conversation, body=asked)

    @call
    async def retrieve(self, conversation_id: str) -> Conversation:
        return await ask(self.wire, "GET", f"/v1/conversations/{conversation_id}", Conversation)

    @call
    async def update(self, conversation_id: str, *, metadata: Mapping[str, str]) -> Conversation:
        """Put metadata in the place of what there was."""
        path = f"/v1/conversations/{conversation_id}"
        return await ask(self.wire, "POST", path, Conversation, body={"metadata": metadata})

    @call
    async def delete(self, conversation_id: str) -> Deleted:
        return await ask(self.wire, "DELETE", f"/v1/conversations/{conversation_id}", Deleted)

    @call
    async def items(
        self, conversation_id: str, *, limit: int = 20, order: str = "desc", after: str | None = None
    ) -> Page[Item]:
        """Its items, the newest first unless `order` is `asc`."""
        query = {"limit": limit, "order": order, "after": after}
        path = f"/v1/conversations/{conversation_id}/items"
        return await ask(self.wire, "GET", path, Page[Item], query=query)

    @call
    async def add(self, conversation_id: str, items: Sequence[Json | Any]) -> Page[Item]:
        """Add items at its end."""
        path = f"/v1/conversations/{conversation_id}/items"
        return await ask(self.wire, "POST", path, Page[Item], body={"items": plain(items)})

    @call
    async def remove(self, conversation_id: str, item_id: str) -> Conversation:
        """Forget one item."""
        path = f"/v1/conversations/{conversation_id}/items/{item_id}"
        return await ask(self.wire, "DELETE", path, Conversation)


class Prompts(Resource[W_co]):
    """/v1/prompts: texts with `{{variables}}`, in versions."""

    @call
    async def create(self, prompt: str, *, variables: Sequence[str] = ()) -> Prompt:
        """Keep a new prompt, as its version 1."""
        asked = {"prompt": prompt, "variables": list(variables)}
        return await ask(self.wire, "POST", "/v1/prompts", Prompt, body=asked)

    @call
    async def list(self) -> Page[Prompt]:
        """Every prompt, in its default version."""
        return await ask(self.wire, "GET", "/v1/prompts", Page[Prompt])

    @call
    async def retrieve(self, prompt_id: str, *, version: int | None = None) -> Prompt:
        """A version of a prompt, or the default one."""
        return await ask(self.wire, "GET", f"/v1/prompts/{prompt_id}", Prompt, query={"version": version})

    @call
    async def update(
        self, prompt_id: str, prompt: str, *, variables: Sequence[str] = (), set_as_default: bool = True
    ) -> Prompt:
        """Keep a new version."""
        asked = {"prompt": prompt, "variables": [*variables], "set_as_default": set_as_default}
        return await ask(self.wire, "POST", f"/v1/prompts/{prompt_id}", Prompt, body=asked)

    @call
    async def versions(self, prompt_id: str) -> Page[Prompt]:
        return await ask(self.wire, "GET", f"/v1/prompts/{prompt_id}/versions", Page[Prompt])

    @call
    async def set_default(self, prompt_id: str, version: int) -> Prompt:
        """Make a version the one that is meant where none is named."""
        path = f"/v1/prompts/{prompt_id}/set-default-version"
        return await ask(self.wire, "POST", path, Prompt, body={"version": version})

    @call
    async def delete(self, prompt_id: str) -> Deleted:
        """Forget a prompt with all its versions."""
        return await ask(self.wire, "DELETE", f"/v1/prompts/{prompt_id}", Deleted)


class Agents(Resource[W_co]):
    """/v1/agents: agents that the server knows by name, as `model="agent:<name>"`."""

    @call
    async def create(self, name: str, /, **fields: Any) -> NamedAgent:
        """Keep an agent; `fields` are its `model`, `instructions`, `tools`, `guardrails` and limits."""
        return await ask(self.wire, "POST", "/v1/agents", NamedAgent, body={"name": name, **fields})

    @call
    async def list(
        self, *, limit: int = 20, order: str = "asc", after: str | None = None
    ) -> Page[NamedAgent]:
        """Every agent in its newest version, the distribution's own first."""
        query = {"limit": limit, "order": order, "after": after}
        return await ask(self.wire, "GET", "/v1/agents", Page[NamedAgent], query=query)

    @call
    async def retrieve(self, name: str, *, version: int | None = None) -> NamedAgent:
        return await ask(self.wire, "GET", f"/v1/agents/{name}", NamedAgent, query={"version": version})

    @call
    async def update(self, name: str, /, **fields: Any) -> NamedAgent:
        """Keep a new version, with these fields in the place of what they were."""
        return await ask(self.wire, "POST", f"/v1/agents/{name}", NamedAgent, body=fields)

    @call
    async def session(
        self, name: str, items: Sequence[Json | Any] = (), *, metadata: Mapping[str, str] | None = None
    ) -> Conversation:
        """Begin a conversation with an agent; its turns name it as `conversation`."""
        asked = {"items": plain(items), "metadata": metadata}
        return await ask(self.wire, "POST", f"/v1/agents/{name}/sessions", Conversation, body=asked)

    @call
    async def versions(self, name: str) -> Page[NamedAgent]:
        """Every version of an agent, the newest first."""
        return await ask(self.wire, "GET", f"/v1/agents/{name}/versions", Page[NamedAgent])

    @call
    async def delete(self, name: str) -> Deleted:
        return await ask(self.wire, "DELETE", f"/v1/agents/{name}", Deleted)


class Models(Resource[W_co]):
    """/v1/models"""

    @call
    async def list(self) -> Page[Model]:
        return await ask(self.wire, "GET", "/v1/models", Page[Model])

    @call
    async def retrieve(self, name: str) -> Model:
        """A model by its id, or by its bare name while that is unique."""
        return await ask(self.wire, "GET", f"/v1/models/{name}", Model)


class Shields(Resource[W_co]):
    """/v1/shields: what the operator of the server has judged."""

    @call
    async def list(self) -> Page[Shield]:
        return await ask(self.wire, "GET", "/v1/shields", Page[Shield])

    @call
    async def retrieve(self, name: str) -> Shield:
        return await ask(self.wire, "GET", f"/v1/shields/{name}", Shield)

    @call
    async def run(self, name: str, messages: str | Sequence[Json]) -> ShieldAnswer:
        """Ask one shield about the last message."""
        asked = _chat(messages, {}) | {"shield_id": name}
        return await ask(self.wire, "POST", "/v1/safety/run-shield", ShieldAnswer, body=asked)
