"""Any server that speaks the OpenAI API: OpenAI itself, vLLM, Ollama, another of us."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_core import to_json

from llama_stack_lite.api.inference import (
    ChatChunk,
    ChatRequest,
    Completion,
    CompletionRequest,
    Embeddings,
    Ranking,
)
from llama_stack_lite.api.models import Kind, ModelCard
from llama_stack_lite.errors import StackError, UpstreamError, UpstreamTimeout

from .blocks import Blocks
from .bodies import EmbeddingBody, RankingBody
from .chunks import Events, Reading
from .refusals import nonsense, refusal

log = logging.getLogger(__name__)

B = TypeVar("B", bound=BaseModel)
C = TypeVar("C", ChatChunk, Completion)

RERANKS = re.compile(r"rerank|cross-encoder", re.IGNORECASE)
EMBEDS = re.compile(r"embed|minilm|(^|[^a-z0-9])(bge|e5|gte)([^a-z0-9]|$)", re.IGNORECASE)


class OpenAI:
    """Chat, plain completions, embeddings and reranking by one pooled HTTP client.

    The upstream is always asked for a stream. Nothing is tried twice, and no redirect is followed: the key
    goes to `base_url` and nowhere else.
    """

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        base_url: str = Field(description="up to and with `/v1`")
        api_key: SecretStr | None = None
        models: list[str | ModelCard] | None = Field(None, description="by default the upstream's own list")
        timeout: float = Field(120, gt=0, description="seconds to wait for a connection, and for each byte")
        headers: dict[str, SecretStr] = Field({}, description="sent with every request")

        @field_validator("base_url")
        @classmethod
        def _is_url(cls, value: str) -> str:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                raise ValueError("write it as http://host:port/v1 or https://host/v1")
            if parts.username or parts.query or parts.fragment:
                raise ValueError("no user, query or fragment: credentials go into `api_key` or `headers`")
            return value.rstrip("/")

        @field_validator("api_key", "headers")
        @classmethod
        def _fits_a_header(cls, value: Any) -> Any:
            for secret in value.values() if isinstance(value, dict) else [value]:
                text = secret.get_secret_value() if secret else ""
                if not (text.isascii() and text.isprintable()):
                    raise ValueError("a line break or another character that no HTTP header can hold")
            return value

    def __init__(self, config: Config) -> None:
        self.config = config
        self.unlisted = False
        self._client: aiohttp.ClientSession | None = None
        self._no_read_timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(config.timeout, 10))

    async def models(self) -> list[ModelCard]:
        """The configured models, or the upstream's list; without either, every name is let through."""
        if self.config.models is not None:
            return [m if isinstance(m, ModelCard) else _card({"id": m}) for m in self.config.models]
        try:
            async with self._send("GET", "models") as response:
                entries = json.loads(await response.read())["data"]
            return [_card(entry) for entry in entries]
        except (StackError, ValueError, TypeError, KeyError) as error:
            log.warning("%s lists no models, so any name is passed on: %s", self.config.base_url, error)
            self.unlisted = True
            return []

    def chat(self, model: str, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        return self._stream("chat/completions", model, request, ChatChunk)

    def complete(self, model: str, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        return self._stream("completions", model, request, Completion)

    async def embed(
        self, model: str, inputs: list[str] | list[list[int]], *, dimensions: int | None = None
    ) -> Embeddings:
        body = {"model": model, "input": inputs} | ({"dimensions": dimensions} if dimensions else {})
        found = await self._ask("embeddings", body, EmbeddingBody)
        if sorted(item.index for item in found.data) != list(range(len(inputs))):
            raise UpstreamError(
                f"{self.config.base_url} made {len(found.data)} embeddings of {len(inputs)} texts"
            )
        return Embeddings(vectors=found.vectors(), prompt_tokens=found.usage.prompt_tokens)

    async def rerank(self, model: str, query: str, documents: list[str]) -> Ranking:
        body = {"model": model, "query": query, "documents": documents, "top_n": len(documents)}
        found = await self._ask("rerank", body, RankingBody)
        if sorted(item.index for item in found.results) != list(range(len(documents))):
            raise UpstreamError(
                f"{self.config.base_url} scored {len(found.results)} of {len(documents)} documents"
            )
        return Ranking(scores=found.scores(), prompt_tokens=found.usage.tokens)

    async def _ask(self, path: str, body: dict[str, Any], kind: type[B]) -> B:
        async with self._send("POST", path, body) as response:
            raw = await response.read()
        try:
            return kind.model_validate_json(raw)
        except ValidationError as error:
            raise nonsense(self.config.base_url, raw) from error

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _stream(
        self, path: str, model: str, request: ChatRequest | CompletionRequest, kind: type[C]
    ) -> AsyncGenerator[C, None]:
        body = request.model_dump(mode="json", by_alias=True, exclude_unset=True)
        options = (body.get("stream_options") or {}) | {"include_usage": True}
        body |= {"model": model, "stream": True, "stream_options": options}
        events, reading = Events(), Reading(kind, upstream=self.config.base_url)
        chunks = reading.chunks if request.stream or kind is Completion else reading.joined
        async with self._send("POST", path, body, timeout=self._no_read_timeout) as response:
            with closing(Blocks(response, wait=self.config.timeout)) as blocks:
                async for block in blocks:
                    for chunk in chunks(events.feed(block)):
                        yield chunk
                    if events.done:
                        break
                for chunk in chunks(events.end()):
                    yield chunk
                await blocks.drain()
        if last := reading.last():
            yield last

    @asynccontextmanager
    async def _send(
        self, method: str, path: str, body: dict[str, Any] | None = None, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response of status 2xx; every other outcome is raised as a `StackError`.

        A response that is left before its end closes its connection, which tells the upstream to stop.
        """
        base = self.config.base_url
        try:
            if body is not None:
                options |= {"data": to_json(body), "headers": {"content-type": "application/json"}}
            url = f"{base}/{path}"
            async with asyncio.timeout(self.config.timeout):
                response = await self._session().request(method, url, allow_redirects=False, **options)
                if response.status >= 300:
                    async with response:
                        raise await refusal(base, response)
            async with response:
                yield response
        except TimeoutError as error:
            raise UpstreamTimeout(
                f"{base} was silent for too long (`timeout` is {self.config.timeout:g} s)"
            ) from error
        except aiohttp.ClientConnectorError as error:
            raise UpstreamError(
                f"{base} cannot be reached ({error}): does it run, and is `base_url` right?"
            ) from error
        except aiohttp.ClientError as error:
            raise UpstreamError(f"{base} dropped the connection: {error or type(error).__name__}") from error

    def _session(self) -> aiohttp.ClientSession:
        """The one client, made in the loop that uses it."""
        if self._client is None:
            key = self.config.api_key.get_secret_value() if self.config.api_key else ""
            own = {name.lower(): value.get_secret_value() for name, value in self.config.headers.items()}
            wait = self.config.timeout
            self._client = aiohttp.ClientSession(
                headers=({"authorization": f"Bearer {key}"} if key else {}) | own,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(wait, 10), sock_read=wait),
                # shorter than the five seconds after which many servers drop an idle connection
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4),
                cookie_jar=aiohttp.DummyCookieJar(),
                proxy=_proxy(self.config.base_url),
            )
        return self._client


def _card(entry: dict[str, Any]) -> ModelCard:
    """A model from a server's list: the card's own facts where that server is one of us, else a guess."""
    name = str(entry["id"])
    kind: Kind = "rerank" if RERANKS.search(name) else "embedding" if EMBEDS.search(name) else "chat"
    known = {key: value for key, value in entry.items() if key in ModelCard.model_fields and key != "files"}
    length = entry.get("max_model_len")  # vLLM's word for it
    facts = {"kind": kind, "context_length": length, **known, "tool_calling": "remote"}
    try:
        return ModelCard.model_validate(facts)
    except ValidationError:
        # a name that could be no file name is none of our business: the upstream gave it
        return ModelCard.model_construct(id=name, kind=kind, tool_calling="remote")


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for this server.

    With `trust_env` aiohttp would ask anew for each request, in a thread, and send what `.netrc` holds.
    """
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
