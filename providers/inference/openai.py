"""Any server that speaks the OpenAI API: OpenAI itself, vLLM, Ollama, another of us."""

import asyncio
import base64
import json
import logging
import re
from array import array
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, SecretStr, ValidationError, field_validator

from llama_stack_lite.api.inference import ChatChunk, ChatRequest, Completion, CompletionRequest, Embeddings
from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.errors import Busy, InvalidRequest, StackError, UpstreamError, UpstreamTimeout

log = logging.getLogger(__name__)

C = TypeVar("C", ChatChunk, Completion)

EMBEDS = re.compile(r"embed|minilm|(^|[^a-z0-9])(bge|e5|gte)([^a-z0-9]|$)", re.IGNORECASE)
LONGEST_LINE = 32 * 1024 * 1024  # bytes
LONGEST_ERROR = 64 * 1024  # bytes
OURS_TO_SAY = {"id", "object", "created", "model", "usage"}
FINISHES = {"function_call": "tool_calls", "eos": "stop", "eos_token": "stop", "max_tokens": "length"}


class Missing(InvalidRequest):
    """The upstream knows no such thing, mostly no such model."""

    status = 404


class TooLarge(InvalidRequest):
    """The upstream takes no request of this size."""

    status = 413


REFUSALS = {400: InvalidRequest, 404: Missing, 413: TooLarge, 422: InvalidRequest}


class OpenAI:
    """Chat, plain completions and embeddings by one pooled HTTP client.

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
        async with self._send("POST", "embeddings", json=body) as response:
            raw = await response.read()
        try:
            found = _Embeddings.model_validate_json(raw)
        except ValidationError as error:
            raise self._nonsense(raw) from error
        if sorted(item.index for item in found.data) != list(range(len(inputs))):
            raise UpstreamError(
                f"{self.config.base_url} made {len(found.data)} embeddings of {len(inputs)} texts"
            )
        vectors = [item.embedding for item in sorted(found.data, key=lambda item: item.index)]
        return Embeddings(vectors=vectors, prompt_tokens=found.usage.prompt_tokens)

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _stream(
        self, path: str, model: str, request: ChatRequest | CompletionRequest, kind: type[C]
    ) -> AsyncGenerator[C, None]:
        body = request.model_dump(mode="json", by_alias=True, exclude_unset=True)
        options = (body.get("stream_options") or {}) | {"include_usage": True}
        body |= {"model": model, "stream": True, "stream_options": options}
        progress = _Progress()
        usage = None
        async with self._send("POST", path, json=body) as response, aclosing(_events(response)) as events:
            async for data in events:
                frame = self._frame(data)
                usage = frame.get("usage") or usage
                chunk = self._chunk(frame, progress, kind)
                if chunk.choices:
                    yield chunk
        if not progress.is_complete():
            raise UpstreamError(f"{self.config.base_url} ended its stream in the middle of an answer")
        if usage:
            yield self._checked(kind, {"choices": [], "usage": usage})

    def _frame(self, data: bytes) -> dict[str, Any]:
        try:
            frame = json.loads(data)
        except ValueError as error:
            raise self._nonsense(data) from error
        if not isinstance(frame, dict) or not isinstance(frame.get("choices"), list) or frame.get("error"):
            detail = Detail.read(data)
            if detail is None:
                raise self._nonsense(data)
            message = f"{self.config.base_url} broke its answer off: {detail.message}"
            raise UpstreamError(message, code=detail.code)
        return frame

    def _chunk(self, frame: dict[str, Any], progress: "_Progress", kind: type[C]) -> C:
        rest = {key: value for key, value in frame.items() if key not in OURS_TO_SAY}
        try:
            choices = progress.choices(frame["choices"], is_chat=kind is ChatChunk)
        except (AttributeError, TypeError) as error:
            raise self._nonsense(json.dumps(frame).encode()) from error
        return self._checked(kind, {**rest, "choices": choices})

    def _checked(self, kind: type[C], found: dict[str, Any]) -> C:
        try:
            return kind.model_validate(found)
        except ValidationError as error:
            raise self._nonsense(json.dumps(found).encode()) from error

    def _nonsense(self, data: bytes) -> UpstreamError:
        shown = data[:200].decode("utf-8", "replace")
        return UpstreamError(f"{self.config.base_url} answered what is no OpenAI answer: {shown}")

    @asynccontextmanager
    async def _send(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response of status 2xx; every other outcome is raised as a `StackError`.

        A response that is left before its end closes its connection, which tells the upstream to stop.
        """
        base = self.config.base_url
        try:
            async with self._session().request(
                method, f"{base}/{path}", allow_redirects=False, **options
            ) as response:
                if response.status >= 300:
                    raise await self._refusal(response)
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
                trust_env=True,
            )
        return self._client

    async def _refusal(self, response: aiohttp.ClientResponse) -> StackError:
        """The error of ours that says what the upstream's status says."""
        base, status = self.config.base_url, response.status
        body = await _head(response)
        detail = Detail.read(body)
        said = detail.message if detail else body[:200].decode("utf-8", "replace").strip() or response.reason
        if status < 400:
            place = response.headers.get("location", "nowhere")
            return UpstreamError(f"{base} redirects to {place}, which is not followed: correct `base_url`")
        if status in (401, 403):
            log.warning("%s refused our key: %s", base, said)
            return UpstreamError(f"{base} refused this server's own key ({status}): correct its `api_key`")
        if status == 429:
            wait = response.headers.get("retry-after", "1")
            return Busy(f"{base} is busy: {said}", retry_after=wait, code=detail.code if detail else None)
        if status in REFUSALS and detail:
            return REFUSALS[status](detail.message, param=detail.param, code=detail.code)
        if status == 404:
            return UpstreamError(f"{base} has no such path ({said}): `base_url` mostly ends in /v1")
        kind = UpstreamTimeout if status in (408, 504) else UpstreamError
        return kind(f"{base} failed with status {status}: {said}")


@dataclass(frozen=True, slots=True)
class Detail:
    """What an upstream's error body says."""

    message: str
    param: str | None = None
    code: str | None = None

    @classmethod
    def read(cls, body: bytes) -> "Detail | None":
        """Read `{"error": {...}}`, `{"error": "..."}` or `{"message": "..."}`; None for anything else."""
        try:
            found = json.loads(body)
        except ValueError:
            return None
        error = found.get("error") or found if isinstance(found, dict) else None
        if isinstance(error, str):
            return cls(error)
        if not isinstance(error, dict) or not isinstance(error.get("message"), str):
            return None
        param, code = error.get("param"), error.get("code")
        return cls(
            error["message"],
            param if isinstance(param, str) else None,
            code if isinstance(code, str) else None,
        )


class _Progress:
    """How far each choice of a stream has come; puts right what servers do in several ways."""

    def __init__(self) -> None:
        self.begun: set[int] = set()
        self.finished: set[int] = set()

    def is_complete(self) -> bool:
        return bool(self.begun) and self.begun == self.finished

    def choices(self, found: list[dict[str, Any]], *, is_chat: bool) -> list[dict[str, Any]]:
        """The choices that go on, each with its role in its first delta only and with a known finish."""
        kept = []
        for choice in found:
            index = choice.setdefault("index", 0)
            if index in self.finished:
                continue
            if is_chat:
                choice["delta"] = self._delta(choice.get("delta") or {}, index)
            else:
                choice["text"] = choice.get("text") or ""
            reason = choice.get("finish_reason") or None
            choice["finish_reason"] = FINISHES.get(reason or "", reason)
            self.begun.add(index)
            if reason:
                self.finished.add(index)
            kept.append(choice)
        return kept

    def _delta(self, given: dict[str, Any], index: int) -> dict[str, Any]:
        delta: dict[str, Any] = _without_null(given)
        delta.pop("role", None)
        if "reasoning" in delta:  # as newer vLLM and OpenRouter call it
            delta.setdefault("reasoning_content", delta.pop("reasoning"))
        for position, call in enumerate(delta.get("tool_calls", [])):
            call.setdefault("index", position)
        return delta if index in self.begun else {"role": "assistant", **delta}


class _Usage(BaseModel):
    prompt_tokens: int = 0


class _Item(BaseModel):
    index: int
    embedding: list[FiniteFloat] = Field(min_length=1)

    @field_validator("embedding", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """Some servers send base64 unasked."""
        return array("f", base64.b64decode(value, validate=True)) if isinstance(value, str) else value


class _Embeddings(BaseModel):
    data: list[_Item]
    usage: _Usage = _Usage()


def _card(entry: dict[str, Any]) -> ModelCard:
    """A model from a server's list: the card's own facts where that server is one of us, else a guess."""
    name = str(entry["id"])
    kind: Literal["chat", "embedding"] = "embedding" if EMBEDS.search(name) else "chat"
    known = {key: value for key, value in entry.items() if key in ModelCard.model_fields and key != "files"}
    length = entry.get("max_model_len")  # vLLM's word for it
    facts = {"kind": kind, "context_length": length, **known, "tool_calling": "remote"}
    try:
        return ModelCard.model_validate(facts)
    except ValidationError:
        # a name that could be no file name is none of our business: the upstream gave it
        return ModelCard.model_construct(id=name, kind=kind, tool_calling="remote")


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


async def _events(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """Yield the data of each server-sent event, up to `[DONE]` or the end of the stream."""
    data: list[bytes] = []
    async with aclosing(_lines(response.content)) as lines:
        async for line in lines:
            field, _, value = line.partition(b":")
            if field in (b"data", b"error"):  # llama.cpp's server has written `error: {...}`
                data.append(value.removeprefix(b" "))
            elif not line and data:
                event, data = b"\n".join(data), []
                if event.strip() == b"[DONE]":
                    break
                yield event
    if data and b"[DONE]" not in data:
        yield b"\n".join(data)
    # a response read to its very end leaves its connection to the next request
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(0.2):
            await response.content.read()


async def _lines(content: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
    """Split at LF, CR LF or CR, wherever the network cut; a line is bytes, so no character is cut."""
    rest = b""
    async for block in content.iter_any():
        lines = (rest + block).splitlines(keepends=True)
        # what may go on in the next block waits: an unfinished line, or half a CR LF
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        if len(rest) > LONGEST_LINE:
            raise UpstreamError(f"the upstream sent a line of more than {LONGEST_LINE} bytes")
        for line in lines:
            yield line.rstrip(b"\r\n")
    yield rest.rstrip(b"\r\n")


async def _head(response: aiohttp.ClientResponse) -> bytes:
    """The beginning of a body; an error needs no more, and whoever sends it may have no end."""
    body = b""
    async for block in response.content.iter_any():
        body += block
        if len(body) > LONGEST_ERROR:
            break
    return body
