"""The sections of a distribution, and where its files live."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from llama_stack_lite.api.agents import AgentDefinition, AgentName
from llama_stack_lite.api.safety import TOUCHPOINTS, Touchpoint
from llama_stack_lite.plugins import config_class
from llama_stack_lite.reach import Rule

Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_-]+$")
]  # models are `name/model`, overrides `section.name.key`


class ProviderEntry(BaseModel):
    """`provider:` names the plug-in; every other key is that plug-in's own configuration."""

    model_config = ConfigDict(extra="allow")
    provider: str = Field(description="the plug-in: an installed one's name, or `module:Class`")

    @property
    def settings(self) -> dict[str, Any]:
        return self.model_extra or {}

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """Settings may hold secrets, so that logs show none of them."""
        yield "provider", self.provider


class Defaults(BaseModel):
    """Names used where a request or a command gives none."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(None, description="a chat model, as `provider/model`")
    embedding_model: str | None = Field(None, description="an embedding model, as `provider/model`")
    rerank_model: str | None = Field(None, description="what ranks search results again, as `provider/model`")
    vector_io: str | None = Field(None, description="the index of new vector stores; the first by default")
    files: str | None = Field(None, description="where new files are kept; the first by default")


class Window(BaseModel):
    """How much of a streamed answer is held back for one verdict: so many tokens, or so long."""

    model_config = ConfigDict(extra="forbid")
    tokens: int = Field(32, ge=1)
    milliseconds: int = Field(1000, ge=1, description="after which fewer tokens are judged too")


Shields = list[Name]


class Enforce(BaseModel):
    """The shields that judge every request and answer, by touchpoint; a request can only add to them."""

    model_config = ConfigDict(extra="forbid")
    input: Shields = Field([], description="what a request says")
    output: Shields = Field([], description="what a model answers")
    tool_call: Shields | None = Field(None, description="calls that a model makes; by default as `output`")
    tool_result: Shields | None = Field(None, description="what tools answered; by default as `input`")
    retrieval: Shields | None = Field(None, description="chunks found for a model; by default as `input`")
    upload: Shields | None = Field(None, description="files sent to the server; by default as `input`")
    images: Literal["block", "allow"] = Field(
        "block", description="images, audio and files that no shield of the touchpoint can see"
    )
    window: Window = Window()
    timeout: float = Field(60, gt=0, description="seconds for one verdict; after it nothing passes")
    log_text: bool = Field(False, description="whether the log may quote what was judged")

    def shields(self, touchpoint: Touchpoint) -> Shields:
        """Those of a touchpoint; one that is not set is judged as strictly as what it resembles."""
        own: Shields | None = getattr(self, touchpoint)
        if own is None:
            own = self.output if touchpoint == "tool_call" else self.input
        return own

    def __bool__(self) -> bool:
        """Whether anything is judged at all."""
        return any(self.shields(touchpoint) for touchpoint in TOUCHPOINTS)


class Server(BaseModel):
    """Where the server listens, and whom it lets in."""

    model_config = ConfigDict(extra="forbid")
    host: str = "127.0.0.1"
    port: int = Field(8321, ge=0, le=65535)
    api_keys: list[SecretStr] = Field([], description="every request must carry one of them")
    cors_origins: list[str] = Field([], description="web pages that may call the server")
    max_body_size: int = Field(32 * 1024 * 1024, ge=1024, description="bytes")


class Turns(BaseModel):
    """Limits of agent turns, which are what /v1/responses and named agents run."""

    model_config = ConfigDict(extra="forbid")
    workers: int = Field(4, ge=0, description="background turns that this server works on at once")
    queue: int = Field(100, ge=0, description="background turns that may wait; more are refused with 429")
    lease: float = Field(
        10, ge=1, description="seconds after which another server takes over a dead one's turn"
    )
    max_steps: int = Field(16, ge=1, description="calls of the model in one turn at most")
    max_tool_calls: int = Field(64, ge=1, description="calls of tools in one turn at most")
    timeout: float = Field(600, gt=0, description="seconds for a whole turn")
    remote_mcp: bool = Field(True, description="whether requests may name MCP servers by `server_url`")


class Documents(BaseModel):
    """Limits of files, and of the work of making them searchable."""

    model_config = ConfigDict(extra="forbid")
    max_file_bytes: int = Field(512 * 1024 * 1024, ge=1, description="of an uploaded file")
    max_text_bytes: int = Field(64 * 1024 * 1024, ge=1, description="of the text found in one file")
    workers: int = Field(2, ge=0, description="files that this server works on at once")
    lease: float = Field(
        10, ge=1, description="seconds after which another server takes over a dead one's file"
    )
    attempts: int = Field(3, ge=1, description="starts of work on a file; after the last crash it is failed")
    parse_seconds: float = Field(
        120, gt=0, description="CPU time for one file, and half of the time it may take"
    )
    parse_memory: int = Field(1024 * 1024 * 1024, ge=64 * 1024 * 1024, description="bytes for one file")


class MCP(BaseModel):
    """What /mcp serves: this distribution as an MCP server."""

    model_config = ConfigDict(extra="forbid")
    agents: list[AgentName] | None = Field(None, description="those that are served; by default all")
    tools: list[Name] = Field([], description="those of `tools` that are served; by default none")
    vector_stores: list[str] = Field([], description="ids or names of those that can be searched there")
    hosts: list[str] = Field(
        [], description="names that clients reach the server by, beside loopback's and `server.host`"
    )


class Fetch(BaseModel):
    """Which addresses URLs in requests may lead to: public ones, and those that are listed here."""

    model_config = ConfigDict(extra="forbid")
    allow: list[str] = Field(
        [], description="networks, hosts or host:port beside the public ones, such as 10.1.0.0/16"
    )
    max_bytes: int = Field(20 * 1024 * 1024, ge=1, description="of a file that is fetched")
    timeout: float = Field(20, gt=0, description="seconds for a file that is fetched")

    @field_validator("allow")
    @classmethod
    def _are_rules(cls, value: list[str]) -> list[str]:
        for each in value:
            Rule.of(each)
        return value


class StackConfig(BaseModel):
    """The whole configuration; what is not in here does not run."""

    model_config = ConfigDict(extra="forbid")
    name: Name = Field("default", description="whose state this is; a file's own name, where it says none")
    description: str | None = None
    inference: dict[Name, ProviderEntry] = Field({}, description="providers of chat and embedding models")
    safety: dict[Name, ProviderEntry] = Field({}, description="shields, which `enforce` puts to work")
    enforce: Enforce = Enforce()
    tools: dict[Name, ProviderEntry] = Field({}, description="tools that agents and responses may use")
    agents: dict[AgentName, AgentDefinition] = Field({}, description="agents, each under its name")
    mcp: MCP = MCP()
    storage: str | None = Field(
        None, description="`sqlite`, or a SQLAlchemy URL; without it nothing is kept, and agents are off"
    )
    files: dict[Name, ProviderEntry] = Field({}, description="where uploaded files are kept")
    vector_io: dict[Name, ProviderEntry] = Field({}, description="indexes of vectors, for vector stores")
    documents: Documents = Documents()
    turns: Turns = Turns()
    fetch: Fetch = Fetch()
    defaults: Defaults = Defaults()
    server: Server = Server()

    def providers(self) -> dict[str, dict[str, ProviderEntry]]:
        """The provider sections, in the order they are built."""
        return {
            "inference": self.inference,
            "safety": self.safety,
            "tools": self.tools,
            "files": self.files,
            "vector_io": self.vector_io,
        }

    def touchpoints(self) -> list[Touchpoint]:
        """Where there is anything to judge: documents are made searchable, and found, in vector stores."""
        return [each for each in TOUCHPOINTS if self.vector_io or each not in ("retrieval", "upload")]

    def enforced(self) -> bool:
        """Whether anything is judged at all."""
        return any(self.enforce.shields(point) for point in self.touchpoints())

    def database(self) -> str | None:
        """The SQLAlchemy URL of the state; None where nothing is kept."""
        if self.storage == "sqlite":
            return f"sqlite:///{home() / self.name / 'state.db'}"
        return self.storage


def config_of(api: str, entry: ProviderEntry) -> BaseModel:
    """An entry's settings as its plug-in's own `Config`; raises pydantic's `ValidationError`."""
    return config_class(api, entry.provider)(**entry.settings)


def home() -> Path:
    """Where models and state live: `$LLAMA_LITE_HOME`, or `~/.llama-lite`."""
    return Path(os.environ.get("LLAMA_LITE_HOME") or Path.home() / ".llama-lite")
