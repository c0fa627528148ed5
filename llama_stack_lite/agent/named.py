"""Agents by their names: the distribution's own, and those that were made by the API."""

import re
from collections.abc import Collection
from typing import Any

from llama_stack_lite.api.agents import (
    NESTING,
    PREFIX,
    Agent,
    AgentDefinition,
    AgentRequest,
    AgentUpdate,
    too_deep,
)
from llama_stack_lite.api.responses import (
    AgentTool,
    CodeInterpreterTool,
    FileSearchTool,
    FunctionTool,
    MCPServer,
    ResponseRequest,
    ResponseTool,
    WebSearchTool,
)
from llama_stack_lite.errors import ConfigError, Conflict, InvalidRequest, NotFound, StackError
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import agents
from llama_stack_lite.state.archive import Kept

from .turn import Turn

REFERENCE = re.compile(rf"{PREFIX}([A-Za-z0-9_-]{{1,64}})(?:@([1-9][0-9]{{0,8}}))?", re.ASCII)


class Named:
    """Finds agents, keeps them, and puts a turn into the hands of one."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.own = {
            name: Agent.of(definition, id=name, name=name, version=1, created_at=None, source="distribution")
            for name, definition in stack.config.agents.items()
        }

    async def start(self) -> None:
        """Check the distribution's agents against what the stack has; raises `ConfigError`."""
        for name, agent in self.own.items():
            try:
                await self._check(name, agent)
            except StackError as error:
                raise ConfigError(f"agents.{name}: {error}") from error

    async def all(self) -> list[Agent]:
        """Every agent in its newest version, the distribution's first; one of their names is theirs."""
        return [*self.own.values(), *await agents.newest(self.stack.store)]

    async def get(self, reference: str, version: int | None = None) -> Agent:
        """An agent by its id or its name; raises `NotFound`."""
        own = self.own.get(reference)
        found = own or await agents.get(self.stack.store, reference, version)
        if found and version in (None, found.version):
            return found
        if found:
            raise NotFound(f"version {version} of agent", reference)
        raise NotFound("agent", reference, [agent.name for agent in await self.all()])

    async def create(self, request: AgentRequest) -> Agent:
        """Keep a new agent; raises `Conflict` where there is one of its name."""
        for kind, names in (("agent", self.own), ("tool", self.stack.tools)):
            if request.name in names:
                raise Conflict(f"name: the distribution has a {kind} `{request.name}`", param="name")
        definition = AgentDefinition.model_construct(**request.settings())
        await self._check(request.name, definition, kept=True)
        return await agents.create(self.stack.store, request.name, definition)

    async def update(self, reference: str, update: AgentUpdate) -> Agent:
        """Keep a new version of an agent; raises `Conflict` where `update` is of another than the newest."""
        agent = await self._changeable(reference)
        if update.version not in (None, agent.version):
            raise Conflict(
                f"version: the newest version of this agent is {agent.version}, not {update.version}; "
                "read that before",
                param="version",
            )
        definition = update.changed(agent)
        await self._check(agent.name, definition, kept=True)
        return await agents.add_version(self.stack.store, agent, definition)

    async def remove(self, reference: str) -> str:
        """Forget an agent with all its versions; returns its id."""
        agent = await self._changeable(reference)
        await agents.remove(self.stack.store, agent)
        return agent.id

    async def versions(self, reference: str) -> list[Agent]:
        """Every version of an agent, the newest first; raises `NotFound`."""
        agent = await self.get(reference)
        return [agent] if agent.name in self.own else await agents.versions(self.stack.store, agent)

    async def _changeable(self, reference: str) -> Agent:
        agent = await self.get(reference)
        if agent.source == "distribution":
            raise Conflict(f"agent `{agent.name}` is the distribution's own, which only its file can change")
        return agent

    async def _check(self, name: str, definition: AgentDefinition, *, kept: bool = False) -> None:
        """Raise what would come to light at the first turn; of one that is `kept`, keys cannot be."""
        if kept and definition.secret():
            raise InvalidRequest(
                "tools: keys of servers are not kept. Send such a server with each request to the agent "
                "(`extra_tools: true`), or let the operator put it under `tools` of the distribution",
                param="tools",
            )
        self._model(definition)
        if definition.guardrails:
            await self.stack.judge.watch(definition.guardrails)
        known: dict[str, AgentDefinition] = {agent.name: agent for agent in await self.all()}
        known[name] = definition
        for index, tool in enumerate(definition.tools):
            self._check_tool(self._tool(tool), known, f"tools[{index}]")
        if chain := too_deep(name, {each: agent.called() for each, agent in known.items()}):
            raise InvalidRequest(
                f"tools: {' > '.join(chain)}: an agent cannot be its own tool, nor can more than {NESTING} "
                "be in a row",
                param="tools",
            )

    def _check_tool(self, tool: ResponseTool, known: dict[str, AgentDefinition], param: str) -> None:
        name = tool.name if isinstance(tool, AgentTool) else getattr(tool, "provider", None)
        if isinstance(tool, AgentTool):
            if tool.name not in known:
                there = sorted({*known, *self.stack.tools})
                raise NotFound("tool or agent", tool.name, there, param=param)
            if functions := known[tool.name].functions():
                raise InvalidRequest(
                    f"{param}: agent `{name}` cannot be a tool, as its client has to run {functions[0]}",
                    param=param,
                )
        elif isinstance(tool, MCPServer) and tool.server_url is None:
            name = tool.server_label
        elif isinstance(tool, FileSearchTool) and not self.stack.vector_io:
            raise InvalidRequest(f"{param}: `file_search` needs an index under `vector_io:`", param=param)
        if not isinstance(tool, AgentTool) and name is not None and name not in self.stack.tools:
            raise NotFound("tool", name, self.stack.tools, param=param)

    def _model(self, definition: AgentDefinition) -> str:
        name = definition.model or self.stack.config.defaults.model
        if name is None:
            raise InvalidRequest("model: say which, as this server has no default", param="model")
        return self.stack.model(name, "chat").id

    def _tool(self, tool: ResponseTool | str) -> ResponseTool:
        """What a name in a definition stands for; the operator's word for a tool is its approval."""
        if not isinstance(tool, str):
            return tool
        provider = self.stack.tools.get(tool)
        if provider is None:
            return AgentTool(type="agent", name=tool)
        if provider.kind == "mcp":
            # any name of a section may be a label here, even one that a request could not send
            return MCPServer.model_construct(type="mcp", server_label=tool, require_approval="never")
        if provider.kind == "web_search":
            return WebSearchTool(type="web_search", provider=tool)
        if provider.kind == "code_interpreter":
            return CodeInterpreterTool(type="code_interpreter", provider=tool)
        raise InvalidRequest(
            f"tools: `{tool}` needs more than its name: write {{type: file_search, vector_store_ids: [...]}}",
            param="tools",
        )

    async def ready(self, model: str) -> Agent:
        """The agent that a request's `model` names, each of its tools and its model found."""
        match = REFERENCE.fullmatch(model)
        if match is None:
            raise InvalidRequest(f"model: write `{PREFIX}name`, or `{PREFIX}name@version`", param="model")
        try:
            agent = await self.get(match[1], int(match[2]) if match[2] else None)
        except NotFound as error:
            error.param, error.code = "model", "model_not_found"
            raise
        most = self.stack.config.turns.max_steps
        found = {
            "model": self._model(agent),
            "tools": [self._tool(tool) for tool in agent.tools],
            "max_steps": min(most, agent.max_steps or most),
        }
        return agent.model_copy(update=found)

    async def take(self, turn: Turn, kept: Kept) -> None:
        """Put a turn whose `model` is an agent's name into its hands, and hold on to its version."""
        agent = await self.ready(kept.request.model or "")
        reference = f"{PREFIX}{agent.id}@{agent.version}"
        kept.request = kept.request.model_copy(update={"model": reference})
        turn.agent, turn.request = agent, merged(agent, kept.request)
        turn.system = "\n\n".join(part for part in (agent.instructions, turn.system) if part) or None


def merged(agent: Agent, asked: ResponseRequest) -> ResponseRequest:
    """A request with all that the agent says, which stands where both say something."""
    _check_tools(agent, asked)
    changes: dict[str, Any] = {
        "model": agent.model,
        "tools": [*agent.tools, *asked.tools],
        "guardrails": list(dict.fromkeys([*agent.guardrails, *asked.guardrails])),
        "max_output_tokens": _least(agent.max_output_tokens, asked.max_output_tokens),
        "max_tool_calls": _least(agent.max_tool_calls, asked.max_tool_calls),
    }
    for name in ("temperature", "top_p", "text"):
        if (own := getattr(agent, name)) is not None:
            changes[name] = own
    return asked.model_copy(update=changes)


def _check_tools(agent: Agent, asked: ResponseRequest) -> None:
    """A request adds functions; more than that, only where the agent lets it, and nothing twice."""
    taken = _labels(agent.tools)
    for index, tool in enumerate(asked.tools):
        param = f"tools[{index}]"
        if not isinstance(tool, FunctionTool) and not agent.extra_tools:
            raise InvalidRequest(
                f"{param}: agent `{agent.name}` takes functions of its client, and no tools beside its own",
                param=param,
            )
        if again := taken & _labels([tool]):
            raise InvalidRequest(f"{param}: the agent has a tool `{again.pop()}` of its own", param=param)


def _labels(tools: Collection[ResponseTool | str]) -> set[str]:
    """The names that are a client's to give: of functions, of MCP servers, and of agents."""
    return {
        tool.server_label if isinstance(tool, MCPServer) else tool.name
        for tool in tools
        if isinstance(tool, MCPServer | FunctionTool | AgentTool)
    }


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
