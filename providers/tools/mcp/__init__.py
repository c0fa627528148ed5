"""Tools of MCP servers: commands that the distribution starts, and servers at URLs."""

import asyncio
import logging
import re
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import httpx2
from mcp_types import (
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    InputRequiredResult,
    ListToolsRequest,
    ListToolsResult,
    PaginatedRequestParams,
    Tool,
)
from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, field_validator, model_validator

from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.api.tools import ToolResult
from llama_stack_lite.errors import StackError, UpstreamError, UpstreamTimeout
from llama_stack_lite.reach import Reach
from llama_stack_lite.stack import Stack

from .connection import Expired, Open
from .connections import NOBODY, Connections
from .http import Endpoint, Protocol
from .stdio import stdio
from .wording import function, name_of, result

log = logging.getLogger(__name__)

R = TypeVar("R", bound=BaseModel)

MOST_TOOLS = 512
MOST_PAGES = 32
ROOM = 64 * 1024  # bytes around a result: its envelope, and what JSON makes of its text
LISTING = 4 * 1024 * 1024  # bytes that a page of tools may have, however small results must be
ANSWER: TypeAdapter[CallToolResult | InputRequiredResult] = TypeAdapter(CallToolResult | InputRequiredResult)
# what would make of a request another one than ours
OURS = {"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect"}


class MCP:
    """The tools of one MCP server.

    A command runs as long as this server does, and its process is everybody's; a URL has a connection for
    each session. Nothing is called twice. What a server asks of us (a model, its user, files) is declined.
    """

    kind: Literal["mcp"] = "mcp"

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        command: list[str] | None = Field(
            None, min_length=1, description="a server that speaks by stdio, with its arguments"
        )
        env: dict[str, SecretStr] = Field({}, description="of the command, which has HOME and PATH beside it")
        cwd: str | None = Field(None, description="the folder that the command runs in")
        url: str | None = Field(None, description="of a server that speaks by HTTP")
        transport: Literal["auto", "streamable_http", "sse"] = "auto"
        headers: dict[str, SecretStr] = Field({}, description="sent to the URL with every request")
        authorization: SecretStr | None = Field(None, description="an access token for the URL")
        guarded: bool = Field(False, description="whether the URL is a stranger's: `fetch.allow` applies")
        allowed_tools: list[str] | None = Field(None, description="by default all")
        description: str | None = Field(None, description="what the server is for")
        timeout: float = Field(60, gt=0, description="seconds for a call")
        max_result: int = Field(1024 * 1024, ge=1024, description="bytes of what a call answers")
        refresh: float = Field(60, ge=0, description="seconds after which tools are listed anew, untold")
        idle: float = Field(60, gt=0, description="seconds after which an unused connection is closed")
        per_session: bool | None = Field(
            None, description="whether sessions have connections of their own; by default those to a URL"
        )
        max_connections: int = Field(64, ge=1)

        @model_validator(mode="after")
        def _is_one_server(self) -> Self:
            if (self.command is None) == (self.url is None):
                raise ValueError("say either `command` or `url`")
            if self.command and (self.headers or self.authorization or self.guarded):
                raise ValueError("`headers`, `authorization` and `guarded` go with `url`")
            if self.url and (self.env or self.cwd):
                raise ValueError("`env` and `cwd` go with `command`")
            if self.authorization and "authorization" in {name.lower() for name in self.headers}:
                raise ValueError("say `authorization` once: by itself, or among the `headers`")
            return self

        @field_validator("url")
        @classmethod
        def _is_url(cls, value: str | None) -> str | None:
            if value is None:
                return None
            try:  # by the parser that requests are made with
                url = httpx2.URL(value)
            except httpx2.InvalidURL as error:
                raise ValueError(f"this is no URL: {error}") from error
            if url.scheme not in ("http", "https") or not url.host:
                raise ValueError("write it as http://host:port/mcp or https://host/mcp")
            if url.userinfo or url.fragment:
                raise ValueError("no user or fragment: credentials go into `authorization` or `headers`")
            if any(c.isspace() or c == "\\" for c in value):
                raise ValueError("a character that no URL can hold")
            return value

        @field_validator("headers", "authorization")
        @classmethod
        def _fits_a_header(cls, value: Any) -> Any:
            for name in value if isinstance(value, dict) else []:
                if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or name.lower() in OURS:
                    raise ValueError(f"`{name[:64]}` is no header that can be set")
            for secret in value.values() if isinstance(value, dict) else [value]:
                text = secret.get_secret_value() if secret else ""
                if not (text.isascii() and text.isprintable()):
                    raise ValueError("a line break or another character that no HTTP header can hold")
            return value

    def __init__(self, config: Config, stack: Stack) -> None:
        self.config = config
        self._tools: list[FunctionDefinition] = []
        self._names: dict[str, str] = {}
        self._listing: asyncio.Task[None] | None = None
        self._changes = 0
        self._fresh_until = 0.0
        per_session = config.per_session if config.per_session is not None else config.command is None
        limit = max(config.max_result, LISTING) + ROOM
        if config.command:
            self.where = f"`{Path(config.command[0]).name}`"
            env = {name: value.get_secret_value() for name, value in config.env.items()}
            command = partial(stdio, config.command, env=env, cwd=config.cwd, limit=limit)
            protocols: list[Open] = [lambda _: command()]
        else:
            endpoint = _endpoint(config, stack, limit)
            self.where = endpoint.where
            spoken: list[Protocol] = ["streamable_http", "sse"]
            chosen = [each for each in spoken if config.transport in ("auto", each)]
            protocols = [partial(endpoint.open, each) for each in chosen]
        self.connections = Connections(
            protocols,
            where=self.where,
            shared=not per_session,
            most=config.max_connections,
            idle=config.idle if per_session else None,
            changed=self._forget,
        )

    async def tools(self) -> list[FunctionDefinition]:
        """What can be called: as listed lately, and anew where the server says that it changed."""
        if time.monotonic() >= self._fresh_until:
            if self._listing is None:
                self._listing = asyncio.create_task(self._list())
                self._listing.add_done_callback(self._has_listed)
            await asyncio.shield(self._listing)
        return list(self._tools)

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        try:
            if name not in self._names:
                await self.tools()
            if name not in self._names:
                return ToolResult(text=f"{self.where} has no tool `{name[:64]}`", error=True)
            params = CallToolRequestParams(name=self._names[name], arguments=arguments)
            answer = await self._ask(session, CallToolRequest(params=params), ANSWER, until=self._deadline())
        except StackError as error:
            return ToolResult(text=str(error), error=True)
        if isinstance(answer, InputRequiredResult):
            return ToolResult(text=f"{self.where} asks for more than a tool may here", error=True)
        return result(answer, most=self.config.max_result)

    async def aclose(self) -> None:
        if self._listing:
            self._listing.cancel()
        await self.connections.aclose()

    async def _list(self) -> None:
        """List all tools; of two that have one name, which a call could not tell apart, the first."""
        changes, until = self._changes, self._deadline()
        found: dict[str, tuple[FunctionDefinition, str]] = {}
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            request = ListToolsRequest(params=PaginatedRequestParams(cursor=cursor) if cursor else None)
            page = await self._ask(NOBODY, request, ListToolsResult, until=until)
            for tool in filter(self._may_call, page.tools):
                if (name := name_of(tool.name)) in found:
                    log.warning("%s has two tools named `%s`; the second is left out", self.where, name)
                else:
                    found[name] = function(tool), tool.name
            if len(found) > MOST_TOOLS:
                raise UpstreamError(f"{self.where} has more than {MOST_TOOLS} tools: choose `allowed_tools`")
            if not (cursor := page.next_cursor):
                break
        else:
            raise UpstreamError(f"{self.where} lists its tools on more than {MOST_PAGES} pages")
        self._tools = [definition for definition, _ in found.values()]
        self._names = {name: original for name, (_, original) in found.items()}
        if changes == self._changes:
            self._fresh_until = time.monotonic() + self.config.refresh

    def _has_listed(self, task: asyncio.Task[None]) -> None:
        self._listing = None
        if not task.cancelled():
            task.exception()  # whoever waits has it; there may be nobody left

    def _may_call(self, tool: Tool) -> bool:
        allowed = self.config.allowed_tools
        return allowed is None or tool.name in allowed or name_of(tool.name) in allowed

    def _forget(self) -> None:
        self._changes += 1
        self._fresh_until = 0.0

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.config.timeout

    async def _ask(self, session: str, request: Any, kind: type[R] | TypeAdapter[R], *, until: float) -> R:
        """Ask once; where the server has forgotten its session, and so did nothing, in a new one."""
        connection, began = self.connections.of(session), time.monotonic()
        try:
            async with asyncio.timeout_at(until):
                try:
                    return await connection.request(request, kind)
                except Expired:
                    connection = self.connections.of(session)
                    return await connection.request(request, kind)
        except TimeoutError as error:
            # an HTTP server may go on sending what nobody waits for; a process that says nothing is stuck
            if self.config.url or connection.heard < began:
                connection.retire()
            raise UpstreamTimeout(f"{self.where} did not answer within {self.config.timeout:g} s") from error


def _endpoint(config: MCP.Config, stack: Stack, limit: int) -> Endpoint:
    assert config.url
    headers = {name: value.get_secret_value() for name, value in config.headers.items()}
    if config.authorization:
        headers["authorization"] = f"Bearer {config.authorization.get_secret_value()}"
    where = httpx2.URL(config.url).copy_with(query=None)  # which may hold a key
    return Endpoint(
        url=config.url,
        where=str(where),
        headers=headers,
        limit=limit,
        reach=Reach(stack.config.fetch.allow) if config.guarded else None,
    )
