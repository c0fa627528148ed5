"""/v1/agents: a model, its instructions, tools, guards and limits, under a name."""

import difflib
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from .inference import Wire
from .pages import Page
from .responses import AgentTool, FunctionTool, MCPServer, ResponseTool, TextOptions

PREFIX = "agent:"  # what the names of agents begin with where a model is asked for
NESTING = 4  # agents, each of which is a tool of the one before

AgentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Version = Annotated[int, Field(ge=1, le=2**31 - 1)]


def _only_known(tool: ResponseTool | str) -> ResponseTool | str:
    """A key of a tool that is not understood could be a limit, misspelt."""
    if isinstance(tool, Wire) and tool.model_extra:
        found = next(iter(tool.model_extra))
        close = difflib.get_close_matches(found, type(tool).model_fields, n=1, cutoff=0.5)
        raise ValueError(f"unknown key `{found}`{f' (did you mean {close[0]}?)' if close else ''}")
    return tool


AnyTool = Annotated[AgentName | ResponseTool, AfterValidator(_only_known)]


class AgentDefinition(BaseModel):
    """What makes an agent. What it says stands; a request can add to it, or narrow it."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(None, min_length=1, description="a chat model; by default the distribution's")
    instructions: str | None = None
    description: str | None = Field(None, description="what it is for, in words for those who may ask it")
    tools: list[AnyTool] = Field(
        [], max_length=128, description="names of the distribution's `tools`, of other agents, or whole tools"
    )
    extra_tools: bool = Field(
        False, description="whether a request may bring more than functions which its client runs"
    )
    guardrails: list[Annotated[str, Field(min_length=1)]] = Field(
        [], max_length=16, description="shields to ask besides those of the distribution"
    )
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    max_output_tokens: int | None = Field(None, ge=1, description="tokens that a turn may write")
    max_steps: int | None = Field(None, ge=1, description="calls of the model in a turn")
    max_tool_calls: int | None = Field(None, ge=1, description="calls of tools in a turn")
    text: TextOptions | None = Field(None, description="the form of its answers, as in /v1/responses")

    def called(self) -> list[str]:
        """The names in `tools`: of the distribution's tools, and of agents."""
        names = [tool.name if isinstance(tool, AgentTool) else tool for tool in self.tools]
        return [name for name in names if isinstance(name, str)]

    def functions(self) -> list[str]:
        """The functions that its client has to run."""
        return [tool.name for tool in self.tools if isinstance(tool, FunctionTool)]

    def settings(self) -> dict[str, Any]:
        """The fields of a definition that are set."""
        names = AgentDefinition.model_fields.keys() & self.model_fields_set
        return {name: getattr(self, name) for name in names}

    def secret(self) -> bool:
        """Whether it holds keys of servers."""
        return any(isinstance(tool, MCPServer) and tool.secret() for tool in self.tools)


class AgentRequest(AgentDefinition):
    """A new agent, which is its version 1."""

    name: AgentName


class AgentUpdate(AgentDefinition):
    """What is another in the next version. `version`, if given, is the newest that the client knows of."""

    version: Version | None = None

    def changed(self, agent: AgentDefinition) -> AgentDefinition:
        """The agent's definition with what is said here in the place of what it said."""
        changes = {name: getattr(self, name) for name in self.model_fields_set - {"version"}}
        return AgentDefinition.model_construct(**agent.settings() | changes)


class Agent(AgentDefinition):
    """One version of an agent. The distribution's own are there as long as its file says so."""

    id: str
    object: Literal["agent"] = "agent"
    name: AgentName
    version: Version
    created_at: int | None = Field(description="seconds since 1970; null for an agent of the distribution")
    source: Literal["distribution", "api"]

    @classmethod
    def of(cls, definition: AgentDefinition, **fields: Any) -> "Agent":
        """A definition under a name."""
        return cls.model_construct(**definition.settings(), **fields)


class AgentList(Page[Agent]):
    """A page of `Agent`s."""


class DeletedAgent(BaseModel):
    id: str
    object: Literal["agent.deleted"] = "agent.deleted"
    deleted: bool = True


def too_deep(name: str, calls: Mapping[str, Collection[str]]) -> list[str] | None:
    """A chain of agents below this one that comes back to itself, or is longer than `NESTING`.

    `calls` has the names that each agent calls; those of other tools do no harm.
    """
    done: set[tuple[str, int]] = set()

    def follow(chain: list[str]) -> list[str] | None:
        last = chain[-1]
        if last in chain[:-1] or len(chain) > NESTING:
            return chain
        if (last, len(chain)) in done:
            return None
        done.add((last, len(chain)))
        found = (follow([*chain, each]) for each in calls.get(last, ()) if each in calls)
        return next((each for each in found if each), None)

    return follow([name])
