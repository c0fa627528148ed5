"""/mcp: the distribution as an MCP server: its agents, and the tools and documents that are served."""

import asyncio
import contextlib
import json
import logging
from contextlib import aclosing
from importlib.metadata import version
from typing import Any

import mcp_types as types
from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from llama_stack_lite import enforcement
from llama_stack_lite.api.agents import PREFIX
from llama_stack_lite.api.ids import new_id
from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.api.responses import ResponseRequest
from llama_stack_lite.api.tools import ToolResult, Tools
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import InvalidRequest, StackError
from llama_stack_lite.plugins import load
from llama_stack_lite.safety.texts import strings
from llama_stack_lite.state import conversations

from .calls import Offered, invalid
from .named import Named
from .nested import INPUT, offered, outcome
from .turn import Turns

log = logging.getLogger(__name__)

Context = ServerRequestContext[Any, Any]
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
SESSION = {
    "type": "string",
    "description": "`new` begins a conversation, whose name comes with the answer; that name goes on with it",
}


class Serving:
    """Answers MCP's requests, each by itself: no session of the protocol is held in memory."""

    def __init__(self, turns: Turns, named: Named) -> None:
        self.turns = turns
        self.named = named
        self.stack = turns.stack
        config = self.stack.config
        self.searches: Tools | None = None
        if config.mcp.vector_stores:
            kind = load("llama_stack_lite.rag.file_search:StoreSearch", extra="documents")
            self.searches = kind(self.stack)
        server: Server[Any] = Server(
            config.name,
            version=version("llama-stack-lite"),
            on_list_tools=self._listed,
            on_call_tool=self._called,
        )
        settings = security(config)
        self.security = TransportSecurityMiddleware(settings)
        self.manager = StreamableHTTPSessionManager(
            server,
            stateless=True,
            security_settings=settings,
            max_request_body_size=config.server.max_body_size,
        )
        self._ready = asyncio.Event()
        self._running = asyncio.create_task(self._run())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if refused := await self.security.validate_request(Request(scope)):
            error = InvalidRequest(
                "/mcp is not asked by this host name, or from this web page: the operator adds names to "
                "`mcp.hosts`, and pages to `server.cors_origins`"
            )
            error.status = refused.status_code
            raise error
        await self._ready.wait()
        await self.manager.handle_request(scope, receive, send)

    async def _run(self) -> None:
        """The manager's tasks live and end in one of ours."""
        async with self.manager.run():
            self._ready.set()
            await asyncio.Event().wait()

    async def aclose(self) -> None:
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running

    async def _listed(self, context: Context, params: Any) -> types.ListToolsResult:
        """Every tool that is served; one whose description is flagged is left out."""
        definitions = [_agent_tool(definition) for definition in (await self._agents()).values()]
        definitions += [each.definition for each in (await self._tools()).values()]
        return types.ListToolsResult(tools=[_tool(each) for each in definitions if await self._passes(each)])

    async def _passes(self, definition: FunctionDefinition) -> bool:
        text = "\n".join(strings(definition))
        return await enforcement.judged(self.stack, "tool_result", text) is None

    async def _agents(self) -> dict[str, FunctionDefinition]:
        served = self.stack.config.mcp.agents
        agents = await self.named.all()
        return {agent.name: offered(agent) for agent in agents if served is None or agent.name in served}

    async def _tools(self) -> dict[str, Offered]:
        """The distribution's tools by the names they are served under: `entry__tool`, `search_store`."""
        found: dict[str, Offered] = {}
        if self.searches:
            for each in await self.searches.tools():
                found[each.name] = Offered(each, each.name, self.searches, "search")
        for label in self.stack.config.mcp.tools:
            provider = self.stack.tools[label]
            try:
                definitions = await provider.tools()
            except StackError as error:
                log.warning("/mcp: the tools of %s are not there: %s", label, error)
                continue
            for each in definitions:
                name = f"{label}__{each.name}"
                definition = each.model_copy(update={"name": name})
                found[name] = Offered(definition, each.name, provider, label)
        return found

    async def _called(self, context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        arguments = params.arguments or {}
        try:
            if definition := (await self._agents()).get(params.name):
                if problem := invalid(_agent_tool(definition), arguments):
                    return _result(ToolResult(text=f"The call was not made: {problem}.", error=True))
                return await self._asked(context, params.name, arguments)
            if tool := (await self._tools()).get(params.name):
                return _result(await self._used(tool, arguments))
        except StackError as error:
            return _result(ToolResult(text=str(error), error=True))
        raise MCPError(types.INVALID_PARAMS, f"There is no tool `{params.name[:64]}`")

    async def _asked(self, context: Context, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """A turn of an agent; each of its items that is done is progress."""
        session = arguments.get("session")
        if session == "new":
            session = (await conversations.create(self.stack.store, items=[], metadata={"agent": name})).id
        request = ResponseRequest(
            model=f"{PREFIX}{name}", input=arguments["input"], conversation=session, store=session is not None
        )
        turn = await self.turns.begin(request)
        done = 0
        async with aclosing(self.turns.follow(turn)) as events:
            async for event in events:
                if event.type == "response.output_item.done":
                    done += 1
                    await context.session.report_progress(done, message=event.data["item"]["type"])
        return _result(outcome(turn.response), session=session)

    async def _used(self, tool: Offered, arguments: dict[str, Any]) -> ToolResult:
        """A call of one of the distribution's tools, judged on its way in and out."""
        if problem := invalid(tool.definition, arguments):
            return ToolResult(text=f"The call was not made: {problem}.", error=True)
        said = json.dumps({"name": tool.name, "arguments": arguments}, ensure_ascii=False)
        if blocked := await enforcement.judged(self.stack, "tool_call", said):
            return ToolResult(text=blocked.refusal(), error=True)
        try:
            async with asyncio.timeout(self.stack.config.turns.timeout):
                result = await tool.provider.call(tool.name, arguments, session=new_id("mcp"))
        except TimeoutError:
            return ToolResult(text="The tool did not answer in time.", error=True)
        text = "\n".join([result.text, *strings(result.details)])
        if (
            not result.judged
            and text.strip()
            and (blocked := await enforcement.judged(self.stack, "tool_result", text))
        ):
            return ToolResult(text=blocked.refusal(), error=True)
        return result


def security(config: StackConfig) -> TransportSecuritySettings:
    """By which names the server may be asked: a web page that points its own name here is none of them."""
    names = [*LOOPBACK, config.server.host, *config.mcp.hosts]
    return TransportSecuritySettings(
        allowed_hosts=[each for name in names for each in (name, f"{name}:*")],
        allowed_origins=[
            *(f"{scheme}://{name}:*" for name in LOOPBACK for scheme in ("http", "https")),
            *config.server.cors_origins,
        ],
    )


def _agent_tool(definition: FunctionDefinition) -> FunctionDefinition:
    parameters = {**INPUT, "properties": {**INPUT["properties"], "session": SESSION}}
    return definition.model_copy(update={"parameters": parameters})


def _tool(definition: FunctionDefinition) -> types.Tool:
    return types.Tool(
        name=definition.name,
        description=definition.description,
        input_schema=definition.schema_of_arguments(),
    )


def _result(result: ToolResult, *, session: str | None = None) -> types.CallToolResult:
    content: list[Any] = [types.TextContent(text=result.text)]
    if session:
        content.append(types.TextContent(text=f"session: {session}"))
    structured = {"answer": result.text, "session": session} if session else None
    return types.CallToolResult(content=content, structured_content=structured, is_error=result.error)
