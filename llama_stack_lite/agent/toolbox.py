"""The tools of one turn: found, listed, offered, checked, approved, run."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError

from llama_stack_lite.api.containers import Containers
from llama_stack_lite.api.ids import new_id
from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.api.responses import (
    AgentTool,
    AutoContainer,
    Call,
    CodeInterpreterTool,
    Event,
    FileSearchTool,
    FunctionTool,
    Item,
    MCPApprovalRequestItem,
    MCPApprovalResponseItem,
    MCPCallItem,
    MCPListToolsItem,
    MCPServer,
    MCPTool,
    ResponseTool,
)
from llama_stack_lite.api.tools import ToolKind, ToolResult, Tools, digest
from llama_stack_lite.container_files import supply
from llama_stack_lite.errors import GuardFailed, InvalidRequest, NotFound, StackError, UpstreamError
from llama_stack_lite.plugins import find
from llama_stack_lite.safety.texts import strings

from .calls import Offered, Planned, carried_out, judged, unknown
from .choice import later, offer
from .turn import Turn

KINDS: dict[str, ToolKind] = {
    "web_search": "web_search",
    "web_search_2025_08_26": "web_search",
    "web_search_preview": "web_search",
    "web_search_preview_2025_03_11": "web_search",
    "code_interpreter": "code_interpreter",
}
CALLS = {"mcp_call", "web_search_call", "file_search_call", "code_interpreter_call"}


class Toolbox:
    """What the model may call in a turn, and who runs it."""

    def __init__(self, turn: Turn) -> None:
        """Find who runs each tool of the request; raises `InvalidRequest` where nobody does."""
        self.turn = turn
        self.waiting = False
        self.known: dict[str, Offered] = {}
        self.offer: dict[str, Any] = {}
        self._own: list[Tools] = []  # made for this turn, and closed with it
        self._functions = [tool for tool in turn.request.tools if isinstance(tool, FunctionTool)]
        self.clients = frozenset(tool.name for tool in self._functions)
        self._servers: list[tuple[MCPServer, Tools]] = []
        self._hosted: list[tuple[str, Tools, str | None]] = []  # with the session, if it is not the turn's
        self._corrected = False
        searches: dict[str, FileSearchTool] = {}
        for index, tool in enumerate(turn.request.tools):
            if isinstance(tool, MCPServer):
                self._servers.append((tool, self._server(tool, f"tools[{index}]")))
            elif isinstance(tool, AgentTool):
                self._hosted.append(("agents", turn.stack.agents.colleague(turn, tool.name), None))
            elif isinstance(tool, FileSearchTool):
                searches[f"tools[{index}]"] = tool
            elif not isinstance(tool, FunctionTool):
                label, provider = self._provider(tool.type, tool.provider, f"tools[{index}]")
                self._hosted.append((label, provider, _session(tool, provider, f"tools[{index}]")))
        if searches:
            self._hosted.append(("file_search", turn.stack.agents.searches(turn, searches), None))

    def _provider(self, type: str, wanted: str | None, param: str) -> tuple[str, Tools]:
        kind = KINDS[type]
        for name, provider in self.turn.stack.tools.items():
            if provider.kind == kind and wanted in (None, name):
                return name, provider
        what = f"`{kind}` of the name `{wanted}`" if wanted else f"`{kind}`"
        raise InvalidRequest(
            f"{param}: this distribution has no {what}; its operator adds one under `tools:`", param=param
        )

    def _server(self, tool: MCPServer, param: str) -> Tools:
        stack = self.turn.stack
        if tool.server_url is None:
            found = stack.tools.get(tool.server_label)
            if found is None or found.kind != "mcp":
                known = [name for name, each in stack.tools.items() if each.kind == "mcp"]
                raise InvalidRequest(
                    f"{param}: `server_label` names no MCP server of this distribution "
                    f"({', '.join(known) or 'it has none'}), and there is no `server_url`",
                    param=f"{param}.server_label",
                )
            return found
        if not stack.config.turns.remote_mcp:
            raise InvalidRequest(
                f"{param}: this server takes no MCP servers from requests", param=f"{param}.server_url"
            )
        cls = find("tools", "mcp")
        headers = {name: value.get_secret_value() for name, value in (tool.headers or {}).items()}
        secret = tool.authorization.get_secret_value() if tool.authorization else None
        try:
            config = cls.Config(
                url=tool.server_url,
                headers=headers,
                authorization=secret,
                allowed_tools=tool.names(),
                guarded=True,
            )
        except ValidationError as error:
            first = error.errors(include_input=False)[0]  # never what was given: it may be a secret
            what = first["msg"].removeprefix("Value error, ")
            field = {"url": "server_url"}.get(str(first["loc"][0]) if first["loc"] else "", "headers")
            raise InvalidRequest(f"{param}.{field}: {what}", param=f"{param}.{field}") from None
        provider: Tools = cls(config, stack)
        self._own.append(provider)
        return provider

    async def aclose(self) -> None:
        for provider in self._own:
            if hasattr(provider, "aclose"):
                await provider.aclose()

    async def prepared(self) -> AsyncGenerator[Event, None]:
        """List what there is, then make the calls that have been approved since they were asked for."""
        await self._supply()
        for part in (self.listed(), self._answered()):
            async with aclosing(part) as events:
                async for event in events:
                    yield event

    async def _supply(self) -> None:
        """Put the files that the request names into the turn's container."""
        for index, tool in enumerate(self.turn.request.tools):
            if isinstance(tool, CodeInterpreterTool) and isinstance(tool.container, AutoContainer):
                param = f"tools[{index}].container.file_ids"
                _, provider = self._provider(tool.type, tool.provider, f"tools[{index}]")
                if (names := tool.container.file_ids) and isinstance(provider, Containers):
                    await supply(self.turn.stack, provider, self.turn.session, names, param=param)

    async def listed(self) -> AsyncGenerator[Event, None]:
        """List what there is, and offer it; nothing is called."""
        for label, provider, session in self._hosted:
            for definition in await provider.tools():
                self._add(Offered(definition, definition.name, provider, label, session=session))
        for server, provider in self._servers:
            kept = self._listed_before(server.server_label)
            async with aclosing(self._list(server, provider, kept)) as events:
                async for event in events:
                    yield event
        self.offer = offer(self.turn.request, self._functions, self.known)
        if any(item.type in CALLS for item in self.turn.response.output):  # it goes on after a crash
            self._offer_again()

    def _add(self, offered: Offered) -> None:
        """Offer a tool under its own name, or under its server's and its own where that is taken."""
        name = offered.definition.name
        if self.turn.agent and name in self._functions_of_request():
            raise InvalidRequest(f"tools: the agent has a tool `{name}` of its own", param="tools")
        if name in self.clients or name in self.known:
            name = f"{offered.label}__{name}"[:64]
            definition = offered.definition.model_copy(update={"name": name})
            offered = Offered(definition, offered.name, offered.provider, offered.label, offered.server)
        self.known[name] = offered

    def _functions_of_request(self) -> set[str]:
        """Those that a request to an agent brought, which are what its response tells of."""
        return {tool.name for tool in self.turn.response.tools if isinstance(tool, FunctionTool)}

    def _listed_before(self, label: str) -> MCPListToolsItem | None:
        """What the server listed earlier in this conversation."""
        said = [*self.turn.before, *self.turn.response.output]
        for item in reversed(said):
            if isinstance(item, MCPListToolsItem) and item.server_label == label and not item.error:
                return item
        return None

    async def _list(
        self, server: MCPServer, provider: Tools, item: MCPListToolsItem | None
    ) -> AsyncGenerator[Event, None]:
        """Offer a server's tools, as they were listed before or as they are now."""
        if item is None:
            turn = self.turn
            for event in await turn.opened():
                yield event
            item = MCPListToolsItem(id=new_id("mcpl"), server_label=server.server_label, tools=[])
            place = turn.place(item)
            told = {"item_id": item.id, "output_index": place}
            yield turn.added(place)
            yield turn.event("response.mcp_list_tools.in_progress", **told)
            await self._ask(server, provider, item)
            ending = "failed" if item.error else "completed"
            events = [turn.event(f"response.mcp_list_tools.{ending}", **told), turn.done(place)]
            await turn.save([place], events)
            for event in events:
                yield event
        for tool in item.tools:
            if not server.allows(tool.name):
                continue  # the list may be one that a client sent
            definition = FunctionDefinition(
                name=tool.name, description=tool.description, parameters=tool.input_schema
            )
            self._add(Offered(definition, tool.name, provider, server.server_label, server))

    async def _ask(self, server: MCPServer, provider: Tools, item: MCPListToolsItem) -> None:
        """Fill the list in, or say why there is none; what a shield flags is not told."""
        try:
            async with asyncio.timeout_at(self.turn.deadline):
                found = await provider.tools()
        except (GuardFailed, InvalidRequest):
            raise
        except StackError as error:
            item.error = str(error)
            return
        item.tools = [
            MCPTool(name=each.name, description=each.description, input_schema=each.schema_of_arguments())
            for each in found
            if server.allows(each.name)
        ]
        text = "\n".join(strings(item.tools))
        if text and (blocked := await judged(self.turn, text)):
            item.tools, item.error = [], blocked.refusal()

    async def _answered(self) -> AsyncGenerator[Event, None]:
        """Make, or drop, the calls for which the input holds somebody's answer."""
        asked = {item.id: item for item in self.turn.before if isinstance(item, MCPApprovalRequestItem)}
        said = [*self.turn.before, *self.turn.response.output]
        done = {item.approval_request_id for item in said if isinstance(item, MCPCallItem)}
        planned: list[Planned] = []
        for place, answer in enumerate(said):
            if not isinstance(answer, MCPApprovalResponseItem) or answer.approval_request_id in done:
                continue
            if _asked_again(asked.get(answer.approval_request_id), said[place:]):
                continue
            if answer.approval_request_id not in asked:
                raise InvalidRequest(
                    f"input: no approval `{answer.approval_request_id}` was asked for", param="input"
                )
            for event in await self.turn.opened():
                yield event
            async with aclosing(self._approved(asked[answer.approval_request_id], answer, planned)) as events:
                async for event in events:
                    yield event
        async with aclosing(carried_out(self.turn, planned)) as events:
            async for event in events:
                yield event

    async def _approved(
        self, request: MCPApprovalRequestItem, answer: MCPApprovalResponseItem, planned: list[Planned]
    ) -> AsyncGenerator[Event, None]:
        """Add the call to those that are made; where its tool is another by now, ask once more."""
        offered = self._tool(request)
        call = Planned(offered, offered.item(request.arguments, approval=request.id), request.arguments)
        if not answer.approve:
            reason = f": {answer.reason}" if answer.reason else ""
            call.result = ToolResult(text=f"The user did not approve this call{reason}.", error=True)
        elif await self._changed(offered, request):
            server, label = offered.server, request.server_label
            self.known = {name: each for name, each in self.known.items() if each.label != label}
            if server:
                async with aclosing(self._list(server, offered.provider, None)) as events:
                    async for event in events:
                        yield event
            for event in await self._ask_for(self._tool(request), request.arguments):
                yield event
            return
        planned.append(call)

    def _tool(self, request: MCPApprovalRequestItem) -> Offered:
        wanted = (request.server_label, request.name)
        for offered in self.known.values():
            if (offered.label, offered.name) == wanted:
                if self.turn.agent and not (offered.server and offered.server.asks(offered.name)):
                    break  # an agent's tool is its own to call, unless the agent asks
                return offered
        raise InvalidRequest(f"tools: the approved `{request.name}` of `{request.server_label}` is not here")

    async def _changed(self, offered: Offered, request: MCPApprovalRequestItem) -> bool:
        """Whether the tool is no longer what was approved."""
        now = {each.name: digest(each) for each in await offered.provider.tools()}
        return now.get(offered.name) != (request.digest or digest(offered.plain()))

    async def _ask_for(self, offered: Offered, arguments: str) -> list[Event]:
        """Ask for somebody's approval of a call."""
        self.waiting = True
        item = MCPApprovalRequestItem(
            id=new_id("mcpr"),
            server_label=offered.label,
            name=offered.name,
            arguments=arguments,
            digest=digest(offered.plain()),
        )
        place = self.turn.place(item)
        events = [self.turn.added(place), self.turn.done(place)]
        await self.turn.save([place], events)
        return events

    async def run(self, calls: list[Call]) -> AsyncGenerator[Event, None]:
        """Run what may be run, side by side; ask for the approval of the rest.

        Calls above the limit are ignored, and the model reads once of those that were wrong.
        """
        planned: list[Planned] = []
        wrong: list[str] = []
        self.turn.corrections.clear()  # they have been read
        for call in calls:
            plan = self._planned(call, wrong)
            if plan is None or len(planned) >= self._left():
                continue
            if plan.asks():
                for event in await self._ask_for(plan.offered, call.arguments):
                    yield event
            else:
                planned.append(plan)
        if wrong and self._corrected:
            raise UpstreamError(f"the model called tools wrongly once more: {'; '.join(wrong)}")
        self._corrected = self._corrected or bool(wrong)
        async with aclosing(carried_out(self.turn, planned)) as events:
            async for event in events:
                yield event
        self._offer_again()

    def _planned(self, call: Call, wrong: list[str]) -> Planned | None:
        """A call as it can be made, or else told of; None of a tool that there is not."""
        offered = self.known.get(call.name)
        if offered is None:
            wrong.append(f"there is no tool `{call.name}`")
            self.turn.corrections += unknown(call)
            return None
        plan = Planned(offered, offered.item(call.arguments), call.arguments)
        if problem := plan.problem():
            wrong.append(f"`{call.name}`: {problem}")
            plan.result = ToolResult(text=f"The call was not made: {problem}.", error=True)
        return plan

    def _left(self) -> int:
        """How many more calls may be made in this turn."""
        limits = [self.turn.stack.config.turns.max_tool_calls, self.turn.request.max_tool_calls]
        made = sum(item.type in CALLS for item in self.turn.response.output)
        return min(limit for limit in limits if limit is not None) - made

    def _offer_again(self) -> None:
        """What the model may call from now on, with this turn's calls behind it."""
        if self.offer:
            only = None if self._left() > 0 else self.clients
            self.offer = later(self.turn.request, self.offer, only=only)


def _asked_again(request: MCPApprovalRequestItem | None, later: list[Item]) -> bool:
    """Whether the same call was asked for once more after its answer, as its tool was another by then."""
    return any(
        isinstance(item, MCPApprovalRequestItem)
        and request is not None
        and (item.server_label, item.name, item.arguments)
        == (request.server_label, request.name, request.arguments)
        for item in later
    )


def _session(tool: ResponseTool, provider: Tools, param: str) -> str | None:
    """The container that a code interpreter is to work in, where the request names one."""
    if not isinstance(tool, CodeInterpreterTool) or not isinstance(tool.container, str):
        return None
    if not (isinstance(provider, Containers) and provider.has(tool.container)):
        raise NotFound("container", tool.container, param=f"{param}.container")
    return tool.container
