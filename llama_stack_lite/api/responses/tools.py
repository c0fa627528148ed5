"""The tools that a response may use, and the choice among them."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_serializer, model_validator

from llama_stack_lite.api.inference import FunctionDefinition, Wire, sparse
from llama_stack_lite.api.vector_stores import Filter, RankingOptions, Search, SearchMode

Label = Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_-]{0,63}$")]


class FunctionTool(Wire):
    """A function of the client: the response ends with the call, and goes on with its output."""

    type: Literal["function"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def definition(self) -> FunctionDefinition:
        return FunctionDefinition(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )


class ToolFilter(Wire):
    tool_names: list[str] | None = None
    read_only: bool | None = sparse()


class Approval(Wire):
    always: ToolFilter | None = None
    never: ToolFilter | None = None


class MCPServer(Wire):
    """An MCP server: one of the distribution by its label, or another by `server_url`."""

    type: Literal["mcp"]
    server_label: Label
    server_url: str | None = Field(None, min_length=1, max_length=2000)
    server_description: str | None = None
    connector_id: str | None = sparse()
    # never stored, never shown again
    headers: dict[str, SecretStr] | None = Field(None, exclude=True)
    authorization: SecretStr | None = Field(None, exclude=True)
    allowed_tools: list[str] | ToolFilter | None = None
    require_approval: Literal["always", "never"] | Approval | None = None

    def secret(self) -> bool:
        """Whether the request brings keys for it."""
        return bool(self.headers or self.authorization)

    def allows(self, name: str) -> bool:
        """Whether the request lets the model see this tool."""
        names = self.names()
        return names is None or name in names

    def names(self) -> list[str] | None:
        """The tools that the request lets the model see; None for all."""
        found = self.allowed_tools
        return found.tool_names if isinstance(found, ToolFilter) else found

    def asks(self, name: str) -> bool:
        """Whether somebody has to approve a call of this tool: always, unless the request says otherwise."""
        said = self.require_approval
        if not isinstance(said, Approval):
            return said != "never"
        if said.never and name in (said.never.tool_names or []):
            return False
        # naming those that ask leaves the others free, as naming the free ones leaves the others asking
        return said.never is not None or said.always is None or name in (said.always.tool_names or [])


class WebSearchTool(Wire):
    type: Literal[
        "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11"
    ]
    search_context_size: Literal["low", "medium", "high"] | None = sparse()
    user_location: dict[str, Any] | None = sparse()
    filters: dict[str, Any] | None = sparse()
    provider: str | None = sparse()  # which of the distribution's, where it has several


class FileSearchTool(Wire):
    """A search of vector stores, each by its id or its name; the last four fields are this server's own."""

    type: Literal["file_search"]
    vector_store_ids: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(
        min_length=1, max_length=16
    )
    max_num_results: int | None = Field(None, ge=1, le=50)
    filters: Filter | None = sparse()
    ranking_options: RankingOptions | None = sparse()
    search_mode: SearchMode | None = sparse()
    rewrite_query: bool | None = sparse()
    window: Annotated[int, Field(ge=0, le=10)] | None = sparse()
    max_tokens: Annotated[int, Field(ge=1)] | None = sparse()  # of what was found, for the model to read

    @field_serializer("ranking_options")
    def _as_said(self, options: RankingOptions | None) -> dict[str, Any] | None:
        """Only what the request says: OpenAI's types know no more than some of it."""
        return None if options is None else options.model_dump(exclude_unset=True)

    def search(self, guardrails: list[str]) -> Search:
        """The search that a call of the tool makes."""
        same = Search.model_fields.keys() & FileSearchTool.model_fields
        said = {name: value for name in same if (value := getattr(self, name)) is not None}
        return Search(**said, guardrails=guardrails)


class AutoContainer(Wire):
    type: Literal["auto"]
    file_ids: list[str] | None = sparse()


class CodeInterpreterTool(Wire):
    type: Literal["code_interpreter"]
    container: str | AutoContainer = AutoContainer(type="auto")
    provider: str | None = sparse()


class AgentTool(Wire):
    """Another agent: a call of it is a turn of its own, told as one of the MCP server `agents`."""

    type: Literal["agent"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")


ResponseTool = Annotated[
    FunctionTool | MCPServer | WebSearchTool | FileSearchTool | CodeInterpreterTool | AgentTool,
    Field(discriminator="type"),
]


class NamedFunctionChoice(Wire):
    type: Literal["function"]
    name: str


class MCPChoice(Wire):
    type: Literal["mcp"]
    server_label: str
    name: str | None = None


class HostedChoice(Wire):
    type: Literal[
        "file_search",
        "web_search",
        "web_search_preview",
        "web_search_preview_2025_03_11",
        "code_interpreter",
    ]


class AllowedChoice(Wire):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]] = Field(min_length=1)

    @model_validator(mode="after")
    def _named(self) -> Self:
        for tool in self.tools:
            if not isinstance(tool.get("type"), str):
                raise ValueError("each of `tools` needs a `type`")
        return self


ToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[NamedFunctionChoice | MCPChoice | HostedChoice | AllowedChoice, Field(discriminator="type")]
)
