"""Tools: functions that a model may call and this server runs, and the protocol of a provider."""

import hashlib
import json
from typing import Any, Literal, Protocol

from pydantic import BaseModel

from .inference import FunctionDefinition

ToolKind = Literal["mcp", "web_search", "code_interpreter", "file_search"]


class ToolResult(BaseModel):
    """What a tool answered: `text` is what the model reads, `error` says that the call failed.

    `details` are the fields that the call's item has beside it, such as `outputs` of code or the `sources`
    of a search. `judged` says that the shields of tools' results have judged all of it already.
    """

    text: str
    error: bool = False
    details: dict[str, Any] = {}
    judged: bool = False


class Tools(Protocol):
    """A provider of tools, of one kind; its name in the distribution is their server's label.

    It raises `StackError`s only for what is this server's fault or the operator's to mend; a call that fails
    is a result with `error`, which the model reads. It limits itself in time and in what it returns.
    """

    kind: ToolKind

    async def tools(self) -> list[FunctionDefinition]:
        """What can be called, as it is now."""
        ...

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        """Call one of them with arguments that match its schema.

        `session` tells conversations apart: nothing that is kept for one may reach another.
        """
        ...


def digest(definition: FunctionDefinition) -> str:
    """What a tool is known again by: another name, description or schema has another digest."""
    fields = definition.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
